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
from casemate.spec.model import Publish

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
        "reason": ended.reason if ended else "",
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
    address = f"[{item.address}]" if ":" in item.address else item.address
    return f"{address}:{item.host_port}->{item.guest_port}/{item.protocol}"


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
        "cgroups": list(running.cgroups) if running else [],
        "health": list(running.health) if running else [],
        "wall": [_recorded(finding) for finding in report.get("findings", [])],
        "profile": report.get("profile"),
        "accel_why": report.get("accel_why"),
        "qemu_version": report.get("qemu_version"),
        "timings": report.get("timings_ms", {}),
        "startup_notifications": report.get("startup_notifications", {}),
        "warnings": report.get("warnings", []),
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


def _wall_report(paths: Paths, definition: Definition) -> dict[str, Any]:
    path = f"{paths.vm_data(definition.id)}/wall.json"
    try:
        report = msgspec.json.decode(files.read_bounded(path))
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as fault:
        raise CasemateError(f"{path} is damaged", got=str(fault)[:200], next_step="start the VM again") from fault
    if not isinstance(report, dict):
        raise CasemateError(f"{path} is damaged", got="no object", next_step="start the VM again")
    return report


def _recorded(finding: dict[str, Any]) -> dict[str, Any]:
    kept = ("title", "verdict", "severity", "gate", "stage", "evidence", "expected", "why", "remedy", "underlying")
    return {"control": finding["control_id"], **{key: finding.get(key) for key in kept}}
