"""Parsers of files under /proc/PID, as pure functions on text (proc(5)). A ValueError means "not as documented"."""

from __future__ import annotations

import re
from typing import Final

import msgspec

_PF_EXITING: Final = 0x4
_LIMITS: Final = {
    "Max cpu time": "cpu",
    "Max file size": "fsize",
    "Max data size": "data",
    "Max stack size": "stack",
    "Max core file size": "core",
    "Max resident set": "rss",
    "Max processes": "nproc",
    "Max open files": "nofile",
    "Max locked memory": "memlock",
    "Max address space": "as",
    "Max file locks": "locks",
    "Max pending signals": "sigpending",
    "Max msgqueue size": "msgqueue",
    "Max nice priority": "nice",
    "Max realtime priority": "rtprio",
    "Max realtime timeout": "rttime",
}
_LIMIT_LINE: Final = re.compile(r"(Max [a-z ]+?)\s{2,}(\S+)\s+(\S+)(?:\s+\S+)?\s*")
_MAP_LINE: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ([-r][-w][-x][ps]) [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ \d+ *(.*)")


class ThreadFacts(msgspec.Struct, frozen=True):
    """One thread's identity and rights. Ids are (real, effective, saved, file system); capability sets are bit masks.

    ``seccomp``: 0 none, 1 strict, 2 filter. ``seccomp_filters`` is None on kernels before 5.9. ``core_cookie``: 0 is no
    cookie, None that the kernel has no core scheduling or did not tell.
    """

    tid: int
    name: str
    uids: tuple[int, int, int, int]
    gids: tuple[int, int, int, int]
    groups: tuple[int, ...]
    cap_inheritable: int
    cap_permitted: int
    cap_effective: int
    cap_bounding: int
    cap_ambient: int
    no_new_privs: bool
    seccomp: int
    seccomp_filters: int | None
    pid_in_namespaces: tuple[int, ...]
    core_cookie: int | None = None


class MemoryRange(msgspec.Struct, frozen=True):
    """One line of /proc/PID/maps: addresses, rights as shown (``rw-p``), the file or a ``[name]``."""

    start: int
    end: int
    rights: str
    name: str


def parse_status(text: str, tid: int) -> ThreadFacts:
    """The fields of /proc/PID/task/TID/status that matter here.

    Raises:
        ValueError: a field is missing, doubled, or no number.
    """
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        key, colon, value = line.partition(":")
        if not colon:
            continue
        if key in fields:
            # The kernel escapes newlines in names; two equal keys mean that this text is not the kernel's.
            raise ValueError(f"field {key[:40]!r} twice")
        fields[key] = value.strip()
    try:
        filters = fields.get("Seccomp_filters")
        return ThreadFacts(
            tid=tid,
            name=fields["Name"],
            uids=_four(fields["Uid"]),
            gids=_four(fields["Gid"]),
            groups=tuple(int(word) for word in fields["Groups"].split()),
            cap_inheritable=int(fields["CapInh"], 16),
            cap_permitted=int(fields["CapPrm"], 16),
            cap_effective=int(fields["CapEff"], 16),
            cap_bounding=int(fields["CapBnd"], 16),
            cap_ambient=int(fields["CapAmb"], 16),
            no_new_privs=_flag(fields["NoNewPrivs"]),
            seccomp=int(fields["Seccomp"]),
            seccomp_filters=None if filters is None else int(filters),
            pid_in_namespaces=tuple(int(word) for word in fields.get("NSpid", "").split()),
        )
    except KeyError as error:
        raise ValueError(f"no field {error.args[0]}") from None


def _four(value: str) -> tuple[int, int, int, int]:
    real, effective, saved, filesystem = (int(word) for word in value.split())
    return real, effective, saved, filesystem


def _flag(value: str) -> bool:
    if value not in ("0", "1"):
        raise ValueError(f"{value!r} is neither 0 nor 1")
    return value == "1"


def parse_start_time(text: str) -> int:
    """Field 22 of /proc/PID/stat: start in clock ticks after boot. The name may hold anything: count from its end."""
    words = text.rpartition(")")[2].split()
    if len(words) < 20:
        raise ValueError("too few fields in stat")
    return int(words[19])


def parse_is_ending(text: str) -> bool:
    """Whether /proc/PID/stat shows a process that has begun to exit: a zombie, dead, or PF_EXITING among its flags.

    The kernel sets PF_EXITING before it lets go of memory and descriptors, so a process that is not ending after it
    was read was whole while it was read.
    """
    words = text.rpartition(")")[2].split()
    if len(words) < 20:
        raise ValueError("too few fields in stat")
    return words[0] in "ZX" or bool(int(words[6]) & _PF_EXITING)


def parse_limits(text: str) -> dict[str, tuple[int | None, int | None]]:
    """/proc/PID/limits as {``nofile``: (soft, hard)}; None is unlimited."""
    found: dict[str, tuple[int | None, int | None]] = {}
    for line in text.split("\n"):
        match = _LIMIT_LINE.fullmatch(line)
        if match is not None and match[1] in _LIMITS:
            found[_LIMITS[match[1]]] = (_limit(match[2]), _limit(match[3]))
    if not found:
        raise ValueError("no limits")
    return found


def _limit(word: str) -> int | None:
    return None if word == "unlimited" else int(word)


def parse_fdinfo(text: str) -> dict[str, str]:
    """/proc/PID/fdinfo/N as {key: value}; the first of several equal keys counts (``flags`` and ``pos`` come first)."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key, value.strip())
    return found


def parse_maps(text: str) -> tuple[MemoryRange, ...]:
    """/proc/PID/maps; names keep the kernel's escapes."""
    found: list[MemoryRange] = []
    for line in text.split("\n"):
        if not line:
            continue
        match = _MAP_LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"maps line {line[:120]!r}")
        found.append(MemoryRange(int(match[1], 16), int(match[2], 16), match[3], match[4]))
    return tuple(found)
