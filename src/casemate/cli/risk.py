"""risk: the face of `casemate.risks`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from casemate import risk_reports, risks
from casemate.cli import output
from casemate.cli.progress import colours, progress_bar
from casemate.errors import ExitCode, InputError

if TYPE_CHECKING:
    from casemate.scenarios.context import Context
    from casemate.scenarios.risk_model import RiskReport

DEFAULT_CONTEXT = "risk.toml"


def risk(arguments: argparse.Namespace) -> int:
    """Analyse and print; exit 1 when a path is open."""
    if arguments.targets[:1] == ["init"]:
        return _init(arguments)
    if arguments.targets[:1] == ["compare"]:
        return _compare(arguments)
    formats = _formats(arguments)
    context = risks.load_context(arguments.context) if arguments.context else None
    what_if = _what_if(arguments)
    if arguments.jsonl:
        return _stream(arguments, context, what_if)
    with progress_bar() as progress:
        report = risks.analyse(
            arguments.targets,
            pids=arguments.pid,
            context=context,
            what_if=what_if,
            with_evidence=formats == ["html"],
            progress=progress,
        )
    if arguments.baseline:
        return _difference(arguments, report, context)
    if formats:
        text = risk_reports.render(report, formats[0], context=context, language=arguments.lang)
    else:
        text = _text(report, arguments)
    _write(text, arguments.output)
    return ExitCode.FINDINGS if any(vm.counts["open"] for vm in report.vms) else ExitCode.DONE


def _text(report: RiskReport, arguments: argparse.Namespace) -> str:
    """For the screen that it is written to; whole lines where it is none."""
    if arguments.output is not None or not sys.stdout.isatty():
        return risk_reports.render_text(report, everything=arguments.all)
    screen = os.get_terminal_size(sys.stdout.fileno())
    size = {"width": screen.columns or None, "height": screen.lines or None}
    return risk_reports.render_text(report, colour=colours(sys.stdout), everything=arguments.all, **size)


def _formats(arguments: argparse.Namespace) -> list[str]:
    """The one format that was asked for; none is text."""
    wanted = [name for name in ("json", "html", "dot", "sarif") if getattr(arguments, name)]
    wanted += [f"ebios-{arguments.ebios}"] if arguments.ebios else []
    if len(wanted) + arguments.jsonl > 1:
        raise InputError("one format at a time", got=" ".join(f"--{name}" for name in wanted))
    if arguments.baseline and (arguments.jsonl or wanted not in ([], ["json"])):
        raise InputError("--baseline is shown as text or with --json")
    return wanted


def _write(text: str, place: str | None) -> None:
    if place is None or place == "-":
        print(text, end="")
        return
    from casemate.cli.audit import write_whole

    write_whole(Path(place), text, mode=0o600)


def _init(arguments: argparse.Namespace) -> int:
    if len(arguments.targets) > 2:
        raise InputError("init takes one file", got=" ".join(arguments.targets[1:]))
    place = arguments.targets[1] if len(arguments.targets) > 1 else DEFAULT_CONTEXT
    risks.init_context(place, replace=arguments.force)
    output.note(f"{place} written; change what is not so, then: casemate risk --context {place}")
    return ExitCode.DONE


def _compare(arguments: argparse.Namespace) -> int:
    formats = _formats(arguments)
    idle = [name for name in ("context", "baseline", "jsonl", "jobs", "all") if getattr(arguments, name)]
    if idle or formats not in ([], ["json"], ["html"]):
        got = [f"--{name}" for name in (*idle, *formats)]
        raise InputError("compare is shown as text, with --json or with --html", got=" ".join(got))
    with progress_bar() as progress:
        comparison = risks.compare_placements(
            arguments.targets[1:],
            pids=arguments.pid,
            services=arguments.services,
            what_if=_what_if(arguments),
            progress=progress,
        )
    if formats == ["json"]:
        _write(json.dumps(risk_reports.plain(comparison), indent=2) + "\n", arguments.output)
    else:
        _write(risk_reports.render_comparison(comparison, page=formats == ["html"]), arguments.output)
    return ExitCode.DONE


def _difference(arguments: argparse.Namespace, report: RiskReport, context: Context | None) -> int:
    was = risks.analyse([arguments.baseline], context=context)  # as it was: a what-if is about now
    found = risks.difference_of(was, report)
    if arguments.json:
        output.print_json(risk_reports.plain(found))
    else:
        _write(risk_reports.render_difference(found), arguments.output)
    worse = any(vm.open_paths[1] > vm.open_paths[0] for vm in found.vms)
    return ExitCode.FINDINGS if worse else ExitCode.DONE


def _what_if(arguments: argparse.Namespace) -> risks.WhatIf | None:
    assume: dict[str, str] = {}
    for text in arguments.assume:
        control, equals, verdict = text.partition("=")
        if not equals or verdict not in ("pass", "fail"):
            raise InputError(f"--assume {text}", expected="CONTROL=pass or CONTROL=fail")
        if assume.get(control, verdict) != verdict:
            raise InputError(f"--assume says both of {control}", expected="pass or fail")
        assume[control] = verdict
    if not (assume or arguments.without or arguments.fix_all_below is not None):
        return None
    return risks.WhatIf(assume=assume, without=arguments.without, fix_all_below=arguments.fix_all_below)


def _stream(arguments: argparse.Namespace, context: Context | None, what_if: risks.WhatIf | None) -> int:
    found_open = False
    lines = risks.lines_of_files(arguments.targets, context=context, what_if=what_if, jobs=arguments.jobs)
    for line, is_open in lines:
        found_open = found_open or is_open
        print(line)
    return ExitCode.FINDINGS if found_open else ExitCode.DONE
