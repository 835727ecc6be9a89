"""Is this file the image that it is said to be, and does it need nothing else? Answered through an open descriptor.

1. A regular file that is not empty.
2. What its first and last bytes look like (``signatures.py``), against the declared format. QEMU never probes: the
   format that this function returns is the one that the emulator is told.
3. raw: the size of the file is the size of the disk. qcow2: ``qcow2.py``.

A raw disk whose content looks like a container is refused: a guest can write any bytes into its raw disk, and a person
or program that later guesses the format would follow a backing file of the guest's choice to a file of the host.
"""

from __future__ import annotations

from typing import NoReturn

from casemate.errors import ImageError
from casemate.image.model import ImageHeader
from casemate.image.opening import open_image
from casemate.image.qcow2 import SECTOR_BYTES, check_quota, read_qcow2
from casemate.image.reader import ImageReader
from casemate.image.signatures import HEAD_BYTES, TAIL_BYTES, Kind, Signature, recognise
from casemate.units import TIB

DEFAULT_MAX_VIRTUAL_BYTES = 2 * TIB

FORMATS = ("raw", "qcow2")

__all__ = ["DEFAULT_MAX_VIRTUAL_BYTES", "FORMATS", "ImageHeader", "inspect_image", "open_image"]


def inspect_image(
    fd: int,
    name: str,
    declared: str | None,
    max_virtual_bytes: int = DEFAULT_MAX_VIRTUAL_BYTES,
    *,
    allow_encrypted: bool = False,
) -> ImageHeader:
    """Read and judge the header of an image.

    Args:
        fd: open for reading; its position is neither used nor changed, and it stays the caller's.
        name: how messages name the image.
        declared: ``raw``, ``qcow2``, or None to tell by content (raw then needs a partition table or boot sector).
        max_virtual_bytes: the largest disk that the guest may see.
        allow_encrypted: accept LUKS inside qcow2, for readers that have no use for the content.

    Raises:
        ImageError: the image is not accepted; says why and what to do.
    """
    return inspect_reader(ImageReader(fd, name), declared, max_virtual_bytes, allow_encrypted=allow_encrypted)


def inspect_reader(
    reader: ImageReader, declared: str | None, max_virtual_bytes: int, *, allow_encrypted: bool = False
) -> ImageHeader:
    """As `inspect_image`, of what ``reader`` reads."""
    if declared is not None and declared not in FORMATS:
        raise RuntimeError(f"unknown format {declared!r}")
    name = reader.name
    if reader.size_bytes == 0:
        raise ImageError(f"{name} is empty", got="0 bytes", next_step="was the copy or download interrupted?")
    head = reader.read(0, min(HEAD_BYTES, reader.size_bytes))
    tail = reader.read(reader.size_bytes - TAIL_BYTES, TAIL_BYTES) if reader.size_bytes >= TAIL_BYTES else b""
    found = recognise(head, tail)
    is_qcow2 = found is not None and found.name == "qcow2"
    if is_qcow2 and declared != "raw":
        return read_qcow2(reader, max_virtual_bytes, allow_encrypted=allow_encrypted)
    if declared == "qcow2":
        _refuse_not_qcow2(name, found)
    if found is not None and found.kind in {Kind.CONTAINER, Kind.PACKED}:
        _refuse_container(name, found, declared)
    if declared is None and (found is None or found.kind is not Kind.DISK):
        _refuse_undeclared(name, found)
    return _raw(reader, max_virtual_bytes)


def _raw(reader: ImageReader, max_virtual_bytes: int) -> ImageHeader:
    size_bytes = reader.size_bytes
    if size_bytes % SECTOR_BYTES:
        raise ImageError(
            f"{reader.name} is not a whole raw disk",
            got=f"{size_bytes} bytes",
            expected=f"a multiple of {SECTOR_BYTES}",
            next_step="if it is complete, round it up: truncate -s %512 FILE",
        )
    check_quota(reader.name, size_bytes, max_virtual_bytes)
    return ImageHeader(format="raw", virtual_size_bytes=size_bytes, file_size_bytes=size_bytes)


def _refuse_not_qcow2(name: str, found: Signature | None) -> NoReturn:
    if found is not None and found.kind in {Kind.CONTAINER, Kind.PACKED}:
        _refuse_container(name, found, "qcow2")
    raise ImageError(
        f"{name} is declared qcow2 but has no qcow2 header",
        got=f"what looks like {found.name}" if found else "content without a known header",
        expected="a qcow2 image",
        next_step='if it is a plain disk, say raw: format = "raw" in the specification, :raw after the path of --disk',
    )


def _refuse_container(name: str, found: Signature, declared: str | None) -> NoReturn:
    if found.kind is Kind.PACKED:
        raise ImageError(
            f"{name} is packed with {found.name}",
            expected="an image that can be used as it is",
            next_step=f"unpack it: {found.convert} FILE; casemate image add takes gzip, xz, bzip2 and zstd as they are",
        )
    if found.name == "qcow2":
        raise ImageError(
            f"{name} is declared raw but has a qcow2 header",
            next_step='say qcow2: format = "qcow2" in the specification, :qcow2 after the path of --disk; '
            "if a guest wrote this header into its raw disk, do not trust that guest",
        )
    said = f" but is declared {declared}" if declared else ""
    raise ImageError(
        f"{name} is in the format {found.name}{said}",
        expected="raw or qcow2",
        next_step="casemate image add FILE converts VMDK, VHD, VHDX and VDI in a wall; others only if you trust their "
        f"origin: qemu-img convert -f {found.convert.split()[0]} -O qcow2 FILE NEW.qcow2",
    )


def _refuse_undeclared(name: str, found: Signature | None) -> NoReturn:
    raise ImageError(
        f"cannot tell what {name} is",
        got=f"{found.name}, which is no disk with a boot loader" if found else "content without a known header",
        expected="a qcow2 image or a disk with a partition table",
        next_step='to give it to a guest as it is, say its format: format = "raw", or :raw after the path of --disk',
    )
