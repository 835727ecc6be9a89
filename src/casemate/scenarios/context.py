"""What the owner says: how bad each loss would be, whom he trusts, what fixes cost him, what he accepts. A TOML file.

format = 1
name = "web farm"

[goods]                     # gravity, 1 (negligible) to 4 (critical)
vm-data = 3

[goods-of."shop-*"]         # the same for VMs of these names
vm-data = 4

[trust]                     # positions whose holders do not attack; their scenarios are set aside, and said so
cloud-operator = "we run the machines ourselves"

[costs]                     # in place of the catalogue's; 0 and up, any unit
"cpu.smt" = 8

[[accept]]
scenario = "side-channel"
reason = "all VMs belong to one owner"
until = 2027-06-30
"""

from __future__ import annotations

import datetime
import fnmatch
from collections.abc import Iterable
from typing import Final

import msgspec

from casemate.errors import Fault, InputError, SpecError
from casemate.scenarios.model import GOODS, POSITIONS, Graph, Node, Variant

FORMAT: Final = 1
MAX_COST: Final = 1_000_000.0
DEFAULT_GRAVITY: Final = {
    Node.VM_DATA: 3,
    Node.OTHER_VM_DATA: 3,
    Node.HOST: 4,
    Node.SECRETS: 3,
    Node.AVAILABILITY: 2,
    Node.EVIDENCE: 2,
}
"""When the owner says nothing: the host holds all VMs, so its loss is the worst."""
NO_FILE: Final = "defaults"
"""The origin of a context that the owner said nothing in."""
DEFAULT_TRUST: Final = {
    Node.CLOUD_OPERATOR: "the owner of the VMs runs the host",
}


class Acceptance(msgspec.Struct, frozen=True):
    """A scenario whose risk the owner bears."""

    scenario: str
    reason: str
    until: datetime.date


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """The owner's statements, checked. ``origin``: the file, or empty for the defaults. ``stated``: goods whose gravity
    the file says; ``states_trust``: whether it says who is trusted. The rest are defaults."""

    name: str = ""
    goods: dict[Node, int] = msgspec.field(default_factory=lambda: dict(DEFAULT_GRAVITY))
    goods_of: tuple[tuple[str, dict[Node, int]], ...] = ()
    trust: dict[Node, str] = msgspec.field(default_factory=lambda: dict(DEFAULT_TRUST))
    costs: dict[str, float] = {}
    accept: tuple[Acceptance, ...] = ()
    origin: str = ""
    stated: frozenset[Node] = frozenset()
    states_trust: bool = False

    def gravity(self, vm: str, goods: tuple[Node, ...]) -> int:
        """1 to 4: the worst of what these goods are worth to the owner, for the VM of this name."""
        values = self._values(vm)
        return max(values[good] for good in goods)

    def gravities(self, vm: str, variants: Iterable[Variant]) -> tuple[int, ...]:
        """`gravity` of each scenario."""
        values = self._values(vm)
        return tuple([max([values[good] for good in item.harms or item.goals]) for item in variants])

    def _values(self, vm: str) -> dict[Node, int]:
        values = dict(self.goods)
        for pattern, own in self.goods_of:
            if fnmatch.fnmatchcase(vm, pattern):
                values.update(own)
        return values


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    format: int
    name: str = ""
    goods: dict[str, int] = {}
    goods_of: dict[str, dict[str, int]] = {}
    trust: dict[str, str] | None = None
    costs: dict[str, float] = {}
    accept: tuple[Acceptance, ...] = ()


def parse_context(text: str, name: str, graph: Graph, controls: frozenset[str]) -> Context:
    """The context of a file.

    Args:
        controls: ids of the catalogue; a cost may name no other.

    Raises:
        InputError: it is no TOML of this form.
        SpecError: goods, positions, scenarios or controls that do not exist, gravities out of 1 to 4, negative costs,
            acceptances without a reason: all faults together.
    """
    try:
        document = msgspec.toml.decode(text, type=_File)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(
            f"{name} is no risk context", got=str(error)[:200], expected="TOML as `casemate risk init` writes it"
        ) from None
    faults: list[Fault] = []
    if document.format != FORMAT:
        faults.append(Fault("format", "risk.format", f"{document.format}, and this version reads {FORMAT}"))
    goods = DEFAULT_GRAVITY | _gravities(document.goods, "goods", faults)
    goods_of = tuple(
        (pattern, _gravities(values, f"goods-of.{pattern}", faults)) for pattern, values in document.goods_of.items()
    )
    trust = DEFAULT_TRUST if document.trust is None else _trust(document.trust, faults)
    _check_costs(document.costs, controls, faults)
    _check_acceptances(document.accept, graph, faults)
    if faults:
        raise SpecError(name, tuple(faults))
    return Context(
        name=document.name,
        goods=goods,
        goods_of=goods_of,
        trust=dict(trust),
        costs=dict(document.costs),
        accept=document.accept,
        origin=name,
        stated=frozenset(node for node in GOODS if node.value in document.goods),
        states_trust=document.trust is not None,
    )


def _gravities(values: dict[str, int], where: str, faults: list[Fault]) -> dict[Node, int]:
    known = {node.value: node for node in GOODS}
    found = {}
    for good, gravity in values.items():
        if good not in known:
            faults.append(Fault(f"{where}.{good}", "risk.good", f"no such good; there are {', '.join(known)}"))
        elif not 1 <= gravity <= 4:
            said = f"{gravity}, and a gravity is 1 (negligible) to 4 (critical)"
            faults.append(Fault(f"{where}.{good}", "risk.gravity", said))
        else:
            found[known[good]] = gravity
    return found


def _trust(values: dict[str, str], faults: list[Fault]) -> dict[Node, str]:
    positions = {node.value: node for node in POSITIONS}
    found = {}
    for position, reason in values.items():
        if position not in positions:
            where = f"trust.{position}"
            faults.append(Fault(where, "risk.position", f"no such position; there are {', '.join(positions)}"))
        elif not reason.strip():
            faults.append(Fault(f"trust.{position}", "risk.reason", "a reason is missing"))
        else:
            found[positions[position]] = reason
    return found


def _check_costs(costs: dict[str, float], controls: frozenset[str], faults: list[Fault]) -> None:
    for control, cost in costs.items():
        if control not in controls:
            faults.append(Fault(f"costs.{control}", "risk.control", "no such control (casemate controls lists them)"))
        if not 0 <= cost <= MAX_COST:
            faults.append(Fault(f"costs.{control}", "risk.cost", f"{cost}, and a cost is 0 to {MAX_COST:.0f}"))


def _check_acceptances(accept: tuple[Acceptance, ...], graph: Graph, faults: list[Fault]) -> None:
    scenarios = {variant.id for variant in graph.variants}
    for index, item in enumerate(accept):
        if item.scenario not in scenarios:
            said = f"no scenario {item.scenario!r}; there are {', '.join(sorted(scenarios))}"
            faults.append(Fault(f"accept[{index}].scenario", "risk.scenario", said))
        if not item.reason.strip():
            faults.append(Fault(f"accept[{index}].reason", "risk.reason", "a reason is missing"))
