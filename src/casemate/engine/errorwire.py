"""Errors across a pipe: the supervisor-to-be tells the caller why a launch failed, in the caller's own error types."""

from __future__ import annotations

from typing import Any

from casemate import errors
from casemate.errors import CasemateError, RefusedError, VmError

_KINDS = {
    kind.__name__: kind
    for kind in (errors.InputError, errors.ImageError, errors.HostError, errors.VmError, errors.VmTimeoutError)
}


def encode(error: CasemateError) -> dict[str, Any]:
    """JSON-able form."""
    return {
        "kind": type(error).__name__,
        "control": getattr(error, "control", ""),
        "what": error.what,
        "got": error.got,
        "expected": error.expected,
        "next_step": error.next_step,
    }


def decode(data: dict[str, Any]) -> CasemateError:
    """The error again; an unknown kind becomes a VmError."""
    texts = {name: str(data.get(name, "")) for name in ("got", "expected", "next_step")}
    what = str(data.get("what", ""))
    if data.get("kind") == "RefusedError":
        control = str(data.get("control", ""))
        return RefusedError(control, what.removeprefix(f"refused by control {control}: "), **texts)
    return _KINDS.get(str(data.get("kind")), VmError)(what, **texts)
