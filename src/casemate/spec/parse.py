"""TOML text to ``Spec``, with every fault of the document reported at once.

1. Bounds: at most 1 MiB of UTF-8, and no key deeper than ``MAX_KEY_DOTS``: ``tomllib`` needs time quadratic in the
   depth of a key.
2. Syntax: TOML itself. A syntax fault is the only one that is reported alone, because nothing after it can be trusted.
3. Images of the store that are named in place of paths are looked up.
4. Walk: types, bounds, paths (``spec/walk.py``).
5. Rules between fields (``spec/rules.py``).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from casemate.errors import Fault, InputError, SpecError
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


ImageOf = Callable[[str], tuple[str, str, str]]
"""Asked for the path, format and SHA-256 of an image of the store; may raise ``InputError``."""


def parse_spec(
    text: str | bytes, source: str, base_dir: Path, *, today: datetime.date, image_of: ImageOf | None = None
) -> Spec:
    """Read a specification.

    Args:
        text: the TOML document; bytes must be UTF-8.
        source: what to call it in messages, usually the file's name.
        base_dir: absolute, resolved directory that relative paths start from.
        today: the UTC date by which expiry is judged.
        image_of: without it a disk that names an image of the store is a fault.

    Raises:
        SpecError: with all faults.
    """
    return build_spec(load_toml(text, source), source, base_dir, today=today, image_of=image_of)


def build_spec(
    document: dict[str, Any], source: str, base_dir: Path, *, today: datetime.date, image_of: ImageOf | None = None
) -> Spec:
    """Plain data of the shape of the TOML document to ``Spec``; arguments and errors as ``parse_spec``."""
    faults = Faults()
    document = _look_up_images(document, image_of, faults)
    spec = Walk(str(base_dir), faults).spec(document)
    check_rules(spec, today, faults)
    faults.raise_if_any(source)
    return spec


def _look_up_images(document: dict[str, Any], image_of: ImageOf | None, faults: Faults) -> dict[str, Any]:
    """The document with path, format and digest in every disk that only names an image of the store.

    A disk that has a path as well is left for the rules: it is one that was looked up before, or a fault.
    """
    disks = document.get("disk")
    if not isinstance(disks, list) or not any(isinstance(disk, dict) and "image" in disk for disk in disks):
        return document
    found = []
    for index, disk in enumerate(disks):
        if not isinstance(disk, dict) or not isinstance(disk.get("image"), str) or disk.get("path") is not None:
            found.append(disk)
            continue
        where = f"disk[{index}].image"
        filled = {"path": "/unknown", "format": "raw", **disk}
        try:
            if image_of is None:
                raise InputError("nothing here knows the image store; name a file by path and format")
            path, image_format, digest = image_of(disk["image"])
        except InputError as error:
            faults.add(where, "disk.image", error.what)
            filled.setdefault("sha256", "0" * 64)  # one fault is enough
        else:
            for key, value in (("format", image_format), ("sha256", digest)):
                if disk.get(key, value) != value:
                    faults.add(f"disk[{index}].{key}", "disk.image", f"the image {disk['image']!r} has {value}")
            filled |= {"path": path, "format": image_format, "sha256": digest}
        found.append(filled)
    return {**document, "disk": found}


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
