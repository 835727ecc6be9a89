"""A result of kernel-hardening-checker (``-m json``), which a user may have at hand, as facts.

Its JSON is a list of objects with ``option_name``, ``type``, ``desired_val``, ``check_result`` (from 0.6.6 on), older
versions wrote a list of lists in the same order. Only names, wanted values and results are taken over.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from casemate.facts.fact import Facts, Known, Unknown

MAX_BYTES: Final = 4 << 20
_MAX_CHECKS: Final = 10_000
_NAME: Final = re.compile(r"[0-9A-Za-z_.\-]{1,128}")
_FACTS: Final = ("kernel.khc-checks", "kernel.khc-failed")


class _Row(msgspec.Struct, frozen=True):
    name: str
    wanted: str
    passed: bool


def import_khc(text: str, source: str = "kernel-hardening-checker") -> Facts:
    """``kernel.khc-imported``, ``kernel.khc-checks`` (how many) and ``kernel.khc-failed`` (``NAME wants VALUE``).

    Never raises: what is not understood makes every one of them unknown.
    """
    try:
        rows = _rows(text)
    except (ValueError, msgspec.DecodeError, RecursionError) as error:
        why = Unknown(f"{source}: not a JSON result of kernel-hardening-checker ({error})")
        return {"kernel.khc-imported": Known(True, source), **dict.fromkeys(_FACTS, why)}
    failed = tuple(f"{row.name} wants {row.wanted}" for row in rows if not row.passed)
    return {
        "kernel.khc-imported": Known(True, source),
        "kernel.khc-checks": Known(len(rows), source),
        "kernel.khc-failed": Known(failed, source),
    }


def _rows(text: str) -> list[_Row]:
    if len(text) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} characters")
    document = msgspec.json.decode(text)
    if not isinstance(document, list) or not 0 < len(document) <= _MAX_CHECKS:
        raise ValueError(f"expected a list of 1 to {_MAX_CHECKS} checks")
    return [_row(item) for item in document]


def _row(item: Any) -> _Row:
    if isinstance(item, dict):
        name, wanted, result = (item.get(key) for key in ("option_name", "desired_val", "check_result"))
    elif isinstance(item, list) and len(item) >= 6:
        name, wanted, result = item[0], item[2], item[5]
    else:
        raise ValueError("a check is neither an object nor a list of six")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"option name {name!r}"[:200])
    if not isinstance(wanted, str) or not isinstance(result, str):
        raise ValueError(f"{name}: no wanted value or no result")
    if not result.startswith(("OK", "FAIL")):
        raise ValueError(f"{name}: result {result!r}, expected OK or FAIL"[:200])
    return _Row(name, wanted[:200], result.startswith("OK"))
