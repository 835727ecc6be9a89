"""How an image comes into the store.

    incoming/<random>/lock           held by the importing process until it is done or dead
    incoming/<random>/object/image   written, hashed, fsynced
    incoming/<random>/object/about.json
              └── renamed to images/<sha256> under store.lock

1. `Room`: a place made and locked under store.lock, so that no sweep can see it unlocked.
2. The bytes: copied from a descriptor with their holes (`Room.copy`), or written by somebody else through
   `Room.create` (a download, a conversion) and hashed afterwards.
3. `Room.publish`: header read again through the very file that is kept (a copy of hostile bytes is hostile),
   mode 0400, fs-verity if ``seal`` offers it, fsync, quota, rename, names.

The header is read from the file in the store and not from the source: the source can change while it is copied.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator

import msgspec

from casemate.errors import HostError, ImageError, InputError, RefusedError
from casemate.image import store_files as files
from casemate.image.headers import DEFAULT_MAX_VIRTUAL_BYTES, inspect_image
from casemate.image.opening import identity_of, verify_unchanged
from casemate.image.store import ABOUT_MAX_BYTES, Store
from casemate.image.store_model import ABOUT_VERSION, About, StoredImage, check_name
from casemate.units import format_bytes

CHUNK_BYTES = 1 << 20
IMAGE = "object/image"
"""The image in a room; other names are scratch files."""
_ZEROS = bytes(CHUNK_BYTES)

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""
Seal = Callable[[int], str]
"""Given a read-only descriptor of the file that is kept, when no writer is left; returns its fs-verity digest or ""."""


def _nothing(_done: int, _of: int) -> None:
    return


class Room:
    """A place in the store for one import; see `room`."""

    def __init__(self, store: Store, directory: str, lock: int, quota_bytes: int | None) -> None:
        self.store = store
        self.directory = directory
        self._lock = lock
        self._quota_bytes = quota_bytes
        self.path = f"{directory}/{IMAGE}"

    def create(self, name: str = IMAGE) -> int:
        """A new empty file here, open for reading and writing; the caller's to close."""
        path = f"{self.directory}/{name}"
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def check_quota(self, more_bytes: int) -> None:
        """Refuse what would make the store larger than it may be.

        Raises:
            RefusedError (img.quota).
        """
        if self._quota_bytes is None:
            return
        used = self.store.used_bytes()
        if used + more_bytes > self._quota_bytes:
            raise RefusedError(
                "img.quota",
                "the image store is full",
                got=f"{format_bytes(used)} used, {format_bytes(more_bytes)} more wanted",
                expected=f"at most {format_bytes(self._quota_bytes)} (store.toml or --quota)",
                next_step="casemate image prune",
            )

    def copy(
        self, source: int, size_bytes: int, progress: Progress = _nothing, *, offset: int = 0, name: str = IMAGE
    ) -> str:
        """Copy ``size_bytes`` of a seekable file into the image (or a scratch file), keeping holes; the SHA-256 of what
        was written.

        Raises:
            ImageError: the source became shorter. HostError: no room.
        """
        with no_room(self.store.directory):
            target = self.create(name)
            try:
                digest = _copy(source, target, size_bytes, offset, progress)
                os.fsync(target)
            finally:
                os.close(target)
        return digest

    def open(self, name: str) -> int:
        """A scratch file, read-only; the caller's to close."""
        return os.open(f"{self.directory}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def adopt(self, name: str) -> None:
        """Make a scratch file the image, without copying it. Nobody may have it open for writing any more."""
        os.rename(f"{self.directory}/{name}", self.path)
        with no_room(self.store.directory):
            files.sync_file(self.path)

    def digest(self, progress: Progress = _nothing) -> str:
        """SHA-256 of the image that somebody else wrote here."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return digest_of(descriptor, progress)
        finally:
            os.close(descriptor)

    def publish(
        self,
        digest: str,
        *,
        name: str | None,
        image_format: str,
        origin: dict[str, str] | None = None,
        max_virtual_bytes: int = DEFAULT_MAX_VIRTUAL_BYTES,
        allow_encrypted: bool = True,
        seal: Seal | None = None,
    ) -> StoredImage:
        """Make what lies here an image of the store.

        Args:
            digest: SHA-256 of the file, computed by `copy` or `digest`.
            name: given to it, and taken from the image that had it; None for none.
            image_format: ``raw`` or ``qcow2``, never guessed.

        Raises:
            ImageError: the header is refused. RefusedError: quota. HostError: the file system is full.
        """
        if name is not None:
            check_name(name)
        with no_room(self.store.directory):
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                header = inspect_image(
                    descriptor, name or "the image", image_format, max_virtual_bytes, allow_encrypted=allow_encrypted
                )
                os.fchmod(descriptor, 0o400)
                os.fsync(descriptor)
                verity = seal(descriptor) if seal is not None else ""
            finally:
                os.close(descriptor)
            about = About(
                version=ABOUT_VERSION,
                digest=digest,
                format=header.format,
                virtual_size_bytes=header.virtual_size_bytes,
                size_bytes=header.file_size_bytes,
                added_at=time.time(),
                origin=dict(origin or {}),
                verity_digest=verity,
            )
            self._write_about(about)
            for scratch in os.listdir(self.directory):
                if scratch not in {"lock", "object"}:
                    os.unlink(f"{self.directory}/{scratch}")
            with self.store.changing():
                self.check_quota(0)
                self._move_in(digest)
                if name is not None:
                    self.store.write_name(name, digest)
        return self.store.find(digest)

    def _write_about(self, about: About) -> None:
        data = msgspec.json.encode(about)
        if len(data) > ABOUT_MAX_BYTES:
            raise InputError("too much is said about the origin of this image", got=f"{len(data)} bytes")
        place = f"{self.directory}/object/about.json"
        files.write_file(place, data, temporary=f"{self.directory}/about.tmp")

    def _move_in(self, digest: str) -> None:
        images = f"{self.store.directory}/images"
        try:
            os.rename(f"{self.directory}/object", f"{images}/{digest}")
        except OSError as fault:
            # The same bytes are there already: they stay, with what is known of them.
            if fault.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        files.sync_directory(images)


@contextlib.contextmanager
def room(store: Store, *, quota_bytes: int | None = None) -> Iterator[Room]:
    """A place for one import, locked for its whole life and removed at its end, whatever came of it.

    Raises:
        HostError: the store cannot be made, or is full.
    """
    with no_room(store.directory), store.changing():
        directory = f"{store.directory}/incoming/{os.urandom(8).hex()}"
        os.mkdir(directory, 0o700)
        os.mkdir(f"{directory}/object", 0o700)
        lock = files.try_lock(f"{directory}/lock")
        assert lock is not None, "nobody else can know this name"
    try:
        yield Room(store, directory, lock, quota_bytes)
    finally:
        files.remove_tree(directory)
        os.close(lock)


def add(
    store: Store,
    fd: int,
    *,
    name: str | None,
    image_format: str,
    origin: dict[str, str] | None = None,
    expected_digest: str | None = None,
    quota_bytes: int | None = None,
    max_virtual_bytes: int = DEFAULT_MAX_VIRTUAL_BYTES,
    seal: Seal | None = None,
    progress: Progress = _nothing,
) -> StoredImage:
    """Copy a raw or qcow2 image from a descriptor into the store.

    Args:
        fd: a regular file, open for reading; stays the caller's, its position moves.
        expected_digest: SHA-256 that somebody promised.

    Raises:
        ImageError: refused header, another digest than promised, or it changed while it was copied. HostError: full.
        RefusedError: quota.
    """
    inspect_image(fd, name or "the image", image_format, max_virtual_bytes, allow_encrypted=True)  # before copying
    identity = identity_of(fd)
    size_bytes = identity.size_bytes
    with room(store, quota_bytes=quota_bytes) as place:
        place.check_quota(os.fstat(fd).st_blocks * 512)
        digest = place.copy(fd, size_bytes, progress)
        verify_unchanged(fd, identity, name or "the image")
        if expected_digest is not None and digest != expected_digest.lower():
            raise ImageError(
                f"{name or 'the image'} is not what was promised",
                got=f"sha256 {digest}",
                expected=f"sha256 {expected_digest.lower()}",
                next_step="get it again; if it stays so, the source or the checksum is not to be trusted",
            )
        return place.publish(
            digest,
            name=name,
            image_format=image_format,
            origin=origin,
            max_virtual_bytes=max_virtual_bytes,
            seal=seal,
        )


def digest_of(fd: int, progress: Progress = _nothing) -> str:
    """SHA-256 of an open file, without moving its position."""
    size_bytes = os.fstat(fd).st_size
    digest, at = hashlib.sha256(), 0
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    while got := os.preadv(fd, [view], at):
        digest.update(view[:got])
        at += got
        progress(at, size_bytes)
    return digest.hexdigest()


@contextlib.contextmanager
def no_room(directory: str) -> Iterator[None]:
    """A full disk, or a limit on files, said as what it is."""
    try:
        yield
    except OSError as fault:
        if fault.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
        raise HostError(
            "no room for the image",
            got=f"{directory}: {(fault.strerror or str(fault)).lower()}",
            next_step=f"df -h {directory}; casemate image prune removes images without a name",
        ) from fault


def _copy(source: int, target: int, size_bytes: int, offset: int, progress: Progress) -> str:
    """Bytes from ``source`` to ``target``; blocks of zeros become holes, holes are hashed without being read."""
    digest = hashlib.sha256()
    os.ftruncate(target, size_bytes)
    at = 0
    while at < size_bytes:
        begin, end = (place - offset for place in _next_data(source, offset + at, offset + size_bytes))
        while at < begin:
            length = min(CHUNK_BYTES, begin - at)
            digest.update(_ZEROS[:length] if length < CHUNK_BYTES else _ZEROS)
            at += length
            progress(at, size_bytes)
        while at < end:
            chunk = os.pread(source, min(CHUNK_BYTES, end - at), offset + at)
            if not chunk:
                raise ImageError("the image became shorter while it was copied", next_step="find out who writes to it")
            digest.update(chunk)
            _write_data(target, chunk, at)
            at += len(chunk)
            progress(at, size_bytes)
    return digest.hexdigest()


def _next_data(source: int, at: int, size_bytes: int) -> tuple[int, int]:
    """Where the next data at or after ``at`` begins and ends; twice the size when only a hole is left."""
    try:
        begin = os.lseek(source, at, os.SEEK_DATA)
        return min(begin, size_bytes), min(os.lseek(source, begin, os.SEEK_HOLE), size_bytes)
    except OSError as fault:
        # ENXIO: a hole up to the end. EINVAL: a file system that does not know holes.
        return (size_bytes, size_bytes) if fault.errno == errno.ENXIO else (at, size_bytes)


def _write_data(target: int, chunk: bytes, at: int) -> None:
    if chunk == _ZEROS[: len(chunk)]:
        return
    view = memoryview(chunk)
    while view:
        written = os.pwrite(target, view, at)
        view, at = view[written:], at + written
