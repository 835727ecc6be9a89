"""audit."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from casemate.cli import output
from casemate.errors import ExitCode, InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.controls.audit_model import Report
    from casemate.report.view import Changes

PATIENCE_S: Final = 1.0
BASELINE_MAX_BYTES: Final = 512 << 20
BAR_COLUMNS: Final = 24


def audit(arguments: argparse.Namespace) -> int:
    """Audit and print; exit 1 on what ``--fail-on`` names, 2 when a named target could not be audited."""
    if arguments.schema:
        from casemate.report.document import audit_schema

        output.print_json(audit_schema())
        return ExitCode.DONE
    control = _control(arguments.explain) if arguments.explain else None
    formats = _formats(arguments)
    if formats == [("jsonl", "-")] and not arguments.baseline and control is None:
        return _stream(arguments)
    from casemate import assess
    from casemate.report.text import clean
    from casemate.report.view import NO_CHANGES

    old = _baseline(arguments.baseline) if arguments.baseline else None
    with _progress() as progress:
        report = clean(assess.audit(arguments.targets, **_request(arguments), progress=progress))
    if arguments.waivers:
        _say_unused(arguments.waivers, report)
    changes = NO_CHANGES
    if old is not None:
        from casemate.controls.baseline import compare
        from casemate.report.view import changes_of

        comparison = compare(clean(old), report)
        report, changes = comparison.report, changes_of(comparison)
    if control is not None:
        from casemate.report.explain import explain

        print(explain(report, control, changes, width=_width()), end="")
    else:
        for name, place in formats:
            _write(report, name, place, changes, everything=arguments.all)
    _say_faults(report.faults, formats)
    return _exit_code(report, arguments)


def _request(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.jobs < 1:
        raise InputError("--jobs", got=str(arguments.jobs), expected="a number from 1 on")
    return {
        "pid": arguments.pid,
        "libvirt": arguments.libvirt,
        "command_line": arguments.command_line,
        "root": arguments.root,
        "profile": arguments.profile,
        "waivers": arguments.waivers,
        "jobs": arguments.jobs,
    }


def _control(name: str) -> Any:
    """The control of this id.

    Raises:
        InputError: there is none.
    """
    from casemate.cli.controls import find

    return find(name)


def _formats(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """(format, file) for each output; ``-`` is standard output."""
    from casemate.report.formats import format_of

    if arguments.json and arguments.format not in (None, "json"):
        raise InputError("--json and --format exclude each other", got=f"--format {arguments.format}")
    wanted = "json" if arguments.json else arguments.format
    if not arguments.output:
        return [(wanted or "text", "-")]
    if len(arguments.output) == 1:
        return [(wanted or format_of(arguments.output[0]) or "text", arguments.output[0])]
    return [(format_of(place) or wanted or "text", place) for place in arguments.output]


def _stream(arguments: argparse.Namespace) -> int:
    """A line for each target as soon as it is done: memory does not grow with their number."""
    from casemate import assess
    from casemate.audit.run import catalogue_version, host_name, tool_version
    from casemate.controls.audit_model import Report
    from casemate.controls.profiles import DEFAULT
    from casemate.facts.root import Root
    from casemate.report.formats import render

    faults: list[str] = []
    code: int = ExitCode.DONE
    head: dict[str, Any] = {
        "tool_version": tool_version(),
        "catalogue": catalogue_version(),
        "host": host_name(Root()),
        "profile": arguments.profile or DEFAULT,
    }
    with _progress() as progress:
        request = {**_request(arguments), "progress": progress, "fault": faults.append}
        for entry in assess.audit_stream(arguments.targets, **request):
            report = Report(time=_now(), targets=(entry,), **head)
            sys.stdout.write(render(report, "jsonl"))
            sys.stdout.flush()
            code = max(code, _exit_code(report, arguments))
    if faults:
        sys.stdout.write(render(Report(time=_now(), targets=(), faults=tuple(faults), **head), "jsonl"))
        return ExitCode.USAGE
    return code


def _now() -> str:
    import datetime

    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _baseline(name: str) -> Report:
    from casemate.facts.root import read_all
    from casemate.report.document import from_json

    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            return from_json(read_all(descriptor, BASELINE_MAX_BYTES, name), name)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        got = (getattr(error, "strerror", None) or str(error)).lower()
        raise InputError(f"cannot read the baseline {name!r}", got=got, next_step="check the path") from None


def _write(report: Report, name: str, place: str, changes: Changes, *, everything: bool) -> None:
    from casemate.report.formats import render

    if name == "text":
        from casemate.report.terminal import to_text

        on_terminal = place == "-" and sys.stdout.isatty()
        colour = on_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        width = _width() if on_terminal else None
        text = to_text(report, changes, width=width, colour=colour, everything=everything)
    else:
        text = render(report, name, changes)
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


def _say_unused(name: str, report: Report) -> None:
    import datetime

    from casemate.audit.text import read_document
    from casemate.controls.waivers import parse_waivers, unused

    today = datetime.datetime.now(datetime.UTC).date()
    for text in unused(parse_waivers(read_document(name), name), report, today):
        output.note(text)


def _say_faults(faults: tuple[str, ...], formats: list[tuple[str, str]]) -> None:
    if all((name, place) == ("text", "-") for name, place in formats):
        return  # the report itself says them
    for fault in faults:
        output.warn(f"not audited: {fault}")


def _exit_code(report: Report, arguments: argparse.Namespace) -> int:
    from casemate.controls.model import Verdict
    from casemate.report.view import SEVERITIES

    if report.faults:
        return ExitCode.USAGE
    if not arguments.fail_on:
        return ExitCode.DONE
    names = [severity.value for severity in SEVERITIES]
    counted = frozenset(names[: names.index(arguments.fail_on) + 1])
    bad = [f for entry in report.targets for f in entry.findings if f.severity.value in counted and not f.pending]
    failed = [finding for finding in bad if finding.verdict is Verdict.FAIL]
    unknown = [finding for finding in bad if finding.verdict is Verdict.UNKNOWN]
    if failed or (unknown and arguments.unknown_fails):
        return ExitCode.FINDINGS
    if unknown:
        ids = sorted({finding.control_id for finding in unknown})
        shown = ", ".join(ids[:4]) + (", …" if len(ids) > 4 else "")
        output.note(f"nothing failed at {arguments.fail_on} or above, but {len(unknown)} are unknown: {shown}")
    return ExitCode.DONE


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr when the work takes longer than a second, on a terminal only; no thread draws it."""
    started = time.monotonic()
    is_terminal = sys.stderr.isatty()
    drawn = 0

    def progress(done: int, total: int, what: str) -> None:
        nonlocal drawn
        if not is_terminal or time.monotonic() - started < PATIENCE_S:
            return
        line = bar(done, total, what)[: (os.get_terminal_size(2).columns or 80) - 1]
        sys.stderr.write(f"\r{line.ljust(drawn)}")
        sys.stderr.flush()
        drawn = len(line)

    try:
        yield progress
    finally:
        if drawn:
            sys.stderr.write(f"\r{' ' * drawn}\r")
            sys.stderr.flush()


def bar(done: int, total: int, what: str) -> str:
    """``[#####·····]  5/10  vm web``."""
    total = max(total, done, 1)
    full = BAR_COLUMNS * done // total
    return f"[{'#' * full}{'.' * (BAR_COLUMNS - full)}] {done}/{total}  {output.plain(what)}"
