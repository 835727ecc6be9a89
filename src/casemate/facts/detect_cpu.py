"""What the processor itself says: CPUID's hypervisor leaves, and how long CPUID takes.

The instructions run in a child with a deadline: CPUID can be made to fault (arch_prctl ARCH_CPUID_FAULTING), and a
hypervisor may do with it what it likes. User space may execute CPUID and RDTSC; nothing here needs root.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from typing import Final

import msgspec

from casemate.facts.detect_model import Trap
from casemate.facts.kvm_child import Outcome, run_in_child

DEADLINE_S: Final = 5.0
HYPERVISOR_BIT: Final = 1 << 31
BASES: Final = tuple(range(0x4000_0000, 0x4001_0000, 0x100))
"""Where hypervisors put their leaves; several may share a machine (KVM with Hyper-V's interface: the second base)."""
TRAPS_TICKS: Final = 800
"""A VM exit costs more than this on every processor that has VT-x or AMD-V; CPUID alone costs 50 to 250."""
SAMPLES: Final = 2000

# push rbx; mov r8,rdx; mov eax,edi; mov ecx,esi; cpuid; mov [r8],eax; mov [r8+4],ebx; mov [r8+8],ecx;
# mov [r8+12],edx; pop rbx; ret
_CPUID: Final = bytes.fromhex("534989d089f889f10fa24189004189580441894808418950 0c5bc3".replace(" ", ""))
# void time(uint64_t *out, uint64_t n, uint64_t with_cpuid): n times: lfence; rdtsc; [cpuid leaf 0;] lfence; rdtsc;
# store the difference. Clobbers rax, rcx, rdx, r8 to r11; saves rbx.
_TIME: Final = bytes.fromhex(
    "534989fa4989f34989d10faee80f3148c1e2204809d04989c04d85c9740631c031c90fa2"
    "0faee80f3148c1e2204809d04c29c04989024983c20849ffcb75cb5bc3"
)
_TIME_OFFSET: Final = 64


class CpuAnswers(msgspec.Struct, frozen=True):
    """``present``: leaf 1's hypervisor bit. ``signatures``: (base leaf, highest leaf, text). ``features``: EAX of KVM's
    feature leaf, None where there is none."""

    present: bool
    vendor: str
    signatures: tuple[tuple[int, int, str], ...]
    features: int | None
    trap: Trap | None


def ask_cpu(samples: int = SAMPLES) -> CpuAnswers | str:
    """Execute CPUID and time it; a text says why that was not possible."""
    if os.uname().machine != "x86_64":
        return f"CPUID: not an x86-64 processor but {os.uname().machine}"
    try:
        done = run_in_child(lambda _step: json.dumps(_measure(samples)).encode(), DEADLINE_S)
    except OSError as fault:
        return f"CPUID: no child process ({fault.strerror})"
    if done.outcome is not Outcome.DONE:
        return f"CPUID: the child that executes it {done.outcome.value}: {done.detail[:200]}"
    try:
        return decode_answers(json.loads(done.result))
    except (ValueError, KeyError, TypeError) as fault:
        return f"CPUID: the child's answer makes no sense ({fault})"


def decode_answers(raw: dict[str, list[list[int]]]) -> CpuAnswers:
    """Registers and durations to answers. Pure.

    Args:
        raw: ``leaves``: rows of (leaf, eax, ebx, ecx, edx); ``empty`` and ``cpuid``: one row of durations each.
    """
    leaves = {row[0]: row[1:] for row in raw["leaves"]}
    signatures = []
    for base in BASES:
        if base not in leaves:
            continue
        highest, *words = leaves[base]
        text = _text(words)
        if text and (base <= highest < base + 0x100 or highest == 0):
            signatures.append((base, highest, text))
    first = leaves[1]
    features = next((leaves[base + 1][0] for base, _, text in signatures if text == "KVMKVMKVM"), None)
    vendor = leaves[0]
    return CpuAnswers(
        present=bool(first[2] & HYPERVISOR_BIT),
        vendor=_text([vendor[1], vendor[3], vendor[2]]),
        signatures=tuple(signatures),
        features=features,
        trap=summarise(raw["empty"][0], raw["cpuid"][0]),
    )


def summarise(empty: list[int], cpuid: list[int]) -> Trap | None:
    """Percentiles of both series; None when there is too little to say anything."""
    if len(empty) < 100 or len(cpuid) < 100:
        return None
    empty, cpuid = sorted(empty), sorted(cpuid)

    def at(series: list[int], percent: int) -> int:
        return series[min(len(series) - 1, len(series) * percent // 100)]

    return Trap(
        samples=len(cpuid),
        empty_ticks=at(empty, 50),
        low_ticks=at(cpuid, 10),
        median_ticks=at(cpuid, 50),
        high_ticks=at(cpuid, 90),
    )


def _text(words: list[int]) -> str:
    """Twelve bytes of registers as text; empty unless they are printable ASCII."""
    data = b"".join(word.to_bytes(4, "little") for word in words[:3]).rstrip(b"\0")
    return data.decode("ascii") if len(data) >= 4 and all(32 <= byte < 127 for byte in data) else ""


def _measure(samples: int) -> dict[str, list[list[int]]]:
    """In the child: all leaves that matter, then the durations."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page[0 : len(_CPUID)] = _CPUID
    page[_TIME_OFFSET : _TIME_OFFSET + len(_TIME)] = _TIME
    anchor = ctypes.c_char.from_buffer(page)
    start = ctypes.addressof(anchor)
    # SAFETY: both routines are position-independent, keep rbx, and write only into the buffers given to them, which
    # outlive the calls; the page outlives the child.
    call_cpuid = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(start)
    call_time = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)(start + _TIME_OFFSET)
    registers = (ctypes.c_uint32 * 4)()

    def leaf(number: int) -> list[int]:
        call_cpuid(number, 0, ctypes.addressof(registers))
        return [number, *registers]

    leaves = [leaf(0), leaf(1)]
    for base in BASES:
        row = leaf(base)
        leaves.append(row)
        if _text(row[2:]) == "KVMKVMKVM":
            leaves.append(leaf(base + 1))
    series = []
    for with_cpuid in (0, 1):
        buffer = (ctypes.c_uint64 * samples)()
        call_time(ctypes.addressof(buffer), samples, with_cpuid)
        series.append([int(value) for value in buffer])
    return {"leaves": leaves, "empty": [series[0]], "cpuid": [series[1]]}
