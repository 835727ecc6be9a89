"""Hand-made reports for the tests of formats: every verdict, a waiver, a declared document, a fault, hostile text."""

from __future__ import annotations

from casemate.controls.audit_model import Report, Target, TargetKind, TargetReport
from casemate.controls.model import Finding, Gate, Severity, Verdict
from casemate.facts.fact import Stage

HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07 \x00\x08 ]]> <script>alert(1)</script> </title> '\" onload=x | `a` **b** [c](javascript:d)"
    " {0} @root #1 http://x.example www.x.example \u202eexe \ud800 \ufffe \x85\u2028 {{ 7*7 }} {% raw %}"
    " \\ \n# h\n--> $(id)"
)


def finding(control_id: str, verdict: Verdict = Verdict.FAIL, **more: object) -> Finding:
    """A finding with sensible texts."""
    values: dict[str, object] = {
        "control_id": control_id,
        "title": f"What {control_id} holds",
        "severity": Severity.HIGH,
        "gate": Gate.REPORT,
        "stage": Stage.OBSERVED,
        "verdict": verdict,
        "evidence": "proc.uid = 0, observed from /proc/812/status: Uid",
        "expected": "proc.uid: at least 1",
        "why": "proc.uid: 0" if verdict is not Verdict.PASS else "as expected",
        "remedy": "" if verdict in (Verdict.PASS, Verdict.NOT_APPLICABLE) else "host: do this\nthen that",
    }
    return Finding(**{**values, **more})  # type: ignore[arg-type]


def report(*targets: TargetReport, **more: object) -> Report:
    """A report around targets; without any, one that has everything."""
    values: dict[str, object] = {
        "tool_version": "0.1.0",
        "catalogue": "0123456789abcdef",
        "host": "rack7",
        "time": "2026-11-23T10:00:00Z",
        "profile": "multi-tenant",
        "targets": targets or (HOST, VM, TWIN, DOMAIN),
        "faults": () if targets else ("gone.xml: no such file",),
    }
    return Report(**{**values, **more})  # type: ignore[arg-type]


def target(kind: TargetKind, name: str, *findings: Finding, **more: str) -> TargetReport:
    """A target; ``origin`` and ``host`` as given."""
    stage = findings[0].stage if findings else Stage.OBSERVED
    return TargetReport(
        target=Target(kind, name, more.get("origin", "/"), more.get("host", "")), stage=stage, findings=findings
    )


HOST = TargetReport(
    target=Target(TargetKind.HOST, "rack7", "/"),
    stage=Stage.OBSERVED,
    findings=(
        finding("os.mac", severity=Severity.CRITICAL, evidence="host.lsm = (none)", why="host.lsm: (none)"),
        finding("hk.landlock", Verdict.PASS, severity=Severity.MEDIUM),
        finding("hk.core-sched", Verdict.NOT_APPLICABLE, why="no SMT here"),
        finding("kvm.dev-perm", Verdict.UNKNOWN, why="host.kvm-device is unknown: permission denied"),
        finding("cpu.ksm", Verdict.MANUAL, why="ask the owner"),
        finding(
            "os.userns",
            Verdict.WAIVED,
            severity=Severity.LOW,
            why="host.userns: no; waived until 2027-01-01: rootless is off here",
            underlying=Verdict.FAIL,
        ),
        finding("zz.from-another-version", severity=Severity.INFO),
    ),
    notes=("the waiver for dev.kvm expired on 2026-01-01 and does not count",),
)
VM = target(TargetKind.VM, "web", finding("proc.uid", Verdict.PASS), finding("proc.caps"), origin="/proc/812")
TWIN = target(TargetKind.VM, "db", finding("proc.uid", Verdict.PASS), finding("proc.caps"), origin="/proc/813")
DOMAIN = target(
    TargetKind.DOMAIN,
    "win",
    finding("proc.uid", Verdict.UNKNOWN, stage=Stage.DECLARED, pending=True, why="declared so"),
    finding("dev.no-usb", stage=Stage.DECLARED, severity=Severity.MEDIUM, why="dev.usb: qemu-xhci"),
    origin="/srv/my vm.xml",
)


def hostile(text: str) -> Report:
    """A report in which every text from outside is this one."""
    bad = finding("proc.caps", title=text, evidence=text, expected=text, why=text, remedy=text)
    strange = finding(text, Verdict.UNKNOWN, why=text)
    entry = TargetReport(
        target=Target(TargetKind.DOMAIN, text, f"/{text}", text),
        stage=Stage.OBSERVED,
        findings=(bad, strange),
        notes=(text,),
    )
    return report(entry, host=text, profile=text, faults=(text,), tool_version=text, catalogue=text)
