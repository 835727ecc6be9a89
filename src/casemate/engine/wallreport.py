"""wall.json: what ``inspect`` shows of a launch's read-back, and what an audit compares the running VM with."""

from __future__ import annotations

from typing import Any

import msgspec

from casemate.engine.launch import Launched
from casemate.engine.opening import Opened
from casemate.engine.readback import expected_reach
from casemate.facts.fact import Facts
from casemate.plan.model import LaunchPlan


def wall_report(plan: LaunchPlan, launched: Launched, opened: Opened) -> dict[str, Any]:
    """The whole file; `Expectations` is the part that audits read."""
    reach = expected_reach(plan.wall, opened.by_role)
    expected = Expectations(
        declared=plan.declared,
        observed=launched.observed,
        root=reach.root,
        devices=reach.devices,
        devices_writable=reach.devices_writable,
        files=reach.files,
        rlimits=reach.rlimits,
    )
    return {
        "findings": msgspec.to_builtins(launched.findings),
        "qemu_version": launched.qemu_version,
        "timings_ms": launched.timings_ms,
        "startup_notifications": launched.notifications,
        "warnings": plan.warnings,
        "accel_why": plan.accel_why,
        "profile": plan.profile.name,
        **msgspec.to_builtins(expected),
    }


class Expectations(msgspec.Struct, frozen=True, kw_only=True):
    """The part of wall.json that a later look at the process needs. ``declared``: the plan's promises. ``observed``:
    facts read back before the guest's first instruction. ``root``: planned files of its root, as it names them.
    ``devices``: those of them that are device nodes; with ``devices_writable`` their mounts stay writable. ``files``:
    (device, inode) of what was handed over open. ``rlimits``: names of the limits set."""

    declared: Facts = {}
    observed: Facts = {}
    root: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    devices_writable: bool = False
    files: tuple[tuple[int, int], ...] = ()
    rlimits: tuple[str, ...] = ()
