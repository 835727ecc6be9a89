"""Reading programs: what the kernel refuses is refused, with the instruction named."""

from __future__ import annotations

import struct

import pytest

from casemate.bpf import instruction as bpf
from casemate.bpf.instruction import Instruction, check, decode, disassemble, encode, word_name

ALLOW = Instruction(bpf.RET_K, 0, 0, 0x7FFF_0000)


def raw(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("=HBBI", *fields) for fields in instructions)


def test_decode_reads_what_encode_wrote() -> None:
    program = (Instruction(bpf.LD_ABS, 0, 0, 4), Instruction(bpf.JEQ_K, 0, 1, 0xC000_003E), ALLOW, ALLOW._replace(k=0))
    assert encode(program) == raw(*program)
    assert decode(encode(program)) == program


@pytest.mark.parametrize("size", [0, 1, 7, 9, 15, 8 * 4097])
def test_a_size_that_is_no_program_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"got {size} bytes"):
        decode(b"\x06\0\0\0\0\0\0\0" * (size // 8) + b"\0" * (size % 8))


def test_the_longest_program_is_read() -> None:
    assert len(decode(raw(*((bpf.LD_IMM, 0, 0, 0),) * 4095, ALLOW))) == 4096


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ((bpf.LD_ABS, 0, 0, 64), "outside of seccomp_data"),
        ((bpf.LD_ABS, 0, 0, 2), "not aligned"),
        ((0x28, 0, 0, 0), "not an instruction"),  # ld half word
        ((0x30, 0, 0, 0), "not an instruction"),  # ld byte
        ((0x40, 0, 0, 0), "not an instruction"),  # ld indirect
        ((0xB1, 0, 0, 0), "not an instruction"),  # ldx msh
        ((0x94, 0, 0, 3), "not an instruction"),  # mod: classic BPF has it, seccomp does not
        ((0x0E, 0, 0, 0), "not an instruction"),  # ret x
        ((0xFFFF, 0, 0, 0), "not an instruction"),
        ((bpf.JA, 0, 0, 1), "beyond the end"),
        ((bpf.JA, 0, 0, 0xFFFF_FFFF), "beyond the end"),
        ((bpf.JEQ_K, 1, 0, 0), "beyond the end"),
        ((bpf.JSET_X, 0, 1, 0), "beyond the end"),
        ((bpf.DIV_K, 0, 0, 0), "divides by the constant 0"),
        ((bpf.LSH_K, 0, 0, 32), "shifts by 32"),
        ((bpf.RSH_K, 0, 0, 99), "shifts by 32"),
        ((bpf.ST, 0, 0, 16), "16 words"),
        ((bpf.STX, 0, 0, 0xFFFF_FFFF), "16 words"),
        ((bpf.LD_MEM, 0, 0, 16), "16 words"),
        ((bpf.LDX_MEM, 0, 0, 0), "before it is written"),
    ],
)
def test_a_bad_instruction_is_named(instruction: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as fault:
        decode(raw((bpf.LD_IMM, 0, 0, 0), instruction, ALLOW))
    assert "instruction 1 " in str(fault.value)


def test_the_last_instruction_must_return() -> None:
    with pytest.raises(ValueError, match="last instruction must return"):
        decode(raw((bpf.LD_IMM, 0, 0, 0)))


def test_scratch_must_be_written_on_both_ways() -> None:
    one_way = ((bpf.JEQ_K, 0, 1, 0), (bpf.ST, 0, 0, 5), (bpf.LD_MEM, 0, 0, 5), ALLOW)
    with pytest.raises(ValueError, match="scratch word 5"):
        decode(raw(*one_way))
    both_ways = ((bpf.JEQ_K, 0, 2, 0), (bpf.ST, 0, 0, 5), (bpf.JA, 0, 0, 1), (bpf.STX, 0, 0, 5), (bpf.LD_MEM, 0, 0, 5))
    assert len(decode(raw(*both_ways, ALLOW))) == 6
    # What is written where a jump leaves says nothing of the next instruction, which only other jumps reach.
    past_a_jump = ((bpf.JEQ_K, 0, 2, 0), (bpf.ST, 0, 0, 5), (bpf.JA, 0, 0, 1), (bpf.JA, 0, 0, 1), (bpf.LD_MEM, 0, 0, 5))
    assert len(decode(raw(*past_a_jump, ALLOW))) == 6


def test_fields_that_do_not_fit_are_refused_before_they_are_written() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        encode((Instruction(bpf.LD_IMM, 0, 0, 1 << 32), ALLOW))
    with pytest.raises(ValueError, match="0"):
        check(())


def test_disassemble_shows_absolute_targets_and_names() -> None:
    program = decode(
        raw(
            (bpf.LD_ABS, 0, 0, 0),
            (bpf.JGE_K, 0, 1, 0x4000_0000),
            (bpf.RET_K, 0, 0, 0x8000_0000),
            (bpf.LD_ABS, 0, 0, 28),
            (bpf.AND_K, 0, 0, 0xFF),
            (bpf.JSET_X, 0, 0, 0),
            (bpf.RET_A, 0, 0, 0),
        )
    )
    text = disassemble(program).splitlines()
    assert text[0].split(None, 1) == ["0", "A = nr"]
    assert text[1].endswith("if A >= 0x40000000 goto 2 else 3")
    assert text[2].endswith("return 0x80000000")
    assert text[3].endswith("A = args[1].hi")
    assert text[4].endswith("A &= 0xff")
    assert text[5].endswith("if A & X goto 6 else 6")
    assert text[6].endswith("return A")


def test_word_names_cover_the_data() -> None:
    names = [word_name(offset) for offset in range(0, 64, 4)]
    assert names[:4] == ["nr", "arch", "ip.lo", "ip.hi"]
    assert names[4] == "args[0].lo"
    assert names[15] == "args[5].hi"
    assert len(set(names)) == 16
    assert word_name(64) == "data[64]"
