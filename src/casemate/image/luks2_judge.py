"""Is this LUKS2 header one that may be opened with a secret? Pure; every fault at once.

cryptsetup does what a header says, and a header is whoever wrote the disk's. One that names a null cipher for a key
slot opens with any passphrase (CVE-2025-59054, CVE-2025-58356; cryptsetup 2.8.1 refuses it), one that names it for the
data hands the guest a plain disk of the attacker's, and neither is said to anybody. So a header is copied first, the
copy is judged, and the copy is what is opened (`cryptsetup open --header`): the disk may change in between.

1. The copies are whole and agree.
2. One segment: the rest of the volume, encrypted with AES-XTS, without authentication tags or flags of a reencryption.
3. Key slots as many as expected, each AES-XTS with a derivation that we know, its material between headers and data.
4. One digest, over all key slots and the segment.
5. No requirements, no flags, no tokens beyond those expected.
6. The very header that the owner measured, where he gives its digest.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import msgspec

from casemate.image.luks2 import Area, Digest, Kdf, Keyslot, Luks2Header, Metadata, Segment

CIPHER: Final = "aes-xts-plain64"
KEY_BYTES: Final = (32, 64)
HASHES: Final = ("sha256", "sha512")
STRIPES: Final = 4000
SECTORS: Final = (512, 1024, 2048, 4096)
PBKDF2_ITERATIONS: Final = range(1000, 1 << 30)
"""cryptsetup's own least; a key that a broker releases has 256 bits, and nothing to stretch."""
ARGON2_TIME, ARGON2_KIB, ARGON2_CPUS = range(1, 64), range(32, (4 << 20) + 1), range(1, 9)
"""Bounds of the specification, and one on time: a header must not keep its reader busy for a day."""
DIGEST_BYTES: Final = 32
_BLOCK: Final = 4096


class Luks2Wanted(msgspec.Struct, frozen=True):
    """What the owner expects. ``digest``: of the header (SHA-256 over both copies), empty: not known. ``uuid``: the
    same. ``flags``: of the configuration, such as ``allow-discards``."""

    keyslots: int = 1
    tokens: int = 0
    digest: str = ""
    uuid: str = ""
    flags: tuple[str, ...] = ()


class Luks2Fault(msgspec.Struct, frozen=True):
    """``code``: stable, for programs."""

    code: str
    message: str


def judge_luks2(header: Luks2Header, volume_bytes: int, wanted: Luks2Wanted) -> tuple[Luks2Fault, ...]:
    """Every reason not to open the volume with this header.

    Args:
        volume_bytes: how large the volume is, or the copy of its beginning.
    """
    metadata = header.metadata
    found = [Luks2Fault("copies", text) for text in header.faults]
    found += _segments(metadata, header.first.size_bytes, volume_bytes)
    found += _keyslots(metadata, header.first.size_bytes, wanted)
    found += _digests(metadata)
    found += _rest(metadata, header, wanted)
    if wanted.digest and header.digest != wanted.digest:
        found.append(Luks2Fault("digest-of-header", f"the header is {header.digest}, expected {wanted.digest}"))
    if wanted.uuid and header.first.uuid != wanted.uuid:
        found.append(Luks2Fault("uuid", f"the volume is {header.first.uuid}, expected {wanted.uuid}"))
    return tuple(found)


# ---- 2. segments -----------------------------------------------------------------------------------------------------


def _segments(metadata: Metadata, copy_bytes: int, volume_bytes: int) -> Iterator[Luks2Fault]:
    if list(metadata.segments) != ["0"]:
        yield Luks2Fault("segments", f"segments {', '.join(metadata.segments) or 'none'}; expected one, number 0")
    for name, segment in metadata.segments.items():
        yield from (Luks2Fault(code, f"segment {name}: {text}") for code, text in _segment(segment))
        begin = int(segment.offset)
        if begin < 2 * copy_bytes or begin > volume_bytes or begin % _BLOCK:
            yield Luks2Fault("segment.offset", f"segment {name} begins at byte {begin} of {volume_bytes}")


def _segment(segment: Segment) -> Iterator[tuple[str, str]]:
    if segment.type != "crypt":
        yield "segment.type", f"is {segment.type}, not encrypted"
    if segment.encryption != CIPHER:
        yield "segment.cipher", f"cipher {segment.encryption or 'none'}; expected {CIPHER}"
    if segment.size != "dynamic":
        yield "segment.size", f"size {segment.size}; expected all that is left"
    if segment.iv_tweak != "0" or segment.sector_size not in SECTORS:
        yield "segment.sectors", f"sectors of {segment.sector_size} bytes, first number {segment.iv_tweak}"
    if segment.integrity is not None:
        yield "segment.integrity", "has integrity tags, which nobody here asked for"
    if segment.flags:
        yield "segment.flags", f"flags {', '.join(segment.flags)}: a reencryption, or a backup"


# ---- 3. key slots ----------------------------------------------------------------------------------------------------


def _keyslots(metadata: Metadata, copy_bytes: int, wanted: Luks2Wanted) -> Iterator[Luks2Fault]:
    if len(metadata.keyslots) != wanted.keyslots:
        yield Luks2Fault("keyslots", f"{len(metadata.keyslots)} key slots; expected {wanted.keyslots}")
    end = min((int(segment.offset) for segment in metadata.segments.values()), default=0)
    end = min(end, 2 * copy_bytes + int(metadata.config.keyslots_size))
    areas: list[tuple[int, int, str]] = []
    for name, slot in metadata.keyslots.items():
        yield from (Luks2Fault(code, f"key slot {name}: {text}") for code, text in _keyslot(slot))
        begin, size = int(slot.area.offset), int(slot.area.size)
        if begin < 2 * copy_bytes or begin + size > end or begin % _BLOCK:
            yield Luks2Fault("keyslot.area", f"key slot {name}: its material lies at {begin} to {begin + size}")
        areas.append((begin, begin + size, name))
    areas.sort()
    for one, two in pairwise(areas):
        if one[1] > two[0]:
            yield Luks2Fault("keyslot.overlap", f"key slots {one[2]} and {two[2]} overlap")


def _keyslot(slot: Keyslot) -> Iterator[tuple[str, str]]:
    if slot.type != "luks2":
        yield "keyslot.type", f"is {slot.type}: a reencryption, or what nobody knows"
    if slot.key_size not in KEY_BYTES:
        yield "keyslot.key", f"a volume key of {slot.key_size} bytes; expected 32 or 64"
    if slot.af.type != "luks1" or slot.af.stripes != STRIPES or slot.af.hash not in HASHES:
        yield "keyslot.splitter", f"splitter {slot.af.type}, {slot.af.stripes} stripes, {slot.af.hash}"
    if slot.priority is not None and slot.priority > 2:
        yield "keyslot.priority", f"priority {slot.priority}"
    yield from _area(slot.area, slot.key_size)
    yield from _kdf(slot.kdf)


def _area(area: Area, key_bytes: int) -> Iterator[tuple[str, str]]:
    if area.type != "raw":
        yield "keyslot.area-type", f"material of type {area.type}"
    if area.encryption != CIPHER or area.key_size not in KEY_BYTES:
        yield "keyslot.cipher", f"cipher {area.encryption} with {area.key_size} key bytes; expected {CIPHER}, 32 or 64"
    if int(area.size) < key_bytes * STRIPES:
        yield "keyslot.area-size", f"{area.size} bytes of material; {key_bytes * STRIPES} are needed"


def _kdf(kdf: Kdf) -> Iterator[tuple[str, str]]:
    if len(_octets(kdf.salt)) < 16:
        yield "keyslot.salt", "a salt of less than 16 bytes"
    if kdf.type == "pbkdf2":
        if kdf.hash not in HASHES or kdf.iterations not in PBKDF2_ITERATIONS:
            yield "keyslot.kdf", f"pbkdf2 with {kdf.hash}, {kdf.iterations} iterations"
    elif kdf.type in ("argon2i", "argon2id"):
        if kdf.time not in ARGON2_TIME or kdf.memory not in ARGON2_KIB or kdf.cpus not in ARGON2_CPUS:
            yield "keyslot.kdf", f"{kdf.type} with time {kdf.time}, {kdf.memory} KiB, {kdf.cpus} CPUs"
    else:
        yield "keyslot.kdf", f"derivation {kdf.type}"


# ---- 4. digests ------------------------------------------------------------------------------------------------------


def _digests(metadata: Metadata) -> Iterator[Luks2Fault]:
    if list(metadata.digests) != ["0"]:
        yield Luks2Fault("digests", f"digests {', '.join(metadata.digests) or 'none'}; expected one, number 0")
    for name, digest in metadata.digests.items():
        yield from (Luks2Fault(code, f"digest {name}: {text}") for code, text in _digest(digest))
        if sorted(digest.keyslots) != sorted(metadata.keyslots) or list(digest.segments) != ["0"]:
            slots, segments = ", ".join(digest.keyslots), ", ".join(digest.segments)
            yield Luks2Fault("digest.covers", f"digest {name} is of key slots {slots} and segments {segments}")


def _digest(digest: Digest) -> Iterator[tuple[str, str]]:
    if digest.type != "pbkdf2" or digest.hash not in HASHES or digest.iterations not in PBKDF2_ITERATIONS:
        yield "digest.kind", f"{digest.type} with {digest.hash}, {digest.iterations} iterations"
    if len(_octets(digest.digest)) < DIGEST_BYTES or len(_octets(digest.salt)) < 16:
        yield "digest.size", "shorter than the keys that it tells apart"


# ---- 5. the rest -----------------------------------------------------------------------------------------------------


def _rest(metadata: Metadata, header: Luks2Header, wanted: Luks2Wanted) -> Iterator[Luks2Fault]:
    config = metadata.config
    if int(config.json_size) != header.first.size_bytes - _BLOCK or int(config.keyslots_size) % _BLOCK:
        yield Luks2Fault("config", f"areas of {config.json_size} and {config.keyslots_size} bytes")
    if config.requirements:
        yield Luks2Fault("requirements", f"requirements {str(config.requirements)[:80]}: a reencryption in progress")
    if tuple(sorted(config.flags)) != tuple(sorted(wanted.flags)):
        yield Luks2Fault(
            "flags", f"flags {', '.join(config.flags) or 'none'}; expected {', '.join(wanted.flags) or 'none'}"
        )
    if len(metadata.tokens) != wanted.tokens:
        yield Luks2Fault("tokens", f"{len(metadata.tokens)} tokens; expected {wanted.tokens}")


def _octets(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
