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
    private: bool = False,
    seal: Seal | None = None,
    progress: Progress = lambda what, done, of: None,
) -> StoredImage:
    """Take an open file into the store.

    Args:
        fd: a regular file, open for reading; stays the caller's, its position moves.
        source_name: how messages name it.
        origin: what is known of where it came from; digest and format of the source are added.
        private: nobody else can write to the file. Otherwise one with a promised digest is copied first, so that what
            was checked is what is unpacked or converted.

    Raises:
        ImageError, InputError, RefusedError, HostError, VmError: why it was not taken; nothing is left of it.
    """
    identity = identity_of(fd)
    with store_import.room(store, quota_bytes=wanted.quota_bytes) as place:
        place.check_quota(0)
        with contextlib.ExitStack() as stack:
            work = _Work(place, wanted, stack, source_name, progress)
            work.begin(fd, private=private)
            work.unpack()
            kept, image_format, described = work.keep(paths, reserved)
        digest = work.digest or store_import.digest_of(fd, lambda done, of: progress("hashing", done, of))
        verify_unchanged(fd, identity, source_name)
        return place.publish(
            kept,
            name=wanted.name,
            image_format=image_format,
            origin={**origin, "source_format": described, "source_sha256": digest},
            max_virtual_bytes=wanted.max_virtual_bytes,
            seal=seal,
        )


class _Work:
    """The steps of one import. ``image`` is the descriptor that is worked on, ``scratch`` its name when it is ours."""

    def __init__(self, place: Room, wanted: Wanted, stack: contextlib.ExitStack, name: str, progress: Progress) -> None:
        self._place, self._wanted, self._stack = place, wanted, stack
        self._name, self._progress = name, progress
        self._image = -1
        self._scratch = ""
        self._packed = ""
        self.digest = ""
        """SHA-256 of the source, once it is known."""

    def _tell(self, what: str) -> Callable[[int, int], None]:
        return lambda done, of: self._progress(what, done, of)

    def _limit(self) -> int:
        return room_bytes(self._place.store, self._wanted.quota_bytes)

    def begin(self, fd: int, *, private: bool) -> None:
        """Compare the promised digest, on a copy of ours where others can write to the source."""
        self._image = fd
        if self._wanted.expected_digest is None:
            return
        if private:
            self.digest = store_import.digest_of(fd, self._tell("checking"))
        else:
            size_bytes = os.fstat(fd).st_size
            self._place.check_quota(os.fstat(fd).st_blocks * 512)
            self.digest = self._place.copy(fd, size_bytes, self._tell("copying"), name="source")
            self._use("source")
        _check_promise(self._name, self.digest, self._wanted.expected_digest)

    def _use(self, scratch: str) -> None:
        self._image, self._scratch = self._place.open(scratch), scratch
        self._stack.callback(os.close, self._image)

    def unpack(self) -> None:
        """Unpack what is packed."""
        found = recognise(os.pread(self._image, HEAD_BYTES, 0), b"")
        if found is None or found.kind is not Kind.PACKED:
            return
        if found.name not in {"gzip", "xz", "bzip2", "zstd"}:
            raise ImageError(f"{self._name} is packed with {found.name}", next_step=f"unpack it: {found.convert} FILE")
        disk_bytes = self._wanted.max_virtual_bytes
        with store_import.no_room(self._place.directory):
            target = self._place.create("unpacked")
            try:
                # A hole costs nothing on disk, but a claim of petabytes of them is no image either. An image with
                # tables, or an archive around it, may be somewhat longer than its disk.
                unpack(
                    self._image,
                    found.name,
                    target,
                    name=self._name,
                    max_output_bytes=disk_bytes + disk_bytes // 64 + (64 << 20),
                    max_data_bytes=self._limit(),
                    progress=self._tell("unpacking"),
                )
            finally:
                os.close(target)
        self._packed = found.name
        self._use("unpacked")

    def keep(self, paths: Paths, reserved: range) -> tuple[str, str, str]:
        """Bring the disk into the image of the room: its digest, its format, and what the source was."""
        reader, promised = _disk(self._image, self._name, self._wanted)
        header = inspect_source(reader, self._wanted.image_format, self._wanted.max_virtual_bytes)
        if promised:
            _check_promise(f"the disk in {self._name}", _part_digest(reader, self._progress), promised)
        described = f"{header.format} {header.variant}".strip()
        described = f"{self._packed}+{described}" if self._packed else described
        target_format = self._wanted.convert_to or (header.format if header.format == "raw" else "qcow2")
        if header.format != target_format:
            return self._convert(reader, header, target_format, paths, reserved), target_format, described
        whole = reader.offset == 0 and reader.size_bytes == os.fstat(self._image).st_size
        if self._scratch and whole:
            self._place.adopt(self._scratch)
            # Of a copy of ours the digest is known: it was taken while it was written.
            kept = self.digest if self._scratch == "source" else self._place.digest(self._tell("hashing"))
        else:
            self._place.check_quota(min(reader.size_bytes, os.fstat(self._image).st_blocks * 512))
            kept = self._place.copy(self._image, reader.size_bytes, self._tell("copying"), offset=reader.offset)
        if whole and not self._packed:
            if self.digest and self.digest != kept:
                raise ImageError(f"{self._name} changed while it was read", next_step="find out who writes to it")
            self.digest = kept
        return kept, target_format, described

    def _convert(
        self, reader: ImageReader, header: SourceHeader, target_format: str, paths: Paths, reserved: range
    ) -> str:
        target = self._place.create()
        try:
            convert(
                self._image,
                header,
                target,
                name=reader.name,
                paths=paths,
                reserved=reserved,
                target_format=target_format,
                offset=reader.offset,
                max_output_bytes=self._limit(),
                progress=self._tell("converting"),
            )
        finally:
            os.close(target)
        return self._place.digest(self._tell("hashing"))


def room_bytes(store: Store, quota_bytes: int | None) -> int:
    """How much an import may write: what the quota and the file system leave. Makes the store."""
    store.prepare()
    info = os.statvfs(store.directory)
    free = max(0, info.f_bavail * info.f_frsize - KEPT_FREE_BYTES)
    return free if quota_bytes is None else max(0, min(free, quota_bytes - store.used_bytes()))


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


def _check_promise(name: str, digest: str, promised: str) -> None:
    if digest != promised.lower():
        raise ImageError(
            f"{name} is not what was promised",
            got=f"sha256 {digest}",
            expected=f"sha256 {promised.lower()}",
            next_step="get it again; if it stays so, the source or the checksum is not to be trusted",
        )
