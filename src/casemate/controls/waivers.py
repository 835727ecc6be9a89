"""The waiver file of an audit: which findings its owner has decided to live with, where, why and until when.

It is apart from the waivers of a specification: those loosen a launch and need the host's policy as a second party
(`policy.py`); these only change how an audit reads, and the underlying verdict stays in every report. The file::

    version = 1

    [[waiver]]
    control = "cpu.smt"                # one control of the catalogue
    target = "host:*"                  # KIND:NAME or NAME, shell patterns; "*" is every target
    reason = "core scheduling is on; siblings never run two VMs"
    expires = 2027-03-31               # the last day on which it counts
    host = "rack3-*"                   # optional: only on hosts of such a name

Pure: text in, waivers out; the date is given.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from casemate.controls.audit_model import Report, Target, TargetKind
from casemate.controls.model import AppliedWaiver, Verdict
from casemate.controls.profiles import NEVER_OFF
from casemate.errors import Fault, SpecError

MAX_WAIVERS: Final = 10_000
_KINDS: Final = frozenset(kind.value for kind in TargetKind)
_WAIVABLE: Final = (Verdict.FAIL, Verdict.UNKNOWN)


class AuditWaiver(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of the file."""

    control: Annotated[str, Meta(min_length=1)]
    target: Annotated[str, Meta(min_length=1)]
    reason: Annotated[str, Meta(min_length=8)]
    expires: datetime.date
    host: Annotated[str, Meta(min_length=1)] = "*"

    def covers(self, target: Target) -> bool:
        """Whether it is about this target. ``vm:web-*`` names a kind; ``web-*`` any kind."""
        kind, colon, name = self.target.partition(":")
        if colon and kind in _KINDS:
            if target.kind.value != kind:
                return False
        else:
            name = self.target
        return fnmatchcase(target.name, name) and fnmatchcase(target.host, self.host)


def parse_waivers(text: str, source: str) -> tuple[AuditWaiver, ...]:
    """Parse a waiver file, closed: unknown keys, unknown controls and empty reasons are faults.

    Raises:
        SpecError: every fault in the file, each with its path.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecError(source, (Fault("", "waivers.toml", str(error)),)) from None
    faults = [
        Fault(key, "waivers.unknown-key", "unknown; known are version and waiver")
        for key in document
        if key not in ("version", "waiver")
    ]
    _convert("version", document.get("version"), Literal[1], faults)
    entries = document.get("waiver", [])
    if not isinstance(entries, list) or len(entries) > MAX_WAIVERS:
        faults.append(Fault("waiver", "waivers.value", f"expected [[waiver]] tables, at most {MAX_WAIVERS}"))
        entries = []
    waivers = []
    for index, entry in enumerate(entries):
        path = f"waiver[{index}]"
        waiver = _convert(path, entry, AuditWaiver, faults)
        if waiver is not None:
            faults.extend(_meaning_faults(path, waiver))
            waivers.append(waiver)
    if faults:
        raise SpecError(source, tuple(faults))
    return tuple(waivers)


def applied_to(
    target: Target, waivers: Iterable[AuditWaiver], today: datetime.date
) -> tuple[tuple[AppliedWaiver, ...], tuple[str, ...]]:
    """What the judge takes for one target, each control once, and what to say about waivers that no longer count.

    Of several waivers for one control the one that lasts longest counts.
    """
    applied: dict[str, AppliedWaiver] = {}
    expired: dict[str, AuditWaiver] = {}
    for waiver in waivers:
        if not waiver.covers(target):
            continue
        if waiver.expires < today:
            expired[waiver.control] = waiver
        elif waiver.control not in applied or applied[waiver.control].expires < waiver.expires:
            applied[waiver.control] = AppliedWaiver(waiver.control, waiver.reason, waiver.expires)
    notes = tuple(
        f"the waiver for {waiver.control} expired on {waiver.expires.isoformat()} and does not count"
        for control, waiver in expired.items()
        if control not in applied
    )
    return tuple(applied.values()), notes


def unused(waivers: Iterable[AuditWaiver], report: Report, today: datetime.date) -> tuple[str, ...]:
    """A line for each waiver in force that waived nothing in this report: it can go, or its pattern is wrong."""
    waived = [
        (entry.target, finding.control_id)
        for entry in report.targets
        for finding in entry.findings
        if finding.verdict is Verdict.WAIVED
    ]
    return tuple(
        f"the waiver for {waiver.control} on {waiver.target} waived nothing"
        for waiver in waivers
        if waiver.expires >= today
        and not any(control == waiver.control and waiver.covers(target) for target, control in waived)
    )


def _convert(path: str, value: object, kind: Any, faults: list[Fault]) -> Any:
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        faults.append(Fault(path, "waivers.value", "missing; write version = 1" if value is None else str(error)))
        return None


def _meaning_faults(path: str, waiver: AuditWaiver) -> list[Fault]:
    from casemate.controls.catalogue.all import all_controls

    known = {control.id for control in all_controls()}
    faults = []
    if waiver.control in NEVER_OFF:
        faults.append(Fault(f"{path}.control", "waivers.unwaivable", f"{waiver.control} cannot be waived"))
    elif waiver.control not in known:
        import difflib

        close = difflib.get_close_matches(waiver.control, known, 1)
        hint = f"; did you mean {close[0]}?" if close else "; casemate controls lists them"
        faults.append(
            Fault(f"{path}.control", "waivers.unknown-control", f"there is no control {waiver.control!r}{hint}")
        )
    return faults
