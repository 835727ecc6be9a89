"""What the command line says, laid over a specification; the result is checked like any specification.

The rules of precedence, which the manual repeats:

- a flag replaces the value it names; ``--disk``, ``--publish`` and ``--allow`` add to the lists;
- ``--disk`` with the path of a disk that is already there replaces that disk;
- ``--kernel`` replaces a firmware, ``--firmware`` replaces kernel, initrd and command line and chooses the q35 machine;
  keys of Secure Boot go with a firmware that has no use for them;
- ``--publish`` implies ``--net user``; ``--net none`` drops the network of the specification.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from casemate import units
from casemate.errors import Fault, SpecError
from casemate.spec.faults import Faults
from casemate.spec.model import DiskFormat, DiskMode, Firmware, MachineType, Spec
from casemate.spec.parse import ImageOf, build_spec
from casemate.spec.text import resolve_path, show

IMAGE_MEMORY_MIB = 1024
"""Guest RAM for an image that brings its own distribution: the smallest that current cloud images boot in."""

IMAGE_PREFIX = "image:"
"""Before the name or digest of an image of the store, where a path is meant otherwise."""

BUILTIN_CMDLINE = "console=ttyS0 panic=-1 reboot=t"

_FLAGS = {
    "name": "--name",
    "machine.type": "--machine",
    "machine.memory_mib": "--memory-mib",
    "machine.vcpus": "--vcpus",
    "machine.accel": "--accel",
    "boot.kernel": "--kernel",
    "boot.initrd": "--initrd",
    "boot.cmdline": "--cmdline",
    "boot.firmware": "--firmware",
    "network.mode": "--net",
    "network.egress": "--egress",
    "network.ipv6": "--ipv6",
    "machine.saveable": "--saveable",
}
_MODES = {"ro": DiskMode.READ_ONLY, **{mode.value: mode for mode in DiskMode}}
_FORMATS = {member.value: member for member in DiskFormat}
_OPTION_WORDS = (*_FORMATS, *_MODES)

FormatOf = Callable[[str], str]
"""Tells the format of the image at an absolute path by its content; may raise ``ImageError``."""


def override(
    spec: Spec,
    *,
    base_dir: Path,
    today: datetime.date,
    name: str | None = None,
    machine_type: str | None = None,
    memory_mib: int | str | None = None,
    vcpus: int | None = None,
    accel: str | None = None,
    kernel: str | None = None,
    initrd: str | None = None,
    cmdline: str | None = None,
    firmware: str | None = None,
    net: str | None = None,
    egress: str | None = None,
    ipv6: bool | None = None,
    allow: Sequence[str] = (),
    publish: Sequence[str] = (),
    disks: Sequence[str] = (),
    saveable: bool | None = None,
    format_of: FormatOf | None = None,
    image_of: ImageOf | None = None,
) -> Spec:
    """Lay command line flags over ``spec``; None and empty mean that the flag was not given.

    Args:
        base_dir: absolute directory that relative paths in flags start from.
        today: the UTC date by which expiry is judged.
        memory_mib: MiB, or a size with a unit such as ``2G``.
        disks: ``PATH[:OPTION[,OPTION]]`` as ``parse_disk_flag`` reads it.
        format_of: asked for the format of a disk that does not say it; without it that is a fault.
        image_of: asked for an image of the store (``--disk image:NAME``); without it that is a fault.

    Raises:
        SpecError: with all faults; those of a flag carry the flag's name as their path.
    """
    faults = Faults()
    document = _document(spec)
    given: dict[str, object] = {
        "name": name,
        "machine.type": machine_type,
        "machine.memory_mib": _memory(memory_mib, faults),
        "machine.vcpus": vcpus,
        "machine.accel": accel,
        "boot.kernel": kernel,
        "boot.initrd": initrd,
        "boot.cmdline": cmdline,
        "boot.firmware": firmware,
        "network.egress": egress,
        "network.ipv6": ipv6,
        "machine.saveable": saveable,
    }
    named = {path: value for path, value in given.items() if value is not None}
    _replace_boot_method(document, named)
    for path, value in named.items():
        _set(document, path, value)
    if _set_network(document, net, allow, publish, faults, ipv6=bool(ipv6)):
        named["network.mode"] = net
    first_new = _add_disks(document, disks, base_dir, format_of, faults)
    # What stands at its default is as good as not written, and a table that is not there costs nothing to check.
    unwritten = _document(Spec())
    document = {key: value for key, value in document.items() if value != unwritten[key]}
    try:
        result = build_spec(document, "command line", base_dir, today=today, image_of=image_of)
    except SpecError as error:
        raise SpecError("command line", (*faults.as_tuple(), *_as_flags(error.faults, named, first_new))) from None
    faults.raise_if_any("command line")
    return result


def parse_disk_flag(text: str, base_dir: Path, faults: Faults) -> tuple[str, str | None, str | None] | None:
    """``PATH[:OPTION[,OPTION]]`` as absolute path, format and mode, the last two None when not said.

    ``image:NAME`` in place of the path stays as it is.

    Options are ``raw``, ``qcow2``, ``overlay``, ``persistent``, ``read-only`` (or ``ro``). What follows the last colon
    is taken for options unless it holds a slash; a file with a colon in its name is written with its options.
    """
    prefix, text = (IMAGE_PREFIX, text.removeprefix(IMAGE_PREFIX)) if text.startswith(IMAGE_PREFIX) else ("", text)
    path_text, colon, tail = text.rpartition(":")
    if not colon or "/" in tail:
        path_text, tail = text, ""
    found: dict[str, str] = {}
    for word in tail.split(",") if tail else ():
        kind = "format" if word in _FORMATS else "mode"
        if word not in _OPTION_WORDS:
            message = (
                f"no option {show(word)}; expected {', '.join(_OPTION_WORDS)} (a name with a colon needs one behind it)"
            )
            faults.add("--disk", "disk.option", message)
            return None
        if kind in found:
            faults.add("--disk", "disk.option", f"says {found[kind]} and {word}; keep one")
            return None
        found[kind] = word
    path = prefix + path_text if prefix else resolve_path(path_text, str(base_dir), "--disk", faults)
    if path is None:
        return None
    mode = found.get("mode")
    return path, found.get("format"), _MODES[mode].value if mode else None


def spec_for_image(
    path: str,
    image_format: str,
    firmware: str = "uefi",
    *,
    mode: str = "overlay",
    image: str | None = None,
    sha256: str | None = None,
) -> Spec:
    """The specification behind ``casemate run IMAGE``: an image that carries its own boot loader, on q35.

    The image is not changed: writes go to an overlay that dies with the VM, as with a container; ``mode="persistent"``
    keeps them. ``path`` is absolute; the format comes from the image's verified header or from the user. ``image`` and
    ``sha256`` are those of an image of the store.

    Raises:
        SpecError: an argument is none of the words that a specification takes.
    """
    document = {
        "machine": {"type": "q35", "memory_mib": IMAGE_MEMORY_MIB},
        "boot": {"firmware": firmware},
        "disk": [{"path": path, "format": image_format, "mode": mode, "image": image, "sha256": sha256}],
    }
    return build_spec(document, "command line", Path("/"), today=datetime.date.min)


def builtin_spec(kernel: str, initrd: str, cmdline: str = BUILTIN_CMDLINE) -> Spec:
    """The specification named ``builtin``: Casemate's own guest on a microvm, without disk and network."""
    document = {"boot": {"kernel": kernel, "initrd": initrd, "cmdline": cmdline}}
    return build_spec(document, "builtin", Path("/"), today=datetime.date.min)


def _document(spec: Spec) -> dict[str, Any]:
    """A specification as the plain data that its TOML document would hold."""
    document = msgspec.to_builtins(spec)
    assert isinstance(document, dict)
    document["disk"] = list(document["disk"])
    return document


def _set(document: dict[str, Any], path: str, value: object) -> None:
    table, _, key = path.rpartition(".")
    (document[table] if table else document)[key] = value


def _memory(value: int | str | None, faults: Faults) -> int | None:
    if not isinstance(value, str):
        return value
    try:
        return units.parse_mib(value)
    except ValueError as error:
        faults.add("--memory-mib", "value.pattern", str(error))
        return None


def _replace_boot_method(document: dict[str, Any], named: dict[str, object]) -> None:
    """A kernel or a firmware from the command line replaces what the specification boots, never another flag."""
    if "boot.kernel" in named and "boot.firmware" not in named:
        document["boot"].update(firmware=Firmware.NONE.value, keys=None)
    elif named.get("boot.firmware") not in {None, Firmware.NONE.value} and "boot.kernel" not in named:
        document["boot"].update(kernel=None, initrd=None, cmdline="")
        if named["boot.firmware"] != Firmware.UEFI_SECURE.value:
            document["boot"]["keys"] = None
        if "machine.type" not in named:
            document["machine"]["type"] = MachineType.Q35.value


def _set_network(
    document: dict[str, Any],
    net: str | None,
    allow: Sequence[str],
    publish: Sequence[str],
    faults: Faults,
    *,
    ipv6: bool,
) -> bool:
    """Change the network table; whether ``--net`` was given."""
    network = document["network"]
    if net == "none":
        network.update(mode="none", egress="internet", allow=(), publish=(), ipv6=False)
        if publish or allow or ipv6:
            faults.add("--net", "flag.conflict", "none excludes --publish, --allow and --ipv6")
        return True
    if net is not None:
        network["mode"] = net
    elif (publish or ipv6) and network["mode"] == "none":
        network["mode"] = "user"
    network["allow"] = (*network["allow"], *allow)
    network["publish"] = (*network["publish"], *publish)
    return net is not None


def _add_disks(
    document: dict[str, Any], flags: Sequence[str], base_dir: Path, format_of: FormatOf | None, faults: Faults
) -> int:
    """Add or replace disks; the index of the first one that a flag added."""
    first_new = len(document["disk"])
    from_spec = {disk["path"]: disk for disk in document["disk"]}
    changed: set[str] = set()
    for flag in flags:
        parsed = parse_disk_flag(flag, base_dir, faults)
        if parsed is None:
            continue
        path, image_format, mode = parsed
        if path.startswith(IMAGE_PREFIX):
            said = {"format": image_format} if image_format else {}
            image = {"image": path.removeprefix(IMAGE_PREFIX), "mode": mode or DiskMode.OVERLAY.value}
            document["disk"].append({**image, **said})
            continue
        known = from_spec.get(path, {})
        if known and path not in changed:
            known.update({"format": image_format or known["format"], "mode": mode or known["mode"]})
            changed.add(path)
            continue
        image_format = image_format or known.get("format")
        if image_format is None and format_of is not None:
            image_format = format_of(path)
        if image_format is None:
            faults.add("--disk", "disk.format", f"{show(flag)} does not say its format; add :raw or :qcow2")
            continue
        document["disk"].append({"path": path, "format": image_format, "mode": mode or DiskMode.OVERLAY.value})
    return first_new


def _as_flags(faults: tuple[Fault, ...], named: dict[str, object], first_new_disk: int) -> tuple[Fault, ...]:
    """The same faults, with the flag's name where the flag is what the user wrote."""
    renamed = []
    for fault in faults:
        path = _FLAGS[fault.path] if fault.path in named else fault.path
        disk = re.match(r"disk\[([0-9]+)\]", path)
        if disk and int(disk[1]) >= first_new_disk:
            path = "--disk"
        renamed.append(Fault(path, fault.fault_id, fault.message))
    return tuple(renamed)
