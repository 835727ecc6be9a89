"""QEMU's arguments for one VM: the smallest device model that boots it.

Descriptor numbers are handed out here, in the order in which the arguments use them; `Numbering` is the only record.
Files reach QEMU as descriptors (``/dev/fdset/N``); only the kernel and the initrd are paths, inside the new root,
because QEMU opens them with plain fopen.
"""

from __future__ import annotations

from casemate.jail.policy import Descriptor
from casemate.plan.accel import Board
from casemate.plan.confidential import OBJECT, confidential_arguments
from casemate.plan.options import OptionValue, write_object
from casemate.plan.options import write_option as option
from casemate.plan.passthrough import passthrough_options
from casemate.plan.provisioning import SEED, SEED_CMDLINE, channel_arguments, disk_key, wants_seed
from casemate.spec.model import ConsoleDevice, DiskFormat, DiskMode, MachineType, NetworkMode, Spec

PROGRAM = "/usr/bin/qemu-system-x86_64"
PROGRAM_S390 = "/usr/bin/qemu-system-s390x"
BUSES = {MachineType.MICROVM: "device", MachineType.Q35: "pci", MachineType.S390: "ccw"}
"""How virtio devices are attached: the last word of their names."""
KERNEL = "/boot/kernel"
INITRD = "/boot/initrd"
CLONE_PORT = "org.casemate.clone.0"
KEYS_PORT = "casemate.keys"
THROTTLE = "io"
_MIB = 1024 * 1024
TPM_CMDLINE = "tpm_tis.force=1 tpm_tis.interrupts=0"
"""Linux: look for the TPM at its fixed address, which no ACPI table of a microvm names (drivers/char/tpm/tpm_tis.c)."""
SANDBOX = option("on", obsolete="deny", elevateprivileges="deny", spawn="deny", resourcecontrol="deny")


class Numbering:
    """Hands out descriptor numbers from 3 and fdset numbers from 1."""

    def __init__(self) -> None:
        self.descriptors: list[Descriptor] = [
            Descriptor(0, "null", "ro"),
            Descriptor(1, "log", "wo"),
            Descriptor(2, "log", "wo"),
        ]
        self._sets = 0

    def inherit(self, role: str, access: str) -> int:
        """A descriptor number for ``role``."""
        number = len(self.descriptors)
        self.descriptors.append(Descriptor(number, role, access))
        return number

    def fdset(self, role: str, access: str) -> tuple[list[str], str]:
        """Arguments that make a descriptor set of ``role``, and the path under which QEMU opens it."""
        number = self.inherit(role, access)
        self._sets += 1
        return ["-add-fd", f"fd={number},set={self._sets}"], f"/dev/fdset/{self._sets}"


def build_argv(
    spec: Spec,
    board: Board,
    vm_id: str,
    numbering: Numbering,
    *,
    channel: bool = False,
    incoming: bool = False,
) -> tuple[str, ...]:
    """The whole argument vector; ``numbering`` collects the descriptors that it needs.

    Args:
        channel: the cell's port.
        incoming: the VM goes on from a saved state, which it reads from a descriptor of its own.
    """
    bus = BUSES[spec.machine.type]
    argv = [program_of(spec), "-nodefaults", "-no-user-config", "-S"]
    argv += ["-name", option("", guest=f"casemate-{vm_id}"), "-msg", "timestamp=on"]
    argv += ["-sandbox", SANDBOX, "-display", "none"]
    qmp = numbering.inherit("qmp", "socket")
    argv += ["-chardev", option("socket", id="qmp", fd=qmp), "-mon", option("", chardev="qmp", mode="control")]
    argv += ["-machine", _machine(spec, board), "-cpu", board.cpu]
    argv += ["-smp", option("", cpus=spec.machine.vcpus, sockets=1, cores=spec.machine.vcpus, threads=1)]
    argv += ["-m", option("", size=f"{spec.machine.memory_mib}M")]
    argv += confidential_arguments(spec, board.c_bit)
    argv += ["-accel", "kvm" if board.accel == "kvm" else _tcg(spec)]
    argv += ["-rtc", "base=utc"]
    if spec.machine.type is MachineType.Q35:
        argv += ["-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1"]
        argv += ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
    argv += _boot(spec, board, numbering)
    argv += _console(spec, numbering, bus)
    argv += _entropy(numbering, bus)
    argv += _throttle(spec)
    for index in range(len(spec.disks)):
        argv += _disk(spec, index, numbering, bus)
    if spec.provision.cloud_init is not None or spec.secrets or spec.provision.ignition is not None:
        argv += _provision(spec, numbering, bus)
    argv += _network(spec, numbering, bus)
    argv += _passthrough(spec, numbering)
    if spec.tpm.enabled:
        argv += _tpm(numbering, spec.machine.type is MachineType.MICROVM)
    if channel:
        argv += _channel(numbering, bus)
    if spec.machine.saveable:
        argv += _saveable(numbering, bus)
    if spec.keys.port:
        argv += _keys_port(numbering, bus)
    if incoming:
        argv += ["-incoming", f"fd:{numbering.inherit('state', 'ro')}"]
    return tuple(argv)


def program_of(spec: Spec) -> str:
    """The emulator, inside the new root."""
    return PROGRAM_S390 if spec.machine.type is MachineType.S390 else PROGRAM


def _tcg(spec: Spec) -> str:
    """TCG keeps translated code until its buffer is full, by default 1 GiB: a guest that reboots a few times, or loads
    enough code, would be killed by the memory limit. Half of the overhead leaves room for QEMU itself.
    """
    return option("tcg", thread="multi", tb_size=spec.limits.overhead_mib // 2)


def _machine(spec: Spec, board: Board) -> str:
    if spec.machine.type is MachineType.S390:
        return option("s390-ccw-virtio", mem_merge=False, dump_guest_core=False, confidential_guest_support=OBJECT)
    common: dict[str, OptionValue] = {"mem_merge": False, "dump_guest_core": False, "usb": False, "graphics": False}
    if board.accel == "kvm":
        common["kernel_irqchip"] = board.irqchip
    if spec.machine.type is MachineType.MICROVM:
        return option(
            "microvm",
            **common,
            pit=board.pit,
            pic=board.pic,
            rtc=board.rtc,
            isa_serial=spec.console.device is ConsoleDevice.SERIAL,
            acpi=True,
            pcie=False,
            smm=False,
            auto_kernel_cmdline=False,
        )
    extra: dict[str, OptionValue] = {}
    if spec.confidential is not None:
        extra = {"pic": board.pic, "confidential_guest_support": OBJECT}
    elif spec.has_flash:
        extra = {"pflash0": "firmware-code", "pflash1": "firmware-vars"}
    return option(
        "q35",
        **common,
        pit=board.pit,
        hpet=False,
        i8042=False,
        vmport=False,
        smbus=False,
        sata=False,
        smm=spec.boot.is_secure,
        **extra,
    )


def kernel_cmdline(spec: Spec, board: str = "") -> str:
    """The command line of a given kernel.

    Args:
        board: what the machine adds (`Board.cmdline`): nothing on a q35.
    """
    pinned = SEED_CMDLINE if wants_seed(spec) else ""
    tpm = TPM_CMDLINE if spec.tpm.enabled and spec.machine.type is MachineType.MICROVM else ""
    return " ".join(words for words in (spec.boot.cmdline, board, pinned, tpm) if words)


def _boot(spec: Spec, board: Board, numbering: Numbering) -> list[str]:
    argv = []
    if spec.boot.is_secure:
        # Only code in system management mode may write to the flash: the firmware's own, never the guest's kernel.
        argv += ["-global", option("", driver="cfi.pflash01", property="secure", value=True)]
    if spec.has_flash:
        for role, access in (("firmware-code", "ro"), ("firmware-vars", "rw")):
            argv += _file_node(f"{role}-file", role, access, numbering)
            argv += ["-blockdev", option("raw", node_name=role, file=f"{role}-file", read_only=access == "ro")]
    if spec.boot.kernel is not None:
        argv += ["-kernel", KERNEL]
        if spec.boot.initrd is not None:
            argv += ["-initrd", INITRD]
        cmdline = kernel_cmdline(spec, board.cmdline)
        if cmdline:
            argv += ["-append", cmdline]
    return argv


def _console(spec: Spec, numbering: Numbering, bus: str) -> list[str]:
    argv = ["-chardev", option("socket", id="console", fd=numbering.inherit("console", "socket"))]
    if spec.console.device is ConsoleDevice.SERIAL:
        if spec.machine.type is MachineType.S390:  # no UART there: the service processor's console
            return [*argv, "-device", "sclpconsole,chardev=console"]
        return [*argv, "-serial", "chardev:console"]
    port = ["-device", "virtconsole,chardev=console"]
    return [*argv, "-device", option(f"virtio-serial-{bus}", id="console-bus", max_ports=1), *port]


def _entropy(numbering: Numbering, bus: str) -> list[str]:
    argv, path = numbering.fdset("entropy", "ro")
    argv += ["-object", option("rng-random", id="entropy", filename=path)]
    return [*argv, "-device", option(f"virtio-rng-{bus}", rng="entropy", max_bytes=65536, period=1000)]


def _file_node(node: str, role: str, access: str, numbering: Numbering) -> list[str]:
    argv, path = numbering.fdset(role, access)
    writable = access == "rw"
    extra = {"discard": "unmap"} if writable else {}
    node_option = option(
        "file", node_name=node, filename=path, read_only=not writable, auto_read_only=False, aio="threads", **extra
    )
    return [*argv, "-blockdev", node_option]


def _throttle(spec: Spec) -> list[str]:
    """One bucket for all disks of the VM: the limits are the whole VM's (qapi/block-core.json, ThrottleLimits)."""
    wanted = {"bps-read": spec.limits.read_mib_s, "bps-write": spec.limits.write_mib_s}
    limits = {name: mib * _MIB for name, mib in wanted.items() if mib is not None}
    if not limits or not spec.disks:
        return []
    return ["-object", write_object("throttle-group", THROTTLE, limits=limits)]


def _limited(node: str, writable: bool) -> str:
    extra: dict[str, str] = {"discard": "unmap"} if writable else {}
    return option(
        "throttle",
        node_name=f"{node}-limited",
        throttle_group=THROTTLE,
        file=node,
        read_only=not writable,
        **extra,
    )


def _disk(spec: Spec, index: int, numbering: Numbering, bus: str) -> list[str]:
    disk, node = spec.disks[index], f"disk{index}"
    writable = disk.mode is DiskMode.PERSISTENT
    role = f"disk{index}"
    if disk.mode is DiskMode.OVERLAY:
        argv = _file_node(f"{node}-base-file", role, "ro", numbering)
        base = option(disk.format, node_name=f"{node}-base", file=f"{node}-base-file", read_only=True)
        argv += ["-blockdev", base, *_file_node(f"{node}-file", f"overlay{index}", "rw", numbering)]
        top = option("qcow2", node_name=node, file=f"{node}-file", backing=f"{node}-base", discard="unmap")
        argv += ["-blockdev", top]
    else:
        argv = _file_node(f"{node}-file", role, "rw" if writable else "ro", numbering)
        extra: dict[str, str] = {"discard": "unmap"} if writable else {}
        driver: str = disk.format
        if disk.key is not None and disk.format is DiskFormat.QCOW2:
            extra |= {"encrypt__format": "luks", "encrypt__key_secret": disk_key(index)}
        elif disk.key is not None:
            driver, extra["key_secret"] = "luks", disk_key(index)
        node_option = option(driver, node_name=node, file=f"{node}-file", read_only=not writable, **extra)
        argv += ["-blockdev", node_option]
    if _throttle(spec):
        argv += ["-blockdev", _limited(node, disk.mode is not DiskMode.READ_ONLY)]
        node = f"{node}-limited"
    boot = {} if spec.boot.kernel is not None else {"bootindex": index}
    return [*argv, "-device", option(f"virtio-blk-{bus}", id=f"blk{index}", drive=node, serial=f"disk{index}", **boot)]


def _provision(spec: Spec, numbering: Numbering, bus: str) -> list[str]:
    argv = channel_arguments(spec)
    if wants_seed(spec):
        argv += _file_node("seed-file", SEED, "ro", numbering)
        argv += ["-blockdev", option("raw", node_name=SEED, file="seed-file", read_only=True)]
        argv += ["-device", option(f"virtio-blk-{bus}", id=SEED, drive=SEED, serial="cidata")]
    return argv


def _network(spec: Spec, numbering: Numbering, bus: str) -> list[str]:
    if spec.network.mode is NetworkMode.NONE:
        return []
    number = numbering.inherit("net", "socket")
    argv = ["-netdev", option("stream", id="net0", server=False, addr__type="fd", addr__str=number)]
    mac = "52:54:00:12:34:56"  # alone on its link: no other guest ever sees it
    extra = {"romfile": ""} if bus == "pci" else {}
    return [*argv, "-device", option(f"virtio-net-{bus}", netdev="net0", mac=mac, **extra)]


def _channel(numbering: Numbering, bus: str) -> list[str]:
    """The cell's only way out: one port, and the end of the guest is the end of the emulator."""
    argv = ["-no-reboot", "-chardev", option("socket", id="channel", fd=numbering.inherit("channel", "socket"))]
    argv += ["-device", option(f"virtio-serial-{bus}", id="channel-bus", max_ports=2)]
    return [*argv, "-device", option("virtserialport", chardev="channel", nr=1)]  # 0 is for consoles only


def _saveable(numbering: Numbering, bus: str) -> list[str]:
    """A port over which the host tells the guest that it is about to be saved, and that it is a clone.

    microvm's ACPI tables do not describe a vmgenid device (QEMU 7.2 to 10, hw/i386/acpi-microvm.c): only q35 gets one.
    """
    argv = ["-chardev", option("socket", id="clone", fd=numbering.inherit("clone", "socket"))]
    argv += ["-device", option(f"virtio-serial-{bus}", id="clone-bus", max_ports=2)]
    argv += ["-device", option("virtserialport", bus="clone-bus.0", nr=1, chardev="clone", name=CLONE_PORT)]
    return argv if bus == "device" else [*argv, "-device", option("vmgenid", guid="auto", id="vmgenid0")]


def _keys_port(numbering: Numbering, bus: str) -> list[str]:
    """A port to a key broker: what vsock would be, without the host kernel's driver (vhost-vsock)."""
    argv = ["-chardev", option("socket", id="keys", fd=numbering.inherit("keys", "socket"))]
    argv += ["-device", option(f"virtio-serial-{bus}", id="keys-bus", max_ports=2)]
    return [*argv, "-device", option("virtserialport", bus="keys-bus.0", nr=1, chardev="keys", name=KEYS_PORT)]


def _passthrough(spec: Spec, numbering: Numbering) -> list[str]:
    if not spec.passthrough:
        return []
    argv = ["-object", option("iommufd", id="iommufd0", fd=numbering.inherit("iommufd", "rw"))]
    for index in range(len(spec.passthrough)):
        argv += passthrough_options(index, numbering.inherit(f"vfio{index}", "rw"))
    return argv


def _tpm(numbering: Numbering, microvm: bool) -> list[str]:
    """The command interface where ACPI describes it (q35); microvm's tables know no TPM, and its guest is told."""
    argv = ["-chardev", option("socket", id="tpm-link", fd=numbering.inherit("tpm", "socket"))]
    argv += ["-tpmdev", option("emulator", id="tpm0", chardev="tpm-link")]
    # No physical presence interface: with it a guest asks its firmware to clear the TPM, and it is one more region.
    return [*argv, "-device", option("tpm-tis" if microvm else "tpm-crb", id="tpm", tpmdev="tpm0", ppi=False)]


def devices_of(spec: Spec, accel: str) -> frozenset[str]:
    """The device parts of the seccomp profile that this VM needs."""
    parts = {"rng", "console"}
    if spec.disks or spec.has_flash or wants_seed(spec):
        parts.add("blk")
    if spec.network.mode is not NetworkMode.NONE:
        parts.add("net")
    if spec.passthrough:
        parts.add("vfio")
    if spec.confidential is not None:
        parts.add(spec.confidential.kind.value)
        if spec.confidential.quote_socket is not None:
            parts.add("quotes")
    if spec.machine.saveable:
        parts.add("save")
    if spec.boot.is_secure and accel == "kvm":  # TCG enters system management mode without a system call
        parts.add("smm")
    if spec.tpm.enabled:
        parts.add("tpm")
    return frozenset(parts)
