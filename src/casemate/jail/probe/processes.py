"""Attempts on other processes, namespaces, the kernel's own interfaces, identity and capabilities. Data only.

Signals are always number 0, which asks for the permission and delivers nothing. What would change the host if it
worked is worded so that it cannot: null pointers, paths that do not exist, flags that are refused after the check.
"""

from __future__ import annotations

from typing import Final

from casemate.jail.policy import Layer
from casemate.jail.probe.model import DESCRIPTOR, KERNEL, Attempt, Bait, Call, Got, Group, Packed, Room

EPERM, ENOENT, ESRCH, EBADF, EAGAIN, EACCES, EFAULT, EBUSY, EINVAL, ENOSYS = 1, 2, 3, 9, 11, 13, 14, 16, 22, 38
_EOPNOTSUPP: Final = 95

_PTRACE_SEIZE: Final = 0x4206
_SIGCHLD: Final = 17
_NEW = {"user": 0x1000_0000, "mount": 0x0002_0000, "pid": 0x2000_0000, "network": 0x4000_0000, "ipc": 0x0800_0000}
_MS_REMOUNT_BIND: Final = 32 | 4096
_MNT_EXPIRE: Final = 4
_AT_FDCWD: Final = -100

_CAPABILITY: Final = (
    (EPERM, (Layer.CAPABILITIES, Layer.NAMESPACES, Layer.IDENTITY)),
    (EACCES, (Layer.CAPABILITIES, Layer.LANDLOCK)),
)
_OUTSIDE: Final = (
    (ESRCH, (Layer.NAMESPACES,)),
    (EPERM, (Layer.LANDLOCK, Layer.IDENTITY, Layer.CAPABILITIES)),
    (EACCES, (Layer.LANDLOCK, Layer.IDENTITY)),
)


# Allowed to everybody unless a sysctl or a security module of the host says otherwise.
_HOST_DECIDES: Final = ((EPERM, (KERNEL,)), (EACCES, (KERNEL,)))


def process_attempts(bait: Bait) -> tuple[Attempt, ...]:
    """Reaching a process of the host by its number."""
    iov = Packed("@PQ", (Room(8), 8))
    there = Packed("=QQ", (4096, 8))
    listed: tuple[tuple[str, str, tuple[Call, ...]], ...] = (
        ("kill", "signal a process of the host", (Call("kill", (bait.pid, 0)),)),
        ("kill-all", "signal every process it may", (Call("kill", (-1, 0)),)),
        ("tgkill", "signal a thread of the host", (Call("tgkill", (bait.pid, bait.pid, 0)),)),
        ("tkill", "signal a thread of the host by tkill", (Call("tkill", (bait.pid, 0)),)),
        ("pidfd-open", "get a handle on a process of the host", (Call("pidfd_open", (bait.pid, 0)),)),
        ("ptrace", "trace a process of the host", (Call("ptrace", (_PTRACE_SEIZE, bait.pid, 0, 0)),)),
        ("vm-read", "read a host process's memory", (Call("process_vm_readv", (bait.pid, iov, 1, there, 1, 0)),)),
        ("vm-write", "write a host process's memory", (Call("process_vm_writev", (bait.pid, iov, 1, there, 1, 0)),)),
        ("kcmp", "compare kernel pointers of host processes", (Call("kcmp", (bait.pid, bait.pid, 0, 0, 0)),)),
        ("limits", "change the limits of a host process", (Call("prlimit64", (bait.pid, 7, 0, Room(16))),)),
        ("where", "see where a host process runs", (Call("sched_getaffinity", (bait.pid, 128, Room(128))),)),
        ("move", "move a host process", (Call("sched_setaffinity", (bait.pid, 128, b"\xff" * 128)),)),
        (
            "steal-descriptor",
            "take a descriptor out of a host process",
            (Call("pidfd_open", (bait.pid, 0)), Call("pidfd_getfd", (Got(0), 0, 0))),
        ),
        (
            "enter-namespaces",
            "enter the namespaces of a host process",
            (Call("pidfd_open", (bait.pid, 0)), Call("setns", (Got(0), _NEW["mount"]))),
        ),
    )
    return tuple(
        Attempt(
            id=f"processes.{name}",
            group=Group.PROCESSES,
            what=what,
            steps=steps,
            expected=(Layer.SECCOMP, Layer.NAMESPACES, Layer.LANDLOCK, Layer.IDENTITY),
            errnos=_OUTSIDE,
            past=(EFAULT,) if name.startswith("vm-") else (),
        )
        for name, what, steps in listed
    )


def _kernel(
    name: str,
    what: str,
    *steps: Call,
    expected: tuple[str, ...] = (Layer.SECCOMP, Layer.CAPABILITIES),
    errnos: tuple[tuple[int, tuple[str, ...]], ...] | None = None,
    past: tuple[int, ...] = (),
    only_with: tuple[Layer, ...] = (),
    harm: str = "",
) -> Attempt:
    return Attempt(
        id=f"kernel.{name}",
        group=Group.KERNEL,
        what=what,
        steps=steps,
        expected=expected,
        errnos=errnos or (_HOST_DECIDES if expected == (Layer.SECCOMP,) else _CAPABILITY),
        past=past,
        only_with=only_with,
        harm=harm,
    )


def namespace_attempts() -> tuple[Attempt, ...]:
    """Mounts, roots and new namespaces."""
    alone = (Layer.SECCOMP,)
    attempts = [
        _kernel("mount-tmpfs", "mount a tmpfs", Call("mount", (b"none", b"/", b"tmpfs", 0, 0))),
        _kernel("mount-proc", "mount /proc", Call("mount", (b"none", b"/", b"proc", 0, 0))),
        _kernel("remount-rw", "make its root writable", Call("mount", (0, b"/", 0, _MS_REMOUNT_BIND, 0))),
        _kernel("umount", "unmount the root", Call("umount2", (b"/", _MNT_EXPIRE)), past=(EINVAL, EBUSY, EAGAIN)),
        _kernel("pivot-root", "change the root mount", Call("pivot_root", (b"/", b"/")), past=(EINVAL, EBUSY)),
        _kernel("chroot", "change its root directory", Call("chroot", (b"/",))),
        _kernel("fsopen", "open a file system context", Call("fsopen", (b"tmpfs", 0))),
        _kernel("open-tree", "clone a mount", Call("open_tree", (_AT_FDCWD, b"/", 1))),
        _kernel(
            "mount-setattr",
            "lift read-only from a mount",
            Call("mount_setattr", (_AT_FDCWD, b"/", 0, Packed("=4Q", (0, 1, 0, 0)), 32)),
        ),
        _kernel(
            "setns",
            "enter a namespace through a descriptor",
            Call("setns", (0, 0)),
            expected=(Layer.SECCOMP, DESCRIPTOR),
            errnos=((EINVAL, (DESCRIPTOR,)),),
        ),
    ]
    for name, flag in _NEW.items():
        expected = alone if name == "user" else (Layer.SECCOMP, Layer.CAPABILITIES)
        attempts.append(
            _kernel(f"unshare-{name}", f"make a new {name} namespace", Call("unshare", (flag,)), expected=expected)
        )
        attempts.append(
            _kernel(
                f"clone-{name}",
                f"start a process in a new {name} namespace",
                Call("clone", (flag | _SIGCHLD, 0, 0, 0, 0)),
                expected=expected,
            )
        )
    attempts.append(
        _kernel(
            "clone3",
            "start a process in a new user namespace with clone3",
            Call("clone3", (Packed("=8Q", (_NEW["user"], 0, 0, 0, _SIGCHLD, 0, 0, 0)), 64)),
            expected=alone,
        )
    )
    attempts.append(
        _kernel(
            "userns-mount",
            "become root of a new user namespace and mount there",
            Call("unshare", (_NEW["user"] | _NEW["mount"],)),
            Call("mount", (b"none", b"/", b"tmpfs", 0, 0)),
            expected=(Layer.SECCOMP, Layer.LANDLOCK),
            errnos=((EPERM, (Layer.LANDLOCK, Layer.CAPABILITIES)), (EACCES, (Layer.LANDLOCK,))),
        )
    )
    return tuple(attempts)


def kernel_attempts() -> tuple[Attempt, ...]:
    """Interfaces of the kernel with a history of their own."""
    alone = (Layer.SECCOMP,)
    uring = Room(120)
    perf = Packed("=IIQQQQQ64x", (1, 112, 0, 0, 0, 0, 1 << 5))  # software clock, exclude_kernel
    filters = Packed("=IIIII52x", (1, 4, 4, 1, 0))  # BPF_MAP_TYPE_HASH, 4-byte keys and values
    return (
        _kernel(
            "add-key",
            "leave a key in a keyring",
            Call("add_key", (b"user", b"casemate-probe", b"x", 1, -2)),
            expected=alone,
        ),
        _kernel("keyctl", "look at the user's keyring", Call("keyctl", (0, -4, 0)), expected=alone),
        _kernel(
            "request-key",
            "ask for a key",
            Call("request_key", (b"user", b"casemate-probe", 0, 0)),
            expected=alone,
            past=(126,),
        ),
        _kernel("bpf", "make a BPF map", Call("bpf", (0, filters, 72)), expected=alone),
        _kernel("io-uring", "set up io_uring", Call("io_uring_setup", (4, uring)), expected=alone),
        _kernel("userfaultfd", "handle page faults itself", Call("userfaultfd", (1,)), expected=alone),
        _kernel(
            "perf",
            "count events",
            Call("perf_event_open", (perf, 0, -1, -1, 0)),
            expected=alone,
        ),
        _kernel("init-module", "load a kernel module", Call("init_module", (0, 0, b"")), past=(EFAULT, 8)),
        _kernel("finit-module", "load a kernel module from a file", Call("finit_module", (-1, b"", 0)), past=(EBADF,)),
        _kernel(
            "delete-module", "unload a kernel module", Call("delete_module", (b"casemate-none", 0o4000)), past=(ENOENT,)
        ),
        _kernel("kexec", "load another kernel", Call("kexec_load", (0, 0xFFFF, 0, 0)), past=(EINVAL,)),
        _kernel(
            "kexec-file", "load another kernel from a file", Call("kexec_file_load", (-1, -1, 0, 0, 0)), past=(EBADF,)
        ),
        _kernel("swapon", "use a file as swap", Call("swapon", (b"/casemate-none", 0)), past=(ENOENT,)),
        _kernel("acct", "write process accounts", Call("acct", (b"/casemate-none",)), past=(ENOENT,)),
        _kernel("syslog", "read the kernel's log", Call("syslog", (3, Room(512), 512)), expected=alone),
        _kernel("iopl", "reach I/O ports", Call("iopl", (3,))),
        _kernel("ioperm", "reach one I/O port", Call("ioperm", (0x80, 1, 1))),
        _kernel("modify-ldt", "change its segment table", Call("modify_ldt", (0, Room(64), 64)), expected=alone),
        _kernel("settimeofday", "set the clock", Call("settimeofday", (0, 0))),
        _kernel(
            "sethostname",
            "rename the host",
            Call("sethostname", (b"casemate", 8)),
            only_with=(Layer.NAMESPACES,),
            harm="the host's name",
        ),
        _kernel("fanotify", "watch a file system", Call("fanotify_init", (0, 0))),
        _kernel("memfd-secret", "hide memory from the kernel", Call("memfd_secret", (0,)), expected=alone),
        _kernel("personality", "switch off address randomisation", Call("personality", (0x0040000,)), expected=alone),
        _kernel("seccomp", "load a filter of its own", Call("seccomp", (1, 0, 0)), expected=alone, past=(EFAULT,)),
        _kernel(
            "exec-memory",
            "map memory that it can write and execute",
            Call("mmap", (0, 4096, 7, 0x22, -1, 0)),
            expected=alone,
        ),
        _kernel(
            "exec-protect",
            "make memory executable",
            Call("mmap", (0, 4096, 3, 0x22, -1, 0)),
            Call("mprotect", (Got(0), 4096, 5)),
            expected=alone,
        ),
    )


def identity_attempts(bait: Bait) -> tuple[Attempt, ...]:
    """Becoming someone else, or running something else."""
    not_mapped = ((EINVAL, (Layer.IDENTITY,)), (EPERM, (Layer.CAPABILITIES, Layer.IDENTITY)))
    everything = Packed("=6I", (0xFFFF_FFFF,) * 6)
    listed: tuple[tuple[str, str, tuple[str, ...], tuple[Call, ...]], ...] = (
        ("setuid", "become root", (Layer.IDENTITY,), (Call("setuid", (0,)),)),
        ("setresuid", "become root with setresuid", (Layer.IDENTITY,), (Call("setresuid", (0, 0, 0)),)),
        ("setresgid", "join group root", (Layer.IDENTITY,), (Call("setresgid", (0, 0, 0)),)),
        (
            "setgroups",
            "join other groups",
            (Layer.IDENTITY, Layer.CAPABILITIES),
            (Call("setgroups", (1, Packed("=I", (0,)))),),
        ),
        (
            "capset",
            "take every capability",
            (Layer.CAPABILITIES,),
            (Call("capset", (Packed("=II", (0x2008_0522, 0)), everything)),),
        ),
        ("ambient", "raise an ambient capability", (Layer.CAPABILITIES,), (Call("prctl", (47, 2, 21, 0, 0)),)),
        ("securebits", "unlock its secure bits", (Layer.CAPABILITIES,), (Call("prctl", (28, 0, 0, 0, 0)),)),
    )
    attempts = [
        Attempt(
            id=f"identity.{name}",
            group=Group.IDENTITY,
            what=what,
            steps=steps,
            expected=(Layer.SECCOMP, *layers),
            errnos=not_mapped,
        )
        for name, what, layers, steps in listed
    ]
    argv = Packed("@PPQ", (bait.program.encode(), b"-version", 0))
    for name, what, call in (
        (
            "exec-program",
            "run the program of the wall again",
            Call("execve", (bait.program.encode(), argv, Packed("=Q", (0,)))),
        ),
        (
            "exec-loader",
            "run the program with execveat",
            Call("execveat", (_AT_FDCWD, bait.program.encode(), argv, Packed("=Q", (0,)), 0)),
        ),
        (
            "exec-shell",
            "run a shell",
            Call("execve", (b"/bin/sh", Packed("@PPPQ", (b"sh", b"-c", b"exit 0", 0)), Packed("=Q", (0,)))),
        ),
    ):
        attempts.append(
            Attempt(
                id=f"identity.{name}",
                group=Group.IDENTITY,
                what=what,
                steps=(call,),
                expected=(Layer.SECCOMP,) if name != "exec-shell" else (Layer.SECCOMP, Layer.ROOT),
                errnos=((ENOENT, (Layer.ROOT,)), (EACCES, (Layer.LANDLOCK, Layer.IDENTITY))),
            )
        )
    return tuple(attempts)
