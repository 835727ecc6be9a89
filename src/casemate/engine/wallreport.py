"""wall.json: what ``inspect`` shows of a launch's read-back, and what an audit compares the running VM with."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from casemate.engine.launch import Launched
from casemate.engine.opening import Opened
from casemate.facts.fact import Facts
from casemate.jail.policy import Device, IdentityMode, RootEntry
from casemate.plan.model import LaunchPlan


def wall_report(plan: LaunchPlan, launched: Launched, opened: Opened) -> dict[str, Any]:
    """The whole file; `Expectations` is the part that audits read."""
    handed_over = [os.fstat(descriptor) for descriptor in opened.by_role.values()]
    own_namespace = plan.wall.identity.mode is not IdentityMode.ROOT
    expected = Expectations(
        declared=plan.declared,
        observed=launched.observed,
        root=tuple(_target(entry) for entry in plan.wall.root),
        # A user namespace cannot make a bound device read-only for whom it belongs to.
        devices=tuple(_target(e) for e in plan.wall.root if isinstance(e, Device)),
        devices_writable=own_namespace,
        files=tuple((status.st_dev, status.st_ino) for status in handed_over),
        rlimits=tuple(limit.name for limit in plan.wall.rlimits),
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


def _target(entry: RootEntry) -> str:
    return f"/dev/{entry.name}" if isinstance(entry, Device) else entry.target
