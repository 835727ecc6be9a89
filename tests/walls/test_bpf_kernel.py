"""The kernel as the oracle: it takes the programs that we take and answers calls as we evaluate them.

Each case runs in a forked child that loads a filter and makes real calls; the probed call is getppid, which ignores its
arguments, so that a filter may see any argument without anything happening.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import random
import select
import signal
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.fuzz import bpf_cases

from casemate.bpf import instruction as bpf
from casemate.bpf.analyse import survey
from casemate.bpf.evaluate import (
    RET_ALLOW,
    RET_ERRNO,
    RET_KILL_PROCESS,
    RET_KILL_THREAD,
    RET_LOG,
    RET_TRAP,
    RET_USER_NOTIF,
    Action,
    SeccompData,
    action_of,
    evaluate,
    strictest,
)
from casemate.bpf.instruction import Instruction, Program, decode, encode
from casemate.bpf.syscalls import X32_BIT, audit_arch, number_of
from casemate.jail.choices import build_calls, decide
from casemate.jail.compile import compile_profile, expected_verdicts
from casemate.jail.rules import Arg, Op, Phase, Profile, Rule
from casemate.sys import seccomp
from casemate.sys.libc import libc
from casemate.sys.process import PR_SET_NO_NEW_PRIVS

ARCH = os.uname().machine
pytestmark = [
    pytest.mark.wall,
    pytest.mark.skipif(ARCH not in {"x86_64", "aarch64"}, reason=f"no system call table for {ARCH}"),
]

GETPPID = {"x86_64": 110, "aarch64": 173}.get(ARCH, 0)
RECORD = struct.Struct("=qi")
KILLED = -signal.SIGSYS
ALLOW = (Instruction(bpf.RET_K, 0, 0, RET_ALLOW),)


def in_child(action: Callable[[int], None], deadline_s: float = 20.0) -> tuple[bytes, int]:
    """Run ``action(pipe)`` in a forked child; (bytes it wrote, exit status or minus the signal)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            action(writer)
            os._exit(0)
        except BaseException as fault:
            os.write(2, f"child: {fault!r}\n".encode())
        finally:
            os._exit(99)
    os.close(writer)
    data = b""
    with os.fdopen(reader, "rb", 0) as pipe:
        while select.select([pipe], [], [], deadline_s)[0]:
            part = pipe.read(65536)
            if not part:
                break
            data += part
        else:
            os.kill(pid, signal.SIGKILL)
    return data, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def load(*programs: Program) -> None:
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for program in programs:
        seccomp.seccomp_set_mode_filter(encode(program))


def raw_call(nr: int, args: tuple[int, ...]) -> tuple[int, int]:
    """(result, errno) of a real system call with these 64-bit arguments."""
    ctypes.set_errno(0)
    call = libc.syscall
    call.restype = ctypes.c_long
    result = call(ctypes.c_long(nr), *(ctypes.c_ulong(value) for value in args))
    return result, ctypes.get_errno() if result == -1 else 0


def try_calls(
    programs: tuple[Program, ...], calls: Sequence[tuple[int, tuple[int, ...]]]
) -> tuple[list[tuple[int, int]], int]:
    """Load the filters and make the calls in one child: (result, errno) of those it lived to report, and its end."""

    def child(pipe: int) -> None:
        load(*programs)
        for nr, args in calls:
            os.write(pipe, RECORD.pack(*raw_call(nr, args)))

    data, status = in_child(child)
    return [(result, number) for result, number in RECORD.iter_unpack(data)], status


def guard(body: Program) -> Program:
    """``body`` for getppid, everything else allowed."""
    head = (
        Instruction(bpf.LD_ABS, 0, 0, 0),
        Instruction(bpf.JEQ_K, 1, 0, GETPPID),
        Instruction(bpf.RET_K, 0, 0, RET_ALLOW),
        Instruction(bpf.LD_IMM, 0, 0, 0),
    )
    return head + body


def show_a(body: Program) -> Program:
    """``body`` without returns, then an errno of 12 bits of A, chosen by the low word of args[5]."""
    tail = (
        Instruction(bpf.ST, 0, 0, 15),
        Instruction(bpf.LD_ABS, 0, 0, 56),
        Instruction(bpf.TAX, 0, 0, 0),
        Instruction(bpf.LD_MEM, 0, 0, 15),
        Instruction(bpf.RSH_X, 0, 0, 0),
        Instruction(bpf.AND_K, 0, 0, 0xFFF),
        Instruction(bpf.OR_K, 0, 0, RET_ERRNO),
        Instruction(bpf.RET_A, 0, 0, 0),
    )
    return guard(body[:-1] + tail)


# Everything but the instruction pointer, which a test cannot choose.
OFFSETS = (0, 4, *range(16, 64, 4))


@pytest.mark.parametrize("seed", range(60))
def test_arithmetic_is_the_kernels(seed: int) -> None:
    """A random program computes a number from the call; the kernel's 32 bits must be ours, or both end by division."""
    rng = random.Random(seed)
    program = show_a(bpf_cases.program_from(rng.randbytes(7 * rng.randint(1, 60)), OFFSETS, returns=False))
    calls = []
    for _ in range(8):
        args = tuple(rng.choice((rng.getrandbits(64), rng.getrandbits(8), *bpf_cases.CONSTANTS)) for _ in range(5))
        calls += [(GETPPID, (*args, shift)) for shift in (0, 12, 24)]
    expected = [evaluate(program, SeccompData(nr, audit_arch(ARCH), 0, args)) for nr, args in calls]
    results, status = try_calls((program,), calls)
    lived = [value for value in expected if action_of(value) is Action.ERRNO]
    dies = len(lived) < len(expected)
    if dies:
        lived = expected[: expected.index(RET_KILL_THREAD)]
    assert results == [(-1, value & 0xFFF) if value & 0xFFF else (0, 0) for value in lived]
    assert status == (KILLED if dies else 0)


WORDS = (0, 1, 2, 3, 31, 32, 33, 63, 64, 0xFF, 0x7FFF_FFFF, 0x8000_0000, 0x8000_0001, 0xFFFF_FFFE, 0xFFFF_FFFF)


@pytest.mark.parametrize("code", sorted(bpf.ALU_X | bpf.JUMPS_X | {bpf.NEG}))
def test_each_operation_on_edges(code: int) -> None:
    """A from args[0], X from args[1]: every pair of edges, as the kernel computes them."""
    load_both = (
        Instruction(bpf.LD_ABS, 0, 0, 24),
        Instruction(bpf.TAX, 0, 0, 0),
        Instruction(bpf.LD_ABS, 0, 0, 16),
    )
    body: Program
    if code in bpf.JUMPS:
        body = (Instruction(code, 0, 1, 0), Instruction(bpf.LD_IMM, 0, 0, 0x123), Instruction(bpf.TXA, 0, 0, 0))
    else:
        body = (Instruction(code, 0, 0, 0),)
    program = show_a((*load_both, *body, *ALLOW))
    pairs = [(a, x) for a in WORDS for x in WORDS if x or code != bpf.DIV_X]
    calls = [(GETPPID, (a, x, 0, 0, 0, shift)) for a, x in pairs for shift in (0, 12, 24)]
    expected = [evaluate(program, SeccompData(nr, audit_arch(ARCH), 0, args)) & 0xFFF for nr, args in calls]
    results, status = try_calls((program,), calls)
    assert status == 0
    assert results == [(-1, value) if value else (0, 0) for value in expected]
    if code == bpf.DIV_X:
        by_zero = (GETPPID, (5, 0, 0, 0, 0, 0))
        assert evaluate(program, SeccompData(GETPPID, audit_arch(ARCH), 0, by_zero[1])) == RET_KILL_THREAD
        assert try_calls((program,), [by_zero]) == ([], KILLED)


def kernel_takes(programs: list[Program]) -> list[bool]:
    """Whether the kernel takes each program; they are loaded on top of each other, so none may bite the child."""

    def child(pipe: int) -> None:
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        for program in programs:
            data = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
            try:
                seccomp.seccomp_set_mode_filter(data)
                os.write(pipe, b"y")
            except OSError as fault:
                os.write(pipe, b"n" if fault.errno == errno.EINVAL else b"?")

    data, status = in_child(child)
    assert status == 0
    assert b"?" not in data
    return [answer == ord("y") for answer in data]


def unreached(body: Program) -> Program:
    """``body`` behind a return that is always taken: what counts is whether the kernel takes it."""
    return (Instruction(bpf.JSET_K, 0, 1, 0), Instruction(bpf.JA, 0, 0, 1), *ALLOW, *body)


@pytest.mark.parametrize("high", [0x000, 0x100, 0x8000])
@pytest.mark.parametrize("k", [0, 1, 15, 16, 31, 32, 60, 64])
def test_each_code_is_taken_by_both_or_by_none(high: int, k: int) -> None:
    programs = [unreached((Instruction(high | low, 0, 0, k), *ALLOW)) for low in range(256)]
    ours = [accepted(program) for program in programs]
    assert kernel_takes(programs) == ours
    assert any(ours) == (high == 0)


def test_scratch_memory_on_every_shape_of_three_branches() -> None:
    """All ways to join three short jumps before scratch word 0 is read, with a store in one of the places."""
    programs = []
    for store in range(4):
        for jumps in itertools.product(range(3), repeat=4):
            body = [Instruction(bpf.JEQ_K, jumps[0], jumps[1], 0), Instruction(bpf.JA, 0, 0, jumps[2])]
            body += [Instruction(bpf.JEQ_K, jumps[3], 0, 0), Instruction(bpf.LD_IMM, 0, 0, 0)]
            body.insert(store, Instruction(bpf.ST, 0, 0, 0))
            programs.append(unreached((*body, Instruction(bpf.LD_MEM, 0, 0, 0), *ALLOW)))
    ours = [accepted(program) for program in programs]
    assert kernel_takes(programs) == ours
    assert 20 < sum(ours) < len(ours) - 20


@pytest.mark.parametrize("seed", range(40))
def test_the_kernel_takes_what_we_take(seed: int) -> None:
    """Valid programs and damaged ones: `decode` and the kernel agree on each."""
    rng = random.Random(1000 + seed)
    programs = []
    for _ in range(25):
        body = list(bpf_cases.program_from(rng.randbytes(7 * rng.randint(0, 30))))
        for _ in range(rng.choice((0, 1, 1, 2))):
            at = rng.randrange(len(body))
            code, jt, jf, k = body[at]
            body[at] = rng.choice(
                (
                    Instruction(rng.choice((rng.getrandbits(8), rng.getrandbits(16), *bpf_cases.BODY)), jt, jf, k),
                    Instruction(code, rng.getrandbits(8), jf, k),
                    Instruction(code, jt, rng.getrandbits(3), k),
                    Instruction(code, jt, jf, rng.choice((0, 15, 16, 31, 32, 60, 62, 64, rng.getrandbits(32)))),
                )
            )
        programs.append(unreached(tuple(body[rng.choice((0, 0, 1, bpf_cases.SCRATCH_USED)) :])))
    assert kernel_takes(programs) == [accepted(program) for program in programs]


def accepted(program: Program) -> bool:
    try:
        bpf.check(program)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    "returned",
    [
        RET_KILL_PROCESS,
        RET_KILL_THREAD,
        RET_TRAP,
        RET_ERRNO | 7,
        RET_ERRNO,
        RET_USER_NOTIF,
        RET_LOG,
        RET_ALLOW,
        0x1234_5678,
        0x7FFF_0001,
        0x0006_0000,
    ],
)
def test_each_action(returned: int) -> None:
    program = guard((Instruction(bpf.RET_K, 0, 0, returned),))
    results, status = try_calls((program,), [(GETPPID, (0,) * 6)])
    action = action_of(evaluate(program, SeccompData(GETPPID, audit_arch(ARCH))))
    if action in {Action.KILL_PROCESS, Action.KILL_THREAD, Action.TRAP}:
        assert (results, status) == ([], KILLED)
    elif action is Action.ERRNO:
        assert (results, status) == ([(-1, returned & 0xFFF)] if returned & 0xFFF else [(0, 0)], 0)
    elif action is Action.NOTIFY:
        assert (results, status) == ([(-1, errno.ENOSYS)], 0)  # nobody listens
    else:
        assert (results, status) == ([(os.getpid(), 0)], 0)


@pytest.mark.parametrize("seed", range(12))
def test_stacked_filters_give_the_strictest(seed: int) -> None:
    rng = random.Random(seed)
    values = [
        rng.choice((RET_ALLOW, RET_ERRNO | 3, RET_ERRNO | 4, RET_TRAP, RET_LOG, RET_USER_NOTIF)) for _ in range(3)
    ]
    programs = tuple(guard((Instruction(bpf.RET_K, 0, 0, value),)) for value in values)
    results, status = try_calls(programs, [(GETPPID, (0,) * 6)])
    wanted = strictest(reversed(values))
    expected = {
        Action.TRAP: ([], KILLED),
        Action.ERRNO: ([(-1, wanted & 0xFFF)], 0),
        Action.NOTIFY: ([(-1, errno.ENOSYS)], 0),
    }
    assert (results, status) == expected.get(action_of(wanted), ([(os.getpid(), 0)], 0))


# --- a compiled profile --------------------------------------------------------------------------------------


def rule(syscall: str, *args: Arg, phase: Phase = Phase.ALWAYS, errno: int | None = None) -> Rule:
    return Rule(syscall, "test", args, phase, errno=errno)


PROFILE = Profile(
    "kernel",
    (
        rule("write"),
        rule("exit_group"),
        rule("exit"),
        rule("getppid", Arg(0, Op.EQ, 0xFFFF_FFFF_0000_0001)),
        rule("getppid", Arg(0, Op.LT, 5), Arg(1, Op.MASKED_EQ, 2, 6)),
        rule("getppid", Arg(0, Op.GE, 0x8000_0000_0000_0000), Arg(1, Op.NE, 3), phase=Phase.STARTUP),
        rule("getppid", Arg(2, Op.GT, 0x1_0000_0000), errno=44),
        rule("getpid", errno=45),
        rule("getuid", phase=Phase.STARTUP),
    ),
)


@pytest.mark.parametrize("seed", range(6))
def test_a_compiled_profile_does_in_the_kernel_what_its_rules_say(seed: int) -> None:
    """Oracle: `decide` on the rules, against real calls; a call that kills gets a child of its own."""
    rng = random.Random(seed)
    program = decode(compile_profile(PROFILE, ARCH))
    calls = {call.name: call for call in build_calls(PROFILE, ARCH)}
    edges = (0, 1, 2, 3, 4, 5, 6, 0x8000_0000_0000_0000, 0x7FFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_0000_0001, 0x1_0000_0001)
    soft: list[tuple[str, tuple[int, ...]]] = []
    hard: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(60):
        name = rng.choice(("getppid", "getppid", "getppid", "getpid", "getuid"))
        args = tuple(rng.choice(edges) for _ in range(6))
        (hard if decide(calls[name], args) == RET_KILL_PROCESS else soft).append((name, args))
    results, status = try_calls((program,), [(number_of(name, ARCH), args) for name, args in soft])
    assert status == 0
    natural = {"getppid": os.getpid()}
    for (name, args), (result, number) in zip(soft, results, strict=True):
        wanted = decide(calls[name], args)
        if wanted == RET_ALLOW:
            assert (result, number) == (natural[name], 0)
        else:
            assert (result, number) == (-1, errno.ENOSYS if wanted == RET_USER_NOTIF else wanted & 0xFFF)
    for name, args in hard[:8]:
        assert try_calls((program,), [(number_of(name, ARCH), args)]) == ([], KILLED)


@pytest.mark.parametrize("name", ["ptrace", "bpf", "userfaultfd", "io_uring_setup", "mount", "getgid", "statmount"])
def test_what_no_rule_names_is_killed(name: str) -> None:
    program = decode(compile_profile(PROFILE, ARCH))
    assert try_calls((program,), [(number_of(name, ARCH), (0,) * 6)]) == ([], KILLED)


@pytest.mark.skipif(ARCH != "x86_64", reason="x32 and i386 are ways into an x86-64 kernel")
def test_x32_is_killed() -> None:
    program = decode(compile_profile(PROFILE, ARCH))
    assert try_calls((program,), [(number_of("write", ARCH) | X32_BIT, (0,) * 6)]) == ([], KILLED)
    assert try_calls((program,), [(-1, (0,) * 6)]) == ([], KILLED)


@pytest.mark.skipif(ARCH != "x86_64", reason="x32 and i386 are ways into an x86-64 kernel")
def test_i386_calls_are_killed() -> None:
    """``int 0x80`` with i386's number of getpid, 20, which is writev on x86-64."""

    def child(pipe: int, *programs: Program) -> None:
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
        enter = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        load(*programs)
        os.write(pipe, RECORD.pack(enter(), 0))

    data, status = in_child(child)
    if status != 0 or RECORD.unpack(data)[0] <= 0:
        pytest.skip("this kernel has no i386 system calls")
    program = decode(compile_profile(PROFILE, ARCH))
    assert in_child(lambda pipe: child(pipe, program)) == (b"", KILLED)


# --- user notifications --------------------------------------------------------------------------------------


def test_notifications_are_taken_and_answered() -> None:
    """Three calls: one goes on, one gets an errno, the third finds the listener closed for good."""
    program = decode(compile_profile(Profile("notify", (*PROFILE.rules, rule("close"))), ARCH))
    receiver, sender = os.pipe()
    getuid = number_of("getuid", ARCH)
    args = (1, 2, 3, 4, 5, 0xFFFF_FFFF_FFFF_FFFF)
    pid = os.fork()
    if pid == 0:
        try:
            libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            own = seccomp.seccomp_set_mode_filter(encode(program), seccomp.SECCOMP_FILTER_FLAG_NEW_LISTENER)
            os.write(sender, bytes([own]))
            results = [raw_call(getuid, args)]
            # The parent has its copy now. exec would close this one; the last one to close ends all notifications.
            os.close(own)
            results += [raw_call(getuid, args) for _ in range(2)]
            os.write(sender, repr(results).encode())
            os._exit(0)
        finally:
            os._exit(99)
    try:
        os.close(sender)
        listener = take(pid, os.read(receiver, 1)[0])
        first = wait_for(listener)
        assert (first.pid, first.nr, first.arch, first.args) == (pid, getuid, audit_arch(ARCH), args)
        assert seccomp.notif_id_valid(listener, first.id)
        seccomp.notif_send_continue(listener, first.id)
        second = wait_for(listener)
        assert second.id != first.id
        assert not seccomp.notif_id_valid(listener, first.id)
        with pytest.raises(FileNotFoundError):
            seccomp.notif_send_continue(listener, first.id)
        with pytest.raises(ValueError, match="errno is 1 to 4095"):
            seccomp.notif_send_error(listener, second.id, 0)
        seccomp.notif_send_error(listener, second.id, errno.EPERM)
        assert wait_for(listener).nr == getuid
        os.close(listener)
        assert select.select([receiver], [], [], 10)[0], "the call still waits although nobody listens"
        answers = os.read(receiver, 4096).decode()
    finally:
        os.close(receiver)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert answers == repr([(os.getuid(), 0), (-1, errno.EPERM), (-1, errno.ENOSYS)])


def take(pid: int, number: int) -> int:
    from casemate.sys.process import pidfd_getfd

    pidfd = os.pidfd_open(pid)
    try:
        return pidfd_getfd(pidfd, number)
    finally:
        os.close(pidfd)


def wait_for(listener: int) -> seccomp.Notification:
    assert select.select([listener], [], [], 10)[0], "no notification within 10 s"
    return seccomp.notif_recv(listener)


def test_sizes_and_actions_of_this_kernel() -> None:
    assert seccomp.seccomp_get_notif_sizes() == (80, 24, 64)
    assert seccomp.seccomp_get_action_avail(RET_USER_NOTIF)
    assert not seccomp.seccomp_get_action_avail(0x1234_0000)


def test_bytes_that_are_no_filter_do_not_reach_the_kernel() -> None:
    with pytest.raises(ValueError, match="got 7 bytes"):
        seccomp.seccomp_set_mode_filter(b"\0" * 7)
    with pytest.raises(ValueError, match="got 0 bytes"):
        seccomp.seccomp_set_mode_filter(b"")


# --- the read-back -------------------------------------------------------------------------------------------


def test_a_live_filter_of_libseccomp_reads_back_as_it_was_meant() -> None:
    """libseccomp loads a filter by itself; the kernel gives it back; our survey says what was asked for."""
    ptrace = pytest.importorskip("casemate.sys.ptrace")
    import pyseccomp

    meant = {"read": RET_ALLOW, "getpid": RET_ERRNO | 9, "openat": RET_USER_NOTIF, "ptrace": RET_TRAP}
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            build = pyseccomp.SyscallFilter(RET_LOG)
            build.set_attr(pyseccomp.Attr.ACT_BADARCH, RET_KILL_PROCESS)
            for name, returned in meant.items():
                build.add_rule(returned, pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name))
            build.load()
            os.write(go, b"x")
            signal.pause()
        finally:
            os._exit(99)
    try:
        assert select.select([ready], [], [], 10)[0]
        programs = tuple(decode(data) for data in ptrace.live_filters(pid))
    except PermissionError as fault:
        pytest.skip(f"PTRACE_SECCOMP_GET_FILTER: {fault}")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(go)
    assert len(programs) == 1
    for name, verdict in survey(programs, ARCH).items():
        assert verdict.returned == {meant.get(name, RET_LOG)}, name


def test_our_own_filter_reads_back_byte_for_byte() -> None:
    ptrace = pytest.importorskip("casemate.sys.ptrace")
    data = compile_profile(Profile("sleep", (*PROFILE.rules, rule("read"))), ARCH)
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            load(decode(data))
            os.read(ready, 1)
        finally:
            os._exit(99)
    try:
        end = time.monotonic() + 10
        while "\nSeccomp:\t2\n" not in Path(f"/proc/{pid}/status").read_text():
            assert time.monotonic() < end
            time.sleep(0.01)
        found = ptrace.live_filters(pid)
    except PermissionError as fault:
        pytest.skip(f"PTRACE_SECCOMP_GET_FILTER: {fault}")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(go)
    assert found == (data,)
    assert survey((decode(data),), ARCH) == expected_verdicts(Profile("sleep", (*PROFILE.rules, rule("read"))), ARCH)
