"""What `image add` does with a file: unpack, find the disk, read its header, copy or convert, publish.

    file ── gzip, xz, bzip2, zstd ──► unpacked in the store's incoming directory (image/unpack.py)
         └─ OVA ─► the disk inside it, read where it lies (image/ova.py)
              └─ raw, qcow2 ──► copied as it is, holes stay holes
              └─ vmdk, vhd, vhdx, vdi ──► converted to qcow2 in a wall (convert.py)

Every step works on descriptors of regular files; the header is read again from what is kept. ``origin`` remembers what
the source was: its digest is the one that checksum files and signatures of publishers are about.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import NamedTuple

from casemate.cell.convert import convert
from casemate.engine.paths import Paths
from casemate.errors import ImageError
from casemate.image import store_import
from casemate.image.foreign import SourceHeader, inspect_source
from casemate.image.opening import identity_of, verify_unchanged
from casemate.image.ova import find_disk, is_tar
from casemate.image.reader import ImageReader
from casemate.image.signatures import HEAD_BYTES, Kind, recognise
from casemate.image.store import Store
from casemate.image.store_import import Room, Seal
from casemate.image.store_model import StoredImage
from casemate.image.unpack import unpack

KEPT_FREE_BYTES = 256 << 20
"""What an import leaves of the file system, whatever its quota."""

Progress = Callable[[str, int, int], None]
"""Told (what is done, bytes done, bytes in all)."""


class Wanted(NamedTuple):
    """What becomes of a source. ``image_format``: what it is, None to tell by content; ``convert_to``: ``raw`` or
    ``qcow2``, None keeps raw and qcow2 as they are and makes qcow2 of the rest. ``container_disk``: an archive is the
    layer of an OCI image and no OVA.
    """

    name: str | None
    image_format: str | None = None
    convert_to: str | None = None
    expected_digest: str | None = None
    quota_bytes: int | None = None
    max_virtual_bytes: int = 2 << 40
    container_disk: bool = False


def take_in(
    store: Store,
    fd: int,
    source_name: str,
    wanted: Wanted,
    *,
    origin: dict[str, str],
    paths: Paths,
    reserved: range,
    seal: Seal | None = None,
    progress: Progress = lambda what, done, of: None,
) -> StoredImage:
    """Take an open file into the store.

    Args:
        fd: a regular file, open for reading; stays the caller's, its position moves.
        source_name: how messages name it.
        origin: what is known of where it came from; digest and format of the source are added.

    Raises:
        ImageError, InputError, RefusedError, HostError, VmError: why it was not taken; nothing is left of it.
    """
    identity = identity_of(fd)
    with store_import.room(store, quota_bytes=wanted.quota_bytes) as place, contextlib.ExitStack() as stack:
        place.check_quota(0)
        limit = room_bytes(store, wanted.quota_bytes)
        digest = ""
        if wanted.expected_digest is not None:
            digest = store_import.digest_of(fd, lambda done, of: progress("checking", done, of))
            _check_promise(source_name, digest, wanted.expected_digest)
        with store_import.no_room(store.directory):
            image, packed = _unpacked(fd, source_name, place, limit, wanted.max_virtual_bytes, progress)
        if image != fd:
            stack.callback(os.close, image)
        reader, promised = _disk(image, source_name, wanted)
        header = inspect_source(reader, wanted.image_format, wanted.max_virtual_bytes)
        target_format = wanted.convert_to or (header.format if header.format in {"raw", "qcow2"} else "qcow2")
        if promised:
            found = _part_digest(reader, progress)
            _check_promise(f"the disk in {source_name}", found, promised)
        known = {**origin, "source_format": "+".join(part for part in (packed, _described(header)) if part)}
        if header.format == target_format:
            place.check_quota(min(reader.size_bytes, os.fstat(image).st_blocks * 512))
            kept = place.copy(
                image, reader.size_bytes, lambda done, of: progress("copying", done, of), offset=reader.offset
            )
            if image == fd and not reader.offset and reader.size_bytes == identity.size_bytes:
                digest = kept
        else:
            kept = _convert(reader, image, header, target_format, place, limit, paths, reserved, progress)
        if not digest:
            digest = store_import.digest_of(fd, lambda done, of: progress("hashing", done, of))
        verify_unchanged(fd, identity, source_name)
        return place.publish(
            kept,
            name=wanted.name,
            image_format=target_format,
            origin={**known, "source_sha256": digest},
            max_virtual_bytes=wanted.max_virtual_bytes,
            seal=seal,
        )


def _described(header: SourceHeader) -> str:
    return f"{header.format} {header.variant}".strip()


def room_bytes(store: Store, quota_bytes: int | None) -> int:
    """How much an import may write: what the quota and the file system leave. Makes the store."""
    store.prepare()
    info = os.statvfs(store.directory)
    free = max(0, info.f_bavail * info.f_frsize - KEPT_FREE_BYTES)
    return free if quota_bytes is None else max(0, min(free, quota_bytes - store.used_bytes()))


def _unpacked(
    fd: int, name: str, place: Room, limit: int, max_virtual_bytes: int, progress: Progress
) -> tuple[int, str]:
    """The descriptor of what was packed, and how it was; ``fd`` itself if it is not packed."""
    found = recognise(os.pread(fd, HEAD_BYTES, 0), b"")
    if found is None or found.kind is not Kind.PACKED:
        return fd, ""
    if found.name not in {"gzip", "xz", "bzip2", "zstd"}:
        raise ImageError(f"{name} is packed with {found.name}", next_step=f"unpack it: {found.convert} FILE")
    target = place.create("unpacked")
    try:
        # A hole costs nothing on disk, but a claim of petabytes of them is no image either. An image with tables, or an
        # archive around it, may be somewhat longer than its disk.
        unpack(
            fd,
            found.name,
            target,
            name=name,
            max_output_bytes=max_virtual_bytes + max_virtual_bytes // 64 + (64 << 20),
            max_data_bytes=limit,
            progress=lambda done, of: progress("unpacking", done, of),
        )
    except BaseException:
        os.close(target)
        raise
    return target, found.name


def _disk(image: int, name: str, wanted: Wanted) -> tuple[ImageReader, str]:
    """A reader of the disk, and the SHA-256 that an OVA's manifest promises."""
    reader = ImageReader(image, name)
    if reader.size_bytes >= 512 and is_tar(reader.read(0, 512)):
        if wanted.container_disk:
            from casemate.image.oci_layout import find_container_disk

            member = find_container_disk(reader)
            return ImageReader(image, member.name, offset=member.offset, size_bytes=member.size_bytes), ""
        disk = find_disk(reader)
        part = ImageReader(image, disk.member.name, offset=disk.member.offset, size_bytes=disk.member.size_bytes)
        return part, disk.sha256
    return reader, ""


def _part_digest(reader: ImageReader, progress: Progress) -> str:
    import hashlib

    digest = hashlib.sha256()
    for at in range(0, reader.size_bytes, 1 << 20):
        digest.update(reader.read(at, min(1 << 20, reader.size_bytes - at)))
        progress("checking", at, reader.size_bytes)
    return digest.hexdigest()


def _convert(
    reader: ImageReader,
    image: int,
    header: SourceHeader,
    target_format: str,
    place: Room,
    limit: int,
    paths: Paths,
    reserved: range,
    progress: Progress,
) -> str:
    """Convert into the store; the digest of what came out."""
    target = place.create()
    try:
        convert(
            image,
            header,
            target,
            name=reader.name,
            paths=paths,
            reserved=reserved,
            target_format=target_format,
            offset=reader.offset,
            max_output_bytes=limit,
            progress=lambda done, of: progress("converting", done, of),
        )
    finally:
        os.close(target)
    return place.digest(lambda done, of: progress("hashing", done, of))


def _check_promise(name: str, digest: str, promised: str) -> None:
    if digest != promised.lower():
        raise ImageError(
            f"{name} is not what was promised",
            got=f"sha256 {digest}",
            expected=f"sha256 {promised.lower()}",
            next_step="get it again; if it stays so, the source or the checksum is not to be trusted",
        )
