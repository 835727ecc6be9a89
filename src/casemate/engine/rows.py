"""VMs as plain data: the rows of ``ps`` and the document of ``inspect``. See docs/json.md.

Kept apart from plans (views.py): listing VMs must not import what planning needs.
"""

from __future__ import annotations

from typing import Any

import msgspec

from casemate.engine import files
from casemate.engine.paths import Paths
from casemate.engine.state import Definition, Vm
from casemate.errors import CasemateError
from casemate.spec.model import Boot, Publish
from casemate.spec.network import bracketed

PS_SCHEMA = "casemate.ps/1"
INSPECT_SCHEMA = "casemate.inspect/1"


def vm_row(vm: Vm) -> dict[str, Any]:
    """One VM as ``ps`` lists it. ``pid`` is the emulator's as the host sees it, None while there is none."""
    definition, running, ended = vm.definition, vm.running, vm.exit
    last = running or ended
    return {
        "id": definition.id,
        "name": definition.name,
        "state": vm.state,
        "reason": definition.damaged or (ended.reason if ended else ""),
        "pid": running.emulator.pid if running and running.emulator else None,
        "uid": (last.uid if last else 0) or None,
        "accel": (last.accel if last else "") or None,
        "created_at": definition.created_at,
        "started_at": (last.started_at if last else "") or None,
        "finished_at": ended.finished_at if ended else None,
        "exit_code": ended.code if ended else None,
        "ports": [port_text(item) for item in definition.spec.network.publish],
    }


def port_text(item: Publish) -> str:
    """``127.0.0.1:2222->22/tcp``."""
    return f"{bracketed(item.address)}:{item.host_port}->{item.guest_port}/{item.protocol}"


def inspect_view(paths: Paths, vm: Vm) -> dict[str, Any]:
    """Everything about one VM. ``wall`` is the read-back of its last launch, one entry per control."""
    definition, running = vm.definition, vm.running
    report = _wall_report(paths, definition)
    return {
        "schema": INSPECT_SCHEMA,
        **vm_row(vm),
        "gid": running.gid if running else None,
        "supervisor": msgspec.to_builtins(running.supervisor) if running else None,
        "helpers": msgspec.to_builtins(running.helpers) if running else [],
        "tpm": _tpm(paths, definition),
        "cgroups": list(running.cgroups) if running else [],
        "health": list(running.health) if running else [],
        "wall": [_recorded(finding) for finding in report.findings],
        "profile": report.profile,
        "accel_why": report.accel_why,
        "boot": _boot_view(definition.spec.boot, report.observed),
        "qemu_version": report.qemu_version,
        "timings": report.timings_ms,
        "startup_notifications": report.startup_notifications,
        "warnings": report.warnings,
        "exit": msgspec.to_builtins(vm.exit),
        "timeout_s": definition.timeout_s,
        "remove_on_exit": definition.remove_on_exit,
        "policy_file": definition.policy_file,
        "logs": {
            "console": f"{paths.vm_data(definition.id)}/console.log",
            "emulator": f"{paths.vm_data(definition.id)}/emulator.log",
            "events": f"{paths.vm_data(definition.id)}/events.jsonl",
        },
        "spec": msgspec.to_builtins(definition.spec),
    }


def _boot_view(boot: Boot, observed: dict[str, Any]) -> dict[str, Any]:
    """What starts the guest: as the specification has it, and as the last launch read it back."""

    def seen(name: str) -> Any:
        return observed.get(name, {}).get("value")

    return {
        "firmware": "kernel" if boot.kernel is not None else boot.firmware.value,
        "keys": ("distribution" if boot.keys is None else "own") if boot.is_secure else None,
        "observed": {
            "firmware": seen("vm.firmware"),
            "secure_boot": seen("dev.secure-boot"),
            "smm": seen("dev.smm"),
        },
    }


def _tpm(paths: Paths, definition: Definition) -> dict[str, str] | None:
    if not definition.spec.tpm.enabled:
        return None
    from casemate.engine.tpm_state import public_view  # here: ``ps`` shall not import what a launch needs

    return public_view(paths, definition.id)


class _Finding(msgspec.Struct, frozen=True, kw_only=True):
    control_id: str
    title: str
    verdict: str
    severity: str
    gate: str
    stage: str
    evidence: str
    expected: str
    why: str
    remedy: str
    underlying: str | None = None


class _WallReport(msgspec.Struct, frozen=True):
    """wall.json as `wallreport.wall_report` writes it, as far as it is shown."""

    findings: tuple[_Finding, ...] = ()
    profile: str | None = None
    accel_why: str | None = None
    qemu_version: str | None = None
    timings_ms: dict[str, float] = {}
    startup_notifications: dict[str, int] = {}
    warnings: tuple[str, ...] = ()
    observed: dict[str, dict[str, Any]] = {}


def _wall_report(paths: Paths, definition: Definition) -> _WallReport:
    path = f"{paths.vm_data(definition.id)}/wall.json"
    try:
        return msgspec.json.decode(files.read_bounded(path), type=_WallReport)
    except FileNotFoundError:
        return _WallReport()
    except (OSError, msgspec.MsgspecError) as fault:
        raise CasemateError(f"{path} is damaged", got=str(fault)[:200], next_step="start the VM again") from fault


def _recorded(finding: _Finding) -> dict[str, Any]:
    entry = msgspec.to_builtins(finding)
    return {"control": entry.pop("control_id"), **entry}
