"""Where measured figures stand: between marks of a document, each section written by the benchmark that it names."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
BENCHMARKS: Final = ROOT / "docs/benchmarks.md"
_END: Final = "<!-- end of figures -->"


def processor() -> str:
    """The processor's name as the kernel has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine() -> str:
    """Date and machine, to stand above a table."""
    return (
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {processor()}, {os.cpu_count()} cores,"
        f" Linux {os.uname().release}, Python {platform.python_version()}, load average {os.getloadavg()[0]:.1f}."
    )


def write_figures(program: str, text: str, document: Path = BENCHMARKS) -> None:
    """Replace what ``program`` wrote into ``document`` before; exits when there are no marks."""
    begin = f"<!-- figures of {program} -->"
    before, found, rest = document.read_text().partition(begin)
    _, end, after = rest.partition(_END)
    if not found or not end:
        sys.exit(f"{document} has no marks for the figures of {program}")
    document.write_text(f"{before}{begin}\n{text.strip()}\n{_END}{after}")
