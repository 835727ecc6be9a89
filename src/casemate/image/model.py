"""What the header of an accepted image says."""

from __future__ import annotations

import msgspec


class ImageHeader(msgspec.Struct, frozen=True):
    """An image that needs no other file. ``format`` is ``raw`` or ``qcow2``; raw leaves the later fields unset.

    ``virtual_size_bytes`` is what the guest sees, ``file_size_bytes`` the length of the file (holes included).
    ``dirty``: the last writer did not close it; QEMU repairs the reference counts when it opens it for writing.
    """

    format: str
    virtual_size_bytes: int
    file_size_bytes: int
    version: int = 0
    encrypted: bool = False
    cluster_size_bytes: int = 0
    refcount_bits: int = 0
    compression: str = ""
    extended_l2: bool = False
    lazy_refcounts: bool = False
    dirty: bool = False
    snapshots: int = 0
    bitmaps: int = 0
