"""The new root: a tmpfs that holds only what is listed, sealed read-only."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import PurePosixPath

import msgspec

from casemate.jail.context import Context
from casemate.jail.policy import (
    BindFile,
    CopyFile,
    Device,
    Directory,
    IdentityMode,
    Link,
    OneShot,
    RootEntry,
    Scratch,
    StateDirectory,
    Wall,
)
from casemate.sys import mount

DEVICE_NUMBERS = {"null": (1, 3), "zero": (1, 5), "urandom": (1, 9), "kvm": (10, 232)}
MISC_MAJOR = 10


def device_numbers(name: str) -> tuple[int, int]:
    """Major and minor. The kernel gives /dev/sev a minor when it finds one (MISC_DYNAMIC_MINOR), so that one is asked.

    Raises:
        OSError: there is none, or it is no misc device.
    """
    if name != "sev":
        return DEVICE_NUMBERS[name]
    status = os.stat("/dev/sev")
    if not stat.S_ISCHR(status.st_mode) or os.major(status.st_rdev) != MISC_MAJOR:
        raise OSError(errno.ENODEV, "not the device of AMD's security processor", "/dev/sev")
    return MISC_MAJOR, os.minor(status.st_rdev)


SELINUX_TYPE = "casemate_root_t"


def context_of_root(wall: Wall) -> str | None:
    """The SELinux context of everything in the root that is not bind-mounted; None without SELinux.

    Otherwise the policy would give it a type after whoever starts the VM, another one for each of them.
    """
    module, _, context = (wall.exec_label or "").partition(":")
    return f"{context.split(':')[0]}:object_r:{SELINUX_TYPE}:s0" if module == "selinux" else None


class NewRoot(msgspec.Struct, frozen=True):
    """A tmpfs that holds only what is listed, sealed read-only, becomes the root; the old one is let go."""

    wall: Wall

    def describe(self) -> str:
        lines = [
            f"new root: tmpfs of {self.wall.root_size_bytes} bytes, read-only, nosuid, {len(self.wall.root)} entries"
        ]
        for entry in self.wall.root:
            match entry:
                case BindFile(source=source, target=target):
                    lines.append(f"  {target} <- {source} (bind, ro)")
                case CopyFile(role=role, target=target):
                    lines.append(f"  {target} <- descriptor {role} (copied, hashed)")
                case Device(name=name):
                    lines.append(f"  /dev/{name} (device)")
                case Link(target=target, points_to=points_to):
                    lines.append(f"  {target} -> {points_to}")
                case Directory(target=target):
                    lines.append(f"  {target}/ (empty)")
                case OneShot(role=role, target=target):
                    lines.append(f"  {target} <- descriptor {role} (FIFO, read once)")
                case StateDirectory(source=source, target=target):
                    lines.append(f"  {target}/ <- {source} (bind, writable, nodev, noexec)")
                case Scratch(target=target, size_bytes=size_bytes, files_max=files_max):
                    lines.append(f"  {target}/ (tmpfs of {size_bytes} bytes and {files_max} files, writable, noexec)")
        return "\n".join(lines)

    def apply(self, context: Context) -> None:
        new = context.staging
        os.umask(0)  # modes below are meant as written; NewSession's mask returns at the end
        mount.mount(None, "/", None, mount.MS_REC | mount.MS_PRIVATE)
        options = f"size={self.wall.root_size_bytes},nr_inodes={len(self.wall.root) * 4 + 64},mode=755"
        if context_of_root(self.wall) is not None:
            options += f",context={context_of_root(self.wall)}"
        try:  # 2 MiB pages for the copies: a third of the time to write and to read them
            mount.mount("casemate", new, "tmpfs", mount.MS_NOSUID, f"{options},huge=within_size")
        except OSError as fault:
            if fault.errno != errno.EINVAL:  # a kernel without them
                raise
            mount.mount("casemate", new, "tmpfs", mount.MS_NOSUID, options)
        made: set[str] = set()
        for entry in self.wall.root:
            self._place(entry, new, context, made)
        attributes = mount.MOUNT_ATTR_RDONLY | mount.MOUNT_ATTR_NOSUID
        if self.wall.identity.mode is not IdentityMode.ROOT:
            # Rootless devices are binds with their own mounts; the tmpfs itself can be nodev. As root they are nodes.
            mount.mount_setattr(new, mount.MOUNT_ATTR_NODEV)
        mount.mount_setattr(new, attributes, recursive=True)
        for entry in self.wall.root:  # after everything was made read-only
            self._writable(entry, new)
        os.chdir(new)
        mount.pivot_root(".", ".")
        mount.umount2(".", mount.MNT_DETACH)
        os.chdir("/")
        os.umask(0o077)

    def _place(self, entry: RootEntry, new: str, context: Context, made: set[str]) -> None:
        target = new + (f"/dev/{entry.name}" if isinstance(entry, Device) else entry.target)
        parent = str(PurePosixPath(target).parent)
        if parent not in made:
            os.makedirs(parent, mode=0o755, exist_ok=True)
            made.add(parent)
        match entry:
            case BindFile(source=source):
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444))
                mount.mount(source, target, None, mount.MS_BIND)
            case CopyFile():
                self._copy(entry, target, context)
            case Link(points_to=points_to):
                os.symlink(points_to, target)
            case Device(name=name):
                self._device(name, target)
            case Directory():
                os.makedirs(target, mode=0o755, exist_ok=True)
            case OneShot():
                # Read by the process, written by whoever made the root; a read-only mount does not keep a FIFO closed.
                os.mkfifo(target, 0o644)
            case StateDirectory() | Scratch():
                os.mkdir(target, 0o755)

    def _writable(self, entry: RootEntry, new: str) -> None:
        flags = mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC
        who = self.wall.identity
        match entry:
            case StateDirectory(source=source, target=target):
                mount.mount(source, new + target, None, mount.MS_BIND)
                attributes = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV | mount.MOUNT_ATTR_NOEXEC
                mount.mount_setattr(new + target, attributes)
            case Scratch(target=target, size_bytes=size_bytes, files_max=files_max):
                options = f"size={size_bytes},nr_inodes={files_max},mode=700,uid={who.uid},gid={who.gid}"
                if context_of_root(self.wall) is not None:
                    options += f",context={context_of_root(self.wall)}"
                mount.mount("casemate-state", new + target, "tmpfs", flags, options)

    def _copy(self, entry: CopyFile, target: str, context: Context) -> None:
        source = context.sources[entry.role]
        size = os.fstat(source).st_size
        if size > entry.size_max_bytes:
            raise OSError(errno.EFBIG, f"{size} bytes, more than {entry.size_max_bytes}", entry.role)
        out = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444)
        try:
            os.ftruncate(out, size)  # the size first: tmpfs takes huge pages only within it
            offset = 0
            while offset < size:
                count = os.sendfile(out, source, offset, size - offset)
                if count == 0:
                    raise OSError(errno.EIO, "shrank while it was copied", entry.role)
                offset += count
        finally:
            os.close(out)

    def _device(self, name: str, target: str) -> None:
        major, minor = device_numbers(name)
        mode = 0o600 if name in {"kvm", "sev"} else 0o666
        if self.wall.identity.mode is IdentityMode.ROOT:
            os.mknod(target, stat.S_IFCHR | mode, os.makedev(major, minor))
            os.chown(target, self.wall.identity.uid, self.wall.identity.gid)
            return
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        mount.mount(f"/dev/{name}", target, None, mount.MS_BIND)
