"""Audits as risk reads them: the few fields of each finding that count, out of a report or out of its JSON.

A JSON document may come from anywhere: it is decoded into a closed shape, and refused as a whole when it is truncated,
of another schema or version of the catalogue, or reduced to what changed since a baseline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from casemate.controls.audit_model import Report, TargetKind
from casemate.controls.model import Verdict
from casemate.errors import InputError
from casemate.facts.fact import Stage
from casemate.scenarios.risk import Subject
from casemate.scenarios.verdicts import Verdicts, states_of

AUDIT_SCHEMA: Final = "casemate.audit/1"
TARGET_SCHEMA: Final = "casemate.audit-target/1"
_ABOUT_VMS: Final = frozenset(
    {TargetKind.VM, TargetKind.PROCESS, TargetKind.DOMAIN, TargetKind.COMMAND_LINE, TargetKind.VMM_CONFIG}
)
_OF_THE_HOST: Final = frozenset({TargetKind.HOST, TargetKind.EMULATOR})


class Audited(msgspec.Struct, frozen=True):
    """One target of an audit."""

    kind: TargetKind
    name: str
    stage: Stage
    findings: tuple[Verdicts, ...]
    host: str = ""
    history: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Audit(msgspec.Struct, frozen=True):
    """One audit of one host. ``name``: the file or other place that it came from."""

    name: str
    host: str
    time: str
    catalogue: str
    targets: tuple[Audited, ...]


class _Document(msgspec.Struct, frozen=True):
    schema: str
    catalogue: str
    host: str
    time: str
    targets: tuple[Audited, ...] = ()
    target: Audited | None = None
    baseline: msgspec.Raw = msgspec.Raw(b"null")


def audit_of(report: Report, name: str) -> Audit:
    """An audit made just now."""
    targets = tuple(
        Audited(
            kind=entry.target.kind,
            name=entry.target.name,
            stage=entry.stage,
            host=entry.target.host,
            history=entry.history,
            notes=entry.notes,
            findings=tuple(
                Verdicts(found.control_id, found.verdict, found.stage, found.pending, found.evidence, found.why)
                for found in entry.findings
            ),
        )
        for entry in report.targets
    )
    return Audit(name, report.host, report.time, report.catalogue, targets)


def parse_audit(data: bytes, name: str) -> Audit:
    """An audit written by ``casemate audit --json`` or ``--jsonl``.

    Raises:
        InputError: it is none, it is cut off, or it holds only what changed since a baseline.
    """
    documents = [_decode(line, name) for line in _documents(data)]
    if not documents:
        raise InputError(f"{name} is empty", expected="a report of casemate audit --json")
    first = documents[0]
    if any(item.catalogue != first.catalogue or item.host != first.host for item in documents):
        raise InputError(f"{name} mixes audits", expected="the lines of one audit of one host")
    if any(bytes(item.baseline) != b"null" for item in documents):
        raise InputError(
            f"{name} holds only what changed since a baseline",
            expected="all findings",
            next_step="casemate audit --json without --baseline",
        )
    targets = [target for item in documents for target in (*item.targets, *((item.target,) if item.target else ()))]
    return Audit(name, first.host, first.time, first.catalogue, tuple(targets))


def _documents(data: bytes) -> Iterator[bytes]:
    """The whole as one document, or its lines when it is JSONL."""
    head = data.lstrip()[:256]
    if TARGET_SCHEMA.encode() in head:
        yield from (line for line in data.splitlines() if line.strip())
    elif head:
        yield data


def _decode(data: bytes, name: str) -> _Document:
    try:
        document = msgspec.json.decode(data, type=_Document)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(
            f"{name} is no audit report", got=str(error)[:200], expected="what casemate audit --json writes, whole"
        ) from None
    if document.schema not in (AUDIT_SCHEMA, TARGET_SCHEMA):
        raise InputError(
            f"{name} is no audit report", got=f"schema {document.schema[:80]!r}", expected=f"schema {AUDIT_SCHEMA}"
        )
    return document


def is_audit(head: bytes) -> bool:
    """Whether a file that begins so is meant to be a report of an audit."""
    return head.lstrip()[:1] == b"{" and (AUDIT_SCHEMA.encode() in head or TARGET_SCHEMA.encode() in head)


def subjects_of(audit: Audit, *, with_evidence: bool = False) -> Iterator[Subject]:
    """Every VM of an audit with its host; the host alone, as one subject, when no VM was audited.

    Findings about the host hold for all its VMs. Several emulators on one host: a control stands as in the worst of
    them, since an audit does not say which VM runs which.
    """
    shared = [finding for target in audit.targets if target.kind in _OF_THE_HOST for finding in _staged(target)]
    states = states_of(shared)
    seen = _evidence(shared) if with_evidence else {}
    vms = [target for target in audit.targets if target.kind in _ABOUT_VMS]
    for target in vms:
        yield Subject(
            name=target.name,
            kind=target.kind.value,
            host=target.host or audit.host,
            states=states | states_of(_staged(target)),
            history=target.history,
            notes=target.notes,
            evidence=seen | _evidence(target.findings) if with_evidence else {},
        )
    if not vms and shared:
        yield Subject(
            name=audit.host,
            kind=TargetKind.HOST.value,
            host=audit.host,
            states=states,
            notes=("no VM was audited: what depends on one is unknown",),
            evidence=seen,
        )


def _evidence(findings: Iterable[Verdicts]) -> dict[str, str]:
    """By control: the verdict, the reason where it is no pass, and what was read."""
    texts: dict[str, str] = {}
    for found in findings:
        why = "" if found.verdict is Verdict.PASS else f" ({found.why})"
        text = f"{found.verdict.value}{why}: {found.evidence}"
        texts[found.control] = f"{texts[found.control]}; {text}" if found.control in texts else text
    return texts


def _staged(target: Audited) -> Iterator[Verdicts]:
    """Findings of a declared document are declared, whatever each says of itself."""
    for finding in target.findings:
        if target.stage is Stage.DECLARED and finding.stage is not Stage.DECLARED:
            yield msgspec.structs.replace(finding, stage=Stage.DECLARED)
        else:
            yield finding
