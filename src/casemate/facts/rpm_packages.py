"""The packages that rpm has installed, out of its own database; versions and how they compare.

rpm keeps a package's *header* as a blob: two big-endian counts (entries, bytes of data), an entry of sixteen bytes for
each tag (tag, type, offset, count), and the data. Read are name, epoch, version, release and architecture. The database
is SQLite since rpm 4.16 (RHEL 9, Fedora 33), ndb in openSUSE and SLE, and was Berkeley DB before (RHEL 8 and older).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from functools import cmp_to_key
from typing import Final

import msgspec

from casemate.facts.fact import Unknown
from casemate.facts.root import Root
from casemate.facts.rpm_bdb import BdbFormatError, bdb_blobs
from casemate.facts.rpm_ndb import NdbFormatError, ndb_blobs
from casemate.facts.rpm_sqlite import SqliteFile, SqliteFormatError

FOLDERS: Final = ("/usr/lib/sysimage/rpm", "/var/lib/rpm")
DATABASE: Final = "rpmdb.sqlite"
MAX_PACKAGES: Final = 100_000
_MAX_ENTRIES: Final = 65_535
_MAX_TEXT: Final = 256
_NAME, _VERSION, _RELEASE, _EPOCH, _ARCH = 1000, 1001, 1002, 1003, 1022
_STRING, _INT32 = 6, 4
OLDER: Final = {"Packages.db": "ndb", "Packages": "Berkeley DB"}
"""Looked for where there is no SQLite."""

_EVR: Final = re.compile(r"(?:([0-9]{1,10}):)?([^-:]+)-([^-:]+)")


class Package(msgspec.Struct, frozen=True, order=False):
    """One installed or offered package. ``evr``: epoch, version, release."""

    name: str
    epoch: int
    version: str
    release: str
    arch: str

    @classmethod
    def of_evr(cls, name: str, evr: str, arch: str) -> Package:
        """From what `evr` says; rpm lets no version and no release have a ``-`` or ``:``.

        Raises:
            ValueError: it is nothing of the kind.
        """
        found = _EVR.fullmatch(evr)
        if found is None:
            raise ValueError(f"no version of a package: {evr[:64]!r}")
        return cls(name, int(found[1] or 0), found[2], found[3], arch)

    @property
    def evr(self) -> str:
        """``1:2.3-4.el9`` as rpm writes it; no epoch where that is 0."""
        epoch = f"{self.epoch}:" if self.epoch else ""
        return f"{epoch}{self.version}-{self.release}"


def has_rpm(root: Root) -> str:
    """The folder of rpm's database; empty where there is none.

    Raises:
        OSError: it cannot be told.
    """
    there = [folder for folder in FOLDERS if root.exists(folder)]
    for name in (DATABASE, *OLDER):
        for folder in there:
            if root.exists(f"{folder}/{name}"):
                return folder
    return there[0] if there else ""


def installed_packages(root: Root, folder: str) -> tuple[Package, ...] | Unknown:
    """Every installed package, or why they cannot be told."""
    path = f"{folder}/{DATABASE}"
    try:
        descriptor = root.open_regular(path)
    except FileNotFoundError:
        return _older(root, folder) or Unknown(f"{path}: does not exist")
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")
    try:
        file = SqliteFile(descriptor)
        if file.has_log and _log_bytes(root, f"{path}-wal"):
            return Unknown(f"{path}: a part of it lies in its write-ahead log; ask rpm once, which puts it in order")
        if _log_bytes(root, f"{path}-journal"):
            return Unknown(f"{path}: a change of it did not end; ask rpm once, which puts it in order")
        return tuple(_packages(file.blobs("Packages")))
    except (SqliteFormatError, OSError, ValueError) as error:
        return Unknown(f"{path}: {error}")
    finally:
        os.close(descriptor)


def _older(root: Root, folder: str) -> tuple[Package, ...] | Unknown | None:
    """Out of a database of an older rpm, or of SUSE's; None where there is none."""
    for name, kind in OLDER.items():
        path = f"{folder}/{name}"
        try:
            descriptor = root.open_regular(path)
        except FileNotFoundError:
            if _is_there(root, path):  # a capture has its name and no more
                return Unknown(f"{path}: {kind}, of which nothing more is here")
            continue
        except OSError as error:
            return Unknown(f"{path}: {kind}: {error.strerror or error}")
        try:
            return tuple(_packages(ndb_blobs(descriptor) if name == "Packages.db" else bdb_blobs(descriptor)))
        except (NdbFormatError, BdbFormatError, OSError, ValueError) as error:
            return Unknown(f"{path}: {error}")
        finally:
            os.close(descriptor)
    return None


def _is_there(root: Root, path: str) -> bool:
    try:
        return root.exists(path)
    except OSError:
        return False


def _log_bytes(root: Root, path: str) -> int:
    try:
        return root.stat(path).st_size
    except FileNotFoundError:
        return 0


def _packages(blobs: Iterator[bytes]) -> Iterator[Package]:
    for number, blob in enumerate(blobs):
        if number >= MAX_PACKAGES:
            raise ValueError(f"more than {MAX_PACKAGES} packages")
        yield read_header(blob)


def read_header(blob: bytes) -> Package:
    """The package of a header as the database holds it.

    Raises:
        ValueError: it is none.
    """
    if len(blob) < 8:
        raise ValueError("a header of less than 8 bytes")
    entries, size = struct.unpack_from(">II", blob)
    data = 8 + 16 * entries
    if entries > _MAX_ENTRIES or data + size > len(blob):
        raise ValueError(f"a header of {entries} entries and {size} bytes in {len(blob)}")
    found: dict[int, str | int] = {}
    for number in range(entries):
        tag, kind, offset, _ = struct.unpack_from(">iiiI", blob, 8 + 16 * number)
        if tag in (_NAME, _VERSION, _RELEASE, _ARCH) and kind == _STRING:
            found[tag] = _text(blob, data + offset, data + size)
        elif tag == _EPOCH and kind == _INT32 and 0 <= offset <= size - 4:
            found[tag] = struct.unpack_from(">I", blob, data + offset)[0]
    if not all(found.get(tag) for tag in (_NAME, _VERSION, _RELEASE)):
        raise ValueError("a header without a name, version or release")
    return Package(
        str(found[_NAME]),
        int(found.get(_EPOCH, 0)),
        str(found[_VERSION]),
        str(found[_RELEASE]),
        str(found.get(_ARCH, "")),
    )


def _text(blob: bytes, start: int, end: int) -> str:
    stop = blob.find(b"\0", start, min(end, start + _MAX_TEXT)) if 0 <= start < end else -1
    if stop < 0:
        raise ValueError("a text of a header that does not end")
    return blob[start:stop].decode("utf-8", "backslashreplace")


_PART: Final = re.compile(r"[0-9]+|[A-Za-z]+|~|\^")


def compare_texts(one: str, other: str) -> int:
    """rpm's order of versions or releases, -1, 0 or 1: runs of digits as numbers, of letters as text, digits after
    letters; ``~`` before everything, even the end, ``^`` after the end and before everything else."""
    left, right = _PART.findall(one), _PART.findall(other)
    for mine, its in zip(left, right, strict=False):
        if mine == its:
            continue
        for sign, lower in (("~", -1), ("^", -1)):
            if mine == sign or its == sign:
                return lower if mine == sign else -lower
        if mine.isdigit() != its.isdigit():
            return 1 if mine.isdigit() else -1
        if mine.isdigit():
            first, second = mine.lstrip("0"), its.lstrip("0")
            if first == second:
                continue
            return 1 if (len(first), first) > (len(second), second) else -1
        return 1 if mine > its else -1
    if len(left) == len(right):
        return 0
    longer, its_sign = (left, 1) if len(left) > len(right) else (right, -1)
    return -its_sign if longer[min(len(left), len(right))] == "~" else its_sign


def compare(one: Package, other: Package) -> int:
    """By epoch, version, release."""
    if one.epoch != other.epoch:
        return 1 if one.epoch > other.epoch else -1
    return compare_texts(one.version, other.version) or compare_texts(one.release, other.release)


PACKAGE_KEY: Final = cmp_to_key(compare)
