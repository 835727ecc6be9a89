"""LUKS as qemu-img writes it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

_ATTEMPTS = 60


def create_luks(command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    """Run ``qemu-img create``, again where it measured its processor in vain, which it does often and says."""
    for _ in range(_ATTEMPTS):
        done = subprocess.run(command, check=False, capture_output=True, timeout=120)
        if b"accurate CPU usage" not in done.stderr:
            break
    return done
