"""TUF repositories of images between directory, store and user: what ``casemate image repo`` does.

Times are the host's clock; paths are made absolute here.
"""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from casemate.engine.imagestore import default_store, open_reference, read_settings
from casemate.engine.origin_verify import note_tree, seal
from casemate.engine.paths import default_paths, prepare
from casemate.errors import ImageError, InputError
from casemate.image import tuf_repo
from casemate.image.store import Store
from casemate.image.store_files import read_small
from casemate.image.store_model import StoredImage
from casemate.image.tuf_client import Repository, Target, refreshed

SCHEMA = "casemate.image-repo/1"
Passphrase = Callable[[str], bytes]
Gate = Callable[[str], None]
"""Given the digest of an image; raises when it may not be published."""


def init(
    repo: str, *, keys: str, root: tuple[int, int], targets: tuple[int, int], passphrase: Passphrase
) -> dict[str, Any]:
    """A new repository; see `image.tuf_repo.create`."""
    place, secret = _absolute(repo), _absolute(keys)
    if secret == place or secret.startswith(f"{place}/"):
        raise InputError("the keys may not lie in the repository", got=secret, next_step="name another directory")
    digest = tuf_repo.create(place, secret, {"root": root, "targets": targets}, passphrase, _now())
    return {"schema": SCHEMA, "repository": place, "keys": secret, "root_sha256": digest}


def add(
    repo: str, image: str, *, keys: str, name: str | None, passphrase: Passphrase, gate: Gate | None
) -> dict[str, Any]:
    """Put an image of the store into a repository; ``gate`` is asked first, for its digest.

    Only of the store: a file could become another one between the scan and the copy.
    """
    place = _absolute(repo)
    opened = open_reference(image)
    try:
        if opened.stored is None:
            raise InputError(
                f"{image} is a file", expected="an image of the store", next_step=f"casemate image add {image}"
            )
        wanted = name or opened.stored.label
        tuf_repo.check_target_name(wanted)
        tuf_repo.target_names(place)  # before the long part: is it a repository?
        if gate is not None:
            gate(opened.stored.digest)
        custom = {"format": opened.header.format}
        digest = tuf_repo.add_target(place, _absolute(keys), wanted, opened.fd, custom, passphrase, _now())
        if digest != opened.stored.digest:
            raise ImageError(f"image {opened.stored.label} is not what was put into the store", got=f"sha256 {digest}")
    finally:
        os.close(opened.fd)
    return {"schema": SCHEMA, "repository": place, "name": wanted, "sha256": digest}


def publish(repo: str, *, keys: str, passphrase: Passphrase) -> dict[str, Any]:
    """Sign snapshot and timestamp."""
    place = _absolute(repo)
    versions = tuf_repo.publish(place, _absolute(keys), passphrase, _now())
    expires = (_now() + datetime.timedelta(days=tuf_repo.DAYS["timestamp"])).strftime("%Y-%m-%d")
    return {
        "schema": SCHEMA,
        "repository": place,
        "versions": versions,
        "images": list(tuf_repo.target_names(place)),
        "publish_again_before": expires,
    }


def renew(repo: str, *, keys: str, passphrase: Passphrase) -> dict[str, Any]:
    """Sign a new root before the old one expires."""
    place = _absolute(repo)
    version = tuf_repo.renew_root(place, _absolute(keys), passphrase, _now())
    return {"schema": SCHEMA, "repository": place, "root_version": version}


def rotate(repo: str, *, role: str, keys: str, passphrase: Passphrase) -> dict[str, Any]:
    """Give a role new keys."""
    place = _absolute(repo)
    written = tuf_repo.rotate(place, _absolute(keys), role, passphrase, _now())
    return {"schema": SCHEMA, "repository": place, "role": role, "keys": list(written)}


def sync(
    where: str,
    *,
    root: str | None,
    names: tuple[str, ...],
    every: bool,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Bring a repository's metadata up to date, and the images named into the store.

    What the store has under its digest already is not fetched again, only noted as verified.

    Raises:
        InputError, ImageError: as `image.tuf_client.refreshed` says.
    """
    place = where.rstrip("/") if where.startswith(("http://", "https://")) else _absolute(where)
    trusted = None if root is None else _root(root)
    paths = default_paths()
    prepare(paths)
    store = default_store(paths)
    with refreshed(place, f"{paths.data}/repositories", trusted) as repository:
        wanted = tuple(sorted(repository.targets)) if every else names
        for name in wanted:
            if name not in repository.targets:
                repository.fetch(name, "")  # says what there is
        taken = []
        for name in wanted:
            target = repository.targets[name]
            origin = _origin(place, target, repository.root_keys)
            known = store.lookup(target.sha256)
            if known is not None:
                image = store.annotate(known, origin)
            else:
                image = _take(store, repository, target, origin, progress)
            taken.append({"name": name, "image": image.label, "digest": image.digest, "new": known is None})
        return {
            "schema": SCHEMA,
            "repository": place,
            "offers": [
                {"name": t.name, "sha256": t.sha256, "size_bytes": t.length} for t in repository.targets.values()
            ],
            "taken": taken,
        }


def _take(
    store: Store, repository: Repository, target: Target, origin: dict[str, str], progress: Callable[[int, int], None]
) -> StoredImage:
    from casemate.image import store_import
    from casemate.image.store_model import name_from

    settings = read_settings(store)
    store.prepare()
    with tempfile.TemporaryDirectory(prefix="sync-", dir=f"{store.directory}/downloads") as room:
        path = f"{room}/image"
        repository.fetch(target.name, path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            image_format = target.custom.get("format")
            image = store_import.add(
                store,
                descriptor,
                name=name_from(target.name),
                image_format=image_format if image_format in {"raw", "qcow2"} else "raw",
                origin=origin,
                expected_digest=target.sha256,
                quota_bytes=settings.quota_bytes,
                max_virtual_bytes=settings.max_virtual_bytes,
                seal=seal,
                progress=progress,
            )
        finally:
            os.close(descriptor)
    return note_tree(store, image)


def _origin(place: str, target: Target, root_keys: tuple[str, ...]) -> dict[str, str]:
    return {
        "source": f"{place}/targets/{target.name}",
        "verified_by": "\n".join(f"tuf:{key}" for key in root_keys),
        "verified_as": f"TUF: {target.name}",
        "verified_at": _now().strftime("%Y-%m-%dT%H:%M:%SZ"),
        "verified_sha256": target.sha256,
    }


def _root(path: str) -> bytes:
    try:
        return read_small(_absolute(path), 512_000)
    except OSError as fault:
        raise InputError(f"cannot read {path}", got=(fault.strerror or str(fault)).lower()) from None


def _absolute(path: str) -> str:
    return os.path.normpath(Path.cwd() / path)


def _now() -> datetime.datetime:
    return datetime.datetime.now(tz=datetime.UTC)
