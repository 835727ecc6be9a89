"""The configuration that the running kernel was built with: found, unpacked within bounds, read.

Two lines matter: ``CONFIG_NAME=value`` and ``# CONFIG_NAME is not set``. A name in neither is ``absent``: this version
does not know it, or something it depends on is off; for the running kernel that means "not built".
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from typing import Final

import msgspec

from casemate.facts.fact import Fact, Known, Unknown
from casemate.facts.root import Root

MAX_PACKED_BYTES: Final = 1 << 20
MAX_TEXT_BYTES: Final = 4 << 20
# Debian's kernels have about 9,000 lines, a trimmed one for microVMs about 1,500. Fewer than this is a fragment, and
# what a fragment does not mention is not "not built".
MIN_OPTIONS: Final = 500
ABSENT: Final = "absent"

_RELEASE: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+~-]{0,127}")
_OPTION: Final = re.compile(r"^(?:CONFIG_(\w+)=(.*)|# CONFIG_(\w+) is not set)$", re.MULTILINE)
_GZIP: Final = b"\x1f\x8b"


class Kconfig(msgspec.Struct, frozen=True):
    """``values``: option without ``CONFIG_`` to ``y``, ``m``, ``n`` (not set), a number or a text without quotes."""

    values: dict[str, str]
    source: str

    def get(self, name: str) -> str:
        """The value of an option; ``absent`` when the configuration does not mention it."""
        return self.values.get(name, ABSENT)

    def has(self, name: str) -> bool:
        """Whether it is built in or built as a module."""
        return self.get(name) in ("y", "m")

    def fact(self, name: str) -> Fact:
        """The option as a fact, with its place."""
        return Known(self.get(name), f"{self.source}: CONFIG_{name}")

    @property
    def architecture(self) -> str:
        """``x86_64``, ``arm64`` or empty."""
        return next((arch for arch in ("x86_64", "arm64") if self.get(arch.upper()) == "y"), "")


def parse_kconfig(text: str) -> dict[str, str]:
    """Option to value; the last mention counts, as it does for the kernel's own build.

    Raises:
        ValueError: too few options for a whole configuration.
    """
    values: dict[str, str] = {}
    for match in _OPTION.finditer(text):
        name, value, unset = match.groups()
        if unset is None:
            values[name] = value.rstrip().strip('"')
        else:
            values[unset] = "n"
    if len(values) < MIN_OPTIONS:
        raise ValueError(f"{len(values)} options, expected at least {MIN_OPTIONS}: not a whole kernel configuration")
    return values


def unpack(data: bytes) -> str:
    """The text of a configuration, packed with gzip or plain.

    Raises:
        ValueError: larger than MAX_TEXT_BYTES, damaged, or cut off.
    """
    if data.startswith(_GZIP):
        packed = zlib.decompressobj(wbits=31)
        try:
            data = packed.decompress(data, MAX_TEXT_BYTES + 1)
        except zlib.error as error:
            raise ValueError(f"damaged gzip data ({error})") from None
        if len(data) <= MAX_TEXT_BYTES and not packed.eof:
            raise ValueError("gzip data ends too early")
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError(f"larger than {MAX_TEXT_BYTES} bytes when unpacked")
    return data.decode("utf-8", "backslashreplace")


# Hosts of one fleet share kernels, so that many captures have the very same bytes.
@lru_cache(maxsize=8)
def _parsed(data: bytes) -> dict[str, str]:
    return parse_kconfig(unpack(data))


def read_kconfig(root: Root) -> Kconfig | Unknown:
    """The running kernel's configuration; Unknown, with each place that was tried, when there is none to be read."""
    tried: list[str] = []
    for path in _places(root):
        try:
            return Kconfig(_parsed(root.read_bytes(path, MAX_TEXT_BYTES)), path)
        except OSError as error:
            tried.append(f"{path}: {error.strerror or error}")
        except ValueError as error:
            tried.append(f"{path}: {error}")
    return Unknown("kernel configuration: " + "; ".join(tried))


def _places(root: Root) -> tuple[str, ...]:
    places = ["/proc/config.gz"]
    try:
        release = root.read_text("/proc/sys/kernel/osrelease", 4096).strip()
    except OSError:
        return tuple(places)
    # The name comes from a tree that may be hostile, and it becomes part of a path.
    if _RELEASE.fullmatch(release):
        places += [f"/boot/config-{release}", f"/usr/lib/modules/{release}/config", f"/lib/modules/{release}/config"]
    return tuple(places)
