"""Seccomp profiles: which rule sets make the allowlist of one process. Pure; the rules are data in `rulesets/`.

qemu-<accel>+<devices>   base + accelerator + one part per device
passt, swtpm, supervisor, qemu-img   one set each
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from casemate.jail.rules import Profile, Rule
from casemate.jail.rulesets import qemu_base, qemu_confidential, qemu_devices, qemu_kvm, qemu_tcg

ACCELERATORS: Final[Mapping[str, tuple[Rule, ...]]] = MappingProxyType({"tcg": qemu_tcg.RULES, "kvm": qemu_kvm.RULES})
DEVICES: Final[tuple[str, ...]] = tuple(qemu_devices.PARTS)
CONFIDENTIAL: Final[tuple[str, ...]] = tuple(qemu_confidential.PARTS)


def qemu_profile(accel: str, devices: frozenset[str]) -> Profile:
    """The allowlist of one emulator.

    Args:
        accel: ``tcg`` or ``kvm``.
        devices: device parts, out of `DEVICES` (blk, rng, console, net, tpm, vfio, save, smm) and `CONFIDENTIAL`.

    Raises:
        RuntimeError: an accelerator or a part that does not exist: our bug, the plan asked for it.
    """
    if accel not in ACCELERATORS:
        raise RuntimeError(f"no rule set for accelerator {accel!r}; there are {', '.join(ACCELERATORS)}")
    unknown = devices.difference(DEVICES, CONFIDENTIAL)
    if unknown:
        known = ", ".join((*DEVICES, *CONFIDENTIAL))
        raise RuntimeError(f"no rule set for device part {', '.join(sorted(unknown))}; there are {known}")
    named = [("qemu_base", qemu_base.RULES), (f"qemu_{accel}", ACCELERATORS[accel])]
    ordered = [name for name in (*DEVICES, *CONFIDENTIAL) if name in devices]
    named += [(f"qemu_devices.{name}", qemu_devices.PARTS[name]) for name in ordered if name in DEVICES]
    named += [(f"qemu_confidential.{n}", qemu_confidential.PARTS[n]) for n in ordered if n in CONFIDENTIAL]
    return Profile(
        name="+".join((f"qemu-{accel}", *ordered)),
        rules=tuple(rule for _, rules in named for rule in rules),
        parts=tuple(name for name, _ in named),
    )


def passt_profile() -> Profile:
    """The allowlist of passt, from its exec on; passt loads a filter of its own on top."""
    from casemate.jail.rulesets import passt

    return Profile(name="passt", rules=passt.RULES, parts=("passt",))


def swtpm_profile() -> Profile:
    """The allowlist of swtpm, from its exec on; swtpm loads a filter of its own on top."""
    from casemate.jail.rulesets import swtpm

    return Profile(name="swtpm", rules=swtpm.RULES, parts=("swtpm",))


def supervisor_profile() -> Profile:
    """The allowlist of the supervisor once it has nothing left to start."""
    from casemate.jail.rulesets import supervisor

    return Profile(name="supervisor", rules=supervisor.RULES, parts=("supervisor",))


def qemu_img_profile() -> Profile:
    """The allowlist of qemu-img while it converts an image between two sockets."""
    from casemate.jail.rulesets import qemu_img

    return Profile(name="qemu-img", rules=qemu_img.RULES, parts=("qemu_img",))


def reader_profile() -> Profile:
    """The allowlist of another reader of images: a Python with a library of its own."""
    from casemate.jail.rulesets import reader

    return Profile(name="reader", rules=reader.RULES, parts=("reader",))
