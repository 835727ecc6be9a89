"""measure: the face of `casemate.measures`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from casemate import measures
from casemate.cli import output
from casemate.errors import ExitCode, InputError

if TYPE_CHECKING:
    from casemate.measure.expected import Expected


def measure(arguments: argparse.Namespace) -> int:
    """Measure, explain a measurement, compare a log; exit 1 when nothing explains it, or the log differs."""
    found = measures.measure(
        arguments.spec,
        measures.Choices(
            kind=arguments.kind,
            firmware=arguments.firmware,
            variables=arguments.variables,
            cpu=arguments.cpu,
            vcpus=arguments.vcpus,
            features=arguments.features,
            kernel_hashes=not arguments.no_kernel_hashes,
            banks=tuple(dict.fromkeys(arguments.bank or ("sha256",))),
            reference_log=arguments.reference_log,
            address_bits=arguments.address_bits,
            qemu=arguments.qemu,
            files=dict(_pair("--grub-file", text) for text in arguments.grub_file),
            others=[_pair("--other", text) for text in arguments.other],
            reported=arguments.explain,
            observed_log=arguments.compare,
        ),
    )
    if "boot" in found.expected.unpredictable:
        output.note(found.expected.unpredictable["boot"])
    if arguments.policy is not None:
        _write(arguments.policy, found.expected.policy_text())
    if arguments.json:
        output.print_json(found.document())
    elif arguments.policy != "-":
        _print(found, arguments)
    return ExitCode.FINDINGS if found.explained == "" or found.differences else ExitCode.DONE


def _write(place: str, text: str) -> None:
    if place == "-":
        print(text, end="")
        return
    from casemate.cli.audit import write_whole

    write_whole(Path(place), text, mode=0o644)


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found:
        raise InputError(f"{flag} {text}", expected=f"{flag} NAME=FILE")
    return name, value


def _print(found: measures.Measured, arguments: argparse.Namespace) -> None:
    if found.explained is not None:
        print(output.plain(found.explained or "no single change of these inputs gives the reported value"))
    if found.differences is not None:
        unknown = ", ".join(found.expected.unpredictable)
        same = "the log has exactly the events that were computed" + (f"; not compared: {unknown}" if unknown else "")
        lines = found.differences or (same,)
        print(output.plain("\n".join(lines), keep_lines=True))
    if found.explained is None and found.differences is None:
        print(output.plain(render(found.expected, with_events=arguments.events), keep_lines=True))


def render(expected: Expected, *, with_events: bool) -> str:
    """A measurement for a person: one value a line; a single value is all by itself, for scripts."""
    if set(expected.values) == {"measurement"}:
        return expected.values["measurement"]
    names = [*expected.values, *expected.unpredictable]
    width = max(map(len, names), default=0)
    lines = [f"{name:<{width}}  {value}" for name, value in expected.values.items()]
    lines += [f"{name:<{width}}  not predictable: {why}" for name, why in expected.unpredictable.items()]
    if with_events:
        lines.append("")
        for step in expected.steps:
            digests = " ".join(f"{bank}:{digest.hex()}" for bank, digest in step.digests.items())
            lines.append(f"{step.register:>2}  {step.what}: {step.unknown or digests}")
    return "\n".join(lines)
