"""What `image add` is given, as an open file: a path, an https URL, an image of a registry, an OCI layout directory, or
standard input."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from casemate.errors import ImageError, InputError
from casemate.image.opening import open_image
from casemate.image.store import Store
from casemate.units import format_bytes

if TYPE_CHECKING:
    from casemate.engine.registry_login import LoginChoice

STDIN: Final = "-"
_PIECE_BYTES: Final = 1 << 20

Progress = Callable[[str, int, int], None]


class Source(NamedTuple):
    """An open source. ``fd`` is closed at the end of the block. ``sha256``: what it must hash to, where that is known;
    ``container_disk``: it is the layer of an OCI image. ``private``: nobody else can write to it.
    """

    fd: int
    name: str
    origin: dict[str, str]
    sha256: str | None = None
    container_disk: bool = False
    private: bool = False


@contextlib.contextmanager
def opened_source(
    store: Store,
    source: str,
    *,
    max_bytes: int,
    ca_file: str | None = None,
    login: LoginChoice | None = None,
    progress: Progress = lambda what, done, of: None,
) -> Iterator[Source]:
    """Open what a user named.

    Args:
        source: a path, relative to the working directory; ``https://...``; ``oci://HOST/NAME:TAG``; a directory; ``-``.
        login: for a registry that wants one; None: from where podman and docker keep theirs.
        max_bytes: how much may come from a server or from standard input.

    Raises:
        InputError, ImageError, HostError: why it cannot be had.
    """
    from casemate.image.oci_registry import is_reference
    from casemate.image.store_download import downloaded, file_name, is_url, shown

    if is_reference(source):
        with _pulled(store, source, max_bytes, ca_file, login, progress) as pulled:
            yield pulled
        return
    if is_url(source):
        with downloaded(
            store,
            source,
            max_bytes=max_bytes,
            ca_file=ca_file,
            progress=lambda done, of: progress("downloading", done, of),
        ) as fd:
            yield Source(fd, file_name(source), {"source": shown(source)}, private=True)
        return
    path = os.path.normpath(Path.cwd() / source)
    if source == STDIN:
        opened = Source(_spool(store, max_bytes, progress), "standard input", {"source": STDIN}, private=True)
    elif os.path.isdir(path):
        from casemate.image.oci_layout import open_disk

        disk = open_disk(path)
        origin = {"source": path, "oci_media_type": disk.media_type[:120]}
        opened = Source(disk.fd, disk.name, origin, disk.sha256, "tar" in disk.media_type)
    else:
        opened = Source(open_image(path), source, {"source": path})
    try:
        yield opened
    finally:
        os.close(opened.fd)


@contextlib.contextmanager
def _pulled(
    store: Store, source: str, max_bytes: int, ca_file: str | None, login: LoginChoice | None, progress: Progress
) -> Iterator[Source]:
    """The disk of an image in a registry. The import compares it with the digest that its manifest names."""
    from casemate.engine.registry_login import LoginChoice, find_registry_login
    from casemate.image.oci_registry import find_disk, parse_reference
    from casemate.image.store_download import downloaded

    progress("asking the registry", 0, 0)
    choice = login or LoginChoice()
    disk = find_disk(source, ca_file, lambda reference: find_registry_login(choice, reference.host, reference.name))
    if disk.size_bytes > max_bytes:
        raise ImageError(
            f"{source} is too large", got=format_bytes(disk.size_bytes), expected=f"at most {format_bytes(max_bytes)}"
        )
    origin = {
        "source": str(parse_reference(source)),
        "oci_manifest": disk.manifest,
        "oci_media_type": disk.media_type[:120],
    }
    with downloaded(
        store,
        disk.url,
        max_bytes=disk.size_bytes + 1,  # one more is not what was promised, and that is what the import then says
        ca_file=ca_file,
        authorization=disk.authorization,
        progress=lambda done, of: progress("downloading", done, of),
    ) as fd:
        yield Source(fd, disk.name, origin, disk.sha256, "tar" in disk.media_type, private=True)


def _spool(store: Store, max_bytes: int, progress: Progress) -> int:
    """Standard input in a file without a name, which dies with us."""
    from casemate.image.store_import import no_room

    if sys.stdin is not None and sys.stdin.isatty():
        raise InputError("standard input is a terminal", next_step="casemate image add - < FILE")
    store.prepare()
    with no_room(store.directory):
        fd = os.open(f"{store.directory}/incoming", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            at = 0
            while piece := os.read(0, _PIECE_BYTES):
                at += len(piece)
                if at > max_bytes:
                    raise ImageError("standard input is too large", expected=f"at most {format_bytes(max_bytes)}")
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
                progress("reading", at, 0)
        except BaseException:
            os.close(fd)
            raise
    return fd
