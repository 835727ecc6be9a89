"""A Xen domain as xl.cfg describes it, as a described machine, in the words of QEMU where it has any.

Device models of Xen run in a QEMU too (a HVM guest's board, disks and cards); its paravirtualised devices have no QOM
type and are called ``xen-disk``, ``xen-net`` and so on. Sources: xl.cfg(5), xl-disk-configuration(5),
xl-network-configuration(5) of Xen 4.17.
"""

from __future__ import annotations

import re
from typing import Final

from casemate.facts.machine import Backend, Device, Disk, Machine
from casemate.facts.machine_boards import ORIGIN, board_devices
from casemate.facts.xen_text import Value, parse_xl

_DONE: Final = frozenset(
    """name uuid type builder memory maxmem vcpus maxvcpus kernel ramdisk cmdline root extra bootloader firmware bios
    disk vif vfb vnc vnclisten vncdisplay vncunused vncpasswd sdl spice spicehost spiceport usb usbdev usbdevice serial
    soundhw vga stdvga videoram boot nestedhvm viridian cap cpu_weight weight cpus cpuid pci usbctrl vtpm p9 channel
    device_model_args device_model_args_hvm device_model_version device_model_override on_crash on_reboot on_poweroff
    on_watchdog acpi apic pae hpet localtime xen_platform_pci nx hap shadow_memory keymap opengl timer_mode
    tsc_mode cpus_soft vcpus_affinity pool driver_domain seclabel nomigrate rtc_timeoffset
    device_model_stubdomain_override bios_path_override system_firmware pvshim
    max_grant_frames passthrough acpi_s3 acpi_s4 vkb altp2m""".split()  # noqa: SIM905
)
_FORMATS: Final = {"": "raw", "raw": "raw", "qcow2": "qcow2", "qcow": "qcow", "vhd": "vpc", "qed": "qed", "empty": ""}
_ON: Final = ("1", "on", "yes", "true", "hvm")
_OLD_PREFIX: Final = re.compile(r"^(?:(?:tap2?|tapdisk):)?(?:(phy|file|raw|aio|qcow2?|vhd|tap2?):)?")
_SECRETS: Final = ("vncpasswd", "spicepasswd")


def read_xl(data: bytes, source: str) -> Machine:
    """The machine that an xl.cfg describes.

    Raises:
        InputError: no xl.cfg.
    """
    config = parse_xl(data, source)
    missed = [f"{name}: this setting is not known" for name in config if name not in _DONE]
    kind = _word(config, "type") or ("hvm" if _word(config, "builder") == "hvm" else "pv")
    hvm = kind == "hvm"
    devices: list[Device] = []
    backends: list[Backend] = []
    disks = _disks(config, hvm, devices, missed)
    _networks(config, hvm, devices, backends, missed)
    _screens(config, hvm, devices, backends)
    _others(config, devices, backends, missed)
    own = board_devices("pc", {"usb": "off"}, "xen", defaults=False) if hvm else ()
    if any(option for option in ("device_model_args", "device_model_args_hvm") if option in config):
        missed.append("device_model_args: arguments for QEMU past xl")
    if _word(config, "bootloader"):
        missed.append(f"bootloader {_word(config, 'bootloader')[:40]}: the host reads the guest's disk to boot it")
    firmware = _word(config, "bios") or _word(config, "firmware")
    flags = {"vmx": "on", "svm": "on"} if _word(config, "nestedhvm") in _ON else {"vmx": "off", "svm": "off"}
    if "viridian" in config and config["viridian"] not in ("0", "off", ()):
        flags["hv-relaxed"] = "on"
    cmdline = _word(config, "cmdline") or " ".join(
        part for part in (f"root={_word(config, 'root')}" if "root" in config else "", _word(config, "extra")) if part
    )
    return Machine(
        vmm="xen",
        form="xl",
        source=source,
        name=_word(config, "name"),
        uuid=_word(config, "uuid"),
        accel="xen",
        board="xenfv" if hvm else f"xen{kind}",
        cpu_flags=flags,
        memory_mib=_number(_word(config, "maxmem") or _word(config, "memory")),
        vcpus=_number(_word(config, "maxvcpus") or _word(config, "vcpus")) or 1,
        kernel="" if hvm and "firmware" in config else _word(config, "kernel"),
        initrd=_word(config, "ramdisk"),
        cmdline=cmdline,
        firmware=("OVMF",) if firmware in ("ovmf", "uefi") else (),
        devices=(*devices, *(Device(type=d.type, origin=ORIGIN) for d in own)),
        backends=tuple(backends),
        disks=tuple(disks),
        flags=("-nodefaults",),
        limits={"cap": _word(config, "cap")} if _number(_word(config, "cap")) else {},
        options=(("-boot", _word(config, "boot")),) if _word(config, "boot") else (),
        secrets=tuple(name for name in _SECRETS if _word(config, name)),
        unreadable=tuple(missed[:256]),
    )


def _word(config: dict[str, Value], name: str) -> str:
    value = config.get(name, "")
    return value if isinstance(value, str) else ",".join(value)


def _list(config: dict[str, Value], name: str) -> tuple[str, ...]:
    value = config.get(name, ())
    return value if isinstance(value, tuple) else (value,) if value else ()


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 8 else 0


def _keys(text: str) -> tuple[dict[str, str], list[str]]:
    """(keys with values, words without) of a comma separated specification; ``target=`` takes the rest."""
    keys: dict[str, str] = {}
    words: list[str] = []
    rest = text
    while rest:
        head = rest.lstrip()
        if head.startswith("target="):
            keys["target"] = head.removeprefix("target=")
            break
        part, _, rest = rest.partition(",")
        name, equals, value = part.strip().partition("=")
        if equals and re.fullmatch(r"[a-z_0-9-]+", name):
            keys[name] = value.strip()
        else:
            words.append(part.strip())
    return keys, words


def _disks(config: dict[str, Value], hvm: bool, devices: list[Device], missed: list[str]) -> list[Disk]:
    found = []
    for number, text in enumerate(_list(config, "disk")):
        origin = f"disk[{number}]"
        keys, words = _keys(text)
        is_cd = keys.get("devtype") == "cdrom" or "cdrom" in words
        words = [word for word in words if word not in ("cdrom", "direct-io-safe", "discard", "no-discard", "colo")]
        for name in ("target", "format", "vdev", "access"):
            if name not in keys and words:
                keys[name] = words.pop(0)
        target, format_ = keys.get("target", ""), keys.get("format", "")
        old = _OLD_PREFIX.match(target)
        if old is not None and old[0]:
            # The deprecated form has no format of its own: FORMAT:TARGET,VDEV[:cdrom],ACCESS.
            target = target[old.end() :]
            access, vdev = keys.get("vdev", ""), format_
            keys |= {"vdev": vdev, "access": access or keys.get("access", "")}
            format_ = old[1] if old[1] in ("qcow", "qcow2", "vhd") else "raw"
        vdev = keys.get("vdev", "xvda")
        if vdev.endswith(":cdrom"):
            is_cd, vdev = True, vdev.removesuffix(":cdrom")
        if format_ not in _FORMATS:
            missed.append(f"{origin}: format {format_[:20]}")
            continue
        if keys.get("script") or keys.get("backendtype") not in (None, "", "phy", "qdisk", "tap"):
            missed.append(f"{origin}: its block device is made by {(keys.get('script') or keys['backendtype'])[:40]}")
        path = f"/dev/{target}" if target and not target.startswith("/") else target
        read_only = is_cd or keys.get("access", "rw") in ("r", "ro")
        device = _disk_device(vdev, hvm, is_cd)
        devices.append(Device(type=device, id=vdev, origin=origin))
        found.append(
            Disk(
                path=path,
                format=_FORMATS[format_],
                read_only=read_only,
                shareable=keys.get("access") in ("!", "w!"),
                device=device,
                origin=origin,
                id=vdev,
            )
        )
    return found


def _disk_device(vdev: str, hvm: bool, is_cd: bool) -> str:
    if not hvm or vdev.startswith("xvd"):
        return "xen-cdrom" if is_cd else "xen-disk"
    if vdev.startswith("sd"):
        return "scsi-cd" if is_cd else "scsi-hd"
    return "ide-cd" if is_cd else "ide-hd"


def _networks(
    config: dict[str, Value], hvm: bool, devices: list[Device], backends: list[Backend], missed: list[str]
) -> None:
    for number, text in enumerate(_list(config, "vif")):
        origin = f"vif[{number}]"
        keys, words = _keys(text)
        if words and any(words):
            missed.append(f"{origin}: {words[0][:40]}")
        name = f"vif{number}"
        backends.append(Backend("netdev", "bridge", name, properties={"br": keys.get("bridge", "")}, origin=origin))
        if hvm and keys.get("type", "ioemu") != "vif":
            devices.append(Device(type=keys.get("model", "rtl8139"), id=name, backend=name, origin=origin))
        devices.append(Device(type="xen-net", id=f"{name}-pv", backend=name, origin=origin))


def _screens(config: dict[str, Value], hvm: bool, devices: list[Device], backends: list[Backend]) -> None:
    screen = _word(config, "vfb")
    vnc = _word(config, "vnc") in _ON or "vnc=1" in screen or (hvm and "vnc" not in config)
    if vnc:
        listen = _word(config, "vnclisten") or "127.0.0.1"
        backends.append(Backend("display", "vnc", properties={"listen": listen}, origin="vnc"))
    if _word(config, "spice") in _ON:
        listen = _word(config, "spicehost") or "0.0.0.0"  # noqa: S104  xl's own default
        backends.append(Backend("display", "spice", properties={"listen": listen}, origin="spice"))
    if _word(config, "sdl") in _ON:
        backends.append(Backend("display", "sdl", origin="sdl"))
    card = _word(config, "vga") or ("stdvga" if _word(config, "stdvga") in _ON else "cirrus")
    if hvm and card != "none":
        kinds = {"cirrus": "cirrus-vga", "stdvga": "VGA", "qxl": "qxl-vga"}
        devices.append(Device(type=kinds.get(card, "cirrus-vga"), origin="vga"))
    if screen:
        devices.append(Device(type="xen-vfb", origin="vfb"))


def _others(config: dict[str, Value], devices: list[Device], backends: list[Backend], missed: list[str]) -> None:
    if _word(config, "usb") in _ON:
        devices.append(Device(type="piix3-usb-uhci", origin="usb"))
    for name in _list(config, "usbdevice"):
        kind = name.partition(":")[0]
        known = {"tablet": "usb-tablet", "mouse": "usb-mouse", "keyboard": "usb-kbd", "host": "usb-host"}
        devices.append(Device(type=known.get(kind, "usb-hub"), origin="usbdevice"))
    devices += [Device(type="usb-host", origin="usbdev") for _ in _list(config, "usbdev")]
    devices += [
        Device(type="vfio-pci", backend=text.partition(",")[0], origin=f"pci[{number}]")
        for number, text in enumerate(_list(config, "pci"))
    ]
    devices += [Device(type="tpm-tis", origin="vtpm") for _ in _list(config, "vtpm")]
    devices += [Device(type="virtio-9p-pci", origin="p9") for _ in _list(config, "p9")]
    devices += [Device(type="virtserialport", origin="channel") for _ in _list(config, "channel")]
    if _word(config, "soundhw"):
        devices.append(Device(type="intel-hda", origin="soundhw"))
    for number, text in enumerate(_list(config, "serial")):
        if re.match(r"(tcp|telnet|udp):", text):
            devices.append(Device(type="isa-serial", backend=text, origin=f"serial[{number}]"))
    if _word(config, "device_model_override"):
        missed.append("device_model_override: an emulator of its own")
