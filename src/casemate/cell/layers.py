"""RAID, volume groups and encrypted volumes, opened inside the guest with the distribution's own tools.

Nothing is written: the disks are read-only, so `mdadm --readonly`, `lvm --readonly`-like settings and `cryptsetup
--readonly` are what works at all. No udev runs in the guest: the tools make their device nodes themselves.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from casemate.cell.model import Volume
from casemate.cell.session import Session

_LVM_CONFIG = (
    "activation{udev_sync=0 udev_rules=0 monitoring=0} global{use_lvmpolld=0 use_lvmlockd=0 event_activation=0}"
    " devices{use_devicesfile=0 obtain_device_list_from_udev=0 external_device_info_source=none"
    ' filter=["a#^/dev/(vd|md|mapper/luks-)#","r#.*#"]}'
    " backup{backup=0 archive=0}"
)
_DM_MODULES = ("dm_mod", "dm_mirror", "dm_raid", "dm_snapshot", "dm_thin_pool")
_CRYPT_MODULES = (
    *("dm_mod", "dm_crypt", "xts", "cbc", "essiv", "ecb", "aes_generic", "sha256_generic", "sha512_generic"),
    *("twofish_generic", "serpent_generic", "algif_skcipher", "algif_hash"),
)
_RAID_MODULES = ("md_mod", "linear", "raid0", "raid1", "raid10", "raid456")


def open_layers(session: Session, found: dict[str, Volume], keys: Sequence[bytes]) -> bool:
    """Open what has not been tried; ``found`` gets notes about what did not open.

    Returns:
        True when a tool ran, so that there may be new devices.
    """
    kinds = {"linux_raid_member": _assemble, "LVM2_member": _activate}
    ran = False
    for content, open_one in kinds.items():
        members = [volume for volume in found.values() if volume.content == content and not _was_tried(volume)]
        if members:
            said = open_one(session, members)
            for volume in members:
                found[volume.name] = _mark(volume, said)
            ran = True
    for volume in tuple(found.values()):
        if volume.content == "crypto_LUKS" and not _was_tried(volume):
            said = _unlock(session, volume, keys) if keys else _NO_KEY
            found[volume.name] = _mark(volume, said)
            ran = ran or said == _OPENED
    return ran


_OPENED = "opened: what is inside is listed beside it"
_NO_KEY = "encrypted; --key-file FILE or --key-fd N opens it"


def _was_tried(volume: Volume) -> bool:
    return any(note.startswith(("opened", "encrypted", "could not be opened")) for note in volume.notes)


def _mark(volume: Volume, said: str) -> Volume:
    return msgspec.structs.replace(volume, notes=(*volume.notes, said))


def _assemble(session: Session, members: list[Volume]) -> str:
    session.load(*_RAID_MODULES)
    session.send_tools("mdadm")
    devices = tuple(f"/dev/{member.name}" for member in members)
    session.put("/etc/mdadm/mdadm.conf", b"DEVICE " + " ".join(devices).encode() + b"\nHOMEHOST <ignore>\n")
    session.put("/run/mdadm/map", b"")
    status, said = session.run(("/sbin/mdadm", "--assemble", "--scan", "--readonly", "--run"))
    return _outcome(status, said)


def _activate(session: Session, members: list[Volume]) -> str:
    session.load(*_DM_MODULES)
    session.send_tools("lvm2")
    session.put("/run/lock/lvm/.keep", b"")
    status, said = session.run(
        ("/sbin/lvm", "vgchange", "--activate", "y", "--activationmode", "partial", "--config", _LVM_CONFIG)
    )
    if status == 0:
        session.run(("/sbin/lvm", "vgmknodes", "--config", _LVM_CONFIG))
    return _outcome(status, said)


def _unlock(session: Session, volume: Volume, keys: Sequence[bytes]) -> str:
    session.load(*_CRYPT_MODULES)
    session.send_tools("cryptsetup-bin")
    session.put("/run/cryptsetup/.keep", b"")
    mapped = volume.name.replace("-", "--").replace("/", "-", 1)
    source = f"/dev/mapper/{mapped}" if "/" in volume.name else f"/dev/{volume.name}"
    inner = f"luks-{volume.name.replace('/', '-')}"
    said = ""
    for key in keys:
        status, said = session.run(
            ("/sbin/cryptsetup", "open", "--readonly", "--type", "luks", "--key-file", "-", source, inner),
            key,
        )
        if status == 0:
            return _OPENED
    return f"could not be opened with the given key: {_clean(said)}"


def _outcome(status: int, said: str) -> str:
    if status == 0:
        return _OPENED
    return f"could not be opened (status {os.waitstatus_to_exitcode(status & 0xFFFF)}): {_clean(said)}"


def _clean(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    text = "; ".join(lines[-3:])
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:300]
