"""The file of a saved state: a header, records, an end; every byte is checked before an emulator reads one.

    "CASEMATE-STATE 1\\n"  17 bytes
    u32 length, header     JSON: how it is sealed, salt, the wrapped key if age wraps it
    records                u32 length, sealed record; the plain record is one letter and data:
        D data             a piece of the emulator's migration stream, at most 1 MiB
        O index, at, data  u16, u64: what an overlay (of disk ``index``) holds from there on, in ascending order; after
                           all of the stream; what no record brings is zeros
        M manifest         JSON; exactly one, the last; nothing follows it

Sealed with a key: AES-256-GCM; the nonce is the record's number, the associated data are the header's digest and
whether this is the last record, so records can be neither reordered, dropped, doubled nor moved to another file (the
STREAM construction). The key is new for each file: derived from the user's by HKDF with a random salt, or random and
wrapped by age. Without a key: each record is followed by the SHA-256 of the digest before it and itself; that finds
damage, not an attacker, and the manifest's origin is then whoever may write the file.

Reading is done twice: `scan` goes through everything and gives the manifest and a digest per record; `pieces` gives the
stream again, `overlay_pieces` the overlays, each record checked against what `scan` saw.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from casemate.errors import InputError

MAGIC: Final = b"CASEMATE-STATE 1\n"
PIECE_BYTES: Final = 1 << 20
HEADER_MAX_BYTES: Final = 64 * 1024
MANIFEST_MAX_BYTES: Final = 1 << 20
_OVERLAY: Final = struct.Struct(">HQ")
OVERLAY_PIECE_BYTES: Final = PIECE_BYTES - _OVERLAY.size
_RECORD_MAX_BYTES: Final = PIECE_BYTES + 1 + 32
_LENGTH: Final = struct.Struct(">I")
_PURPOSE: Final = b"casemate saved state 1"


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``sealing``: ``none``, ``key`` or ``age``. ``salt`` and ``wrapped`` (age's file) are base64."""

    sealing: str
    salt: str = ""
    wrapped: str = ""


class SavedOverlay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An overlay in the file: its size, and the SHA-256 of all of it, zeros included."""

    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the state belongs to. ``spec``: the specification as JSON; ``hardware_sha256``: of the emulator's arguments
    that make the machine; ``files``: role -> SHA-256 of kernel, initrd and disks; ``overlays``: role -> what the file
    itself brings of it."""

    name: str
    saved_at: str
    spec: str
    spec_sha256: str
    hardware_sha256: str
    machine: str
    accel: str
    qemu_version: str
    files: dict[str, str]
    guest_prepared: bool
    stream_bytes: int
    overlays: dict[str, SavedOverlay] = {}


class OverlayPiece(NamedTuple):
    """Some bytes of the overlay of a disk, by the disk's number."""

    disk: int
    offset: int
    data: bytes


def derive_key(secret: bytes | bytearray, salt: bytes) -> bytes:
    """The key of one file out of the user's secret, which must be a key itself (32 bytes or more), never a password."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=_PURPOSE).derive(bytes(secret))


class StateWriter:
    """Writes one file to an open descriptor.

    Args:
        key: of `derive_key`, or the random one that ``header.wrapped`` holds; None with sealing ``none``.
    """

    def __init__(self, descriptor: int, header: Header, key: bytes | None) -> None:
        if (key is None) != (header.sealing == "none"):
            raise RuntimeError("a key goes with a sealing, and only with one")
        self._descriptor = descriptor
        self.stream_bytes = 0
        encoded = msgspec.json.encode(header)
        self._sealer = _Sealer(encoded, key)
        _write(descriptor, MAGIC + _LENGTH.pack(len(encoded)) + encoded)

    def data(self, piece: bytes) -> None:
        """One piece of the stream, at most `PIECE_BYTES`."""
        self.stream_bytes += len(piece)
        self._record(b"D" + piece, last=False)

    def overlay(self, piece: OverlayPiece) -> None:
        """Some of an overlay, at most `OVERLAY_PIECE_BYTES`."""
        self._record(b"O" + _OVERLAY.pack(piece.disk, piece.offset) + piece.data, last=False)

    def finish(self, manifest: Manifest) -> None:
        """The last record."""
        self._record(b"M" + msgspec.json.encode(manifest), last=True)

    def _record(self, plain: bytes, *, last: bool) -> None:
        sealed = self._sealer.seal(plain, last=last)
        _write(self._descriptor, _LENGTH.pack(len(sealed)) + sealed)


class StateReader:
    """Reads one file from a seekable descriptor. Order: `header`, `unlock`, `scan`, `pieces`."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor, self._name = descriptor, name
        self._at = 0
        if self._exactly(len(MAGIC)) != MAGIC:
            raise self._refused("something else than a saved state")
        size = self._length(HEADER_MAX_BYTES)
        self._encoded = self._exactly(size)
        try:
            self.header = msgspec.json.decode(self._encoded, type=Header)
        except (msgspec.MsgspecError, UnicodeDecodeError) as fault:
            raise self._refused(f"a header that makes no sense: {str(fault)[:120]}") from None
        if self.header.sealing not in {"none", "key", "age"}:
            raise self._refused(f"a sealing that this version does not know: {self.header.sealing[:40]!r}")
        self._start = self._at
        self._key: bytes | None = None
        self._digests: list[bytes] | None = None

    def salt(self) -> bytes:
        """The header's salt."""
        return self._decoded(self.header.salt)

    def wrapped(self) -> bytes:
        """What age wrapped."""
        return self._decoded(self.header.wrapped)

    def _decoded(self, text: str) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:
            raise self._refused("a header that makes no sense: base64") from None

    def unlock(self, key: bytes | None) -> None:
        """Take the key; None for a file that has none."""
        if (key is None) != (self.header.sealing == "none"):
            raise RuntimeError("a key goes with a sealing, and only with one")
        self._key = key

    def scan(self) -> Manifest:
        """Read everything once.

        Raises:
            InputError: damaged, cut short, continued, or sealed with another key.
        """
        digests, manifest, stream_bytes = [], None, 0
        pieces: dict[int, int] = {}
        for plain in self._records():
            digests.append(hashlib.sha256(plain).digest())
            if plain[:1] == b"D":
                stream_bytes += len(plain) - 1
            elif plain[:1] == b"O":
                self._follow(_piece_of(plain), pieces)
            else:
                manifest = plain[1:]
        if manifest is None or len(manifest) > MANIFEST_MAX_BYTES:
            raise self._refused("no manifest")
        try:
            found = msgspec.json.decode(manifest, type=Manifest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as fault:
            raise self._refused(f"a manifest that makes no sense: {str(fault)[:120]}") from None
        if found.stream_bytes != stream_bytes:
            raise self._refused(f"{stream_bytes} bytes of state where its manifest says {found.stream_bytes}")
        for index, end_bytes in pieces.items():
            overlay = found.overlays.get(f"overlay{index}")
            if overlay is None or end_bytes > overlay.size_bytes:
                raise self._refused(f"{end_bytes} bytes of overlay{index}, of which its manifest does not know")
        self._digests = digests
        return found

    def _follow(self, piece: OverlayPiece, ends: dict[int, int]) -> None:
        """Pieces of an overlay come in order and do not overlap; ``ends`` keeps where each overlay is."""
        if piece.offset < ends.get(piece.disk, 0) or (not piece.data):
            raise self._refused("pieces of an overlay in an order that no file has")
        ends[piece.disk] = piece.offset + len(piece.data)

    def pieces(self) -> Iterator[bytes]:
        """The emulator's stream, as `scan` saw it.

        Raises:
            InputError: the file changed since.
        """
        for plain in self._as_scanned():
            if plain[:1] != b"D":
                return
            yield plain[1:]

    def overlay_pieces(self) -> Iterator[OverlayPiece]:
        """The overlays, as `scan` saw them; errors of `pieces`."""
        for plain in self._as_scanned():
            if plain[:1] == b"O":
                yield _piece_of(plain)

    def _as_scanned(self) -> Iterator[bytes]:
        if self._digests is None:
            raise RuntimeError("StateReader: a file is read before scan()")
        expected = iter(self._digests)
        for plain in self._records():
            if not hmac.compare_digest(hashlib.sha256(plain).digest(), next(expected, b"")):
                raise self._refused("another content than a moment ago")
            yield plain

    def _records(self) -> Iterator[bytes]:
        self._at = self._start
        sealer = _Sealer(self._encoded, self._key)
        end, before = os.fstat(self._descriptor).st_size, b"D"
        while True:
            size = self._length(max(_RECORD_MAX_BYTES, MANIFEST_MAX_BYTES + 1 + 32))
            sealed = self._exactly(size)
            last = self._at == end
            plain = sealer.open(sealed, last=last)
            if plain is None or not plain:
                raise self._refused("damage, or another key" if self._key is not None else "damage")
            kind = plain[:1]
            if (kind == b"M") != last or kind not in {b"D": b"DOM", b"O": b"OM"}[before]:
                raise self._refused("records in an order that no file has")
            before = kind
            yield plain
            if last:
                return

    def _length(self, limit: int) -> int:
        (size,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if not 0 < size <= limit:
            raise self._refused(f"a part of {size} bytes where at most {limit} can be")
        return int(size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = os.pread(self._descriptor, size - len(data), self._at + len(data))
            if not piece:
                raise self._refused("a file that is cut short")
            data += piece
        self._at += size
        return data

    def _refused(self, got: str) -> InputError:
        return InputError(
            f"saved state {self._name!r}", got=got, expected="what casemate save wrote", next_step="save the VM again"
        )


def _piece_of(plain: bytes) -> OverlayPiece:
    if len(plain) <= _OVERLAY.size:
        return OverlayPiece(0, 0, b"")  # refused as a piece of nothing
    index, offset = _OVERLAY.unpack_from(plain, 1)
    return OverlayPiece(index, offset, plain[1 + _OVERLAY.size :])


class _Sealer:
    """Seals or opens the records of one file, in order."""

    def __init__(self, header: bytes, key: bytes | None) -> None:
        self._number = 0
        self._context = hashlib.sha256(MAGIC + header).digest()
        self._chain = self._context
        self._cipher = None
        if key is not None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self._cipher = AESGCM(key)

    def seal(self, plain: bytes, *, last: bool) -> bytes:
        if self._cipher is None:
            self._chain = hashlib.sha256(self._chain + plain).digest()
            return plain + self._chain
        return self._cipher.encrypt(self._nonce(), plain, self._context + (b"last" if last else b"more"))

    def open(self, sealed: bytes, *, last: bool) -> bytes | None:
        """The plain record; None when it is not genuine."""
        if self._cipher is None:
            plain, digest = sealed[:-32], sealed[-32:]
            self._chain = hashlib.sha256(self._chain + plain).digest()
            return plain if hmac.compare_digest(digest, self._chain) else None
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(self._nonce(), sealed, self._context + (b"last" if last else b"more"))
        except InvalidTag:
            return None

    def _nonce(self) -> bytes:
        self._number += 1
        return self._number.to_bytes(12, "big")


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
