"""Files of an image for the scan: read in the throwaway VM, searched in the scanner's jail, judged by their paths.

Small files where people and provisioning leave things are put one behind the other into a memfd, which the raw scan
takes for a disk: their bytes, too, are searched by nobody but a jailed worker.

    memfd   [file][zeros to the next 4 KiB][file][…]      `_Heap.places` says where each begins
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from casemate.cell.model import Entry, Piece, Volume
from casemate.errors import ImageError, InputError
from casemate.image.model import ImageHeader
from casemate.scan.model import Hit, PathRule
from casemate.scan.outcome import FileHit
from casemate.scan.paths import LOOKS, matching
from casemate.scan.redact import Redactor

if TYPE_CHECKING:
    from casemate.cell.cell import Cell

FILE_BYTES: Final = 256 << 10
LOOKED_AT_BYTES: Final = 64 << 10
HEAP_BYTES: Final = 256 << 20
ENTRIES_MAX: Final = 1_000_000
MATCHED_MAX: Final = 5_000
_ALIGN: Final = 4096
_FOLDERS: Final = (
    *(b"/etc", b"/root", b"/home", b"/opt", b"/srv", b"/usr/local", b"/var/lib/cloud", b"/var/log", b"/var/www"),
    *(b"/var/spool/cron", b"/var/backups", b"/var/lib/dhcp", b"/tmp", b"/var/tmp"),
)
_NO_FILES: Final = frozenset({"swap", "LVM2_member", "linux_raid_member", "", "bios_boot"})

RawScan = Callable[[int, ImageHeader], Sequence[Hit]]
"""Scans a raw file through a descriptor, jailed."""


class LiveResult(msgspec.Struct, frozen=True):
    """``not_scanned``: volumes whose files could not be read."""

    hits: tuple[FileHit, ...]
    files: int
    read_files: int
    not_scanned: tuple[str, ...]
    notes: tuple[str, ...]


class _Heap:
    """Files one behind the other."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("casemate-scan-files", os.MFD_CLOEXEC)
        self.size = 0
        self.starts: list[int] = []
        self.names: list[str] = []
        self.full = False

    def add(self, name: str, data: bytes) -> None:
        if self.size + len(data) > HEAP_BYTES:
            self.full = True
            return
        os.pwrite(self.fd, data, self.size)
        self.starts.append(self.size)
        self.names.append(name)
        # A block of zeros between files: no match reaches from one into the next.
        self.size += (len(data) // _ALIGN + 2) * _ALIGN
        os.ftruncate(self.fd, self.size)

    def name_at(self, offset: int) -> str:
        return self.names[bisect.bisect_right(self.starts, offset) - 1]


def scan_files(cell: Cell, rules: tuple[PathRule, ...], redactor: Redactor, raw: RawScan) -> LiveResult:
    """Read the files of every volume that the cell can read.

    Raises:
        VmError: the cell or the scanner died.
    """
    heap = _Heap()
    hits: list[FileHit] = []
    left: list[str] = []
    notes: list[str] = []
    count = 0
    try:
        volumes = cell.volumes()
        readable = [volume for volume in volumes if volume.readable]
        left += [_why(volume) for volume in volumes if not volume.readable and volume.content not in _NO_FILES]
        for volume in readable:
            prefix = "" if len(readable) == 1 or volume.os is not None else f"{volume.name}:"
            try:
                count += _volume(cell, volume, prefix, rules, redactor, heap, hits, left)
            except (ImageError, InputError) as fault:
                left.append(f"volume {volume.name}: {fault.what}")
        if not readable:
            notes.append("no file system that can be read by name is on it; its blocks were scanned")
        if heap.full:
            left.append(f"small files beyond {HEAP_BYTES >> 20} MiB were not read by name")
        if heap.size:
            header = ImageHeader(format="raw", virtual_size_bytes=heap.size, file_size_bytes=heap.size)
            hits += [FileHit(heap.name_at(hit.offset), hit) for hit in raw(heap.fd, header)]
    finally:
        os.close(heap.fd)
    return LiveResult(tuple(hits), count, len(heap.names), tuple(left), tuple(notes))


def _why(volume: Volume) -> str:
    return f"volume {volume.name} ({volume.content}): its files cannot be read" + (
        f": {volume.notes[0]}" if volume.notes else ""
    )


def _volume(
    cell: Cell,
    volume: Volume,
    prefix: str,
    rules: tuple[PathRule, ...],
    redactor: Redactor,
    heap: _Heap,
    hits: list[FileHit],
    left: list[str],
) -> int:
    count = 0
    wanted: list[tuple[str, bytes, tuple[PathRule, ...]]] = []
    for entry in cell.walk(volume.name, b"/", entries_max=ENTRIES_MAX):
        count += 1
        if entry.error and len(left) < 200:
            left.append(f"{prefix}/{_shown(entry.path)}: cannot be read ({os.strerror(entry.error)})")
        if entry.error or not entry.is_file or not entry.size_bytes:
            continue
        path = "/" + _shown(entry.path)
        found = matching(rules, path)
        if found and len(wanted) < MATCHED_MAX:
            wanted.append((path, b"/" + entry.path, found))
    for path, raw_path, found in wanted:
        try:
            data = cell.read(volume.name, raw_path, LOOKED_AT_BYTES)
        except (ImageError, InputError) as fault:
            left.append(f"{prefix}{path}: {fault.what}")
            continue
        for rule in found:
            hits += [FileHit(f"{prefix}{path}", hit) for hit in look(rule, data, redactor)]
    for folder in _FOLDERS:
        _folder(cell, volume.name, prefix, folder, heap)
    del left[200:]
    return count


def _folder(cell: Cell, volume: str, prefix: str, folder: bytes, heap: _Heap) -> None:
    """Small files below one directory, as one stream."""
    if not cell.exists(volume, folder):
        return
    current: Entry | None = None
    parts: list[bytes] = []
    for item in cell.walk_contents(volume, folder, limit=FILE_BYTES, entries_max=ENTRIES_MAX):
        if isinstance(item, Piece):
            parts.append(item.data)
            if item.last and current is not None:
                heap.add(f"{prefix}{_shown(folder)}/{_shown(current.path)}", b"".join(parts))
                parts = []
        else:
            current, parts = item, []


def look(rule: PathRule, data: bytes, redactor: Redactor) -> list[Hit]:
    """What a rule by path says of a file's content."""
    found = LOOKS[rule.look](data)
    return [
        Hit(
            rule=rule.id,
            offset=-1,
            length=len(item.secret),
            shown=redactor.shown(item.secret) if rule.look in {"machine_id", "authorized_keys"} else "…",
            digest=redactor.digest(item.secret),
            detail=item.detail,
        )
        for item in found
    ]


def _shown(path: bytes) -> str:
    """A name as it may be matched and printed."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
