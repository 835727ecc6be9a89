"""What the live TPM of a VM shows, as the facts that controls ask for (``tpm.*``).

swtpm is read back exactly as the emulator is: /proc of every thread and its live filters, against the wall that it was
put behind. What is not as planned is named in one fact, ``tpm.wall-faults``.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from casemate.engine.readback import observe_process
from casemate.engine.swtpm import Tpm
from casemate.engine.tpm_state import NAMES
from casemate.facts.fact import Fact, Facts, Known, Stage, Unknown, Value
from casemate.jail.policy import NAMESPACES
from casemate.plan.model import LaunchPlan
from casemate.plan.swtpm import STATE

FILTERS: Final = 2
"""Ours, and the one that swtpm loads itself."""


def observe_tpm(plan: LaunchPlan, tpm: Tpm, roles: dict[str, int]) -> Facts:
    """Read swtpm back.

    Raises:
        ProcessLookupError: it died.
    """
    pid = tpm.spawned.pid
    seen = observe_process(msgspec.structs.replace(plan, wall=tpm.wall), tpm.spawned, roles)
    live = f"/proc/{pid}"
    facts: Facts = {}

    def know(name: str, value: Value, source: str) -> None:
        facts[name] = Known(value, source, Stage.OBSERVED)

    with open(f"{live}/cmdline", "rb") as file:
        arguments = file.read(65536).split(b"\0")
    encrypted = b"--key" in arguments and any(word.endswith(b"mode=aes-256-cbc") for word in arguments)
    is_swtpm = arguments[:-1] == [word.encode() for word in tpm.wall.argv]
    know("tpm.backend", "swtpm" if is_swtpm else "unknown", f"{live}/cmdline; the other end of its socket is QEMU's")
    know("tpm.state-encrypted", encrypted, f"{live}/cmdline: --key fd=…,mode=aes-256-cbc")
    told = any(_tells(roles[name], b"\0".join(arguments)) for name in ("tpm-key", "tpm-export-key"))
    know("tpm.key-in-arguments", told, f"{live}/cmdline, searched for the keys")
    facts["tpm.own-uid"] = _own_uid(seen, plan.wall.identity.uid)
    know("tpm.wall-faults", wall_faults(seen, tpm), f"{live}: the same read-back as the emulator's")
    return facts


def _own_uid(seen: Facts, emulator: int) -> Fact:
    uid = seen.get("proc.uid", Unknown("not read"))
    return (
        uid if not isinstance(uid, Known) else Known(uid.value != emulator, f"{uid.source}; the emulator's: {emulator}")
    )


def wall_faults(seen: Facts, tpm: Tpm) -> tuple[str, ...]:
    """What of swtpm is not as planned; unreadable counts."""
    wall = tpm.wall
    wanted: dict[str, Value] = {
        "proc.uid": wall.identity.uid,
        "proc.gid": wall.identity.gid,
        "proc.caps": (),
        "proc.no-new-privs": True,
        "proc.seccomp-mode": 2,
        "proc.seccomp-filters": FILTERS,
        "proc.namespaces": tuple(sorted(NAMESPACES)),
        "proc.root-unexpected": (),
        "proc.mounts-writable": (STATE,),
        "proc.fds-unexpected": (),
        "proc.rlimits": tuple(sorted(f"{item.name}={item.value}" for item in wall.rlimits)),
        "proc.landlock": wall.landlock_abi,
        "proc.parent-death-signal": 9,
        "proc.session": True,
    }
    if wall.cgroup.directories:
        wanted["proc.cgroup"] = wall.cgroup.limits
    # Who is not root cannot read live filters: as for the emulator, a notification proves that ours is one of them.
    if isinstance(seen.get("proc.seccomp-dangerous"), Known) or not tpm.notified:
        wanted["proc.seccomp-dangerous"] = ()
    return tuple(
        f"{name}: {_shown(seen.get(name))}, planned {value}"
        for name, value in wanted.items()
        if not _is(seen.get(name), value)
    )


def _is(fact: Fact | None, value: Value) -> bool:
    if not isinstance(fact, Known):
        return False
    if isinstance(fact.value, tuple) and value == ():  # what it keeps in its state is its own
        return not [item for item in fact.value if not _is_state(str(item))]
    return fact.value == value


def _is_state(item: str) -> bool:
    """A file of its state: as the root's listing names it, or as the list of descriptors does."""
    path = item.partition(": ")[2].partition(" (")[0] if item[:1].isdigit() else item
    return path.startswith(f"{STATE}/") and path.removeprefix(f"{STATE}/") in NAMES


def _shown(fact: Fact | None) -> str:
    return str(fact.value) if isinstance(fact, Known) else f"unknown ({fact.why if fact else 'not read'})"


def _tells(descriptor: int, text: bytes) -> bool:
    key = bytearray(os.fstat(descriptor).st_size)
    os.preadv(descriptor, [key], 0)
    found = bytes(key) in text or key.hex().encode() in text
    key[:] = bytes(len(key))
    return found
