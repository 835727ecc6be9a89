"""Rule files: our own format, and gitleaks'. Which one it is shows in the name of its tables.

Ours::

    [[rule]]
    id = "acme.token"                    # letters, digits, dots, dashes
    title = "ACME token"
    severity = "high"                    # critical, high, medium, low, info
    regex = "acme_(?P<secret>[a-z0-9]{32})"
    keywords = ["acme_"]                 # optional: one of them is in every match
    check = "mixed"                      # optional: a validator by name
    entropy = 3.0                        # optional: bits per byte
    before = 256                         # optional: bytes of context, at most 32768
    after = 256
    remedy = "…"
    allow = ["^acme_0{32}$"]             # optional: what is no secret

gitleaks (v8): ``[[rules]]`` with id, description, regex, entropy, secretGroup, keywords, allowlists. See `translate.py`
for its expressions. What concerns repositories (paths, commits, required rules) does not apply to blocks of a disk.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any, Final

from casemate.errors import InputError
from casemate.scan.checks import CHECKS
from casemate.scan.engine import OVERLAP_BYTES
from casemate.scan.model import Level, Rule
from casemate.scan.translate import NotTranslatableError, from_re2

MAX_FILE_BYTES: Final = 4 << 20
MAX_RULES: Final = 4_000
MAX_REGEX_CHARS: Final = 40_000
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FIELDS: Final = frozenset(
    {
        "id",
        "title",
        "severity",
        "regex",
        "prefilter",
        "keywords",
        "check",
        "entropy",
        "before",
        "after",
        "remedy",
        "allow",
    }
)
_ALLOW_TABLES: Final = ("allowlist", "allowlists")


def read_rules(data: bytes, source: str) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """The rules of a file, and those that cannot be taken, each as ``id: reason``.

    Raises:
        InputError: no rule file, or one of ours with a fault: nobody shall believe that a rule ran which did not.
    """
    if len(data) > MAX_FILE_BYTES:
        raise InputError(
            f"{source} is too large for a rule file", got=f"{len(data)} bytes", expected=f"{MAX_FILE_BYTES}"
        )
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as fault:
        raise InputError(
            f"{source} is not TOML", got=str(fault)[:200], next_step="docs/scan.md has the format"
        ) from None
    ours, theirs = document.get("rule"), document.get("rules")
    entries = ours if ours is not None else theirs
    if not isinstance(entries, list) or not entries or len(entries) > MAX_RULES:
        raise InputError(
            f"{source} has no rules", expected=f"[[rule]] (ours) or [[rules]] (gitleaks), at most {MAX_RULES}"
        )
    if not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{source}: a rule is not a table")
    if ours is not None:
        return tuple(_own(entry, source, number) for number, entry in enumerate(entries, 1)), ()
    return _gitleaks(document, entries, source)


def _own(entry: dict[str, Any], source: str, number: int) -> Rule:
    where = f"{source}: rule {number}"
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}", expected=", ".join(sorted(_FIELDS)))
    try:
        rule = Rule(
            id=_text(entry, "id"),
            title=_text(entry, "title"),
            severity=Level(_text(entry, "severity")),
            regex=_regex(_text(entry, "regex")),
            prefilter=_regex(_text(entry, "prefilter", "")),
            keywords=tuple(word.lower() for word in _texts(entry, "keywords")),
            check=_text(entry, "check", ""),
            entropy=_number(entry, "entropy", 8.0),
            before=int(_number(entry, "before", OVERLAP_BYTES, 1024)),
            after=int(_number(entry, "after", OVERLAP_BYTES, 1024)),
            remedy=_text(entry, "remedy", "remove it from the image, and replace it"),
            allow=tuple(_regex(text) for text in _texts(entry, "allow")),
        )
    except (ValueError, re.error) as fault:
        raise InputError(f"{where}: {fault}", next_step="docs/scan.md has the format") from None
    if _ID.fullmatch(rule.id) is None:
        raise InputError(f"{where}: this is no id", got=ascii(rule.id)[:80], expected="letters, digits, dots, dashes")
    if rule.check not in CHECKS or f"(?P<{_NEED_GROUPS.get(rule.check, '')}>" not in f"(?P<>{rule.regex}":
        names = ", ".join(name for name in sorted(CHECKS) if name and name not in _NEED_GROUPS)
        raise InputError(f"{where}: there is no check {rule.check!r} for it", expected=names)
    return rule


_NEED_GROUPS: Final = {
    "crypt": "user",
    "pem": "kind",
    "command_line": "rest",
    "random_bytes": "secret",
    "bech32": "secret",
}


def _regex(text: str) -> str:
    """An expression that matches bytes of UTF-8, checked. Raises ``ValueError``."""
    if len(text) > MAX_REGEX_CHARS:
        raise ValueError(f"an expression of {len(text)} characters, more than {MAX_REGEX_CHARS}")
    if not text:
        return text
    if not text.isascii():
        raise ValueError("an expression is ASCII; write other bytes as \\xNN")
    compiled = re.compile(text.encode())
    if compiled.match(b"") is not None:
        raise ValueError("an expression that matches nothing at all would match everywhere")
    return text


def _text(entry: dict[str, Any], key: str, default: str | None = None) -> str:
    value = entry.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key} is missing or no text")
    return value


def _texts(entry: dict[str, Any], key: str) -> list[str]:
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{key} is no list of texts")
    return value


def _number(entry: dict[str, Any], key: str, most: float, default: float = 0) -> float:
    value = entry.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise ValueError(f"{key} is no number from 0 to {most:g}")
    return float(value)


# ---- gitleaks -------------------------------------------------------------------------------------------------------


def _gitleaks(document: dict[str, Any], entries: list[Any], source: str) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    rules: dict[str, Rule] = {}
    left: list[str] = []
    common, faults = _allowed(document)
    left += [f"(global allow list): {fault}" for fault in faults]
    for number, entry in enumerate(entries, 1):
        name = entry.get("id") if isinstance(entry.get("id"), str) else f"number {number}"
        try:
            rule = _from_gitleaks(entry, str(name), common)
        except (ValueError, NotTranslatableError, re.error) as fault:
            left.append(f"{ascii(name)[1:-1][:100]}: {fault}")
            continue
        if rule.id in rules:
            left.append(f"{rule.id}: twice in the file, the first one is used")
        else:
            rules[rule.id] = rule
    if not rules:
        raise InputError(f"{source} has no rule that can be taken", got=left[-1][:200], expected="one at least")
    return tuple(rules.values()), tuple(left)


def _from_gitleaks(entry: dict[str, Any], name: str, common: list[str]) -> Rule:
    if _ID.fullmatch(name) is None:
        raise ValueError("this is no id")
    if not isinstance(entry.get("regex"), str) or not entry["regex"]:
        raise ValueError("it has no expression: a rule by path of a repository")
    if entry.get("path"):
        raise ValueError("it holds only for files of a repository with certain names (path)")
    if entry.get("required"):
        raise ValueError("it needs other rules near it (required)")
    if len(entry["regex"]) > MAX_REGEX_CHARS:
        raise ValueError("its expression is too long")
    regex = _regex(from_re2(entry["regex"]))
    groups = re.compile(regex.encode()).groups
    group = entry.get("secretGroup", 0)
    if not isinstance(group, int) or not 0 <= group <= groups:
        raise ValueError(f"secretGroup {group!r} is no group of its expression")
    allow, faults = _allowed(entry)
    if faults:
        raise ValueError(faults[0])
    return Rule(
        id=name,
        title=str(entry.get("description") or name)[:200],
        severity=Level.HIGH,
        regex=regex,
        keywords=tuple(word.lower() for word in _texts(entry, "keywords") if word.isascii()),
        entropy=_number(entry, "entropy", 8.0),
        before=1024,
        after=1024,
        remedy="remove it from the image, and replace it",
        group=group or (1 if groups else 0),
        allow=(*common, *allow),
    )


def _allowed(table: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(expressions of allowed secrets, what of the allow lists cannot be said of blocks)."""
    found: list[str] = []
    faults: list[str] = []
    for key in _ALLOW_TABLES:
        value = table.get(key, [])
        for entry in value if isinstance(value, list) else [value]:
            if not isinstance(entry, dict):
                continue
            if entry.get("condition") in {"AND", "&&"} and (entry.get("paths") or entry.get("commits")):
                continue  # allows less than its expressions alone would: without it more is reported
            if entry.get("targetRules") or entry.get("regexTarget") in {"match", "line"}:
                continue  # the same: to leave an allowance out reports more
            for text in _texts(entry, "regexes"):
                try:
                    found.append(_allow_regex(text))
                except (ValueError, NotTranslatableError, re.error) as fault:
                    faults.append(f"an allowed expression cannot be taken ({fault})")
            found += [f"(?i){re.escape(word)}" for word in _texts(entry, "stopwords") if word and word.isascii()][:4000]
    return _joined(found), faults


def _allow_regex(text: str) -> str:
    translated = from_re2(text)
    re.compile(translated.encode())
    return translated


def _joined(texts: list[str]) -> list[str]:
    """Hundreds of words as one expression: 50 at a time."""
    words = [text[4:] for text in texts if text.startswith("(?i)") and re.fullmatch(r"\(\?i\)(?:[\w-]|\\.)+", text)]
    others = [text for text in texts if text.removeprefix("(?i)") not in set(words)]
    return [*others, *(f"(?i)(?:{'|'.join(words[at : at + 200])})" for at in range(0, len(words), 200))]
