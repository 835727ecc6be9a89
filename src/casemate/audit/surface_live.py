"""Where each device of a running VM of ours sits: asked over QMP, through its supervisor.

The supervisor passes on questions only. The emulator is hostile by assumption: its answers
are bounded, and what makes no sense is left out and said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import msgspec

from casemate.audit.own import asker
from casemate.audit.patience import Stuck, once
from casemate.engine import control
from casemate.engine.kvmexits import read_exits
from casemate.engine.paths import Paths
from casemate.engine.vmfiles import Definition
from casemate.errors import CasemateError

_DEADLINE_S: Final = 3.0
_FOLDERS: Final = ("/machine", "/machine/unattached", "/machine/peripheral", "/machine/peripheral-anon")
_DEVICES_MAX: Final = 512
_NO_DEVICES: Final = frozenset(
    {"container", "irq", "qemu:memory-region", "memory-region", "memory-region-alias", "or-irq", "split-irq"}
)


class Positions(msgspec.Struct, frozen=True):
    """By QOM type: how many, and the buses that they sit on. ``note``: why there is nothing."""

    counts: dict[str, int] = {}
    buses: dict[str, str] = {}
    note: str = ""


def positions(paths: Paths, definition: Definition) -> Positions:
    """The device tree of a running VM of ours; empty, with the reason, when its emulator does not tell."""
    try:
        return once(lambda: _ask(paths, definition), _DEADLINE_S)
    except (CasemateError, Stuck, OSError, ValueError) as error:
        return Positions(
            note=f"its emulator could not be asked where its devices sit: {str(error).partition(chr(10))[0]}"
        )


def exits(paths: Paths, definition: Definition) -> dict[str, int] | str:
    """Exits of a running VM of ours under KVM, by reason since its start; or why they are not known."""

    def ask() -> dict[str, int] | str:
        with control.connect(paths, definition) as connection:
            return read_exits(asker(connection))

    try:
        return once(ask, _DEADLINE_S)
    except (CasemateError, Stuck, OSError, ValueError) as error:
        return f"its emulator could not be asked: {str(error).partition(chr(10))[0]}"


def _ask(paths: Paths, definition: Definition) -> Positions:
    with control.connect(paths, definition) as connection:
        return read_positions(asker(connection))


def read_positions(ask: Callable[..., Any]) -> Positions:
    """Walk the tree with ``ask(question, **arguments)``.

    Raises:
        ValueError: the answers are no device tree. CasemateError: a question was refused.
    """
    counts: Counter[str] = Counter()
    buses: dict[str, list[str]] = {}
    for folder in _FOLDERS:
        children = ask("qom-list", path=folder)
        if not isinstance(children, list) or len(children) > _DEVICES_MAX:
            raise ValueError(f"{folder} makes no sense")
        for child in children:
            name, kind = _child(child)
            if not kind or kind in _NO_DEVICES:
                continue
            counts[kind] += 1
            bus = _bus(ask, f"{folder}/{name}")
            if bus and bus not in buses.setdefault(kind, []):
                buses[kind].append(bus)
    return Positions(dict(counts), {kind: ", ".join(found[:4]) for kind, found in buses.items() if found})


def _child(child: object) -> tuple[str, str]:
    """(name, type) of an entry that is a child; empty for a property."""
    if not isinstance(child, dict):
        return "", ""
    name, kind = child.get("name"), child.get("type")
    if not isinstance(name, str) or not isinstance(kind, str) or not kind.startswith("child<"):
        return "", ""
    return name, kind.removeprefix("child<").removesuffix(">")[:80]


def _bus(ask: Callable[..., Any], path: str) -> str:
    """The last part of the path of the bus; empty for what sits on none."""
    try:
        bus = ask("qom-get", path=path, property="parent_bus")
    except CasemateError:
        return ""  # it has no such property: no device
    return bus.rpartition("/")[2][:60] if isinstance(bus, str) else ""
