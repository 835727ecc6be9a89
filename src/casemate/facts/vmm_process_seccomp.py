"""What the live seccomp filters of a process let through, as the facts ``proc.seccomp-*``.

The programs come from the kernel (`sys/ptrace.py`), are decoded, and evaluated for every system call of the
architecture. VMs of one kind have equal filters: each set of programs is evaluated once.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import msgspec

from casemate.bpf.analyse import VerdictKind, survey, survey_beyond, survey_other_arches, survey_x32
from casemate.bpf.instruction import Program, decode
from casemate.facts.fact import Facts, Known, Unknown, Value
from casemate.sys.ptrace import live_filters

DANGEROUS: Final = frozenset(
    """execve execveat ptrace process_vm_readv process_vm_writev bpf perf_event_open userfaultfd io_uring_setup
    io_uring_enter io_uring_register mount umount2 move_mount open_tree fsopen fsmount fsconfig mount_setattr pivot_root
    chroot unshare setns clone3 fork vfork init_module finit_module delete_module kexec_load kexec_file_load reboot
    swapon swapoff add_key request_key keyctl open_by_handle_at name_to_handle_at pidfd_getfd pidfd_open acct quotactl
    setuid setgid setreuid setregid setresuid setresgid setgroups capset personality iopl ioperm modify_ldt kcmp
    lookup_dcookie settimeofday clock_settime adjtimex sethostname setdomainname syslog fanotify_init memfd_secret
    landlock_create_ruleset seccomp socket socketpair connect bind listen""".split()  # noqa: SIM905
)
"""Calls that no emulator needs once the guest runs. ``seccomp`` and sockets are here because nothing starts late."""

NEED_RIGHTS: Final = "reading live filters needs CAP_SYS_ADMIN in the initial user namespace"
NAMES: Final = (
    "proc.seccomp-allowed",
    "proc.seccomp-dangerous",
    "proc.seccomp-foreign-arch",
    "proc.seccomp-default",
    "proc.seccomp-x32",
)
_SOURCE: Final = "task/*, PTRACE_SECCOMP_GET_FILTER, evaluated for every call of the architecture"
_THREAD_DEADLINE_S: Final = 0.25
_ALL_DEADLINE_S: Final = 2.0


class FilterSummary(msgspec.Struct, frozen=True):
    """What one set of stacked filters comes to. ``default``: calls that the table does not know; ``foreign_arch`` and
    ``x32``: other calling conventions; each the loosest answer (``allow``, ``errno``, ``kill``, ``unknown``…)."""

    allowed: int
    dangerous: tuple[str, ...]
    foreign_arch: str
    default: str
    x32: str


class LiveFilters(msgspec.Struct, frozen=True):
    """The programs of each thread, equal ones once; ``why`` says why there are none to look at."""

    stacks: tuple[tuple[bytes, ...], ...] = ()
    why: str = ""


@lru_cache(maxsize=256)
def summarise(programs: tuple[bytes, ...], machine: str) -> FilterSummary:
    """Decode and evaluate the filters of one thread.

    Args:
        programs: ``struct sock_filter`` arrays; none at all means that every call is let through.
        machine: architecture as uname has it.

    Raises:
        ValueError: a program that the kernel would not have taken, or an architecture without a table.
    """
    allow = VerdictKind.ALLOW.value
    if not programs:
        names = frozenset(_all_calls(machine))
        return FilterSummary(len(names), tuple(sorted(names & DANGEROUS)), allow, allow, allow)
    decoded = [decode(raw) for raw in programs]
    allowed, dangerous, foreign = _named(decoded, machine)
    return FilterSummary(
        allowed=allowed,
        dangerous=dangerous,
        foreign_arch=foreign,
        default=survey_beyond(decoded, machine).kind.value,
        x32=survey_x32(decoded).kind.value if machine == "x86_64" else "none",
    )


def _all_calls(machine: str) -> Iterable[str]:
    from casemate.bpf.syscalls import numbers

    return numbers(machine)


def _named(decoded: list[Program], machine: str) -> tuple[int, tuple[str, ...], str]:
    """(calls let through, the dangerous ones of them, what other architectures' calls get)."""
    passing = {name for name, verdict in survey(decoded, machine).items() if verdict.may_pass}
    foreign = survey_other_arches(decoded, machine).kind.value
    return len(passing), tuple(sorted(passing & DANGEROUS)), foreign


def evaluate_ahead(program: bytes, machine: str) -> None:
    """Evaluate a filter that will be found in a process; `launch_seccomp_facts` then has to do so no more.

    The kernel's bytes are what is judged: another program is evaluated when it is found.
    """
    _named([decode(program)], machine)


def launch_seccomp_facts(base: str, tids: Iterable[int], machine: str) -> Facts:
    """The three of `NAMES` that a launch judges, in a third of the time: what no table knows is left to an audit."""
    wanted = NAMES[:3]
    try:
        stacks = {live_filters(tid) for tid in tids}
    except PermissionError:
        return dict.fromkeys(wanted, Unknown(NEED_RIGHTS))
    if len(stacks) != 1:
        return dict.fromkeys(wanted, Unknown("the threads have different filters"))
    found: tuple[Value, ...] = _named([decode(raw) for raw in stacks.pop()], machine)
    return {name: Known(value, f"{base}/{_SOURCE}") for name, value in zip(wanted, found, strict=True)}


def read_filters(tids: Iterable[int]) -> LiveFilters:
    """The filters of every thread; each is stopped for some tens of microseconds.

    Raises:
        ProcessLookupError: no thread is left.
    """
    stacks: dict[tuple[bytes, ...], None] = {}
    end = time.monotonic() + _ALL_DEADLINE_S
    seen = 0
    for tid in tids:
        left_s = end - time.monotonic()
        if left_s <= 0:
            return LiveFilters(why=f"its threads did not stop within {_ALL_DEADLINE_S:g} s")
        try:
            stacks[live_filters(tid, min(_THREAD_DEADLINE_S, left_s))] = None
        except ProcessLookupError:
            continue  # this thread ended; who ended wholly is found out by the caller
        except PermissionError:
            return LiveFilters(why=NEED_RIGHTS)
        except OSError as error:
            return LiveFilters(why=f"thread {tid}: {(error.strerror or str(error)).lower()}")
        seen += 1
    if not seen:
        raise ProcessLookupError(errno.ESRCH, "no threads", "")
    return LiveFilters(tuple(stacks))


def seccomp_facts(base: str, live: LiveFilters, machine: str) -> Facts:
    """The facts ``proc.seccomp-*`` that come out of the filters themselves.

    Args:
        base: where the process was read (``/proc/812``).
    """
    if live.why or not live.stacks:
        return {name: Unknown(live.why or "no thread was read") for name in NAMES}
    if len(live.stacks) != 1:
        return {name: Unknown("the threads have different filters") for name in NAMES}
    try:
        found = summarise(live.stacks[0], machine)
    except (ValueError, KeyError, IndexError) as error:
        return {name: Unknown(f"the filters are not understood ({error})") for name in NAMES}
    source = f"{base}/{_SOURCE}"
    values: tuple[Value, ...] = (found.allowed, found.dangerous, found.foreign_arch, found.default, found.x32)
    return {name: Known(value, source) for name, value in zip(NAMES, values, strict=True)}
