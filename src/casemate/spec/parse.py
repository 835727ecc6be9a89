"""TOML text to ``Spec``, with every fault of the document reported at once.

1. Bounds: at most 1 MiB of UTF-8, and no key deeper than ``MAX_KEY_DOTS``: ``tomllib`` needs time quadratic in the
   depth of a key.
2. Syntax: TOML itself. A syntax fault is the only one that is reported alone, because nothing after it can be trusted.
3. Walk: types, bounds, paths (``spec/walk.py``).
4. Rules between fields (``spec/rules.py``).
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

from casemate.errors import Fault, SpecError
from casemate.spec.faults import Faults
from casemate.spec.model import Spec
from casemate.spec.rules import check_rules
from casemate.spec.walk import Walk

MAX_SPEC_BYTES = 1 << 20
MAX_KEY_DOTS = 16

_STRINGS_AND_COMMENTS = re.compile(
    r'"""(?:[^\\]|\\[\s\S])*?(?:"""|\Z)'
    r"|'''[\s\S]*?(?:'''|\Z)"
    r'|"(?:[^"\\\n]|\\.)*"?'
    r"|'[^'\n]*'?"
    r"|\#[^\n]*"
)
"""Every alternative matches even when unterminated, so that the scan is linear whatever the text."""


def parse_spec(text: str | bytes, source: str, base_dir: Path, *, today: datetime.date) -> Spec:
    """Read a specification.

    Args:
        text: the TOML document; bytes must be UTF-8.
        source: what to call it in messages, usually the file's name.
        base_dir: absolute, resolved directory that relative paths start from.
        today: the UTC date by which expiry is judged.

    Raises:
        SpecError: with all faults.
    """
    return build_spec(load_toml(text, source), source, base_dir, today=today)


def build_spec(document: dict[str, Any], source: str, base_dir: Path, *, today: datetime.date) -> Spec:
    """Plain data of the shape of the TOML document to ``Spec``; arguments and errors as ``parse_spec``."""
    faults = Faults()
    spec = Walk(str(base_dir), faults).spec(document)
    check_rules(spec, today, faults)
    faults.raise_if_any(source)
    return spec


def check_spec(spec: Spec, *, today: datetime.date) -> tuple[Fault, ...]:
    """The broken rules between the fields of a ``Spec`` that was made in code; empty when all hold."""
    faults = Faults()
    check_rules(spec, today, faults)
    return faults.as_tuple()


def load_toml(text: str | bytes, source: str) -> dict[str, Any]:
    """The document as plain data; raises ``SpecError`` for what is not bounded, valid TOML."""

    def refuse(path: str, fault_id: str, message: str) -> SpecError:
        faults = Faults()
        faults.add(path, fault_id, message)
        return SpecError(source, faults.as_tuple())

    if len(text) > MAX_SPEC_BYTES:
        raise refuse("", "toml.size", f"has more than {MAX_SPEC_BYTES} bytes; is this really a specification?")
    try:
        document = text.decode() if isinstance(text, bytes) else text
        document.encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise refuse("", "toml.encoding", f"is not UTF-8 ({error.reason} at byte {error.start})") from None
    deep = _too_deep_line(document)
    if deep:
        raise refuse(f"line {deep}", "toml.nesting", f"a key with more than {MAX_KEY_DOTS} dots")
    import tomllib

    try:
        return tomllib.loads(document)
    except RecursionError:
        raise refuse("", "toml.nesting", "values are nested too deeply") from None
    except ValueError as error:
        # int() refuses more than 4300 digits with a plain ValueError, which tomllib lets through.
        raise refuse(*_locate(error)) from None


def _too_deep_line(document: str) -> int:
    """Number of the first line with a key deeper than ``MAX_KEY_DOTS``, or 0. Dots in strings do not count."""
    if document.count(".") <= MAX_KEY_DOTS:
        return 0
    bare = _STRINGS_AND_COMMENTS.sub(lambda match: "\n" * match[0].count("\n"), document)
    for number, line in enumerate(bare.split("\n"), 1):
        if line.count(".") > MAX_KEY_DOTS:
            return number
    return 0


def _locate(error: ValueError) -> tuple[str, str, str]:
    """Path, id and message of a TOML syntax fault."""
    message = str(error)
    match = re.search(r" \(at (line [0-9]+), (column [0-9]+)\)$", message)
    if match is None:
        return "", "toml.syntax", f"is not TOML: {message[:200]}"
    return match[1], "toml.syntax", f"{message[: match.start()][:200]} ({match[2]})"
