"""Images in formats that no VM of ours opens: what their headers say, before a jailed qemu-img converts them.

Readers: `vmdk.py`, `vhd.py`, `vhdx.py`, `vdi.py`. Each reads a bounded part of the file (at most a few hundred KiB,
whatever the header says), refuses every reference to another file, and sizes and tables that cannot be true. Entries of
tables that only say where data lies in this same file are left to the converter, which sits in its wall.

`inspect_source` is the one door for what an import is given: it recognises the format, refuses a file that is two
formats at once, and never says "safe" of something in which QEMU, told the format, would find another file to open.
"""

from __future__ import annotations

from typing import NamedTuple

from casemate.errors import ImageError
from casemate.image.headers import DEFAULT_MAX_VIRTUAL_BYTES, inspect_reader
from casemate.image.reader import ImageReader
from casemate.image.signatures import HEAD_BYTES, SIGNATURES, TAIL_BYTES, Kind, recognise

DRIVERS = {"raw": "raw", "qcow2": "qcow2", "vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi"}
"""Formats that can be imported, and the name of QEMU's driver for each."""

_BY_SIGNATURE = {"VMDK": "vmdk", "VHD": "vhd", "VHDX": "vhdx", "VDI": "vdi", "qcow2": "qcow2"}


class SourceHeader(NamedTuple):
    """What an import is given. ``variant``: the kind within the format (``streamOptimized``, ``dynamic``)."""

    format: str
    variant: str
    virtual_size_bytes: int
    file_size_bytes: int

    @property
    def driver(self) -> str:
        """QEMU's name of the format."""
        return DRIVERS[self.format]


def lie(name: str, image_format: str, got: str, expected: str = "") -> ImageError:
    """The error for a header that contradicts its format or its file."""
    return ImageError(
        f"{name} has a {image_format.upper()} header that cannot be true",
        got=got,
        expected=expected,
        next_step="get the image again and compare its checksum; do not repair an image you do not trust",
    )


def refers(name: str, what: str, got: str = "") -> ImageError:
    """The error for an image that needs another file."""
    return ImageError(
        f"{name} {what}",
        got=got,
        expected="an image that needs no other file",
        next_step="export it again as one self-contained file, on the machine that has all of its parts",
    )


def inspect_source(
    reader: ImageReader, declared: str | None = None, max_virtual_bytes: int = DEFAULT_MAX_VIRTUAL_BYTES
) -> SourceHeader:
    """Read and judge the header of an image of any format that can be imported.

    Args:
        reader: of the file, or of the part of an archive that is the image.
        declared: one of `DRIVERS`, or None to tell by content.

    Raises:
        ImageError: it is refused; says why and what to do.
    """
    name = reader.name
    if reader.size_bytes == 0:
        raise ImageError(f"{name} is empty", got="0 bytes", next_step="was the copy or download interrupted?")
    head = reader.read(0, min(HEAD_BYTES, reader.size_bytes))
    tail = reader.read(reader.size_bytes - TAIL_BYTES, TAIL_BYTES) if reader.size_bytes >= TAIL_BYTES else b""
    found = recognise(head, tail)
    known = _BY_SIGNATURE.get(found.name) if found is not None else None
    _refuse_two_formats(name, head, tail)
    if declared is not None and known is not None and declared != known:
        raise ImageError(
            f"{name} is declared {declared} but looks like {known}",
            next_step=f"say --format {known}, or leave --format out; a guest can write any header into a raw disk, so "
            "do not trust a raw disk that looks like a container",
        )
    image_format = declared or known
    if found is not None and found.name == "VMDK descriptor":
        raise refers(name, "is only the description of a VMDK whose content lies in other files")
    if image_format is None and (found is None or found.kind is Kind.CONTENT):
        raise ImageError(
            f"cannot tell what {name} is",
            got=f"{found.name}, which is no disk with a boot loader" if found else "content without a known header",
            expected=f"a disk with a partition table, or one of {', '.join(DRIVERS)}",
            next_step="--format raw takes it as the plain content of a disk",
        )
    if image_format in {None, "raw", "qcow2"}:
        header = inspect_reader(reader, image_format, max_virtual_bytes, allow_encrypted=True)
        variant = f"version {header.version}" if header.format == "qcow2" else ""
        return SourceHeader(header.format, variant, header.virtual_size_bytes, header.file_size_bytes)
    if known is None:
        raise ImageError(
            f"{name} is declared {declared} but has no {str(declared).upper()} header",
            got=f"what looks like {found.name}" if found else "content without a known header",
            next_step="leave --format out, or say raw for a plain disk",
        )
    return _read(image_format, reader, max_virtual_bytes)


def _read(image_format: str | None, reader: ImageReader, max_virtual_bytes: int) -> SourceHeader:
    if image_format == "vmdk":
        from casemate.image.vmdk import read_vmdk as read
    elif image_format == "vhd":
        from casemate.image.vhd import read_vhd as read
    elif image_format == "vhdx":
        from casemate.image.vhdx import read_vhdx as read
    elif image_format == "vdi":
        from casemate.image.vdi import read_vdi as read
    else:
        raise RuntimeError(f"no reader for {image_format}")
    variant, virtual_size_bytes = read(reader, max_virtual_bytes)
    return SourceHeader(image_format, variant, virtual_size_bytes, reader.size_bytes)


def _refuse_two_formats(name: str, head: bytes, tail: bytes) -> None:
    """Programs that guess would take such a file for one thing, and others for another."""
    found: dict[str, None] = {}
    for signature in SIGNATURES:
        place = head[signature.offset :] if signature.offset >= 0 else tail[signature.offset :]
        fits = place.startswith(signature.magic) and (signature.offset >= 0 or len(tail) == TAIL_BYTES)
        if fits and signature.kind is Kind.CONTAINER:
            found["qcow2" if signature.name.startswith("qcow") else signature.name.split(" ")[0]] = None
    if len(found) > 1:
        raise ImageError(
            f"{name} is several formats at once",
            got=" and ".join(found),
            expected="one format",
            next_step="do not use it: somebody made it to be read differently by different programs",
        )
