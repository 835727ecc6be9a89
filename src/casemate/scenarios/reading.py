"""Audits as risk reads them: the few fields of each finding that count, out of a report or out of its JSON.

A JSON document may come from anywhere: it is decoded into a closed shape, and refused as a whole when it is truncated,
of another schema or version of the catalogue, or reduced to what changed since a baseline.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from casemate.controls.audit_model import DiskRef, FileRef, Report, TargetKind, Unfixed
from casemate.errors import InputError
from casemate.facts.fact import Stage
from casemate.scenarios.verdicts import Verdicts

AUDIT_SCHEMA: Final = "casemate.audit/1"
TARGET_SCHEMA: Final = "casemate.audit-target/1"


class Audited(msgspec.Struct, frozen=True):
    """One target of an audit."""

    kind: TargetKind
    name: str
    stage: Stage
    findings: tuple[Verdicts, ...]
    host: str = ""
    history: tuple[str, ...] = ()
    undecided: tuple[str, ...] | None = None
    unfixed: Unfixed | None = None
    notes: tuple[str, ...] = ()
    file: FileRef | None = None
    emulator: FileRef | None = None
    disks: tuple[DiskRef, ...] | None = None


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
            undecided=entry.undecided,
            unfixed=entry.unfixed,
            notes=entry.notes,
            file=entry.file,
            emulator=entry.emulator,
            disks=entry.disks,
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
