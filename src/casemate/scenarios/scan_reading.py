"""A scan of an image for secrets (``casemate image scan --json``) as an audit of it: what nobody else can judge.

- `sec.passwords`: no hash of a password lies anywhere in it and no account does without one, so that nobody who has
  the image can log in with one, root neither.
- `sec.keys`: no other secret does.

A scan that could not look everywhere passes nothing; what it found fails all the same. A waived finding is one: risk
counts what is there, not what somebody accepts.
"""

from __future__ import annotations

from typing import Final

import msgspec

from casemate.controls.audit_model import FileRef, TargetKind
from casemate.controls.model import Verdict
from casemate.errors import InputError
from casemate.facts.fact import Stage
from casemate.scenarios.reading import Audit, Audited
from casemate.scenarios.verdicts import Verdicts

SCAN_SCHEMA: Final = "casemate.scan/1"
_ACCOUNTS: Final = frozenset({"hash.password", "account.no-password"})
"""Rules of what logs somebody in, and is no secret of another kind."""
PASSWORDS: Final = _ACCOUNTS | {"cloud-init.user-data"}
_HARMLESS: Final = "info"
_SHOWN: Final = 6


class _Found(msgspec.Struct, frozen=True):
    rule: str
    severity: str
    waived: str = ""


class _Scan(msgspec.Struct, frozen=True):
    schema: str
    image: str
    findings: tuple[_Found, ...]
    by_name: bool
    not_scanned: tuple[str, ...]
    path: str = ""
    identity: str = ""
    sha256: str = ""
    host: str = ""
    time: str = ""


def is_scan(head: bytes) -> bool:
    """Whether a file that begins so is meant to be a scan."""
    return head.lstrip()[:1] == b"{" and SCAN_SCHEMA.encode() in head


def parse_scan(data: bytes, name: str, catalogue: str) -> Audit:
    """The scan as an audit of one image.

    Args:
        catalogue: of the controls that it is read for.

    Raises:
        InputError: it is none, it is cut off, or it does not say which file it is about.
    """
    try:
        scan = msgspec.json.decode(data, type=_Scan)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(
            f"{name} is no scan of an image", got=str(error)[:200], expected="what casemate image scan --json writes"
        ) from None
    if scan.schema != SCAN_SCHEMA:
        raise InputError(f"{name} is no scan of an image", got=scan.schema[:80], expected=SCAN_SCHEMA)
    if not (scan.path or scan.sha256) or not scan.time:
        raise InputError(
            f"{name} does not say which file was scanned", next_step="scan again with this version of Casemate"
        )
    target = Audited(
        kind=TargetKind.IMAGE,
        name=scan.image,
        stage=Stage.OBSERVED,
        findings=tuple(_verdicts(scan)),
        file=FileRef(path=scan.path, identity=scan.identity, sha256=scan.sha256),
    )
    return Audit(name, scan.host, scan.time, catalogue, (target,))


def _verdicts(scan: _Scan) -> list[Verdicts]:
    there = [item.rule for item in scan.findings if item.severity != _HARMLESS]
    complete = scan.by_name and not scan.not_scanned
    left = scan.not_scanned[0] if scan.not_scanned else "files were not read by name"
    verdicts = []
    for control, hits in (
        ("sec.passwords", [rule for rule in there if rule in PASSWORDS]),
        ("sec.keys", [rule for rule in there if rule not in _ACCOUNTS]),
    ):
        rules = ", ".join(sorted(set(hits))[:_SHOWN])
        if hits:
            found = Verdicts(control, Verdict.FAIL, evidence=f"image scan: {rules}", why=f"{len(hits)} found")
        elif complete:
            found = Verdicts(control, Verdict.PASS, evidence="image scan: none found, all of it looked at")
        else:
            found = Verdicts(control, Verdict.UNKNOWN, evidence="image scan", why=f"not all was looked at: {left}")
        verdicts.append(found)
    return verdicts
