"""TPM commands and answers as bytes: known vectors, and whatever a broken TPM may say."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.engine import tpm_commands as tpm
from casemate.errors import VmError
from casemate.evidence.tpm import parse_public_key


def test_fixed_commands() -> None:
    """As the TPM library specification part 3 writes them, and as tpm2-tools sends them."""
    assert tpm.startup().hex() == "80010000000c000001440000"
    assert tpm.shutdown().hex() == "80010000000c000001450000"
    assert tpm.get_banks().hex() == "8001000000160000017a000000050000000000000001"
    assert tpm.flush_context(0x80000000).hex() == "80010000000e0000016580000000"
    assert tpm.control(tpm.CMD_INIT, flags=0).hex() == "0000000200000000"
    assert tpm.control(tpm.CMD_STOP).hex() == "0000000e"


def test_allocation_takes_every_other_bank_away() -> None:
    command = tpm.pcr_allocate((0x0004, tpm.SHA256, 0x000C), tpm.SHA256)
    assert command.endswith(bytes.fromhex("00000003000403000000000b03ffffff000c03000000"))
    assert command[:10] == bytes.fromhex("8002") + len(command).to_bytes(4, "big") + bytes.fromhex("0000012b")


@pytest.mark.parametrize("template", [tpm.EK_TEMPLATE, tpm.AK_TEMPLATE])
def test_lengths_inside_a_command_add_up(template: bytes) -> None:
    command = tpm.create_primary(template)
    assert int.from_bytes(command[2:6], "big") == len(command)
    at = command.index(template)
    assert int.from_bytes(command[at - 2 : at], "big") == len(template)
    assert command[at + len(template) :] == bytes(6)
    evict = tpm.evict_control(0x80000000, tpm.AK_HANDLE)
    assert evict.endswith(tpm.AK_HANDLE.to_bytes(4, "big"))


def test_the_attestation_key_signs_only_what_the_tpm_made() -> None:
    """TPMA_OBJECT: fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign; no decrypt."""
    assert int.from_bytes(tpm.AK_TEMPLATE[4:8], "big") == 0x00050472
    assert int.from_bytes(tpm.EK_TEMPLATE[4:8], "big") == 0x000300B2


def test_the_public_part_is_what_the_verifier_reads() -> None:
    modulus = (1 << 2047 | 0x1234567 << 1 | 1).to_bytes(256, "big")
    public = tpm.AK_TEMPLATE[:-2] + b"\x01\0" + modulus
    assert modulus in parse_public_key(public)


def test_answers() -> None:
    assert tpm.response(bytes.fromhex("80010000000a00000000"), "x") == b""
    banks = tpm.parse_banks(bytes.fromhex("000000000500000002000b03ffffff000403000000"))
    assert banks == {0x000B: b"\xff\xff\xff", 0x0004: bytes(3)}
    assert tpm.parse_allocated(bytes.fromhex("0000000d01"))
    assert not tpm.parse_allocated(bytes.fromhex("0000000d00"))
    assert tpm.parse_primary(struct.pack(">IIH", 0x80000000, 9, 3) + b"abcdef") == (0x80000000, b"abc")
    for bad in (b"", bytes.fromhex("80010000000a00000101"), bytes.fromhex("80010000000b00000000")):
        with pytest.raises(VmError):
            tpm.response(bad, "x")


@given(st.binary(max_size=64))
def test_hostile_answers_are_refused_in_words(data: bytes) -> None:
    for read in (tpm.parse_banks, tpm.parse_primary, tpm.control_result, lambda body: tpm.response(body, "x")):
        with contextlib.suppress(VmError):
            read(data)
