"""The small guests: listing against bytes, tables against the layout. No KVM needed."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from casemate.facts import kvm_guest as guest
from casemate.facts.kvm_guest import PROGRAMS, Program
from casemate.facts.kvm_report import CpuMode
from casemate.sys import kvm


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump (package binutils) is not installed")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_listing_is_what_a_disassembler_reads(program: Program, tmp_path: Path) -> None:
    raw = tmp_path / "code"
    raw.write_bytes(program.code)
    flavour = "i8086" if program.cpu_mode is CpuMode.REAL else "x86-64"
    command = ["objdump", "-D", "-b", "binary", "-m", "i386", "-M", f"intel,{flavour}", str(raw)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    rows = re.findall(r"^\s+[0-9a-f]+:\t([0-9a-f ]+?)\s*\t(.+)$", text, re.MULTILINE)
    seen = [(code, re.sub(r"\s+", " ", line).strip()) for code, line in rows]
    assert seen == [(code, line) for code, line in program.lines]


def test_every_program_fits_and_ends() -> None:
    for program in PROGRAMS:
        assert 0 < len(program.code) <= guest.GDT_ADDRESS - guest.CODE_ADDRESS
        if program is not guest.ENDLESS:
            assert program.code.endswith(b"\xf4")


def test_call_instruction_stands_where_the_patch_check_looks() -> None:
    at = guest.CALL_OFFSET
    assert guest.VMCALL.code[at : at + 3] == b"\x0f\x01\xc1"
    assert guest.VMMCALL.code[at : at + 3] == b"\x0f\x01\xd9"
    assert len(guest.CALL_BASELINE.code) == len(guest.VMCALL.code)


def test_tables_do_not_overlap_and_fit_the_slot() -> None:
    end = guest.CODE_ADDRESS
    for address, content in sorted(guest.memory_image().items()):
        assert address >= end
        end = address + len(content)
    assert end <= guest.MEMORY_BYTES <= guest.MMIO_ADDRESS < 2 << 20
    assert guest.KVM_TSS_ADDRESS >= guest.MEMORY_BYTES


def test_every_gate_leads_to_its_own_stub() -> None:
    image = guest.memory_image()
    gates, stubs = image[guest.IDT_ADDRESS], image[guest.STUBS_ADDRESS]
    for vector in range(guest.VECTORS):
        low, selector, _, kind, middle, high, _ = struct.unpack_from("<HHBBHII", gates, 16 * vector)
        address = low | middle << 16 | high << 32
        assert (selector, kind) == (guest.KERNEL_CODE, 0x8E)
        stub = stubs[address - guest.STUBS_ADDRESS :][:8]
        assert stub[:2] == bytes((0xB0, vector))
        assert stub[2:4] == bytes((0xE6, guest.FAULT_PORT))


def test_special_registers_touch_only_what_the_mode_needs() -> None:
    before = bytes(range(256)) + bytes(56)
    real = guest.special_registers(before, CpuMode.REAL)
    assert real[14:] == before[14:]
    kernel, user = (guest.special_registers(before, mode) for mode in (CpuMode.KERNEL, CpuMode.USER))
    for sregs in (kernel, user):
        assert len(sregs) == 312
        assert sregs[24 * 7 : 24 * 8] == before[24 * 7 : 24 * 8]  # LDT
        assert sregs[-40:] == before[-40:]  # APIC base, interrupt bitmap
    assert struct.unpack_from("<H", kernel, 12)[0] == guest.KERNEL_CODE
    assert struct.unpack_from("<H", user, 12)[0] == guest.USER_CODE


def test_unknown_register_is_our_bug() -> None:
    with pytest.raises(RuntimeError, match="no such register"):
        guest.general_registers({"eax": 1}, CpuMode.KERNEL)


def test_request_numbers_are_those_of_the_header() -> None:
    """Values as the C compiler computes them from linux/kvm.h on x86-64."""
    assert kvm.KVM_GET_API_VERSION == 0xAE00
    assert kvm.KVM_RUN == 0xAE80
    assert kvm.KVM_SET_USER_MEMORY_REGION == 0x4020AE46
    assert kvm.KVM_GET_SREGS == 0x8138AE83
    assert kvm.KVM_SET_REGS == 0x4090AE82
    assert kvm.KVM_GET_SUPPORTED_CPUID == 0xC008AE05
    assert kvm.KVM_GET_IRQCHIP == 0xC208AE62
    assert kvm.KVM_GET_LAPIC == 0x8400AE8E
    assert kvm.KVM_ENABLE_CAP == 0x4068AEA3


@pytest.mark.skipif(
    shutil.which("gcc") is None or not Path("/usr/include/linux/kvm.h").exists(), reason="no gcc or headers"
)
def test_every_request_number_against_the_kernel_header(tmp_path: Path) -> None:
    names = sorted(name for name in vars(kvm) if re.fullmatch(r"KVM_[A-Z0-9_]+", name))
    source = tmp_path / "numbers.c"
    lines = "".join(f'printf("{name} %lu\\n", (unsigned long){name});' for name in names)
    source.write_text(f"#include <stdio.h>\n#include <linux/kvm.h>\nint main(void) {{ {lines} return 0; }}\n")
    binary = tmp_path / "numbers"
    subprocess.run(["gcc", "-o", binary, source], check=True, timeout=60)
    output = subprocess.run([binary], capture_output=True, text=True, check=True, timeout=30).stdout
    header = {name: int(value) for name, value in (line.split() for line in output.splitlines())}
    assert len(header) == len(names) > 20
    assert header == {name: getattr(kvm, name) for name in names}
