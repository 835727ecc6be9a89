"""What the cell tells of an image. Every text in here was chosen by the image: bytes stay bytes, and nobody prints them
as they are (``cli.output.plain``).
"""

from __future__ import annotations

import stat

import msgspec

ENTRIES_MAX = 4_000_000
"""Entries that one walk gives at most."""
NAMES_MAX_BYTES = 1 << 30
"""Bytes of names and attributes that one walk gives at most."""
LIST_MAX = 200_000
"""Entries of one directory that are taken."""
PATH_MAX_BYTES = 16_384
"""The longest path inside a volume; what lies deeper is reported, not followed."""
READ_MAX_BYTES = 64 << 20
"""What `Cell.read` may hold in memory; `Cell.stream` has no such bound."""


class Entry(msgspec.Struct, frozen=True):
    """One file of a volume, as ``lstat`` in the cell saw it.

    ``path``: relative to what was asked for, without a leading slash. ``mode``: type and permission bits of
    ``st_mode``. ``mtime_s``: seconds since 1970, negative before. ``device``: major and minor of a device node.
    ``error``: errno when the file, or the rest of this directory, could not be read; the other fields may then be 0.
    """

    path: bytes
    mode: int
    size_bytes: int
    mtime_s: int = 0
    uid: int = 0
    gid: int = 0
    links: int = 1
    inode: int = 0
    device: tuple[int, int] = (0, 0)
    target: bytes = b""
    error: int = 0

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """A directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        """A symbolic link; ``target`` says where to."""
        return stat.S_ISLNK(self.mode)


class Piece(msgspec.Struct, frozen=True):
    """Content of the file whose `Entry` came last; ``last`` with ``error`` (errno, 0 for none) ends it."""

    data: bytes
    last: bool = False
    error: int = 0


class OsRelease(msgspec.Struct, frozen=True):
    """The fields of os-release(5) that name a system; empty where the file has none."""

    id: str = ""
    name: str = ""
    version: str = ""
    pretty_name: str = ""


class Volume(msgspec.Struct, frozen=True):
    """A block device of the image and what is on it.

    ``name``: how commands call it, for example ``vda1`` or ``vg0/root``. ``disk``: index of the image it is on, -1 for
    a volume made of several. ``content``: ``ext4``, ``xfs``, …; ``crypto_LUKS``, ``LVM2_member``, ``linux_raid_member``
    ``swap``; empty when unknown. ``readable``: its files can be listed. ``label`` and ``uuid`` come from its
    superblock, ``partition`` and ``partition_name`` from the partition table. ``notes``: what a reader must know (a
    journal that was not replayed, why it is not readable). A subvolume of btrfs with a system in it is a volume of its
    own, ``vda2:@``: absolute links in it lead to its own root.
    """

    name: str
    disk: int
    size_bytes: int
    content: str = ""
    readable: bool = False
    label: str = ""
    uuid: str = ""
    partition: int = 0
    partition_name: str = ""
    notes: tuple[str, ...] = ()
    os: OsRelease | None = None


class ImageFile(msgspec.Struct, frozen=True):
    """One image for a cell: ``fd`` open for reading (the caller's), ``format`` raw or qcow2, as its header said."""

    fd: int
    format: str
    name: str
    virtual_size_bytes: int
