"""Run a command under strace and boil the log down to which calls, with which arguments that matter, in which phase.

Arguments are taken raw (hexadecimal, as the kernel's seccomp data has them, so sign extension shows), except for the
few calls whose path is worth reading. The boundary between the phases is a wall clock time that the driver notes just
before it lets the guest run; strace stamps each call at entry with the same clock.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

# Calls that strace shall decode, because the path tells why the call is made.
PATH_CALLS = ("access", "execve", "openat", "readlink", "readlinkat", "stat", "statfs", "unlink", "chdir")

# Which arguments matter: index of each. Everything that is not listed is summarised by its name alone.
RELEVANT: dict[str, tuple[int, ...]] = {
    "accept4": (3,),
    "arch_prctl": (0,),
    "clone": (0,),
    "eventfd2": (1,),
    "fallocate": (1,),
    "fcntl": (1,),
    "futex": (1,),
    "getrandom": (2,),
    "getsockopt": (1, 2),
    "ioctl": (1,),
    "kill": (1,),
    "lseek": (2,),
    "madvise": (2,),
    "mmap": (2, 3),
    "mprotect": (2,),
    "newfstatat": (3,),
    "openat": (2,),
    "pidfd_send_signal": (1,),
    "prctl": (0,),
    "prlimit64": (2,),
    "recvmsg": (2,),
    "rt_sigaction": (0,),
    "rt_sigprocmask": (0,),
    "seccomp": (0, 1),
    "sendmsg": (2,),
    "setsockopt": (1, 2),
    "shutdown": (1,),
    "signalfd4": (3,),
    "socket": (0, 1, 2),
    "socketpair": (0, 1, 2),
    "tgkill": (2,),
    "timerfd_create": (0,),
    "unshare": (0,),
    "waitid": (0,),
}

# Arguments that prctl has beyond its option, kept where the option alone says too little.
PRCTL_WITH_SECOND = frozenset({22, 23, 24})

_LINE = re.compile(r"^(?P<pid>\d+) +(?P<time>\d+\.\d+) (?P<name>[a-z_0-9]+)\((?P<rest>.*)$")
_NUMBER = re.compile(r"^(0x[0-9a-f]+|-?\d+|AT_FDCWD)")


@dataclass(frozen=True)
class Call:
    """One system call at its entry: thread, time (s since the epoch), name, raw argument texts, text of the result."""

    pid: int
    time: float
    name: str
    args: tuple[str, ...]
    result: str


@dataclass
class Summary:
    """Calls per phase: name -> set of argument tuples ((index, value), ...); ``notes`` keeps paths and errors."""

    startup: dict[str, set[tuple[tuple[int, int], ...]]] = field(default_factory=dict)
    always: dict[str, set[tuple[tuple[int, int], ...]]] = field(default_factory=dict)
    notes: dict[str, set[str]] = field(default_factory=dict)


def parse_log(text: str) -> Iterable[Call]:
    """Yield the calls of an strace log written with ``-f -ttt`` (resumed halves are skipped)."""
    for line in text.splitlines():
        found = _LINE.match(line)
        if not found:
            continue
        rest = found["rest"]
        if rest.endswith("<unfinished ...>"):
            body, result = rest[: -len("<unfinished ...>")], "?"
        else:
            body, _, result = rest.rpartition(" = ")
            body = body.rstrip().removesuffix(")")
        yield Call(int(found["pid"]), float(found["time"]), found["name"], _split(body), result.strip())


def _split(body: str) -> tuple[str, ...]:
    """Split an argument list at top-level commas."""
    parts: list[str] = []
    depth, quoted, start = 0, False, 0
    for at, char in enumerate(body):
        if char == '"' and body[at - 1 : at] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(body[start:at].strip())
            start = at + 1
    tail = body[start:].strip()
    return (*parts, tail) if tail else tuple(parts)


def _value(text: str) -> int:
    """A raw argument as an unsigned 64-bit number."""
    found = _NUMBER.match(text)
    if not found:
        raise ValueError(f"not a raw number: {text!r}")
    return (-100 if found[1] == "AT_FDCWD" else int(found[1], 0)) & 0xFFFF_FFFF_FFFF_FFFF


def relevant_args(call: Call) -> tuple[tuple[int, int], ...]:
    """The argument values that a rule could look at."""
    wanted = RELEVANT.get(call.name, ())
    if call.name == "prctl" and _value(call.args[0]) in PRCTL_WITH_SECOND:
        wanted = (0, 1)
    if call.name == "prlimit64":
        # A pointer: only whether there is one matters.
        return ((2, int(_value(call.args[2]) != 0)),)
    return tuple((index, _value(call.args[index])) for index in wanted if index < len(call.args))


def summarise(text: str, boundary: float, program: str = "qemu-system-x86_64") -> Summary:
    """Summarise the calls from the successful execve of ``program`` (its base name) on, in two phases.

    Calls before that execve belong to the launcher and are dropped. That execve itself is the first start-up call.
    """
    summary, begun = Summary(), False
    for call in parse_log(text):
        if not begun:
            if call.name != "execve" or Path(call.args[0].strip('"')).name != program or call.result.startswith("-"):
                continue
            begun = True
        phase = summary.startup if call.time < boundary else summary.always
        phase.setdefault(call.name, set()).add(relevant_args(call))
        if call.name in PATH_CALLS or call.result.startswith("-1"):
            when = "startup" if call.time < boundary else "always"
            path = next((arg for arg in call.args if arg.startswith('"')), "")
            summary.notes.setdefault(call.name, set()).add(f"{when} {path} = {call.result[:40]}")
    if not begun:
        raise RuntimeError(f"the log has no successful execve of {program}")
    return summary


def merge(summary: Summary, earlier: Path) -> None:
    """Add what an earlier run of the same workload saw: timing decides which rare calls one run makes."""
    old = json.loads(earlier.read_text())
    for phase, calls in (("startup", summary.startup), ("always", summary.always)):
        for name, variants in old[phase].items():
            seen = {tuple((int(index), value) for index, value in variant.items()) for variant in variants}
            calls.setdefault(name, set()).update(seen or {()})


def to_json(summary: Summary, **about: object) -> str:
    """The summary as stable, readable JSON: one line per call, argument tuples as ``{"index": value}``."""

    def phase(calls: dict[str, set[tuple[tuple[int, int], ...]]]) -> str:
        lines = []
        for name in sorted(calls):
            variants = [{str(index): value for index, value in args} for args in sorted(calls[name]) if args]
            lines.append(f"    {json.dumps(name)}: {json.dumps(variants)}")
        return "{\n" + ",\n".join(lines) + "\n  }"

    head = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in about.items())
    return "{\n" + head + f'  "startup": {phase(summary.startup)},\n  "always": {phase(summary.always)}\n' + "}\n"
