"""The image store: content-addressed by SHA-256, immutable, safe beside other commands and against kill -9.

    <directory>/                    0700; $XDG_DATA_HOME/casemate/images, as root /var/lib/casemate/images
      store.lock                    lock: taken while images or names appear, change or go; never while bytes are copied
      store.toml                    optional, the owner's: quota = "50G", max_virtual_size = "2T"
      images/<sha256>/image         0400; raw or qcow2, never written again
      images/<sha256>/about.json    `store_model.About`: sizes, format, origin; replaced by rename
      names/<name>                  the digest that it names; replaced by rename
      incoming/<random>/            an import under way (`store_import.py`); its ``lock`` is held for its whole life
      downloads/<sha256 of URL>/    what has come of an interrupted download
      trash/<random>/               taken out by rename, about to be deleted

An image appears by one rename of a directory whose files are on disk, and goes by one rename into ``trash``: no reader
ever sees half of one, and readers take no lock. Names are removed before their image, so a name never leads nowhere.
What a killed command leaves (``incoming`` whose lock nobody holds, ``trash``) the next command sweeps. Files that are
not ours are left alone and named by `Store.strangers`.

`Store` looks up, lists, names and removes; ``add`` stands in ``store_import.py``.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator

import msgspec

from casemate.errors import HostError, ImageError, InputError, RefusedError
from casemate.image import store_files as files
from casemate.image.store_model import (
    ABOUT_VERSION,
    MIN_PREFIX,
    About,
    StoredImage,
    check_name,
    is_digest,
    is_name,
    looks_like_digest,
)

ABOUT_MAX_BYTES = 64 * 1024
NAME_MAX_BYTES = 65
DOWNLOAD_KEPT_S = 7 * 24 * 3600.0
PARTS = ("images", "names", "incoming", "downloads", "trash")
_OWN = frozenset({*PARTS, "store.lock", "store.toml"})

InUse = Callable[[StoredImage], str]
"""Who uses an image, in words (``VM web``); empty when nobody does."""


class Store:
    """One store. Nothing is made on disk before something is written.

    Args:
        directory: absolute; see the layout above.
    """

    def __init__(self, directory: str) -> None:
        if not directory.startswith("/"):
            raise RuntimeError(f"the store's directory must be absolute: {directory!r}")
        self.directory = directory.rstrip("/")

    # Reading: no lock, nothing made.

    def images(self) -> list[StoredImage]:
        """Every whole image, newest first; damaged ones are named by `damaged`."""
        names = self._names()
        found = []
        for digest in self._digests():
            with contextlib.suppress(ImageError):
                image = self._read(digest, names)
                if image is not None:
                    found.append(image)
        return sorted(found, key=lambda image: (-image.added_at, image.digest))

    def damaged(self) -> dict[str, str]:
        """Digests of images whose notes cannot be read, and why."""
        found: dict[str, str] = {}
        for digest in self._digests():
            try:
                self._read(digest, {})
            except ImageError as error:
                found[digest] = error.got
        return found

    def lookup(self, reference: str) -> StoredImage | None:
        """The image that a name, a digest or an unambiguous beginning of one means; None if there is none.

        ``sha256:`` before a digest is allowed.

        Raises:
            InputError: several images begin so.
            ImageError: it is there and damaged.
        """
        word = reference.removeprefix("sha256:")
        if word == reference and is_name(word):
            digest = self._names().get(word)
            return None if digest is None else self._read(digest, self._names())
        if not looks_like_digest(word):
            return None
        fitting = [digest for digest in self._digests() if digest.startswith(word)]
        if len(fitting) > 1:
            raise InputError(
                f"{len(fitting)} images begin with {word}", got=", ".join(digest[:16] for digest in sorted(fitting)[:4])
            )
        return self._read(fitting[0], self._names()) if fitting else None

    def find(self, reference: str) -> StoredImage:
        """As `lookup`.

        Raises:
            InputError: there is no such image.
        """
        found = self.lookup(reference)
        if found is not None:
            return found
        raise InputError(
            f"there is no image {reference[:80]!r}",
            expected=f"a name, or {MIN_PREFIX} or more digits of a digest",
            next_step="casemate image ls",
        )

    def path(self, image: StoredImage) -> str:
        """Where its bytes lie. For messages, and for `image.opening.open_image`, which refuses links."""
        return f"{self.directory}/images/{image.digest}/image"

    def open(self, image: StoredImage) -> int:
        """A descriptor (read-only, close-on-exec) of its bytes; the caller's to close. The digest is not checked here.

        Raises:
            ImageError: it has gone, or the file is not the one that was put there.
        """
        path = self.path(image)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as fault:
            raise ImageError(
                f"image {image.label} cannot be opened",
                got=f"{path}: {(fault.strerror or str(fault)).lower()}",
                next_step="casemate image ls; was it removed just now?",
            ) from None
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size != image.size_bytes or info.st_uid != os.geteuid():
            os.close(descriptor)
            raise ImageError(
                f"image {image.label} is not what was put into the store",
                got=f"{stat.filemode(info.st_mode)} uid {info.st_uid}, {info.st_size} bytes",
                expected=f"a file of uid {os.geteuid()} with {image.size_bytes} bytes",
                next_step=f"casemate image rm --force {image.short}, and add it again from its source",
            )
        return descriptor

    def used_bytes(self) -> int:
        """What images and imports under way take of the file system."""
        return sum(_disk_bytes(f"{self.directory}/{part}") for part in ("images", "incoming", "downloads"))

    def strangers(self) -> list[str]:
        """Paths in the store that are not the store's."""
        found = [name for name in _entries(self.directory) if name not in _OWN]
        found += [f"images/{name}" for name in _entries(f"{self.directory}/images") if not is_digest(name)]
        found += [f"names/{name}" for name in _entries(f"{self.directory}/names") if self._name(name) is None]
        return sorted(found)

    def _digests(self) -> Iterator[str]:
        return (name for name in _entries(f"{self.directory}/images") if is_digest(name))

    def _name(self, name: str) -> str | None:
        """The digest behind a name; None if that file is no name of ours."""
        if not is_name(name):
            return None
        try:
            text = files.read_small(f"{self.directory}/names/{name}", NAME_MAX_BYTES)
        except OSError:
            return None
        digest = text.decode("ascii", "replace").strip()
        return digest if is_digest(digest) else None

    def _names(self) -> dict[str, str]:
        found = {name: self._name(name) for name in _entries(f"{self.directory}/names")}
        return {name: digest for name, digest in found.items() if digest is not None}

    def _read(self, digest: str, names: dict[str, str]) -> StoredImage | None:
        """One image; None when it is not, or no longer, there."""
        place = f"{self.directory}/images/{digest}"
        try:
            about = msgspec.json.decode(files.read_small(f"{place}/about.json", ABOUT_MAX_BYTES), type=About)
            info = os.lstat(f"{place}/image")
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as fault:
            raise _damaged(place, str(fault)) from None
        if about.digest != digest or about.version != ABOUT_VERSION:
            raise _damaged(place, f"version {about.version} of image {about.digest[:12]}")
        return StoredImage(
            digest=digest,
            names=tuple(sorted(name for name, named in names.items() if named == digest)),
            format=about.format,
            virtual_size_bytes=about.virtual_size_bytes,
            size_bytes=about.size_bytes,
            disk_bytes=info.st_blocks * 512,
            added_at=about.added_at,
            origin=about.origin,
            verity_digest=about.verity_digest,
        )

    # Writing: under store.lock.

    def prepare(self) -> None:
        """Make the directories. Raises ``HostError`` when they cannot be made, or are not ours alone."""
        files.private_directory(self.directory)
        for part in PARTS:
            files.private_directory(f"{self.directory}/{part}")

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the store's lock, with the directories made and the leftovers of killed commands taken out."""
        self.prepare()
        with files.locked(f"{self.directory}/store.lock"):
            self._take_out_leftovers()
            yield
        self._empty_trash()

    def tag(self, reference: str, name: str) -> StoredImage:
        """Give an image one more name; the name leaves the image that had it.

        Raises:
            InputError: no such image, or the name is not allowed.
        """
        check_name(name)
        with self.changing():
            image = self.find(reference)
            self.write_name(name, image.digest)
        return self.find(image.digest)

    def annotate(
        self, image: StoredImage, origin: dict[str, str] | None = None, *, verity_digest: str | None = None
    ) -> StoredImage:
        """Add to what is known of an image's origin; other words of it stay."""
        with self.changing():
            now = self.find(image.digest)
            about = About(
                version=ABOUT_VERSION,
                digest=now.digest,
                format=now.format,
                virtual_size_bytes=now.virtual_size_bytes,
                size_bytes=now.size_bytes,
                added_at=now.added_at,
                origin={**now.origin, **(origin or {})},
                verity_digest=now.verity_digest if verity_digest is None else verity_digest,
            )
            data = msgspec.json.encode(about)
            if len(data) > ABOUT_MAX_BYTES:
                raise InputError(f"too much is said about image {image.label}", got=f"{len(data)} bytes")
            place = f"{self.directory}/images/{image.digest}/about.json"
            files.write_file(place, data, temporary=self._temporary())
        return self.find(image.digest)

    def remove(self, reference: str, *, in_use: InUse, force: bool = False) -> tuple[str, ...]:
        """Take a name away, and the image with its last name.

        Args:
            reference: a name, or a digest, which takes all of its names.
            in_use: asked under the lock.
            force: also an image with several names when its digest is given, and one that is damaged.

        Returns:
            what was removed: names, then ``sha256:DIGEST`` if the image went.

        Raises:
            InputError: no such image, or a digest with several names. RefusedError (img.in-use): someone uses it.
        """
        with self.changing():
            image = self._find_or_damaged(reference, force=force)
            gone = image.names if reference not in image.names else (reference,)
            if len(gone) > 1 and not force:
                raise InputError(
                    f"image {image.short} has {len(gone)} names",
                    got=", ".join(gone),
                    next_step=f"casemate image rm NAME takes one away, image rm --force {image.short} all",
                )
            whole = set(gone) == set(image.names)
            if whole:
                self._refuse_used(image, in_use)
            self._drop(image, gone, whole=whole)
        return (*gone, f"sha256:{image.digest}") if whole else gone

    def prune(self, *, in_use: InUse, named: bool = False, dry_run: bool = False) -> tuple[StoredImage, ...]:
        """Remove images without a name (with ``named``: all) that nobody uses, and interrupted downloads.

        Returns:
            the images.
        """
        with self.changing():
            found = [image for image in self.images() if (named or not image.names) and not in_use(image)]
            found = [image for image in found if not self._is_locked(image)]
            for image in () if dry_run else found:
                self._drop(image, image.names, whole=True)
            for name in () if dry_run else _entries(f"{self.directory}/downloads"):
                if not self._is_alive(f"downloads/{name}"):
                    self._discard(f"downloads/{name}")
        return tuple(found)

    def write_name(self, name: str, digest: str) -> None:
        """Point a name to an image; only under `changing`."""
        files.write_file(f"{self.directory}/names/{name}", f"{digest}\n".encode(), temporary=self._temporary())

    def _find_or_damaged(self, reference: str, *, force: bool) -> StoredImage:
        """As `find`; with ``force`` a damaged image too, so that it can be removed."""
        try:
            return self.find(reference)
        except ImageError:
            names = self._names()
            word = reference.removeprefix("sha256:")
            digest = names.get(word) or next((one for one in self._digests() if one.startswith(word)), "")
            if not force or not digest:
                raise
            held = tuple(sorted(name for name, named in names.items() if named == digest))
            return StoredImage(
                digest=digest, names=held, format="", virtual_size_bytes=0, size_bytes=0, disk_bytes=0, added_at=0
            )

    def _refuse_used(self, image: StoredImage, in_use: InUse) -> None:
        user = in_use(image) or ("a running program that holds it open" if self._is_locked(image) else "")
        if user:
            raise RefusedError(
                "img.in-use",
                f"image {image.label} is in use",
                got=user,
                expected="an image that no VM of yours uses",
                next_step="casemate ps -a lists the VMs; remove or redefine that one first",
            )

    def _is_locked(self, image: StoredImage) -> bool:
        """A launch holds flock(2) on each image that it opens (`engine.opening`)."""
        import fcntl

        try:
            descriptor = os.open(self.path(image), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _drop(self, image: StoredImage, names: tuple[str, ...], *, whole: bool) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.directory}/names/{name}")
        files.sync_directory(f"{self.directory}/names")
        if whole:
            self._discard(f"images/{image.digest}")
            files.sync_directory(f"{self.directory}/images")

    def _discard(self, part: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{self.directory}/{part}", f"{self.directory}/trash/{os.urandom(8).hex()}")

    def _temporary(self) -> str:
        return f"{self.directory}/incoming/{os.urandom(8).hex()}.tmp"

    def _take_out_leftovers(self) -> None:
        """Imports and downloads that nobody works on any more; only under the lock, under which they are made."""
        for name in _entries(f"{self.directory}/incoming"):
            if not self._is_alive(f"incoming/{name}"):
                self._discard(f"incoming/{name}")
        for name in _entries(f"{self.directory}/downloads"):
            with contextlib.suppress(OSError):
                age_s = time.time() - os.lstat(f"{self.directory}/downloads/{name}").st_mtime
                if age_s > DOWNLOAD_KEPT_S and not self._is_alive(f"downloads/{name}"):
                    self._discard(f"downloads/{name}")

    def _is_alive(self, part: str) -> bool:
        try:
            held = files.try_lock(f"{self.directory}/{part}/lock")
        except OSError:  # no directory, so no import
            return False
        if held is None:
            return True
        os.close(held)
        return False

    def _empty_trash(self) -> None:
        for name in _entries(f"{self.directory}/trash"):
            files.remove_tree(f"{self.directory}/trash/{name}")


def _damaged(place: str, why: str) -> HostError | ImageError:
    return ImageError(
        f"{place} is damaged",
        got=why[:200],
        next_step=f"casemate image rm --force {os.path.basename(place)[:12]}, and add the image again from its source",
    )


def _entries(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as fault:
        raise HostError(f"the image store cannot be read: {directory}", got=fault.strerror or "") from None


def _disk_bytes(directory: str) -> int:
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{place}/{name}").st_blocks * 512
    return total
