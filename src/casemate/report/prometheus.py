"""The text format of Prometheus, for the textfile collector of node_exporter: counts, and a series for each control
that failed or is unknown, so that an alert can name it."""

from __future__ import annotations

from collections.abc import Iterator

from casemate.controls.audit_model import Report, TargetReport
from casemate.controls.model import Severity, Verdict
from casemate.report.view import WORDS, views, word_of

_LOUD = (Verdict.FAIL, Verdict.UNKNOWN, Verdict.MANUAL)


def to_prometheus(report: Report) -> str:
    """Every metric with its help; one family after the other, as the format wants it."""
    return "".join(f"{line}\n" for line in _lines(report))


def _lines(report: Report) -> Iterator[str]:
    shown = list(views(report))
    yield from _head("casemate_audit_info", "What made this report.")
    head = {"version": report.tool_version, "catalogue": report.catalogue, "profile": report.profile}
    yield _sample("casemate_audit_info", {"host": report.host, **head}, 1)
    yield from _head("casemate_audit_time_seconds", "When the audit was made, seconds since 1970.")
    yield _sample("casemate_audit_time_seconds", {"host": report.host}, _seconds(report.time))
    yield from _head("casemate_audit_faults", "Targets that could not be audited.")
    yield _sample("casemate_audit_faults", {"host": report.host}, len(report.faults))
    yield from _head("casemate_audit_controls", "Controls by what they came to; pending: declared, not read live.")
    for view in shown:
        for word in WORDS:
            yield _sample(
                "casemate_audit_controls", {**_labels(view.entry, report), "verdict": word}, view.counts.get(word, 0)
            )
    yield from _head("casemate_audit_failed", "Failed controls by severity.")
    for view in shown:
        failed = [finding.severity for finding in view.entry.findings if finding.verdict is Verdict.FAIL]
        for severity in Severity:
            labels = {**_labels(view.entry, report), "severity": severity.value}
            yield _sample("casemate_audit_failed", labels, failed.count(severity))
    yield from _head("casemate_audit_verified_live", "Controls that passed on what was read from the live object.")
    for view in shown:
        yield _sample("casemate_audit_verified_live", _labels(view.entry, report), view.live)
    yield from _head("casemate_audit_applicable", "Controls that apply to the target.")
    for view in shown:
        yield _sample("casemate_audit_applicable", _labels(view.entry, report), view.applicable)
    yield from _head("casemate_audit_finding", "1 for each control that failed, is unknown, or wants a person.")
    for entry in report.targets:
        for finding in entry.findings:
            if finding.verdict in _LOUD and not finding.pending:
                labels = {
                    **_labels(entry, report),
                    "control": finding.control_id,
                    "severity": finding.severity.value,
                    "verdict": word_of(finding),
                }
                yield _sample("casemate_audit_finding", labels, 1)


def _head(name: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} gauge"


def _labels(entry: TargetReport, report: Report) -> dict[str, str]:
    target = entry.target
    return {"host": target.host or report.host, "kind": target.kind.value, "target": target.name}


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value:g}" if isinstance(value, int) else f"{name}{{{inside}}} {value:.0f}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _seconds(time: str) -> float:
    import datetime

    try:
        return datetime.datetime.fromisoformat(time).timestamp()
    except ValueError:
        return 0.0
