"""What a control is, what a finding is, and the verdicts: types only.

A control is one entry of data. It names the facts it reads, what it expects of each, when it applies, whether a launch
stops on it, which attack steps it cuts, what it costs, how to satisfy it and where it comes from. One generic judge
(`controls/judge.py`) reads all of them.
"""

from __future__ import annotations

import datetime
import enum

import msgspec

from casemate.controls.expectations import Expectation
from casemate.facts.fact import Stage


class Severity(enum.StrEnum):
    """How bad it is when the control does not hold."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    INFO = "info"


class Gate(enum.StrEnum):
    """``launch``: fail or unknown stops a launch. ``report``: it is said aloud, and the launch goes on."""

    LAUNCH = "launch"
    REPORT = "report"


class Subject(enum.StrEnum):
    """What the control is about. Only a VM's own controls can stop its launch; a host policy may raise others.

    ``host`` includes the VMM of the host (libvirt); ``emulator`` is a binary; ``guest`` what runs inside a VM.
    """

    VM = "vm"
    HOST = "host"
    EMULATOR = "emulator"
    IMAGE = "image"
    GUEST = "guest"


class Verdict(enum.StrEnum):
    """Six verdicts; only ``pass`` is a pass."""

    PASS = "pass"  # noqa: S105  a verdict, no password
    FAIL = "fail"
    NOT_APPLICABLE = "not-applicable"
    UNKNOWN = "unknown"
    MANUAL = "manual"
    WAIVED = "waived"


class AttackStep(enum.StrEnum):
    """The steps that attack paths are made of; a control cuts some of them."""

    S1_USER_TO_GUEST_KERNEL = "s1"
    S2_GUEST_TO_EMULATOR = "s2"
    S3_GUEST_TO_HOST_KERNEL = "s3"
    S4_EMULATOR_TO_HOST = "s4"
    S5_EMULATOR_TO_OTHER_VM = "s5"
    S6_GUEST_TO_GUEST = "s6"
    S7_USER_TO_VMM = "s7"
    S8_IMAGE_TO_HOST = "s8"
    S9_THEFT = "s9"
    S10_HIDDEN_HYPERVISOR = "s10"


class Scenario(enum.StrEnum):
    """The lecture's scenarios: the VM itself, other VMs, the host, virtualisation on the fly (Blue Pill)."""

    VM = "V"
    OTHER_VMS = "O"
    HOST = "H"
    BLUE_PILL = "B"


class Check(msgspec.Struct, frozen=True):
    """One expectation on one fact. ``minus`` names a list fact whose elements are set aside first."""

    fact: str
    expect: Expectation
    minus: str = ""


class Condition(msgspec.Struct, frozen=True):
    """The control applies only while this holds; ``otherwise`` says why it does not apply."""

    fact: str
    expect: Expectation
    otherwise: str


class Cost(msgspec.Struct, frozen=True):
    """What the control takes away, in plain words."""

    performance: str = "none"
    features: str = "none"


class Remedies(msgspec.Struct, frozen=True):
    """How to satisfy it on the host, in a libvirt domain, in a specification of ours; empty where there is no way."""

    host: str = ""
    libvirt: str = ""
    spec: str = ""

    def text(self) -> str:
        """All ways, each with its place."""
        ways = (("spec", self.spec), ("host", self.host), ("libvirt", self.libvirt))
        return "; ".join(f"{place}: {way}" for place, way in ways if way)


class Source(msgspec.Struct, frozen=True):
    """Where the control comes from: a work, and the place in it."""

    work: str
    place: str


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """One control.

    ``checks`` must all hold. ``applies_when`` must all hold, or the verdict is not-applicable. ``needs_stage``: whether
    a declared value is enough or the live object must have been read. ``manual``: what a person has to look at, for a
    control that no fact can decide; then there are no checks. ``limits``: what a pass does not show.
    """

    id: str
    title: str
    question: str
    severity: Severity
    gate: Gate
    cuts: tuple[AttackStep, ...]
    scenarios: tuple[Scenario, ...]
    remedies: Remedies
    sources: tuple[Source, ...]
    checks: tuple[Check, ...] = ()
    subject: Subject = Subject.VM
    applies_when: tuple[Condition, ...] = ()
    needs_stage: Stage = Stage.OBSERVED
    cost: Cost = Cost()
    manual: str = ""
    limits: str = ""

    def __post_init__(self) -> None:
        if bool(self.checks) == bool(self.manual):
            raise RuntimeError(f"control {self.id}: needs either checks or a manual question")

    def facts_read(self) -> tuple[str, ...]:
        """Names of the facts that decide it (not those that decide whether it applies), each once."""
        names = [name for check in self.checks for name in (check.fact, check.minus) if name]
        return tuple(dict.fromkeys(names))


class AppliedWaiver(msgspec.Struct, frozen=True):
    """A waiver that the host's policy allowed and that has not expired; only `controls/policy.py` makes them."""

    control: str
    reason: str
    expires: datetime.date


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one control came to.

    ``evidence``: what was read, from where, which value. ``expected``: what would have passed. ``why``: the reason for
    the verdict. ``pending``: the plan declares what the control wants, and the live object has still to be read; only
    a judgement of a plan has it. ``underlying``: the verdict that a waiver covers.
    """

    control_id: str
    title: str
    severity: Severity
    gate: Gate
    stage: Stage
    verdict: Verdict
    evidence: str
    expected: str
    why: str
    remedy: str
    pending: bool = False
    underlying: Verdict | None = None
