"""Does the running VM match its plan? Every declared fact is a promise; every promise is compared with the live value.

1. Promises are the facts that the plan declares (known, stage declared). No promises at all is our bug.
2. For each promise, in order of name, the observed fact is looked up.
3. Not observed, unknown, or only declared again: *unknown*. It is gated as strictly as the strictest control that reads
   this fact, and ``launch`` when no control does.
4. Of another kind or value: *fail*, always at gate ``launch``: what runs is not what was judged.
5. Lists are compared without regard to order: they name sets (capabilities, namespaces, mounts).
6. Nothing differs: one *pass* that says how many facts were compared.

Facts that the plan does not promise are judged by their own controls and not here. This control cannot be waived.
"""

from __future__ import annotations

from collections.abc import Sequence

from casemate.controls.expectations import Empty, show
from casemate.controls.model import (
    AttackStep,
    Check,
    Control,
    Finding,
    Gate,
    Remedies,
    Scenario,
    Severity,
    Source,
    Verdict,
)
from casemate.facts.fact import Facts, Known, Stage, Unknown, Value

DRIFT = Control(
    id="proc.drift",
    title="The running VM is the planned VM",
    question="Does the live emulator have exactly the arguments, identity, limits and devices that the plan declares?",
    severity=Severity.HIGH,
    gate=Gate.LAUNCH,
    checks=(Check("proc.drift", Empty()),),
    cuts=(AttackStep.S7_USER_TO_VMM, AttackStep.S2_GUEST_TO_EMULATOR),
    scenarios=(Scenario.VM, Scenario.HOST),
    remedies=Remedies(
        spec="none: the VM was stopped because something changed between plan and process; run it again and, "
        "if it repeats, report the named fact"
    ),
    sources=(Source("Casemate", "design: read the live process back before the guest's first instruction"),),
    limits="Compares what the read-back can see. A fact that the plan does not declare is not compared.",
)


def drift(declared: Facts, observed: Facts, *, controls: Sequence[Control]) -> tuple[Finding, ...]:
    """Compare what the plan declared with what was read from the live process.

    Args:
        controls: those of this launch; they say how serious it is that a promised fact could not be read.

    Returns:
        One pass, or one finding (fail or unknown) per fact that is not as declared; ``evidence`` names the fact.

    Raises:
        RuntimeError: the plan declares nothing.
    """
    # 1. Promises.
    promises = {
        name: fact
        for name, fact in sorted(declared.items())
        if isinstance(fact, Known) and fact.stage is Stage.DECLARED
    }
    if not promises:
        raise RuntimeError("the plan declares no facts: there is nothing to compare the process with")
    findings = []
    for name, promise in promises.items():
        # 2. Look up.
        live = observed.get(name)
        want = f"{name} = {show(promise.value)}, declared from {show(promise.source)}"
        if not isinstance(live, Known) or live.stage is not Stage.OBSERVED:
            # 3. Not observed.
            why = live.why if isinstance(live, Unknown) else "it was not read from the live process"
            gate = _gate_of(name, controls)
            findings.append(_finding(Verdict.UNKNOWN, gate, f"{name}: unknown", want, f"{name}: {show(why)}"))
        elif not _same(promise.value, live.value):
            # 4. Another value.
            evidence = f"{name} = {show(live.value)}, observed from {show(live.source)}"
            findings.append(_finding(Verdict.FAIL, Gate.LAUNCH, evidence, want, f"{name} is not as declared"))
    if findings:
        return tuple(findings)
    # 6. Nothing differs.
    count = len(promises)
    evidence = f"{count} declared facts compared with the live process"
    return (_finding(Verdict.PASS, DRIFT.gate, evidence, "each as declared", "all are as declared"),)


def _same(promised: Value, live: Value) -> bool:
    if type(promised) is not type(live):
        return False
    if isinstance(promised, tuple) and isinstance(live, tuple):
        return sorted(promised) == sorted(live)  # 5. Lists name sets.
    return promised == live


def _gate_of(name: str, controls: Sequence[Control]) -> Gate:
    gates = {control.gate for control in controls if name in control.facts_read()}
    return Gate.REPORT if gates == {Gate.REPORT} else Gate.LAUNCH


def _finding(verdict: Verdict, gate: Gate, evidence: str, expected: str, why: str) -> Finding:
    return Finding(
        control_id=DRIFT.id,
        title=DRIFT.title,
        severity=DRIFT.severity,
        gate=gate,
        stage=Stage.OBSERVED,
        verdict=verdict,
        evidence=evidence,
        expected=expected,
        why=why,
        remedy="" if verdict is Verdict.PASS else DRIFT.remedies.text(),
    )
