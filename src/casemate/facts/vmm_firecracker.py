"""Firecracker: its configuration file (``--config-file``, ``GET /vm/config``) and its command line, as a machine.

Names as in the project's API description (src/firecracker/swagger/firecracker.yaml). What every microVM has besides
what is configured: KVM's whole interrupt controller and PIT, a serial port, a keyboard controller that only resets, a
generation id; every virtio device over MMIO, or over PCI with ``--enable-pci``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from casemate.facts.machine import Disk, Machine
from casemate.facts.machine_secrets import secrets_in
from casemate.facts.qemu_argv_draft import Draft
from casemate.facts.vmm_document import View, parse_json

KEYS: Final = frozenset({"boot-source", "machine-config", "drives", "network-interfaces"})
"""Of the file's top level: any of these makes it one of Firecracker's."""
_BOARD: Final = ("serial", "i8042", "kvm-ioapic", "kvm-i8259", "kvm-pit", "kvm-apic", "vmgenid")
_BOARD_ORIGIN: Final = "machine"
_VALUED: Final = frozenset(
    """api-sock config-file id log-path level boot-timer metadata metrics-path mmds-size-limit http-api-max-payload-size
    parent-cpu-time-us start-time-cpu-us start-time-us seccomp-filter module describe-snapshot""".split()  # noqa: SIM905
)
_PLAIN: Final = frozenset(
    "no-api no-seccomp show-level show-log-origin snapshot-version version help enable-pci".split()  # noqa: SIM905
)
DEFAULT_SOCKET: Final = "/run/firecracker.socket"


def read_firecracker(data: bytes, source: str) -> Machine:
    """The machine of a configuration file.

    Raises:
        InputError: not JSON, or larger than one can be.
    """
    draft = Draft()
    view = View(parse_json(data, source), "", draft)
    boot = view.child("boot-source")
    kernel, initrd, cmdline = boot.text("kernel_image_path"), boot.text("initrd_path"), boot.text("boot_args")
    boot.done()
    machine = view.child("machine-config")
    vcpus, memory_mib = machine.number("vcpu_count"), machine.number("mem_size_mib")
    settings = {"smt": "on" if machine.flag("smt") else "off", "cpu-template": machine.text("cpu_template")}
    if machine.has("gdb_socket_path"):
        draft.flags.append("-gdb")
    machine.skip("track_dirty_pages", "huge_pages", "ht_enabled")
    machine.done()
    if view.has("cpu-config"):
        settings["cpu-template"] = "custom"
    disks = [_drive(draft, drive) for drive in view.each("drives")]
    disks += [_pmem(draft, pmem) for pmem in view.each("pmem")]
    for card in view.each("network-interfaces"):
        _network(draft, card)
    _rest(draft, view, settings)
    view.done()
    secrets = [name.replace("-append", "boot_args") for name in secrets_in("-append", cmdline)]
    for kind in _BOARD:
        draft.device(kind, {}, _BOARD_ORIGIN)
    return Machine(
        vmm="firecracker",
        form="firecracker",
        source=source,
        accel="kvm",
        cpu_model="host",
        memory_mib=memory_mib,
        vcpus=vcpus,
        kernel=kernel,
        initrd=initrd,
        cmdline=cmdline,
        devices=draft.final_devices(),
        backends=draft.final_backends(),
        disks=tuple(disks),
        flags=tuple(draft.flags),
        display="none",
        unreadable=tuple(draft.unreadable),
        settings=settings,
        secrets=tuple(secrets),
    )


def _drive(draft: Draft, drive: View) -> Disk:
    name, path, socket = drive.text("drive_id"), drive.text("path_on_host"), drive.text("socket")
    drive.skip("is_root_device", "partuuid", "cache_type", "io_engine", "rate_limiter")
    read_only = drive.flag("is_read_only")
    drive.done()
    kind = "vhost-user-blk-device" if socket else "virtio-blk-device"
    draft.device(kind, {"id": name, "drive": name}, drive.place)
    if socket:
        draft.backend("chardev", "socket", {"id": name, "path": socket}, drive.place)
    # Firecracker reads raw images only: there is no header that could name another file.
    return Disk(path or socket, "raw", read_only, device=kind, origin=drive.place, id=name, backing=())


def _pmem(draft: Draft, pmem: View) -> Disk:
    name, path, read_only = pmem.text("id"), pmem.text("path_on_host"), pmem.flag("read_only")
    pmem.skip("root_device", "rate_limiter")
    pmem.done()
    draft.device("virtio-pmem-device", {"id": name}, pmem.place)
    return Disk(path, "raw", read_only, device="virtio-pmem-device", origin=pmem.place, id=name, backing=())


def _network(draft: Draft, card: View) -> None:
    name = card.text("iface_id") or draft.name("net")
    draft.backend("netdev", "tap", {"id": f"host{name}", "ifname": card.text("host_dev_name")}, card.place)
    draft.device("virtio-net-device", {"id": name, "netdev": f"host{name}"}, card.place)
    card.skip("guest_mac", "mtu", "rx_rate_limiter", "tx_rate_limiter", "allow_mmds_requests")
    card.done()


def _rest(draft: Draft, view: View, settings: dict[str, str]) -> None:
    if view.has("vsock"):
        vsock = view.child("vsock")
        draft.backend("chardev", "socket", {"id": "vsock", "path": vsock.text("uds_path")}, vsock.place)
        vsock.skip("guest_cid", "vsock_id")
        vsock.done()
        draft.device("virtio-vsock-device", {}, vsock.place)
    if view.has("balloon"):
        draft.device("virtio-balloon-device", {}, "balloon")
    if view.has("memory-hotplug"):
        draft.device("virtio-mem-device", {}, "memory-hotplug")
    if view.has("entropy"):
        entropy = view.child("entropy")
        limited = entropy.has("rate_limiter")
        entropy.done()
        draft.backend("object", "rng-random", {"id": "rng", "filename": "/dev/urandom"}, "entropy")
        draft.device("virtio-rng-device", {"rng": "rng", **({"max-bytes": "limited"} if limited else {})}, "entropy")
    if view.has("mmds-config"):
        mmds = view.child("mmds-config")
        settings["mmds"] = mmds.text("version", "V1")
        mmds.skip("network_interfaces", "ipv4_address", "imds_compat")
        mmds.done()
    if view.has("serial"):
        settings["serial-out"] = view.child("serial").text("serial_out_path")
    view.skip("logger", "metrics", "vmm-config")


def read_firecracker_command(argv: Sequence[str], source: str) -> Machine:
    """What Firecracker's own command line says: who can command it, and whether its filter is on. The devices stand in
    a file that it names, or come over its socket."""
    draft = Draft()
    words = _words(argv, draft)
    if "config-file" in words:
        draft.miss(f"its devices stand in {words['config-file'][:120]}: audit that file")
    else:
        draft.miss("its devices come over its API socket")
    monitors = () if "no-api" in words else (f"unix:{words.get('api-sock') or DEFAULT_SOCKET}",)
    loosened = {"no-seccomp": "--no-seccomp: no system call filter", "seccomp-filter": "--seccomp-filter: another one"}
    open_parts = [text for name, text in loosened.items() if name in words]
    return Machine(
        vmm="firecracker",
        form="firecracker-command",
        source=source,
        name=words.get("id", ""),
        emulator=argv[0],
        accel="kvm",
        cpu_model="host",
        monitors=monitors or ("none",),
        options=tuple((f"--{name}", value) for name, value in words.items()),
        unreadable=tuple(draft.unreadable),
        settings={"sandbox-off": "; ".join(open_parts), **({"mmds": "V1 or V2"} if "metadata" in words else {})},
    )


def _words(argv: Sequence[str], draft: Draft) -> dict[str, str]:
    found: dict[str, str] = {}
    rest = list(argv[1:])
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if word == "--":  # what follows is the jailer's separator
            continue
        if not word.startswith("--") or name not in _VALUED | _PLAIN:
            draft.miss(f"{word[:80]}: not known to this reader")
        elif name in _PLAIN or equals:
            found[name] = value
        elif rest:
            found[name] = rest.pop(0)
        else:
            draft.miss(f"{word[:80]} without its argument")
    return found
