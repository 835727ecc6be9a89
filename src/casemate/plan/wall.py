"""The emulator's wall for one VM: root, limits, Landlock, cgroup. Closed by construction."""

from __future__ import annotations

from casemate.errors import HostError
from casemate.jail.policy import (
    BindFile,
    CgroupPlan,
    CopyFile,
    Descriptor,
    Device,
    Identity,
    IdentityMode,
    LandlockPath,
    Rlimit,
    RootEntry,
    Wall,
)
from casemate.plan.accel import Board
from casemate.plan.argv import INITRD, KERNEL
from casemate.plan.confidential import FIRMWARE, FIRMWARE_MAX_BYTES, FIRMWARE_ROLE, QUOTE_SOCKET
from casemate.plan.limits import process_rlimits
from casemate.plan.model import CgroupBase, Emulator, FirmwarePair, Host, OpenFile
from casemate.plan.provisioning import SEED, pipes, wants_seed
from casemate.spec.confidential import Kind
from casemate.spec.model import Disk, DiskFormat, DiskMode, MachineType, Spec

_MIB = 1024 * 1024
KERNEL_MAX_BYTES = 256 * _MIB
INITRD_MAX_BYTES = 1024 * _MIB


def firmware_names(spec: Spec) -> tuple[str, ...]:
    """Firmware files that QEMU opens by name for this board (found by tracing QEMU 7.2 in an empty root)."""
    if spec.machine.type is MachineType.S390:
        return ("s390-ccw.img",)
    if spec.confidential is not None:
        return ("kvmvapic.bin", "linuxboot_dma.bin") if spec.boot.kernel is not None else ("kvmvapic.bin",)
    if spec.machine.type is MachineType.MICROVM:
        return ("bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin")
    if spec.boot.has_uefi:
        return ("kvmvapic.bin",)
    names = ("bios-256k.bin", "kvmvapic.bin")
    return (*names, "linuxboot_dma.bin", "pvh.bin") if spec.boot.kernel is not None else names


OPTIONAL_FIRMWARE = frozenset({"kvmvapic.bin", "pvh.bin"})
"""Left out where there is none: an APIC helper for old guests, and the ROM that enters a PVH kernel (ELF)."""


def module_names(accel: str) -> tuple[str, ...]:
    """Loadable modules of a modular QEMU that this VM needs; no other is even looked for."""
    return ("accel-tcg-x86_64.so",) if accel == "tcg" else ()


def build_root(spec: Spec, board: Board, emulator: Emulator) -> tuple[RootEntry, ...]:
    """Every file of the emulator's root.

    Raises:
        HostError: a firmware file is missing; the message names its package.
    """
    files = dict(emulator.files)
    for name in module_names(board.accel):
        if name in emulator.modules:  # a monolithic QEMU has none
            target, source = emulator.modules[name]
            files[target] = source
    for name in firmware_names(spec):
        if name not in emulator.firmware:
            if name in OPTIONAL_FIRMWARE or spec.machine.type is MachineType.S390:
                continue
            raise HostError(f"firmware file {name} is missing", next_step="apt-get install qemu-system-data seabios")
        target, source = emulator.firmware[name]
        files[target] = source
    entries: list[RootEntry] = [BindFile(source, target) for target, source in sorted(files.items())]
    if spec.boot.kernel is not None:
        entries.append(CopyFile("kernel", KERNEL, KERNEL_MAX_BYTES))
    if spec.boot.initrd is not None:
        entries.append(CopyFile("initrd", INITRD, INITRD_MAX_BYTES))
    entries += _confidential_entries(spec)
    entries += pipes(spec)
    entries += [Device("null"), Device("urandom")]
    if board.accel == "kvm":
        entries.append(Device("kvm"))
    return tuple(entries)


def _confidential_entries(spec: Spec) -> list[RootEntry]:
    """What each kind needs: measured firmware, the device of AMD's security processor, a socket for Intel's quotes."""
    wanted = spec.confidential
    entries: list[RootEntry] = []
    if wanted is not None and wanted.kind is not Kind.SE:
        entries.append(CopyFile(FIRMWARE_ROLE, FIRMWARE, FIRMWARE_MAX_BYTES))
    if wanted is not None and wanted.kind is Kind.SEV_SNP:
        entries.append(Device("sev"))
    if wanted is not None and wanted.quote_socket is not None:
        entries.append(BindFile(wanted.quote_socket, QUOTE_SOCKET))
    return entries


def root_size_bytes(boot_bytes: int) -> int:
    """Size of the root's tmpfs: the copies, and room for inodes and directories."""
    return boot_bytes + 4 * _MIB


def build_rlimits(spec: Spec, files: tuple[OpenFile, ...]) -> tuple[Rlimit, ...]:
    """Limits that hold even where no cgroup can be had. RAM is anonymous memory: fsize bounds disk images only."""
    writable = [file.virtual_size_bytes for file in files if file.access in {"rw", "overlay", "vars"}]
    # qcow2 adds metadata: tables and refcounts, below 1/1000 of the data with 64 KiB clusters, and internal slack.
    largest = max((size + size // 64 + 64 * _MIB for size in writable), default=_MIB)
    memlock = (spec.machine.memory_mib + 64) * _MIB if spec.passthrough else 65536  # VFIO pins all RAM
    return process_rlimits(nofile=1024, nproc=spec.limits.pids, fsize=largest, memlock=memlock)


def build_landlock(spec: Spec, board: Board) -> tuple[LandlockPath, ...]:
    """What stays reachable through paths: the root (read, execute) and the devices."""
    paths = [
        LandlockPath("/", ("read", "execute")),
        LandlockPath("/dev/null", ("read", "write")),
        LandlockPath("/dev/urandom", ("read",)),
    ]
    if board.accel == "kvm":
        paths.append(LandlockPath("/dev/kvm", ("read", "write", "ioctl")))
    if spec.confidential is not None and spec.confidential.kind is Kind.SEV_SNP:
        paths.append(LandlockPath("/dev/sev", ("read", "write", "ioctl")))
    return tuple(paths)


def build_cgroup(
    spec: Spec, base: CgroupBase, vm_id: str, boot_bytes: int, disk_devices: tuple[str, ...] = ()
) -> CgroupPlan:
    """Limits for memory, cpu and pids, and in version 2 for io where the specification asks.

    ``io.max`` knows whole devices of the host and no files: it is what an emulator that was taken over cannot pass, for
    each of ``disk_devices``. What the guest's disks may carry together is counted by the emulator's throttle (`argv`).
    """
    if base.version == 0:
        return CgroupPlan(why_none=base.why_none)
    memory = (spec.machine.memory_mib + spec.limits.overhead_mib) * _MIB + root_size_bytes(boot_bytes)
    percent = spec.limits.cpu_percent if spec.limits.cpu_percent is not None else (spec.machine.vcpus + 1) * 100
    pids = spec.limits.pids
    quota, period = percent * 1000, 100_000
    limits = {"memory": f"memory.max={memory}", "cpu": f"cpu.max={quota} {period}", "pids": f"pids.max={pids}"}
    files: dict[str, tuple[tuple[str, str], ...]] = {
        "memory": (("memory.max", str(memory)), ("memory.swap.max", "0"), ("memory.oom.group", "1")),
        "cpu": (("cpu.max", f"{quota} {period}"),),
        "pids": (("pids.max", str(pids)),),
        "io": tuple(("io.max", text) for text in _io_limits(spec, disk_devices)),
    }
    limits |= {"io": ", ".join(f"io.max={text}" for _, text in files["io"])}
    if base.version == 1:
        files = {
            "memory": (("memory.limit_in_bytes", str(memory)),),
            "cpu": (("cpu.cfs_period_us", str(period)), ("cpu.cfs_quota_us", str(quota))),
            "pids": (("pids.max", str(pids)),),
        }
    controllers = tuple(name for name in files if name in base.parents)
    directories, writes = [], []
    for name in controllers:
        directory = f"{base.parents[name]}/{vm_id}"
        if directory not in directories:
            directories.append(directory)
        writes += [(f"{directory}/{file}", text) for file, text in files[name]]
    return CgroupPlan(
        directories=tuple(directories),
        writes=tuple(writes),
        limits=tuple(limits[name] for name in controllers if limits[name]),
        controllers=controllers,
    )


def _io_limits(spec: Spec, disk_devices: tuple[str, ...]) -> tuple[str, ...]:
    wanted = {"rbps": spec.limits.read_mib_s, "wbps": spec.limits.write_mib_s}
    words = " ".join(f"{name}={mib * _MIB}" for name, mib in wanted.items() if mib is not None)
    return tuple(f"{device} {words}" for device in disk_devices) if words else ()


def build_wall(
    spec: Spec,
    board: Board,
    host: Host,
    emulator: Emulator,
    identity: Identity,
    vm_id: str,
    argv: tuple[str, ...],
    descriptors: tuple[Descriptor, ...],
    files: tuple[OpenFile, ...],
    boot_bytes: int,
    profile: str,
    label: str | None,
) -> Wall:
    """Put the wall together; see the functions above for each part."""
    if identity.uid == 0 or identity.gid == 0:
        raise RuntimeError("the emulator's identity is never 0")
    return Wall(
        argv=argv,
        environment=(),
        root=build_root(spec, board, emulator),
        root_size_bytes=root_size_bytes(boot_bytes),
        identity=identity,
        rlimits=build_rlimits(spec, files),
        landlock_abi=host.landlock_abi,
        landlock=build_landlock(spec, board),
        cgroup=build_cgroup(spec, host.cgroup, vm_id, boot_bytes, host.disk_devices),
        descriptors=descriptors,
        profile=profile,
        core_cookie=host.core_sched,
        exec_label=label,
    )


def open_files(
    spec: Spec, sizes: dict[str, int], uefi: FirmwarePair | None, measured: str | None = None
) -> tuple[OpenFile, ...]:
    """Files that the engine opens, with how. ``sizes``: role -> virtual size in bytes, as far as known."""
    files = []
    if spec.boot.kernel is not None:
        files.append(OpenFile("kernel", spec.boot.kernel, "ro"))
    if spec.boot.initrd is not None:
        files.append(OpenFile("initrd", spec.boot.initrd, "ro"))
    if measured is not None:
        files.append(OpenFile(FIRMWARE_ROLE, measured, "ro"))
    if uefi is not None and spec.has_flash:
        size = sizes.get("firmware-vars", 0)
        files.append(OpenFile("firmware-code", uefi.code, "ro", sha256=uefi.code_sha256))
        files.append(OpenFile("firmware-vars", uefi.variables, "vars", None, size, uefi.variables_sha256))
    for index, disk in enumerate(spec.disks):
        role = f"disk{index}"
        size = sizes.get(role, 0)
        access = "rw" if disk.mode is DiskMode.PERSISTENT else "ro"
        files.append(OpenFile(role, disk.path, access, _driver(disk), size))
        if disk.mode is DiskMode.OVERLAY:
            files.append(OpenFile(f"overlay{index}", "", "overlay", "qcow2", size))
    if wants_seed(spec):
        files.append(OpenFile(SEED, "", "memory", "raw"))
    return tuple(files)


def _driver(disk: Disk) -> str:
    """What the emulator calls it: LUKS is a driver of its own over raw files, and an option of qcow2."""
    return "luks" if disk.key is not None and disk.format is DiskFormat.RAW else disk.format


def needs_group_kvm(board: Board, identity: Identity) -> bool:
    """Rootless KVM opens /dev/kvm with the caller's groups (control proc.kvm-group)."""
    return board.accel == "kvm" and identity.mode is not IdentityMode.ROOT
