"""The specification of one VM, as frozen types. Unknown keys are refused; defaults are the closed ones.

The TOML document has the same shape (``spec/schema.py`` writes its JSON Schema)::

    name = "web"                      # optional; [a-z0-9][a-z0-9_.-]{0,62}
    [machine]  type memory_mib vcpus accel irqchip saveable
    [boot]     kernel initrd cmdline | firmware
    [boot.keys] pk kek db
    [[disk]]   path format mode | image mode; sha256 encryption key
    [network]  mode egress allow publish
    [console]  device log_max_kib
    [limits]   cpu_percent overhead_mib pids read_mib_s write_mib_s
    [[waiver]] control reason expires
    [[passthrough]] address reason expires
    [confidential] kind firmware … (spec/confidential.py)
    [provision.cloud_init] user_data network_config hostname instance_id
    [provision.ignition]   config
    [tpm]      enabled key
    [keys]     port
    [secrets.NAME] file | descriptor | systemd_creds | command | age identity, use

Constraints written here (ranges, patterns, lengths) are enforced by ``spec/walk.py``; those between fields stand in
``spec/rules.py``. A ``Spec`` from ``parse_spec``, ``override`` or one of its helpers holds all of them; a bare
``Spec()`` does not. ``Meta(extra={"kind": ...})`` names the check in ``spec/walk.py`` that a value gets beyond its
type.
"""

from __future__ import annotations

import datetime
import enum
from typing import Annotated

import msgspec
from msgspec import Meta

from casemate.spec.closed import Closed, HostPath
from casemate.spec.confidential import Confidential


class MachineType(enum.StrEnum):
    """Machine models that Casemate starts; everything else is out of policy (control dev.machine)."""

    MICROVM = "microvm"
    Q35 = "q35"
    S390 = "s390-ccw-virtio"


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
    """``none``: the kernel is given; ``uefi``: OVMF; ``uefi-secure``: OVMF with Secure Boot; ``bios``: SeaBIOS."""

    NONE = "none"
    UEFI = "uefi"
    UEFI_SECURE = "uefi-secure"
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


class Encryption(enum.StrEnum):
    """``luks``: the file is LUKS1; the emulator decrypts, the guest sees a plain disk."""

    NONE = "none"
    LUKS = "luks"


class NetworkMode(enum.StrEnum):
    """``user``: passt, no TAP and no bridge."""

    NONE = "none"
    USER = "user"


class Egress(enum.StrEnum):
    """What the guest may reach: nothing; public addresses only; or only ``allow``."""

    NONE = "none"
    INTERNET = "internet"
    LIST = "list"


class SecretUse(enum.StrEnum):
    """Where a secret goes: a systemd credential of the guest, all of its user-data or Ignition config, to the emulator
    as the key of disks, or to the TPM's emulator as the key of its state; the guest never sees the last two.
    """

    CREDENTIAL = "credential"
    USER_DATA = "user-data"
    IGNITION = "ignition"
    DISK = "disk"
    TPM = "tpm"


class ConsoleDevice(enum.StrEnum):
    """``serial``: one 16550 UART, for kernels' early messages; ``virtio``: hvc0 only."""

    SERIAL = "serial"
    VIRTIO = "virtio"


Reason = Annotated[str, Meta(min_length=8, max_length=500, description="Why, for the reader of the launch record.")]
Expires = Annotated[datetime.date, Meta(description="Last day on which this entry counts (UTC), YYYY-MM-DD.")]


class Machine(Closed, frozen=True):
    """The board. ``memory_mib`` is what the guest sees as RAM."""

    type: Annotated[
        MachineType,
        Meta(description='microvm for a given kernel; q35 for firmware and PCI; s390-ccw-virtio for kind = "se".'),
    ] = MachineType.MICROVM
    memory_mib: Annotated[int, Meta(ge=32, le=1_048_576, description="Guest RAM in MiB.")] = 256
    vcpus: Annotated[int, Meta(ge=1, le=255, description="Number of virtual CPUs.")] = 1
    accel: Annotated[AccelChoice, Meta(description="auto: KVM where it executes guest code at speed, else TCG.")] = (
        AccelChoice.AUTO
    )
    irqchip: Annotated[Irqchip, Meta(description="How much of the interrupt controllers stays in the kernel.")] = (
        Irqchip.SPLIT
    )
    saveable: Annotated[
        bool, Meta(description="casemate save may write its state: three more system calls, and a port for clones.")
    ] = False


Certificates = Annotated[tuple[HostPath, ...], Meta(min_length=1, max_length=16)]


class BootKeys(Closed, frozen=True):
    """Certificates of the owner's own for Secure Boot, in PEM, in place of the distribution's."""

    pk: Annotated[HostPath, Meta(description="The platform key: who may change KEK.")]
    kek: Annotated[Certificates, Meta(description="Key exchange keys: who may change db and dbx.")]
    db: Annotated[Certificates, Meta(description="Whose signatures start.")]


class Boot(Closed, frozen=True):
    """Either a kernel (with initrd and cmdline) or a firmware that finds a boot loader on the first disk."""

    kernel: HostPath | None = None
    initrd: HostPath | None = None
    cmdline: Annotated[
        str, Meta(max_length=2047, extra={"kind": "ascii"}, description="Kernel command line, printable ASCII.")
    ] = ""
    firmware: Annotated[
        Firmware, Meta(description="none with a kernel; uefi, uefi-secure or bios to boot the first disk.")
    ] = Firmware.NONE
    keys: (
        Annotated[BootKeys, Meta(description="For uefi-secure: keys of yours instead of the distribution's.")] | None
    ) = None

    @property
    def has_uefi(self) -> bool:
        """Whether the firmware is OVMF, of either kind."""
        return self.firmware in {Firmware.UEFI, Firmware.UEFI_SECURE}

    @property
    def is_secure(self) -> bool:
        """Whether the firmware starts only what is signed."""
        return self.firmware is Firmware.UEFI_SECURE


class Disk(Closed, frozen=True):
    """One image, given to the guest as virtio-blk. ``path`` is absolute after parsing.

    ``image`` names an image of the store in place of ``path`` and ``format``; parsing looks it up and fills in both and
    ``sha256``, so that a name which moves later does not change the VM.
    """

    path: HostPath
    format: Annotated[DiskFormat, Meta(description="Must be said: Casemate and QEMU never guess it.")]
    mode: Annotated[DiskMode, Meta(description="overlay: writes die with the VM; persistent: writes stay.")] = (
        DiskMode.OVERLAY
    )
    image: (
        Annotated[
            str,
            Meta(
                pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$",
                description="An image of the store, by name or digest, in place of path and format.",
            ),
        ]
        | None
    ) = None
    sha256: (
        Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$", description="What the bytes of the image must hash to.")] | None
    ) = None
    encryption: Annotated[Encryption, Meta(description="luks: encrypted on the host, with the key that key names.")] = (
        Encryption.NONE
    )
    key: (
        Annotated[str, Meta(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$", description='A secret with use = "disk".')]
        | None
    ) = None


class Publish(Closed, frozen=True):
    """One published port: ``address:host_port`` on the host goes to ``guest_port`` in the guest."""

    host_port: Annotated[int, Meta(ge=1, le=65535, description="Port on the host.")]
    guest_port: Annotated[int, Meta(ge=1, le=65535, description="Port in the guest.")]
    address: Annotated[
        str,
        Meta(extra={"kind": "address"}, description="Host address to bind; 0.0.0.0 or :: opens it to the network."),
    ] = "127.0.0.1"
    protocol: Annotated[str, Meta(pattern=r"^(tcp|udp)$", description="tcp or udp.")] = "tcp"


CidrBlock = Annotated[str, Meta(extra={"kind": "cidr"}, description="For example 192.0.2.0/24 or 2001:db8::/32.")]


class Network(Closed, frozen=True):
    """No network unless asked. ``allow`` holds CIDR blocks for ``egress = "list"``."""

    mode: Annotated[NetworkMode, Meta(description="none, or user for a rootless network through passt.")] = (
        NetworkMode.NONE
    )
    egress: Annotated[Egress, Meta(description="What the guest may reach when mode is user.")] = Egress.INTERNET
    allow: Annotated[tuple[CidrBlock, ...], Meta(max_length=256, description='CIDR blocks for egress = "list".')] = ()
    ipv6: Annotated[bool, Meta(description="The guest also gets IPv6, under the same egress policy.")] = False
    publish: Annotated[
        tuple[Publish, ...],
        Meta(max_length=128, extra={"kind": "publish"}, description='Tables, or "[ADDR:]HOST:GUEST[/tcp|udp]".'),
    ] = ()


class Console(Closed, frozen=True):
    """The guest's console; its log is a ring of ``log_max_kib`` KiB on disk."""

    device: Annotated[
        ConsoleDevice, Meta(description="serial shows the kernel's first messages; virtio is smaller.")
    ] = ConsoleDevice.SERIAL
    log_max_kib: Annotated[int, Meta(ge=16, le=1_048_576, description="Size of the log ring in KiB.")] = 1024


class Limits(Closed, frozen=True):
    """Limits of the emulator on the host. ``overhead_mib`` is what QEMU may use beyond the guest's RAM."""

    cpu_percent: Annotated[int, Meta(ge=1, le=25_500, description="100 is one host CPU.")] | None = None
    overhead_mib: Annotated[int, Meta(ge=64, le=65_536, description="MiB for QEMU itself, beyond guest RAM.")] = 256
    pids: Annotated[int, Meta(ge=16, le=4096, description="Threads and processes of the emulator.")] = 128
    read_mib_s: Annotated[int, Meta(ge=1, le=1_048_576, description="Disk reads in MiB per second.")] | None = None
    write_mib_s: Annotated[int, Meta(ge=1, le=1_048_576, description="Disk writes in MiB per second.")] | None = None


class Waiver(Closed, frozen=True):
    """A control that may fail for this VM, why and until when. Counts only if the host's policy allows it."""

    control: Annotated[str, Meta(pattern=r"^[a-z]+\.[a-z0-9-]+$", max_length=64, description="Id of the control.")]
    reason: Reason
    expires: Expires


class Passthrough(Closed, frozen=True):
    """A PCI function given to the guest through VFIO, e.g. ``0000:3b:02.1``."""

    address: Annotated[
        str,
        Meta(pattern=r"^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$", description="PCI address, e.g. 0000:3b:02.1."),
    ]
    reason: Reason
    expires: Expires


class CloudInit(Closed, frozen=True):
    """A NoCloud seed: a small read-only disk with the label CIDATA."""

    user_data: Annotated[HostPath, Meta(description="#cloud-config or a script that starts with #!.")] | None = None
    network_config: Annotated[HostPath, Meta(description="Network configuration, version 1 or 2.")] | None = None
    hostname: (
        Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", description="Name of the guest.")] | None
    ) = None
    instance_id: (
        Annotated[
            str,
            Meta(
                pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$",
                description="A new one makes cloud-init run as on a first boot; without it, one per VM.",
            ),
        ]
        | None
    ) = None


class Ignition(Closed, frozen=True):
    """An Ignition 3.x configuration, handed over as fw_cfg opt/com.coreos/config."""

    config: Annotated[HostPath, Meta(description="JSON, specification version 3.0.0 to 3.5.0.")] | None = None


class Provision(Closed, frozen=True):
    """What a guest is told at its first boot. Not for secrets: those have [secrets]."""

    cloud_init: CloudInit | None = None
    ignition: Ignition | None = None


class Secret(Closed, frozen=True):
    """One secret: where it comes from, never the secret itself. Exactly one source."""

    file: Annotated[HostPath, Meta(description="A file that nobody else can read (mode 0600 or 0400).")] | None = None
    descriptor: Annotated[int, Meta(ge=3, le=1023, description="An open descriptor of the calling process.")] | None = (
        None
    )
    systemd_creds: (
        Annotated[HostPath, Meta(description="A file for systemd-creds decrypt (host key, TPM2).")] | None
    ) = None
    command: (
        Annotated[
            tuple[Annotated[str, Meta(min_length=1, max_length=1024)], ...],
            Meta(
                max_length=32, description="A program, by its full path, and its arguments; its output is the secret."
            ),
        ]
        | None
    ) = None
    age: Annotated[HostPath, Meta(description="A file encrypted with age.")] | None = None
    identity: Annotated[HostPath, Meta(description="The identity file that opens it.")] | None = None
    use: Annotated[SecretUse, Meta(description="credential: for systemd in the guest.")] = SecretUse.CREDENTIAL


class Tpm(Closed, frozen=True):
    """A TPM 2.0 of the VM's own, emulated by swtpm in a wall of its own; its state is always encrypted.

    Without ``key`` Casemate keeps a random key beside the VM's definition, for its owner alone.
    """

    enabled: Annotated[bool, Meta(description="Give the VM a TPM 2.0.")] = False
    key: (
        Annotated[
            str,
            Meta(
                pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$",
                description='A secret with use = "tpm" that encrypts the TPM\'s state; otherwise a key is kept.',
            ),
        ]
        | None
    ) = None


class Keys(Closed, frozen=True):
    """How the guest reaches a key broker (``casemate serve-keys --vm``), which gives it secrets for evidence."""

    port: Annotated[bool, Meta(description="A virtio-serial port casemate.keys, for a broker on this host.")] = False


SecretName = Annotated[
    str,
    Meta(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$", description="Name of the secret, and of the credential."),
]


class Spec(Closed, frozen=True):
    """One VM as its owner wants it."""

    name: (
        Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$", description="Name of the VM on this host.")] | None
    ) = None
    machine: Machine = Machine()
    boot: Boot = Boot()
    disks: Annotated[tuple[Disk, ...], Meta(max_length=8)] = msgspec.field(default=(), name="disk")
    network: Network = Network()
    console: Console = Console()
    limits: Limits = Limits()
    waivers: Annotated[tuple[Waiver, ...], Meta(max_length=64)] = msgspec.field(default=(), name="waiver")
    passthrough: Annotated[tuple[Passthrough, ...], Meta(max_length=8)] = ()
    confidential: Confidential | None = None
    provision: Provision = Provision()
    secrets: Annotated[dict[SecretName, Secret], Meta(max_length=16)] = {}  # noqa: RUF012 - msgspec copies it
    tpm: Tpm = Tpm()
    keys: Keys = Keys()

    @property
    def has_flash(self) -> bool:
        """Whether OVMF and its variables lie in flash; the one of a confidential guest is memory that is measured."""
        return self.boot.has_uefi and self.confidential is None
