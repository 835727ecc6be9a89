"""The prefilters: hyperscan, and a plain one in Python for machines that hyperscan does not run on.

Hyperscan takes all expressions at once and reads each byte once. Expressions it cannot take as they are (looking around
a match) are taken in its prefilter mode, in which it reports every real match and some others, which the engine then
looks at. The compiled form can be kept in a file: the caller keeps it, under the digest of `fingerprint`.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Sequence
from typing import Any, Final

from casemate.errors import HostError
from casemate.scan.model import Rule

FORMAT: Final = b"casemate-prefilter-2\n"
_MAGIC: Final = b"casemate hyperscan\n"
_MAX_PLACES: Final = 2_000_000


def has_hyperscan() -> bool:
    """Whether the engine is installed and this machine runs it."""
    try:
        import hyperscan
    except (ImportError, OSError):
        return False
    return hasattr(hyperscan, "Database")


def fingerprint(rules: Sequence[Rule]) -> str:
    """Digest over everything that the compiled form depends on: expressions, library, processor."""
    digest = hashlib.sha256(FORMAT)
    try:
        import hyperscan

        digest.update(str(getattr(hyperscan, "__version__", "")).encode())
    except (ImportError, AttributeError):
        digest.update(b"none")
    digest.update("\n".join((platform.machine(), *_cpu_flags())).encode())
    for rule in rules:
        text = rule.prefilter or rule.regex
        digest.update(f"\n{rule.id}\0{text}".encode())
    return digest.hexdigest()


def _cpu_flags() -> tuple[str, ...]:
    """What the compiler tunes for; a form made for other ones is refused by the library, too."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            text = file.read(16_384)
    except OSError:
        return ()
    found = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.MULTILINE)
    return tuple(
        flag for flag in ("ssse3", "sse4_2", "popcnt", "bmi2", "avx2", "avx512vbmi") if found and flag in found[1]
    )


class Hyperscan:
    """All expressions in one automaton.

    Args:
        rules: in the order of their indexes.
        compiled: what `dump` of an equal one gave; anything else is ignored and made anew.

    Raises:
        HostError: the library is not installed. ValueError: it does not take an expression; the text names the rule.
    """

    def __init__(self, rules: Sequence[Rule], compiled: bytes = b"") -> None:
        try:
            import hyperscan
        except ImportError:
            raise HostError(
                "the scan needs the Python package hyperscan",
                next_step="pip install hyperscan (x86-64 and arm64), or scan with --engine plain, which is much slower",
            ) from None
        self._count = len(rules)
        self.was_compiled = False
        self._database: Any = None
        if compiled.startswith(_MAGIC):
            try:
                self._database = hyperscan.loadb(compiled[len(_MAGIC) :], hyperscan.HS_MODE_BLOCK)
                self._database.scratch = hyperscan.Scratch(self._database)
            except Exception:  # the library's errors share no base; whatever it is, the answer is to compile
                self._database = None
        if self._database is None:
            self._database = _compile(hyperscan, rules)
            self.was_compiled = True

    def dump(self) -> bytes:
        """The compiled form, to be kept."""
        import hyperscan

        return _MAGIC + bytes(hyperscan.dumpb(self._database))

    def places(self, data: bytes) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        last: dict[int, int] = {}
        append = found.append

        def note(index: int, _start: int, end: int, _flags: int, _context: object) -> None:
            # Ends that follow each other (an open end, a run of one character) are one place.
            before = last.get(index, -2)
            last[index] = end
            if end != before + 1 or end & 0x3F == 0:
                append((index, end))

        if data:
            self._database.scan(data, match_event_handler=note)
        # The last end of a run that was left out lies within 64 bytes of one that is there.
        return found


def _compile(hyperscan: Any, rules: Sequence[Rule]) -> Any:
    flags = hyperscan.HS_FLAG_PREFILTER
    expressions = [expression_of(rule) for rule in rules]
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    try:
        database.compile(
            expressions=expressions, ids=list(range(len(rules))), elements=len(rules), flags=[flags] * len(rules)
        )
    except Exception as fault:
        bad = refused_by_hyperscan(rules)
        names = ", ".join(f"{rule} ({why})" for rule, why in bad.items()) or str(fault)
        raise ValueError(f"the engine does not take: {names}") from None
    return database


def expression_of(rule: Rule) -> bytes:
    """The prefilter's expression as the library wants it: Python's names of groups are PCRE's, but for the order."""
    text = (rule.prefilter or rule.regex).encode("latin-1")
    return re.sub(rb"[\x80-\xff]", lambda match: b"\\x%02x" % match[0][0], text)


def refused_by_hyperscan(rules: Sequence[Rule]) -> dict[str, str]:
    """Rules whose prefilter the library does not take, with its reason."""
    import hyperscan

    bad: dict[str, str] = {}
    for rule in rules:
        database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
        try:
            database.compile(
                expressions=[expression_of(rule)], ids=[0], elements=1, flags=[hyperscan.HS_FLAG_PREFILTER]
            )
        except Exception as fault:  # see above
            bad[rule.id] = str(fault)[:200]
    return bad


class Plain:
    """Python's ``re`` behind a search for keywords: right everywhere, and slow (about 10 MB/s)."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple((rule, re.compile((rule.prefilter or rule.regex).encode("latin-1"))) for rule in rules)

    def places(self, data: bytes) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        folded = data.lower()
        for index, (rule, expression) in enumerate(self._rules):
            words = [word.encode("latin-1") for word in rule.keywords]
            if words and not any(word in folded for word in words):
                continue
            for match in expression.finditer(data):
                found.append((index, match.end()))
                if len(found) > _MAX_PLACES:
                    return found
        return found
