"""Collect what a plan needs to know of this host: a few milliseconds warm, and no fork once the caches are filled."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from casemate.engine import cgroups
from casemate.engine.capacity import check_capacity
from casemate.engine.files import write_atomic
from casemate.engine.labels import detect_mac, emulator_domain
from casemate.engine.paths import Paths
from casemate.engine.state import boot_id
from casemate.engine.uefi import find_firmware
from casemate.errors import HostError
from casemate.facts.block_device import whole_device
from casemate.facts.closure import cached_closure
from casemate.facts.firmware import firmware_files
from casemate.facts.kvm import cached_probe, refused_cpu_flags
from casemate.facts.kvm_report import IrqchipMode
from casemate.facts.qemu import Emulator as EmulatorFacts
from casemate.facts.qemu import check_emulator, describe_emulator, find_qemu, modules_for
from casemate.facts.root import Root
from casemate.facts.tsc import tsc_khz
from casemate.facts.vfio import read_function, unsafe_interrupts
from casemate.plan.argv import PROGRAM, PROGRAM_S390
from casemate.plan.model import Emulator, Host, Mac
from casemate.spec.confidential import Kind
from casemate.spec.model import AccelChoice, DiskMode, MachineType, Spec
from casemate.sys.landlock import landlock_abi
from casemate.sys.process import PR_SCHED_CORE, prctl

if TYPE_CHECKING:
    from casemate.facts.confidential import ConfidentialHost


def collect(spec: Spec, paths: Paths) -> tuple[Host, Emulator]:
    """Everything that `build_plan` wants.

    Raises:
        HostError: QEMU or its firmware is missing, or the VM does not fit. InputError: more vCPUs than threads.
    """
    root = Root()
    check_capacity(spec, root)
    mac = detect_mac()
    facts: EmulatorFacts | None = None
    if spec.machine.type is not MachineType.S390:  # planned, never started
        with emulator_domain(mac):
            facts = describe_emulator(find_qemu(root), Path(paths.cache), root)
        if spec.confidential is None:  # for one everything that is missing is told together
            check_emulator(facts, spec.machine.type.value)  # first: what an old one lacks is only a consequence
    base = cgroups.find_base(root)
    host = Host(
        machine=os.uname().machine,
        **_kvm(spec, paths),  # type: ignore[arg-type]
        tsc_khz=tsc_khz(Path(paths.cache) / "tsc.json", boot_id()) or 0,
        landlock_abi=landlock_abi(),
        core_sched=_has_core_sched(),
        lsms=_lsms(mac),
        cgroup=base,
        uefi=find_firmware(spec.boot, root) if spec.has_flash else None,
        passt=_program("passt"),
        swtpm=_program("swtpm") if spec.tpm.enabled else None,
        rootless=os.geteuid() != 0,
        mac=mac,
        pci=tuple(read_function(root, item.address) for item in spec.passthrough),
        unsafe_interrupts=unsafe_interrupts(root) if spec.passthrough else None,
        confidential=_confidential(spec, paths, root),
        disk_devices=_disk_devices(spec, paths, root) if "io" in base.parents else (),
    )
    if facts is None:
        return host, Emulator(PROGRAM_S390, (), (), {}, {}, {})
    return host, _emulator(spec, facts, paths, root)


def _disk_devices(spec: Spec, paths: Paths, root: Root) -> tuple[str, ...]:
    """Devices below the disks of a VM whose traffic is limited, and below its overlays.

    Raises:
        HostError: one cannot be told.
    """
    if spec.limits.read_mib_s is None and spec.limits.write_mib_s is None:
        return ()
    places = [disk.path for disk in spec.disks]
    if any(disk.mode is DiskMode.OVERLAY for disk in spec.disks):
        places.append(paths.data)
    try:
        found = [whole_device(root, place) for place in places]
    except (OSError, ValueError) as fault:
        raise HostError(
            "the device below a disk cannot be told, so its traffic cannot be limited",
            got=str(fault),
            next_step="leave read_mib_s and write_mib_s out of [limits]",
        ) from fault
    return tuple(dict.fromkeys(device for device in found if device is not None))


def _confidential(spec: Spec, paths: Paths, root: Root) -> ConfidentialHost | None:
    if spec.confidential is None:
        return None
    from casemate.facts.confidential import collect_confidential

    wanted, report = spec.confidential, cached_probe(Path(paths.cache) / "kvm.json")
    kernel = spec.boot.kernel
    found = collect_confidential(root, wanted.kind.value, report, wanted.quote_socket, is_direct=kernel is not None)
    firmware = wanted.firmware or found.firmware
    if wanted.kind is not Kind.SE and firmware:
        from casemate.engine.confidential_boot import boot_fault

        fault = boot_fault(wanted.kind, firmware, kernel, spec.machine.vcpus)
        return msgspec.structs.replace(found, boot=fault)
    return found


def _kvm(spec: Spec, paths: Paths) -> dict[str, object]:
    if spec.machine.accel is AccelChoice.TCG:
        return {
            "kvm_verdict": "not asked",
            "kvm_why": "the specification says tcg",
            "kvm_tsc_deadline": False,
            "kvm_irqchip_off": False,
            "kvm_refused_flags": {},
            "kvm_device": _kvm_device(),  # whose it is matters to the host even when this VM does without
        }
    report = cached_probe(Path(paths.cache) / "kvm.json")
    off = report.irqchip(IrqchipMode.USERSPACE)
    return {
        "kvm_verdict": report.verdict.value,
        "kvm_why": report.why,
        "kvm_tsc_deadline": bool(report.cpuid is not None and report.cpuid.tsc_deadline),
        "kvm_irqchip_off": bool(off is not None and off.available),
        "kvm_smm": bool(report.extension("X86_SMM")),
        "kvm_refused_flags": {chip.mode.value: refused_cpu_flags(chip) for chip in report.irqchips},
        "kvm_device": _kvm_device(),
    }


def _program(name: str) -> str | None:
    return next((path for path in (f"/usr/bin/{name}", f"/usr/local/bin/{name}") if os.access(path, os.X_OK)), None)


def _kvm_device() -> str:
    try:
        status = os.stat("/dev/kvm")
    except OSError:
        return ""
    owner = "root" if status.st_uid == 0 else str(status.st_uid)
    group = "root" if status.st_gid == 0 else str(status.st_gid)
    return f"{owner}:{group} {stat.S_IMODE(status.st_mode):04o}"


def _has_core_sched() -> bool:
    try:
        prctl(PR_SCHED_CORE, 0, 0, 0, 0)  # PR_SCHED_CORE_GET of ourselves, to a null pointer
    except OSError as fault:
        return fault.errno == 14  # EFAULT: the kernel knows the call and disliked only the pointer
    return True


def _lsms(mac: Mac | None) -> tuple[str, ...]:
    """The kernel's list; where securityfs is not mounted at least the LSM that was found without it."""
    try:
        with open("/sys/kernel/security/lsm", encoding="ascii") as file:
            names = tuple(file.read(4096).strip().split(","))
    except OSError:
        names = ()
    return names if mac is None or mac.module in names else (*names, mac.module)


def _execute_only(facts: EmulatorFacts, paths: Paths) -> str:
    """A copy of the emulator that the VM's uid may run but not read: exec then makes the process non-dumpable.

    Only root can do this: the copy must belong to another uid than the VM's. Made once per binary, named by its digest.
    """
    path = f"{paths.cache}/emulators/{facts.sha256}"
    try:
        status = os.stat(path, follow_symlinks=False)
        if status.st_uid == 0 and stat.S_IMODE(status.st_mode) == 0o111 and status.st_size == facts.stamp.size_bytes:
            return path
    except FileNotFoundError:
        pass
    with open(facts.path, "rb") as source:
        data = source.read()
    if hashlib.sha256(data).hexdigest() != facts.sha256:
        raise HostError(
            f"{facts.path} changed while it was read", next_step="wait for the update to end, then try again"
        )
    write_atomic(path, data, mode=0o111)
    return path


def _emulator(spec: Spec, facts: EmulatorFacts, paths: Paths, root: Root) -> Emulator:
    modules = modules_for(facts, "tcg") if "tcg" in facts.accelerators else ()
    closure = cached_closure(facts.path, modules, Path(paths.cache) / "emulators" / "closure.json", root)
    names = {os.path.basename(module) for module in modules}
    files = {PROGRAM: _execute_only(facts, paths) if os.geteuid() == 0 else facts.path}
    loadable = {}
    for placed in closure:
        base = os.path.basename(placed.target)
        if base in names:
            loadable[base] = (placed.target, placed.source)
        else:
            files[placed.target] = placed.source
    boot = "kernel" if spec.boot.kernel is not None else "uefi" if spec.boot.has_uefi else spec.boot.firmware.value
    boot = "measured" if spec.confidential is not None else boot
    if boot == "none":
        raise HostError("nothing to boot: neither a kernel nor a firmware")
    firmware = {
        os.path.basename(placed.target): (placed.target, placed.source)
        for placed in firmware_files(facts.data_dirs, spec.machine.type.value, boot, root)
    }
    return Emulator(facts.path, facts.version, facts.machine_types, files, loadable, firmware)
