"""shim: what it measures of itself and of what it starts (rhboot/shim: mok.c, sbat.c, tpm.c, verify in shim.c).

PCR 14: what it trusts and revokes beside the firmware (MokList, MokListX), and whether the kernel may trust it, too;
PCR 7: the revocation level (SbatLevel) and, under Secure Boot, the certificate that vouches for the second stage;
PCR 4: the second stage. Its .vendor_cert begins with sizes and offsets of what it trusts and what it revokes;
.sbatlevel with a version and the offsets of two levels, of which the first is applied by itself.
"""

from __future__ import annotations

import re
import struct
from typing import Final

from casemate.errors import InputError
from casemate.measure.boot import Platform
from casemate.measure.fat import Fat
from casemate.measure.pe import Pe, parse_pe
from casemate.measure.registers import Steps
from casemate.measure.secureboot import Authority, measure_authority, vouched_by, vouches
from casemate.measure.siglists import SHA256, X509, signature_list
from casemate.measure.variables import SECURITY, SHIM, Variables, variable_event

SECOND_STAGE: Final = "grubx64.efi"
_ORIGINAL_LEVEL: Final = b"sbat,1,2021030218\n"
_LEVEL: Final = re.compile(rb"sbat,1,(\d{10})\n")
_RUNTIME_LIST: Final = "MokListRT"
_FOLDER_FILES: Final = ("shim_certificate", "revocations")
"""What shim takes in from its own folder, by the beginning of the name."""


class Vendor:
    """What vouches for what shim starts: db, then the vendor's certificate. Each is measured once."""

    def __init__(self, steps: Steps, platform: Platform, image: Pe) -> None:
        self._steps = steps
        self._enforcing = platform.is_enforcing
        self._database = platform.variables.get((SECURITY, "db"), b"")
        self._vendor = _vendor_certificate(image)
        self._measured: set[bytes] = set()

    def start(self, data: bytes, what: str) -> Pe:
        """shim starts an image, which it measures with and without Secure Boot.

        Raises:
            InputError: it is none, or shim refuses it.
        """
        image = parse_pe(data, what)
        if self._enforcing:
            self._vouch(image, what)
        self._steps.digest(4, what, image.digest)
        return image

    def check(self, data: bytes, what: str, checked: int, loaded: int) -> None:
        """A boot loader starts a kernel, which is measured ``checked`` times with Secure Boot, ``loaded`` without.

        Raises:
            InputError: as `start`.
        """
        image = parse_pe(data, what)
        if self._enforcing:
            self._vouch(image, what)
        for _ in range(checked if self._enforcing else loaded):
            self._steps.digest(4, what, image.digest)

    def _vouch(self, image: Pe, what: str) -> None:
        entry = vouches(image, self._database)
        if entry is not None:
            if entry.measured not in self._measured:
                measure_authority(self._steps, "db", entry)
        elif self._vendor is not None and vouched_by(image, self._vendor):
            entry = Authority(SHIM.bytes_le, self._vendor, True)
            if entry.measured not in self._measured:
                event = variable_event(SHIM, _RUNTIME_LIST, entry.measured)
                self._steps.data(7, "authority: the vendor's certificate in shim", event)
        else:
            raise InputError(f"shim refuses {what}", got="nothing in db or in shim itself vouches for it")
        self._measured.add(entry.measured)


def is_shim(image: Pe) -> bool:
    """Whether it is shim 15.7 or newer."""
    return image.section(".sbatlevel") is not None and image.section(".vendor_cert") is not None


def unpredictable(volume: Fat, folder: str, variables: Variables) -> str:
    """Why what shim does cannot be told; empty when it can."""
    if volume.file(f"{folder}/fbx64.efi") is not None:
        return "shim's fallback (fbx64.efi) writes boot entries and may restart"
    taken = sorted(name for name in volume.names(folder) or () if name.lower().startswith(_FOLDER_FILES))
    if taken:
        return f"shim takes in {', '.join(taken)}"
    mine = sorted(name for vendor, name in variables if vendor == SHIM and name.startswith(("Mok", "Sbat")))
    if [name for name in mine if name != "SbatLevel"]:
        return f"the variable store holds {', '.join(mine)}, which changes what shim trusts"
    return ""


def measure_lists(steps: Steps, image: Pe) -> None:
    """What shim trusts and revokes by itself, while the variable store holds no lists of the machine's owner. A list
    that would be empty has one digest of zeros."""
    trusted, revoked = _vendor_lists(image)
    if trusted[:1] == b"\x30":
        trusted = signature_list(X509, SHIM.bytes_le, trusted)
    steps.data(14, "MokList", trusted or _NOTHING)
    steps.data(14, "MokListX", revoked or _NOTHING)
    steps.data(14, "MokListTrusted", b"\x01")


def _vendor_lists(image: Pe) -> tuple[bytes, bytes]:
    """(what a vendor built in to be trusted: one certificate, or a list; what to be revoked)."""
    section = image.section(".vendor_cert") or b""
    if len(section) < 16:
        raise InputError("shim's .vendor_cert", got=f"{len(section)} bytes")
    trusted_size, revoked_size, trusted_at, revoked_at = struct.unpack_from("<IIII", section)
    found = section[trusted_at : trusted_at + trusted_size], section[revoked_at : revoked_at + revoked_size]
    if (len(found[0]), len(found[1])) != (trusted_size, revoked_size):
        raise InputError("shim's .vendor_cert", got="a list that is cut off")
    return found


_NOTHING: Final = signature_list(SHA256, SHIM.bytes_le, bytes(32))


def measure_level(steps: Steps, platform: Platform, image: Pe) -> None:
    """The level of revocations that shim sets, or finds."""
    automatic = _automatic_level(image) if platform.is_enforcing else _ORIGINAL_LEVEL
    found = platform.variables.get((SHIM, "SbatLevel"), b"")
    level = found if found and _date(found) >= _date(automatic) else automatic
    steps.data(7, "variable SbatLevel", variable_event(SHIM, "SbatLevel", level))


def _automatic_level(image: Pe) -> bytes:
    section = image.section(".sbatlevel") or b""
    if len(section) < 12:
        raise InputError("shim's .sbatlevel", got=f"{len(section)} bytes")
    version, offset = struct.unpack_from("<II", section)
    level = section[4 + offset :].split(b"\0", 1)[0]
    if version != 0 or not _LEVEL.match(level):
        raise InputError("shim's .sbatlevel", got="another form", expected="a level that begins sbat,1,DATE")
    return level


def _date(level: bytes) -> bytes:
    found = _LEVEL.match(level)
    return found[1] if found else b""


def _vendor_certificate(image: Pe) -> bytes | None:
    """The one certificate that a vendor built in; None when it is none, or a list of them."""
    try:
        found, _ = _vendor_lists(image)
    except InputError:
        return None
    return found if found[:1] == b"\x30" else None
