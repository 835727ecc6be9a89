"""Overlays of a saved VM: into the state file, and out of it into new files without a name.

A state file can be anybody's, so what comes out is judged like any image: its digest, its own header (no other file, no
encryption, tables inside the file), and the size of the disk that it lies over. Each VM that goes on from one state
gets copies of its own; the file stays as it is.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from casemate.engine.opening import digest_file, nameless_file, no_room
from casemate.engine.statefile import OVERLAY_PIECE_BYTES, OverlayPiece, SavedOverlay
from casemate.errors import ImageError, InputError, RefusedError
from casemate.image.headers import inspect_image
from casemate.image.overlay import CLUSTER_BYTES

if TYPE_CHECKING:
    from casemate.engine.opening import Opened
    from casemate.engine.statefile import StateReader, StateWriter
    from casemate.plan.model import OpenFile

_ZEROS: Final = bytes(1 << 20)
_ROOM_BYTES: Final = 64 << 20
"""Tables and freed clusters of an overlay, beside what the disk can hold."""


def copy_overlay(descriptor: int, index: int, writer: StateWriter, report: Callable[[int], None]) -> SavedOverlay:
    """Write the overlay of disk ``index`` behind the stream, holes left out.

    Args:
        report: told the number of bytes so far, of stream and overlays.
    """
    size = os.fstat(descriptor).st_size
    digest, at = hashlib.sha256(), 0
    for start, end in _data(descriptor, size):
        _hash_zeros(digest, start - at)
        at = start
        while at < end:
            data = os.pread(descriptor, min(OVERLAY_PIECE_BYTES, end - at), at)
            if not data:
                raise OSError(f"overlay{index} became shorter while it was read")
            digest.update(data)
            writer.overlay(OverlayPiece(index, at, data))
            at += len(data)
            report(writer.stream_bytes + at)
    _hash_zeros(digest, size - at)
    return SavedOverlay(size, digest.hexdigest())


def _data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes. A file system that knows none calls all of it data."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as fault:
            if fault.errno != errno.ENXIO:
                raise
            return  # nothing but a hole is left
        end = min(size, os.lseek(descriptor, start, os.SEEK_HOLE))
        if start >= size or end <= start:
            return
        yield start, end
        at = end


def _hash_zeros(digest: hashlib._Hash, count: int) -> None:
    while count > 0:
        digest.update(_ZEROS[:count])
        count -= len(_ZEROS)


def place_overlays(
    reader: StateReader,
    saved: dict[str, SavedOverlay],
    planned: tuple[OpenFile, ...],
    opened: Opened,
    directory: str,
) -> None:
    """The overlays of a state as new files, under their roles in ``opened``, which owns them from here on.

    Args:
        saved: what the manifest says of them.
        planned: the files of the plan.

    Raises:
        InputError: the state brings others than the machine has, or changed. RefusedError: not what its manifest says.
        ImageError: no overlay of that disk. HostError: no room.
    """
    wanted = {file.role: file for file in planned if file.access == "overlay"}
    if wanted.keys() != saved.keys():
        raise InputError(
            "the saved state brings other overlays than its machine has",
            got=", ".join(sorted(saved))[:200] or "none",
            expected=", ".join(sorted(wanted)) or "none",
        )
    for role, overlay in sorted(saved.items()):
        _check_size(role, overlay, wanted[role].virtual_size_bytes)
    try:
        for role, overlay in saved.items():
            opened.by_role[role] = nameless_file(directory)
            os.ftruncate(opened.by_role[role], overlay.size_bytes)
        for piece in reader.overlay_pieces() if saved else ():
            _write(opened.by_role[f"overlay{piece.disk}"], piece)
    except OSError as fault:
        raise no_room(directory, fault) from fault
    for role, overlay in sorted(saved.items()):
        _judge(opened.by_role[role], role, overlay, wanted[role].virtual_size_bytes)


def _check_size(role: str, overlay: SavedOverlay, disk_bytes: int) -> None:
    limit = 2 * disk_bytes + _ROOM_BYTES
    if not CLUSTER_BYTES <= overlay.size_bytes <= limit:
        raise ImageError(f"{role} of the saved state", got=f"{overlay.size_bytes} bytes", expected=f"at most {limit}")


def _write(descriptor: int, piece: OverlayPiece) -> None:
    view, offset = memoryview(piece.data), piece.offset
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _judge(descriptor: int, role: str, overlay: SavedOverlay, disk_bytes: int) -> None:
    found = digest_file(descriptor)
    if found != overlay.sha256:
        raise RefusedError(
            "img.hash",
            f"{role} is not what the VM was saved with",
            got=f"sha256 {found}",
            expected=f"sha256 {overlay.sha256[:64]}",
            next_step="save the VM again",
        )
    header = inspect_image(descriptor, f"{role} of the saved state", "qcow2")
    if header.virtual_size_bytes != disk_bytes or header.snapshots:
        raise ImageError(
            f"{role} of the saved state is no overlay of that disk",
            got=f"{header.virtual_size_bytes} bytes, {header.snapshots} snapshots",
            expected=f"{disk_bytes} bytes, none",
        )
