"""What a risk analysis says. Types only; `scenarios/risk.py` fills them, `report/risk_*.py` show them."""

from __future__ import annotations

import enum

import msgspec

from casemate.scenarios.model import Node, Status

RISK_SCHEMA = "casemate.risk/1"


class Level(enum.StrEnum):
    """Of a risk: gravity by likelihood."""

    LOW = "low"
    MODERATE = "moderate"
    HIGH = "high"
    CRITICAL = "critical"


def level_of(gravity: int, likelihood: int) -> Level:
    """The matrix. A product of 12 or 16 is critical, from 6 on high, from 3 on moderate (EBIOS RM leaves the
    thresholds to the owner; these are by product). Likelihood 0, nothing left open: low."""
    product = gravity * likelihood
    if product >= 12:
        return Level.CRITICAL
    if product >= 6:
        return Level.HIGH
    return Level.MODERATE if product >= 3 else Level.LOW


class TechniqueRisk(msgspec.Struct, frozen=True, kw_only=True):
    """One technique here. ``failing``, ``unknown``, ``on_paper``: the controls of its closing condition that do not
    hold, that nobody knows, that are only declared. ``history``: number and weight of the vulnerabilities counted."""

    id: str
    status: Status
    likelihood: int
    failing: tuple[str, ...]
    unknown: tuple[str, ...]
    on_paper: tuple[str, ...]
    passing: tuple[str, ...]
    slowed: bool
    history: int
    history_weight: int


class PathRisk(msgspec.Struct, frozen=True, kw_only=True):
    """One path. ``unknown_bugs``: how many bugs that nobody knows yet it needs. ``closed_by``: the technique on it that
    is best closed. ``settle``: of an unknown or on-paper path, the fewest controls whose observation would close it."""

    techniques: tuple[str, ...]
    status: Status
    likelihood: int
    unknown_bugs: int = 0
    closed_by: str = ""
    settle: tuple[str, ...] = ()


class ScenarioRisk(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario for one VM.

    ``counts``: paths by status. ``likelihood``: V1 to V4 by the easiest path that is not closed by observed facts; 0
    when there is none. ``likelihood_if_known``: the same, leaving out what is unknown or on paper: if all of that
    turned out well. ``after``: the likelihood when the plan is carried out. ``set_aside``: why it does not count
    (trusted position), ``accepted``: the owner's reason and date. ``paths``: the worst ones. ``complete``: whether all
    paths were searched.
    """

    id: str
    letter: str
    title: str
    status: Status
    counts: dict[str, int]
    gravity: int
    likelihood: int
    likelihood_if_known: int
    after: int
    level: Level
    level_after: Level
    paths: tuple[PathRisk, ...]
    complete: bool = True
    set_aside: str = ""
    accepted: str = ""


class Action(enum.StrEnum):
    """What to do about a control: change something, find out first, or read it from the live object."""

    FIX = "fix"
    OBSERVE = "observe"
    VERIFY = "verify"


class Fix(msgspec.Struct, frozen=True, kw_only=True):
    """One control of the plan, or worth doing. ``closes``: paths that it closes alone; ``of_plan``: the cheapest plan
    has it."""

    control: str
    action: Action
    cost: float
    closes: int
    of_plan: bool


class Residual(msgspec.Struct, frozen=True, kw_only=True):
    """An unknown bug that stays possible. ``holding`` and ``missing``: controls that contain who used it, and those
    that do not hold here. ``reaches``: goods that he reaches past them without a second unknown bug."""

    technique: str
    likelihood: int
    holding: tuple[str, ...]
    missing: tuple[str, ...]
    reaches: tuple[Node, ...]


class VmRisk(msgspec.Struct, frozen=True, kw_only=True):
    """The risk of one VM on its host.

    ``plan_cost``: in points. ``plan_exact``: whether no cheaper plan exists. ``remaining``: open paths that no control
    closes. ``evidence``: by control, the verdict and what was read; only where it was asked for.
    """

    name: str
    kind: str
    host: str
    counts: dict[str, int]
    scenarios: tuple[ScenarioRisk, ...]
    techniques: tuple[TechniqueRisk, ...]
    residuals: tuple[Residual, ...]
    fixes: tuple[Fix, ...]
    plan_cost: float
    plan_exact: bool
    remaining: int
    conflicts: tuple[str, ...]
    notes: tuple[str, ...] = ()
    evidence: dict[str, str] = {}


class RiskReport(msgspec.Struct, frozen=True, kw_only=True):
    """One analysis. ``time``: RFC 3339, UTC; ``audited``: of the oldest audit. ``catalogue``: digest of the controls
    that were judged. ``assumed``: what-if statements in force. ``context``: origin of the owner's statements."""

    schema: str = RISK_SCHEMA
    tool_version: str
    catalogue: str
    time: str
    audited: str
    context: str
    assumed: tuple[str, ...]
    vms: tuple[VmRisk, ...]
    notes: tuple[str, ...] = ()
