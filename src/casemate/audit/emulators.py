"""Emulator binaries as targets: one that was named, and all that a host has.

Found through the programs of running VMs and by well-known names in the places where programs lie. Each file is judged
once, under the name that leads to it without symbolic links; a script that starts an emulator is none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from casemate.audit.judging import Setting, report_on
from casemate.audit.live import LiveVm
from casemate.audit.refs import ref_of_path
from casemate.controls.audit_model import Target, TargetKind, TargetReport, Unfixed
from casemate.controls.model import Subject
from casemate.errors import HostError, InputError
from casemate.facts.emulator import CVE_FACTS, collect_emulator, vmm_of
from casemate.facts.fact import Facts, Known, Stage, Unknown
from casemate.facts.root import Root

PLACES: Final = ("/usr/bin", "/usr/sbin", "/usr/libexec", "/usr/local/bin", "/usr/local/sbin", "/opt/bin", "/snap/bin")
_NAMES: Final = re.compile(
    r"qemu-system-[\w-]+|qemu-kvm|kvm|firecracker(-v[\w.]+)?|cloud-hypervisor(-static)?|crosvm|lkvm(-static)?|kvmtool"
    r"|stratovirt"
)
_FOUND_MAX: Final = 64
_LISTED_MAX: Final = 65_536
_MAGIC: Final = b"\x7fELF"


def report_emulator(path: str, setting: Setting, root: Root, *, origin: str = "", run: bool = True) -> TargetReport:
    """Judge one emulator binary.

    Args:
        path: absolute, inside ``root``.
        origin: how it was found, when not by this path.
        run: whether it may be asked what it can do.
    """
    facts: Facts
    try:
        facts = collect_emulator(root, path, run=run, cache_dir=_cache())
    except InputError as error:  # the host's own table of vulnerabilities is faulty
        facts = collect_emulator(root, path, run=False)
        facts |= dict.fromkeys(CVE_FACTS, Unknown(str(error).replace("\n", "; ")))
    vmm = facts.get("bin.vmm")
    notes = () if isinstance(vmm, Known) and vmm.value != "unknown" else ("its name is that of no VMM known here",)
    target = Target(TargetKind.EMULATOR, path.rpartition("/")[2], origin or path)
    report = report_on(target, facts, (Subject.EMULATOR,), setting, stage=Stage.OBSERVED, notes=notes)
    digest = facts.get("bin.sha256")
    file = ref_of_path(root, path)
    if isinstance(digest, Known):
        file = msgspec.structs.replace(file, sha256=str(digest.value))
    return msgspec.structs.replace(report, file=file, unfixed=_unfixed(facts))


def _unfixed(facts: Facts) -> Unfixed | None:
    left, unrecorded = (facts.get(f"bin.cves-{name}") for name in ("unfixed", "unrecorded"))
    if not isinstance(left, Known) or not isinstance(unrecorded, Known):
        return None
    if not isinstance(left.value, tuple) or not isinstance(unrecorded.value, tuple):
        return None
    return Unfixed(open=left.value, unrecorded=unrecorded.value)


def report_named_emulator(name: str, setting: Setting) -> TargetReport:
    """The binary that a user named, by any path."""
    try:
        path = Root().real_path(str(Path(name).absolute()))
    except OSError as error:
        raise InputError(f"cannot read {name}", got=(error.strerror or str(error)).lower()) from None
    return report_emulator(path, setting, Root(), origin=name)


def report_emulators(root: Root, setting: Setting, vms: Sequence[LiveVm] = ()) -> Iterator[TargetReport]:
    """Every emulator of a host, each once; one of a captured tree is never run."""
    for path, users in find_emulators(root, vms).items():
        origin = f"{path} (runs {', '.join(users[:4])}{', …' if len(users) > 4 else ''})" if users else path
        yield report_emulator(path, setting, root, origin=origin, run=root.is_live)


def find_emulators(root: Root, vms: Sequence[LiveVm] = ()) -> dict[str, list[str]]:
    """Path without symbolic links -> names of the running VMs that use this very file."""
    found: dict[str, list[str]] = {}
    by_file: dict[tuple[int, int], str] = {}
    for path in (*_running_paths(root, vms), *_known_paths(root)):
        if len(found) >= _FOUND_MAX:
            break
        real = _emulator_at(root, path)
        if real and real not in found:
            status = root.stat(real)
            if (status.st_dev, status.st_ino) in by_file:
                continue  # a second name of one file
            by_file[status.st_dev, status.st_ino] = real
            found[real] = []
    for vm in vms:
        key = _program_of(root, vm)
        if key in by_file:
            found[by_file[key]].append(vm.name)
    return found


def _running_paths(root: Root, vms: Sequence[LiveVm]) -> list[str]:
    """Programs of running VMs, where the host's tree has the very file under that name."""
    paths = []
    for vm in vms:
        path, key = vm.found.executable, _program_of(root, vm)
        try:
            status = root.stat(path) if path.startswith("/") else None
        except OSError:
            continue
        if status is not None and key == (status.st_dev, status.st_ino):
            paths.append(path)
    return list(dict.fromkeys(paths))


def _program_of(root: Root, vm: LiveVm) -> tuple[int, int]:
    try:
        status = root.stat(f"/proc/{vm.found.pid}/exe")
    except OSError:
        return (-1, -1)
    return status.st_dev, status.st_ino


def _known_paths(root: Root) -> list[str]:
    places = list(PLACES)
    if root.is_live:
        places += [place for place in os.environ.get("PATH", "").split(":") if place.startswith("/")]
    paths = []
    for place in dict.fromkeys(places):
        try:
            names = root.list_dir(place, _LISTED_MAX)
        except OSError:
            continue
        paths += [f"{place}/{name}" for name in names if _NAMES.fullmatch(name) and vmm_of(name) != "unknown"]
    return paths


def _emulator_at(root: Root, path: str) -> str:
    """The real path of an ELF file; empty for a script, a broken link, or what may not be read."""
    try:
        real = root.real_path(path)
        descriptor = root.open_regular(real)
    except OSError:
        return ""
    try:
        return real if os.pread(descriptor, len(_MAGIC), 0) == _MAGIC else ""
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _cache() -> Path:
    """Where a launch keeps what emulators answered, too."""
    from casemate.engine.paths import default_paths

    try:
        return Path(default_paths().cache)
    except (HostError, OSError):
        return Path("/dev/null/cache")
