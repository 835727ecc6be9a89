"""Data paths as types: who stands in the way of one packet or block, and what passes between them. Pure.

A path is a list of steps between lanes. The terminal and the SVG draw the same one, so they cannot say different
things.
"""

from __future__ import annotations

import enum
from typing import Any, Final

import msgspec


class Zone(enum.StrEnum):
    """Whose code a lane is: what an attacker has when he owns it."""

    GUEST = "guest"
    EMULATOR = "emulator process"
    KERNEL = "host kernel"


class Kind(enum.StrEnum):
    """What a step is.

    EXIT: the processor leaves the guest. NOTIFICATION: one part wakes another. COPY: bytes of the packet or block are
    moved. ACCESS: the guest's memory is read or written where it lies. INTERRUPT: the guest is told.
    """

    EXIT = "exit"
    NOTIFICATION = "notification"
    ACCESS = "access"
    COPY = "copy"
    INTERRUPT = "interrupt"


class Lane(enum.StrEnum):
    """The parties, from the guest outwards."""

    DRIVER = "driver"
    VCPU = "vcpu"
    KVM = "kvm"
    LOOP = "loop"
    VHOST = "vhost"
    BACK = "back"


class LaneText(msgspec.Struct, frozen=True):
    """How a lane is called, and whose it is."""

    title: str
    zone: Zone


LANES: Final[dict[Lane, LaneText]] = {
    Lane.DRIVER: LaneText("guest driver", Zone.GUEST),
    Lane.VCPU: LaneText("vCPU thread", Zone.EMULATOR),
    Lane.KVM: LaneText("KVM", Zone.KERNEL),
    Lane.LOOP: LaneText("I/O thread", Zone.EMULATOR),
    Lane.VHOST: LaneText("vhost worker", Zone.KERNEL),
    Lane.BACK: LaneText("back end", Zone.KERNEL),
}


class Step(msgspec.Struct, frozen=True):
    """One arrow. ``figure``: name of the measured number that belongs to it (`MEASURES`), empty for none."""

    source: Lane
    to: Lane
    kind: Kind
    text: str
    figure: str = ""


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to one packet or block.

    ``device``: ``e1000``, ``virtio-net``, ``vhost-net``, ``ide`` or ``virtio-blk``. ``unit``: packet or block.
    ``source``: where the steps can be read. ``measured``: why there are no figures; empty when there can be.
    """

    device: str
    direction: str
    unit: str
    steps: tuple[Step, ...]
    source: str
    not_measured: str = ""

    @property
    def title(self) -> str:
        """Its name in one line."""
        return f"{self.device}, {self.direction}"

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The parties that take part, in the order in which they are drawn."""
        used = {lane for step in self.steps for lane in (step.source, step.to)}
        return tuple(lane for lane in Lane if lane in used)


MEASURES: Final[dict[str, str]] = {
    "accesses": "device accesses",
    "notifications": "queue notifications",
    "interrupts": "interrupts",
}
"""Numbers that a measurement gives for a path, by name."""


def figure_text(path: Path, step: Step, figures: dict[str, Any] | None) -> str:
    """The measured number of a step as words, for example ``1.3 per packet``; empty when nobody measured it.

    Args:
        figures: of the measurement, by device and direction: the numbers per packet or block.
    """
    if not step.figure or figures is None:
        return ""
    value = figures.get(path.device, {}).get(path.direction, {}).get(step.figure)
    if not isinstance(value, int | float):
        return ""
    return f"{value:.1f} per {path.unit}" if value < 100 else f"{value:.0f} per {path.unit}"
