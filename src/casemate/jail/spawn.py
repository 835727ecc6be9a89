"""Build a wall around a fresh child and run a program, or the probe, in it.

The talk between parent and child, one letter or a short JSON text per packet::

    child                               parent
    M  "write my id maps"           ->  writes them              <- m
    P  "are you still there?"       ->                           <- p
    D{notes}                        ->  the wall stands          <- g
    (loads the filter, execs)
    E{step, errno, text}            ->  gives up

The filter's listener cannot be sent by the child, whose filter may forbid it: the parent takes it with pidfd_getfd.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Never

import msgspec

from casemate.errors import HostError, VmError
from casemate.jail.context import Context, Step
from casemate.jail.policy import Identity, IdentityMode, Layer, Wall
from casemate.jail.steps import inner_steps, outer_steps, place_descriptors
from casemate.sys import process
from casemate.sys.libc import libc
from casemate.sys.seccomp import SECCOMP_FILTER_FLAG_NEW_LISTENER, seccomp_set_mode_filter

_PACKET_MAX = 16384
_WALL = 0x4000_0000
_NAMESPACES = process.CLONE_NEWNS | process.CLONE_NEWPID | process.CLONE_NEWNET
_NAMESPACES |= process.CLONE_NEWIPC | process.CLONE_NEWUTS


class Spawned(msgspec.Struct):
    """A process inside its wall. The caller owns both descriptors; ``listener`` is -1 without seccomp."""

    pid: int
    pidfd: int
    listener: int
    notes: dict[str, str] = msgspec.field(default_factory=dict)


Payload = Callable[[Wall, Context], Never]
"""Runs in the child after the outer steps instead of a program, e.g. the hostile probe."""


def spawn(
    wall: Wall,
    program: bytes,
    sources: dict[str, int],
    staging: str,
    *,
    payload: Payload | None = None,
    meanwhile: Callable[[], None] = lambda: None,
    deadline_s: float = 10.0,
) -> Spawned:
    """Start ``wall.argv`` inside the wall and return once its filter is loaded (exec may still be waiting).

    Args:
        wall: the policy.
        program: the compiled seccomp filter; ignored when the seccomp layer is removed.
        sources: role -> descriptor, for everything that the wall's descriptors and copies name.
        staging: an existing, empty directory.
        payload: run this in the child instead of the program.
        meanwhile: called once, while the child builds; the child waits when it takes longer than that.
        deadline_s: how long the steps may take in all.

    Raises:
        HostError: a step failed; the message names step and errno.
        RefusedError: a copied file is not the one that was verified (control img.hash).
        VmError: the child died or did not finish in time.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    flags = _NAMESPACES if wall.has(Layer.NAMESPACES) else process.CLONE_NEWNS
    if wall.identity.mode is not IdentityMode.ROOT:
        flags |= process.CLONE_NEWUSER
    unified = _unified_cgroup(wall)
    try:
        pid, pidfd = process.clone3(flags, unified)
    except OSError as fault:
        ours.close()
        theirs.close()
        raise HostError(
            "cannot create namespaces", got=str(fault), next_step="casemate doctor names what is missing"
        ) from fault
    if pid == 0:
        ours.close()
        _child(wall, program, sources, staging, theirs, payload)
    theirs.close()
    if unified is not None:
        os.close(unified)
    spawned = Spawned(pid, pidfd, -1)
    try:
        with ours:
            end = time.monotonic() + deadline_s
            meanwhile()
            _serve(ours, wall, spawned, end)
            if payload is None and wall.has(Layer.SECCOMP):
                spawned.listener = _take_listener(spawned, int(spawned.notes["listener"]), end)
    except BaseException:
        kill_and_reap(spawned)
        raise
    return spawned


def _unified_cgroup(wall: Wall) -> int | None:
    """Descriptor of the wall's cgroup if it is of version 2: the child is born in it."""
    if not wall.has(Layer.CGROUP):
        return None
    for directory in wall.cgroup.directories:
        if not os.path.exists(f"{directory}/tasks"):
            return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return None


def kill_and_reap(spawned: Spawned, deadline_s: float = 5.0) -> None:
    """Kill the child through its pidfd, wait for it, close what we hold.

    A thread that died while we traced it stays a zombie until its tracer waits for it, and holds up its whole process.

    Raises:
        VmError: it is still there after ``deadline_s``; the kernel holds it.
    """
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(spawned.pidfd, signal.SIGKILL)
    end = time.monotonic() + deadline_s
    try:
        while os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED | os.WNOHANG) is None:
            _reap_traced_threads(spawned.pid)
            if time.monotonic() > end:
                raise VmError("a killed process does not end", got=f"pid {spawned.pid}", next_step="look at dmesg")
            time.sleep(0.001)
    except ChildProcessError:
        pass
    os.close(spawned.pidfd)
    if spawned.listener >= 0:
        os.close(spawned.listener)
        spawned.listener = -1


def _reap_traced_threads(pid: int) -> None:
    try:
        tids = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        return
    for tid in tids:
        if tid != pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(tid, os.WNOHANG | _WALL)


# ---- parent ---------------------------------------------------------------------------------------------------------


def _serve(talk: socket.socket, wall: Wall, spawned: Spawned, end: float) -> None:
    """Answer the child until it is done."""
    while True:
        packet = _receive(talk, spawned, end)
        letter, body = packet[:1], packet[1:]
        if letter == b"M":
            write_id_maps(spawned.pid, wall.identity)
            talk.send(b"m")
        elif letter == b"P":
            talk.send(b"p")
        elif letter == b"D":
            report = json.loads(body)
            spawned.notes = json.loads(body)["notes"]
            talk.send(b"g")
            return
        elif letter == b"E":
            report = json.loads(body)
            raise HostError(
                f"the wall could not be built: {report['step']}",
                got=report["text"],
                next_step="casemate doctor says what this host lacks",
            )
        else:
            raise VmError("the child of the launch sent a packet that makes no sense", got=repr(packet[:40]))


def _receive(talk: socket.socket, spawned: Spawned, end: float) -> bytes:
    poller = select.poll()
    poller.register(talk.fileno(), select.POLLIN)
    remaining = max(0.0, end - time.monotonic())
    if not poller.poll(remaining * 1000):
        raise VmError(
            "the wall was not built in time",
            got=_what_it_does(spawned.pid),
            expected="a few milliseconds",
            next_step="look at the host's load",
        )
    packet = talk.recv(_PACKET_MAX)
    if not packet:
        status = os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED | os.WNOWAIT)
        got = f"status {status.si_status}" if status is not None else "no status"
        raise VmError("the child of the launch died while its wall was built", got=got)
    return packet


def _what_it_does(pid: int) -> str:
    """Where a child that does not go on hangs: its state, the kernel function it waits in, its system call."""
    found = []
    for name in ("stat", "wchan", "syscall", "stack"):
        try:
            with open(f"/proc/{pid}/{name}", "rb") as file:
                text = file.read(4096).decode("utf-8", "replace")
        except OSError:
            continue
        if name == "stat":
            text = f"state {text.rpartition(')')[2].split()[0]}"
        found.append(f"{name}: {' '.join(text.split())[:600]}")
    return "; ".join(found) or "it is gone"


def write_id_maps(pid: int, identity: Identity) -> None:
    """Write uid_map and gid_map of a child that just made its user namespace; see user_namespaces(7).

    Raises:
        HostError: newuidmap is missing or refused the range.
    """
    if identity.mode is IdentityMode.SUBID:
        for tool, own, sub in (("newuidmap", os.getuid(), identity.uid), ("newgidmap", os.getgid(), identity.gid)):
            _run_idmap_tool(tool, [str(pid), str(own), str(own), "1", str(sub), str(sub), "1"])
        return
    if identity.mode is IdentityMode.CALLER:
        _write(f"/proc/{pid}/setgroups", "deny")
    _write(f"/proc/{pid}/uid_map", f"{identity.uid} {identity.uid} 1")
    _write(f"/proc/{pid}/gid_map", f"{identity.gid} {identity.gid} 1")


_NO_NEW_PRIVS_STEP = (
    "this process may gain no privileges (no_new_privs), so newuidmap, which is set-user-ID, cannot work: in a unit"
    " leave out NoNewPrivileges and the options that imply it (systemd.exec)"
)


def _run_idmap_tool(tool: str, arguments: list[str]) -> None:
    try:
        child = os.posix_spawn(f"/usr/bin/{tool}", [tool, *arguments], {})
    except OSError as fault:
        raise HostError(f"{tool} cannot be run", got=str(fault), next_step="apt-get install uidmap") from fault
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise HostError(
            f"{tool} refused the subordinate ids",
            got=" ".join(arguments),
            next_step=_NO_NEW_PRIVS_STEP
            if _has_no_new_privs()
            else "check that /etc/subuid and /etc/subgid give this user a range",
        )


def _has_no_new_privs() -> bool:
    """Set once, for good, by whoever started us: a set-user-ID program then runs as its caller (prctl(2))."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return any(line.split() == ["NoNewPrivs:", "1"] for line in file)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _take_listener(spawned: Spawned, number: int, end: float) -> int:
    """Wait until the child has loaded its filter and take the listener out of it."""
    while True:
        try:
            listener = process.pidfd_getfd(spawned.pidfd, number)
        except OSError as fault:
            if fault.errno not in {errno.EBADF, errno.ESRCH} or time.monotonic() > end:
                raise VmError("cannot take the seccomp listener of the child", got=str(fault)) from fault
            if _is_dead(spawned.pidfd):
                raise VmError("the child died before it loaded its seccomp filter") from fault
            time.sleep(0.0002)
            continue
        fcntl.fcntl(listener, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        return listener


def _is_dead(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


# ---- child ----------------------------------------------------------------------------------------------------------


def _child(
    wall: Wall, program: bytes, sources: dict[str, int], staging: str, talk: socket.socket, payload: Payload | None
) -> Never:
    """Everything between clone and exec. Leaves only by exec or _exit."""
    step_name = "start"
    gc.disable()  # a collection would close descriptors that the parent dropped, and shift the listener's number
    try:
        # The talk must survive the renumbering of descriptors.
        channel = fcntl.fcntl(talk.fileno(), fcntl.F_DUPFD_CLOEXEC, 700)

        def ask_parent(letter: str) -> None:
            os.write(channel, letter.encode())
            if os.read(channel, 16) != letter.lower().encode():
                os._exit(125)  # the parent is gone

        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        context = Context(sources=sources, staging=staging, ask_parent=ask_parent)
        if payload is None:
            steps: tuple[Step, ...] = (*outer_steps(wall), *inner_steps(wall))
        else:
            steps = outer_steps(wall)
        for step in steps:
            step_name = type(step).__name__
            step.apply(context)
        step_name = "descriptors"
        place_descriptors(wall, context)
        if payload is not None:
            _report(channel, context, -1)
            if os.read(channel, 16) == b"g":
                payload(wall, context)
            os._exit(125)
        step_name = "exec"
        _exec(wall, program, channel, context)
    except OSError as fault:
        _tell_error(talk, step_name, f"{fault.strerror} ({fault.filename})" if fault.filename else str(fault))
    except BaseException as fault:  # the child must never run its parent's code any further
        _tell_error(talk, step_name, f"{type(fault).__name__}: {fault}")
    os._exit(126)


def _tell_error(talk: socket.socket, step: str, text: str) -> None:
    try:
        talk.send(b"E" + json.dumps({"step": step, "text": text[:2000]}).encode())
    except OSError:
        sys.stderr.write(f"casemate: {step}: {text}\n")


def _report(channel: int, context: Context, listener: int) -> None:
    notes = {**context.notes, "listener": str(listener)}
    os.write(channel, b"D" + json.dumps({"notes": notes}).encode())


def _exec(wall: Wall, program: bytes, channel: int, context: Context) -> None:
    """Prepare every pointer first; after the filter is loaded only execve follows."""
    argv = (ctypes.c_char_p * (len(wall.argv) + 1))(*[os.fsencode(a) for a in wall.argv], None)
    pairs = [os.fsencode(f"{name}={value}") for name, value in wall.environment]
    envp = (ctypes.c_char_p * (len(pairs) + 1))(*pairs, None)
    path = os.fsencode(wall.argv[0])
    execve = libc.execve
    probe = os.dup(channel)  # the number that the kernel will give to the listener
    os.close(probe)
    _report(channel, context, probe)
    if os.read(channel, 16) != b"g":
        os._exit(125)
    if wall.has(Layer.SECCOMP):
        listener = seccomp_set_mode_filter(program, SECCOMP_FILTER_FLAG_NEW_LISTENER)
        if listener != probe:
            os._exit(124)
    # SAFETY: NULL-terminated arrays of NUL-terminated strings, alive until exec.
    execve(path, argv, envp)
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), wall.argv[0])
