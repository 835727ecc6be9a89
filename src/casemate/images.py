"""The public API of images: the store, where images come from, what they hold.

A ``reference`` is a name, a digest, or at least eight digits of one. Functions return `StoredImage` or plain data and
raise `CasemateError`. Everything below is imported on use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casemate.engine.imagestore import OpenedImage
    from casemate.image.store import InUse, Store
    from casemate.image.store_model import StoredImage

__all__ = [
    "add",
    "inspect_header",
    "list_images",
    "open_image",
    "prune",
    "remove",
    "sign",
    "store",
    "strangers",
    "tag",
    "verify",
]


def store() -> Store:
    """The caller's store: ``$XDG_DATA_HOME/casemate/images``, as root ``/var/lib/casemate/images``."""
    from casemate.engine.imagestore import default_store

    return default_store()


def list_images() -> list[StoredImage]:
    """Every image of the store, newest first."""
    return store().images()


def strangers() -> list[str]:
    """Files in the store's directory that are not the store's; they are left alone."""
    return store().strangers()


def open_image(reference: str, *, declared: str | None = None) -> OpenedImage:
    """Open an image of the store, or a raw or qcow2 file; see `engine.imagestore.open_reference`."""
    from casemate.engine.imagestore import open_reference

    return open_reference(reference, declared=declared)


def add(
    source: str,
    *,
    name: str | None = None,
    image_format: str | None = None,
    expected_digest: str | None = None,
    evidence: Mapping[str, object] | None = None,
    quota_bytes: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> StoredImage:
    """Take an image into the store.

    Args:
        source: a raw or qcow2 file.
        name: what it is called; made from the source's name when None.
        image_format: ``raw`` or ``qcow2``; told by content when None.
        expected_digest: SHA-256 that the file must have.
        evidence: what its origin is verified with, as in `verify`; what holds is noted with the image.
        quota_bytes: how large the store may become; ``store.toml`` says it when None.
        progress: told (bytes done, bytes in all).

    Raises:
        InputError, ImageError: the source is not there or refused. RefusedError: quota. HostError: no room.
    """
    import os
    from pathlib import Path

    from casemate.engine.imagestore import default_store, read_settings
    from casemate.engine.origin_verify import note_tree, seal
    from casemate.image import store_import
    from casemate.image.headers import inspect_image
    from casemate.image.opening import open_image as open_file
    from casemate.image.store_model import name_from

    place = default_store()
    settings = read_settings(place)
    path = os.path.normpath(Path.cwd() / source)
    descriptor = open_file(path)
    try:
        header = inspect_image(descriptor, source, image_format, settings.max_virtual_bytes, allow_encrypted=True)
        found, origin = _verified(descriptor, source, evidence, expected_digest, progress)
        image = store_import.add(
            place,
            descriptor,
            name=name or name_from(path),
            image_format=header.format,
            origin={"source": path, **origin},
            expected_digest=found,
            quota_bytes=quota_bytes or settings.quota_bytes,
            max_virtual_bytes=settings.max_virtual_bytes,
            seal=seal,
            progress=progress,
        )
    finally:
        os.close(descriptor)
    # An image that was there already keeps its first notes: what was verified now is added to them.
    if any(image.origin.get(key) != value for key, value in origin.items()):
        image = place.annotate(image, origin)
    return note_tree(place, image)


def _verified(
    descriptor: int,
    source: str,
    evidence: Mapping[str, object] | None,
    expected_digest: str | None,
    progress: Callable[[int, int], None],
) -> tuple[str | None, dict[str, str]]:
    """The digest that the import must have, and what to note of the origin."""
    import msgspec

    from casemate.engine.origin_verify import note_of
    from casemate.errors import ImageError
    from casemate.image.origin_check import Evidence

    given = msgspec.convert(evidence or {}, Evidence)
    if not given.given():
        return expected_digest, {}
    digest, origin = note_of(descriptor, source, given, progress)
    if expected_digest not in {None, digest}:
        raise ImageError(f"{source} is not the file that was asked for", got=digest, expected=expected_digest or "")
    return digest, origin


def verify(
    reference: str,
    evidence: Mapping[str, object],
    *,
    policy_file: str | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Who vouched for an image or file: the document of ``casemate image verify --json``.

    Args:
        evidence: fields of `image.origin_check.Evidence`; nothing for what the store has noted.
        policy_file: in place of the host's policy.

    Raises:
        InputError: no such image, or evidence that cannot be read.
    """
    import msgspec

    from casemate.engine.origin_verify import verify_reference
    from casemate.image.origin_check import Evidence

    given = msgspec.convert(evidence, Evidence)
    return verify_reference(reference, given, policy_file=policy_file, progress=progress)


def sign(
    reference: str,
    *,
    key: str | None = None,
    output: str | None = None,
    namespace: str = "file",
    passphrase: Callable[[], bytes] = lambda: b"",
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Sign an image or file as ``ssh-keygen -Y sign`` does; see `engine.origin_verify.sign_reference`."""
    from casemate.engine.origin_verify import sign_reference

    return sign_reference(
        reference, key=key, output=output, namespace=namespace, passphrase=passphrase, progress=progress
    )


def tag(reference: str, name: str) -> StoredImage:
    """Give an image one more name; the image that had it loses it."""
    return store().tag(reference, name)


def remove(reference: str, *, force: bool = False) -> tuple[str, ...]:
    """Take a name away, and the image with its last one; returns what went. See `image.store.Store.remove`."""
    return store().remove(reference, in_use=_in_use(), force=force)


def prune(*, named: bool = False, dry_run: bool = False) -> tuple[StoredImage, ...]:
    """Remove images without a name (with ``named`` all) that no VM uses; returns them."""
    return store().prune(in_use=_in_use(), named=named, dry_run=dry_run)


def inspect_header(reference: str, *, declared: str | None = None) -> dict[str, object]:
    """What the header of an image says: the document of ``casemate image inspect --header --json``."""
    import os

    import msgspec

    opened = open_image(reference, declared=declared)
    os.close(opened.fd)
    return {
        "schema": "casemate.image-header/1",
        "name": opened.name,
        "path": opened.path,
        "header": msgspec.to_builtins(opened.header),
        "stored": None if opened.stored is None else msgspec.to_builtins(opened.stored),
    }


def _in_use() -> InUse:
    from casemate.engine.imagestore import default_store, in_use
    from casemate.engine.paths import default_paths, prepare

    paths = default_paths()
    prepare(paths)
    return in_use(paths, default_store(paths))
