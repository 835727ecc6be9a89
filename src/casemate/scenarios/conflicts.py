"""Measures that work against each other, as data: said aloud where a plan asks for one side of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec


class Conflict(msgspec.Struct, frozen=True):
    """``one`` and ``other``: controls on the two sides; either side may be empty where it is not a control of ours."""

    id: str
    title: str
    one: tuple[str, ...]
    other: tuple[str, ...]
    advice: str


CONFLICTS: Final = (
    Conflict(
        "ept-l1tf",
        "page tables in hardware (EPT) against L1TF, or shadow paging with its own history",
        ("cpu.l1tf-vmx", "cpu.l1tf-flush-always"),
        ("kvm.two-dim-paging",),
        "keep EPT and flush the L1 cache: turning EPT off trades one leak for the MMU code with the worst history",
    ),
    Conflict(
        "smm-secure-boot",
        "system management mode off against Secure Boot",
        ("dev.smm",),
        ("dev.uefi", "dev.boot-variables"),
        "Secure Boot needs SMM to guard the firmware's variables: keep it where Secure Boot is on, and nowhere else",
    ),
    Conflict(
        "userns-rootless",
        "user namespaces for nobody against emulators and helpers without root",
        ("hk.userns",),
        ("os.userns", "proc.helpers"),
        "allow user namespaces to the account that runs VMs (an AppArmor profile, a group), not to everybody",
    ),
    Conflict(
        "iommu-strict",
        "speed of passed-through devices against taking memory away at once",
        ("iommu.strict",),
        (),
        "no passthrough at all needs neither; with it, strict costs throughput and closes a window after each unmap",
    ),
    Conflict(
        "spawn-helpers",
        "no new processes in the emulator against helpers that it starts itself",
        ("proc.qemu-sandbox", "proc.seccomp-strength"),
        ("bin.bridge-helper",),
        "start helpers from outside and hand over descriptors, as Casemate does: then spawn=deny costs nothing",
    ),
    Conflict(
        "smt-core-scheduling",
        "threads of a core off against core scheduling",
        ("cpu.smt",),
        ("cpu.core-sched",),
        "core scheduling keeps most of the speed and leaves L1TF from guest to host: among hostile guests, SMT off",
    ),
    Conflict(
        "swap-density",
        "no swap against more VMs than memory",
        ("cpu.swap",),
        ("cpu.ksm", "cpu.ksm-host"),
        "encrypt swap with a key of each boot; merged pages are no substitute: they leak between VMs",
    ),
)


def conflicts_of(controls: Collection[str]) -> tuple[Conflict, ...]:
    """The conflicts that a plan of these controls touches."""
    wanted = set(controls)
    return tuple(item for item in CONFLICTS if wanted & {*item.one, *item.other})
