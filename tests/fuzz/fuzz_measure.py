"""Fuzzes what `casemate measure` reads: PE images, partition tables, FAT, variable stores, signature databases,
firmware volumes, TDX and SEV metadata, enclave images, GRUB's scripts. Whatever the bytes, each reader answers or
raises its error; a test bounds what it may use.

Run for longer with ``python -m tests.fuzz.fuzz_measure -max_total_time=60 -rss_limit_mb=512``; the first byte of an
input chooses the reader, and those after it change that reader's seed, or are read as they are.
"""

from __future__ import annotations

import functools
import lzma
import struct
import sys
import uuid
import zlib
from collections.abc import Callable

from tests.support import eif as eif_images

from casemate.errors import InputError
from casemate.measure.disk import boot_path
from casemate.measure.eif import measure_eif
from casemate.measure.fat import Fat
from casemate.measure.gpt import Read, read_gpt
from casemate.measure.grub import DIALECTS, Place, Runner
from casemate.measure.grub_script import NotUnderstoodError, parse_script
from casemate.measure.ovmf import parse_firmware
from casemate.measure.pe import parse_pe
from casemate.measure.registers import Steps
from casemate.measure.secureboot import signature_lists, vouches
from casemate.measure.tdvf import parse_tdvf
from casemate.measure.variables import GLOBAL, parse_variables
from casemate.measure.volumes import measured_volumes

SCRIPT = b"""set timeout=0
if [ -e $prefix/grub.cfg -a "x${root}" != 'x' ]; then set default="0"; else boot; fi
menuentry 'web' --class os { # a comment with }
  linux /vmlinuz quiet
  initrd /initrd
}
"""


def reader_of(data: bytes) -> Read:
    """Reads of a disk that holds these bytes."""
    return lambda offset, length: data[offset : offset + length]


def pe_seed() -> bytes:
    """Two sections and a signature."""
    image = bytearray(0x800)
    image[:2] = b"MZ"
    image[0x3C:0x40] = (0x40).to_bytes(4, "little")
    struct.pack_into("<4sHHIIIHH", image, 0x40, b"PE\0\0", 0x8664, 2, 0, 0, 0, 160, 0)
    struct.pack_into("<H", image, 0x58, 0x20B)
    struct.pack_into("<I", image, 0x58 + 60, 0x200)
    struct.pack_into("<I", image, 0x58 + 108, 6)
    struct.pack_into("<II", image, 0x58 + 112 + 32, 0x600, 0x200)
    for index, name in enumerate((b".text", b".sdmagic")):
        at = 0x58 + 160 + 40 * index
        struct.pack_into("<8sIIII", image, at, name, 0x100, 0x1000 * index, 0x200, 0x200 + 0x200 * index)
    struct.pack_into("<IHH", image, 0x600, 0x200, 0x200, 2)
    image[0x608:0x614] = bytes.fromhex("300a 0602 2a03 a004 3002 0500")
    return bytes(image)


def gpt_seed() -> bytes:
    """One EFI system partition."""
    esp = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le
    entries = struct.pack("<16s16sQQQ72s", esp, b"i" * 16, 40, 99, 0, b"").ljust(128 * 4, b"\0")
    fields = (1, 99, 34, 90, b"d" * 16, 2, 4, 128, zlib.crc32(entries))
    head = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, *fields)
    head = head[:16] + struct.pack("<I", zlib.crc32(head)) + head[20:]
    return bytes(512) + head.ljust(512, b"\0") + entries


def fat_seed() -> bytes:
    """FAT12 with a directory, a file of two clusters and a long name."""
    head = bytearray(512)
    struct.pack_into("<HBHBHHBHHHII", head, 11, 512, 1, 1, 1, 16, 64, 0xF8, 1, 1, 1, 0, 0)
    head[510:] = b"\x55\xaa"
    table = bytearray(512)
    table[:9] = b"\xf8\xff\xff\xff\x4f\x00\xff\x0f\x00"
    name = "grub.cfg\0".encode("utf-16-le").ljust(26, b"\xff")
    long = b"\x41" + name[:10] + b"\x0f\0\0" + name[10:22] + b"\0\0" + name[22:26]
    root = struct.pack("<11sB8xHHHHI", b"EFI        ", 0x10, 0, 0, 0, 2, 0)
    inner = long + struct.pack("<11sB8xHHHHI", b"GRUB~1  CFG", 0x20, 0, 0, 0, 3, 600)
    data = inner.ljust(512, b"\0") + SCRIPT.ljust(1024, b"#")
    return (bytes(head) + bytes(table) + root.ljust(512, b"\0") + data).ljust(64 * 512, b"\0")


def variables_seed() -> bytes:
    """A store with SecureBootEnable and db."""
    return store_of((ENABLE, "SecureBootEnable", b"\x01", 0x3F), (DB, "db", signatures_seed(), 0x3F))


def store_of(*variables: tuple[str, str, bytes, int]) -> bytes:
    """A store with these variables: vendor, name, data, state."""
    body = b""
    for vendor, name, data, state in variables:
        text = (name + "\0").encode("utf-16-le")
        head = struct.pack("<HBBIQ16sIII", 0x55AA, state, 0, 3, 0, bytes(16), 0, len(text), len(data))
        body += head + uuid.UUID(vendor).bytes_le + text + data
        body += bytes(-len(body) % 4)
    size = 28 + len(body) + 64
    store = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le + struct.pack("<IBBHI", size, 0x5A, 0xFE, 0, 0)
    head = bytes(16) + uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
    head += struct.pack("<Q4sIHHHBB", 72 + size, b"_FVH", 0, 72, 0, 0, 0, 2)
    return head.ljust(72, b"\0") + store + body.ljust(size - 28, b"\xff")


DB = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
ENABLE = "f0a30bc7-af08-4556-99c4-001009c93a44"


def signatures_seed() -> bytes:
    """Two lists: a certificate that is none, and two digests."""
    x509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
    sha256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le
    first = x509 + struct.pack("<III", 28 + 40, 0, 40) + b"o" * 16 + b"\x30\x16" + bytes(22)
    return first + sha256 + struct.pack("<III", 28 + 96, 0, 48) + bytes(96)


def volumes_seed() -> bytes:
    """A volume with a file whose LZMA section holds two small volumes."""

    def section(kind: int, body: bytes) -> bytes:
        whole = (4 + len(body)).to_bytes(3, "little") + bytes([kind]) + body
        return whole + bytes(-len(whole) % 4)

    inner = section(0x17, volume(b"")) + section(0x17, volume(b""))
    guid = uuid.UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf").bytes_le
    packed = lzma.compress(inner, lzma.FORMAT_ALONE, preset=0)
    guided = section(0x02, guid + struct.pack("<HH", 24, 1) + packed)
    size = (24 + len(guided)).to_bytes(3, "little")
    return volume(b"f" * 16 + bytes(2) + b"\x0b\0" + size + b"\xf8" + guided)


def volume(files: bytes) -> bytes:
    """A firmware volume with these files."""
    length = -(-(72 + len(files) + 32) // 4096) * 4096
    head = bytes(16) + uuid.UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3").bytes_le
    head += struct.pack("<Q4sIHHHBB", length, b"_FVH", 0, 72, 0, 0, 0, 2)
    return (head.ljust(72, b"\0") + files).ljust(length, b"\xff")


def firmware_seed() -> bytes:
    """TDX and SEV metadata behind one table."""
    data = bytearray(4 * 4096)
    tdx = struct.pack("<4sIII", b"TDVF", 16 + 64, 1, 2)
    tdx += struct.pack("<IIQQII", 4096, 8192, 0xFFFFD000, 8192, 0, 1) + struct.pack(
        "<IIQQII", 0, 4096, 0xFFFFC000, 4096, 1, 0
    )
    sev = struct.pack("<4sIIIIII", b"ASEV", 28, 1, 1, 0x800000, 4096, 1)
    data[-2048 : -2048 + len(tdx)] = tdx
    data[-1024 : -1024 + len(sev)] = sev
    entries = b""
    for guid, distance in (
        ("e47a6535-984a-4798-865e-4685a7bf8ec2", 2048),
        ("dc886566-984a-4798-a75e-5585a7bf67cc", 1024),
    ):
        entries += struct.pack("<IH", distance, 22) + uuid.UUID(guid).bytes_le
    table = entries + struct.pack("<H", len(entries) + 18) + uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    data[-32 - len(table) : -32] = table
    return bytes(data)


def read_pe(data: bytes) -> None:
    """Everything that is asked of an image."""
    image = parse_pe(data, "image")
    image.digest("sha256")
    for item in image.sections:
        image.section(item.name)
    vouches(image, signatures_seed())


def read_fat(data: bytes) -> None:
    """Directories and files."""
    found = Fat(reader_of(data))
    found.names("/")
    found.names("EFI")
    found.file("EFI/GRUB.CFG")


def option_seed() -> bytes:
    """A boot option that names a file of a partition."""
    disk = struct.pack("<BBHIQQ", 4, 1, 42, 1, 40, 60) + b"i" * 16 + b"\x02\x02"
    text = "\\EFI\\x.efi\0".encode("utf-16-le")
    path = disk + struct.pack("<BBH", 4, 4, 4 + len(text)) + text + b"\x7f\xff\x04\0"
    return struct.pack("<IH", 1, len(path)) + "name\0".encode("utf-16-le") + path


def read_option(data: bytes) -> None:
    """What the boot manager starts."""
    table = read_gpt(reader_of(gpt_seed()))
    assert table is not None
    path, why = boot_path({(GLOBAL, "BootOrder"): b"\0\0", (GLOBAL, "Boot0000"): data}, table)
    assert bool(path) != bool(why)


class _Nobody:
    def check(self, data: bytes, what: str, checked: int, loaded: int) -> None:
        """Everything may start."""


def run_script(data: bytes) -> None:
    """A configuration, run with a file system that holds it, too."""
    runner = Runner(
        Steps(("sha256",)),
        DIALECTS["2.12"],
        _Nobody(),  # type: ignore[arg-type]
        Place(Fat(reader_of(fat_seed())), "hd0,gpt1", {"(hd0,gpt1)/x": data}),
    )
    runner.variables["prefix"] = "(hd0,gpt1)/EFI"
    runner.run(parse_script(data.decode("utf-8", "replace")))
    runner.start()


def read_firmware(data: bytes) -> None:
    """Both kinds of metadata."""
    for reader in (lambda: parse_tdvf(data).mrtd(), lambda: parse_firmware(data)):
        try:
            reader()
        except InputError:
            continue


READERS: tuple[tuple[Callable[[], bytes], Callable[[bytes], object]], ...] = (
    (pe_seed, read_pe),
    (gpt_seed, lambda data: read_gpt(reader_of(data))),
    (fat_seed, read_fat),
    (variables_seed, parse_variables),
    (signatures_seed, lambda data: list(signature_lists(data))),
    (volumes_seed, measured_volumes),
    (firmware_seed, read_firmware),
    (eif_images.example, lambda data: measure_eif(reader_of(data))),
    (lambda: SCRIPT, run_script),
    (option_seed, read_option),
)


@functools.cache
def seed_of(index: int) -> bytes:
    """The valid input of a reader."""
    return READERS[index][0]()


def mutated(seed: bytes, choices: bytes) -> bytes:
    """The seed with bytes replaced as ``choices`` says (3 bytes each: place, value), then perhaps cut."""
    image = bytearray(seed)
    for start in range(0, len(choices) - 2, 3):
        place, value = struct.unpack_from("<HB", choices, start)
        image[place % len(image)] = value
    return bytes(image[: len(image) - choices[0]] if choices and choices[-1] & 1 else image)


def one_input(data: bytes) -> None:
    """The first byte chooses the reader; the rest is read as it is, and as changes of the reader's seed."""
    if not data:
        return
    index = data[0] % len(READERS)
    for tried in (data[1:], mutated(seed_of(index), data[1:])):
        try:
            READERS[index][1](tried)
        except (InputError, NotUnderstoodError):
            continue


def main() -> None:
    """Hand over to libFuzzer."""
    import atheris

    atheris.instrument_all()
    atheris.Setup([*sys.argv, "-timeout=10"], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
