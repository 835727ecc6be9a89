"""The client's side of a TUF repository of images: python-tuf judges, this file brings the bytes, bounded.

    STATE/<sha256 of the repository's address>/   0700
      metadata/                what was last believed: a repository that shows older metadata is refused (rollback)
      lock

The first contact needs ``1.root.json`` from elsewhere: whoever gives it decides who is believed. From then on the root
that is kept counts, and newer roots that it signs. Fetched: metadata up to python-tuf's bounds, targets up to the
length that their signed metadata says; every transfer has a deadline that grows with the bytes that came, so that a
server cannot hold a client with one byte a second. Redirects are not followed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from casemate.errors import CasemateError, ImageError, InputError
from casemate.image.store_files import locked, private_directory
from casemate.image.tuf_repo import METADATA_MAX_BYTES, check_target_name

if TYPE_CHECKING:
    from tuf.ngclient import Updater

FIRST_BYTE_S: Final = 30.0
SLOWEST_BYTES_S: Final = 16 << 10
MAX_TARGETS: Final = 10_000
MAX_TARGET_BYTES: Final = 2 << 40


class Target(NamedTuple):
    """A file that a repository offers. ``custom``: what its publisher says of it."""

    name: str
    length: int
    sha256: str
    custom: dict[str, Any]


class Repository:
    """A repository whose metadata was brought up to date and believed."""

    def __init__(self, updater: Updater, targets: dict[str, Target], root_keys: tuple[str, ...], where: str) -> None:
        self._updater = updater
        self.targets = targets
        self.root_keys = root_keys
        self._where = where

    def fetch(self, name: str, path: str) -> Target:
        """Bring one target to a new file ``path``.

        Raises:
            InputError: there is no such target. ImageError: it is not what the metadata says.
        """
        target = self.targets.get(name)
        if target is None:
            raise InputError(
                f"{self._where} has no image {name!r}", got=", ".join(sorted(self.targets)[:5]) or "no images at all"
            )
        with _explained(self._where):
            info = self._updater.get_targetinfo(name)
            if info is None or info.hashes.get("sha256") != target.sha256:
                raise RuntimeError("the metadata changed below us")
            self._updater.download_target(info, path)
        return target


@contextlib.contextmanager
def refreshed(where: str, state: str, root: bytes | None) -> Iterator[Repository]:
    """Bring the metadata of a repository up to date, under a lock.

    Args:
        where: URL (http, https) or absolute directory.
        state: the directory drawn above.
        root: ``1.root.json`` from elsewhere, for the first contact; later only compared with what is kept.

    Raises:
        InputError: no root at the first contact, or one of another repository. ImageError: not to be believed, and why.
    """
    place = f"{state}/{hashlib.sha256(where.encode()).hexdigest()}"
    private_directory(state)
    private_directory(place)
    with locked(f"{place}/lock"):
        yield _refresh(where, place, root)


def _refresh(where: str, place: str, root: bytes | None) -> Repository:
    from urllib.parse import quote

    from tuf.api.metadata import Metadata, Root
    from tuf.ngclient import Updater, UpdaterConfig

    kept, first = f"{place}/metadata/root.json", f"{place}/first-root.json"
    if root is None and not os.path.exists(kept):
        raise InputError(
            f"{where} was never used before",
            expected="--root FILE: its 1.root.json, from somewhere that you trust",
            next_step="ask the publisher for the file and compare its SHA-256",
        )
    if root is not None and os.path.exists(first) and Path(first).read_bytes() != root:
        raise InputError(
            f"{where} is known with another root",
            next_step=f"find out which one is right; to forget the old one remove {place}",
        )
    os.makedirs(f"{place}/metadata", mode=0o700, exist_ok=True)
    base = quote(where) if where.startswith("/") else where
    config = UpdaterConfig(max_root_rotations=64, max_delegations=4, targets_max_length=METADATA_MAX_BYTES)
    with _explained(where):
        updater = Updater(
            f"{place}/metadata",
            f"{base}/metadata/",
            target_base_url=f"{base}/targets/",
            fetcher=_fetcher(),
            config=config,
            # what is kept was believed and is newer; the given root only starts it
            bootstrap=None if os.path.exists(kept) else root,
        )
        updater.refresh()
        # python-tuf keeps what it has verified in these files
        signed: Any = Metadata.from_file(f"{place}/metadata/targets.json").signed
        root_role = Metadata[Root].from_file(kept).signed.roles["root"]
    if root is not None and not os.path.exists(first):
        Path(first).write_bytes(root)
    return Repository(updater, _targets(signed.targets, where), tuple(sorted(root_role.keyids)), where)


def _targets(found: dict[str, Any], where: str) -> dict[str, Target]:
    if len(found) > MAX_TARGETS:
        raise ImageError(f"{where} has too many images", got=str(len(found)), expected=f"at most {MAX_TARGETS}")
    targets = {}
    for name, entry in found.items():
        digest = entry.hashes.get("sha256", "")
        if len(digest) != 64 or not 0 < entry.length <= MAX_TARGET_BYTES:
            raise ImageError(f"{where}: the image {name[:100]!r} has no SHA-256 or an absurd length")
        custom = entry.custom if isinstance(entry.custom, dict) else {}
        targets[check_target_name(name)] = Target(name, entry.length, digest, custom)
    return targets


def _fetcher() -> Any:
    """A fetcher of directories and web servers for python-tuf; its class needs the library, so it is made here."""
    from tuf.ngclient import FetcherInterface

    class Fetch(FetcherInterface):
        def _fetch(self, url: str) -> Iterator[bytes]:
            return _pieces(_open_file(url) if url.startswith("/") else _open_web(url))

    return Fetch()


def _open_file(url: str) -> Any:
    from urllib.parse import unquote

    from tuf.api.exceptions import DownloadError, DownloadHTTPError

    try:
        descriptor = os.open(unquote(url), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise DownloadHTTPError(f"there is no {url}", 404) from None
    except OSError as fault:
        raise DownloadError(f"{url}: {fault.strerror}") from None
    return os.fdopen(descriptor, "rb")


def _open_web(url: str) -> Any:
    import urllib.error
    import urllib.request

    from tuf.api.exceptions import DownloadError, DownloadHTTPError

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any) -> None:
            return None

    if not url.startswith(("http://", "https://")):
        raise DownloadError(f"{url}: neither http nor https")
    try:
        return urllib.request.build_opener(NoRedirect).open(url, timeout=FIRST_BYTE_S)
    except urllib.error.HTTPError as fault:
        fault.close()
        raise DownloadHTTPError(f"{url}: HTTP {fault.code}", fault.code) from None
    except (OSError, ValueError) as fault:
        raise DownloadError(f"{url}: {fault}") from None


def _pieces(stream: Any) -> Iterator[bytes]:
    from http.client import HTTPException

    from tuf.api.exceptions import DownloadError, SlowRetrievalError

    began, done = time.monotonic(), 0
    with stream:
        while True:
            try:
                piece = stream.read1(1 << 18)
            except (OSError, HTTPException) as fault:
                raise DownloadError(str(fault)) from None
            if not piece:
                return
            done += len(piece)
            if time.monotonic() - began > FIRST_BYTE_S + done / SLOWEST_BYTES_S:
                raise SlowRetrievalError(f"{done} bytes in {time.monotonic() - began:.0f} s")
            yield piece


@contextlib.contextmanager
def _explained(where: str) -> Iterator[None]:
    """python-tuf's refusals in words: which attack each one stops."""
    from tuf.api import exceptions

    reasons = (
        (
            exceptions.ExpiredMetadataError,
            "metadata that has expired: an old state, or nobody publishes any more",
        ),
        (
            exceptions.BadVersionNumberError,
            "metadata older than what was seen, or parts that do not belong together",
        ),
        (exceptions.UnsignedMetadataError, "metadata that not enough of the right keys have signed"),
        (exceptions.LengthOrHashMismatchError, "content of another length or digest than the metadata says"),
        (exceptions.DownloadLengthMismatchError, "more bytes than the metadata allows"),
        (exceptions.SlowRetrievalError, "a transfer that is held up"),
    )
    try:
        yield
    except CasemateError:
        raise
    except exceptions.DownloadHTTPError as fault:
        raise ImageError(f"{where} is incomplete", got=_line(fault)) from None
    except exceptions.RepositoryError as fault:
        why = next((text for kind, text in reasons if isinstance(fault, kind)), "metadata that is not understood")
        raise ImageError(
            f"{where} is not believed",
            got=f"{why} ({_line(fault)})",
            next_step="ask the publisher; what is in the store stays as it is",
        ) from None
    except exceptions.DownloadError as fault:
        why = next((text for kind, text in reasons if isinstance(fault, kind)), "no answer")
        raise ImageError(f"{where} cannot be read", got=f"{why} ({_line(fault)})") from None
    except (ValueError, OSError) as fault:
        raise ImageError(f"{where} cannot be used", got=_line(fault)) from None


def _line(fault: BaseException) -> str:
    text = " ".join(str(fault).split())
    return "".join(char if char.isprintable() else " " for char in text)[:300]
