"""Text of `casemate risk compare` (four columns) and of the difference between two analyses."""

from __future__ import annotations

from collections.abc import Iterator

from casemate.report.text import one_line
from casemate.scenarios.data import graph
from casemate.scenarios.difference import Difference
from casemate.scenarios.placements import Comparison, Tally

_COLUMN = 24


def compare_text(comparison: Comparison) -> str:
    """The four placements side by side."""
    return "\n".join(_compare_lines(comparison)) + "\n"


def _compare_lines(comparison: Comparison) -> Iterator[str]:
    columns = comparison.placements
    yield f"{comparison.services} services, judged by the controls of {one_line(comparison.evidence)}"
    yield from (f"what if: {one_line(text)}" for text in comparison.assumed)
    yield ""
    yield _row("", [column.title for column in columns])
    for title, name in (
        ("machines", "machines"),
        ("kernels", "kernels"),
        ("user spaces", "user_spaces"),
        ("emulators", "emulators"),
        ("networks", "networks"),
        ("admin interfaces", "admin_interfaces"),
    ):
        yield _row(title, [str(getattr(column.inventory, name)) for column in columns])
    yield ""
    yield "paths from a service that was taken over"
    for word in ("open", "residual", "unknown", "on-paper"):
        yield _row(f"to others: {word}", [str(column.isolation.counts[word]) for column in columns])
    yield _row("  easiest", [_level(column.isolation) for column in columns])
    for word in ("open", "residual", "unknown", "on-paper"):
        yield _row(
            f"to the host: {word}",
            [str(column.exposure.counts[word]) if column.exposure else "-" for column in columns],
        )
    yield _row("  easiest", [_level(column.exposure) for column in columns])
    for column in columns:
        yield ""
        yield f"{column.title}:"
        yield from (f"  + {text}" for text in column.gained)
        yield from (f"  - {text}" for text in column.added)


def _row(title: str, cells: list[str]) -> str:
    return f"{title:<22}" + "".join(f"{cell:<{_COLUMN}}" for cell in cells).rstrip()


def _level(tally: Tally | None) -> str:
    if tally is None:
        return "-"
    return f"V{tally.likelihood}" if tally.likelihood else "none"


def difference_text(found: Difference) -> str:
    """What changed, VM by VM."""
    return "\n".join(_difference_lines(found)) + "\n"


def _difference_lines(found: Difference) -> Iterator[str]:
    titles = {variant.id: variant.title for variant in graph().variants}
    techniques = {technique.id: technique.title for technique in graph().techniques}
    count = f"{len(found.vms)} VM{'' if len(found.vms) == 1 else 's'} changed, {len(found.same)} did not"
    yield f"since {one_line(found.was)}: {count}"
    yield from (f"what if, now: {one_line(text)}" for text in found.assumed)
    for name in found.added:
        yield f"new: {one_line(name)}"
    for name in found.gone:
        yield f"gone: {one_line(name)}"
    for vm in found.vms:
        where = f" ({one_line(vm.hosts[0])} → {one_line(vm.hosts[1])})" if vm.hosts[0] != vm.hosts[1] else ""
        yield ""
        yield f"{one_line(vm.name)}{where}: {vm.open_paths[0]} → {vm.open_paths[1]} open paths"
        for item in vm.scenarios:
            level = f"{item.was.value} → {item.now.value}" if item.was is not item.now else item.now.value
            parts = [f"{was} → {now} {status}" for status, (was, now) in item.paths.items()]
            if item.likelihood[0] != item.likelihood[1]:
                parts.append(" → ".join(f"V{number}" if number else "none" for number in item.likelihood))
            yield f"  {level}  {titles.get(item.id, item.id)}: {', '.join(parts)}"
        for change in vm.techniques:
            why = f" ({'; '.join(change.controls)})" if change.controls else ""
            yield f"  {change.was.value} → {change.now.value}  {techniques.get(change.id, change.id)}{why}"
