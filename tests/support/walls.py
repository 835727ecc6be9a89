"""A small wall around a static program, and the loop that answers its start-up notifications."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from casemate.jail.compile import compile_profile
from casemate.jail.policy import (
    BindFile,
    CgroupPlan,
    Descriptor,
    Device,
    Identity,
    IdentityMode,
    LandlockPath,
    Layer,
    Rlimit,
    RootEntry,
    Wall,
)
from casemate.jail.rules import Phase, Profile, Rule
from casemate.jail.spawn import Spawned
from casemate.sys import seccomp
from casemate.sys.landlock import landlock_abi

BUSYBOX = "/bin/busybox"

HARMLESS = tuple(
    """read write exit exit_group brk mmap munmap mprotect arch_prctl set_tid_address set_robust_list rseq prlimit64
    readlink getrandom uname getuid geteuid getgid getegid rt_sigaction rt_sigprocmask ioctl getpid getppid prctl fstat
    newfstatat nanosleep clock_nanosleep rt_sigreturn restart_syscall openat close lseek setuid setgid time
    clock_gettime""".split()  # noqa: SIM905 - a list of forty words
)


def profile(extra: tuple[str, ...] = ()) -> Profile:
    """What a static busybox applet needs; exec only while it starts."""
    rules = [Rule(name, "busybox in a test") for name in (*HARMLESS, *extra)]
    return Profile("test", (*rules, Rule("execve", "the test's program", phase=Phase.STARTUP)), ("test",))


def identity() -> Identity:
    """An identity that the caller may take: a reserved one for root, his own otherwise."""
    if os.geteuid() == 0:
        return Identity(1_900_060_001, 1_900_060_001, IdentityMode.ROOT)
    return Identity(os.getuid(), os.getgid(), IdentityMode.CALLER, keep_groups=True)


def wall(*argv: str, root: tuple[RootEntry, ...] = (), without: tuple[Layer, ...] = ()) -> Wall:
    """A complete wall (no cgroup) that runs busybox with these arguments."""
    return Wall(
        argv=("/bin/busybox", *argv),
        environment=(),
        root=(BindFile(os.path.realpath(BUSYBOX), "/bin/busybox"), Device("null"), *root),
        root_size_bytes=8 << 20,
        identity=identity(),
        rlimits=(Rlimit("core", 0), Rlimit("nofile", 1024), Rlimit("fsize", 1 << 20)),
        landlock_abi=landlock_abi(),
        landlock=(LandlockPath("/", ("read", "execute")), LandlockPath("/dev/null", ("read", "write"))),
        cgroup=CgroupPlan(why_none="a test"),
        descriptors=(Descriptor(0, "null", "rw"), Descriptor(1, "out", "wo"), Descriptor(2, "out", "wo")),
        profile="test",
        without=without,
    )


def program(extra: tuple[str, ...] = ()) -> bytes:
    """The compiled filter of `profile`."""
    return compile_profile(profile(extra), os.uname().machine)


class Pipe:
    """A pipe for the program's output; `sources` is what `spawn` wants."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.sources = {"null": self.null, "out": self.write_end}

    def text(self) -> str:
        """All output, once the program has ended."""
        os.close(self.write_end)
        with os.fdopen(self.read_end, "rb") as file:
            return file.read(1 << 20).decode()


def finish(spawned: Spawned, deadline_s: float = 20.0) -> tuple[str, int]:
    """Answer notifications until the program ends: ("exited", status) or ("killed", signal)."""
    end = time.monotonic() + deadline_s
    poller = select.poll()
    poller.register(spawned.pidfd, select.POLLIN)
    if spawned.listener >= 0:
        poller.register(spawned.listener, select.POLLIN)
    while True:
        ready = dict(poller.poll(max(0.0, end - time.monotonic()) * 1000))
        if spawned.pidfd in ready:
            status = os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
            assert status is not None
            return ("exited" if status.si_code == os.CLD_EXITED else "killed"), status.si_status
        assert ready, "the program did not end in time"
        try:
            notification = seccomp.notif_recv(spawned.listener)
            seccomp.notif_send_continue(spawned.listener, notification.id)
        except FileNotFoundError:
            continue


def staging(tmp_path: Path) -> str:
    """An empty directory that the identity may search."""
    path = tmp_path / "root"
    path.mkdir()
    return str(path)
