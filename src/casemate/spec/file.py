"""Reads a specification from disk: a regular file, bounded, whatever the path turns out to be."""

from __future__ import annotations

import datetime
import os
import stat
from pathlib import Path

from casemate.errors import InputError
from casemate.spec.model import Spec
from casemate.spec.parse import MAX_SPEC_BYTES, ImageOf, parse_spec


def load_spec(path: str | Path, *, today: datetime.date, image_of: ImageOf | None = None) -> Spec:
    """Read and parse the specification at ``path``; relative paths inside start from the directory it really lies in.

    Raises:
        InputError: the file is missing, not readable, or not a regular file.
        SpecError: its content has faults.
    """
    source = _shown(path)
    text, base_dir = read_spec_file(path)
    return parse_spec(text, source, base_dir, today=today, image_of=image_of)


def read_spec_file(path: str | Path) -> tuple[bytes, Path]:
    """The bytes of the file (one more than the limit at most) and its resolved directory. Never blocks on a FIFO."""
    what = f"cannot read the specification {_shown(path)}"
    try:
        resolved = Path(path).resolve(strict=True)
        fd = os.open(resolved, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW)
    except (OSError, ValueError, RuntimeError) as error:
        # ValueError: a NUL in the path; RuntimeError: a loop of symbolic links.
        got = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(what, got=got.lower(), next_step=f"check the path: ls -l {_shown(path)}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InputError(what, got="something that is not a regular file", expected="a TOML file")
        return _read_bounded(fd), resolved.parent
    except OSError as error:
        raise InputError(what, got=(error.strerror or str(error)).lower()) from None
    finally:
        os.close(fd)


def _shown(path: str | Path) -> str:
    """The path as it was given, or quoted when a terminal could not show it safely."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def _read_bounded(fd: int) -> bytes:
    """At most one byte more than a specification may have, so that the parser sees when there is too much."""
    text = b""
    while len(text) <= MAX_SPEC_BYTES:
        part = os.read(fd, MAX_SPEC_BYTES + 1 - len(text))
        if not part:
            break
        text += part
    return text
