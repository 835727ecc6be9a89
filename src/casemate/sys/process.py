"""Processes: clone3 into namespaces, pidfds, prctl, identity, keyring, descriptors.

The wrappers keep the system call's name. Numbers from 424 on are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from casemate.sys.libc import check, libc, syscall

# Not imported at run time: the supervisor of every VM loads this module, and typing would cost each 0.8 MB.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

CLONE_PIDFD: Final = 0x1000
CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWCGROUP: Final = 0x0200_0000
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWPID: Final = 0x2000_0000
CLONE_NEWNET: Final = 0x4000_0000

PR_SET_PDEATHSIG: Final = 1
PR_GET_PDEATHSIG: Final = 2
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_SET_SECUREBITS: Final = 28
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_SCHED_CORE: Final = 62
PR_SCHED_CORE_CREATE: Final = 1
PR_SCHED_CORE_SCOPE_THREAD_GROUP: Final = 1

_NR_CLONE3: Final = 435
_NR_PIDFD_GETFD: Final = 438
_NR_KEYCTL: Final = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING: Final = 1
_CLOSE_RANGE_CLOEXEC: Final = 4

# clone3 must not give up the GIL: the child would come back without the thread state that holds it.
_pylibc = ctypes.PyDLL(None, use_errno=True)


def clone3(flags: int, cgroup_fd: int | None = None) -> tuple[int, int]:
    """Fork into new namespaces. The caller must be single-threaded.

    The C library's fork makes its allocator ready for the child; a bare clone3 cannot, and a lock that another thread
    holds at this moment would never be released there.

    Args:
        flags: CLONE_NEW* flags; CLONE_PIDFD is added.
        cgroup_fd: descriptor of a cgroup v2 directory to start the child in (CLONE_INTO_CGROUP).

    Returns:
        (pid, pidfd) in the parent, (0, -1) in the child.

    Raises:
        OSError: EPERM or ENOSPC when namespaces are not to be had.
        RuntimeError: the caller has other threads.
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("clone3 in a process with several threads: fork first")
    pidfd = ctypes.c_int(-1)
    into_cgroup = 0x2_0000_0000 if cgroup_fd is not None else 0
    # struct clone_args (64-bit fields): flags pidfd child_tid parent_tid exit_signal stack stack_size tls set_tid
    # set_tid_size cgroup; see clone(2).
    args = struct.pack(
        "=11Q", flags | CLONE_PIDFD | into_cgroup, ctypes.addressof(pidfd), 0, 0, 17, 0, 0, 0, 0, 0, cgroup_fd or 0
    )
    buffer = ctypes.create_string_buffer(args, len(args))
    api = ctypes.pythonapi
    api.PyOS_BeforeFork()
    # SAFETY: no CLONE_VM: the child gets a copy of this stack, as with fork(2); Python's own fork hooks run around it.
    pid: int = _pylibc.syscall(ctypes.c_long(_NR_CLONE3), buffer, ctypes.c_long(len(args)))
    if pid == 0:
        api.PyOS_AfterFork_Child()
        return 0, -1
    number = ctypes.get_errno()
    api.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(number, os.strerror(number), "clone3")
    fcntl.fcntl(pidfd.value, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return pid, pidfd.value


def unshare(flags: int) -> None:
    """Move the calling process into new namespaces."""
    # SAFETY: no pointers.
    check(libc.unshare(ctypes.c_int(flags)), f"unshare {flags:#x}")


def setns(descriptor: int, flags: int) -> None:
    """Join namespaces of the process (pidfd) or the one namespace that ``descriptor`` stands for."""
    # SAFETY: no pointers.
    check(libc.setns(ctypes.c_int(descriptor), ctypes.c_int(flags)), f"setns {flags:#x}")


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2) with integer arguments."""
    # SAFETY: integer arguments only.
    longs = [ctypes.c_ulong(value) for value in (arg2, arg3, arg4, arg5)]
    return check(libc.prctl(ctypes.c_int(option), *longs), f"prctl {option}")


def set_process_name(name: str) -> None:
    """PR_SET_NAME: the calling thread's name, at most 15 bytes."""
    # SAFETY: the kernel copies at most 16 bytes from the buffer.
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    check(libc.prctl(ctypes.c_int(PR_SET_NAME), buffer, 0, 0, 0), "prctl PR_SET_NAME")


def pidfd_getfd(pidfd: int, target_fd: int) -> int:
    """Take a copy of another process's descriptor (needs ptrace access to it)."""
    return syscall(_NR_PIDFD_GETFD, pidfd, target_fd, 0)


def keyctl_join_session_keyring() -> None:
    """Start a new, anonymous session keyring; a kernel without keyrings has nothing to leave behind.

    Raises:
        OSError: the kernel has keyrings but gave none.
    """
    number = _NR_KEYCTL.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "keyctl")
    try:
        syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None)
    except OSError as fault:
        if fault.errno != errno.ENOSYS:
            raise


def close_range_on_exec(first: int) -> None:
    """Mark every descriptor from ``first`` on close-on-exec."""
    # SAFETY: no pointers.
    check(libc.close_range(ctypes.c_uint(first), ctypes.c_uint(0xFFFF_FFFF), _CLOSE_RANGE_CLOEXEC), "close_range")


def start_time_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot (field 22 of /proc/PID/stat, see proc(5)).

    Together with the pid it names a process for good; a pid alone does not.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        text = file.read(4096)
    return int(text[text.rindex(b")") + 2 :].split()[19])
