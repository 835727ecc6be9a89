"""A report in the order in which people read it: targets, then layers of the lecture, failures first; and its counts.

Counts are never merged into one number: what passed, failed, is unknown, waived or left to a person stays apart, and
"k of N verified live" counts only what was read from the live object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from casemate.controls.audit_model import Report, TargetReport
from casemate.controls.baseline import Change, Comparison, TargetKey, key_of
from casemate.controls.judge import verified_live
from casemate.controls.layers import Layer, layer_of
from casemate.controls.model import Control, Finding, Severity, Verdict

PENDING: Final = "pending"
"""The word for what a document declares as wanted and no live object has confirmed: unknown, but expected to pass."""
WORDS: Final = ("fail", "unknown", "manual", "waived", PENDING, "pass", "not-applicable")
"""How findings are counted and sorted; all verdicts, and pending apart from other unknowns."""
SEVERITIES: Final = tuple(Severity)
OTHER_LAYER: Final = "other"
_WORD_RANK: Final = {word: rank for rank, word in enumerate(WORDS)}
_SEVERITY_RANK: Final = {severity: rank for rank, severity in enumerate(SEVERITIES)}
_LAYER_RANK: Final = {layer.value: rank for rank, layer in enumerate(Layer)}


class LayerView(msgspec.Struct, frozen=True):
    """The findings of one layer, failures first, then by severity."""

    layer: str
    findings: tuple[Finding, ...]


class TargetView(msgspec.Struct, frozen=True):
    """One target as it is shown. ``counts``: by word, only those that occur. ``live`` of ``applicable`` were verified
    on the live object."""

    entry: TargetReport
    label: str
    counts: dict[str, int]
    live: int
    applicable: int
    layers: tuple[LayerView, ...]

    def failed(self) -> tuple[Finding, ...]:
        """What failed, worst first."""
        return worst_first(finding for finding in self.entry.findings if finding.verdict is Verdict.FAIL)


class Changes(msgspec.Struct, frozen=True):
    """What a baseline adds to a report: the old verdict of each finding, and what is no longer there."""

    since: str = ""
    before: dict[tuple[TargetKey, str], str] = {}
    gone: tuple[Change, ...] = ()
    new_targets: tuple[str, ...] = ()
    gone_targets: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def was(self, entry: TargetReport, finding: Finding) -> str:
        """The old verdict, ``new``, or nothing when there is no baseline."""
        return self.before.get((key_of(entry.target), finding.control_id), "")


NO_CHANGES: Final = Changes()


def changes_of(comparison: Comparison) -> Changes:
    """A comparison as the formats show it."""
    return Changes(
        since=comparison.since,
        before=comparison.before(),
        gone=comparison.gone(),
        new_targets=tuple(f"{target.kind} {target.name}" for target in comparison.new_targets),
        gone_targets=tuple(f"{target.kind} {target.name}" for target in comparison.gone_targets),
        warnings=comparison.warnings,
    )


def word_of(finding: Finding) -> str:
    """The verdict as it is counted and shown."""
    return PENDING if finding.pending else finding.verdict.value


def layer_name(control_id: str) -> str:
    """The layer of a control; ``other`` for an id that this version does not know (a report from another one)."""
    try:
        return layer_of(control_id).value
    except RuntimeError:
        return OTHER_LAYER


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Failures first, then by severity, layer and id."""
    return tuple(sorted(findings, key=_rank))


def _rank(finding: Finding) -> tuple[int, int, int, str]:
    layer = _LAYER_RANK.get(layer_name(finding.control_id), len(_LAYER_RANK))
    return _WORD_RANK[word_of(finding)], _SEVERITY_RANK[finding.severity], layer, finding.control_id


def counts_of(findings: Iterable[Finding]) -> dict[str, int]:
    """How many of each word, in the order of `WORDS`, zeros left out."""
    found = Counter(word_of(finding) for finding in findings)
    return {word: found[word] for word in WORDS if found[word]}


def severities_of(findings: Iterable[Finding]) -> dict[str, int]:
    """How many of each severity, worst first, zeros left out."""
    found = Counter(finding.severity for finding in findings)
    return {severity.value: found[severity] for severity in SEVERITIES if found[severity]}


def view_of(entry: TargetReport) -> TargetView:
    """One target in reading order."""
    by_layer: dict[str, list[Finding]] = {}
    for finding in worst_first(entry.findings):
        by_layer.setdefault(layer_name(finding.control_id), []).append(finding)
    order = sorted(by_layer, key=lambda name: _LAYER_RANK.get(name, len(_LAYER_RANK)))
    live, applicable = verified_live(entry.findings)
    return TargetView(
        entry=entry,
        label=label_of(entry),
        counts=counts_of(entry.findings),
        live=live,
        applicable=applicable,
        layers=tuple(LayerView(name, tuple(by_layer[name])) for name in order),
    )


def label_of(entry: TargetReport) -> str:
    """``vm web``, ``host rack7``, ``vm web on rack7``."""
    target = entry.target
    # A host is its own host: "host rack7 on rack7" says nothing more.
    place = f" on {target.host}" if target.host and target.host != target.name else ""
    kind = target.kind.value
    # A command line has no name: "command-line command line" says it twice.
    return f"{target.name if target.name.replace(' ', '-') == kind else f'{kind} {target.name}'}{place}"


def views(report: Report) -> Iterator[TargetView]:
    """The targets of a report in its order."""
    return (view_of(entry) for entry in report.targets)


def alike(entries: Sequence[TargetReport]) -> list[list[TargetReport]]:
    """Targets whose findings came to the same, together: twenty VMs of one making are read once.

    Same kind, same verdict and severity of every control; where one of them fails for another reason it stands alone.
    """
    groups: dict[object, list[TargetReport]] = {}
    for entry in entries:
        shape = tuple(
            (finding.control_id, word_of(finding), finding.severity, finding.why if _needs_reason(finding) else "")
            for finding in entry.findings
        )
        groups.setdefault((entry.target.kind, entry.stage, shape, entry.notes), []).append(entry)
    return list(groups.values())


def _needs_reason(finding: Finding) -> bool:
    return finding.verdict in (Verdict.FAIL, Verdict.WAIVED)


def controls_of(report: Report) -> dict[str, Control]:
    """What the catalogue says about the controls of a report, in reading order; unknown ids are left out."""
    from casemate.controls.catalogue.all import all_controls

    present = {finding.control_id for entry in report.targets for finding in entry.findings}
    found = [control for control in all_controls() if control.id in present]
    found.sort(key=lambda control: (_LAYER_RANK.get(layer_name(control.id), len(_LAYER_RANK)), control.id))
    return {control.id: control for control in found}
