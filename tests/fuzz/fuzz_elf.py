"""Fuzzes the ELF reader: whatever the bytes, it answers or raises ElfFormatError, and reads a bounded amount.

Run for longer with ``python tests/fuzz/fuzz_elf.py -max_total_time=60``; tests/fuzz/test_fuzz_elf.py runs a few
thousand inputs.
"""

from __future__ import annotations

import os
import struct
import sys

from casemate.facts.elf import ElfFormatError, parse_elf

_DYNAMIC = struct.Struct("<qQ")


def seed() -> bytes:
    """A small valid shared object with every part that the reader looks at."""
    strings = b"\0libc.so.6\0me.so.1\0/run:/path\0"
    tags = [(1, 1), (14, 11), (29, 19), (15, 19), (5, 0x300), (10, len(strings)), (30, 8), (0x6FFFFFFB, 1), (0, 0)]
    dynamic = b"".join(_DYNAMIC.pack(*tag) for tag in tags)
    segments = [(1, 5, 0, 0, 0x300 + len(strings)), (2, 6, 0x200, 0x200, len(dynamic)), (3, 4, 0x1F0, 0x1F0, 4)]
    segments += [(0x6474E551, 6, 0, 0, 0), (0x6474E552, 4, 0, 0, 0)]
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    table = b"".join(struct.pack("<IIQQQQQQ", k, f, o, v, v, s, s, 1) for k, f, o, v, s in segments)
    image = (head + table).ljust(0x1F0, b"\0") + b"/ld\0"
    return image.ljust(0x200, b"\0") + dynamic.ljust(0x100, b"\0") + strings


def one_input(data: bytes) -> None:
    """Read ``data`` as a file."""
    descriptor = os.memfd_create("fuzz")
    try:
        os.write(descriptor, data)
        image = parse_elf(descriptor)
        for name in (*image.needed, *image.rpath, *image.runpath, image.soname or "", image.interpreter or ""):
            if "\0" in name or "\n" in name or len(name) > 4096:
                raise AssertionError(f"name {name!r} got through")
    except ElfFormatError:
        pass
    finally:
        os.close(descriptor)


def mutated(choices: bytes) -> bytes:
    """The seed with bytes replaced as ``choices`` says (3 bytes each: position, value), then cut or grown."""
    image = bytearray(seed())
    for start in range(0, len(choices) - 2, 3):
        position, value = struct.unpack_from("<HB", choices, start)
        image[position % len(image)] = value
    return bytes(image[: len(image) - choices[0]] if choices and choices[-1] & 1 else image)


def main() -> None:
    """Hand over to libFuzzer."""
    import atheris

    def both(data: bytes) -> None:
        one_input(data)
        one_input(mutated(data))

    atheris.instrument_all()
    atheris.Setup(sys.argv, both)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
