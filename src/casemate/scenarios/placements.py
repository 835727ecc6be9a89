"""The lecture's comparison: the same services on separate machines, on one system, in one VM, in one VM each.

Virtualisation is not a security component: it isolates, and it adds hardware features, systems, networks and interfaces
that somebody has to patch and guard. For each placement two questions are put to the same attack graph, from a service
that was taken over:

- **isolation**: which paths lead to the data of *another* service?
- **exposure**: which paths lead to the host, which separate machines and a single system without VMs do not have below
  them?

The counts of things to patch and guard follow from the number of services alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

import msgspec

from casemate.controls.model import Scenario
from casemate.facts.cve_table import CveTable
from casemate.scenarios.formula import UNJUDGED, State
from casemate.scenarios.model import Graph, Node, Status, Variant
from casemate.scenarios.paths import Bits, Judged
from casemate.scenarios.weigh import Weigher

COMPARE_SCHEMA: Final = "casemate.risk-compare/1"
SHOWN_WAYS: Final = 4
"""Paths of one question that are written out."""


class Inventory(msgspec.Struct, frozen=True):
    """What there is to patch and guard."""

    machines: int
    kernels: int
    user_spaces: int
    emulators: int
    networks: int
    admin_interfaces: int


class Way(msgspec.Struct, frozen=True):
    """One path that is not closed, as ids of techniques."""

    techniques: tuple[str, ...]
    status: Status
    likelihood: int


class Tally(msgspec.Struct, frozen=True):
    """Paths by status, the likelihood of the easiest one that is not closed (0: none), and the worst ones."""

    counts: dict[str, int]
    likelihood: int
    worst: tuple[Way, ...]


class Placement(msgspec.Struct, frozen=True):
    """One column. ``isolation``: paths to another service's data; ``exposure``: paths to the host below, None where
    there is none. ``gained``, ``added``: in words."""

    id: str
    title: str
    inventory: Inventory
    isolation: Tally
    exposure: Tally | None
    gained: tuple[str, ...]
    added: tuple[str, ...]


class Comparison(msgspec.Struct, frozen=True):
    """The page. ``services``: their number. ``evidence``: whose controls were judged; ``audited``: when. ``assumed``:
    what-if statements in force."""

    services: int
    evidence: str
    audited: str
    assumed: tuple[str, ...]
    placements: tuple[Placement, ...]
    schema: str = COMPARE_SCHEMA


class _Kind(msgspec.Struct, frozen=True):
    id: str
    title: str
    inventory: Callable[[int], Inventory]
    isolation: Variant
    exposure: Variant | None
    gained: tuple[str, ...]
    added: tuple[str, ...]


def _question(identifier: str, start: Node, goal: Node, via: tuple[str, ...] = ()) -> Variant:
    return Variant(
        id=identifier,
        letter=Scenario.OTHER_VMS,
        title=identifier,
        title_fr=identifier,
        story="",
        story_fr="",
        starts=(start,),
        goals=(goal,),
        via=via,
    )


_INTO_A_SERVICE: Final = ("guest.known-bug", "guest.unknown-bug", "guest.default-password")
_KINDS: Final = (
    _Kind(
        "machines",
        "separate machines",
        # A network and a management controller for each machine, and the network that administers them.
        lambda n: Inventory(n, n, n, 0, n + 1, 2 * n),
        # From one machine to the next is from the network: the other service has to be attacked like the first.
        _question("machines", Node.NETWORK, Node.VM_DATA, _INTO_A_SERVICE),
        None,
        ("no kernel, processor or memory is shared", "a taken-over service is one more stranger on the network"),
        ("as many machines, controllers and cables as services",),
    ),
    _Kind(
        "one-system",
        "one operating system",
        lambda n: Inventory(1, 1, 1, 0, 1, 2),
        # Every service is a user of the one system; its kernel has all data.
        _question("one-system", Node.HOST_USER, Node.HOST_ROOT),
        None,
        ("users and file permissions between the services, and nothing else",),
        ("one local bug of the kernel gives every service away",),
    ),
    _Kind(
        "one-vm",
        "one VM",
        lambda n: Inventory(1, 2, 2, 1, 2, 4),
        _question("one-vm", Node.GUEST_USER, Node.GUEST_KERNEL),
        _question("one-vm-host", Node.GUEST_USER, Node.HOST),
        ("the host is behind the VM's walls",),
        ("nothing between the services: they share the guest's kernel", "a second system, an emulator and a VMM"),
    ),
    _Kind(
        "vm-each",
        "one VM each",
        lambda n: Inventory(1, n + 1, n + 1, n, n + 1, n + 3),
        _question("vm-each", Node.GUEST_USER, Node.OTHER_VM_DATA),
        _question("vm-each-host", Node.GUEST_USER, Node.HOST),
        ("a kernel of its own for each service", "the walls around each emulator"),
        (
            "side channels, merged pages and shared disks between VMs",
            "a system to patch for each service, and the host below",
            "a VMM, monitors and consoles to guard",
        ),
    ),
)


def compare(
    graph: Graph,
    states: Mapping[str, State],
    history: tuple[str, ...],
    table: CveTable,
    *,
    services: int,
    evidence: str,
    audited: str = "",
    assumed: tuple[str, ...] = (),
) -> Comparison:
    """The four placements, judged by the controls of one VM and its host.

    Args:
        services: how many, at least 2.
        evidence: whose controls these are, for the reader.
    """
    if services < 2:
        raise RuntimeError("comparing placements needs at least two services")
    questions = [question for kind in _KINDS for question in (kind.isolation, kind.exposure) if question]
    weigher = Weigher(Graph(graph.techniques, tuple(questions)), table)
    # What a service is to others, it is over a network: a VM without one is not the service that is placed here.
    served = {name: UNJUDGED if name.startswith("net.") and state.absent else state for name, state in states.items()}
    judged = weigher.judge(weigher.weigh(weigher.codes_of(served), history))
    paths = dict(weigher.paths.of)
    paths["one-system"] &= ~_with_vms(weigher)
    return Comparison(
        services=services,
        evidence=evidence,
        audited=audited,
        assumed=assumed,
        placements=tuple(
            Placement(
                id=kind.id,
                title=kind.title,
                inventory=kind.inventory(services),
                isolation=_tally(paths[kind.isolation.id], judged, weigher),
                exposure=_tally(paths[kind.exposure.id], judged, weigher) if kind.exposure else None,
                gained=kind.gained,
                added=kind.added,
            )
            for kind in _KINDS
        ),
    )


def _with_vms(weigher: Weigher) -> Bits:
    """Paths that need what only a host of VMs has: a VMM, an emulator, its helpers, the device of KVM."""
    paths = 0
    for technique, on in zip(weigher.graph.techniques, weigher.paths.on, strict=True):
        if technique.target in _OF_VMS or technique.id in _OF_KVM:
            paths |= on
    return paths


_OF_VMS: Final = (Node.VMM_API, Node.EMULATOR, Node.HELPER)
_OF_KVM: Final = ("kvm.device-node",)
_LEFT: Final = (Status.OPEN, Status.UNKNOWN, Status.PAPER, Status.RESIDUAL)


def _tally(paths: Bits, judged: Judged, weigher: Weigher) -> Tally:
    by_status = {status: paths & found for status, found in judged.by_status.items()}
    left = {status: by_status[status] for status in _LEFT}
    worst = islice(judged.worst_first(left), SHOWN_WAYS)
    return Tally(
        {status.value: found.bit_count() for status, found in by_status.items()},
        judged.likelihood(paths & judged.any_of(*_LEFT)),
        tuple(Way(weigher.paths.names[number], status, level) for number, status, level in worst),
    )
