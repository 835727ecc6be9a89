"""Which firmware starts which confidential guest, on Debian's OVMF; for TDX with metadata of our own put behind it."""

from __future__ import annotations

import os
import struct
import uuid
from pathlib import Path

import pytest

from casemate.engine.confidential_boot import boot_fault
from casemate.spec.confidential import Kind

OVMF = Path("/usr/share/OVMF")
PAGE = 4096

pytestmark = pytest.mark.skipif(not (OVMF / "OVMF_VARS_4M.ms.fd").is_file(), reason="ovmf is not installed")


def image(variables: str, code: str) -> bytes:
    """Variables, code, and a page with TDX metadata whose variable section is the first part."""
    store = (OVMF / variables).read_bytes()
    data = store + (OVMF / code).read_bytes()
    section = struct.pack("<IIQQII", 0, len(store), 0xFFC00000, len(store), 1, 0)
    page = (struct.pack("<4sIII", b"TDVF", 16 + len(section), 1, 1) + section).ljust(PAGE, b"\0")
    entry = struct.pack("<IH", PAGE, 22) + uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2").bytes_le
    table = entry + struct.pack("<H", len(entry) + 18) + uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    return data + page[: PAGE - 32 - len(table)] + table + bytes(32)


def kernel() -> bytes:
    """The least PE image; nobody signed it."""
    found = bytearray(0x2000)
    found[:2] = b"MZ"
    found[0x3C:0x40] = (0x80).to_bytes(4, "little")
    found[0x80:0x84] = b"PE\0\0"
    struct.pack_into("<HH", found, 0x84, 0x8664, 1)
    struct.pack_into("<H", found, 0x94, 160)
    struct.pack_into("<H", found, 0x98, 0x20B)
    struct.pack_into("<I", found, 0x98 + 60, 0x1000)
    struct.pack_into("<I", found, 0x98 + 108, 6)
    struct.pack_into("<8sIIII", found, 0x98 + 160, b".text", 0x1000, 0x1000, 0x1000, 0x1000)
    return bytes(found)


@pytest.mark.parametrize(
    ("variables", "code", "refuses"),
    [
        ("OVMF_VARS_4M.ms.fd", "OVMF_CODE_4M.secboot.fd", True),
        ("OVMF_VARS_4M.fd", "OVMF_CODE_4M.secboot.fd", False),  # nobody's keys
    ],
)
def test_keys_of_the_firmware_decide(tmp_path: Path, variables: str, code: str, refuses: bool) -> None:
    firmware, program = tmp_path / "firmware", tmp_path / "kernel"
    firmware.write_bytes(image(variables, code))
    program.write_bytes(kernel())
    assert ("does not start this kernel" in boot_fault(Kind.TDX, str(firmware), str(program), 1)) is refuses


def test_what_is_no_such_firmware(tmp_path: Path) -> None:
    firmware, program = tmp_path / "firmware", tmp_path / "kernel"
    for kind in (Kind.TDX, Kind.SEV_SNP):
        assert boot_fault(kind, str(firmware), None, 1) == f"{firmware}: No such file or directory"
    firmware.write_bytes(b"nothing that is a firmware" * 1000)
    for kind in (Kind.TDX, Kind.SEV_SNP):
        assert boot_fault(kind, str(firmware), None, 1).startswith(f"{firmware} starts no such guest: ")
    firmware.write_bytes(image("OVMF_VARS_4M.ms.fd", "OVMF_CODE_4M.secboot.fd"))
    assert boot_fault(Kind.TDX, str(firmware), None, 1) == ""
    assert boot_fault(Kind.TDX, str(firmware), str(program), 1) == ""  # which is missing: said elsewhere
    program.write_bytes(b"MZ")
    assert boot_fault(Kind.TDX, str(firmware), str(program), 1) == ""
    assert "no SEV metadata" in boot_fault(Kind.SEV_SNP, str(firmware), None, 1)


def test_a_file_that_is_no_file_of_that_size_is_said_and_not_waited_for(tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    large.touch()
    os.truncate(large, (16 << 20) + 1)
    for kind in (Kind.TDX, Kind.SEV_SNP):
        assert boot_fault(kind, str(pipe), None, 1) == f"{pipe}: not a regular file"
        assert boot_fault(kind, str(large), None, 1) == f"{large}: larger than {16 << 20} bytes"


def test_snp_needs_a_place_for_the_kernels_hashes() -> None:
    whole = str(OVMF.parent / "ovmf/OVMF.fd")
    assert boot_fault(Kind.SEV_SNP, whole, None, 2) == ""
    assert "hashes" in boot_fault(Kind.SEV_SNP, whole, "/boot/vmlinuz", 2)
