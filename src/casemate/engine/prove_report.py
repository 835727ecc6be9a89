"""The result of a proof, as data, and its short forms: the JSON document and the rows of the table."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from casemate.jail.probe.judge import Outcome, Result
from casemate.jail.probe.judge_sight import Seen
from casemate.jail.probe.model import Group

SCHEMA = "casemate.prove/1"


class Unexpected(msgspec.Struct, frozen=True):
    """Something that is not as the plan declares it; one of them fails the proof."""

    id: str
    what: str
    why: str


class ProofReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one proof.

    ``without``: the layer that was left out, None for the real wall. ``profile_traced``: a reservation about the
    seccomp profile, empty if there is none. ``stoppers``: how many attempts each layer stopped. ``lsm``: the host's
    security modules, as the plan found them.
    """

    vm: str
    accel: str
    machine: str
    profile: str
    profile_traced: str
    without: str | None
    quick: bool
    results: tuple[Result, ...]
    seen: tuple[Seen, ...]
    unexpected: tuple[Unexpected, ...]
    counts: dict[str, int]
    stoppers: dict[str, int]
    lsm: tuple[str, ...]
    notes: tuple[str, ...]
    took_s: float
    schema: str = SCHEMA

    @property
    def ok(self) -> bool:
        """Nothing unexpected, and something was tried."""
        return not self.unexpected and self.counts.get("tried", 0) > 0


def count(results: tuple[Result, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """Totals, and the number of attempts that each layer stopped."""
    outcomes = Counter(result.outcome for result in results)
    stopped, reached = outcomes[Outcome.STOPPED], outcomes[Outcome.REACHED]
    counts = {
        "tried": stopped + reached,
        "stopped": stopped,
        "reached": reached,
        "not_tried": outcomes[Outcome.NOT_TRIED],
    }
    stoppers = Counter(result.stopper for result in results if result.outcome is Outcome.STOPPED)
    return counts, dict(sorted(stoppers.items()))


def document(report: ProofReport) -> dict[str, Any]:
    """The document of ``casemate prove --json``."""
    built: dict[str, Any] = msgspec.to_builtins(report)
    built["ok"] = report.ok
    built["experiment"] = experiment(report)
    return built


def experiment(report: ProofReport) -> str:
    """The loud line of a run with a layer removed; empty for a proof of the real wall."""
    if report.without is None:
        return ""
    return (
        f"EXPERIMENT: layer {report.without} was left out on purpose, without a guest. "
        "What is reached here says what that layer stops; it is not reachable in a VM."
    )


def rows(report: ProofReport) -> list[tuple[str, int, int, str]]:
    """One row per group: (group, tried, reached as declared or not, what stopped the rest)."""
    table = []
    for group in Group:
        tried = [item for item in report.results if item.group is group and item.outcome is not Outcome.NOT_TRIED]
        if not tried:
            continue
        reached = sum(item.outcome is Outcome.REACHED for item in tried)
        by = Counter(item.stopper for item in tried if item.outcome is Outcome.STOPPED)
        stopped = ", ".join(f"{name} {number}" for name, number in by.most_common())
        table.append((group.value, len(tried), reached, stopped))
    return table
