"""Inputs and result of planning, as frozen data. Nothing here does I/O.

`Host` and `Emulator` hold what the plan needs to know of the machine; the engine fills them from facts, golden tests
from a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from casemate.facts.fact import Facts
from casemate.facts.vfio import PciFunction
from casemate.jail.policy import CgroupPlan, Descriptor, Identity, Wall
from casemate.jail.rules import Profile
from casemate.spec.model import Spec

if TYPE_CHECKING:
    from casemate.facts.confidential import ConfidentialHost


class CgroupBase(msgspec.Struct, frozen=True):
    """Where this host lets us make cgroups.

    ``version`` 1 or 2 (0: nowhere, ``why_none`` says why); ``parents`` maps a controller to the directory under which
    a VM's directory is made (the same directory for all of them in version 2).
    """

    version: int
    parents: dict[str, str] = {}
    why_none: str = ""


class FirmwarePair(msgspec.Struct, frozen=True):
    """UEFI code (shared, read-only) and the template of its variables, with their SHA-256.

    ``described_by``: the descriptor in which QEMU's firmware directory offers it. ``secure_boot``: the code verifies
    what it starts and keeps its variables behind system management mode.
    """

    code: str
    variables: str
    code_sha256: str = ""
    variables_sha256: str = ""
    described_by: str = ""
    secure_boot: bool = False


class Emulator(msgspec.Struct, frozen=True):
    """A QEMU binary and the files that it needs in its root.

    ``files`` maps a path inside the root to the host's file: program, loader, libraries; ``modules`` and ``firmware``
    map the bare file name to (target, source).
    """

    path: str
    version: tuple[int, ...]
    machine_types: tuple[str, ...]
    files: dict[str, str]
    modules: dict[str, tuple[str, str]]
    firmware: dict[str, tuple[str, str]]


class Mac(msgspec.Struct, frozen=True):
    """The LSM of this host that labels processes, if there is one.

    ``module``: ``selinux`` or ``apparmor``; ``context``: the label of the caller; ``why_not``: what keeps a VM from
    getting a label of its own (a policy that is not loaded, permissive mode), empty when nothing does.
    """

    module: str
    context: str
    why_not: str = ""

    @property
    def ready(self) -> bool:
        """Whether a VM can be labelled."""
        return not self.why_not


class Host(msgspec.Struct, frozen=True):
    """What the plan needs to know of the machine. ``tsc_khz`` 0: unknown.

    ``kvm_refused_flags``: irqchip mode -> CPU flags that QEMU must leave out because KVM refuses their MSRs.
    ``kvm_device``: owner, group and mode of /dev/kvm, empty where it is not used. ``confidential``: what is
    there for the kind that the specification asks for, None when it asks for none. ``kvm_smm``: KVM emulates
    system management mode. ``disk_devices``: ``MAJOR:MINOR`` of the devices below the disks, where traffic is limited.
    """

    machine: str
    kvm_verdict: str
    kvm_why: str
    kvm_tsc_deadline: bool
    kvm_irqchip_off: bool
    kvm_refused_flags: dict[str, tuple[str, ...]]
    kvm_device: str
    tsc_khz: int
    landlock_abi: int
    core_sched: bool
    lsms: tuple[str, ...]
    cgroup: CgroupBase
    uefi: FirmwarePair | None
    passt: str | None
    rootless: bool
    mac: Mac | None = None
    pci: tuple[PciFunction, ...] = ()
    unsafe_interrupts: bool | None = None
    kvm_smm: bool = True
    confidential: ConfidentialHost | None = None
    disk_devices: tuple[str, ...] = ()
    swtpm: str | None = None


class OpenFile(msgspec.Struct, frozen=True):
    """A file that the engine opens before the launch and hands over as a descriptor.

    ``access``: ``ro``, ``rw``, ``overlay`` (a new file that dies with the VM), ``vars`` (the VM's own copy), ``device``
    (a character device), ``memory`` (sealed memory that the engine fills).
    ``image_format``: declared format of a disk image, None for other files. ``sha256``: what a firmware's file hashes
    to, or for ``vars`` the template that they are made from.
    """

    role: str
    path: str
    access: str
    image_format: str | None = None
    virtual_size_bytes: int = 0
    sha256: str = ""


class EgressPlan(msgspec.Struct, frozen=True):
    """What the guest may reach. ``published``: (protocol, host address, host port); ``gateway``: the guest's, and
    ``gateway6``, empty for a guest without IPv6.

    ``dns``: the guest may use the host's resolver, at its exact address and port 53.
    """

    mode: str
    allow: tuple[str, ...]
    dns: bool
    published: tuple[tuple[str, str, int], ...]
    gateway: str
    gateway6: str = ""


class HelperPlan(msgspec.Struct, frozen=True):
    """A helper process beside the emulator, in a wall of its own, described in ``wall``.

    ``program``: its file on the host. ``egress``: for the network's helper. ``descriptors``: what it inherits.
    ``run_as``: for a helper with a uid of its own. ``keeps_state``: it has state that outlives the run.
    """

    name: str
    argv: tuple[str, ...]
    wall: tuple[str, ...]
    profile: str
    program: str = ""
    egress: EgressPlan | None = None
    descriptors: tuple[Descriptor, ...] = ()
    run_as: Identity | None = None
    keeps_state: bool = False


class LaunchPlan(msgspec.Struct, frozen=True):
    """Everything about one launch, before anything is opened or started. ``missing``: why this host cannot do it."""

    vm_id: str
    name: str
    spec: Spec
    accel: str
    accel_why: str
    machine: str
    wall: Wall
    profile: Profile
    files: tuple[OpenFile, ...]
    helpers: tuple[HelperPlan, ...]
    declared: Facts
    warnings: tuple[str, ...]
    run_as: Identity
    missing: tuple[str, ...] = ()

    @property
    def cgroup(self) -> CgroupPlan:
        """The cgroup part of the wall."""
        return self.wall.cgroup

    @property
    def descriptors(self) -> tuple[Descriptor, ...]:
        """The descriptors that the emulator inherits."""
        return self.wall.descriptors
