"""LUKS1 with a key in hand: make a header, open one, change its key, encrypt a disk. Nothing here parses hostile bytes:
`luks.inspect_luks` has accepted the header before.

Primitives are cryptography's and hashlib's. The anti-forensic splitter stretches the master key over 4000 stripes so
that losing any one of them loses the key: what a key change leaves behind on a worn disk is worth nothing in parts.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import time
import uuid
from collections.abc import Callable
from typing import Final

from casemate.errors import ImageError, InputError
from casemate.image.luks import (
    DIGEST_ITERATIONS_MIN,
    ITERATIONS_MIN,
    SECTOR_BYTES,
    SLOTS,
    STRIPES,
    LuksHeader,
    Slot,
    write_header,
)

HASH: Final = "sha512"
KEY_BYTES: Final = 64
PAYLOAD_BYTES: Final = 4 << 20
PIECE_BYTES: Final = 1 << 20
KDF_S: Final = 1.0
"""How long one derivation takes on this host when a slot is made."""

_SLOT_BYTES: Final = -(-KEY_BYTES * STRIPES // 4096) * 4096
_FIRST_SLOT_BYTES: Final = 4096


def create(secret: bytes | bytearray, iterations: int | None = None) -> tuple[LuksHeader, bytes, bytes]:
    """A new header with one slot for ``secret``: the header, everything before the data, and the master key."""
    master = os.urandom(KEY_BYTES)
    salt, digest_iterations = os.urandom(32), max(DIGEST_ITERATIONS_MIN, _measured(0.125))
    slots = tuple(Slot(False, 0, bytes(32), _FIRST_SLOT_BYTES + index * _SLOT_BYTES, STRIPES) for index in range(SLOTS))
    digest = hashlib.pbkdf2_hmac(HASH, master, salt, digest_iterations, 20)
    header = LuksHeader(HASH, KEY_BYTES, digest, salt, digest_iterations, str(uuid.uuid4()), PAYLOAD_BYTES, slots)
    header, material = fill_slot(header, 0, master, secret, iterations)
    area = bytearray(PAYLOAD_BYTES)
    first = header.slots[0].offset_bytes
    area[first : first + len(material)] = material
    encoded = write_header(header)
    area[: len(encoded)] = encoded
    return header, bytes(area), master


def fill_slot(
    header: LuksHeader, index: int, master: bytes, secret: bytes | bytearray, iterations: int | None = None
) -> tuple[LuksHeader, bytes]:
    """The header with slot ``index`` for ``secret``, and the slot's key material."""
    count = iterations if iterations is not None else max(ITERATIONS_MIN, _measured(KDF_S))
    salt = os.urandom(32)
    slot = header.slots[index]._replace(active=True, iterations=count, salt=salt)
    key = hashlib.pbkdf2_hmac(header.hash_name, secret, salt, count, header.key_bytes)
    material = crypt_sectors(key, _split(master, header.hash_name), 0, encrypt=True)
    slots = (*header.slots[:index], slot, *header.slots[index + 1 :])
    return header._replace(slots=slots), material


def unlock(
    descriptor: int, header: LuksHeader, secret: bytes | bytearray, name: str, *, at: int = 0
) -> tuple[bytes, int]:
    """The master key, and the slot that ``secret`` opens.

    Args:
        at: where the header begins in the file.

    Raises:
        InputError: it opens none.
    """
    for index, slot in enumerate(header.slots):
        if not slot.active:
            continue
        key = hashlib.pbkdf2_hmac(header.hash_name, secret, slot.salt, slot.iterations, header.key_bytes)
        size = header.key_bytes * STRIPES
        material = os.pread(descriptor, size, at + slot.offset_bytes)
        if len(material) != size:
            raise ImageError(f"encrypted image {name!r}", got="a file that is cut short")
        master = _merge(crypt_sectors(key, material, 0, encrypt=False), header)
        found = hashlib.pbkdf2_hmac(header.hash_name, master, header.digest_salt, header.digest_iterations, 20)
        if hmac.compare_digest(found, header.digest):
            return master, index
    raise InputError(f"encrypted image {name!r}", got="a key that opens none of its slots")


def encrypt_disk(
    source: int, target: int, secret: bytes | bytearray, report: Callable[[int], None], iterations: int | None = None
) -> None:
    """Write ``source``, a raw disk, encrypted into the empty file ``target``.

    Args:
        report: told the number of bytes done.
    """
    header, area, master = create(secret, iterations)
    write_at(target, area, 0)
    done = 0
    while piece := os.pread(source, PIECE_BYTES, done):
        padded = piece + bytes(-len(piece) % SECTOR_BYTES)
        sealed = crypt_sectors(master, padded, done // SECTOR_BYTES, encrypt=True)
        write_at(target, sealed, header.payload_bytes + done)
        done += len(padded)
        report(done)


def rekey(
    descriptor: int, header: LuksHeader, old: bytes | bytearray, new: bytes | bytearray, name: str, *, at: int = 0
) -> int:
    """Change the key: the new slot is on the disk before the old one goes; the number of slots that went.

    Every other active slot goes too: a key that somebody else knows would otherwise still open the disk.

    Args:
        at: where the header begins in the file.

    Raises:
        InputError: ``old`` opens nothing, or no slot is free.
    """
    master, _ = unlock(descriptor, header, old, name, at=at)
    free = next((index for index, slot in enumerate(header.slots) if not slot.active), None)
    if free is None:
        raise InputError(f"encrypted image {name!r} has no free key slot", next_step="cryptsetup luksKillSlot")
    changed, material = fill_slot(header, free, master, new)
    write_at(descriptor, material, at + changed.slots[free].offset_bytes)
    os.fsync(descriptor)
    write_at(descriptor, write_header(changed), at)
    os.fsync(descriptor)
    gone = [index for index, slot in enumerate(changed.slots) if slot.active and index != free]
    slots = list(changed.slots)
    for index in gone:
        write_at(descriptor, os.urandom(header.key_bytes * STRIPES), at + slots[index].offset_bytes)
        slots[index] = slots[index]._replace(active=False, iterations=0, salt=bytes(32))
    os.fsync(descriptor)
    write_at(descriptor, write_header(changed._replace(slots=tuple(slots))), at)
    os.fsync(descriptor)
    return len(gone)


def _measured(seconds: float) -> int:
    """Iterations of PBKDF2 that take about ``seconds`` here, in whole thousands."""
    probe = 20_000
    begin = time.process_time()
    hashlib.pbkdf2_hmac(HASH, b"probe", bytes(32), probe, KEY_BYTES)
    return max(1, int(probe * seconds / max(1e-6, time.process_time() - begin)) // 1000) * 1000


def crypt_sectors(key: bytes, data: bytes, first_sector: int, *, encrypt: bool) -> bytes:
    """AES-XTS by sectors, with the sector's number as tweak (plain64)."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    algorithm = algorithms.AES(key)
    out = bytearray()
    for at in range(0, len(data), SECTOR_BYTES):
        tweak = (first_sector + at // SECTOR_BYTES).to_bytes(16, "little")
        cipher = Cipher(algorithm, modes.XTS(tweak))
        context = cipher.encryptor() if encrypt else cipher.decryptor()
        out += context.update(data[at : at + SECTOR_BYTES])
    return bytes(out)


def _diffuse(block: bytes, hash_name: str) -> bytes:
    size = hashlib.new(hash_name).digest_size
    parts = []
    for number, at in enumerate(range(0, len(block), size)):
        part = block[at : at + size]
        parts.append(hashlib.new(hash_name, number.to_bytes(4, "big") + part).digest()[: len(part)])
    return b"".join(parts)


def _xor(one: bytes, two: bytes) -> bytes:
    return (int.from_bytes(one, "big") ^ int.from_bytes(two, "big")).to_bytes(len(one), "big")


def _split(key: bytes, hash_name: str) -> bytes:
    stripes, state = [], bytes(len(key))
    for _ in range(STRIPES - 1):
        stripe = os.urandom(len(key))
        stripes.append(stripe)
        state = _diffuse(_xor(state, stripe), hash_name)
    return b"".join((*stripes, _xor(state, key)))


def _merge(material: bytes, header: LuksHeader) -> bytes:
    size, state = header.key_bytes, bytes(header.key_bytes)
    for index in range(STRIPES - 1):
        state = _diffuse(_xor(state, material[index * size : (index + 1) * size]), header.hash_name)
    return _xor(state, material[(STRIPES - 1) * size :])


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of ``data``."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
