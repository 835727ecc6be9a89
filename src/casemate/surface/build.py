"""A described machine becomes its attack surface: rows sorted by risk, and what history would have reached it."""

from __future__ import annotations

import enum
from typing import Any, Final

import msgspec

from casemate.facts.cve_table import CveTable, marks_of
from casemate.facts.fact import Facts, Known
from casemate.surface.kinds_data import kind_of

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
    """One part. ``weight``: what the history of its kind weighs; ``cves``: ids of that history; ``go``, ``cost``: what
    could be done without it and what is lost then."""

    type: str
    kind: str
    bus: str
    handler: Handler
    weight: int
    cves: tuple[str, ...]
    go: str = ""
    cost: str = ""


def surface_document(facts: Facts, name: str, source: str, stage: str, table: CveTable) -> dict[str, Any]:
    """The document of ``casemate surface --json``.

    Args:
        facts: as the readers of machines give them; ``dev.types`` is what is listed.
    """
    types = _texts(facts, "dev.types")
    irqchip = _text(facts, "kvm.irqchip")
    kvm = _text(facts, "dev.accel") == "kvm"
    marks = [mark for mark in marks_of(facts) if mark not in types]
    rows = [_row(kind, kvm, irqchip, table) for kind in types if not kind.startswith(_OBJECTS)]
    rows += [
        _mark_row(mark, table) for mark in marks if mark.startswith(("netdev:", "vhost:")) and mark != "netdev:none"
    ]
    if kvm:
        rows.append(_hypercalls(table))
    rows.sort(key=lambda row: (-row.weight, list(Handler).index(row.handler), row.type))
    reached = table.reaching((*types, *marks))
    needed = [row.type for row in rows if not row.go]
    left = table.reaching((*needed, *(mark for mark in marks if not mark.startswith(("vhost:", "cpu:nested")))))
    return {
        "schema": SURFACE_SCHEMA,
        "name": name,
        "source": source,
        "stage": stage,
        "machine": _text(facts, "dev.machine"),
        "accel": _text(facts, "dev.accel"),
        "irqchip": irqchip,
        "rows": msgspec.to_builtins(rows),
        "history": {
            "table_date": table.date,
            "reached": [_cve(cve) for cve in reached],
            "after_removal": [cve.id for cve in left],
        },
        "unknown": sorted(
            f"{key}: {fact.why}"
            for key, fact in facts.items()
            if key.startswith(("dev.", "kvm.")) and not isinstance(fact, Known)
        ),
    }


def _row(qom_type: str, kvm: bool, irqchip: str, table: CveTable) -> Row:
    kind = kind_of(qom_type)
    return Row(
        type=qom_type,
        kind=kind.name,
        bus=kind.bus,
        handler=_handler(qom_type, kvm, irqchip),
        weight=table.device_weight(qom_type),
        cves=tuple(cve.id for cve in table.reaching((qom_type,))),
        go=kind.go,
        cost=kind.cost,
    )


def _handler(qom_type: str, kvm: bool, irqchip: str) -> Handler:
    if qom_type.startswith("vhost-user-"):
        return Handler.HELPER
    if qom_type.startswith(("vhost-", "vfio-", "kvm-", "kvmclock")):
        return Handler.KERNEL
    if kvm and qom_type == "apic" and irqchip in ("on", "split"):
        return Handler.KERNEL
    return Handler.EMULATOR


def _mark_row(mark: str, table: CveTable) -> Row:
    what, _, name = mark.partition(":")
    back = what == "netdev"
    handler = Handler.KERNEL if not back or name == "tap" else Handler.HELPER
    if name in ("user", "slirp"):
        handler = Handler.EMULATOR
    return Row(
        type=mark,
        kind="network back end" if back else "device in the host kernel",
        bus="host",
        handler=handler,
        weight=table.device_weight(mark),
        cves=tuple(cve.id for cve in table.reaching((mark,))),
        go="replace by passt" if name in ("user", "slirp") else "" if back else "vhost=off",
        cost="" if back else "throughput",
    )


def _hypercalls(table: CveTable) -> Row:
    return Row(
        type="accel:kvm",
        kind="hypercalls, instruction emulator, page tables",
        bus="processor",
        handler=Handler.KERNEL,
        weight=table.device_weight("accel:kvm"),
        cves=tuple(cve.id for cve in table.reaching(("accel:kvm",))),
    )


def _cve(cve: Any) -> dict[str, Any]:
    return {"id": cve.id, "component": cve.component, "side": cve.side, "impact": cve.impact, "weight": cve.weight}


def _text(facts: Facts, name: str) -> str:
    fact = facts.get(name)
    return fact.value if isinstance(fact, Known) and isinstance(fact.value, str) else ""


def _texts(facts: Facts, name: str) -> tuple[str, ...]:
    fact = facts.get(name)
    return fact.value if isinstance(fact, Known) and isinstance(fact.value, tuple) else ()
