"""The attack steps in words, and the shortest way to each: what a control stands in the way of.

A step needs the ones before it: to attack a neighbour from the emulator (s5) somebody first becomes root in a guest
(s1) and breaks into its emulator (s2). Whether a path is open on a given host is for the risk analysis to say.
"""

from __future__ import annotations

from typing import Final

import msgspec

from casemate.controls.model import AttackStep as Step
from casemate.controls.model import Control, Scenario

STEPS: Final[dict[Step, str]] = {
    Step.S1_USER_TO_GUEST_KERNEL: "a user of the guest takes over the guest's kernel",
    Step.S2_GUEST_TO_EMULATOR: "the guest takes over its emulator through a device",
    Step.S3_GUEST_TO_HOST_KERNEL: "the guest takes over the host's kernel through KVM, vhost or DMA",
    Step.S4_EMULATOR_TO_HOST: "the emulator takes over the host",
    Step.S5_EMULATOR_TO_OTHER_VM: "the emulator reaches another VM's data",
    Step.S6_GUEST_TO_GUEST: "the guest spies on or disturbs another guest, without a bug of the emulator",
    Step.S7_USER_TO_VMM: "a local or remote user takes over the VMM",
    Step.S8_IMAGE_TO_HOST: "an image takes over what reads it on the host",
    Step.S9_THEFT: "somebody takes an image, a snapshot or a secret away",
    Step.S10_HIDDEN_HYPERVISOR: "somebody with root hides a hypervisor below the system",
}
SHORT: Final[dict[Step, str]] = {
    Step.S1_USER_TO_GUEST_KERNEL: "user → guest kernel",
    Step.S2_GUEST_TO_EMULATOR: "guest → emulator",
    Step.S3_GUEST_TO_HOST_KERNEL: "guest → host kernel",
    Step.S4_EMULATOR_TO_HOST: "emulator → host",
    Step.S5_EMULATOR_TO_OTHER_VM: "emulator → other VM",
    Step.S6_GUEST_TO_GUEST: "guest → guest",
    Step.S7_USER_TO_VMM: "user → VMM",
    Step.S8_IMAGE_TO_HOST: "image → host",
    Step.S9_THEFT: "theft",
    Step.S10_HIDDEN_HYPERVISOR: "hidden hypervisor",
}
SCENARIOS: Final[dict[Scenario, str]] = {
    Scenario.VM: "attack on the VM itself",
    Scenario.OTHER_VMS: "attack on other VMs",
    Scenario.HOST: "attack on the host",
    Scenario.BLUE_PILL: "virtualisation on the fly (Blue Pill)",
}
_BEFORE: Final[dict[Step, Step]] = {
    Step.S2_GUEST_TO_EMULATOR: Step.S1_USER_TO_GUEST_KERNEL,
    Step.S3_GUEST_TO_HOST_KERNEL: Step.S1_USER_TO_GUEST_KERNEL,
    Step.S4_EMULATOR_TO_HOST: Step.S2_GUEST_TO_EMULATOR,
    Step.S5_EMULATOR_TO_OTHER_VM: Step.S2_GUEST_TO_EMULATOR,
}


class Path(msgspec.Struct, frozen=True):
    """One way of attack; its last step is the one that the control cuts."""

    steps: tuple[Step, ...]

    def text(self) -> str:
        """``s1 user → guest kernel, s2 guest → emulator``."""
        return ", ".join(f"{step.value} {SHORT[step]}" for step in self.steps)


def path_to(step: Step) -> Path:
    """The steps that lead to this one, with it."""
    found = [step]
    while found[0] in _BEFORE:
        found.insert(0, _BEFORE[found[0]])
    return Path(tuple(found))


def paths_of(control: Control) -> tuple[Path, ...]:
    """One path for each step that the control cuts."""
    return tuple(path_to(step) for step in control.cuts)
