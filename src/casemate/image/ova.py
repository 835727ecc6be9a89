"""An OVA: a tar archive with an OVF description and disks. The disk is found in it and read where it lies.

Only the headers of the archive are read (at most `MAX_MEMBERS` of 512 bytes), the description (at most 1 MiB, without
entities or outside references) and the manifest. Accepted members are plain files with plain names: a link, a device, a
directory or a path in an archive that should hold three files is refused. Layout: DMTF DSP0243; POSIX ustar.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from casemate.errors import ImageError
from casemate.image.reader import ImageReader

BLOCK_BYTES: Final = 512
MAX_MEMBERS: Final = 64
MAX_DESCRIPTION_BYTES: Final = 1 << 20
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+()-]{0,99}")
_MANIFEST_LINE = re.compile(r"(SHA(?:1|256|512))\s*\(([^)]{1,100})\)\s*=\s*([0-9A-Fa-f]{40,128})\s*")


class Member(NamedTuple):
    """One file of the archive; ``offset`` in the archive."""

    name: str
    offset: int
    size_bytes: int


class Disk(NamedTuple):
    """The disk of an OVA. ``sha256``: what the manifest says; empty without one."""

    member: Member
    sha256: str


def is_tar(head: bytes) -> bool:
    """True if the first 512 bytes are the header of a tar archive."""
    return len(head) >= BLOCK_BYTES and head[257:262] == b"ustar" and _checksum_holds(head[:BLOCK_BYTES])


def find_disk(reader: ImageReader) -> Disk:
    """The one disk of an OVA.

    Raises:
        ImageError: no OVA, or not exactly one disk.
    """
    members = list_members(reader)
    described = [member for member in members.values() if member.name.lower().endswith(".ovf")]
    if len(described) != 1:
        raise _refused(reader.name, f"{len(described)} descriptions (.ovf)", "one")
    text = _read(reader, described[0])
    names = _disks_of(reader.name, text)
    if len(names) != 1:
        raise _refused(
            reader.name, f"{len(names)} disks: {', '.join(names)[:200]}", "one disk; take the others out with tar"
        )
    if names[0] not in members:
        raise _refused(reader.name, f"a disk {names[0][:80]!r} that is not in the archive", "all of it in one file")
    return Disk(members[names[0]], _promised(reader, members, names[0]))


def list_members(reader: ImageReader) -> dict[str, Member]:
    """Every file of a tar archive by name.

    Raises:
        ImageError: a header that lies, or a member that is no plain file.
    """
    found: dict[str, Member] = {}
    at = 0
    while at + BLOCK_BYTES <= reader.size_bytes:
        head = reader.read(at, BLOCK_BYTES)
        if not head.strip(b"\0"):
            return found
        member = _member(reader, head, at + BLOCK_BYTES)
        if member.name in found or len(found) >= MAX_MEMBERS:
            raise _refused(reader.name, f"{member.name!r} twice, or more than {MAX_MEMBERS} files")
        found[member.name] = member
        at = member.offset + -(-member.size_bytes // BLOCK_BYTES) * BLOCK_BYTES
    raise _refused(reader.name, "no end of the archive", "one that is not cut short")


def _member(reader: ImageReader, head: bytes, offset: int) -> Member:
    member, kind = header_of(reader, head, offset)
    if kind not in {b"0", b"\0"} or not _PLAIN.fullmatch(member.name):
        raise _refused(reader.name, f"a member {member.name[:80]!r} that is no plain file with a plain name")
    return member


def header_of(reader: ImageReader, head: bytes, offset: int) -> tuple[Member, bytes]:
    """One header of a tar archive: the member whose content begins at ``offset``, and its kind.

    Raises:
        ImageError: no header, or a member that would leave the archive.
    """
    if head[257:262] != b"ustar" or not _checksum_holds(head):
        raise _refused(reader.name, f"no archive header at {offset - BLOCK_BYTES}")
    name = head[:100].rstrip(b"\0").decode("utf-8", "replace")
    if head[345:500].strip(b"\0"):
        raise _refused(reader.name, f"a member {name[:80]!r} that is no plain file with a plain name")
    size = _number(head[124:136])
    if size is None or offset + size > reader.size_bytes:
        raise _refused(reader.name, f"{name!r} of {size} bytes at {offset}", "a file inside the archive")
    return Member(name, offset, size), head[156:157]


def _number(field: bytes) -> int | None:
    """Octal text, or (GNU) a binary number of 11 bytes behind 0x80."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.strip(b"\0 ")
    return int(text, 8) if re.fullmatch(rb"[0-7]{1,12}", text) else None


def _checksum_holds(head: bytes) -> bool:
    return _number(head[148:156]) == sum(head[:148]) + 8 * 32 + sum(head[156:BLOCK_BYTES])


def _read(reader: ImageReader, member: Member) -> bytes:
    if member.size_bytes > MAX_DESCRIPTION_BYTES:
        raise _refused(reader.name, f"{member.name!r} of {member.size_bytes} bytes", f"at most {MAX_DESCRIPTION_BYTES}")
    return reader.read(member.offset, member.size_bytes)


def _disks_of(name: str, text: bytes) -> list[str]:
    """File names of the disks, in the order of the description."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(text, parser)
    except etree.XMLSyntaxError as fault:
        raise _refused(name, f"a description that is no XML: {str(fault)[:120]}") from None
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise _refused(name, "a description with a document type", "plain OVF")
    files: dict[str, str] = {}
    wanted: list[str] = []
    for element in root.iter():
        if not isinstance(element.tag, str):
            continue
        attributes = {str(etree.QName(key).localname): str(value) for key, value in element.attrib.items()}
        kind = etree.QName(element).localname
        if kind == "File" and "id" in attributes and "href" in attributes:
            files[attributes["id"]] = attributes["href"]
        elif kind == "Disk" and "fileRef" in attributes:
            if attributes.get("parentRef"):
                raise _refused(name, "a disk that is the difference to another", "one that needs no other file")
            wanted.append(attributes["fileRef"])
    if any(reference not in files for reference in wanted):
        raise _refused(name, "a disk whose file is not described")
    return [files[reference] for reference in dict.fromkeys(wanted)]


def _promised(reader: ImageReader, members: dict[str, Member], disk: str) -> str:
    """The SHA-256 that the manifest gives for the disk."""
    for member in members.values():
        if member.name.lower().endswith(".mf"):
            for line in _read(reader, member).decode("utf-8", "replace").splitlines():
                match = _MANIFEST_LINE.fullmatch(line)
                if match is not None and match[1] == "SHA256" and match[2] == disk and len(match[3]) == 64:
                    return match[3].lower()
    return ""


def _refused(name: str, got: str, expected: str = "") -> ImageError:
    return ImageError(
        f"{name} is no OVA that can be imported",
        got=got,
        expected=expected,
        next_step="export it again with one disk, or unpack it (tar -x) and add the disk",
    )
