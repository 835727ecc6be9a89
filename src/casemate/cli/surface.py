"""surface: the face of `casemate.assess.surface`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from casemate import assess
from casemate.cli import output
from casemate.errors import ExitCode

_CHIPS = {"on": "in the host's kernel", "split": "split: only the local APIC in the kernel", "off": "in the emulator"}
_SIDES = (("emulator", "in the emulator"), ("kernel", "in the host's kernel"), ("vmm", "in libvirt and others"))


def surface(arguments: argparse.Namespace) -> int:
    """Show one machine, measure, or both."""
    with output.working("surface") as report, _progress() as progress:
        document = assess.surface(
            arguments.target,
            pid=arguments.pid,
            measure=arguments.measure,
            accel=arguments.accel,
            report=report,
            progress=progress,
        )
    if arguments.svg:
        assess.write_pictures(arguments.svg, document)
        output.note(f"pictures of {', '.join(document['paths'])} written to {arguments.svg}")
    if arguments.json:
        output.print_json(document)
        return ExitCode.DONE
    if document["history"] is not None:
        _print(document)
    if document["measured"] is not None:
        _measured(document["measured"])
    if arguments.paths:
        _draw(document)
    return ExitCode.DONE


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr while it counts, on a terminal only; made when the first word comes."""
    if not sys.stderr.isatty():
        yield lambda done, total, what: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
    task = bar.add_task("measure", total=None)

    def progress(done: int, total: int, what: str) -> None:
        bar.update(task, completed=done, total=total, description=output.plain(what))
        if done == 0:
            sys.stderr.write("\r\x1b[2K")  # what `working` said last stands on this line
            bar.start()
        bar.refresh()

    try:
        yield progress
    finally:
        bar.stop()


def _draw(document: dict[str, Any]) -> None:
    import shutil

    width = shutil.get_terminal_size().columns
    print()
    for line in assess.drawn_pictures(document, min(width, 140)):
        print(output.plain(line))


def _print(document: dict[str, Any]) -> None:
    head = [document["machine"] or "board unknown", document["accel"] or "accelerator unknown"]
    if document["accel"] == "kvm" and document["irqchip"]:
        head.append(f"interrupt controllers {_CHIPS.get(document['irqchip'], document['irqchip'])}")
    print(output.plain(f"{document['name']}: {', '.join(head)} ({document['stage']}: {document['source']})"))
    print()
    rows = [_row(row) for row in document["rows"]]
    output.print_table("", ("WEIGHT", "CVES", "PART", "KIND", "BUS", "HANDLED BY"), rows)
    if document["exits"] is not None:
        print()
        _paragraph(f"Exits since it started: {_by_reason(document['exits']) or 'none'}")
    _could_go(document["rows"])
    _history(document["history"])
    for title, key in (("Notes", "notes"), ("Unknown", "unknown")):
        if document[key]:
            print(f"\n{title}")
            for line in document[key]:
                print(f"  {output.plain(line)}")


def _row(row: dict[str, Any]) -> list[str]:
    name = row["type"] if row["count"] == 1 else f"{row['count']} × {row['type']}"
    handler = row["handler"].removesuffix(" process")
    return [str(row["weight"]), str(len(row["cves"])), name, row["kind"], row["bus"], handler]


def _could_go(rows: list[dict[str, Any]]) -> None:
    """What could be done without which parts, the heaviest first."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["go"]:
            grouped.setdefault((row["go"], row["cost"]), []).append(row["type"])
    if not grouped:
        return
    print("\nWhat could go")
    for (advice, cost), types in grouped.items():
        _paragraph(f"{', '.join(types)}: {advice}{f' (costs: {cost})' if cost else ''}", "  ")


def _history(history: dict[str, Any]) -> None:
    print(f"\nHistory (table of {history['table_date']}): vulnerabilities that would have reached this machine")
    reached, hardened = history["reached"], history["hardened"]
    if reached is None:
        print("  unknown: the devices of this machine are not all known (see Notes)")
        return
    rows = []
    for side, words in _SIDES:
        before = [cve for cve in reached if cve["side"] == side]
        after = None if hardened is None else [cve for cve in hardened if cve["side"] == side]
        rows.append(_counts(words, before, after))
    rows.append(_counts("together", reached, hardened))
    output.print_table("", ("WHERE", "THIS MACHINE", "OF THESE CODE ON THE HOST", "HARDENED"), rows)
    code = [cve["id"] for cve in reached if "R" in cve["impact"]]
    stay = {cve["id"] for cve in hardened or reached}
    for words, ids in (
        ("code on the host, gone when hardened", [name for name in code if name not in stay]),
        ("code on the host" + ("" if hardened is None else ", still there"), [name for name in code if name in stay]),
    ):
        if ids:
            _paragraph(f"{words}: {', '.join(ids)}", "  ")
    if hardened is None:
        print(f"  hardened: unknown: {output.plain(history['hardened_why'])}")
    else:
        print(f"  hardened: {output.plain(history['hardened_how'])}")


def _counts(words: str, before: list[dict[str, Any]], after: list[dict[str, Any]] | None) -> list[str]:
    code = sum("R" in cve["impact"] for cve in before)
    return [words, str(len(before)), str(code), "unknown" if after is None else str(len(after))]


def _measured(measured: dict[str, Any]) -> None:
    rows = []
    for row in measured["rows"]:
        numbers = row["per_unit"]
        rows.append(
            [
                row["device"],
                row["direction"] + ("" if row["paced"] else ", back to back"),
                str(row["size_bytes"]),
                *(f"{numbers[name]:.2f}" for name in ("accesses", "notifications", "interrupts")),
            ]
        )
    print()
    header = ("DEVICE", "DIRECTION", "BYTES", "ACCESSES", "NOTIFICATIONS", "INTERRUPTS")
    output.print_table("Work per packet and per block", header, rows)
    reasons = [
        [row["device"], row["direction"] + ("" if row["paced"] else ", back to back"), str(row["size_bytes"]), exits]
        for row in measured["rows"]
        if (exits := _by_reason(row["exits"] or {}, row["units"]))
    ]
    if reasons:
        print()
        output.print_table(
            "Exits per packet and per block", ("DEVICE", "DIRECTION", "BYTES", "EXITS BY REASON"), reasons
        )
    print()
    _paragraph(measured["how"])
    _paragraph(f"Exits by reason: {measured['exits']}.")
    _paragraph(f"vhost-net: {measured['vhost_net']}.")


def _by_reason(exits: dict[str, int], units: int = 0) -> str:
    """The reasons, the most frequent first; for each of so many units, or in all."""
    ordered = sorted(exits.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count / units:.2f}" if units else f"{name} {count}" for name, count in ordered if count)


def _paragraph(text: str, indent: str = "") -> None:
    import textwrap

    more = f"{indent}  " if indent else ""
    print(textwrap.fill(output.plain(text), width=100, initial_indent=indent, subsequent_indent=more))
