"""Disks, partitions, RAID, volume groups and encrypted volumes of the image: found, opened and mounted in the guest.

1. The guest's kernel lists its block devices (/proc/partitions): it parses partition tables, this host does not.
2. The first and last blocks of each come out and are looked at (`sniff.py`).
3. Members of RAID and LVM and encrypted volumes are opened with tools that are sent in; 1 again for what appeared.
4. A file system is mounted when it is first asked for: its modules are sent in, its options are fixed here.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence

import msgspec

from casemate.cell.link import shown
from casemate.cell.model import ImageFile, OsRelease, Volume
from casemate.cell.session import DamagedImageError, MissingInImageError, Session
from casemate.cell.sniff import HEAD_BYTES, TAIL_BYTES, Found, sniff
from casemate.errors import ImageError, InputError

DEVICES_MAX = 128
ROUNDS_MAX = 4
"""How deep volumes may lie in each other: LUKS on LVM on md on partitions."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}\Z")
_DISK = re.compile(r"vd([a-z])(\d*)\Z")
_RDONLY_NOSUID_NODEV_NOEXEC = 15
_ERRNO_NAMES = {errno.EROFS: "it needs its journal replayed first", errno.ENODEV: "its kernel has no driver for it"}


class Kind(msgspec.Struct, frozen=True):
    """How a file system is mounted: type, modules to load first, options; ``retry`` if the first are refused."""

    mount_type: str
    modules: tuple[str, ...] = ()
    options: str = ""
    retry: str | None = None
    retry_note: str = ""


_NLS = ("nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8")
_NOT_REPLAYED = "its log was not replayed: the latest writes may be missing or half done"
KINDS: dict[str, Kind] = {
    "ext2": Kind("ext4", ("crc32c_generic", "ext4"), "noload"),
    "ext3": Kind("ext4", ("crc32c_generic", "ext4"), "noload"),
    "ext4": Kind("ext4", ("crc32c_generic", "ext4"), "noload"),
    # The device is read-only, so the kernel refuses a log that wants replaying: that tells a dirty one.
    "xfs": Kind("xfs", ("crc32c_generic", "xfs"), "nouuid", "nouuid,norecovery", _NOT_REPLAYED),
    "btrfs": Kind(
        "btrfs", ("crc32c_generic", "sha256_generic", "btrfs"), "subvolid=5,rescue=nologreplay", "subvolid=5,degraded"
    ),
    "vfat": Kind("vfat", (*_NLS, "vfat"), "utf8=1,codepage=437,iocharset=ascii", "utf8=1"),
    "exfat": Kind("exfat", (*_NLS, "exfat"), "iocharset=utf8"),
    "ntfs": Kind("ntfs3", (*_NLS, "ntfs3"), "iocharset=utf8"),
    "iso9660": Kind("iso9660", (*_NLS, "isofs"), "iocharset=utf8"),
    "udf": Kind("udf", (*_NLS, "udf"), "iocharset=utf8"),
    "squashfs": Kind("squashfs", ("squashfs",)),
    "erofs": Kind("erofs", ("crc32c_generic", "erofs")),
    "f2fs": Kind("f2fs", ("crc32c_generic", "f2fs"), "norecovery"),
}
_SUBVOLUMES = (b"", b"@", b"@rootfs", b"root")
RELEASE_FILES = (b"etc/os-release", b"usr/lib/os-release")


class Volumes:
    """The volumes of one cell. ``keys``: for encrypted ones."""

    def __init__(self, session: Session, images: Sequence[ImageFile], keys: Sequence[bytes] = ()) -> None:
        self._session = session
        self._images = images
        self._keys = keys
        self._found: dict[str, Volume] | None = None
        self._mounted: dict[str, str] = {}
        self._failed: dict[str, ImageError] = {}
        self._system: Volume | None = None

    def all(self) -> tuple[Volume, ...]:
        """Every volume; those with a file system are mounted once, to tell a readable one and its system."""
        found = self._scan()
        for name in tuple(found):
            if found[name].content in KINDS and ":" not in name:
                self._describe(name)
        return tuple(found.values())

    def place(self, name: str, path: str | bytes) -> tuple[str, bytes]:
        """Where a path of a volume is in the guest: mount point and path below it.

        Raises:
            InputError: no such volume, or a path that no kernel takes. ImageError: it cannot be read.
        """
        raw = os.fsencode(path)
        if b"\0" in raw or len(raw) > 4095:
            raise InputError("a path in an image", got=f"{len(raw)} bytes", expected="1 to 4095 bytes without NUL")
        found = self._scan()
        if name not in found:
            raise InputError(
                f"the image has no volume {name!r}",
                got=", ".join(found) or "no volumes",
                next_step="casemate image inspect lists them",
            )
        device, _, subvolume = name.partition(":")
        root = self._mount(device)
        return (f"{root}/{subvolume}" if subvolume else root), raw

    def system(self) -> Volume:
        """The volume with the operating system, or the only readable one.

        Raises:
            ImageError: there is none, or one must be chosen.
        """
        if self._system is None:
            self._system = choose_system(self.all())
        return self._system

    # ---- steps ----

    def _scan(self) -> dict[str, Volume]:
        """Steps 1 to 3."""
        if self._found is not None:
            return self._found
        found: dict[str, Volume] = {}
        for _ in range(ROUNDS_MAX):
            before = len(found)
            self._read_devices(found)
            opened = self._open_layers(found)
            if not opened and len(found) == before:
                break
        holders = {(volume.disk) for volume in found.values() if volume.partition}
        self._found = {
            name: volume
            for name, volume in found.items()
            # A partitioned disk is no volume of its own.
            if volume.partition or volume.disk < 0 or volume.disk not in holders or volume.content
        }
        return self._found

    def _read_devices(self, found: dict[str, Volume]) -> None:
        for name, size_bytes in self._devices():
            public = self._public_name(name)
            if public in found:
                continue
            head = self._session.pread(f"/dev/{name}", 0, min(HEAD_BYTES, size_bytes))
            tail = b""
            if size_bytes > TAIL_BYTES:
                aligned = (size_bytes & ~0xFFFF) - TAIL_BYTES
                tail = self._session.pread(f"/dev/{name}", max(0, aligned), TAIL_BYTES)
                if size_bytes % TAIL_BYTES:
                    end = self._session.pread(f"/dev/{name}", size_bytes - TAIL_BYTES, TAIL_BYTES)
                    tail = tail if sniff(b"", tail).content else end
            looks = sniff(head, tail)
            found[public] = self._as_volume(public, name, size_bytes, looks)

    def _devices(self) -> list[tuple[str, int]]:
        text = self._session.pread("/proc/partitions", 0, 1 << 16).decode("ascii", "replace")
        devices = []
        for line in text.splitlines():
            fields = line.split()
            if len(fields) == 4 and fields[2].isdecimal() and _NAME.match(fields[3]):
                sectors = self._number(f"/sys/class/block/{fields[3]}/size")
                size_bytes = sectors * 512 if sectors is not None else int(fields[2][:18]) * 1024
                if size_bytes > 0 and not fields[3].startswith(("loop", "ram", "sr", "fd")):
                    devices.append((fields[3], size_bytes))
        return devices[:DEVICES_MAX]

    def _number(self, path: str) -> int | None:
        text = self._session.pread(path, 0, 64).strip()
        return int(text) if text.isdigit() and len(text) < 16 else None

    def _public_name(self, name: str) -> str:
        """A device mapper volume is called as LVM or we named it; other devices as the kernel does."""
        if not name.startswith("dm-"):
            return name
        mapped = self._session.pread(f"/sys/class/block/{name}/dm/name", 0, 256).decode("ascii", "replace").strip()
        if not _NAME.match(mapped):
            return name
        group, dash, volume = mapped.replace("--", "\0").partition("-")
        if dash and volume and not mapped.startswith("luks-"):
            return f"{group}/{volume}".replace("\0", "-")
        return mapped

    def _as_volume(self, public: str, name: str, size_bytes: int, looks: Found) -> Volume:
        match = _DISK.match(name)
        disk = ord(match[1]) - ord("a") if match else -1
        partition = int(match[2][:6]) if match and match[2] else 0
        partition_name = ""
        if partition:
            event = self._session.pread(f"/sys/class/block/{name}/uevent", 0, 1024).decode("utf-8", "replace")
            partition_name = next((line[9:] for line in event.splitlines() if line.startswith("PARTNAME=")), "")
        return Volume(
            name=public,
            disk=disk if disk < len(self._images) else -1,
            size_bytes=size_bytes,
            content=looks.content,
            label=looks.label,
            uuid=looks.uuid,
            partition=partition,
            partition_name="".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in partition_name),
            notes=looks.notes,
        )

    def _open_layers(self, found: dict[str, Volume]) -> bool:
        """Step 3: True when something was opened, so that there may be new devices."""
        from casemate.cell.layers import open_layers

        return open_layers(self._session, found, self._keys)

    def _mount(self, name: str) -> str:
        """Step 4: the mount point in the guest."""
        if name in self._mounted:
            return self._mounted[name]
        if name in self._failed:
            raise self._failed[name]
        found = self._scan()
        try:
            self._mounted[name] = self._mount_now(found[name], f"/v/{len(self._mounted) + len(self._failed)}")
        except ImageError as error:
            self._failed[name] = error
            raise
        return self._mounted[name]

    def _mount_now(self, volume: Volume, target: str) -> str:
        kind = KINDS.get(volume.content)
        if kind is None:
            raise ImageError(
                f"volume {volume.name} has no file system that a cell reads",
                got=volume.content or "unknown content",
                expected=", ".join(KINDS),
                next_step=_ADVICE.get(volume.content, "casemate image inspect shows what is on the image"),
            )
        guest = self._session.guest
        if volume.content == "ntfs" and guest is not None and not guest.has("ntfs3"):
            return self._mount_ntfs(volume, target)
        if guest is not None and not (guest.has(kind.mount_type) or guest.has(_MODULE_OF.get(kind.mount_type, ""))):
            raise ImageError(
                f"volume {volume.name} is {volume.content}, which the cell's kernel does not read",
                got=f"kernel {guest.manifest.kernel_release}",
                next_step=_ADVICE.get(volume.content, ""),
            )
        self._session.load(*kind.modules)
        source = self._device_of(volume.name)
        error = self._session.mount(source, target, kind.mount_type, _RDONLY_NOSUID_NODEV_NOEXEC, kind.options)
        if error and kind.retry is not None:
            again = self._session.mount(source, target, kind.mount_type, _RDONLY_NOSUID_NODEV_NOEXEC, kind.retry)
            if not again and kind.retry_note:
                self._note(volume.name, kind.retry_note)
            error = error if again else 0
        if error:
            said = self._session.last_words()
            why = _ERRNO_NAMES.get(error, os.strerror(error).lower())
            raise ImageError(
                f"volume {volume.name} ({volume.content}) cannot be mounted in the cell",
                got=f"{why}; the guest's kernel: {said}" if said else why,
                next_step="the file system is damaged, or made to look so",
            )
        return target

    def _mount_ntfs(self, volume: Volume, target: str) -> str:
        """A kernel without ntfs3 (Debian's) has ntfs-3g above FUSE, in the guest as well."""
        self._session.load("fuse")
        self._session.send_tools("ntfs-3g")
        self._session.put(f"{target}/.keep", b"")
        options = "ro,nosuid,nodev,noexec,norecover"
        status, said = self._session.run(("/bin/ntfs-3g", "-o", options, self._device_of(volume.name), target))
        if status:
            raise ImageError(
                f"volume {volume.name} (ntfs) cannot be mounted in the cell",
                got="; ".join(shown(line.encode()) for line in said.splitlines()[:3])[:500],
                next_step="the file system is damaged, hibernated, or made to look so",
            )
        return target

    def _device_of(self, public: str) -> str:
        if "/" in public:
            group, _, volume = public.partition("/")
            return f"/dev/mapper/{group.replace('-', '--')}-{volume.replace('-', '--')}"
        return f"/dev/mapper/{public}" if public.startswith("luks-") else f"/dev/{public}"

    def _note(self, name: str, note: str) -> None:
        assert self._found is not None
        volume = self._found[name]
        self._found[name] = msgspec.structs.replace(volume, notes=(*volume.notes, note))

    def _describe(self, name: str) -> None:
        """Mount it, and see whether a system is on it."""
        found = self._scan()
        if found[name].readable:
            return
        try:
            root = self._mount(name)
        except ImageError as error:
            text = "; ".join(part for part in (error.what, error.got, error.next_step) if part)
            if text not in found[name].notes:
                self._note(name, text)
            return
        system, prefix = self._system_in(root, found[name].content)
        volume = msgspec.structs.replace(found[name], readable=True)
        found[name] = volume if prefix else msgspec.structs.replace(volume, os=system)
        if prefix:
            inner = f"{name}:{prefix.decode()}"
            found[inner] = msgspec.structs.replace(volume, name=inner, os=system, notes=("a subvolume",))

    def _system_in(self, root: str, content: str) -> tuple[OsRelease | None, bytes]:
        for prefix in _SUBVOLUMES if content == "btrfs" else (b"",):
            for file in RELEASE_FILES:
                try:
                    text = b"".join(self._session.read(f"{root}/{prefix.decode()}".rstrip("/"), file, 0, 1 << 16))
                except (MissingInImageError, DamagedImageError):
                    continue
                return parse_os_release(text.decode("utf-8", "replace")), prefix
        return None, b""


def choose_system(volumes: Sequence[Volume]) -> Volume:
    """The volume with the operating system, or the only readable one.

    Raises:
        InputError: one must be chosen. ImageError: there is none.
    """
    with_system = [volume for volume in volumes if volume.os is not None]
    readable = [volume for volume in volumes if volume.readable]
    for candidates in (with_system, readable):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise InputError(
                "the image has several volumes, and none is the one that is surely meant",
                got=", ".join(f"{volume.name} ({volume.content})" for volume in candidates),
                next_step="say which: --volume NAME",
            )
    described = ", ".join(f"{volume.name}: {volume.content or 'unknown'}" for volume in volumes)
    notes = "; ".join(note for volume in volumes for note in volume.notes)
    raise ImageError(
        "the image has no volume whose files can be read",
        got="; ".join(part for part in (described, notes) if part)[:1500],
        next_step="casemate image inspect shows each",
    )


_MODULE_OF = {"iso9660": "isofs"}
_ADVICE = {
    "crypto_LUKS": "give its key: --key-file FILE or --key-fd N",
    "LVM2_member": "its logical volumes are listed beside it",
    "linux_raid_member": "the array is listed beside it once all of its members are given",
}


def parse_os_release(text: str) -> OsRelease:
    """os-release(5): NAME=value lines, quotes taken away; anything else is skipped."""
    fields: dict[str, str] = {}
    for line in text.splitlines()[:200]:
        key, equals, value = line.strip().partition("=")
        if equals and key.isidentifier() and not line.startswith("#"):
            clean = value.strip().strip("\"'").replace("\\", "")
            fields[key] = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in clean)[:200]
    return OsRelease(
        fields.get("ID", ""), fields.get("NAME", ""), fields.get("VERSION_ID", ""), fields.get("PRETTY_NAME", "")
    )
