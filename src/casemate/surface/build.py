"""A described machine becomes its attack surface: rows sorted by risk, and what history would have reached it. Pure.

1. One row per type of device, one per network back end and device in the host's kernel, one for KVM itself.
2. Rows in order of what the history of their kind weighs, the host kernel's share first.
3. History: the table's vulnerabilities that would have reached this machine, and those that would reach the machine
   that hardening really makes of it. Where hardening cannot make one, the second number is missing, with the reason.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from casemate.facts.cve_table import Cve, CveTable, marks_of
from casemate.facts.fact import Facts, Known, Unknown
from casemate.surface.kinds_data import kind_of
from casemate.surface.paths_data import DEVICES, devices_in

SURFACE_SCHEMA: Final = "casemate.surface/1"
_OBJECTS: Final = (
    "memory-backend-",
    "rng-",
    "iothread",
    "secret",
    "tls-creds-",
    "System",
    "cryptodev-backend-",
    "iommufd",
)


class Handler(enum.StrEnum):
    """Where the code runs that answers the guest."""

    KERNEL = "host kernel"
    HELPER = "helper process"
    EMULATOR = "emulator process"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of part. ``count``: how many of it. ``bus``: where it sits, by the live machine's own names when it was
    asked. ``weight``: what the history of its kind weighs; ``cves``: ids of that history; ``go``, ``cost``: what could
    be done without it and what is lost then."""

    type: str
    kind: str
    bus: str
    handler: Handler
    weight: int
    cves: tuple[str, ...]
    count: int = 1
    go: str = ""
    cost: str = ""


class Hardened(msgspec.Struct, frozen=True, kw_only=True):
    """What hardening makes of the machine. ``facts`` of the result; None when there is none, and ``why`` says why.
    ``how``: what was done."""

    facts: Facts | None = None
    how: str = ""
    why: str = ""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """One machine that was looked at.

    ``stage``: ``observed`` for a live one. ``counts``, ``buses``: by type, as far as known. ``helpers``: types whose
    other half is a helper process (swtpm, a vhost-user daemon). ``exits``: of a running VM of ours under KVM, by reason
    since its start; a text says why they are not known, None that nobody asked.
    """

    name: str
    source: str
    stage: str
    facts: Facts
    counts: Mapping[str, int] = {}
    buses: Mapping[str, str] = {}
    helpers: frozenset[str] = frozenset()
    hardened: Hardened = Hardened(why="hardening was not asked")
    notes: tuple[str, ...] = ()
    exits: Mapping[str, int] | str | None = None


def surface_document(look: Look, table: CveTable) -> dict[str, Any]:
    """The document of ``casemate surface --json``."""
    facts = look.facts
    # What could not be read whole is listed as far as it was; the history is then unknown.
    types = _texts(facts, "dev.types") or tuple(sorted(look.counts))
    kvm = _text(facts, "dev.accel") == "kvm"
    marks = marks_of(facts)
    # 1. Rows.
    rows = [_row(kind, look, kvm, table) for kind in types if not kind.startswith(_OBJECTS)]
    rows += [
        _mark_row(mark, facts, table)
        for mark in marks
        if mark.startswith(("netdev:", "vhost:")) and mark != "netdev:none"
    ]
    if kvm:
        rows.append(_hypercalls(table))
    # 2. Order.
    rows.sort(key=lambda row: (-row.weight, list(Handler).index(row.handler), row.type))
    return {
        "schema": SURFACE_SCHEMA,
        "name": look.name,
        "source": look.source,
        "stage": look.stage,
        "machine": _text(facts, "dev.machine"),
        "accel": _text(facts, "dev.accel"),
        "irqchip": _text(facts, "kvm.irqchip"),
        "rows": msgspec.to_builtins(rows),
        "history": _history(look, table),  # 3.
        "paths": list(devices_in(types, marks)),
        "exits": None if look.exits is None or isinstance(look.exits, str) else dict(look.exits),
        "measured": None,
        "notes": [*look.notes, *_incomplete(look)],
        "unknown": sorted(
            f"{key}: {why}"
            for key, why in (*_unknown(facts), ("exits", look.exits if isinstance(look.exits, str) else ""))
            if why
        ),
    }


def _unknown(facts: Facts) -> list[tuple[str, str]]:
    """Facts about devices that nobody knows, and why."""
    wanted = ((key, fact) for key, fact in facts.items() if key.startswith(("dev.", "kvm.")))
    return [(key, fact.why) for key, fact in wanted if isinstance(fact, Unknown)]


def measuring_document() -> dict[str, Any]:
    """A document without a machine, for a measurement alone: the paths of every device that is measured."""
    return {
        "schema": SURFACE_SCHEMA,
        "name": "",
        "source": "",
        "stage": "",
        "machine": "",
        "accel": "tcg",
        "irqchip": "",
        "rows": [],
        "history": None,
        "paths": [device for device in DEVICES if device != "vhost-net"],
        "exits": None,
        "measured": None,
        "notes": [],
        "unknown": [],
    }


def _history(look: Look, table: CveTable) -> dict[str, Any]:
    reached = _reaching(table, marks_of(look.facts), look.facts) if _types_known(look.facts) else None
    after = look.hardened
    left = None
    if after.facts is not None and reached is not None and _types_known(after.facts):
        left = _reaching(table, marks_of(after.facts), after.facts)
    why = after.why
    if left is None and not why:
        why = "the devices of this machine are not known" if reached is None else "its hardened form is not understood"
    return {
        "table_date": table.date,
        "reached": None if reached is None else [_cve(cve) for cve in reached],
        "hardened": None if left is None else [_cve(cve) for cve in left],
        "hardened_how": _how(look) if left is not None else "",
        "hardened_why": "" if left is not None else why,
    }


def _incomplete(look: Look) -> tuple[str, ...]:
    fact = look.facts.get("dev.types")
    if _is_foreign(look.facts):
        vmm = _text(look.facts, "vm.vmm")
        return (f"the table knows QEMU's history and the kernel's: {vmm}'s own code is not in it",)
    return (f"the list of devices is not complete: {fact.why}",) if isinstance(fact, Unknown) else ()


def _how(look: Look) -> str:
    after = look.hardened
    assert after.facts is not None
    if _text(after.facts, "dev.accel") == "kvm" and _text(look.facts, "dev.accel") == "tcg":
        return f"{after.how}; under KVM, whose history counts from then on: TCG has none because nobody trusts it"
    return after.how


def _reaching(table: CveTable, marks: Iterable[str], facts: Facts) -> tuple[Cve, ...]:
    """As the table says; the history of QEMU's code is none of another VMM's."""
    found = table.reaching(marks)
    return tuple(cve for cve in found if cve.side != "emulator") if _is_foreign(facts) else found


def _is_foreign(facts: Facts) -> bool:
    return _text(facts, "vm.vmm") not in ("", "qemu")


def _weight(table: CveTable, mark: str, facts: Facts) -> int:
    if not _is_foreign(facts):
        return table.device_weight(mark)
    return sum(cve.weight for cve in _reaching(table, (mark,), facts)) or table.weights.unlisted_device


def _types_known(facts: Facts) -> bool:
    return isinstance(facts.get("dev.types"), Known)


def _row(qom_type: str, look: Look, kvm: bool, table: CveTable) -> Row:
    kind = kind_of(qom_type)
    return Row(
        type=qom_type,
        kind=kind.name,
        bus=look.buses.get(qom_type) or kind.bus,
        handler=_handler(qom_type, look, kvm),
        weight=_weight(table, qom_type, look.facts),
        cves=tuple(cve.id for cve in _reaching(table, (qom_type,), look.facts)),
        count=look.counts.get(qom_type, 1),
        go=kind.go,
        cost=kind.cost,
    )


def _handler(qom_type: str, look: Look, kvm: bool) -> Handler:
    if qom_type.startswith("vhost-user-") or qom_type in look.helpers:
        return Handler.HELPER
    if qom_type.startswith(("vhost-", "vfio-", "kvm-", "kvmclock")):
        return Handler.KERNEL
    if kvm and qom_type == "apic" and _text(look.facts, "kvm.irqchip") in ("on", "split"):
        return Handler.KERNEL
    return Handler.EMULATOR


def _mark_row(mark: str, facts: Facts, table: CveTable) -> Row:
    what, _, name = mark.partition(":")
    back = what == "netdev"
    handler = Handler.KERNEL if not back or name in ("tap", "bridge", "af-xdp", "netmap") else Handler.HELPER
    if name in ("user", "slirp"):
        handler = Handler.EMULATOR
    return Row(
        type=mark,
        kind="network back end" if back else "device in the host kernel",
        bus="host",
        handler=handler,
        weight=_weight(table, mark, facts),
        cves=tuple(cve.id for cve in _reaching(table, (mark,), facts)),
        go="replace by passt" if name in ("user", "slirp") else "" if back else "vhost=off",
        cost="" if back else "throughput",
    )


def _hypercalls(table: CveTable) -> Row:
    return Row(
        type="accel:kvm",
        kind="hypercalls and page tables",
        bus="processor",
        handler=Handler.KERNEL,
        weight=table.device_weight("accel:kvm"),
        cves=tuple(cve.id for cve in table.reaching(("accel:kvm",))),
    )


def _cve(cve: Cve) -> dict[str, Any]:
    return {"id": cve.id, "component": cve.component, "side": cve.side, "impact": cve.impact, "weight": cve.weight}


def _text(facts: Facts, name: str) -> str:
    fact = facts.get(name)
    return fact.value if isinstance(fact, Known) and isinstance(fact.value, str) else ""


def _texts(facts: Facts, name: str) -> tuple[str, ...]:
    fact = facts.get(name)
    return fact.value if isinstance(fact, Known) and isinstance(fact.value, tuple) else ()
