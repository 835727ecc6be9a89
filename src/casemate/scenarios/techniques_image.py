"""Techniques against and by images, theft, the operator, hidden hypervisors; and what follows from each position."""

from __future__ import annotations

from typing import Final

from casemate.controls.model import AttackStep
from casemate.scenarios.formula import Absent, Condition, Holds, Never, every, some
from casemate.scenarios.model import Nature, Node, Technique

_S8, _S9, _S10 = AttackStep.S8_IMAGE_TO_HOST, AttackStep.S9_THEFT, AttackStep.S10_HIDDEN_HYPERVISOR
_NO_DISK: Final = Absent("img.format-explicit")
"""`img.format-explicit` does not apply only when the VM has no disk."""
_CONFIDENTIAL: Final = every(
    "cc.launch",
    "cc.attest",
    *(Holds(name, or_absent=True) for name in ("cc.no-debug", "cc.no-migration", "cc.kernel-hashes")),
    Holds("cc.stateless-firmware", or_absent=True),
)
"""What a kind does not have (policy, kernel hashes, firmware) is no hole of it; that there is one, `cc.launch` says."""

OF_IMAGES: Final = (
    Technique(
        id="img.names-other-files",
        title="image whose header makes the emulator open other files",
        nature=Nature.WEAKNESS,
        sources=(Node.IMAGE_PUBLISHER, Node.GUEST_KERNEL),
        target=Node.SECRETS,
        closed_when=some(
            _NO_DISK, every("img.format-explicit", "img.no-backing", Holds("vmm.no-probing", or_absent=True))
        ),
        steps=(_S8,),
        effort=1,
        history=("image-formats",),
        references=(
            "CVE-2024-32498",
            "libvirt, secure usage: image format probing",
        ),
    ),
    Technique(
        id="img.format-bug",
        title="unknown bug in the emulator's readers of image formats",
        nature=Nature.UNKNOWN_BUG,
        sources=(Node.IMAGE_PUBLISHER,),
        target=Node.EMULATOR,
        closed_when=some(_NO_DISK),
        steps=(_S8,),
        effort=4,
        history=("image-formats",),
        contained_by=("img.format-explicit", "img.size", "proc.seccomp-strength", "proc.root"),
        references=(
            "CVE-2014-0144, CVE-2026-2243",
            "cves.md: image formats",
        ),
    ),
    Technique(
        id="img.mounted-on-host",
        title="file system of a guest that the host's kernel mounts",
        nature=Nature.WEAKNESS,
        sources=(Node.IMAGE_PUBLISHER, Node.GUEST_KERNEL),
        target=Node.HOST_ROOT,
        closed_when=every("os.no-guest-mount", "os.no-loop-image", "os.no-nbd"),
        steps=(_S8,),
        effort=2,
        references=("lecture: never mount a guest's file system on the host",),
    ),
    Technique(
        id="img.backdoor",
        title="image of unknown origin, or changed on the way",
        nature=Nature.WEAKNESS,
        sources=(Node.IMAGE_PUBLISHER,),
        target=Node.GUEST_ROOT,
        # one of the two applies: to images of the store, or to files given by path
        closed_when=every("img.hash", some("img.origin", "img.local-origin")),
        steps=(_S8,),
        slows=("dev.uefi", "dev.tpm"),
        effort=1,
        references=("lecture: verify origin and integrity of images",),
    ),
    Technique(
        id="emu.supply-chain",
        title="emulator that is not the one the distribution signed",
        nature=Nature.WEAKNESS,
        sources=(Node.IMAGE_PUBLISHER, Node.HOST_USER),
        target=Node.EMULATOR,
        closed_when=every("bin.owner", "proc.exe", "bin.rpath"),
        steps=(AttackStep.S2_GUEST_TO_EMULATOR,),
        effort=3,
        references=("lecture: verify origin and integrity",),
    ),
)

OF_THIEVES: Final = (
    Technique(
        id="theft.image",
        title="stolen image, snapshot or backup in the clear",
        nature=Nature.WEAKNESS,
        sources=(Node.IMAGE_READER,),
        target=Node.VM_DATA,
        closed_when=some(_NO_DISK, every("img.local-encrypted", Holds("img.encrypted", or_absent=True))),
        steps=(_S9,),
        effort=1,
        references=("lecture: images are public",),
    ),
    Technique(
        id="theft.secrets-in-image",
        title="keys and passwords inside an image that many can read",
        nature=Nature.WEAKNESS,
        sources=(Node.IMAGE_READER,),
        target=Node.SECRETS,
        closed_when=some(_NO_DISK, every("sec.keys", "sec.passwords"), every("img.local-encrypted")),
        steps=(_S9,),
        effort=1,
        references=("lecture: treat images as public",),
    ),
    Technique(
        id="theft.memory-on-disk",
        title="memory of the guest in swap or in a file",
        nature=Nature.WEAKNESS,
        sources=(Node.IMAGE_READER,),
        target=Node.VM_DATA,
        closed_when=every("cpu.swap", "img.ram-files"),
        steps=(_S9,),
        effort=3,
        references=("Firecracker, prod-host-setup: swap",),
    ),
)

OF_OPERATORS: Final = (
    Technique(
        id="operator.rules",
        title="the operator administers the host",
        nature=Nature.CONSEQUENCE,
        sources=(Node.CLOUD_OPERATOR,),
        target=Node.HOST_ROOT,
        closed_when=Never("the host is his"),
        effort=1,
        references=("lecture: confidential computing, protect VMs from the host",),
    ),
    Technique(
        id="host.reads-memory",
        title="the host reads or changes the guest's memory and disks",
        nature=Nature.WEAKNESS,
        sources=(Node.HOST_ROOT,),
        target=Node.VM_DATA,
        closed_when=_CONFIDENTIAL,
        steps=(_S9,),
        effort=1,
        references=("lecture: confidential computing",),
    ),
    Technique(
        id="cc.unknown-bug",
        title="fault of the confidential technology, or a physical attack on it",
        nature=Nature.UNKNOWN_BUG,
        sources=(Node.HOST_ROOT,),
        target=Node.VM_DATA,
        closed_when=Never("its own vulnerabilities are in the history"),
        steps=(_S9,),
        effort=4,
        history=("kvm-sev",),
        contained_by=("cc.attest", "cc.no-debug"),
        references=(
            "TEE.fail 2025",
            "cves.md: KVM SEV",
        ),
    ),
    Technique(
        id="bp.module",
        title="root loads a hypervisor under the running system (module, kexec, memory)",
        nature=Nature.WEAKNESS,
        sources=(Node.HOST_ROOT,),
        target=Node.HIDDEN_HYPERVISOR,
        closed_when=every("hk.lockdown", "hk.modules", "hk.kexec", "hk.devmem"),
        steps=(_S10,),
        effort=3,
        references=("Blue Pill, Rutkowska 2006",),
    ),
    Technique(
        id="bp.boot",
        title="root puts a hypervisor in front of the boot loader",
        nature=Nature.WEAKNESS,
        sources=(Node.HOST_ROOT,),
        target=Node.HIDDEN_HYPERVISOR,
        closed_when=every("hk.secure-boot", Holds("hk.secure-boot-setup", or_absent=True), "hk.measured-boot"),
        steps=(_S10,),
        effort=3,
        references=(
            "UEFI, Secure Boot",
            "CVE-2020-10713 (BootHole)",
        ),
    ),
    Technique(
        id="bp.guest",
        title="root of the guest puts a hypervisor under the guest",
        nature=Nature.WEAKNESS,
        sources=(Node.GUEST_KERNEL,),
        target=Node.HIDDEN_HYPERVISOR,
        closed_when=some("kvm.nested-off", Holds("kvm.nested-host", or_absent=True), Absent("kvm.irqchip-split")),
        steps=(_S10,),
        effort=3,
        references=(
            "CVE-2021-3656",
            "lecture: virtualisation on the fly",
        ),
    ),
    Technique(
        id="bp.unknown-bug",
        title="unknown bug past lockdown, Secure Boot or the firmware",
        nature=Nature.UNKNOWN_BUG,
        sources=(Node.HOST_ROOT,),
        target=Node.HIDDEN_HYPERVISOR,
        closed_when=Never("Blue Pill cannot be excluded from inside"),
        steps=(_S10,),
        effort=4,
        contained_by=("hk.lockdown", "hk.secure-boot", "hk.measured-boot", "hk.no-outer-vmm"),
        references=("lecture: Blue Pill, invisibility is disputed",),
    ),
)


def _follows(identifier: str, title: str, sources: tuple[Node, ...], target: Node, because: str) -> Technique:
    condition: Condition = Never(because)
    return Technique(
        id=identifier,
        title=title,
        nature=Nature.CONSEQUENCE,
        sources=sources,
        target=target,
        closed_when=condition,
        effort=1,
    )


CONSEQUENCES: Final = (
    _follows(
        "has.guest-data",
        "has the VM's data and services",
        (Node.GUEST_ROOT, Node.GUEST_KERNEL, Node.EMULATOR),
        Node.VM_DATA,
        "they are its own",
    ),
    _follows(
        "has.service-data",
        "has the data of the service that it took over",
        (Node.GUEST_USER,),
        Node.VM_DATA,
        "the service reads them",
    ),
    _follows("has.host", "has the host", (Node.HOST_ROOT,), Node.HOST, "root is the host"),
    _follows(
        "has.host-secrets", "has images, keys and secrets", (Node.HOST_ROOT,), Node.SECRETS, "the host holds them"
    ),
    _follows("has.switch", "can stop everything", (Node.HOST_ROOT, Node.VMM_API), Node.AVAILABILITY, "it runs there"),
)

IMAGE_TECHNIQUES: Final = OF_IMAGES + OF_THIEVES + OF_OPERATORS + CONSEQUENCES
