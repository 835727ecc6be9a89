"""One model of a virtual machine as somebody describes it: a QEMU command line, a libvirt domain, a configuration file
of another VMM. Readers fill it, `machine_facts.py` turns it into facts, `surface/` and `harden/` look at its devices.

It holds what is stated, in QEMU's words, and nothing about whether that is good.
"""

from __future__ import annotations

import msgspec


class Device(msgspec.Struct, frozen=True):
    """One device. ``type``: QOM type name (``virtio-net-pci``). ``origin``: where it is stated (``argv[17]``, an XML
    path, or ``machine`` for what the board brings along unasked). ``backend``: id of the host's side."""

    type: str
    id: str = ""
    bus: str = ""
    backend: str = ""
    properties: dict[str, str] = {}
    origin: str = ""


class Backend(msgspec.Struct, frozen=True):
    """The host's side of a device. ``kind``: netdev, blockdev, chardev, object, tpmdev, audiodev, fsdev, display.
    ``type``: its driver (``user``, ``tap``, ``file``, ``qcow2``, ``socket``, ``rng-random``, ``vnc``). ``path``: the
    host's file, if it names one. Nested properties are joined by dots (``addr.type``)."""

    kind: str
    type: str
    id: str = ""
    path: str = ""
    properties: dict[str, str] = {}
    origin: str = ""


class Disk(msgspec.Struct, frozen=True):
    """One image. ``format``: empty when nobody says it (QEMU would guess). ``device``: QOM type of the front.
    ``protocol``: ``file``, ``host_device`` or a network's (``nbd``, ``rbd``, ``https``). ``backing``: the files below
    it as the description names them; None when it does not say and the image's own header decides. ``tls``: whether the
    way to a remote image is encrypted by the connection itself."""

    path: str
    format: str = ""
    read_only: bool = False
    shareable: bool = False
    snapshot: bool = False
    encrypted: bool = False
    device: str = ""
    origin: str = ""
    id: str = ""
    protocol: str = "file"
    backing: tuple[str, ...] | None = None
    tls: bool = False


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One described machine. Empty text: not stated.

    ``board``: machine type word (``pc-q35-7.2``), ``board_options`` the rest of ``-machine``. ``cpu_flags``: flag to
    ``on`` or ``off``. ``flags``: options without which QEMU does more than asked (``-nodefaults``) or that open an
    interface (``-s``). ``options``: every option and its argument, in order. ``monitors``: transports of QMP and HMP
    (``unix:/path``, ``tcp:0.0.0.0:4444``, ``fd``, ``stdio``). ``unreadable``: parts that the reader did not understand;
    whoever judges must not treat them as absent. ``form``: what was read: ``argv``, ``libvirt``, ``firecracker``,
    ``cloud-hypervisor``, ``kata``. ``raw_args``: arguments that a document hands to the emulator past its manager
    (``qemu:commandline``). ``settings``: what else is said, by name (``secure-boot``, ``mem-path``). ``secrets``:
    parameters that carry a secret in clear text; their names, never the secret.
    """

    vmm: str = "qemu"
    source: str = ""
    name: str = ""
    uuid: str = ""
    emulator: str = ""
    architecture: str = "x86_64"
    accel: str = ""
    board: str = ""
    board_options: dict[str, str] = {}
    cpu_model: str = ""
    cpu_flags: dict[str, str] = {}
    memory_mib: int = 0
    vcpus: int = 0
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""
    firmware: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()
    backends: tuple[Backend, ...] = ()
    disks: tuple[Disk, ...] = ()
    monitors: tuple[str, ...] = ()
    display: str = ""
    sandbox: str = ""
    run_as: str = ""
    labels: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    limits: dict[str, str] = {}
    launch_security: str = ""
    options: tuple[tuple[str, str], ...] = ()
    unreadable: tuple[str, ...] = ()
    form: str = "argv"
    raw_args: tuple[str, ...] = ()
    settings: dict[str, str] = {}
    secrets: tuple[str, ...] = ()
