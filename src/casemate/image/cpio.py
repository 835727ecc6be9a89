"""The ``newc`` cpio archive, as the Linux kernel unpacks it into its initramfs: a deterministic writer and a strict
reader.

One entry on the wire (``Documentation/driver-api/early-userspace/buffer-format.rst``), every number as 8 hexadecimal
digits::

    "070701" ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check   110 bytes
    name NUL, padded to 4 bytes from the start of the header
    data,     padded to 4 bytes
    ...
    an entry named TRAILER!!!

The writer decides everything that is not content: owner 0:0, mtime 0, inode numbers by position, entries sorted by
name with parents first.
The same entries give the same bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator

import msgspec

from casemate.errors import ImageError

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
HEADER_BYTES = 110
MAX_NAME_BYTES = 4096
MAX_FILE_BYTES = 0xFFFF_FFFF
BLOCK_BYTES = 512

_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")
_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK)


class CpioEntry(msgspec.Struct, frozen=True):
    """One file.

    ``name``: relative path without ``.`` or ``..``; ``mode``: type and permission bits as in ``st_mode``; ``data``:
    content of a file, target of a link,
    empty otherwise; ``device``: major and minor of a device node.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str, permissions: int = 0o755) -> CpioEntry:
    """A directory entry."""
    return CpioEntry(name, stat.S_IFDIR | permissions)


def regular(name: str, data: bytes, permissions: int = 0o644) -> CpioEntry:
    """A regular file."""
    return CpioEntry(name, stat.S_IFREG | permissions, data)


def symlink(name: str, target: str) -> CpioEntry:
    """A symbolic link."""
    return CpioEntry(name, stat.S_IFLNK | 0o777, target.encode())


def character_device(name: str, major: int, minor: int, permissions: int = 0o600) -> CpioEntry:
    """A character device node."""
    return CpioEntry(name, stat.S_IFCHR | permissions, device=(major, minor))


def write_cpio(entries: Iterable[CpioEntry]) -> bytes:
    """Return the archive of ``entries``, independent of their order; missing parent directories are added with mode
    0755.

    Raises:
        RuntimeError: an entry that no caller of ours may build (bad name, duplicate, unknown type, a parent that is
        no directory).
    """
    by_name: dict[str, CpioEntry] = {}
    for entry in entries:
        _check_entry(entry)
        if entry.name in by_name:
            raise RuntimeError(f"cpio: two entries named {entry.name!r}")
        by_name[entry.name] = entry
    for name in tuple(by_name):
        parts = name.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            holder = by_name.setdefault(parent, directory(parent))
            if not stat.S_ISDIR(holder.mode):
                raise RuntimeError(f"cpio: {parent!r} holds {name!r} and is no directory")
    out = bytearray()
    for number, name in enumerate(sorted(by_name, key=lambda item: item.split("/")), start=1):
        out += _encode(by_name[name], number)
    out += _encode(CpioEntry(TRAILER, 0), 0)
    out += bytes(-len(out) % BLOCK_BYTES)
    return bytes(out)


def read_cpio(data: bytes) -> Iterator[CpioEntry]:
    """Yield the entries of one ``newc`` archive up to its trailer.

    Raises:
        ImageError: not newc, a field that is no number, a name or size beyond the archive, no trailer, or bytes other
        than zero after it.
    """
    position = 0
    while True:
        header = data[position : position + HEADER_BYTES]
        if len(header) != HEADER_BYTES or header[:6] != MAGIC:
            raise ImageError(
                f"cpio archive, byte {position}", got=repr(header[:6]), expected="a newc header (070701) or the trailer"
            )
        fields = [_number(header[at : at + 8], position) for at in range(6, HEADER_BYTES, 8)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        start = position + HEADER_BYTES
        if not 2 <= name_size <= MAX_NAME_BYTES or start + name_size > len(data):
            raise ImageError(f"cpio archive, byte {position}", got=f"a name of {name_size} bytes")
        raw_name = data[start : start + name_size]
        if raw_name[-1:] != b"\0" or b"\0" in raw_name[:-1]:
            raise ImageError(
                f"cpio archive, byte {start}", got=repr(raw_name[:60]), expected="a name ending in its only NUL"
            )
        body = _aligned(start + name_size)
        if body + size > len(data):
            raise ImageError(
                f"cpio archive, byte {position}", got=f"{size} bytes of data", expected=f"at most {len(data) - body}"
            )
        position = _aligned(body + size)
        try:
            name = raw_name[:-1].decode()
        except UnicodeDecodeError as error:
            raise ImageError(f"cpio archive, byte {start}", got=repr(raw_name[:60]), expected="a UTF-8 name") from error
        if name == TRAILER:
            if any(data[position:]):
                raise ImageError(
                    f"cpio archive, byte {position}", got="bytes after the trailer", expected="zero padding"
                )
            return
        yield CpioEntry(name, mode, data[body : body + size], (fields[9], fields[10]))


def _check_entry(entry: CpioEntry) -> None:
    parts = entry.name.split("/")
    raw = entry.name.encode()
    if not entry.name or entry.name == TRAILER or "\0" in entry.name or len(raw) >= MAX_NAME_BYTES:
        raise RuntimeError(f"cpio: bad name {entry.name!r}")
    if any(part in ("", ".", "..") for part in parts):
        raise RuntimeError(f"cpio: name {entry.name!r} is not a plain relative path")
    if stat.S_IFMT(entry.mode) not in _KINDS or not 0 <= entry.mode <= 0o177777:
        raise RuntimeError(f"cpio: {entry.name!r} has the unknown type {entry.mode:#o}")
    if entry.data and not (stat.S_ISREG(entry.mode) or stat.S_ISLNK(entry.mode)):
        raise RuntimeError(f"cpio: {entry.name!r} is neither file nor link but has data")
    if len(entry.data) > MAX_FILE_BYTES:
        raise RuntimeError(f"cpio: {entry.name!r} is larger than 4 GiB")


def _encode(entry: CpioEntry, number: int) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + entry.data + bytes(-len(entry.data) % 4)


def _number(text: bytes, position: int) -> int:
    # int(…, 16) alone would also take spaces, signs and underscores.
    if any(byte not in _HEX_DIGITS for byte in text):
        raise ImageError(f"cpio archive, header at byte {position}", got=repr(text), expected="8 hexadecimal digits")
    return int(text, 16)


def _aligned(position: int) -> int:
    return (position + 3) & ~3
