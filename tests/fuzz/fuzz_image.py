"""Fuzz target (atheris): any bytes as an image give an ``ImageHeader`` or an ``ImageError``, in bounded memory.

The first byte chooses the declared format and the base: the bytes alone, or laid over a true qcow2 image.

    python tests/fuzz/fuzz_image.py [libFuzzer options] [corpus directory]
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["casemate"]):
    import os

    from casemate.errors import ImageError
    from casemate.image.headers import inspect_image
    from casemate.image.overlay import write_empty_qcow2

DECLARED = (None, "raw", "qcow2")


def one_input(data: bytes) -> None:
    """One run; an exception is a finding."""
    choice, body = (data[0], data[1:]) if data else (0, b"")
    fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
    try:
        if choice & 4:
            write_empty_qcow2(fd, 1 << 30)
            os.pwrite(fd, body, 8 if choice & 8 else 0)
        else:
            os.write(fd, body)
        try:
            header = inspect_image(fd, "fuzz", DECLARED[choice % 3])
        except ImageError:
            return
        if header.format == "qcow2" and any(os.pread(fd, 8, 8)):
            raise RuntimeError("a backing file was accepted")
        if not 0 < header.virtual_size_bytes <= 2 << 40 or header.virtual_size_bytes % 512:
            raise RuntimeError(f"size {header.virtual_size_bytes}")
        if DECLARED[choice % 3] not in {None, header.format}:
            raise RuntimeError("another format than declared")
    finally:
        os.close(fd)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
