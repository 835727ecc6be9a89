"""One handler for each option of QEMU's command line that adds something to the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from casemate.facts.machine_boards import DEFAULT_NIC, board_family
from casemate.facts.qemu_argv_disks import short_drive
from casemate.facts.qemu_argv_draft import Draft
from casemate.facts.qemu_argv_front import read_display, read_spice, read_vnc, transport
from casemate.facts.qemu_argv_names_data import DEVICE_ALIASES, SOUND, USB, VGA
from casemate.facts.qemu_argv_text import Properties, is_off, is_on, parse_option, split_commas

Handler = Callable[[Draft, str, str], None]


def _machine(draft: Draft, text: str, origin: str) -> None:
    del origin
    for name, value in parse_option(text, "type").items():
        if name == "accel":
            draft.accels += value.split(":")
        else:
            draft.machine[name.replace("_", "-")] = value


def _accel(draft: Draft, text: str, origin: str) -> None:
    del origin
    properties = parse_option(text, "accel")
    draft.accels += properties.pop("accel", "").split(":")
    for written, value in properties.items():
        name = written.replace("_", "-")
        draft.machine[name if name == "kernel-irqchip" else f"accel.{name}"] = value


def read_cpu(text: str) -> tuple[str, Properties]:
    """``host,-vmx,+pcid,hv_relaxed,level=7`` as model and flags; names with hyphens."""
    flags: Properties = {}
    parts = text.split(",")
    for part in parts[1:]:
        name, equals, value = part.partition("=")
        if name.startswith(("+", "-")) and not equals:
            flags[name[1:].replace("_", "-")] = "on" if name[0] == "+" else "off"
        elif name:
            flags[name.replace("_", "-")] = "on" if not equals or is_on(value) else ("off" if is_off(value) else value)
    return parts[0], flags


def _cpu(draft: Draft, text: str, origin: str) -> None:
    del origin
    draft.cpu_model, draft.cpu_flags = read_cpu(text)


def _device(draft: Draft, text: str, origin: str) -> None:
    properties = parse_option(text, "driver")
    kind = properties.pop("driver", "")
    if not kind:
        draft.miss(f"{origin}: -device without a driver")
    elif kind not in ("help", "?"):
        draft.device(kind, properties, origin)


def _backend(kind: str, implied: str) -> Handler:
    def read(draft: Draft, text: str, origin: str) -> None:
        properties = parse_option(text, implied)
        driver = properties.pop(implied, "")
        if not driver:
            draft.miss(f"{origin}: -{kind} without a {implied}")
        elif driver not in ("help", "?"):
            draft.backend(kind, driver, properties, origin)

    return read


def _blockdev(draft: Draft, text: str, origin: str) -> None:
    properties = parse_option(text, "driver")
    if not properties.get("driver") or not properties.get("node-name"):
        draft.miss(f"{origin}: -blockdev without a driver or a node-name")
    draft.backend("blockdev", properties.get("driver", ""), properties, origin)


def _netdev(draft: Draft, text: str, origin: str) -> None:
    draft.taken.add("net")
    _backend("netdev", "type")(draft, text, origin)


def _net(draft: Draft, text: str, origin: str) -> None:
    draft.taken.add("net")
    properties = parse_option(text, "type")
    kind = properties.pop("type", "")
    if kind == "nic":
        model = properties.pop("model", "")
        draft.devices.append((f"nic:{model}", properties, origin))
    elif kind and kind not in ("none", "help"):
        properties.setdefault("id", properties.get("name") or draft.name("net"))
        draft.backend("netdev", kind, properties, origin)


def _nic(draft: Draft, text: str, origin: str) -> None:
    draft.taken.add("net")
    properties = parse_option(text, "type")
    kind = properties.pop("type", "")
    if kind in ("none", "help"):
        return
    name = properties.pop("id", "") or draft.name("nic")
    model = properties.pop("model", "")
    draft.devices.append((f"nic:{model}", {"netdev": name, "mac": properties.pop("mac", "")}, origin))
    draft.backend("netdev", kind or "user", {"id": name, **properties}, origin)


def finish_nics(draft: Draft, family: str, board: str) -> None:
    """Give cards without a model the board's own."""
    for number, (kind, properties, origin) in enumerate(draft.devices):
        if not kind.startswith("nic:"):
            continue
        model = kind[4:]
        if not model:
            model = DEFAULT_NIC.get(family, "")
            if not model:
                draft.miss(f"{origin}: which network card the board {board or '(default)'} takes")
        model = "virtio-net-pci" if model == "virtio" else DEVICE_ALIASES.get(model, model)
        if family == "microvm" and model == "virtio-net-pci":
            model = "virtio-net-device"
        draft.devices[number] = (model, properties, origin)


def _object(draft: Draft, text: str, origin: str) -> None:
    properties = parse_option(text, "qom-type")
    kind = properties.pop("qom-type", "")
    if not kind:
        draft.miss(f"{origin}: -object without a type")
        return
    if kind.startswith("secret") and "data" in properties:
        if "keyid" not in properties:
            draft.secrets.append(f"-object {kind} {properties.get('id', '')}: data")
        properties["data"] = "(set)"
    draft.backend("object", kind, properties, origin)


def _drive(draft: Draft, text: str, origin: str) -> None:
    draft.drives.append((parse_option(text), origin))


def _short(option: str) -> Handler:
    return lambda draft, text, origin: draft.drives.append((short_drive(option, text), origin))


def _vga(draft: Draft, text: str, origin: str) -> None:
    draft.taken.add("vga")
    word = text.split(",", 1)[0]
    if word in VGA:
        family = board_family(draft.machine.get("type", ""))
        kind = {"VGA": "isa-vga", "cirrus-vga": "isa-cirrus-vga"}.get(VGA[word], VGA[word])
        draft.device(kind if family == "isapc" else VGA[word], {}, origin)
    elif word != "none":
        draft.miss(f"{origin}: -vga {word} is not known")


def _usbdevice(draft: Draft, text: str, origin: str) -> None:
    draft.machine["usb"] = "on"
    word, _, host = text.partition(":")
    if word in USB:
        draft.device(USB[word], {"host": host} if host else {}, origin)
    else:
        draft.miss(f"{origin}: -usbdevice {word} is not known")


def _soundhw(draft: Draft, text: str, origin: str) -> None:
    for word in SOUND if text == "all" else split_commas(text):
        if word not in SOUND:
            draft.miss(f"{origin}: sound card {word} is not known")
        for kind in SOUND.get(word, ()):
            draft.device(kind, {}, origin)


def _audio(draft: Draft, text: str, origin: str) -> None:
    properties = parse_option(text, "driver")
    model = properties.pop("model", "")
    draft.backend("audiodev", properties.pop("driver", ""), properties, origin)
    if model:
        _soundhw(draft, model, origin)


def _virtfs(draft: Draft, text: str, origin: str) -> None:
    properties = parse_option(text, "fsdriver")
    name = properties.get("id") or properties.get("mount_tag") or draft.name("fs")
    draft.backend("fsdev", properties.pop("fsdriver", ""), {**properties, "id": name}, origin)
    draft.device("virtio-9p-pci", {"fsdev": name, "mount_tag": properties.get("mount_tag", "")}, origin)


def _port(kind: str, taken: str) -> Handler:
    def read(draft: Draft, text: str, origin: str) -> None:
        draft.taken.add(taken)
        if text.startswith("mon:"):
            _monitor(draft, text[4:], origin)
        if text != "none":
            draft.device(kind, {"chardev": text}, origin)

    return read


def _monitor(draft: Draft, text: str, origin: str) -> None:
    del origin
    draft.taken.add("monitor")
    way = transport(text)
    if way:
        draft.monitors.append(way)


def _mon(draft: Draft, text: str, origin: str) -> None:
    draft.taken.add("monitor")
    name = parse_option(text, "chardev").get("chardev", "")
    if not name:
        draft.miss(f"{origin}: -mon without a chardev")
    draft.monitors.append(f"chardev:{name}")


def _nographic(draft: Draft, text: str, origin: str) -> None:
    del text, origin
    draft.flags.append("-nographic")
    draft.words["display"] = "none"


def _window(name: str) -> Handler:
    def read(draft: Draft, text: str, origin: str) -> None:
        del text, origin
        draft.words["display"] = name

    return read


def _set(draft: Draft, text: str, origin: str) -> None:
    target, _, value = text.partition("=")
    parts = target.split(".", 2)
    if len(parts) != 3:
        draft.miss(f"{origin}: -set {target}")
        return
    draft.sets.append((parts[0], parts[1], parts[2], value, origin))


def _global(draft: Draft, text: str, origin: str) -> None:
    head, equals, value = text.partition("=")
    driver, dot, name = head.partition(".")
    if equals and dot and "," not in head:
        draft.globals.append((driver, name, value))
        return
    properties = parse_option(text)
    if "driver" in properties and "property" in properties:
        draft.globals.append((properties["driver"], properties["property"], properties.get("value", "")))
    else:
        draft.miss(f"{origin}: -global {text[:80]}")


def _word(name: str) -> Handler:
    def read(draft: Draft, text: str, origin: str) -> None:
        del origin
        draft.words[name] = text

    return read


def _flag(name: str) -> Handler:
    def read(draft: Draft, text: str, origin: str) -> None:
        del text, origin
        draft.flags.append(name)

    return read


def _board(name: str, value: str) -> Handler:
    def read(draft: Draft, text: str, origin: str) -> None:
        del text, origin
        draft.machine[name] = value

    return read


def _accelerate(name: str) -> Handler:
    return lambda draft, text, origin: draft.accels.append(name)


def _snapshot(draft: Draft, text: str, origin: str) -> None:
    del text, origin
    draft.snapshot = True
    draft.flags.append("-snapshot")


def _firmware(draft: Draft, text: str, origin: str) -> None:
    del origin
    draft.firmware.append(text)


def _run_with(draft: Draft, text: str, origin: str) -> None:
    del origin
    properties = parse_option(text)
    if properties.get("user"):
        draft.words["runas"] = properties["user"]


def _one_device(kind: str) -> Handler:
    return lambda draft, text, origin: draft.device(kind, {"chardev": text} if text else {}, origin)


def _watchdog(draft: Draft, text: str, origin: str) -> None:
    draft.device(text, {}, origin)


def _unread(draft: Draft, text: str, origin: str) -> None:
    draft.miss(f"{origin}: {draft.options[-1][0]} {text[:120]}: what it holds is not read")


HANDLERS: Final[dict[str, Handler]] = {
    "M": _machine,
    "machine": _machine,
    "accel": _accel,
    "enable-kvm": _accelerate("kvm"),
    "no-kvm": _accelerate("tcg"),
    "enable-hax": _accelerate("hax"),
    "xen-attach": _accelerate("xen"),
    "no-kvm-irqchip": _board("kernel-irqchip", "off"),
    "no-kvm-pit": _board("pit", "off"),
    "no-hpet": _board("hpet", "off"),
    "no-acpi": _board("acpi", "off"),
    "usb": _board("usb", "on"),
    "cpu": _cpu,
    "device": _device,
    "netdev": _netdev,
    "net": _net,
    "nic": _nic,
    "chardev": _backend("chardev", "backend"),
    "blockdev": _blockdev,
    "drive": _drive,
    "object": _object,
    "fsdev": _backend("fsdev", "fsdriver"),
    "tpmdev": _backend("tpmdev", "type"),
    "audiodev": _backend("audiodev", "driver"),
    **{name: _short(name) for name in ("hda", "hdb", "hdc", "hdd", "cdrom", "fda", "fdb", "pflash", "sd", "mtdblock")},
    "vga": _vga,
    "std-vga": lambda draft, text, origin: _vga(draft, "std", origin),
    "usbdevice": _usbdevice,
    "soundhw": _soundhw,
    "audio": _audio,
    "virtfs": _virtfs,
    "serial": _port("isa-serial", "serial"),
    "parallel": _port("isa-parallel", "parallel"),
    "debugcon": _one_device("isa-debugcon"),
    "virtioconsole": _one_device("virtconsole"),
    "watchdog": _watchdog,
    "balloon": lambda draft, text, origin: None if text == "none" else draft.device("virtio-balloon-pci", {}, origin),
    "monitor": _monitor,
    "qmp": _monitor,
    "qmp-pretty": _monitor,
    "mon": _mon,
    "vnc": read_vnc,
    "spice": read_spice,
    "display": read_display,
    "nographic": _nographic,
    "sdl": _window("sdl"),
    "curses": _window("curses"),
    "set": _set,
    "global": _global,
    "sandbox": _word("sandbox"),
    "runas": _word("runas"),
    "run-with": _run_with,
    "chroot": _word("chroot"),
    "kernel": _word("kernel"),
    "initrd": _word("initrd"),
    "append": _word("append"),
    "name": _word("name"),
    "uuid": _word("uuid"),
    "m": _word("m"),
    "smp": _word("smp"),
    "mem-path": _word("mem-path"),
    "bios": _firmware,
    "snapshot": _snapshot,
    "readconfig": _unread,
    "bt": _unread,
    **{
        name: _flag(f"-{name}")
        for name in (
            *("nodefaults", "no-user-config", "nodefconfig", "s", "gdb", "incoming", "d", "trace", "plugin", "qtest"),
            *("daemonize", "preconfig", "loadvm", "xen-domid-restrict", "semihosting", "semihosting-config"),
        )
    },
}
"""Option without its hyphen: what it adds. Options that are in neither this table nor HARMLESS are unreadable."""
