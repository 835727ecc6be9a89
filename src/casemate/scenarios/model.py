"""What the risk analysis reasons about: positions of an attacker, goods, techniques, scenarios. Types only."""

from __future__ import annotations

import enum

import msgspec

from casemate.controls.model import AttackStep, Scenario
from casemate.scenarios.formula import Condition


class Node(enum.StrEnum):
    """Positions of an attacker, then the goods to protect."""

    NETWORK = "network"
    GUEST_USER = "guest-user"
    GUEST_ROOT = "guest-root"
    GUEST_KERNEL = "guest-kernel"
    EMULATOR = "emulator"
    HELPER = "helper"
    HOST_USER = "host-user"
    VMM_API = "vmm-api"
    HOST_ROOT = "host-root"
    IMAGE_PUBLISHER = "image-publisher"
    IMAGE_READER = "image-reader"
    CLOUD_OPERATOR = "cloud-operator"
    HIDDEN_HYPERVISOR = "hidden-hypervisor"
    VM_DATA = "vm-data"
    OTHER_VM_DATA = "other-vm-data"
    HOST = "host"
    SECRETS = "secrets"
    AVAILABILITY = "availability"
    EVIDENCE = "evidence"


GOODS: tuple[Node, ...] = (
    Node.VM_DATA,
    Node.OTHER_VM_DATA,
    Node.HOST,
    Node.SECRETS,
    Node.AVAILABILITY,
    Node.EVIDENCE,
)
POSITIONS: tuple[Node, ...] = tuple(node for node in Node if node not in GOODS)


class Nature(enum.StrEnum):
    """``weakness``: needs a condition that controls can take away. ``unknown-bug``: needs a bug that nobody knows yet;
    it stays whatever one does, unless the thing itself is not there. ``consequence``: whoever is at its source has
    it."""

    WEAKNESS = "weakness"
    UNKNOWN_BUG = "unknown-bug"
    CONSEQUENCE = "consequence"


class Status(enum.StrEnum):
    """Where a path stands (`scenarios/paths.py`), worst first. Of a technique: all but residual and contained."""

    OPEN = "open"
    UNKNOWN = "unknown"
    PAPER = "on-paper"
    RESIDUAL = "residual"
    CONTAINED = "contained"
    CLOSED = "closed"


class Technique(msgspec.Struct, frozen=True, kw_only=True):
    """One edge of the attack graph.

    ``sources``: positions that it starts from. ``closed_when``: when its precondition is gone. ``slows``: controls
    that raise the effort when all of them hold; they never close it. ``effort``: 1 (an available tool), 2 (a known
    recipe), 3 (skill and time), 4 (research). ``history``: components of the table of vulnerabilities whose past says
    how likely it is; only those that the machine really has count (`host_history`: whether or not it names devices).
    ``contained_by``: for an unknown bug, the controls that hold who has used it.
    """

    id: str
    title: str
    nature: Nature
    sources: tuple[Node, ...]
    target: Node
    closed_when: Condition
    steps: tuple[AttackStep, ...] = ()
    slows: tuple[str, ...] = ()
    effort: int = 2
    history: tuple[str, ...] = ()
    contained_by: tuple[str, ...] = ()
    references: tuple[str, ...] = ()


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario: from a start to goals, through at least one of ``via`` (any technique where it is empty).

    ``letter``: the lecture's scenario. ``story``: one sentence. ``title_fr``, ``story_fr``: the same in French.
    ``harms``: the goods whose value counts; the goals where it is empty. ``source``, ``objective``: EBIOS RM's risk
    source and its objective, English and French.
    """

    id: str
    letter: Scenario
    title: str
    title_fr: str
    story: str
    story_fr: str
    starts: tuple[Node, ...]
    goals: tuple[Node, ...]
    via: tuple[str, ...] = ()
    harms: tuple[Node, ...] = ()
    source: tuple[str, str] = ("", "")
    objective: tuple[str, str] = ("", "")


class Graph(msgspec.Struct, frozen=True):
    """Techniques and scenarios together; `scenarios/data.py` has Casemate's own."""

    techniques: tuple[Technique, ...]
    variants: tuple[Variant, ...]

    def __post_init__(self) -> None:
        for what, names in (
            ("technique", [technique.id for technique in self.techniques]),
            ("scenario", [variant.id for variant in self.variants]),
        ):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise RuntimeError(f"{what} there twice: {', '.join(repeated)}")
        known = {technique.id for technique in self.techniques}
        for variant in self.variants:
            if not set(variant.via) <= known:
                raise RuntimeError(f"scenario {variant.id}: no technique {', '.join(set(variant.via) - known)}")
