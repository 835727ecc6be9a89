"""Attempts on files, directories and inherited descriptors. Data only."""

from __future__ import annotations

from typing import Final

from casemate.jail.policy import Layer, Wall
from casemate.jail.probe.model import DESCRIPTOR, Attempt, Bait, Call, Got, Group, Packed, Room

AT_FDCWD: Final = -100
O_RDONLY, O_WRONLY, O_RDWR = 0, 1, 2
O_CREAT, O_EXCL, O_NOCTTY, O_NONBLOCK = 0o100, 0o200, 0o400, 0o4000
_DIRECTORY_X86, _TMPFILE_X86 = 0o200000, 0o20200000
_AT_REMOVEDIR: Final = 0x200
_S_IFCHR: Final = 0o020000

ENOENT, EBADF, EACCES, ENOTDIR, EINVAL, EROFS, EPERM, ELOOP = 2, 9, 13, 20, 22, 30, 1, 40

FILE_ERRNOS: Final = (
    (ENOENT, (Layer.ROOT,)),
    (ENOTDIR, (Layer.ROOT,)),
    (EROFS, (Layer.ROOT,)),
    # Modes are checked before Landlock; a path that Landlock alone forbids says so with an entry of its own.
    (EACCES, (Layer.IDENTITY, Layer.LANDLOCK)),
    (EPERM, (Layer.CAPABILITIES, Layer.IDENTITY)),
)
_EXPECTED: Final = (Layer.SECCOMP, Layer.ROOT, Layer.LANDLOCK, Layer.IDENTITY)

# ruff: noqa: S108 - these are places that the probe must not reach
READ: Final = (
    ("passwd", "/etc/passwd", "read the host's list of users"),
    ("shadow", "/etc/shadow", "read the host's password hashes"),
    ("root-home", "/root", "list root's home"),
    ("home", "/home", "list the homes of users"),
    ("tmp", "/tmp", "list the host's /tmp"),
    ("run", "/run", "list the host's /run"),
    ("var-lib", "/var/lib", "list the host's /var/lib"),
    ("proc", "/proc", "list processes"),
    ("proc-1-environ", "/proc/1/environ", "read the environment of pid 1"),
    ("proc-1-root", "/proc/1/root/etc/shadow", "read files through pid 1's root"),
    ("proc-self-mem", "/proc/self/mem", "open its own memory as a file"),
    ("proc-kcore", "/proc/kcore", "read the kernel's memory"),
    ("proc-core-pattern", "/proc/sys/kernel/core_pattern", "open the core pattern"),
    ("proc-sysrq", "/proc/sysrq-trigger", "open the sysrq trigger"),
    ("sys", "/sys/kernel", "look into /sys"),
    ("cgroup", "/sys/fs/cgroup", "look at cgroups"),
    ("mem", "/dev/mem", "open physical memory"),
    ("kmsg", "/dev/kmsg", "read the kernel's log"),
    ("vhost-net", "/dev/vhost-net", "open vhost-net"),
    ("tun", "/dev/net/tun", "open /dev/net/tun"),
    ("fuse", "/dev/fuse", "open /dev/fuse"),
    ("loop-control", "/dev/loop-control", "open the loop device control"),
    ("ptmx", "/dev/ptmx", "open a pseudo terminal"),
    ("shm", "/dev/shm", "list shared memory"),
    ("shell", "/bin/sh", "open a shell"),
    ("ld-preload", "/etc/ld.so.preload", "open the loader's preload list"),
    ("dot-dot", "/../../../../etc/passwd", "climb out of the root with .."),
)


def file_attempts(bait: Bait, wall: Wall) -> tuple[Attempt, ...]:
    """Reading and writing host files, by path and around it."""
    listed = [*READ]
    if not bait.has_kvm:
        listed.append(("kvm", "/dev/kvm", "open /dev/kvm, which this VM does not have"))
    listed.append(("bait", bait.secret_path, "read the probe's own bait on the host"))
    listed += [(label, path, f"open {label} of Casemate") for label, path in bait.paths]
    listed += [
        (f"outside-{part}", f"/proc/{bait.pid}/{part}", f"open {part} of a host process")
        for part in ("environ", "mem", "root/etc/shadow", "fd", "ns/mnt")
    ]
    attempts = [_read(name, path, what) for name, path, what in listed]
    attempts.append(
        _attempt(
            "open-by-old-call",
            "open a host file with open(2) in the place of openat",
            Call("open", (b"/etc/passwd", O_RDONLY)),
        )
    )
    attempts.append(
        _attempt(
            "openat2",
            "open a host file with openat2",
            Call("openat2", (AT_FDCWD, b"/etc/passwd", Packed("=QQQ", (O_RDONLY, 0, 0)), 24)),
        )
    )
    attempts += _by_handle()
    attempts += _writes(bait, wall)
    return tuple(attempts)


def _attempt(name: str, what: str, *steps: Call, **more: object) -> Attempt:
    values: dict[str, object] = {"errnos": FILE_ERRNOS, "expected": _EXPECTED, **more}
    return Attempt(id=f"files.{name}", group=Group.FILES, what=what, steps=steps, **values)  # type: ignore[arg-type]


def _read(name: str, path: str, what: str) -> Attempt:
    flags = O_RDONLY | O_NOCTTY | O_NONBLOCK
    return _attempt(f"read-{name.replace('/', '-')}", what, Call("openat", (AT_FDCWD, path.encode(), flags, 0)))


def _by_handle() -> list[Attempt]:
    # struct file_handle of 8 bytes, type 1 (inode and generation); the mount is that of descriptor 0.
    handle = Packed("=IIQ", (8, 1, 2))
    return [
        _attempt(
            "by-handle",
            "open a file by its handle, past every path",
            Call("open_by_handle_at", (0, handle, O_RDONLY)),
            expected=(Layer.SECCOMP, Layer.CAPABILITIES),
            past=(116,),  # ESTALE: allowed to ask, the handle is none
            errnos=((EPERM, (Layer.CAPABILITIES, Layer.NAMESPACES)), (EBADF, (Layer.NAMESPACES, Layer.ROOT))),
        )
    ]


def _writes(bait: Bait, wall: Wall) -> list[Attempt]:
    create = O_RDWR | O_CREAT | O_EXCL
    made = b"casemate-probe"
    attempts = []
    for name, directory in (("root", b"/"), ("tmp", b"/tmp/"), ("dev", b"/dev/"), ("bin", b"/usr/bin/")):
        path = directory + made
        attempts.append(
            _attempt(
                f"create-in-{name}",
                f"create a file in {directory.decode()}",
                Call("openat", (AT_FDCWD, path, create, 0o600)),
                undo=(Call("unlinkat", (AT_FDCWD, path, 0)),),
            )
        )
    attempts.append(
        _attempt(
            "unnamed",
            "create a file without a name in the root",
            Call("openat", (AT_FDCWD, b"/", _TMPFILE_X86 | O_RDWR, 0o600)),
        )
    )
    attempts.append(
        _attempt(
            "mkdir",
            "make a directory in the root",
            Call("mkdirat", (AT_FDCWD, b"/" + made, 0o700)),
            undo=(Call("unlinkat", (AT_FDCWD, b"/" + made, _AT_REMOVEDIR)),),
        )
    )
    attempts.append(
        _attempt(
            "symlink",
            "make a symbolic link in the root",
            Call("symlinkat", (b"/etc", AT_FDCWD, b"/" + made)),
            undo=(Call("unlinkat", (AT_FDCWD, b"/" + made, 0)),),
        )
    )
    attempts.append(
        _attempt(
            "fifo",
            "make a FIFO in the root",
            Call("mknodat", (AT_FDCWD, b"/" + made, 0o010600, 0)),
            undo=(Call("unlinkat", (AT_FDCWD, b"/" + made, 0)),),
        )
    )
    attempts.append(
        _attempt(
            "device-node",
            "make a node for physical memory",
            Call("mknodat", (AT_FDCWD, b"/" + made, _S_IFCHR | 0o600, 1 << 8 | 1)),
            undo=(Call("unlinkat", (AT_FDCWD, b"/" + made, 0)),),
        )
    )
    attempts.append(
        _attempt(
            "write-program",
            "open its own program for writing",
            Call("openat", (AT_FDCWD, bait.program.encode(), O_WRONLY)),
            only_with=(Layer.ROOT,),
            harm="the emulator of the host",
        )
    )
    attempts.append(
        _attempt(
            "chmod-program",
            "change the mode of its own program",
            Call("fchmodat", (AT_FDCWD, bait.program.encode(), 0o777)),
            only_with=(Layer.ROOT,),
            harm="the emulator of the host",
        )
    )
    if any(path.path == "/dev/urandom" and "write" not in path.rights for path in wall.landlock):
        attempts.append(
            _attempt(
                "write-urandom",
                "open /dev/urandom for writing, which its mode allows",
                Call("openat", (AT_FDCWD, b"/dev/urandom", O_WRONLY)),
                expected=(Layer.SECCOMP, Layer.LANDLOCK),
                errnos=((EACCES, (Layer.LANDLOCK, Layer.IDENTITY)),),
            )
        )
    attempts.append(
        _attempt(
            "list-root",
            "list its own root",
            Call("openat", (AT_FDCWD, b"/", O_RDONLY | _DIRECTORY_X86)),
            Call("getdents64", (Got(0), Room(4096), 4096)),
            expected=(Layer.SECCOMP,),
            declared=wall.has(Layer.ROOT) and not wall.has(Layer.SECCOMP),
        )
    )
    return attempts


def descriptor_attempts(wall: Wall, images: frozenset[str]) -> tuple[Attempt, ...]:
    """What an inherited descriptor must not give. ``images``: roles of files that belong to someone else."""
    attempts = [
        Attempt(
            id="descriptors.chmod-null",
            group=Group.DESCRIPTORS,
            what="change the mode of the host's /dev/null through its descriptor",
            steps=(Call("fchmod", (0, 0o666)),),
            expected=(Layer.SECCOMP, Layer.IDENTITY),
            errnos=((EPERM, (Layer.IDENTITY, Layer.CAPABILITIES)), (EROFS, (Layer.ROOT,))),
        )
    ]
    for descriptor in wall.descriptors:
        number, role = descriptor.number, descriptor.role
        if descriptor.access == "ro" and role != "null":
            # /dev/null takes every byte and keeps none, so whether descriptor 0 takes writes decides nothing.
            attempts.append(_write_to(number, role))
        if role in images:
            attempts.append(_climb(number, role))
            attempts.append(
                Attempt(
                    id=f"descriptors.chmod-{role}",
                    group=Group.DESCRIPTORS,
                    what=f"take over the file behind {role} by its mode",
                    steps=(Call("fchmod", (number, 0o600)),),
                    expected=(Layer.SECCOMP, Layer.IDENTITY),
                    errnos=((EPERM, (Layer.IDENTITY, Layer.CAPABILITIES)), (EROFS, (Layer.ROOT,))),
                    only_with=(Layer.SECCOMP, Layer.IDENTITY),
                    harm="the mode of the user's file",
                )
            )
    return tuple(attempts)


def _write_to(number: int, role: str) -> Attempt:
    return Attempt(
        id=f"descriptors.write-{role}",
        group=Group.DESCRIPTORS,
        what=f"write to {role}, which is read-only",
        steps=(Call("write", (number, b"x", 1)),),
        expected=(DESCRIPTOR,),
        errnos=((EBADF, (DESCRIPTOR,)), (EINVAL, (DESCRIPTOR,))),
    )


def _climb(number: int, role: str) -> Attempt:
    return Attempt(
        id=f"descriptors.climb-{role}",
        group=Group.DESCRIPTORS,
        what=f"reach other files from {role}",
        steps=(Call("openat", (number, b"../../etc/passwd", O_RDONLY)),),
        expected=(Layer.SECCOMP, DESCRIPTOR),
        errnos=((ENOTDIR, (DESCRIPTOR,)), (EACCES, (DESCRIPTOR,))),
    )
