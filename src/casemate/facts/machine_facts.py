"""A described machine as facts, under the names that a launch declares and a live read-back observes.

1. What the description states becomes Known at the stage that the caller gives: DECLARED for a document, OBSERVED for
   the command line of a running process.
2. What only the live machine or another file can tell becomes Unknown with the reason.
3. While any part of the description was unreadable, a list that could hide something in it is Unknown.

What another VMM than QEMU has no notion of is left to `vmm_facts.py`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from casemate.facts.fact import Facts, Stage
from casemate.facts.machine import Backend, Device, Disk, Machine
from casemate.facts.machine_boards import irqchip_of
from casemate.facts.machine_boot import boot_facts
from casemate.facts.machine_confidential import boots_measured, keeps_variables, may_debug, may_migrate
from casemate.facts.machine_network import network_facts
from casemate.facts.machine_risks import is_display, is_insecure, is_usb
from casemate.facts.machine_sayer import Sayer
from casemate.facts.machine_tpm import tpm_facts
from casemate.facts.qemu_argv_text import is_off, is_on

_HIDING: Final = frozenset(
    """dev.types dev.insecure-types dev.usb dev.display dev.displays vm.passthrough vhost.descriptors
    net.backend net.backends net.published net.publish-wide net.host-loopback
    img.formats img.backing img.shared-writable
    emu.debug qmp.transport vmm.console-listen vmm.console-open vm.secrets guest.agent
    ent.virtio-rng ent.vmgenid net.unfiltered net.not-isolated mem.shared mem.files vmm.raw-args dev.shared-folders
    ent.rng-unlimited dev.surface dev.hotplug-ports vmm.console-wide vmm.console-clear vmm.serial-network img.remote
    img.remote-clear img.unencrypted net.bridged guest.channels vm.tpm tpm.backend
    tpm.state-encrypted tpm.key-in-arguments tpm.own-uid dev.backends net.mmds""".split()  # noqa: SIM905  one name a word
)
"""Facts that a part which nobody could read may change."""

_COMMAND_SAYS: Final = frozenset({"qmp.transport", "emu.debug"})
"""What Firecracker's command line says although the devices stand elsewhere, which is then all that is unreadable."""

_PIT: Final = frozenset({"isa-pit", "kvm-pit", "pit"})
_PIC: Final = frozenset({"isa-i8259", "kvm-i8259", "i8259"})
_DEBUG: Final = frozenset({"-s", "-gdb", "-d", "-trace", "-incoming", "-plugin", "-qtest", "-semihosting"})
_PASSED: Final = re.compile(r"vfio-.*|x-pci-proxy-dev|usb-host|pci-assign|kvm-pci-assign|scsi-(generic|block)")
_SHARED: Final = re.compile(r"virtio-9p.*|vhost-user-.*|ivshmem.*|virtio-fs.*")


@lru_cache(4096)
def _is_passed(kind: str) -> bool:
    return _PASSED.fullmatch(kind) is not None


@lru_cache(4096)
def _is_shared(kind: str) -> bool:
    return _SHARED.fullmatch(kind) is not None


def machine_facts(machine: Machine, stage: Stage) -> Facts:
    """The facts of one machine.

    Args:
        machine: as a reader gave it.
        stage: DECLARED for a document, OBSERVED when the machine was read from a live process.
    """
    sayer = Sayer(machine.source or machine.form, stage)
    types = tuple(sorted({device.type for device in machine.devices}))
    _board(sayer, machine, types)
    _devices(sayer, machine, types)
    _memory(sayer, machine)
    network_facts(sayer, machine)
    _images(sayer, machine)
    _access(sayer, machine)
    _guest(sayer, machine)
    if stage is Stage.DECLARED:
        sayer.say("vmm.manager", "none", "a document; nothing runs that could differ from it")
    if machine.vmm != "qemu" or machine.form == "kata":
        from casemate.facts.vmm_facts import override

        override(sayer.say, sayer.miss, machine)
    if machine.unreadable:
        why = f"a part could not be read and may change this: {machine.unreadable[0]}"
        said = _COMMAND_SAYS if machine.form == "firecracker-command" and len(machine.unreadable) == 1 else frozenset()
        for name in (_HIDING & sayer.facts.keys()) - said:
            sayer.miss(name, why)
    return sayer.facts


def _board(sayer: Sayer, machine: Machine, types: tuple[str, ...]) -> None:
    options = machine.board_options
    sayer.say("vm.vmm", machine.vmm, "which VMM it is for")
    sayer.say("vm.form", machine.form, "what was read")
    sayer.say("dev.machine", machine.board, "board")
    accels = machine.accel.split(":")
    if len(accels) > 1 and accels[0] == "kvm" and sayer.stage is Stage.OBSERVED:
        sayer.miss("dev.accel", f"{machine.accel}: only the live machine shows which one was taken")
    else:
        sayer.say("dev.accel", accels[0], f"accelerator ({machine.accel})")
    accelerated = accels[0] == "kvm"
    if accelerated and machine.architecture not in ("x86_64", "i386", "i686"):
        sayer.miss("kvm.irqchip", f"{machine.architecture}: KVM has all of the interrupt controller, none is split")
    else:
        sayer.say("kvm.irqchip", irqchip_of(machine.board, options) if accelerated else "none", "kernel-irqchip")
    if types:
        sayer.say("kvm.pit", bool(_PIT & set(types)), "board and its pit option")
        sayer.say("kvm.pic", bool(_PIC & set(types)), "board and its pic option")
    if machine.form == "libvirt":
        sayer.say("dev.nodefaults", True, "libvirt always gives -nodefaults -no-user-config")
        sayer.miss("emu.sandbox", "libvirt's qemu.conf (seccomp_sandbox) decides, not the domain")
    else:
        both = {"-nodefaults", "-no-user-config"} <= set(machine.flags)
        sayer.say("dev.nodefaults", both, "-nodefaults -no-user-config")
        sayer.say("emu.sandbox", machine.sandbox, "-sandbox")
    _cpu(sayer, machine)


def _cpu(sayer: Sayer, machine: Machine) -> None:
    flags = machine.cpu_flags
    model = machine.cpu_model
    stated_on = tuple(
        flag for flag in ("vmx", "svm") if is_on(flags.get(flag)) or flags.get(flag) in ("force", "require")
    )
    hidden = all(is_off(flags.get(flag)) for flag in ("vmx", "svm"))
    # A model that copies the host's CPU shows whatever the host's KVM allows, in both vendors' words.
    if stated_on:
        sayer.say("cpu.nested-flags", stated_on, "CPU flags")
    elif hidden:
        sayer.say("cpu.nested-flags", (), "CPU flags: vmx and svm off")
    elif model in ("host", "max", "host-passthrough", "host-model", "maximum"):
        off = tuple(flag for flag in ("vmx", "svm") if is_off(flags.get(flag)))
        if off:
            sayer.say("cpu.nested-flags", (), f"CPU flags: {off[0]} off; the other one is another vendor's")
        else:
            sayer.say(
                "cpu.nested-flags", ("vmx or svm, as the host's KVM allows",), f"CPU model {model}, nothing hidden"
            )
    else:
        # Under KVM, QEMU takes svm out of every named model, and none of them has vmx (kvm_default_props).
        sayer.say("cpu.nested-flags", (), f"CPU model {model or '(default)'}, vmx and svm not named")
    enlightened = sorted(name for name, value in flags.items() if _is_foreign(name) and not is_off(value))
    sayer.say("cpu.hyperv-xen", tuple(enlightened), "CPU flags and features of other hypervisors")
    sayer.say("cpu.model", model or "(default)", "CPU model")
    sayer.say("cpu.mitigation-flags", _mitigations(machine), "CPU model and flags")


def _is_foreign(name: str) -> bool:
    return name.startswith(("hv-", "xen-")) or name in ("hyperv", "xen")


def _mitigations(machine: Machine) -> str:
    """``host``: the guest sees the host's own flags; ``named``: some were added by hand; ``model``: a model with the
    flags of its time; ``none``: a model from before them."""
    model = machine.cpu_model
    if model in ("host", "max", "host-passthrough", "host-model", "maximum"):
        return "host"
    wanted = {"spec-ctrl", "ssbd", "md-clear", "ibpb", "stibp", "amd-ssbd", "virt-ssbd", "ibrs", "arch-capabilities"}
    if any(name in wanted and not is_off(value) for name, value in machine.cpu_flags.items()):
        return "named"
    if re.search(
        r"-IBRS|-IBPB|-v[0-9]+$|Cascadelake|Cooperlake|Icelake|Sapphire|Granite|Sierra|Snowridge|Rome|Milan|Genoa|Turin",
        model,
    ):
        return "model"
    return "none"


def _devices(sayer: Sayer, machine: Machine, types: tuple[str, ...]) -> None:
    place = "devices"
    sayer.say("dev.types", types, place)
    sayer.say("dev.insecure-types", tuple(kind for kind in types if is_insecure(kind)), place)
    sayer.say("dev.usb", tuple(kind for kind in types if is_usb(kind)), place)
    shown = next((kind for kind in types if is_display(kind)), "")
    sayer.say("dev.display", shown or machine.display or "none", "display and devices")
    shows = {b.type for b in machine.backends if b.kind == "display"} | {machine.display or "none"}
    if "default" in shows:
        sayer.miss("dev.displays", "no display is named: QEMU opens whatever it was built with")
    else:
        sayer.say("dev.displays", tuple(sorted(shows)), "displays")
    passed = tuple(sorted(_passed(device) for device in machine.devices if _is_passed(device.type)))
    sayer.say("vm.passthrough", passed, place)
    folders = [device for device in machine.devices if _is_shared(device.type)]
    sayer.say("dev.shared-folders", tuple(sorted(f"{d.type} {d.backend}".strip() for d in folders)), place)
    sayer.say("vhost.descriptors", _vhost(machine), "devices and network back-ends")
    hotplug = [
        d
        for d in machine.devices
        if d.type in ("pcie-root-port", "ioh3420") and not is_off(d.properties.get("hotplug"))
    ]
    from casemate.facts.cve_table import device_weight

    sayer.say("dev.surface", sum(device_weight(kind) for kind in types), "weights of the device types in the CVE table")
    multi = sorted(f"{d.type} {d.id}".strip() for d in machine.devices if is_on(d.properties.get("multifunction")))
    sayer.say("dev.multifunction", tuple(multi), place)
    sayer.say("dev.hotplug-ports", len(hotplug), "root ports without hotplug=off")


def _passed(device: Device) -> str:
    return f"{device.type} {device.backend or device.properties.get('productid', '')}".strip()


def _vhost(machine: Machine) -> tuple[str, ...]:
    found = set()
    for backend in machine.backends:
        if backend.kind == "netdev" and _uses_vhost(backend):
            found.add("/dev/vhost-net")
        if backend.kind == "netdev" and backend.type == "vhost-vdpa":
            found.add(backend.path or "/dev/vhost-vdpa")
    for device in machine.devices:
        match = re.match(r"vhost-(scsi|vsock|vdpa)", device.type) if device.type.startswith("vhost-") else None
        if match:
            found.add(f"/dev/vhost-{match[1]}")
    return tuple(sorted(found))


def _uses_vhost(backend: Backend) -> bool:
    properties = backend.properties
    forced = is_on(properties.get("vhost")) or is_on(properties.get("vhostforce"))
    return forced or any(properties.get(name) for name in ("vhostfd", "vhostfds"))


def _memory(sayer: Sayer, machine: Machine) -> None:
    options = machine.board_options
    sayer.say("mem.merge", not is_off(options.get("mem-merge")), "mem-merge")
    dump = options.get("dump-guest-core")
    sayer.say("mem.dump", not is_off(dump), "dump-guest-core")
    files = [
        backend.path or backend.type
        for backend in machine.backends
        if backend.kind == "object" and backend.type in ("memory-backend-file", "memory-backend-shm")
    ]
    if machine.settings.get("mem-path"):
        files.append(machine.settings["mem-path"])
    sayer.say("mem.files", tuple(sorted(files)), "memory back-ends")
    shared = [
        backend.id or backend.type
        for backend in machine.backends
        if backend.kind == "object"
        and backend.type.startswith("memory-backend")
        and is_on(backend.properties.get("share"))
    ]
    sayer.say("mem.shared", tuple(sorted(shared)), "memory back-ends with share=on")


def _images(sayer: Sayer, machine: Machine) -> None:
    disks = machine.disks
    place = "disks"
    names = [disk.id or disk.path.rpartition("/")[2] or str(number) for number, disk in enumerate(disks)]
    formats = tuple(f"{name}={disk.format or 'guessed'}" for name, disk in zip(names, disks, strict=True))
    sayer.say("img.formats", formats, place)
    chained = tuple(f"{name}: {path}" for name, disk in zip(names, disks, strict=True) for path in disk.backing or ())
    silent = [name for name, disk in zip(names, disks, strict=True) if disk.backing is None]
    if silent and not chained:
        sayer.miss("img.backing", f"the header of the image says it, not the description: {', '.join(silent)[:200]}")
    else:
        sayer.say("img.backing", chained, place)
    shared = tuple(n for n, disk in zip(names, disks, strict=True) if disk.shareable and not disk.read_only)
    sayer.say("img.shared-writable", shared, place)
    remote = [
        (n, d) for n, d in zip(names, disks, strict=True) if d.protocol not in ("file", "host_device", "host_cdrom")
    ]
    sayer.say("img.remote", tuple(f"{n}: {d.protocol}" for n, d in remote), place)
    sayer.say("img.remote-clear", tuple(f"{n}: {d.protocol}" for n, d in remote if not _is_hidden(d)), place)
    plain = tuple(n for n, d in zip(names, disks, strict=True) if not d.encrypted and not d.read_only)
    sayer.say("img.unencrypted", plain, place)
    sayer.say("img.paths", tuple(sorted({disk.path for disk in disks if disk.path})), place)
    sayer.say("img.writable-paths", tuple(sorted({d.path for d in disks if d.path and not d.read_only})), place)
    if machine.kernel or machine.initrd or disks:
        sayer.miss("img.digest-checked", "the description holds no digest of what boots")
        for name in ("img.origin-judged", "img.origin-local", "img.origin-pinned"):
            sayer.miss(name, "the description does not say where the images come from")


def _is_hidden(disk: Disk) -> bool:
    """Whether nobody between this host and the store can read along."""
    return disk.encrypted or disk.tls or disk.protocol in ("https", "ftps", "ssh", "sftp")


_WAYS: Final = ("tcp", "telnet", "websocket", "udp", "vc", "unknown", "unix", "pty", "stdio", "pipe", "file", "tty")


def _access(sayer: Sayer, machine: Machine) -> None:
    if machine.monitors == ("libvirt",):
        sayer.miss(
            "qmp.transport", "libvirt makes a socket of its own; who can open it shows on the host where it runs"
        )
    else:
        sayer.say("qmp.transport", _transport(machine), "monitors")
    debug = tuple(flag for flag in machine.flags if flag in _DEBUG)
    sayer.say("emu.debug", debug, "options")
    screens = [backend for backend in machine.backends if backend.kind == "display"]
    listen = tuple(sorted(f"{b.type} {b.properties['listen']}" for b in screens if b.properties.get("listen")))
    sayer.say("vmm.console-listen", listen, "graphics")
    wide = tuple(text for text in listen if not _is_loopback(text.partition(" ")[2]))
    sayer.say("vmm.console-wide", wide, "graphics")
    sayer.say("vmm.console-open", tuple(b.type for b in screens if _is_open(b)), "graphics")
    sayer.say(
        "vmm.console-clear",
        tuple(b.type for b in screens if b.properties.get("listen") and not _has_tls(b)),
        "graphics",
    )
    sayer.say("vm.secrets", machine.secrets, "arguments and attributes")
    sayer.say("vmm.raw-args", machine.raw_args, "arguments past the manager")
    sayer.say("vmm.serial-network", _serial_network(machine), "character devices")
    if machine.form == "libvirt":
        sayer.miss("console.bounded", "libvirt's qemu.conf (stdio_handler) decides, not the domain")
    else:
        unbounded = [
            b.id for b in machine.backends if b.kind == "chardev" and (b.type == "file" or b.properties.get("logfile"))
        ]
        if unbounded:
            sayer.say("console.bounded", False, f"character device {unbounded[0]} writes a file without a limit")
        else:
            sayer.miss("console.bounded", "whoever reads the console decides what is kept")


def _transport(machine: Machine) -> str:
    """The worst way into a monitor, in the words of the launch: inherited-descriptor is the one it wants."""
    words = {"inherited-descriptor" if way == "fd" else way.partition(":")[0] for way in machine.monitors}
    for word in _WAYS:
        if word in words:
            return word
    others = sorted(words - {"inherited-descriptor", "none"})
    if others:
        return others[0]
    return "inherited-descriptor" if "inherited-descriptor" in words else "none"


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address in ("::1", "localhost", "[::1]")


def _is_open(backend: Backend) -> bool:
    """Whether the console of the guest asks nobody who he is."""
    properties = backend.properties
    if backend.path and not properties.get("listen"):
        return False
    if backend.type == "spice":
        return not any(properties.get(name) for name in ("password", "password-secret", "sasl"))
    return not any(
        is_on(properties.get(name)) or properties.get(name) for name in ("password", "password-secret", "sasl")
    )


def _has_tls(backend: Backend) -> bool:
    properties = backend.properties
    return any(properties.get(name) for name in ("tls-creds", "tls-port", "tls", "x509-dir", "x509", "x509verify"))


def _serial_network(machine: Machine) -> tuple[str, ...]:
    found = []
    for backend in machine.backends:
        if backend.kind == "chardev" and backend.type in ("socket", "udp") and not backend.path:
            properties = backend.properties
            if not properties.get("fd") and properties.get("port"):
                found.append(f"{backend.id or backend.type}: {properties.get('host', '') or '0.0.0.0'}")  # noqa: S104
    for device in machine.devices:
        if device.backend and re.match(r"(tcp|telnet|udp|websocket):", device.backend):
            found.append(f"{device.type}: {device.backend.split(',')[0]}")
    return tuple(sorted(found))


def _guest(sayer: Sayer, machine: Machine) -> None:
    sayer.say("ent.virtio-rng", _entropy(machine), "rng devices")
    rngs = [device for device in machine.devices if device.type.startswith("virtio-rng")]
    free = tuple(device.id or device.type for device in rngs if not device.properties.get("max-bytes"))
    sayer.say("ent.rng-unlimited", free, "rng devices")
    sayer.say("ent.vmgenid", any(d.type == "vmgenid" for d in machine.devices), "devices")
    channels = [d.properties.get("name", "") for d in machine.devices if d.type == "virtserialport"]
    sayer.say("guest.channels", tuple(sorted(filter(None, channels))), "virtio-serial ports")
    sayer.say("guest.agent", any(name.startswith("org.qemu.guest_agent") for name in channels), "virtio-serial ports")
    _confidential(sayer, machine)
    boot_facts(sayer, machine)
    tpm_facts(sayer, machine)


def _confidential(sayer: Sayer, machine: Machine) -> None:
    kind = machine.launch_security
    sayer.say("cc.type", kind or "none", "launch security")
    if not kind:
        return
    for name, value in (
        ("cc.debug", may_debug(machine)),
        ("cc.migration-agent", may_migrate(machine)),
        ("cc.kernel", boots_measured(machine)),
        ("cc.firmware-variables", keeps_variables(machine)),
    ):
        if value is None:
            sayer.miss(name, f"the launch of {kind} does not say, or there is no such thing")
        else:
            sayer.say(
                name, value, "launch policy" if name in ("cc.debug", "cc.migration-agent") else "firmware, kernel"
            )


def _entropy(machine: Machine) -> str:
    if not any(device.type.startswith("virtio-rng") for device in machine.devices):
        return "none"
    sources = sorted(
        "network" if b.type == "rng-egd" else (b.path if b.type == "rng-random" else b.type)
        for b in machine.backends
        if b.kind == "object" and b.type.startswith("rng-")
    )
    good = ("/dev/urandom", "/dev/random")
    return next((source for source in sources if source not in good), sources[0] if sources else "/dev/urandom")
