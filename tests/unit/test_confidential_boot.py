"""Whether a TDX firmware with keys starts a given kernel, on Debian's OVMF with metadata of TDX put behind it."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

import pytest

from casemate.engine.confidential_boot import refuses_kernel

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
    assert refuses_kernel(str(firmware), str(program)) is refuses


def test_what_cannot_be_read_is_for_the_firmware_to_decide(tmp_path: Path) -> None:
    firmware, program = tmp_path / "firmware", tmp_path / "kernel"
    assert not refuses_kernel(str(firmware), str(program))
    firmware.write_bytes(b"nothing that is a firmware" * 1000)
    assert not refuses_kernel(str(firmware), str(program))
    firmware.write_bytes(image("OVMF_VARS_4M.ms.fd", "OVMF_CODE_4M.secboot.fd"))
    assert not refuses_kernel(str(firmware), str(program))
    program.write_bytes(b"MZ")
    assert not refuses_kernel(str(firmware), str(program))
