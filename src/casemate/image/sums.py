"""Lists of checksums, as ``sha256sum``, ``sha512sum`` and their ``--tag`` write them. Bytes in, entries out.

    GNU    <hex>  name        text mode          \\<hex>  na\\nme   escaped: \\n, \\r and \\\\ stand for themselves
           <hex> *name        binary mode
    BSD    SHA256 (name) = <hex>

Empty lines and lines that begin with ``#`` are skipped. Everything else is a fault: a list that we understand in part
is not understood. Digests weaker than SHA-256 are refused, not skipped. Checked against coreutils' ``sha256sum -c``.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from casemate.image.origin import refuse

SUMS_MAX_BYTES: Final = 4 << 20
MAX_LINES: Final = 65_536
_BY_LENGTH: Final = {64: "sha256", 96: "sha384", 128: "sha512"}
_WEAK: Final = {32: "MD5", 40: "SHA-1", 56: "SHA-224"}
_BSD_NAMES: Final = {"SHA256": "sha256", "SHA384": "sha384", "SHA512": "sha512"}
_GNU = re.compile(r"(\\?)([0-9A-Fa-f]+) ([ *])(.+)", re.ASCII)
_BSD = re.compile(r"(\\?)([A-Z0-9-]+) \((.+)\) = ([0-9A-Fa-f]+)", re.ASCII)


class SumEntry(NamedTuple):
    """``algorithm``: sha256, sha384 or sha512; ``digest``: lower-case hexadecimal digits; ``name``: as written."""

    algorithm: str
    digest: str
    name: str


def parse_sums(data: bytes, what: str) -> tuple[SumEntry, ...]:
    """Every entry of a list.

    Raises:
        ImageError: too large, not UTF-8, a line of another form, a weak digest, one name with two digests, or empty.
    """
    if len(data) > SUMS_MAX_BYTES:
        raise refuse(what, f"{len(data)} bytes", expected=f"at most {SUMS_MAX_BYTES} bytes")
    try:
        lines = data.decode("utf-8").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as fault:
        raise refuse(what, f"no UTF-8 at byte {fault.start}", expected="a list of checksums") from None
    if len(lines) > MAX_LINES:
        raise refuse(what, f"{len(lines)} lines", expected=f"at most {MAX_LINES} lines")
    found: dict[tuple[str, str], SumEntry] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        entry = _entry(line, f"{what}, line {number}")
        known = found.setdefault((entry.name, entry.algorithm), entry)
        if known != entry:
            raise refuse(
                f"{what}, line {number}",
                f"a second {entry.algorithm} digest for {entry.name[:200]!r}",
                expected="one digest for a name",
            )
    if not found:
        raise refuse(what, "no entries", expected="lines such as '<64 hexadecimal digits>  name'")
    return tuple(found.values())


def entry_for(entries: tuple[SumEntry, ...], name: str, what: str) -> SumEntry:
    """The entry for exactly this name; of several algorithms the longest digest. ``./name`` in a list is ``name``.

    Raises:
        ImageError: there is none.
    """
    fitting = [entry for entry in entries if entry.name == name]
    if not fitting:
        close = [entry.name for entry in entries if entry.name.rpartition("/")[2] == name.rpartition("/")[2]]
        near = close or [entry.name for entry in entries]
        raise refuse(
            f"{what} has no digest for {name!r}",
            f"digests for {', '.join(near[:3])[:300]}{' …' if len(near) > 3 else ''}",
            expected="the very name in the list",
            next_step="--listed-as NAME says under which name the image is listed",
        )
    return max(fitting, key=lambda entry: len(entry.digest))


def _entry(line: str, where: str) -> SumEntry:
    if match := _BSD.fullmatch(line):
        escaped, word, name, digest = match.groups()
        algorithm = _BSD_NAMES.get(word)
        if algorithm is None:
            raise refuse(where, f"a digest of the kind {word}", expected="SHA256, SHA384 or SHA512")
    elif match := _GNU.fullmatch(line):
        escaped, digest, _, name = match.groups()
        algorithm = _BY_LENGTH.get(len(digest))
    else:
        raise refuse(where, f"{line[:80]!r}", expected="'<digest>  name' or 'SHA256 (name) = <digest>'")
    if len(digest) in _WEAK:
        raise refuse(
            where,
            f"a digest that can be forged: {_WEAK[len(digest)]}",
            expected="SHA-256 or SHA-512",
            next_step="publishers of such a list mostly have a SHA256SUMS beside it",
        )
    if algorithm is None or _BY_LENGTH.get(len(digest)) != algorithm:
        raise refuse(where, f"a digest of {len(digest)} digits", expected="64 (SHA-256), 96 or 128 (SHA-512)")
    if escaped:
        name = _unescape(name, where)
    if "\0" in name or len(name) > 4096:
        raise refuse(where, "an impossible name", expected="a file name")
    return SumEntry(algorithm, digest.lower(), name.removeprefix("./") or name)


def _unescape(name: str, where: str) -> str:
    def one(match: re.Match[str]) -> str:
        known = {"n": "\n", "r": "\r", "\\": "\\"}.get(match[1])
        if known is None:
            raise refuse(where, f"the escape {match[0]!r}", expected=r"\n, \r or \\")
        return known

    return re.sub(r"\\(.?)", one, name, flags=re.DOTALL)
