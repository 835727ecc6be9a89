"""The caller's image store: where it lies, what its owner set, who uses an image; and what a word names: image or file.

`open_reference` is how every command that takes ``IMAGE`` opens it: once, by descriptor, with the header read.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import msgspec

from casemate.engine.paths import Paths, default_paths
from casemate.errors import InputError
from casemate.image.headers import DEFAULT_MAX_VIRTUAL_BYTES, inspect_image
from casemate.image.model import ImageHeader
from casemate.image.opening import open_image
from casemate.image.store import InUse, Store
from casemate.image.store_files import read_small
from casemate.image.store_model import StoredImage, is_name, looks_like_digest
from casemate.units import parse_size_bytes

PREFIX = "image:"
"""Before a name or digest: the store and nothing else."""
SETTINGS_MAX_BYTES = 16 * 1024


class Settings(msgspec.Struct, frozen=True):
    """``store.toml``; None: no bound on the store."""

    quota_bytes: int | None = None
    max_virtual_bytes: int = DEFAULT_MAX_VIRTUAL_BYTES


class OpenedImage(msgspec.Struct, frozen=True):
    """An image that is open. ``fd`` is read-only, close-on-exec, the caller's to close.

    ``name``: how messages name it. ``stored``: None for a file that is not of the store. ``path``: where it lies, for
    messages; never to be opened again.
    """

    fd: int
    name: str
    path: str
    header: ImageHeader
    stored: StoredImage | None


def default_store(paths: Paths | None = None) -> Store:
    """The store of the calling user. Nothing is made."""
    return Store(f"{(paths or default_paths()).data}/images")


def read_settings(store: Store) -> Settings:
    """What the owner wrote into ``store.toml``.

    Raises:
        InputError: it cannot be read, or has a key or value that means nothing.
    """
    path = f"{store.directory}/store.toml"
    known = {"quota": "quota_bytes", "max_virtual_size": "max_virtual_bytes"}
    try:
        document = tomllib.loads(read_small(path, SETTINGS_MAX_BYTES).decode())
        unknown = sorted(set(document) - set(known))
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; known: {', '.join(known)}")
        found: dict[str, int] = {}
        for key, value in document.items():
            found[known[key]] = parse_size_bytes(value) if isinstance(value, str) else int(value)
            if found[known[key]] <= 0:
                raise ValueError(f"{key} must be above 0")
    except FileNotFoundError:
        return Settings()
    except (OSError, ValueError, TypeError) as fault:
        raise InputError(
            f"the settings {path} cannot be used",
            got=str(fault)[:200],
            expected='for example: quota = "50G"',
            next_step=f"edit {path}, or remove it",
        ) from None
    return Settings(**found)


def in_use(paths: Paths, store: Store) -> InUse:
    """Which VM of the caller's, running or only defined, has an image on one of its disks."""
    from casemate.engine import state

    found: dict[str, str] | None = None

    def user(image: StoredImage) -> str:
        nonlocal found
        if found is None:  # under the store's lock: what was defined while we waited for it counts
            found = {}
            for definition in state.definitions(paths):
                for disk in definition.spec.disks:
                    found.setdefault(disk.path, definition.name)
        name = found.get(store.path(image), "")
        return f"VM {name}" if name else ""

    return user


def look_up(store: Store, word: str, base_dir: Path) -> StoredImage | None:
    """The image of the store that ``word`` means; None when it means a file.

    ``image:NAME`` is always the store, a word with a slash always a file. A bare word is an image of the store unless a
    file of that name lies in the working directory too: then nobody guesses.

    Raises:
        InputError: both, or ``image:`` with something that is not there.
    """
    if word.startswith(PREFIX):
        return store.find(word.removeprefix(PREFIX))
    if "/" in word or not (is_name(word) or looks_like_digest(word)):
        return None
    found = store.lookup(word)
    if found is not None and os.path.lexists(base_dir / word):
        raise InputError(
            f"{word} is an image of the store and a file in {base_dir}",
            next_step=f"say image:{word} for the image, ./{word} for the file",
        )
    return found


def open_reference(
    word: str,
    *,
    declared: str | None = None,
    store: Store | None = None,
    base_dir: Path | None = None,
    allow_encrypted: bool = True,
) -> OpenedImage:
    """Open what a user named: an image of the store (name, digest, ``image:NAME``) or a raw or qcow2 file.

    The digest of a stored image is not checked here.

    Args:
        declared: the format of a file; None tells it by content (`image.headers.inspect_image`). A stored image has its
            own.

    Raises:
        InputError: nothing of that name. ImageError: its header is refused.
    """
    place = store or default_store()
    base = base_dir or Path.cwd()
    stored = look_up(place, word, base)
    if stored is not None:
        descriptor, name, path = place.open(stored), f"image {stored.label}", place.path(stored)
        declared, limit = stored.format, max(stored.virtual_size_bytes, DEFAULT_MAX_VIRTUAL_BYTES)
    else:
        path = os.path.normpath(base / word)
        descriptor, name, limit = open_image(path), word, DEFAULT_MAX_VIRTUAL_BYTES
    try:
        header = inspect_image(descriptor, name, declared, limit, allow_encrypted=allow_encrypted)
    except BaseException:
        os.close(descriptor)
        raise
    return OpenedImage(descriptor, name, path, header, stored)
