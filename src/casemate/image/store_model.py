"""What the store says about an image, and what a name may be. No I/O."""

from __future__ import annotations

import re

import msgspec

from casemate.errors import InputError

ABOUT_VERSION = 1
DIGEST_HEX = 64
MIN_PREFIX = 8
"""Shortest beginning of a digest that names an image; shorter words of hexadecimal digits are names."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)
_RESERVED = frozenset({"builtin"})


class StoredImage(msgspec.Struct, frozen=True, kw_only=True):
    """One image of the store; everything but ``names``, ``origin`` and ``verity_digest`` never changes.

    ``digest``: SHA-256 of the file, 64 hexadecimal digits. ``names``: sorted. ``format``: ``raw`` or ``qcow2``.
    ``virtual_size_bytes``: what a guest sees. ``size_bytes``: length of the file; ``disk_bytes``: what it takes of the
    file system. ``added_at``: seconds since 1970. ``verity_digest``: fs-verity measurement, ``sha256:HEX``, empty where
    the file system has none.

    ``origin`` says where it came from, in words that later checks and people read; keys in use: ``source`` (path or
    URL as given), ``source_sha256`` and ``source_format`` (what was read before unpacking and conversion),
    ``verified_by``, ``verified_as``, ``verified_at`` (of ``image verify``).
    """

    digest: str
    names: tuple[str, ...] = ()
    format: str
    virtual_size_bytes: int
    size_bytes: int
    disk_bytes: int
    added_at: float
    origin: dict[str, str] = {}
    verity_digest: str = ""

    @property
    def short(self) -> str:
        """The first twelve digits, as tables show them."""
        return self.digest[:12]

    @property
    def label(self) -> str:
        """How messages name it: the first name, or the short digest."""
        return self.names[0] if self.names else self.short


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``about.json`` of one image: `StoredImage` without the names, which lie apart."""

    version: int
    digest: str
    format: str
    virtual_size_bytes: int
    size_bytes: int
    added_at: float
    origin: dict[str, str] = {}
    verity_digest: str = ""


def check_name(name: str) -> str:
    """``name`` if it may name an image.

    Raises:
        InputError: it may not; a word that could be the beginning of a digest never names anything else.
    """
    if name in _RESERVED or looks_like_digest(name) or not _NAME.fullmatch(name):
        raise InputError(
            f"{name[:80]!r} cannot name an image",
            expected="1 to 63 characters a-z 0-9 _ . - that start with a letter or digit, and not the beginning of a"
            f" digest ({MIN_PREFIX} or more hexadecimal digits) nor builtin",
            next_step="give it another one with --name",
        )
    return name


def is_name(word: str) -> bool:
    """True if ``word`` may name an image."""
    return word not in _RESERVED and not looks_like_digest(word) and _NAME.fullmatch(word) is not None


def looks_like_digest(word: str) -> bool:
    """True for the beginning of a digest, long enough to be one."""
    return MIN_PREFIX <= len(word) <= DIGEST_HEX and _HEX.fullmatch(word) is not None


def is_digest(word: str) -> bool:
    """True for a whole digest."""
    return len(word) == DIGEST_HEX and _HEX.fullmatch(word) is not None


def name_from(source: str) -> str:
    """A name made of the last part of a path or URL, without endings of formats; ``image`` if nothing is left.

    ``https://example.org/Debian-12-amd64.qcow2.xz?x=1`` gives ``debian-12-amd64``.
    """
    last = re.split(r"[?#]", source, maxsplit=1)[0].rstrip("/").rpartition("/")[2].lower()
    endings = (".xz", ".gz", ".zst", ".bz2", ".qcow2", ".raw", ".img", ".vmdk", ".vhdx", ".vhd", ".vdi", ".ova", ".iso")
    while ending := next((ending for ending in endings if last.endswith(ending) and last != ending), ""):
        last = last.removesuffix(ending)
    name = re.sub(r"[^a-z0-9_.-]+", "-", last).strip("-._")[:63] or "image"
    return name if is_name(name) else f"image-{name}"[:63]
