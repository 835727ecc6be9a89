"""Three guests of a few dozen instructions, for boards where a Linux would be too slow or has nothing to do.

`bios_disk` boots through SeaBIOS: a boot sector that prints sector 1 of its disk on COM1 and does what byte 16 of that
sector says. `pvh_kernel` is a kernel for ``-kernel``: it prints one line on COM1 and halts for ever. `flash_writer`
is an EFI program that attacks the flash with the firmware's variables, says on COM1 what came of it and powers off.

The machine code was assembled by GNU as from the listings beside it; nothing here needs an assembler.
"""

from __future__ import annotations

import struct
from pathlib import Path

SECTOR_BYTES = 512
BIOS_UP, BIOS_WROTE, BIOS_OFF = "bios-guest: up", "bios-guest: wrote", "bios-guest: off"
BIOS_IDLE, BIOS_FAILED = "bios-guest: idle", "bios-guest: disk failed"
PVH_UP = "kvm-guest: up"
FLASH_WRITTEN, FLASH_CLOSED = "flash: written", "flash: closed"
FLASH_MARK = 0xA5

_PVH_ADDRESS = 0x100000
_XEN_PHYS32_ENTRY = 18

# Loaded by the firmware at 0x7c00 in real mode; dl is the drive. Data stands behind the code.
_BOOT_SECTOR = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007cfb"  # cli; ds, es, ss = 0; sp = 0x7c00; sti
    "8816867cbe987ce85700"  # keep dl; print "up"
    "b442be887c8a16867ccd137242"  # int 13h, ah=42h: sector 1 to 0x8000; on carry: "disk failed"
    "be0080e84400"  # print sector 1
    "803e108050741f803e1080577525"  # byte 16: P -> off; not W -> idle
    "fe060c80b80043be887c8a16867ccd13721c"  # W: count up at byte 12, int 13h, ah=43h: write it back
    "bea97ce81e00"  # print "wrote"
    "bed77ce81800ba0406b80020ef"  # off: print; 0x2000 to port 0x604, ACPI's PM1a control: S5
    "bee97ce80b00f4ebfd"  # idle: print; hlt for ever
    "bebd7ce80200ebf5"  # failed: print; hlt for ever
    "ac84c0741288c4bafd03eca82074fbbaf80388e0eeebe9c3"  # print: poll 0x3fd, write to 0x3f8, until NUL
    "0090"  # drive
    "10000100008000000100000000000000"  # disk address packet: one sector, 0:0x8000, LBA 1
) + b"".join(f"{text}\r\n\0".encode() for text in (BIOS_UP, BIOS_WROTE, BIOS_FAILED, BIOS_OFF, BIOS_IDLE))

_PVH_CODE = bytes.fromhex(
    "be22001000"  # mov esi, text
    "ac84c0741488c466bafd03eca82074fb66baf80388e0eeebe7"  # the same loop in 32-bit protected mode
    "faf4ebfc"  # cli; hlt for ever
)  # fmt: skip


def bios_disk(path: Path, action: str = "I", size_bytes: int = 1 << 20) -> Path:
    """Write a raw disk. ``action``: ``W`` count up and power off, ``P`` power off, ``I`` idle."""
    code = _BOOT_SECTOR.ljust(SECTOR_BYTES - 2, b"\0") + b"\x55\xaa"
    sector = b"boot count: 0\r\n\0" + action.encode()
    path.write_bytes((code + sector.ljust(SECTOR_BYTES, b"\0")).ljust(size_bytes, b"\0"))
    return path


def boot_count(path: Path) -> int:
    """The digit that the guest keeps on its disk."""
    with path.open("rb") as file:
        file.seek(SECTOR_BYTES + 12)
        return int(file.read(1))


def pvh_kernel(path: Path, line: str = PVH_UP) -> Path:
    """Write an ELF executable of one segment, with the note that names its 32-bit entry point (PVH).

    Args:
        line: what it prints before it halts.
    """
    code = _PVH_CODE + f"{line}\r\n\0".encode()
    header_bytes, program_header_bytes = 52, 32
    note = struct.pack("<III4sI", 4, 4, _XEN_PHYS32_ENTRY, b"Xen\0", _PVH_ADDRESS)
    note_at = header_bytes + 2 * program_header_bytes
    code_at = 4096
    ident = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack(
        "<HHIIIIIHHHHHH", 2, 3, 1, _PVH_ADDRESS, header_bytes, 0, 0, header_bytes, program_header_bytes, 2, 0, 0, 0
    )
    size = len(code)
    load = struct.pack("<IIIIIIII", 1, code_at, _PVH_ADDRESS, _PVH_ADDRESS, size, size, 7, 4096)
    notes = struct.pack("<IIIIIIII", 4, note_at, 0, 0, len(note), len(note), 4, 4)
    path.write_bytes((header + load + notes + note).ljust(code_at, b"\0") + code)
    return path


# The last byte of the variables lies right below OVMF's code, which ends at 4 GiB (its builds of 4 MiB).
_FLASH_CODE = bytes.fromhex(
    "fabfff3fc8ff"  # cli; edi = 0xffc83fff
    "c60740c607a5c607ff8a07"  # byte program, 0xa5, back to reading; al = what is there
    "488d35310000003ca57407488d3537000000"  # "written" where it is 0xa5, else "closed"
    "ac84c0741488c466bafd03eca82074f766baf80388e0eeebe7"  # print: poll 0x3fd, write to 0x3f8, until NUL
    "66ba040666b8002066eff4ebfd"  # 0x2000 to port 0x604, ACPI's PM1a control: S5; hlt for ever
) + b"".join(f"{text}\r\n\0".encode() for text in (FLASH_WRITTEN, FLASH_CLOSED))


def flash_writer(path: Path) -> Path:
    """Write an EFI program (PE32+, one section) that programs the last byte of the variables' flash to `FLASH_MARK`."""
    size, alignment, page = 512, 512, 4096
    header_at = 64
    dos = b"MZ".ljust(60, b"\0") + struct.pack("<I", header_at)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 240, 0x0002)
    optional = struct.pack("<HBBIIIIIQ", 0x20B, 0, 0, size, 0, 0, page, page, 0)
    optional += struct.pack("<IIHHHHHHIIIIHH", page, alignment, 0, 0, 0, 0, 0, 0, 0, 2 * page, alignment, 0, 10, 0)
    optional += struct.pack("<QQQQII", 0, 0, 0, 0, 0, 16) + bytes(16 * 8)
    section = struct.pack("<8sIIIIIIHHI", b".text", len(_FLASH_CODE), page, size, alignment, 0, 0, 0, 0, 0x60000020)
    path.write_bytes((dos + coff + optional + section).ljust(alignment, b"\0") + _FLASH_CODE.ljust(size, b"\0"))
    return path
