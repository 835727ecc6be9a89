"""What changed between two analyses: two dates of one host, or two hosts, VM by VM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from casemate.scenarios.model import Status
from casemate.scenarios.risk_model import Level, RiskReport, VmRisk

DIFFERENCE_SCHEMA: Final = "casemate.risk-difference/1"


class TechniqueChange(msgspec.Struct, frozen=True):
    """A technique that stands otherwise. ``controls``: those of its condition that moved, as ``id: was, is``."""

    id: str
    was: Status
    now: Status
    controls: tuple[str, ...]


class ScenarioChange(msgspec.Struct, frozen=True):
    """A scenario whose level, likelihood or paths changed. ``paths``: how many there were and are, by status, where
    that changed."""

    id: str
    was: Level
    now: Level
    likelihood: tuple[int, int]
    open_paths: tuple[int, int]
    paths: dict[str, tuple[int, int]]


class VmChange(msgspec.Struct, frozen=True):
    """One VM in both analyses."""

    name: str
    hosts: tuple[str, str]
    open_paths: tuple[int, int]
    scenarios: tuple[ScenarioChange, ...]
    techniques: tuple[TechniqueChange, ...]


class Difference(msgspec.Struct, frozen=True):
    """Both analyses. ``same``: VMs without a change. ``added``, ``gone``: VMs of only one of them. ``assumed``: what-if
    statements in force in the second one."""

    was: str
    now: str
    vms: tuple[VmChange, ...]
    same: tuple[str, ...]
    added: tuple[str, ...]
    gone: tuple[str, ...]
    assumed: tuple[str, ...] = ()
    schema: str = DIFFERENCE_SCHEMA


def difference(was: RiskReport, now: RiskReport) -> Difference:
    """Compare two analyses; VMs are matched by host and name, or by name alone where that is unique on both sides."""
    pairs, added, gone = _match(was.vms, now.vms)
    changes = [_change(old, new) for old, new in pairs]
    return Difference(
        was=was.audited,
        now=now.audited,
        vms=tuple(change for change in changes if change.scenarios or change.techniques),
        same=tuple(change.name for change in changes if not (change.scenarios or change.techniques)),
        added=tuple(vm.name for vm in added),
        gone=tuple(vm.name for vm in gone),
        assumed=now.assumed,
    )


def _match(
    was: Sequence[VmRisk], now: Sequence[VmRisk]
) -> tuple[list[tuple[VmRisk, VmRisk]], list[VmRisk], list[VmRisk]]:
    old = {(vm.host, vm.name): vm for vm in was}
    pairs, left = [], []
    for vm in now:
        found = old.pop((vm.host, vm.name), None)
        if found is None:
            left.append(vm)
        else:
            pairs.append((found, vm))
    by_name: dict[str, list[VmRisk]] = {}
    for vm in old.values():
        by_name.setdefault(vm.name, []).append(vm)
    added = []
    for vm in left:
        same_name = by_name.get(vm.name, [])
        if len(same_name) == 1 and sum(other.name == vm.name for other in left) == 1:
            pairs.append((same_name[0], vm))
            del old[same_name[0].host, vm.name]
        else:
            added.append(vm)
    return pairs, added, list(old.values())


def _change(old: VmRisk, new: VmRisk) -> VmChange:
    before = {item.id: item for item in old.scenarios}
    scenarios = tuple(
        ScenarioChange(
            item.id,
            before[item.id].level,
            item.level,
            (before[item.id].likelihood, item.likelihood),
            (before[item.id].counts.get("open", 0), item.counts.get("open", 0)),
            {
                status.value: (before[item.id].counts.get(status.value, 0), item.counts.get(status.value, 0))
                for status in Status
                if before[item.id].counts.get(status.value, 0) != item.counts.get(status.value, 0)
            },
        )
        for item in new.scenarios
        if item.id in before
        and (before[item.id].level, before[item.id].likelihood, before[item.id].counts)
        != (item.level, item.likelihood, item.counts)
    )
    stood = {item.id: item for item in old.techniques}
    techniques = tuple(
        TechniqueChange(item.id, stood[item.id].status, item.status, _moved(_places(stood[item.id]), _places(item)))
        for item in new.techniques
        if item.id in stood and stood[item.id].status is not item.status
    )
    return VmChange(new.name, (old.host, new.host), (old.counts["open"], new.counts["open"]), scenarios, techniques)


def _places(item: object) -> dict[str, str]:
    return {
        control: word
        for word, field in (
            ("fails", "failing"),
            ("unknown", "unknown"),
            ("on paper", "on_paper"),
            ("passes", "passing"),
        )
        for control in getattr(item, field)
    }


def _moved(was: dict[str, str], now: dict[str, str]) -> tuple[str, ...]:
    return tuple(
        f"{control}: {was.get(control, '-')}, now {place}"
        for control, place in now.items()
        if was.get(control) != place
    )
