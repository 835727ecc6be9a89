"""image scan, audit and sbom: the face of `casemate.scans`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import contextmanager

from casemate import scans
from casemate.cli import output
from casemate.errors import ExitCode, ImageError, InputError
from casemate.units import format_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.scan.model import Finding
    from casemate.scan.outcome import Outcome

SHOWN = 200
"""Findings printed as text; all of them with --json."""


def scan(arguments: argparse.Namespace) -> int:
    """Scan one image and say what is in it."""
    if arguments.list_rules:
        return _list_rules(arguments)
    outcome = run(arguments)
    if arguments.json:
        output.print_json(document(outcome))
    elif arguments.sarif:
        from casemate.installed import installed_version

        print(scans.to_sarif(outcome, installed_version()), end="")
    else:
        print_outcome(outcome)
    return ExitCode.FINDINGS if outcome.failed else ExitCode.DONE


def audit(arguments: argparse.Namespace) -> int:
    """Judge the guest; exit 1 when a control fails or is unknown."""
    import datetime

    from casemate import reports
    from casemate.cli.progress import colours

    with format_hint(arguments):
        entry = scans.audit_image(
            arguments.image,
            image_format=arguments.format,
            keys=_keys(arguments),
            security_lists=arguments.security_lists,
            waiver_file=arguments.waivers,
        )
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    report = reports.printable(reports.report_of((entry,), time=now, profile=None, faults=()))
    if arguments.json:
        print(reports.render(report, "json"), end="")
    else:
        _, changes = reports.compare(None, report)
        width = os.get_terminal_size().columns if sys.stdout.isatty() else None
        text = reports.render_text(report, changes, width=width, colour=colours(sys.stdout), everything=arguments.all)
        print(text, end="")
    bad = {"fail", "unknown"}
    return ExitCode.FINDINGS if any(f.verdict.value in bad for f in entry.findings) else ExitCode.DONE


def publish(arguments: argparse.Namespace) -> int:
    """Scan, then copy; refused (exit code 4) when something is found that no waiver names."""
    with format_hint(arguments), progress_bar() as progress:
        outcome, path, digest = scans.publish(
            arguments.image,
            arguments.directory,
            name=arguments.name,
            image_format=arguments.format,
            rule_file=arguments.rules,
            waiver_file=arguments.allow_file,
            progress=progress,
        )
    for finding in outcome.findings:
        if finding.waived:
            output.note(f"waived: {finding.rule} ({scans.place_of(finding)}): {finding.waived}")
    if arguments.json:
        output.print_json({"schema": "casemate.publish/1", "path": path, "sha256": digest, "scan": document(outcome)})
    else:
        print(output.plain(f"{digest}  {path}"))
    return ExitCode.DONE


def sbom(arguments: argparse.Namespace) -> int:
    """A bill of materials on stdout."""
    from casemate.installed import installed_version

    with format_hint(arguments):
        output.print_json(
            scans.bill_of_materials(
                arguments.image,
                arguments.kind,
                installed_version(),
                image_format=arguments.format,
                keys=_keys(arguments),
            )
        )
    return ExitCode.DONE


def run(arguments: argparse.Namespace) -> Outcome:
    """The scan that the arguments ask for, with a progress bar."""
    if not 0 <= arguments.jobs <= 64:
        raise InputError("--jobs is a number of processes", got=str(arguments.jobs), expected="0 to 64")
    with format_hint(arguments), progress_bar() as progress:
        return scans.scan_image(
            arguments.image,
            image_format=arguments.format,
            rule_file=arguments.rules,
            waiver_file=arguments.allow_file,
            key=_key(arguments.digest_key_file),
            plain=arguments.engine == "plain",
            jobs=arguments.jobs,
            live=not arguments.no_files,
            keys=_keys(arguments),
            progress=progress,
        )


def _keys(arguments: argparse.Namespace) -> tuple[bytes, ...]:
    return tuple(scans.read_key(name) for name in arguments.key_file)


def _key(name: str | None) -> bytes | None:
    if name is None:
        return None
    key = scans.read_key(name)
    if len(key) < 16:
        raise InputError("the key for digests is too short", got=f"{len(key)} bytes", expected="at least 16")
    return key


@contextmanager
def format_hint(arguments: argparse.Namespace) -> Iterator[None]:
    """A bare file system has no header that tells what it is: say which option does."""
    try:
        yield
    except ImageError as fault:
        if arguments.format is None and fault.what.startswith("cannot tell what"):
            fault.next_step = "for a bare file system or disk without a partition table: --format raw"
        raise


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal's stderr. Drawn when told: a thread of its own would be forked into the scanners."""
    if not sys.stderr.isatty():
        yield lambda what, done, of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        tasks: dict[str, object] = {}
        drawn_s = 0.0

        def show(what: str, done: int, of: int) -> None:
            nonlocal drawn_s
            if what not in tasks:
                tasks[what] = bar.add_task(f"scanning {what}", total=of)
            bar.update(tasks[what], completed=done, total=of)  # type: ignore[arg-type]
            if done >= of or time.monotonic() > drawn_s + 0.1:
                bar.refresh()
                drawn_s = time.monotonic()

        yield show


def document(outcome: Outcome) -> dict[str, object]:
    """The outcome as JSON data."""
    import msgspec

    data: dict[str, object] = msgspec.to_builtins(outcome)
    return {"schema": data.pop("schema"), "failed": outcome.failed, **data}


def _list_rules(arguments: argparse.Namespace) -> int:
    rules = scans.rule_set(arguments.rules)
    rows = [(rule.id, rule.severity.value, "content", rule.title) for rule in rules.rules]
    rows += [(rule.id, rule.severity.value, "path", rule.title) for rule in rules.paths]
    if arguments.json:
        keys = ("id", "severity", "kind", "title")
        listed = [dict(zip(keys, row, strict=True)) for row in rows]
        output.print_json({"schema": "casemate.scan-rules/1", "rules": listed, "not_taken": list(rules.not_taken)})
        return ExitCode.DONE
    output.print_table("", ("RULE", "SEVERITY", "BY", "FINDS"), rows)
    for text in rules.not_taken:
        output.warn(f"rule not taken: {text}")
    return ExitCode.DONE


def print_outcome(outcome: Outcome) -> None:
    """The outcome as text."""
    for finding in outcome.findings[:SHOWN]:
        _print_finding(finding)
    if len(outcome.findings) > SHOWN:
        print(f"... and {len(outcome.findings) - SHOWN} more; --json has them all")
    for note in outcome.not_scanned:
        print(output.plain(f"NOT SCANNED  {note}"))
    for note in outcome.notes:
        output.note(note)
    speed = outcome.read_bytes / max(outcome.seconds, 0.001)
    size = f"{format_bytes(outcome.size_bytes)}, {format_bytes(outcome.read_bytes)} of it not holes"
    output.note(
        f"{outcome.image}: {size}, {outcome.seconds:.1f} s, {format_bytes(int(speed))}/s, {outcome.rules} rules"
    )
    count = len(outcome.open_findings)
    waived = sum(bool(finding.waived) for finding in outcome.findings)
    text = f"{count} finding{'' if count == 1 else 's'}" + (f", {waived} waived" if waived else "")
    print(
        f"{text}: the image is not fit to be public" if outcome.failed else f"{text}: nothing for a stranger to learn"
    )


def _print_finding(finding: Finding) -> None:
    state = "waived" if finding.waived else finding.severity.value
    more = f", {finding.more} more times" if finding.more else ""
    print(output.plain(f"{state.upper():<9} {finding.rule}: {finding.title}"))
    print(output.plain(f"          {scans.place_of(finding)}{more}"))
    detail = f", {finding.detail}" if finding.detail else ""
    print(output.plain(f"          {finding.shown}  digest {finding.digest}{detail}"))
    if finding.waived:
        print(output.plain(f"          waived: {finding.waived}"))
    elif finding.remedy:
        print(output.plain(f"          fix: {finding.remedy}"))
