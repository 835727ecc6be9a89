"""The public API of what is inside an image: its volumes, files and their contents, through a cell.

``reference``: an image of the store (name, digest, ``image:NAME``), or a raw or qcow2 file. Nothing is mounted on this
host. Names and contents are the image's: bytes, to be shown with care. Everything below is imported on use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.cell.cell import Cell
    from casemate.cell.extract import Copied, Limits
    from casemate.cell.model import Entry, Volume

__all__ = ["copy_out", "describe", "list_files", "open_contents", "read_file"]


def _quiet(_: str) -> None:
    return


@contextmanager
def open_contents(
    reference: str,
    *,
    declared: str | None = None,
    keys: Sequence[bytes] = (),
    more: Sequence[str] = (),
    reader: str = "cell",
    report: Callable[[str], None] = _quiet,
) -> Iterator[Cell]:
    """A cell around an image, until the end of the block.

    Args:
        declared: ``raw`` or ``qcow2`` for a file; None tells it by content.
        keys: passphrases or key files of encrypted volumes.
        more: further disks of the same machine.
        reader: ``cell``, or ``dissect``: a separately installed library in a wall, for one image without keys.
        report: told each long step.

    Raises:
        CasemateError: as `cell.cell.open_cell`.
    """
    from casemate.cell.cell import open_cell, open_with_dissect
    from casemate.cell.model import ImageFile
    from casemate.engine.imagestore import open_reference
    from casemate.errors import InputError

    if reader not in {"cell", "dissect"}:
        raise RuntimeError(f"unknown reader {reader!r}")
    if reader == "dissect" and (keys or more):
        raise InputError(
            "--reader dissect reads one image without keys", next_step="leave --reader out: a cell does more"
        )
    opened = []
    try:
        for word in (reference, *more):
            opened.append(open_reference(word, declared=declared))
        first, others = opened[0], opened[1:]
        if reader == "dissect":
            with open_with_dissect(first.fd, first.header, name=first.name, report=report) as cell:
                yield cell
            return
        files = tuple(
            ImageFile(item.fd, item.header.format, item.name, item.header.virtual_size_bytes) for item in others
        )
        with open_cell(first.fd, first.header, name=first.name, more=files, keys=keys, report=report) as cell:
            yield cell
    finally:
        for item in opened:
            os.close(item.fd)


def describe(reference: str, **how: object) -> tuple[Volume, ...]:
    """The volumes of an image; ``how`` as for `open_contents`."""
    with open_contents(reference, **how) as cell:  # type: ignore[arg-type]
        return cell.volumes()


def list_files(
    reference: str, path: str = "/", *, volume: str | None = None, recursive: bool = False, **how: object
) -> Iterator[Entry]:
    """The entries of a directory, sorted by name; with ``recursive`` all below it, as they come.

    Raises:
        CasemateError: as `open_contents`; InputError when ``path`` is not there.
    """
    with open_contents(reference, **how) as cell:  # type: ignore[arg-type]
        where = volume or cell.system().name
        if recursive:
            yield from cell.walk(where, path)
        else:
            yield from sorted(cell.list(where, path), key=lambda entry: entry.path)


def read_file(reference: str, path: str, *, volume: str | None = None, **how: object) -> Iterator[bytes]:
    """The content of a regular file in pieces."""
    with open_contents(reference, **how) as cell:  # type: ignore[arg-type]
        yield from cell.stream(volume or cell.system().name, path)


def copy_out(
    reference: str,
    paths: Sequence[str],
    directory: str,
    *,
    volume: str | None = None,
    max_bytes: int | None = None,
    max_files: int | None = None,
    outward_links: bool = False,
    device_nodes: bool = False,
    progress: Callable[[int, int], None] = lambda files, done: None,
    **how: object,
) -> Copied:
    """Copy files and whole trees into a new directory; each of ``paths`` gets its own last name there.

    Args:
        max_bytes, max_files: stop beyond; 64 GiB and 4,000,000 when None.
        outward_links: also make links that lead out of ``directory``.
        device_nodes: also make devices and FIFOs.
        progress: called with files and bytes so far.

    Raises:
        InputError: ``directory`` is not new or empty, two paths end in one name, a bound is reached.
    """
    from casemate.cell.extract import MAX_BYTES, Copier, Limits, fresh_directory
    from casemate.cell.model import ENTRIES_MAX
    from casemate.errors import InputError

    names = [_last_name(path) for path in paths]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None or (b"" in names and len(names) > 1):
        raise InputError(
            "several paths would become one name",
            got=os.fsdecode(twice or b"/"),
            next_step="copy them one by one, into directories of their own",
        )
    bounds = Limits(
        MAX_BYTES if max_bytes is None else max_bytes,
        ENTRIES_MAX if max_files is None else max_files,
        outward_links,
        device_nodes,
    )
    base = fresh_directory(directory)
    try:
        with open_contents(reference, **how) as cell:  # type: ignore[arg-type]
            where = volume or cell.system().name
            copier = Copier(base, bounds, progress)
            for path, name in zip(paths, names, strict=True):
                _copy_one(cell, copier, where, path, name, bounds)
            return copier.finish()
    finally:
        os.close(base)


def _copy_one(cell: Cell, copier: object, volume: str, path: str, name: bytes, limits: Limits) -> None:
    import msgspec

    from casemate.cell.extract import Copier
    from casemate.cell.model import Piece

    assert isinstance(copier, Copier)
    entry = cell.stat(volume, path)
    if entry.is_directory:
        if name:
            copier.add(msgspec.structs.replace(entry, path=name))
        copier.take(cell.walk_contents(volume, path, limit=limits.max_bytes, entries_max=limits.max_files), name)
        return
    pieces = (Piece(data) for data in cell.stream(volume, path)) if entry.is_file else iter(())
    renamed = msgspec.structs.replace(entry, path=name)
    copier.take((item for part in ((renamed,), pieces) for item in part), b"")


def _last_name(path: str) -> bytes:
    parts = [part for part in os.fsencode(path).split(b"/") if part not in {b"", b"."}]
    return parts[-1] if parts and parts[-1] != b".." else b""
