"""risk: the face of `casemate.risks`."""

from __future__ import annotations

import argparse
import sys

from casemate import risks
from casemate.cli import output
from casemate.cli.progress import colours, progress_bar
from casemate.errors import ExitCode, InputError

DEFAULT_CONTEXT = "risk.toml"


def risk(arguments: argparse.Namespace) -> int:
    """Analyse and print; exit 1 when a path is open."""
    if arguments.targets[:1] == ["init"]:
        return _init(arguments)
    context = risks.load_context(arguments.context) if arguments.context else None
    what_if = _what_if(arguments)
    if arguments.jsonl:
        return _stream(arguments, context, what_if)
    with progress_bar() as progress:
        report = risks.analyse(arguments.targets, context=context, what_if=what_if, progress=progress)
    if arguments.json:
        output.print_json(risks.document_of(report))
    else:
        print(risks.render_text(report, colour=colours(sys.stdout), everything=arguments.all), end="")
    return ExitCode.FINDINGS if any(vm.counts["open"] for vm in report.vms) else ExitCode.DONE


def _init(arguments: argparse.Namespace) -> int:
    place = arguments.targets[1] if len(arguments.targets) > 1 else DEFAULT_CONTEXT
    if len(arguments.targets) > 2:
        raise InputError("init takes one file", got=" ".join(arguments.targets[1:]))
    risks.init_context(place, replace=arguments.force)
    output.note(f"{place} written; change what is not so, then: casemate risk --context {place}")
    return ExitCode.DONE


def _what_if(arguments: argparse.Namespace) -> risks.WhatIf | None:
    assume = {}
    for text in arguments.assume:
        control, equals, verdict = text.partition("=")
        if not equals or verdict not in ("pass", "fail"):
            raise InputError(f"--assume {text}", expected="CONTROL=pass or CONTROL=fail")
        assume[control] = verdict
    if not (assume or arguments.without or arguments.fix_all_below is not None):
        return None
    return risks.WhatIf(assume=assume, without=arguments.without, fix_all_below=arguments.fix_all_below)


def _stream(arguments: argparse.Namespace, context: object, what_if: risks.WhatIf | None) -> int:
    is_open = False
    for vm in risks.analyse_stream(arguments.targets, context=context, what_if=what_if):  # type: ignore[arg-type]
        is_open = is_open or bool(vm.counts["open"])
        print(risks.line_of(vm))
    return ExitCode.FINDINGS if is_open else ExitCode.DONE
