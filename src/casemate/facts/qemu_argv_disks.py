"""Images of a QEMU command line: -drive and its short forms, and the graph of -blockdev nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from casemate.facts.machine import Disk
from casemate.facts.machine_boards import DEFAULT_DISK
from casemate.facts.qemu_argv_draft import Draft
from casemate.facts.qemu_argv_text import MAX_DEPTH, OptionFaultError, Properties, is_on, parse_option

FORMATS: Final = frozenset(
    {"raw", "qcow2", "qcow", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels", "dmg", "cloop", "bochs", "luks"}
)
_FILES: Final = frozenset({"file", "host_device", "host_cdrom", "host_floppy"})
_URL: Final = re.compile(
    r"(nbd|nbd\+unix|http|https|ftp|ftps|iscsi|nfs|ssh|gluster|rbd|sheepdog|fat|vvfat|null-co)[:+]"
)
_EDGES: Final = frozenset({"file", "backing", "image", "data-file", "test", "target"})
"""Properties by which one block node names another."""

_SHORT: Final[dict[str, tuple[str, str]]] = {
    "hda": ("0", "disk"),
    "hdb": ("1", "disk"),
    "hdc": ("2", "disk"),
    "hdd": ("3", "disk"),
    "cdrom": ("2", "cdrom"),
}


def short_drive(option: str, path: str) -> Properties:
    """What ``-hda``, ``-cdrom``, ``-fda``, ``-pflash``, ``-sd`` and ``-mtdblock`` stand for; the path is literal."""
    if option in _SHORT:
        index, media = _SHORT[option]
        return {"file": path, "index": index, "media": media}
    if option in ("fda", "fdb"):
        return {"file": path, "if": "floppy", "index": "0" if option == "fda" else "1"}
    return {"file": path, "if": {"pflash": "pflash", "sd": "sd", "mtdblock": "mtd"}[option]}


def finish_disks(draft: Draft, family: str) -> tuple[Disk, ...]:
    """All images, and as devices the fronts that -drive makes by itself."""
    nodes = {p["node-name"]: p for kind, _, p, _ in draft.backends if kind == "blockdev" and p.get("node-name")}
    fronts: dict[str, tuple[str, Properties]] = {}
    for kind, properties, _ in draft.devices:
        if properties.get("drive"):
            fronts.setdefault(properties["drive"], (kind, properties))
    disks = [disk for drive in draft.drives if (disk := _drive(draft, family, drive, fronts)) is not None]
    for name, (kind, properties) in fronts.items():
        if name in nodes:
            disks.append(_node_disk(draft, nodes, name, kind, properties))
    used = {name for name in fronts if name in nodes} | _referenced(nodes)
    flash = [draft.machine.get(name, "") for name in ("pflash0", "pflash1")]
    for name in nodes:
        if name in flash:
            draft.firmware.append(_follow(nodes, nodes[name], "")[2])
        elif name not in used:
            disks.append(_node_disk(draft, nodes, name, "", {}))
    return tuple(disks)


def _drive(
    draft: Draft, family: str, drive: tuple[Properties, str], fronts: Mapping[str, tuple[str, Properties]]
) -> Disk | None:
    properties, origin = drive
    interface = properties.get("if") or DEFAULT_DISK.get(family, "ide")
    name = properties.get("id", "")
    path = properties.get("file", "") or properties.get("file.filename", "")
    if interface == "pflash":
        draft.firmware.append(path)
        draft.device("cfi.pflash01", {"drive": name} if name else {}, origin)
        return None
    kind, front = fronts.get(name, ("", {})) if interface == "none" else _front(draft, family, interface, drive)
    media = properties.get("media", "disk")
    if not path and not any(key.startswith("file.") for key in properties):
        return None
    layout = dict(properties)
    protocol = _protocol(path, layout)
    if path.startswith("json:"):
        try:
            layout = parse_option(path[5:])
        except OptionFaultError as fault:
            draft.miss(f"{origin}: {fault}")
        protocol, _, path = _follow({}, layout, "")
    image_format = properties.get("format") or properties.get("driver", "")
    backing = layout.get("backing", layout.get("backing.file.filename"))
    return Disk(
        path=path,
        format=image_format,
        read_only=is_on(properties.get("readonly") or properties.get("read-only")) or media == "cdrom",
        shareable=is_on(front.get("share-rw")),
        snapshot=draft.snapshot or is_on(properties.get("snapshot")),
        encrypted=_encrypted(layout) or image_format == "luks",
        tls=_has_tls(layout),
        device=kind,
        origin=origin,
        id=name,
        protocol=protocol,
        backing=() if image_format == "raw" else (None if backing is None else tuple(filter(None, (backing,)))),
    )


def _front(draft: Draft, family: str, interface: str, drive: tuple[Properties, str]) -> tuple[str, Properties]:
    """The device that -drive makes by itself."""
    properties, origin = drive
    cdrom = properties.get("media") == "cdrom"
    kinds = {
        "ide": "ide-cd" if cdrom else "ide-hd",
        "scsi": "scsi-cd" if cdrom else "scsi-hd",
        "virtio": "virtio-blk-pci",
        "floppy": "floppy",
        "sd": "sd-card",
        "mtd": "cfi.pflash01",
        "xen": "xen-disk",
    }
    kind = kinds.get(interface, "")
    if not kind:
        draft.miss(f"{origin}: if={interface} is not known")
        return "", {}
    made = draft.machine.setdefault("#made", "")
    if kind == "floppy" and family == "q35" and "fdc" not in made:
        draft.machine["#made"] += "fdc "
        draft.device("isa-fdc", {}, origin)
    if interface == "scsi" and "scsi" not in made:
        draft.machine["#made"] += "scsi "
        draft.device("lsi53c895a", {}, origin)
    # A drive takes the place of a default one only where that would be.
    index = properties.get("index", "")
    if interface == "ide" and (index == "2" or cdrom):
        draft.taken.add("cdrom")
    draft.devices.append((kind, {"drive": properties["id"]} if "id" in properties else {}, origin))
    if kind == "floppy":
        draft.taken.add("floppy")
    return kind, {}


def _node_disk(draft: Draft, nodes: Mapping[str, Properties], name: str, kind: str, front: Mapping[str, str]) -> Disk:
    protocol, image_format, path = _follow(nodes, nodes[name], "")
    chain = _chain(nodes, nodes[name], "")
    top = nodes[name]
    if not path and protocol in _FILES:
        draft.miss(f"-blockdev {name}: the file below it is not named")
    return Disk(
        path=path,
        format=image_format or "raw",
        read_only=is_on(top.get("read-only")),
        shareable=is_on(front.get("share-rw")),
        snapshot=draft.snapshot,
        encrypted=_encrypted(top) or image_format == "luks",
        tls=any(_has_tls(node) for node in nodes.values() if node.get("driver") == protocol or node is top),
        device=kind,
        origin=f"-blockdev {name}",
        id=name,
        protocol=protocol,
        backing=() if image_format in ("raw", "luks", "") else chain,
    )


def _follow(nodes: Mapping[str, Properties], top: Mapping[str, str], prefix: str) -> tuple[str, str, str]:
    """(protocol, first format, path) at the bottom of a node, through filters and formats."""
    image_format = ""
    for _ in range(MAX_DEPTH):
        driver = top.get(f"{prefix}driver", "")
        if driver in FORMATS and not image_format:
            image_format = driver
        below = next((k for k in ("file", "image", "children.0", "test") if _has(top, f"{prefix}{k}")), "")
        if not below:
            path = top.get(f"{prefix}filename") or top.get(f"{prefix}url") or top.get(f"{prefix}path") or ""
            path = path or top.get(f"{prefix}server.path") or top.get(f"{prefix}server.host") or ""
            path = path or top.get(f"{prefix}host") or top.get(f"{prefix}image") or top.get(f"{prefix}pool") or ""
            return driver or _protocol(path, {}), image_format, path
        reference = top.get(f"{prefix}{below}")
        if reference is None:
            prefix = f"{prefix}{below}."
        elif reference in nodes:
            top, prefix = nodes[reference], ""
        else:
            return _protocol(reference, {}), image_format, reference
    return "", image_format, ""


def _has(top: Mapping[str, str], name: str) -> bool:
    return name in top or f"{name}.driver" in top or f"{name}.filename" in top


def _chain(nodes: Mapping[str, Properties], top: Mapping[str, str], prefix: str) -> tuple[str, ...] | None:
    """The files below, as far as the description names them; None when the image's header has the last word."""
    files: list[str] = []
    for _ in range(MAX_DEPTH):
        if top.get(f"{prefix}driver") == "raw":
            return tuple(files)
        name = f"{prefix}backing"
        if name in top:
            reference = top[name]
            if not reference:
                return tuple(files)
            if reference not in nodes:
                return (*files, reference)
            top, prefix = nodes[reference], ""
        elif f"{name}.driver" in top:
            prefix = f"{name}."
        else:
            return tuple(files) if files and top.get(f"{prefix}driver") == "raw" else None
        files.append(_follow(nodes, top, prefix)[2])
    return None


def _referenced(nodes: Mapping[str, Properties]) -> set[str]:
    found = set()
    for properties in nodes.values():
        for key, value in properties.items():
            if value in nodes and (key.rpartition(".")[2] in _EDGES or "children." in key):
                found.add(value)
    return found


def _encrypted(properties: Mapping[str, str]) -> bool:
    return any(key.startswith("encrypt.") or key in ("key-secret", "encryption-key-secret") for key in properties)


def _has_tls(properties: Mapping[str, str]) -> bool:
    return any(key.rpartition(".")[2] == "tls-creds" for key in properties)


def _protocol(path: str, properties: Mapping[str, str]) -> str:
    driver = properties.get("file.driver", "")
    if driver:
        return driver
    match = _URL.match(path)
    if match:
        return match[1]
    return "host_device" if path.startswith("/dev/") and not path.startswith("/dev/fdset") else "file"
