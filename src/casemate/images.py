"""The public API of images: the store, where images come from, what they hold.

A ``reference`` is a name, a digest, or at least eight digits of one. Functions return `StoredImage` or plain data and
raise `CasemateError`. Everything below is imported on use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from casemate.engine.imagestore import OpenedImage
    from casemate.engine.registry_login import LoginChoice
    from casemate.image.store import InUse, Store
    from casemate.image.store_model import StoredImage

__all__ = [
    "add",
    "build_verity",
    "damaged",
    "inspect_header",
    "list_images",
    "open_image",
    "prune",
    "registry_login",
    "remove",
    "repository",
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


def damaged() -> dict[str, str]:
    """Digests of images of the store whose notes cannot be read, and why; `remove` with ``force`` takes them away."""
    return store().damaged()


def open_image(reference: str, *, declared: str | None = None) -> OpenedImage:
    """Open an image of the store, or a raw or qcow2 file; see `engine.imagestore.open_reference`."""
    from casemate.engine.imagestore import open_reference

    return open_reference(reference, declared=declared)


def add(
    source: str,
    *,
    name: str | None = None,
    image_format: str | None = None,
    convert_to: str | None = None,
    expected_digest: str | None = None,
    evidence: Mapping[str, object] | None = None,
    ca_file: str | None = None,
    login: LoginChoice | None = None,
    quota_bytes: int | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> StoredImage:
    """Take an image into the store.

    Args:
        source: a file: raw, qcow2, vmdk, vhd, vhdx, vdi or an OVA, plain or packed with gzip, xz, bzip2 or zstd; an
            https URL of one; an OCI layout directory; ``-`` for standard input.
        name: what it is called; made from the source's name when None.
        image_format: what it is (`image.foreign.DRIVERS`); told by content when None.
        convert_to: ``raw`` or ``qcow2``; None keeps raw and qcow2 as they are and makes qcow2 of the rest.
        expected_digest: SHA-256 that the source must have, as its publisher gives it.
        evidence: what its origin is verified with, as in `verify`; what holds is noted with the image.
        ca_file: certificates that servers are verified with, in place of the system's.
        login: for a registry that wants one; None: from where podman and docker keep theirs.
        quota_bytes: how large the store may become; ``store.toml`` says it when None.
        progress: told (what is done, bytes done, bytes in all).

    Raises:
        InputError, ImageError: the source is not there or refused. RefusedError: quota. HostError: no room, no wall.
    """
    from casemate.cell.intake import Wanted, room_bytes, take_in
    from casemate.cell.sources import opened_source
    from casemate.engine.imagestore import default_store, read_settings
    from casemate.engine.origin_verify import note_tree, seal
    from casemate.engine.paths import default_paths, prepare
    from casemate.engine.policy_file import read_policy
    from casemate.image.store_model import check_name, name_from

    paths = default_paths()
    prepare(paths)
    place = default_store(paths)
    settings = read_settings(place)
    called = check_name(name) if name else None
    quota = quota_bytes or settings.quota_bytes
    room = room_bytes(place, quota)
    with opened_source(place, source, max_bytes=room, ca_file=ca_file, login=login, progress=progress) as opened:
        promised = _one_promise(opened.name, expected_digest, opened.sha256)
        found, origin = _verified(
            opened.fd, opened.name, evidence, promised, lambda done, of: progress("verifying", done, of)
        )
        wanted = Wanted(
            name=called or name_from(opened.name),
            image_format=image_format,
            convert_to=convert_to,
            expected_digest=found,
            quota_bytes=quota,
            max_virtual_bytes=settings.max_virtual_bytes,
            container_disk=opened.container_disk,
        )
        image = take_in(
            place,
            opened.fd,
            opened.name,
            wanted,
            origin={**opened.origin, **origin},
            paths=paths,
            reserved=read_policy(None).identity.uids(),
            private=opened.private,
            seal=seal,
            progress=progress,
        )
    # An image that was there already keeps its first notes: what was verified now is added to them.
    if any(image.origin.get(key) != value for key, value in origin.items()):
        image = place.annotate(image, origin)
    return note_tree(place, image)


def registry_login(authfile: str | None, user: str | None, password_file: str | None) -> LoginChoice:
    """What `add` takes as ``login``; paths relative to the working directory, ``-`` for standard input."""
    from pathlib import Path

    from casemate.engine.registry_login import LoginChoice
    from casemate.spec.model import Secret

    if password_file is None:
        return LoginChoice(str(Path.cwd() / authfile) if authfile is not None else None)
    from_stdin = password_file == "-"  # noqa: S105 - the name of a file
    secret = Secret(descriptor=0) if from_stdin else Secret(file=str(Path.cwd() / password_file))
    return LoginChoice(user=user, password=secret)


def _one_promise(name: str, given: str | None, known: str | None) -> str | None:
    """The digest that the user gave and the one that a layout has must be the same."""
    from casemate.errors import ImageError

    if given is not None and known is not None and given.lower() != known:
        raise ImageError(f"{name} is not the file that was asked for", got=known, expected=given.lower())
    return given or known


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


def build_verity(
    reference: str,
    directory: str,
    *,
    overlay: bool = False,
    memory_mib: int = 256,
    report: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """A dm-verity root with kernel, initrd and specification in a new directory; see `engine.verity_image`."""
    from casemate.engine.verity_image import build

    return build(reference, directory, overlay=overlay, memory_mib=memory_mib, report=report, progress=progress)


def repository(action: Literal["init", "add", "publish", "renew", "rotate", "sync"], **options: Any) -> dict[str, Any]:
    """A TUF repository of images; ``options`` are those of the function of that name in `engine.image_repo`."""
    from casemate.engine import image_repo

    actions: dict[str, Callable[..., dict[str, Any]]] = {
        "init": image_repo.init,
        "add": image_repo.add,
        "publish": image_repo.publish,
        "renew": image_repo.renew,
        "rotate": image_repo.rotate,
        "sync": image_repo.sync,
    }
    return actions[action](**options)


def tag(reference: str, name: str) -> StoredImage:
    """Give an image one more name; the image that had it loses it."""
    return store().tag(reference.removeprefix("image:"), name)


def remove(reference: str, *, force: bool = False) -> tuple[str, ...]:
    """Take a name away, and the image with its last one; returns what went. See `image.store.Store.remove`."""
    return store().remove(reference.removeprefix("image:"), in_use=_in_use(), force=force)


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
