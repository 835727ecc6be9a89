"""The frequency of the host's time stamp counter, which a TCG guest sees as its own.

A Linux guest on microvm calibrates its TSC with the PIT; a busy host makes that fail, and the guest then waits for a
timer tick that never comes. Told the frequency (``tsc_early_khz``), it needs no PIT at all.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

import msgspec

from casemate.facts.stamp import load_cache, save_cache

# rdtsc; shl rdx,32; or rax,rdx; ret
_RDTSC = bytes.fromhex("0f3148c1e2204809d0c3")
_WINDOW_S = 0.02


class _Cached(msgspec.Struct, frozen=True):
    boot_id: str
    khz: int


def tsc_khz(cache_file: Path, boot_id: str) -> int | None:
    """Frequency in kHz, measured once per boot; None where there is no such counter or it cannot be read.

    Measured against CLOCK_MONOTONIC_RAW over 20 ms; the error is about one part in a million.
    """
    if os.uname().machine != "x86_64":
        return None
    cached = load_cache(cache_file, _Cached)
    if cached is not None and cached.boot_id == boot_id and cached.khz > 0:
        return cached.khz
    khz = _measure()
    if khz is not None:
        save_cache(cache_file, _Cached(boot_id, khz))
    return khz


def _measure() -> int | None:
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a host that forbids writable code
        return None
    page.write(_RDTSC)
    # SAFETY: ten bytes of position-independent code that touch rax and rdx only; the page outlives every call.
    anchor = ctypes.c_char.from_buffer(page)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(anchor))

    def sample() -> tuple[int, int]:
        best = (1 << 62, 0, 0)
        for _ in range(10):
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            ticks = int(read())
            after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
            best = min(best, (after - before, (before + after) // 2, ticks))
        return best[1], best[2]

    first_ns, first = sample()
    time.sleep(_WINDOW_S)
    last_ns, last = sample()
    khz = (last - first) * 1_000_000 // (last_ns - first_ns)
    return khz if 100_000 < khz < 20_000_000 else None
