"""Applies the rules by content to a run of bytes.

1. Prefilter: one pass over the bytes for all rules at once (`prefilter.py`); it says where a match of a rule ends.
2. Places of one rule that lie close together become one stretch, so that a hostile image full of beginnings costs one
   look at every byte and not one per beginning.
3. In each stretch the rule's own expression is searched, then entropy and allow lists are applied, then the check.
4. What is left is redacted. The secret goes no further than this module.

The caller cuts large inputs into runs that overlap by `OVERLAP_BYTES` and keeps the hits that begin in its part.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from casemate.scan.checks import CHECKS, entropy, secret_of
from casemate.scan.known_data import KNOWN
from casemate.scan.model import Check, Found, Hit, Rule
from casemate.scan.redact import Redactor

OVERLAP_BYTES: Final = 32_768
"""More than any rule of ours looks at behind a match's beginning; rules of users are held to it."""
DETAIL_MAX_CHARS: Final = 200
_RUN_BYTES: Final = 64
"""Of ends that follow each other a prefilter may tell every 64th only."""
MAX_HITS: Final = 5_000
"""Per rule and run: what is beyond is counted in nobody's favour; the scan has failed long before."""


def start_of(match: re.Match[bytes], group: int) -> int:
    """Where the secret begins; what an expression asks to stand before it may belong to another file."""
    if "secret" in match.re.groupindex and match["secret"] is not None:
        return match.start("secret")
    return match.start(group) if group and match[group] is not None else match.start()


def is_known(match: re.Match[bytes], secret: bytes) -> bool:
    """Whether everybody has it. A hash with a user's name before it is an account, wherever it was copied from."""
    if hashlib.sha256(secret).hexdigest() not in KNOWN:
        return False
    return match.groupdict().get("user") is None


class Prefilter(Protocol):
    """Finds the places worth a look."""

    def places(self, data: bytes) -> Iterable[tuple[int, int]]:
        """(index of the rule, end of a match of its prefilter), ends of one rule in ascending order."""


class Compiled:
    """One rule, ready to use."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.expression = re.compile(rule.regex.encode("latin-1"))
        self.check: Check = CHECKS[rule.check]
        self.allow = tuple(re.compile(text.encode("latin-1")) for text in rule.allow)
        self.allow_match = tuple(re.compile(text.encode("latin-1")) for text in rule.allow_match)

    def hits(self, data: bytes, start: int, end: int, redactor: Redactor) -> Iterator[Hit]:
        """The secrets whose match lies inside ``data[start:end]``."""
        for match in self.expression.finditer(data, start, end):
            secret = secret_of(match, self.rule.group)
            if self.rule.entropy and entropy(secret) < self.rule.entropy:
                continue
            if any(text.search(secret) for text in self.allow) or any(t.search(match[0]) for t in self.allow_match):
                continue
            found = self._checked(match, data, secret)
            if found is None or is_known(match, found.secret):
                continue
            kept = found.secret if self.rule.check or not self.rule.group else secret
            yield Hit(
                rule=self.rule.id,
                offset=start_of(match, self.rule.group),
                length=match.end() - match.start(),
                shown=redactor.shown(kept),
                digest=redactor.digest(kept),
                detail="".join(char if char.isprintable() else "?" for char in found.detail[:DETAIL_MAX_CHARS]),
            )

    def _checked(self, match: re.Match[bytes], data: bytes, secret: bytes) -> Found | None:
        """A check that fails on what it did not expect does not make a secret of nothing: it is told."""
        try:
            return self.check(match, data)
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError):
            return Found(secret, "could not be checked")


class Engine:
    """All rules and a prefilter for them."""

    def __init__(self, rules: Sequence[Rule], prefilter: Prefilter, redactor: Redactor) -> None:
        self._rules = tuple(Compiled(rule) for rule in rules)
        self._prefilter = prefilter
        self._redactor = redactor
        self.watch: Callable[[int], None] = lambda index: None
        """Told the number of the rule whose expression is about to be searched: who kills a scan that hangs can say
        which one it was."""

    def scan(self, data: bytes, first: int = 0, last: int | None = None) -> list[Hit]:
        """Hits that begin in ``data[first:last]``, by offset; what lies around is context."""
        last = len(data) if last is None else last
        stretches: dict[int, list[list[int]]] = {}
        for index, end in self._prefilter.places(data):
            rule = self._rules[index].rule
            low, high = max(0, end - rule.before), min(len(data), end + rule.after + _RUN_BYTES)
            known = stretches.setdefault(index, [])
            if known and low <= known[-1][1]:
                known[-1][1] = max(known[-1][1], high)
            else:
                known.append([low, high])
        hits: dict[tuple[str, int], Hit] = {}
        for index, spans in stretches.items():
            self.watch(index)
            count = 0
            for low, high in spans:
                for hit in self._rules[index].hits(data, low, high, self._redactor):
                    if first <= hit.offset < last:
                        hits[hit.rule, hit.offset] = hit
                        count += 1
                    if count >= MAX_HITS:
                        break
        return sorted(hits.values(), key=lambda hit: (hit.offset, hit.rule))
