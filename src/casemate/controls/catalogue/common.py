"""Conditions and short names that several layers of the catalogue share."""

from __future__ import annotations

from casemate.controls.expectations import AtLeast, ContainsAny, Equals, NoneMatches, NotEquals, Present
from casemate.controls.model import AttackStep, Check, Condition, Scenario, Source

S1 = AttackStep.S1_USER_TO_GUEST_KERNEL
S2 = AttackStep.S2_GUEST_TO_EMULATOR
S3 = AttackStep.S3_GUEST_TO_HOST_KERNEL
S4 = AttackStep.S4_EMULATOR_TO_HOST
S5 = AttackStep.S5_EMULATOR_TO_OTHER_VM
S6 = AttackStep.S6_GUEST_TO_GUEST
S7 = AttackStep.S7_USER_TO_VMM
S8 = AttackStep.S8_IMAGE_TO_HOST
S9 = AttackStep.S9_THEFT
S10 = AttackStep.S10_HIDDEN_HYPERVISOR

VM = Scenario.VM
OTHERS = Scenario.OTHER_VMS
HOST = Scenario.HOST
BLUE_PILL = Scenario.BLUE_PILL

ACCELERATED = Condition("dev.accel", Equals("kvm"), "the guest runs under TCG: KVM emulates nothing for it")
NO_JIT = Condition(
    "dev.accel",
    Equals("kvm"),
    "TCG is a JIT: it translates guest code into memory that it writes and executes",
)
MAC_LSM = Condition(
    "host.lsm",
    ContainsAny(("selinux", "apparmor")),
    "this host has neither SELinux nor AppArmor (control os.mac reports that)",
)
SELINUX = Condition("host.lsm", ContainsAny(("selinux",)), "this host has no SELinux, and only SELinux has categories")
LANDLOCK = Condition("host.landlock-abi", AtLeast(1), "this kernel has no Landlock (control hk.landlock reports that)")
CORE_SCHEDULING = Condition(
    "host.core-sched", Equals(True), "this kernel has no core scheduling (control hk.core-sched reports that)"
)
HAS_DISKS = Condition("img.formats", Present(), "the VM has no disk")
HAS_NETWORK = Condition("net.backend", NotEquals("none"), "the VM has no network")


def no_device(pattern: str, meaning: str) -> Check:
    """No QOM type in the device tree matches ``pattern`` as a whole."""
    return Check("dev.types", NoneMatches(pattern, f"no {meaning} in the device tree"))


def lecture(section: str) -> Source:
    """The lecture that the project implements."""
    return Source("lecture Virtualisation et sécurité (T. Ravier)", section)


def cve(*ids: str) -> Source:
    """Vulnerabilities that the control would have taken out of reach."""
    return Source("CVE", ", ".join(ids))


def libvirt(place: str) -> Source:
    """libvirt's documentation of its QEMU driver."""
    return Source("libvirt, QEMU driver", place)


def qemu(place: str) -> Source:
    """QEMU's documentation or source."""
    return Source("QEMU", place)


def kernel(place: str) -> Source:
    """The Linux kernel's documentation or a manual page."""
    return Source("Linux", place)
