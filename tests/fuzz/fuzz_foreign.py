"""Fuzz target (atheris): any bytes as an image to import, or as an archive, give a header or an ``ImageError``.

The first byte chooses a sound image (or none) and whether its checksums are made true again afterwards; then come
patches: offset (3 bytes, little endian), length, bytes.

    python tests/fuzz/fuzz_foreign.py [libFuzzer options] [corpus directory]
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["casemate"]):
    import os

    from tests.support.foreign_images import SOUND, mended

    from casemate.errors import ImageError
    from casemate.image.foreign import DRIVERS, inspect_source
    from casemate.image.oci_layout import find_container_disk
    from casemate.image.ova import find_disk, list_members
    from casemate.image.reader import ImageReader

BASES = [(name.split(".")[1], data) for name, data in SOUND.items()]
ARCHIVE = len(BASES) + 1
PLACES = {"vhdx": (0, 65536, 131072, 196608, 262144, 2 << 20, (2 << 20) + 65536)}


def patched(data: bytes, body: bytes, image_format: str) -> bytes:
    """``data`` with the patches of ``body`` laid over it."""
    out, at = bytearray(data), 0
    places = PLACES.get(image_format, (0, max(0, len(data) - 1536)))
    while at + 4 < len(body):
        offset = int.from_bytes(body[at : at + 2], "little") + places[body[at + 2] % len(places)]
        length = body[at + 3] % 64
        piece = body[at + 4 : at + 4 + length]
        out[offset : offset + len(piece)] = piece
        at += 4 + length
    return bytes(out)


def one_input(data: bytes) -> None:
    """One run; an exception is a finding."""
    choice, body = (data[0], data[1:]) if data else (0, b"")
    kind = (choice & 0x7F) % (len(BASES) + 2)
    fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
    try:
        if kind == ARCHIVE:
            os.write(fd, body)
            reader = ImageReader(fd, "fuzz")
            for read in (list_members, find_disk, find_container_disk):
                with contextlib.suppress(ImageError):
                    read(reader)
            return
        image_format, base = BASES[kind] if kind < len(BASES) else ("", b"")
        image = patched(base, body, image_format) if base else body
        if choice & 0x80 and len(image) >= 2048:
            image = mended(image, image_format)
        os.write(fd, image)
        try:
            header = inspect_source(ImageReader(fd, "fuzz"))
        except ImageError:
            return
        check(header.format, header.virtual_size_bytes, image)
    finally:
        os.close(fd)


def check(image_format: str, size_bytes: int, image: bytes) -> None:
    """What an accepted image must be."""
    if image_format not in DRIVERS or not 0 < size_bytes <= 2 << 40 or size_bytes % 512:
        raise RuntimeError(f"{image_format} of {size_bytes} bytes")
    if image_format == "vmdk" and b"parentFileNameHint" in image[512 : 512 + 10240]:
        raise RuntimeError("a parent was accepted")
    if image_format == "vmdk" and not any(image[12:20]):
        raise RuntimeError("a list of extents was accepted")
    if image_format == "vdi" and any(image[0x1A8:0x1C8]):
        raise RuntimeError("a parent was accepted")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
