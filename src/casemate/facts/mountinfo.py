"""/proc/PID/mountinfo as values (proc_pid_mountinfo(5)).

One line: ``36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/root rw,errors=continue``. Blanks, tabs,
newlines and backslashes inside names stand there as three octal digits after a backslash.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
MAX_MOUNTS: Final = 100_000


class Mount(msgspec.Struct, frozen=True):
    """One mount. ``root`` is the directory of the file system that is mounted at ``point``."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    point: str
    options: tuple[str, ...]
    propagation: tuple[str, ...]
    kind: str
    source: str
    super_options: tuple[str, ...]


def unescape(name: str) -> str:
    """Undo the kernel's octal escapes; bytes above 127 were never escaped and stay."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8) & 0xFF), name)


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """All mounts, in the file's order.

    Raises:
        ValueError: a line that is not of the documented shape, or more than MAX_MOUNTS lines.
    """
    # Not splitlines(): a name may hold U+0085 or U+2028, which only Python takes for the end of a line.
    lines = [line for line in text.split("\n") if line]
    if len(lines) > MAX_MOUNTS:
        raise ValueError(f"{len(lines)} mounts")
    return tuple(_parse_line(line) for line in lines)


def _parse_line(line: str) -> Mount:
    words = line.split(" ")
    try:
        dash = words.index("-", 6)
        kind, source, super_options = words[dash + 1 : dash + 4]
        return Mount(
            mount_id=int(words[0]),
            parent_id=int(words[1]),
            device=words[2],
            root=unescape(words[3]),
            point=unescape(words[4]),
            options=tuple(words[5].split(",")),
            propagation=tuple(words[6:dash]),
            kind=unescape(kind),
            source=unescape(source),
            super_options=tuple(super_options.split(",")),
        )
    except (ValueError, IndexError) as error:
        raise ValueError(f"mountinfo line {line[:120]!r}: {error}") from None
