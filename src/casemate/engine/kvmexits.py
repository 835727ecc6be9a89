"""Exits by reason: KVM's own counters of a VM's processors, asked of its emulator (QMP query-stats, QEMU 7.1).

They come from KVM_GET_STATS_FD (Linux 5.14), which needs neither root nor debugfs. The names are the kernel's
(arch/x86/kvm/x86.c: kvm_vcpu_stats_desc). Not every exit has a counter: on x86 ``exits`` counts all of them, the
others only theirs, and what is left over has none. The emulator is hostile by assumption: its answer is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from casemate.errors import CasemateError

QUESTION: Final = "query-stats"
ARGUMENTS: Final[dict[str, Any]] = {"target": "vcpu", "providers": [{"provider": "kvm"}]}
_VCPUS_MAX: Final = 1024
_COUNTERS_MAX: Final = 512
_VALUE_MAX: Final = 1 << 64
_NAME: Final = re.compile(r"[a-z0-9_]{1,64}")
# Neither is an exit by its name: an instruction that KVM worked out itself, and a call of the guest.
_BESIDE: Final = frozenset({"insn_emulation", "hypercalls"})


def read_exits(ask: Callable[..., Any]) -> dict[str, int] | str:
    """Exits since the start, all processors together, by the kernel's name of the counter; or why there are none.

    Args:
        ask: ``ask(question, **arguments)``.
    """
    try:
        answer = ask(QUESTION, **ARGUMENTS)
    except CasemateError as fault:
        return f"the emulator does not tell: {str(fault).partition(chr(10))[0][:160]}"
    if not isinstance(answer, list) or len(answer) > _VCPUS_MAX:
        return f"the answer to {QUESTION} makes no sense"
    found: dict[str, int] = {}
    for entry in answer:
        stats = entry.get("stats") if isinstance(entry, dict) and entry.get("provider") == "kvm" else None
        if not isinstance(stats, list) or len(stats) > _COUNTERS_MAX:
            return f"the answer to {QUESTION} makes no sense"
        for counter in stats:
            name, value = _counter(counter)
            if name:
                found[name] = found.get(name, 0) + value
    return found or "KVM tells no counters of exits: no KVM, or a kernel before 5.14"


def _counter(counter: object) -> tuple[str, int]:
    """(name, value) of a counter of exits; an empty name for any other."""
    if not isinstance(counter, dict):
        return "", 0
    name, value = counter.get("name"), counter.get("value")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ("exit" not in name and name not in _BESIDE):
        return "", 0
    return (name, value) if type(value) is int and 0 <= value < _VALUE_MAX else ("", 0)


def difference(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What was added between two answers, the reasons that occurred only; counters never run backwards."""
    return {name: value - before.get(name, 0) for name, value in after.items() if value > before.get(name, 0)}
