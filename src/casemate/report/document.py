"""The JSON of an audit, ``casemate.audit/1``: types, writing, reading back, and the JSON Schema made from the types.

JSONL has one self-contained document per target, ``casemate.audit-target/1``, written as each target is done, so that
an audit of thousands of captured hosts needs the memory of one.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec

from casemate.controls.audit_model import DiskRef, FileRef, Report, Target, TargetKind, TargetReport, Unfixed
from casemate.controls.judge import verified_live
from casemate.controls.model import Finding, Gate, Severity, Verdict
from casemate.errors import InputError
from casemate.facts.fact import Stage
from casemate.report.view import NO_CHANGES, Changes, counts_of, layer_name

AUDIT_SCHEMA: Final = "casemate.audit/1"
TARGET_SCHEMA: Final = "casemate.audit-target/1"


class FindingDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What one control came to on one target. ``pending``: declared as wanted, and no live object was read. ``before``:
    the verdict in the baseline, ``new``, or null without a baseline. ``underlying``: what a waiver covers."""

    control: str
    layer: str
    title: str
    verdict: Verdict
    severity: Severity
    gate: Gate
    stage: Stage
    pending: bool
    evidence: str
    expected: str
    why: str
    remedy: str
    underlying: Verdict | None
    before: str | None = None


class TargetDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One thing audited. ``counts``: findings by verdict, those that are pending apart from other unknowns.
    ``verified_live`` of ``applicable`` controls passed on what was read from the live object. ``history``: of a VM,
    the vulnerabilities of the table that would have reached its devices. ``file``: of an emulator or image, what it is;
    ``emulator``, ``disks``: of a VM, the files that it runs and uses, or null where that is not known."""

    kind: TargetKind
    name: str
    origin: str
    host: str
    stage: Stage
    counts: dict[str, int]
    verified_live: int
    applicable: int
    findings: tuple[FindingDocument, ...]
    notes: tuple[str, ...]
    history: tuple[str, ...] = ()
    undecided: tuple[str, ...] | None = None
    unfixed: Unfixed | None = None
    file: FileRef | None = None
    emulator: FileRef | None = None
    disks: tuple[DiskRef, ...] | None = None


class GoneDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A finding that only the baseline has."""

    kind: TargetKind
    name: str
    host: str
    control: str
    before: str


class BaselineDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What the findings were compared with. With it the document holds only findings that are new or changed."""

    since: str
    new_targets: tuple[str, ...]
    gone_targets: tuple[str, ...]
    gone: tuple[GoneDocument, ...]
    warnings: tuple[str, ...]


class AuditDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One audit. ``time``: RFC 3339, UTC. ``catalogue``: digest over all controls. ``faults``: targets that could not
    be audited."""

    schema: Literal["casemate.audit/1"] = AUDIT_SCHEMA
    tool_version: str
    catalogue: str
    host: str
    time: str
    profile: str
    targets: tuple[TargetDocument, ...]
    faults: tuple[str, ...]
    baseline: BaselineDocument | None = None


class TargetLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of JSONL: the head of the audit, and one target."""

    schema: Literal["casemate.audit-target/1"] = TARGET_SCHEMA
    tool_version: str
    catalogue: str
    host: str
    time: str
    profile: str
    target: TargetDocument | None
    faults: tuple[str, ...] = ()


def document_of(report: Report, changes: Changes = NO_CHANGES) -> AuditDocument:
    """The document of a clean report."""
    return AuditDocument(
        tool_version=report.tool_version,
        catalogue=report.catalogue,
        host=report.host,
        time=report.time,
        profile=report.profile,
        targets=tuple(_target_document(entry, changes) for entry in report.targets),
        faults=report.faults,
        baseline=_baseline_document(changes) if changes.since else None,
    )


def to_json(report: Report, changes: Changes = NO_CHANGES) -> str:
    """Indented JSON, ending in a newline; ASCII only, so that no terminal and no encoding can spoil it."""
    return _ascii(msgspec.json.format(msgspec.json.encode(document_of(report, changes)), indent=2)) + "\n"


def json_lines(report: Report, changes: Changes = NO_CHANGES) -> str:
    """A line for each target; one without a target for faults that belong to none."""
    head = {name: getattr(report, name) for name in ("tool_version", "catalogue", "host", "time", "profile")}
    rows = [TargetLine(**head, target=_target_document(entry, changes)) for entry in report.targets]
    if report.faults:
        rows.append(TargetLine(**head, target=None, faults=report.faults))
    return "".join(_ascii(msgspec.json.encode(row)) + "\n" for row in rows)


def from_json(data: bytes, source: str) -> Report:
    """Read a report that `to_json` wrote; for baselines.

    Raises:
        InputError: not JSON, another schema, or a document that does not hold what the schema says.
    """
    next_step = "casemate audit --json -o OLD.json writes one"
    try:
        head = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        schema = msgspec.json.decode(head["schema"]) if "schema" in head else None
        if schema != AUDIT_SCHEMA:
            raise InputError(
                f"{source}: not an audit's JSON", got=repr(schema), expected=AUDIT_SCHEMA, next_step=next_step
            )
        document = msgspec.json.decode(data, type=AuditDocument)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{source}: cannot be read as an audit's JSON", got=str(error), next_step=next_step) from None
    if document.baseline is not None:
        raise InputError(
            f"{source}: holds only what had changed since {document.baseline.since}",
            expected="a whole report",
            next_step="use a report that was made without --baseline",
        )
    return Report(
        tool_version=document.tool_version,
        catalogue=document.catalogue,
        host=document.host,
        time=document.time,
        profile=document.profile,
        targets=tuple(_target_of(entry) for entry in document.targets),
        faults=document.faults,
    )


def audit_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a report, as plain data."""
    (_,), components = msgspec.json.schema_components([AuditDocument], ref_template="#/$defs/{name}")
    definitions = {name: _plain_words(part) for name, part in sorted(components.items())}
    top = definitions.pop("AuditDocument")
    top["required"] = ["schema", *(name for name in top["required"] if name != "schema")]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:casemate:audit:{AUDIT_SCHEMA.rpartition('/')[2]}",
        **top,
        "title": f"Casemate audit report, {AUDIT_SCHEMA}",
        "$defs": definitions,
    }


def _ascii(data: bytes) -> str:
    """msgspec writes UTF-8; everything above ASCII becomes ``\\uXXXX``, which JSON has inside strings only."""
    text = data.decode("utf-8")
    if text.isascii():
        return text
    return re.sub(r"[^\x00-\x7f]", lambda match: _escape(match[0]), text)


def _escape(char: str) -> str:
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[index] << 8 | units[index + 1]:04x}" for index in range(0, len(units), 2))


def _plain_words(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain_words(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _plain_words(value) for key, value in node.items()}
    if isinstance(plain.get("description"), str):
        plain["description"] = " ".join(plain["description"].replace("``", "").split())
    return plain


def _target_document(entry: TargetReport, changes: Changes) -> TargetDocument:
    live, applicable = verified_live(entry.findings)
    target = entry.target
    return TargetDocument(
        kind=target.kind,
        name=target.name,
        origin=target.origin,
        host=target.host,
        stage=entry.stage,
        counts=counts_of(entry.findings),
        verified_live=live,
        applicable=applicable,
        findings=tuple(_finding_document(entry, finding, changes) for finding in entry.findings),
        notes=entry.notes,
        history=entry.history,
        undecided=entry.undecided,
        unfixed=entry.unfixed,
        file=entry.file,
        emulator=entry.emulator,
        disks=entry.disks,
    )


def _finding_document(entry: TargetReport, finding: Finding, changes: Changes) -> FindingDocument:
    return FindingDocument(
        control=finding.control_id,
        layer=layer_name(finding.control_id),
        title=finding.title,
        verdict=finding.verdict,
        severity=finding.severity,
        gate=finding.gate,
        stage=finding.stage,
        pending=finding.pending,
        evidence=finding.evidence,
        expected=finding.expected,
        why=finding.why,
        remedy=finding.remedy,
        underlying=finding.underlying,
        before=changes.was(entry, finding) or None,
    )


def _baseline_document(changes: Changes) -> BaselineDocument:
    gone = tuple(
        GoneDocument(
            kind=change.target.kind,
            name=change.target.name,
            host=change.target.host,
            control=change.finding.control_id,
            before=change.finding.verdict.value,
        )
        for change in changes.gone
    )
    return BaselineDocument(
        since=changes.since,
        new_targets=changes.new_targets,
        gone_targets=changes.gone_targets,
        gone=gone,
        warnings=changes.warnings,
    )


def _target_of(document: TargetDocument) -> TargetReport:
    findings = tuple(
        Finding(
            control_id=found.control,
            title=found.title,
            severity=found.severity,
            gate=found.gate,
            stage=found.stage,
            verdict=found.verdict,
            evidence=found.evidence,
            expected=found.expected,
            why=found.why,
            remedy=found.remedy,
            pending=found.pending,
            underlying=found.underlying,
        )
        for found in document.findings
    )
    target = Target(document.kind, document.name, document.origin, document.host)
    return TargetReport(
        target=target,
        stage=document.stage,
        findings=findings,
        notes=document.notes,
        history=document.history,
        undecided=document.undecided,
        unfixed=document.unfixed,
        file=document.file,
        emulator=document.emulator,
        disks=document.disks,
    )
