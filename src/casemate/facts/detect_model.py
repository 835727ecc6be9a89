"""What says that a system is virtualised: indicators with their strength, and the verdict over them. Types only."""

from __future__ import annotations

import enum

import msgspec


class Strength(enum.StrEnum):
    """``proof``: cannot be seen on bare metal unless somebody forges it; ``strong``: hardly ever; ``weak``: a hint."""

    PROOF = "proof"
    STRONG = "strong"
    WEAK = "weak"


class About(enum.StrEnum):
    """What an indicator is about.

    ``hypervisor``: what runs this system; ``platform``: whose machine it is (QEMU, Firecracker, a cloud);
    ``container``: what this process lives in; ``inside``: hypervisors that this system itself offers.
    """

    HYPERVISOR = "hypervisor"
    PLATFORM = "platform"
    CONTAINER = "container"
    INSIDE = "inside"


class Indicator(msgspec.Struct, frozen=True, kw_only=True):
    """One observation. ``says``: the name it points to (``kvm``, ``firecracker``, ``docker``), empty for "something".

    ``value``: what was read, bounded and printable; ``source``: where.
    """

    about: About
    strength: Strength
    says: str
    value: str
    source: str


class Trap(msgspec.Struct, frozen=True, kw_only=True):
    """How long CPUID takes, in ticks of the time stamp counter. ``empty_ticks``: the same measurement around nothing.

    ``low``, ``median``, ``high`` are the 10th, 50th and 90th percentile of ``samples`` measurements.
    """

    samples: int
    empty_ticks: int
    low_ticks: int
    median_ticks: int
    high_ticks: int


class Verdict(enum.StrEnum):
    """``virtualised``; ``suspected``: only indicators that could have another reason; ``no-trace``: nothing found;
    ``unknown``: too little could be read to say anything."""

    VIRTUALISED = "virtualised"
    SUSPECTED = "suspected"
    NO_TRACE = "no-trace"
    UNKNOWN = "unknown"


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """The answer.

    ``hypervisor``: its name (``systemd-detect-virt`` names where there is one), ``unknown`` when only its presence is
    certain, ``none``. ``platform`` and ``container``: empty when nothing points there. ``layers``: outermost first.
    ``contradictions``: observations that do not fit together; on a machine that should be bare metal each of them
    deserves an explanation. ``notes``: what else is worth knowing. ``unread``: what could not be looked at and why.
    """

    verdict: Verdict
    hypervisor: str
    platform: str
    container: str
    layers: tuple[str, ...]
    indicators: tuple[Indicator, ...]
    contradictions: tuple[str, ...]
    unread: tuple[str, ...]
    notes: tuple[str, ...] = ()
    trap: Trap | None = None
    limits: tuple[str, ...] = ()
