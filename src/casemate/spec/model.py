"""The specification of one VM, as frozen types. Unknown keys are refused; defaults are the closed ones.

The TOML document has the same shape (``casemate spec --schema`` prints its JSON Schema)::

    name = "web"                      # optional; [a-z0-9][a-z0-9_.-]{0,62}
    [machine]  type memory_mib vcpus accel irqchip
    [boot]     kernel initrd cmdline | firmware
    [[disk]]   path format mode
    [network]  mode egress allow publish
    [console]  device log_max_kib
    [limits]   cpu_percent overhead_mib pids read_mib_s write_mib_s
    [[waiver]] control reason expires
    [[passthrough]] address reason expires
"""

from __future__ import annotations

import datetime
import enum
from typing import Annotated

import msgspec
from msgspec import Meta


class MachineType(enum.StrEnum):
    """Machine models that Casemate starts; everything else is out of policy (control dev.machine)."""

    MICROVM = "microvm"
    Q35 = "q35"


class AccelChoice(enum.StrEnum):
    """``auto`` takes KVM where the probe saw it execute guest code at speed, TCG with a warning otherwise."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class Irqchip(enum.StrEnum):
    """Where interrupt controllers live under KVM: ``split`` keeps only the local APIC in the kernel, ``off`` none."""

    SPLIT = "split"
    OFF = "off"


class Firmware(enum.StrEnum):
    """``none``: the kernel is given; ``uefi``: OVMF; ``bios``: SeaBIOS."""

    NONE = "none"
    UEFI = "uefi"
    BIOS = "bios"


class DiskFormat(enum.StrEnum):
    """Image formats that the emulator is allowed to open; never probed."""

    RAW = "raw"
    QCOW2 = "qcow2"


class DiskMode(enum.StrEnum):
    """``overlay`` writes into a file that dies with the VM; ``persistent`` writes into the image itself."""

    READ_ONLY = "read-only"
    OVERLAY = "overlay"
    PERSISTENT = "persistent"


class NetworkMode(enum.StrEnum):
    """``user``: passt, no TAP and no bridge."""

    NONE = "none"
    USER = "user"


class Egress(enum.StrEnum):
    """What the guest may reach: nothing; public addresses only; or only ``allow``."""

    NONE = "none"
    INTERNET = "internet"
    LIST = "list"


class ConsoleDevice(enum.StrEnum):
    """``serial``: one 16550 UART, for kernels' early messages; ``virtio``: hvc0 only."""

    SERIAL = "serial"
    VIRTIO = "virtio"


class _Closed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base: frozen, and an unknown key is an error."""


class Machine(_Closed):
    """The board. ``memory_mib`` is what the guest sees as RAM."""

    type: MachineType = MachineType.MICROVM
    memory_mib: Annotated[int, Meta(ge=32, le=1_048_576)] = 256
    vcpus: Annotated[int, Meta(ge=1, le=255)] = 1
    accel: AccelChoice = AccelChoice.AUTO
    irqchip: Irqchip = Irqchip.SPLIT


class Boot(_Closed):
    """Either a kernel (with initrd and cmdline) or a firmware that finds a boot loader on the first disk."""

    kernel: str | None = None
    initrd: str | None = None
    cmdline: Annotated[str, Meta(max_length=2047)] = ""
    firmware: Firmware = Firmware.NONE


class Disk(_Closed):
    """One image, given to the guest as virtio-blk. ``path`` is absolute after parsing."""

    path: str
    format: DiskFormat
    mode: DiskMode = DiskMode.OVERLAY


class Publish(_Closed):
    """One published port: ``address:host_port`` on the host goes to ``guest_port`` in the guest."""

    host_port: Annotated[int, Meta(ge=1, le=65535)]
    guest_port: Annotated[int, Meta(ge=1, le=65535)]
    address: str = "127.0.0.1"
    protocol: str = "tcp"


class Network(_Closed):
    """No network unless asked. ``allow`` holds CIDR blocks for ``egress = "list"``."""

    mode: NetworkMode = NetworkMode.NONE
    egress: Egress = Egress.INTERNET
    allow: tuple[str, ...] = ()
    publish: tuple[Publish, ...] = ()


class Console(_Closed):
    """The guest's console; its log is a ring of ``log_max_kib`` KiB on disk."""

    device: ConsoleDevice = ConsoleDevice.SERIAL
    log_max_kib: Annotated[int, Meta(ge=16, le=1_048_576)] = 1024


class Limits(_Closed):
    """Limits of the emulator on the host. ``overhead_mib`` is what QEMU may use beyond the guest's RAM."""

    cpu_percent: Annotated[int, Meta(ge=1, le=25_500)] | None = None
    overhead_mib: Annotated[int, Meta(ge=64, le=65_536)] = 256
    pids: Annotated[int, Meta(ge=16, le=4096)] = 128
    read_mib_s: Annotated[int, Meta(ge=1, le=1_048_576)] | None = None
    write_mib_s: Annotated[int, Meta(ge=1, le=1_048_576)] | None = None


class Waiver(_Closed):
    """A control that may fail for this VM, why, and until when. Counts only if the host's policy allows that control."""

    control: Annotated[str, Meta(pattern=r"^[a-z]+\.[a-z0-9-]+$")]
    reason: Annotated[str, Meta(min_length=8, max_length=500)]
    expires: datetime.date


class Passthrough(_Closed):
    """A PCI function given to the guest through VFIO, e.g. ``0000:3b:02.1``."""

    address: Annotated[str, Meta(pattern=r"^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$")]
    reason: Annotated[str, Meta(min_length=8, max_length=500)]
    expires: datetime.date


class Spec(_Closed):
    """One VM as its owner wants it."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")] | None = None
    machine: Machine = Machine()
    boot: Boot = Boot()
    disks: tuple[Disk, ...] = msgspec.field(default=(), name="disk")
    network: Network = Network()
    console: Console = Console()
    limits: Limits = Limits()
    waivers: tuple[Waiver, ...] = msgspec.field(default=(), name="waiver")
    passthrough: tuple[Passthrough, ...] = ()
