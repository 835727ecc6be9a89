"""What cannot start because it does not fit: QEMU would abort, and not in words that help."""

from __future__ import annotations

import re
from typing import Final

from casemate.errors import HostError, InputError
from casemate.facts.root import Root
from casemate.spec.model import Spec
from casemate.units import format_bytes

_OWN_THREADS: Final = 8
"""Main loop, RCU and what QEMU starts for a moment."""
_BLOCK_WORKERS: Final = 64
"""QEMU's thread pool grows up to this (util/thread-pool.c); a worker that cannot be made aborts QEMU."""


def check_capacity(spec: Spec, root: Root) -> None:
    """Refuse more memory than the host has, and more vCPUs than the VM may have threads.

    Raises:
        HostError, InputError: with both numbers.
    """
    machine = spec.machine
    needed = machine.vcpus + _OWN_THREADS + (_BLOCK_WORKERS if spec.disks else 0)
    if needed > spec.limits.pids:
        raise InputError(
            f"limits.pids does not allow {machine.vcpus} vCPUs",
            got=f"{spec.limits.pids} threads",
            expected=f"at least {needed}: one per vCPU and QEMU's own",
            next_step=f"pids = {needed} in [limits], or fewer vCPUs",
        )
    present = _memory_and_swap_bytes(root)
    if present is not None and machine.memory_mib << 20 > present:
        raise HostError(
            "the VM's memory does not fit into this host's",
            got=f"{machine.memory_mib} MiB",
            expected=f"less than {format_bytes(present)}, memory and swap",
            next_step="a smaller memory_mib or --memory-mib",
        )


def _memory_and_swap_bytes(root: Root) -> int | None:
    """All of it, in use or not: what the kernel refuses at once (overcommit_memory 0). None when it is not known."""
    try:
        text = root.read_text("/proc/meminfo")
    except (OSError, ValueError):
        return None
    found = dict(re.findall(r"^(MemTotal|SwapTotal):\s*([0-9]{1,15}) kB$", text, re.MULTILINE))
    return (int(found["MemTotal"]) + int(found.get("SwapTotal", 0))) << 10 if "MemTotal" in found else None
