"""The public API, second half: what looks at machines that exist, ours or not. ``app.py`` starts and stops VMs.

Functions return plain data or report types of ``controls/audit_model.py`` and raise `CasemateError`. Everything below
is imported on use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.audit.judging import Setting
    from casemate.audit.run import Request
    from casemate.controls.audit_model import Report, TargetReport

__all__ = ["audit", "audit_stream"]


def audit(
    targets: Sequence[str] = (),
    *,
    pid: Sequence[int] = (),
    libvirt: str | None = None,
    command_line: Sequence[str] = (),
    root: Path | str | None = None,
    profile: str | None = None,
    waivers: Path | str | None = None,
    jobs: int = 1,
    progress: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> Report:
    """Judge what exists against the catalogue; with nothing named: this host, its emulators and every VM that runs.

    Args:
        targets: names or ids of VMs of ours, and paths: libvirt domain XML, a directory of libvirt configuration,
            an emulator binary, a disk image, a configuration of Firecracker, cloud-hypervisor or Kata, a file with a
            QEMU command line, a capture. What a path is, its content tells. ``-`` reads a document from standard
            input.
        pid: running emulators by process id.
        libvirt: connection URI; every domain that it has.
        command_line: a QEMU command, program first.
        root: a directory in place of this host's file tree.
        profile: name of the profile that weighs the findings; None takes the default.
        waivers: a waiver file.
        jobs: processes to work with where there are many targets.
        progress: told (done, how many as far as known, what comes next).

    Raises:
        InputError: what was named is not there or cannot be audited (with several targets such a one stands in
            ``faults`` of the report); the profile does not exist; the waiver file has faults (SpecError).
    """
    from casemate.audit.run import audit_targets

    request, setting = _prepare(targets, pid, libvirt, command_line, root, profile, waivers)
    return audit_targets(request, setting, jobs=jobs, progress=progress)


def audit_stream(
    targets: Sequence[str] = (),
    *,
    pid: Sequence[int] = (),
    libvirt: str | None = None,
    command_line: Sequence[str] = (),
    root: Path | str | None = None,
    profile: str | None = None,
    waivers: Path | str | None = None,
    jobs: int = 1,
    progress: Callable[[int, int, str], None] = lambda done, of, what: None,
    fault: Callable[[str], None] = lambda text: None,
) -> Iterator[TargetReport]:
    """As `audit`, one target after the other: memory does not grow with their number.

    Args:
        fault: told each target that could not be audited at all, and why.
    """
    from casemate.audit.run import audit_stream as stream

    request, setting = _prepare(targets, pid, libvirt, command_line, root, profile, waivers)
    yield from stream(request, setting, jobs=jobs, progress=progress, fault=fault)


def _prepare(
    targets: Sequence[str],
    pid: Sequence[int],
    libvirt: str | None,
    command_line: Sequence[str],
    root: Path | str | None,
    profile: str | None,
    waivers: Path | str | None,
) -> tuple[Request, Setting]:
    import datetime

    from casemate.audit.judging import Setting
    from casemate.audit.run import Request
    from casemate.controls.profiles import DEFAULT, named
    from casemate.controls.waivers import AuditWaiver, parse_waivers

    parsed: tuple[AuditWaiver, ...] = ()
    if waivers is not None:
        from casemate.audit.text import read_document

        parsed = parse_waivers(read_document(str(waivers)), str(waivers))
    setting = Setting(named(profile or DEFAULT), datetime.datetime.now(datetime.UTC).date(), parsed)
    request = Request(
        targets=tuple(targets),
        pids=tuple(pid),
        libvirt=libvirt,
        command_line=tuple(command_line),
        root=None if root is None else str(root),
    )
    return request, setting
