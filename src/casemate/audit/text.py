"""Documents from outside, read with a bound and told apart from what cannot be read."""

from __future__ import annotations

import os
import stat
import sys
from typing import Final

from casemate.errors import InputError
from casemate.facts.root import read_all

DOCUMENT_BYTES: Final = 16 << 20


def read_document(name: str, limit_bytes: int = DOCUMENT_BYTES) -> str:
    """A text file; ``-`` is standard input.

    Raises:
        InputError: it is not there, is no regular file, is too large, or is no UTF-8.
    """
    data = read_input(name, limit_bytes)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not text", got=f"byte {data[error.start]:#04x} at offset {error.start}", expected="UTF-8"
        ) from None


def read_input(name: str, limit_bytes: int = DOCUMENT_BYTES) -> bytes:
    """The bytes of a regular file, or of standard input.

    Raises:
        InputError: as `read_document`.
    """
    try:
        if name == "-":
            return read_all(sys.stdin.fileno(), limit_bytes, "standard input")
        descriptor = open_regular(name)
        try:
            return read_all(descriptor, limit_bytes, name)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        got = (getattr(error, "strerror", None) or str(error)).lower()
        raise InputError(f"cannot read {name}", got=got) from None


def open_regular(name: str) -> int:
    """A regular file open for reading; never waits for a FIFO. The caller owns the result.

    Raises:
        OSError: as open(2). InputError: it is something else.
    """
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{name} is no regular file", expected="a file")
    return descriptor
