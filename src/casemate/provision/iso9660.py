"""A small, flat ISO 9660 image with Rock Ridge and Joliet names: a handful of files in the root directory, no more.

    sector 0-15   empty (system area)
    16            primary volume descriptor          17  Joliet supplementary descriptor       18  terminator
    19, 20        path table, little and big endian  21, 22  the same for Joliet
    23            root directory, with Rock Ridge    24  root directory, Joliet                25  Rock Ridge's ER entry
    26…           the files, each from a sector boundary

Sources: ECMA-119; Joliet specification (Microsoft, 1995); SUSP and RRIP (IEEE P1281, P1282). Linux takes Rock Ridge,
Windows and the BSDs Joliet; plain ECMA-119 names are upper case and serve nobody here. Files are mode 0400, root's.

Every byte is decided by the arguments: the same files give the same image.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

SECTOR_BYTES = 2048
FILES_MAX = 8
FILE_MAX_BYTES = 4 << 20

_FIRST_FILE_SECTOR = 26
_ROOT, _JOLIET_ROOT, _CONTINUATION = 23, 24, 25
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,29}")
_EPOCH = bytes((80, 1, 1, 0, 0, 0, 0))
"""1980-01-01 00:00 UTC as a directory record writes it: years since 1900, month, day, time, zone."""

_ER = (
    b"RRIP_1991A",
    b"THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS",
    b"SEE PUBLISHER FOR SPECIFICATION",
)


def write_iso(files: Sequence[tuple[str, bytes | bytearray]], label: str) -> bytearray:
    """The image of ``files`` (name, content) as a new bytearray, which the caller may wipe.

    Args:
        label: volume label, A-Z 0-9 _ only, at most 16 characters.

    Raises:
        ValueError: a name, a label or a size that does not fit.
    """
    _check(files, label)
    placed = []
    sector = _FIRST_FILE_SECTOR
    for name, content in sorted(files, key=lambda item: item[0]):
        placed.append((name, sector, len(content)))
        sector += max(1, -(-len(content) // SECTOR_BYTES))
    image = bytearray(sector * SECTOR_BYTES)

    def put(at: int, data: bytes | bytearray) -> None:
        image[at * SECTOR_BYTES : at * SECTOR_BYTES + len(data)] = data

    put(16, _descriptor(label, sector, joliet=False))
    put(17, _descriptor(label, sector, joliet=True))
    put(18, b"\xffCD001\x01")
    for at, root in ((19, _ROOT), (21, _JOLIET_ROOT)):
        put(at, struct.pack("<BBIHBB", 1, 0, root, 1, 0, 0))
        put(at + 1, struct.pack(">BBIHBB", 1, 0, root, 1, 0, 0))
    put(_ROOT, _root(placed, joliet=False))
    put(_JOLIET_ROOT, _root(placed, joliet=True))
    put(_CONTINUATION, _er())
    contents = dict(files)
    for name, at, _ in placed:
        put(at, contents[name])
    return image


def _check(files: Sequence[tuple[str, bytes | bytearray]], label: str) -> None:
    names = [name for name, _ in files]
    if not re.fullmatch(r"[A-Z0-9_]{1,16}", label):
        raise ValueError(f"a volume label is 1 to 16 of A-Z 0-9 _, got {label!r}")
    if not 1 <= len(files) <= FILES_MAX or len({_plain(name) for name in names}) != len(names):
        raise ValueError(f"1 to {FILES_MAX} files with different names, got {names!r}")
    for name, content in files:
        if not _NAME.fullmatch(name):
            raise ValueError(f"a name is 1 to 30 of a-z 0-9 . _ -, got {name!r}")
        if len(content) > FILE_MAX_BYTES:
            raise ValueError(f"{name} has {len(content)} bytes, at most {FILE_MAX_BYTES}")


def _plain(name: str) -> str:
    """The ECMA-119 name, which only a reader without extensions sees."""
    stem = re.sub(r"[^A-Z0-9]", "_", name.upper().replace("-", "_"))
    return f"{stem[:30]}.;1"


def _both32(value: int) -> bytes:
    return struct.pack("<I", value) + struct.pack(">I", value)


def _both16(value: int) -> bytes:
    return struct.pack("<H", value) + struct.pack(">H", value)


def _text(text: str, size: int, *, joliet: bool) -> bytes:
    """A padded field: ASCII with spaces, or UCS-2 big endian with spaces."""
    if not joliet:
        return text.encode("ascii").ljust(size)
    raw = text.encode("utf-16-be")[: size & ~1]
    return (raw + b"\0 " * size)[: size & ~1].ljust(size, b"\0")


def _descriptor(label: str, sectors: int, *, joliet: bool) -> bytes:
    root = _record(b"\0", _JOLIET_ROOT if joliet else _ROOT, SECTOR_BYTES, directory=True)
    never = b"0" * 16 + b"\0"
    date = b"1980010100000000\0"
    table = 21 if joliet else 19
    blank = {size: _text("", size, joliet=joliet) for size in (32, 36, 37, 128)}
    parts = (
        b"\x02CD001\x01\0" if joliet else b"\x01CD001\x01\0",
        blank[32],
        _text(label, 32, joliet=joliet),
        bytes(8),
        _both32(sectors),
        b"%/E".ljust(32, b"\0") if joliet else bytes(32),  # UCS-2 level 3
        _both16(1),
        _both16(1),
        _both16(SECTOR_BYTES),
        _both32(10),
        struct.pack("<II", table, 0),
        struct.pack(">II", table + 1, 0),
        root,
        blank[128] * 4,
        blank[37] * 3,
        date * 2,
        never * 2,
        b"\x01\0",
    )
    return b"".join(parts)


def _record(identifier: bytes, sector: int, size: int, *, directory: bool = False, use: bytes = b"") -> bytes:
    """One directory record (ECMA-119 9.1), of even length."""
    body = _both32(sector) + _both32(size) + _EPOCH + bytes((2 if directory else 0, 0, 0)) + _both16(1)
    body += bytes((len(identifier),)) + identifier
    if len(identifier) % 2 == 0:
        body += b"\0"
    body += use
    body += b"\0" * (len(body) % 2)
    return bytes((len(body) + 2, 0)) + body


def _root(placed: Sequence[tuple[str, int, int]], *, joliet: bool) -> bytes:
    here = _JOLIET_ROOT if joliet else _ROOT
    own = b"" if joliet else _px(0o040500, 2)
    first = b"" if joliet else b"SP\x07\x01\xbe\xef\0" + own + _continues(len(_er()))
    records = [
        _record(b"\0", here, SECTOR_BYTES, directory=True, use=first),
        _record(b"\1", here, SECTOR_BYTES, directory=True, use=own),
    ]
    for name, sector, size in sorted(placed, key=lambda item: _plain(item[0])):
        if joliet:
            records.append(_record(name.encode("utf-16-be"), sector, size))
        else:
            raw = name.encode("ascii")
            use = bytes((78, 77, 5 + len(raw), 1, 0)) + raw + _px(0o100400, 1)  # NM
            records.append(_record(_plain(name).encode("ascii"), sector, size, use=use))
    data = b"".join(records)
    if len(data) > SECTOR_BYTES:
        raise ValueError("too many or too long names for one sector")
    return data


def _px(mode: int, links: int) -> bytes:
    """Rock Ridge's POSIX attributes: mode, links, uid 0, gid 0."""
    return b"PX\x24\x01" + _both32(mode) + _both32(links) + _both32(0) + _both32(0)


def _continues(size: int) -> bytes:
    return b"CE\x1c\x01" + _both32(_CONTINUATION) + _both32(0) + _both32(size)


def _er() -> bytes:
    """Rock Ridge names itself."""
    name, description, source = _ER
    lengths = bytes((8 + len(name) + len(description) + len(source), 1, len(name), len(description), len(source), 1))
    return b"ER" + lengths + name + description + source
