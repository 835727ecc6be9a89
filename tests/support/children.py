"""Children of this process, for tests that leave none."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def children() -> set[int]:
    """Pids of our children, dead ones that nobody waited for included.

    Compare with what was there before: the standard library keeps helpers for a process's life (multiprocessing), and
    other tests of the same process may have started them.
    """
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                if int(stat.rpartition(")")[2].split()[1]) == os.getpid():
                    found.add(int(entry))
    return found
