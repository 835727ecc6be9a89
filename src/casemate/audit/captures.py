"""Judge what was captured on another host: the host itself, the VMs that ran there, the domains of its libvirt.

Everything happens in memory, and as of the time of the capture: age of package lists, expiry of waivers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from casemate.audit.capture_read import Capture, read_capture
from casemate.audit.documents import read_machine, report_machine
from casemate.audit.judging import Setting
from casemate.audit.live import LiveVm
from casemate.audit.run import HostAudit, host_name
from casemate.audit.trees import domain_files
from casemate.controls.audit_model import Target, TargetKind, TargetReport
from casemate.errors import InputError
from casemate.facts.machine import Machine

VMS_MAX: Final = 2000
_XML_BYTES: Final = 4 << 20
_NO_PROCESSES: Final = "the processes of this host were not captured"
NO_EMULATORS: Final = "emulator binaries are no part of a capture: audit them where they are"
_FAULTS: Final = (OSError, ValueError, KeyError, IndexError, RecursionError, InputError)
"""What reading a tree that lies may end in; the part that lies costs its own findings only."""


def report_capture(data: bytes, source: str, setting: Setting) -> Iterator[TargetReport]:
    """Everything in one capture.

    Raises:
        InputError: it is none, is damaged, or holds what no capture holds.
    """
    capture = read_capture(data, source)
    then = msgspec.structs.replace(setting, today=capture.date)
    host = capture.manifest.host or host_name(capture.root)
    _refuse_crowds(capture, source)
    audit = HostAudit(capture.root, then, origin=f"capture {source}", belongs=host)
    notes = list(capture.notes)
    domains = tuple(_domains(capture, notes))
    vms: tuple[LiveVm, ...] = ()
    try:
        vms = audit.live.vms
        notes += audit.live.notes
    except OSError:
        notes.append(_NO_PROCESSES)
    report = audit.report_host()
    yield msgspec.structs.replace(report, notes=(*report.notes, *notes, NO_EMULATORS))
    for vm in vms:
        try:
            yield audit.report_vm(vm)
        except _FAULTS as error:
            raise InputError(f"{source}: process {vm.found.pid} is not understood", got=str(error)[:200]) from None
    for path, machine in domains:
        name = machine.name or path.rpartition("/")[2]
        yield report_machine(machine, Target(TargetKind.DOMAIN, name, f"capture {source} {path}", host), then)


def _refuse_crowds(capture: Capture, source: str) -> None:
    """More VMs than any host has would cost time only: each is put beside all others.

    Raises:
        InputError: there are more.
    """
    processes = sum(path.endswith("/cmdline") for path in capture.root.paths("/proc/"))
    domains = sum(path.endswith(".xml") for path in capture.root.paths("/etc/libvirt/qemu/"))
    if max(processes, domains) > VMS_MAX:
        raise InputError(
            f"{source} holds more VMs than a host has",
            got=f"{processes} processes, {domains} domains",
            expected=f"at most {VMS_MAX}",
        )


def _domains(capture: Capture, notes: list[str]) -> Iterator[tuple[str, Machine]]:
    for path in domain_files(capture.root):
        try:
            yield path, read_machine(TargetKind.DOMAIN, capture.root.read_bytes(path, _XML_BYTES), path)
        except InputError as error:
            notes.append(str(error).replace("\n", "; ")[:400])
        except OSError as error:
            notes.append(f"{path}: {error.strerror or error}")
