"""A capture as an archive: a manifest, then a tree below ``root/``; no owner, no time of any file, mode 0600.

Written under a temporary name, synced and renamed: under its own name there is a whole capture or none.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from casemate.audit.capture_collect import Taken
from casemate.audit.capture_model import MANIFEST, TREE
from casemate.errors import InputError

if TYPE_CHECKING:
    import tarfile
    from gzip import GzipFile

_GZIP = (".tar.gz", ".tgz")


def write_capture(taken: Taken, path: str) -> int:
    """Write the archive; packed with gzip when the name ends so.

    Returns:
        its size in bytes.

    Raises:
        InputError: it cannot be written, or the name is taken by something that is no regular file.
    """
    place = Path(path)
    temporary = place.parent / f".{place.name}.{os.urandom(6).hex()}"
    try:
        if place.is_symlink() or (place.exists() and not place.is_file()):
            raise InputError(f"{path} is there and no regular file", expected="a new file, or one to replace")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with open(descriptor, "wb") as stream:
                os.fchmod(stream.fileno(), 0o600)
                _archive(taken, stream, packed=path.endswith(_GZIP))
                stream.flush()
                os.fsync(stream.fileno())
                size = os.fstat(stream.fileno()).st_size
            temporary.rename(place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"cannot write {path}", got=(error.strerror or str(error)).lower()) from None
    return size


def _archive(taken: Taken, stream: IO[bytes] | GzipFile, *, packed: bool) -> None:
    import gzip
    import tarfile

    if packed:
        with gzip.GzipFile("", "wb", 6, stream, mtime=0) as pressed:
            _archive(taken, pressed, packed=False)
        return
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry, data in _members(taken):
            archive.addfile(entry, io.BytesIO(data))


def _members(taken: Taken) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    import tarfile

    def member(name: str, kind: bytes, mode: int, size: int = 0) -> tarfile.TarInfo:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.size = kind, mode, size
        return entry

    manifest = msgspec.json.format(msgspec.json.encode(taken.manifest), indent=1)
    yield member(MANIFEST, tarfile.REGTYPE, 0o600, len(manifest)), manifest
    yield member(TREE.rstrip("/"), tarfile.DIRTYPE, 0o700), b""
    kinds = dict.fromkeys(folders_of(taken), tarfile.DIRTYPE) | dict.fromkeys(taken.files, tarfile.REGTYPE)
    kinds |= dict.fromkeys(taken.links, tarfile.SYMTYPE)
    for path in sorted(kinds):
        name = f"{TREE}{path.lstrip('/')}"
        if kinds[path] == tarfile.DIRTYPE:
            yield member(name, tarfile.DIRTYPE, 0o700), b""
        elif kinds[path] == tarfile.SYMTYPE:
            entry = member(name, tarfile.SYMTYPE, 0o777)
            entry.linkname = taken.links[path]
            yield entry, b""
        else:
            data = taken.files[path]
            yield member(name, tarfile.REGTYPE, 0o600, len(data)), data


def folders_of(taken: Taken) -> tuple[str, ...]:
    """Every directory of the tree, those above others first."""
    found = set(taken.folders)
    for path in (*taken.files, *taken.links, *taken.folders):
        above = path.rpartition("/")[0]
        while above and above not in found:
            found.add(above)
            above = above.rpartition("/")[0]
    return tuple(sorted(found))
