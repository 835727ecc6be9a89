"""What an audit says: targets, their findings, one report. Types only; `audit/` fills them, `report/` shows them."""

from __future__ import annotations

import enum

import msgspec

from casemate.controls.model import Finding
from casemate.facts.fact import Stage

SCHEMA_VERSION = 1


class TargetKind(enum.StrEnum):
    """What was audited; docs/json.md has one line for each."""

    HOST = "host"
    EMULATOR = "emulator"
    VM = "vm"
    PROCESS = "process"
    DOMAIN = "domain"
    COMMAND_LINE = "command-line"
    VMM_CONFIG = "vmm-config"
    IMAGE = "image"


class Target(msgspec.Struct, frozen=True):
    """One thing audited. ``origin``: how it was found or named (``/proc/812``, ``vm.xml``, ``capture host7.tar``).
    ``host``: the host it belongs to, when it is not this one."""

    kind: TargetKind
    name: str
    origin: str
    host: str = ""


class TargetReport(msgspec.Struct, frozen=True, kw_only=True):
    """The findings of one target. ``stage``: whether declared or observed facts were judged. ``notes``: what could not
    be looked at as a whole and why (a process that ended meanwhile). ``history``: of a VM, the numbers of all
    vulnerabilities of the table that would have reached its devices, whether fixed by now or not."""

    target: Target
    stage: Stage
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    history: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One audit. ``time``: RFC 3339, UTC. ``catalogue``: version of the catalogue (a digest over all controls).
    ``profile``: name of the profile in force. ``faults``: targets that could not be audited at all."""

    tool_version: str
    catalogue: str
    host: str
    time: str
    profile: str
    targets: tuple[TargetReport, ...]
    faults: tuple[str, ...] = ()
    schema: int = SCHEMA_VERSION
