"""Read an archive of hostile origin into memory: bounded, strictly, and without the tar module's generosity.

Understood is what captures are made of: directories, regular files and symbolic links in ustar headers, with pax and
GNU long names. Anything else is an error that names the member: a capture has no use for it, so somebody made it up.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Final

import msgspec

from casemate.audit.capture_model import ARCHIVE_BYTES
from casemate.errors import InputError

BLOCK: Final = 512
MEMBERS_MAX: Final = 100_000
_NAME_BYTES: Final = 4096
_EXTRA_BYTES: Final = 1 << 16
_OCTAL: Final = re.compile(rb" *([0-7]+)[ \0]*")
# name, size, checksum, kind, link, magic, prefix; between them mode, owner, time, device, of which a capture has no use
_HEADER: Final = struct.Struct("100s24x12s12x8sc100s6s82x155s12x")
# A name without anything that needs a second look: no empty part, none that begins with a dot.
_USUAL: Final = re.compile(rb"[\w:@+~-][\w.:@+~-]*(?:/[\w:@+~-][\w.:@+~-]*)*/?")
_EXTRA: Final = frozenset((b"x", b"L", b"K"))
_KINDS: Final = {
    b"1": "a hard link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"S": "a sparse file",
    b"M": "a part of another archive",
    b"V": "a volume label",
    b"N": "a list of long names",
    b"D": "a dump of a directory",
    b"g": "a pax header for all members",
}


class Archive(msgspec.Struct):
    """Members by their name as it stands in the archive, without a slash at the end. ``first``: name of the first."""

    first: str = ""
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    folders: set[str] = set()


def read_archive(data: bytes, source: str) -> Archive:
    """All members of an archive, packed with gzip or not.

    Raises:
        InputError: with the member's name: it is none, it is damaged or cut off, larger than allowed, or holds what no
            capture holds.
    """
    if data[:2] == b"\x1f\x8b":
        data = _unpacked(data, source)
    if len(data) > ARCHIVE_BYTES:
        raise InputError(f"{source} is larger than a capture may be", expected=f"at most {ARCHIVE_BYTES >> 20} MiB")
    return _Reader(data, source).read()


def _unpacked(data: bytes, source: str) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(data, ARCHIVE_BYTES + 1)
    except zlib.error as error:
        raise InputError(f"{source} is damaged", got=f"gzip: {error}") from None
    if len(found) > ARCHIVE_BYTES:
        raise InputError(
            f"{source} unpacks to more than a capture may hold", expected=f"at most {ARCHIVE_BYTES >> 20} MiB"
        )
    if not unpacker.eof:
        raise InputError(f"{source} is cut off", got="gzip data that does not end")
    if unpacker.unused_data.strip(b"\0"):
        raise InputError(f"{source} is damaged", got="data behind the end of the gzip stream")
    return found


class _Reader:
    """One pass over the headers."""

    def __init__(self, data: bytes, source: str) -> None:
        self._data = data
        self._source = source
        self._found = Archive(files={}, links={}, folders=set())
        self._count = 0
        self._long_name = self._long_link = b""
        self._size: int | None = None

    def read(self) -> Archive:
        data, at, end = self._data, 0, len(self._data)
        while True:
            header = data[at : at + BLOCK]
            if len(header) < BLOCK:
                raise self._fault("", "the archive is cut off", f"{end} bytes without an end")
            if not header[0] and not header.strip(b"\0"):
                break
            at = self._member(header, at + BLOCK)
            if at > end:
                raise self._fault(self._text(header[:100].partition(b"\0")[0]), "is cut off", f"{end} bytes in all")
        if self._long_name or self._long_link or self._size is not None:
            raise self._fault("", "a header without its member stands at the end", "")
        if not self._found.first:
            raise self._fault("", "there is nothing in it", "")
        return self._found

    def _member(self, header: bytes, at: int) -> int:
        """One header; returns where the next one begins."""
        self._count += 1
        if self._count > MEMBERS_MAX:
            raise self._fault("", f"more than {MEMBERS_MAX} members", "")
        raw, size_field, sum_field, kind, link_field, magic, prefix = _HEADER.unpack(header)
        name = raw.partition(b"\0")[0]
        # The sum counts its own eight bytes as spaces (POSIX ustar). Adler-32 has the sum of all bytes plus 1, modulo
        # 65521, in its low half, and takes a tenth of the time.
        stated = self._number(sum_field, name, "checksum")
        if ((zlib.adler32(header) & 0xFFFF) - 1 - sum(sum_field) + 256 - stated) % 65521:
            raise self._fault(self._text(name), "its header is damaged", "the checksum is wrong")
        size = self._number(size_field, name, "size")
        if kind in _EXTRA:
            if size > _EXTRA_BYTES:
                raise self._fault(self._text(name), "its header is too long", f"{size} bytes")
            self._extra(kind, self._data[at : at + size], name)
            return at + _padded(size)
        if prefix[0] and magic == b"ustar\0":
            name = prefix.partition(b"\0")[0] + b"/" + name
        link = link_field.partition(b"\0")[0]
        if self._long_name or self._long_link or self._size is not None:
            name, self._long_name = self._long_name or name, b""
            link, self._long_link = self._long_link or link, b""
            size, self._size = size if self._size is None else self._size, None
        self._keep(kind, self._checked(name), link, size, at)
        return at + _padded(size)

    def _keep(self, kind: bytes, name: str, link: bytes, size: int, at: int) -> None:
        found = self._found
        if name in found.files or name in found.links or (name in found.folders and kind != b"5"):
            raise self._fault(name, "is in the archive twice", "")
        if kind in (b"0", b"\0", b"7"):
            if size > len(self._data) - at:
                raise self._fault(name, "is cut off", f"{size} bytes announced")
            found.files[name] = self._data[at : at + size]
        elif size:
            raise self._fault(name, "has content and is no file", f"{size} bytes")
        elif kind == b"2":
            if not link or len(link) > _NAME_BYTES:
                raise self._fault(name, "is a link to nothing or too far", f"{len(link)} bytes")
            found.links[name] = self._text(link)
        elif kind == b"5":
            found.folders.add(name)
        else:
            what = _KINDS.get(kind, f"of type {kind!r}")
            raise self._fault(name, f"is {what}", "", "directories, files and symbolic links")
        found.first = found.first or name

    def _extra(self, kind: bytes, data: bytes, name: bytes) -> None:
        """A long name or link of GNU tar, or a pax header for the next member."""
        if kind == b"x":
            self._pax(data, name)
        elif kind == b"L":
            self._long_name = self._once(self._long_name, data.rstrip(b"\0"), name)
        else:
            self._long_link = self._once(self._long_link, data.rstrip(b"\0"), name)

    def _once(self, before: bytes, value: bytes, name: bytes) -> bytes:
        if before or not value or b"\0" in value:
            raise self._fault(self._text(name), "its long name is damaged", "")
        return value

    def _pax(self, data: bytes, name: bytes) -> None:
        """Records ``LENGTH KEY=VALUE\\n`` (POSIX pax)."""
        while data:
            length, space, _ = data.partition(b" ")
            if not space or not length.isdigit() or len(length) > 5:
                raise self._fault(self._text(name), "its pax header is damaged", "")
            record, data = data[: int(length)], data[int(length) :]
            if len(record) != int(length) or record[-1:] != b"\n":
                raise self._fault(self._text(name), "its pax header is damaged", "")
            key, _, value = record[len(length) + 1 : -1].partition(b"=")
            if key == b"path":
                self._long_name = self._once(self._long_name, value, name)
            elif key == b"linkpath":
                self._long_link = self._once(self._long_link, value, name)
            elif key == b"size":
                if not value.isdigit() or len(value) > 12:
                    raise self._fault(self._text(name), "its pax header is damaged", "size")
                self._size = int(value)
            elif key.startswith(b"GNU.sparse"):
                raise self._fault(self._text(name), "is a sparse file", "", "directories, files and symbolic links")

    def _checked(self, raw: bytes) -> str:
        if len(raw) <= _NAME_BYTES and _USUAL.fullmatch(raw):
            return raw.decode("ascii").rstrip("/")
        name = self._text(raw)
        if len(raw) > _NAME_BYTES:
            raise self._fault(name[:200], "its name is too long", f"{len(raw)} bytes")
        if raw.startswith(b"/"):
            raise self._fault(name, "has an absolute path", "", "names below root/")
        name = name.rstrip("/").removeprefix("./")
        if b".." in raw and ".." in name.split("/"):
            raise self._fault(name, "leads out of the archive", "..", "names below root/")
        if not name or "//" in name or "/./" in name:
            raise self._fault(name or repr(raw)[:200], "has no proper name", "")
        return name

    def _number(self, field: bytes, name: bytes, what: str) -> int:
        match = _OCTAL.fullmatch(field)
        if match is None:
            raise self._fault(self._text(name), f"its {what} is no number", repr(field)[:80])
        return int(match[1], 8)

    def _text(self, raw: bytes) -> str:
        return raw.decode("utf-8", "backslashreplace")

    def _fault(self, member: str, what: str, got: str, expected: str = "") -> InputError:
        subject = f"{self._source}: {member} {what}" if member else f"{self._source}: {what}"
        return InputError(subject, got=got, expected=expected or "what casemate capture writes")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
