"""audit."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casemate import assess, reports
from casemate.cli import output
from casemate.cli.progress import colours, progress_bar
from casemate.errors import ExitCode, InputError

if TYPE_CHECKING:
    from casemate.controls.audit_model import Report
    from casemate.report.view import Changes


def audit(arguments: argparse.Namespace) -> int:
    """Audit and print; exit 1 on what ``--fail-on`` names, 2 when a named target could not be audited."""
    if arguments.schema:
        output.print_json(reports.schema())
        return ExitCode.DONE
    control = reports.find_control(arguments.explain) if arguments.explain else None
    formats = _formats(arguments)
    if arguments.framework and (control is not None or arguments.baseline):
        raise InputError("--framework excludes --explain and --baseline")
    if (
        formats == [("jsonl", "-")]
        and not arguments.guest
        and not arguments.framework
        and not arguments.baseline
        and control is None
    ):
        return _stream(arguments)
    old = reports.load(arguments.baseline) if arguments.baseline else None
    with progress_bar() as progress:
        report = assess.audit(arguments.targets, **_request(arguments), progress=progress)
    report = reports.printable(_with_guests(report, arguments) if arguments.guest else report)
    if arguments.waivers:
        for text in reports.unused_waivers(arguments.waivers, report):
            output.note(text)
    report, changes = reports.compare(old, report)
    if arguments.framework:
        _print_framework(report, formats, arguments.framework)
    elif control is not None:
        print(reports.explain(report, control, changes, width=_width()), end="")
    else:
        for name, place in formats:
            _write(report, name, place, changes, everything=arguments.all)
    _say_faults(report.faults, formats)
    return _exit_code(report, arguments)


def _with_guests(report: Report, arguments: argparse.Namespace) -> Report:
    """The report with what the files of each image say about its guest."""
    import msgspec

    from casemate import scans

    images = [entry.target.name for entry in report.targets if entry.target.kind.value == "image"]
    if not images:
        raise InputError("--guest is for images, and none was audited", next_step="casemate audit IMAGE --guest")
    entries = list(report.targets)
    for number, entry in enumerate(entries):
        if entry.target.kind.value == "image":
            guest = scans.audit_image(entry.target.origin, profile=arguments.profile, waiver_file=arguments.waivers)
            entries[number] = msgspec.structs.replace(
                entry, findings=(*entry.findings, *guest.findings), notes=(*entry.notes, *guest.notes)
            )
    return msgspec.structs.replace(report, targets=tuple(entries))


def _print_framework(report: Report, formats: list[tuple[str, str]], framework: str) -> None:
    """The measures of a framework in place of the findings.

    Raises:
        InputError: another format than text and JSON.
    """
    import json

    for name, place in formats:
        if name not in ("text", "json"):
            raise InputError("--framework prints text or JSON", got=name)
        if name == "json":
            text = json.dumps(reports.framework_document(framework, report), indent=1, ensure_ascii=False) + "\n"
        else:
            text = reports.framework_text(framework, report, width=_width() if place == "-" else None)
        if place == "-":
            sys.stdout.write(text)
        else:
            write_whole(Path(place), text, mode=0o600)


def _request(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "pid": arguments.pid,
        "libvirt": arguments.libvirt,
        "command_line": arguments.command_line,
        "root": arguments.root,
        "profile": arguments.profile,
        "waivers": arguments.waivers,
        "jobs": arguments.jobs,
        "khc": arguments.khc,
    }


def _formats(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """(format, file) for each output; ``-`` is standard output."""
    if arguments.json and arguments.format not in (None, "json"):
        raise InputError("--json and --format exclude each other", got=f"--format {arguments.format}")
    wanted = "json" if arguments.json else arguments.format
    if not arguments.output:
        return [(wanted or "text", "-")]
    if len(arguments.output) == 1:
        return [(wanted or reports.format_of(arguments.output[0]) or "text", arguments.output[0])]
    return [(reports.format_of(place) or wanted or "text", place) for place in arguments.output]


def _stream(arguments: argparse.Namespace) -> int:
    """A line for each target as soon as it is done: memory does not grow with their number."""
    faults: list[str] = []
    code: int = ExitCode.DONE
    head = {"profile": arguments.profile}
    with progress_bar() as progress:
        request = {**_request(arguments), "progress": progress, "fault": faults.append}
        for entry in assess.audit_stream(arguments.targets, **request):
            report = reports.report_of((entry,), time=_now(), faults=(), **head)
            sys.stdout.write(reports.render(report, "jsonl"))
            sys.stdout.flush()
            code = max(code, _exit_code(report, arguments))
    if faults:
        sys.stdout.write(reports.render(reports.report_of((), time=_now(), faults=tuple(faults), **head), "jsonl"))
        return ExitCode.USAGE
    return code


def _now() -> str:
    import datetime

    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write(report: Report, name: str, place: str, changes: Changes, *, everything: bool) -> None:
    if name == "text":
        on_terminal = place == "-" and sys.stdout.isatty()
        colour = colours(sys.stdout)
        width = _width() if on_terminal else None
        text = reports.render_text(report, changes, width=width, colour=colour, everything=everything)
    else:
        text = reports.render(report, name, changes)
    if place == "-":
        sys.stdout.write(text)
    else:
        # A report lists weaknesses: for its owner only, unless what reads it is another account by design.
        write_whole(Path(place), text, mode=0o644 if name == "prometheus" else 0o600)


def write_whole(path: Path, text: str, *, mode: int) -> None:
    """Write a file in one step, so that a reader sees the old or the new one; an existing file keeps its mode.

    What is no regular file (``/dev/stdout``, a pipe) is written to as it is.

    Raises:
        InputError: it cannot be written.
    """
    import stat
    import tempfile

    data = text.encode("utf-8", "backslashreplace")
    try:
        with suppress(FileNotFoundError):
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                path.write_bytes(data)
                return
            mode = stat.S_IMODE(status.st_mode)
            path = path.resolve()
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
            Path(temporary).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(temporary).unlink()
            raise
    except (OSError, ValueError) as error:
        got = (getattr(error, "strerror", None) or str(error)).lower()
        raise InputError(f"cannot write {str(path)!r}", got=got, next_step="check the directory of -o") from None


def _width() -> int | None:
    return os.get_terminal_size(1).columns or 80 if sys.stdout.isatty() else None


def _say_faults(faults: tuple[str, ...], formats: list[tuple[str, str]]) -> None:
    if all((name, place) == ("text", "-") for name, place in formats):
        return  # the report itself says them
    for fault in faults:
        output.warn(f"not audited: {fault}")


def _exit_code(report: Report, arguments: argparse.Namespace) -> int:
    if report.faults:
        return ExitCode.USAGE
    if not arguments.fail_on:
        return ExitCode.DONE
    failed, unknown = reports.failed_at(report, arguments.fail_on)
    if failed or (unknown and arguments.unknown_fails):
        return ExitCode.FINDINGS
    if unknown:
        ids = sorted({finding.control_id for finding in unknown})
        shown = ", ".join(ids[:4]) + (", …" if len(ids) > 4 else "")
        output.note(f"nothing failed at {arguments.fail_on} or above, but {len(unknown)} are unknown: {shown}")
    return ExitCode.DONE
