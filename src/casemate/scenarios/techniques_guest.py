"""Techniques into a guest, inside it, and from it into its emulator. Each closing condition says why it closes."""

from __future__ import annotations

from typing import Final

from casemate.controls.model import AttackStep
from casemate.scenarios.formula import Absent, Holds, Never, every, some
from casemate.scenarios.model import Nature, Node, Technique

_S1, _S2 = AttackStep.S1_USER_TO_GUEST_KERNEL, AttackStep.S2_GUEST_TO_EMULATOR
_NO_NETWORK: Final = Absent("net.egress")
"""`net.egress` does not apply only when the VM has no network at all."""
_INSIDE: Final = (Node.GUEST_KERNEL,)
"""Devices are spoken to by the guest's kernel; who is only root loads a module first."""
EMULATOR_HOLD: Final = (
    "proc.uid",
    "proc.caps",
    "proc.no-new-privs",
    "proc.seccomp-strength",
    "proc.ns",
    "proc.root",
    "proc.mounts",
    "proc.fds",
    "proc.landlock",
    "proc.mac-label",
)
"""What holds code that runs in the emulator; the containment of an unknown bug in it."""
_BINARY: Final = ("bin.pie", "bin.relro", "bin.nx", "bin.canary", "bin.fortify", "proc.no-rwx")
_NICS: Final = ("pcnet", "rtl8139", "ne2k", "e1000", "eepro100", "tulip", "vmxnet3", "pvrdma")
_DISKS: Final = ("ide", "esp", "megasas", "pvscsi", "lsi53c895a", "nvme", "sdhci")
_SCREENS: Final = (
    *("cirrus", "vmware-vga", "qxl", "bochs-display", "ati-vga", "virtio-gpu", "vhost-user-gpu"),
    *("vnc", "console", "audio"),
)
_LEGACY: Final = ("floppy", *_NICS, *_DISKS, "usb", *_SCREENS)
_REMAINING: Final = ("virtio-blk", "virtio-net", "virtio-serial", "virtio-reentrancy", "uart", "block-layer")

INTO_THE_GUEST: Final = (
    Technique(
        id="guest.known-bug",
        title="known bug in a program or kernel of the guest",
        nature=Nature.WEAKNESS,
        sources=(Node.NETWORK,),
        target=Node.GUEST_USER,
        closed_when=some(_NO_NETWORK, "guest.updates"),
        steps=(_S1,),
        slows=("guest.kernel",),
        effort=1,
        references=(
            "lecture: the virtual machine is attacked like a physical one",
            "ANSSI-BP-028 R61 (updates)",
        ),
    ),
    Technique(
        id="guest.default-password",
        title="default password or left-over key in the image",
        nature=Nature.WEAKNESS,
        sources=(Node.NETWORK,),
        target=Node.GUEST_ROOT,
        closed_when=some(_NO_NETWORK, every("sec.passwords", "sec.keys")),
        steps=(_S1,),
        effort=1,
        references=(
            "lecture: images are public",
            "secrets by other means",
        ),
    ),
    Technique(
        id="guest.unknown-bug",
        title="unknown bug in a service of the guest",
        nature=Nature.UNKNOWN_BUG,
        sources=(Node.NETWORK,),
        target=Node.GUEST_USER,
        closed_when=some(_NO_NETWORK),
        steps=(_S1,),
        effort=3,
        contained_by=("net.egress", "net.publish-wide", "guest.root", "guest.kernel", "guest.lockdown"),
        references=("lecture: attack scenario, virtual machine",),
    ),
    Technique(
        id="guest.predicted-random",
        title="keys guessed, because the guest had no entropy or shares its random state with a clone",
        nature=Nature.WEAKNESS,
        sources=(Node.NETWORK,),
        target=Node.VM_DATA,
        closed_when=every("ent.virtio-rng", "ent.vmgenid"),
        steps=(AttackStep.S6_GUEST_TO_GUEST, AttackStep.S9_THEFT),
        slows=("ent.no-haveged",),
        effort=3,
        references=("lecture: entropy in a virtual machine",),
    ),
    Technique(
        id="guest.open-console",
        title="console of the guest that asks nobody who he is",
        nature=Nature.WEAKNESS,
        sources=(Node.NETWORK,),
        target=Node.GUEST_ROOT,
        closed_when=every(
            some("vmm.console-listen", "vmm.console-auth"), "vmm.serial-network", Holds("net.host-exposure")
        ),
        steps=(AttackStep.S7_USER_TO_VMM,),
        effort=1,
        references=(
            "libvirt: VNC and SPICE listen addresses",
            "OpenStack security guide, dashboards and consoles",
        ),
    ),
)

INSIDE_THE_GUEST: Final = (
    Technique(
        id="guest.local-known-bug",
        title="known local bug in the guest's kernel or its privileged programs",
        nature=Nature.WEAKNESS,
        sources=(Node.GUEST_USER,),
        target=Node.GUEST_ROOT,
        closed_when=every("guest.updates"),
        steps=(_S1,),
        slows=("guest.kernel",),
        effort=1,
        references=("lecture: nearly all hypervisor bugs need root in the guest",),
    ),
    Technique(
        id="guest.works-as-root",
        title="services or people that work as root in the guest",
        nature=Nature.WEAKNESS,
        sources=(Node.GUEST_USER,),
        target=Node.GUEST_ROOT,
        closed_when=every("guest.root"),
        steps=(_S1,),
        effort=1,
        references=("lecture: protection of root in the virtual machine",),
    ),
    Technique(
        id="guest.cpu-leak",
        title="CPU bug that the guest's kernel cannot see it has to mitigate",
        nature=Nature.WEAKNESS,
        sources=(Node.GUEST_USER,),
        target=Node.GUEST_KERNEL,
        closed_when=every(Holds("cpu.guest-flags", or_absent=True)),
        steps=(_S1,),
        effort=3,
        references=(
            "spectre-meltdown-checker FAQ: what a guest needs",
            "CVE-2017-5754",
        ),
    ),
    Technique(
        id="guest.local-unknown-bug",
        title="unknown bug in the guest's kernel",
        nature=Nature.UNKNOWN_BUG,
        sources=(Node.GUEST_USER,),
        target=Node.GUEST_KERNEL,
        closed_when=Never("every kernel has bugs that nobody knows yet"),
        steps=(_S1,),
        effort=3,
        contained_by=("guest.kernel", "guest.lockdown"),
        references=("lecture: separation of privileges and defence in depth",),
    ),
    Technique(
        id="guest.loads-code",
        title="root loads code into the guest's kernel",
        nature=Nature.WEAKNESS,
        sources=(Node.GUEST_ROOT,),
        target=Node.GUEST_KERNEL,
        closed_when=every("guest.lockdown"),
        steps=(_S1,),
        effort=1,
        references=("Linux, kernel_lockdown(7)",),
    ),
    Technique(
        id="guest.root-unknown-bug",
        title="unknown bug past the guest's lockdown",
        nature=Nature.UNKNOWN_BUG,
        sources=(Node.GUEST_ROOT,),
        target=Node.GUEST_KERNEL,
        closed_when=Never("lockdown is code of the same kernel"),
        steps=(_S1,),
        effort=3,
        contained_by=("guest.lockdown",),
        references=("Linux, kernel_lockdown(7)",),
    ),
)

INTO_THE_EMULATOR: Final = (
    *(
        Technique(
            id=identifier,
            title=title,
            nature=Nature.WEAKNESS,
            sources=_INSIDE,
            target=Node.EMULATOR,
            closed_when=every(*controls),
            steps=(_S2,),
            slows=_BINARY,
            effort=3,
            history=history,
            references=("lecture: as few emulated devices as possible", "cves.md, by component"),
        )
        for identifier, title, controls, history in (
            ("emu.floppy", "bug in the floppy controller", ("dev.no-floppy",), ("floppy",)),
            ("emu.legacy-nic", "bug in an emulated network card of real hardware", ("dev.no-legacy-nic",), _NICS),
            ("emu.legacy-disk", "bug in an emulated disk controller of real hardware", ("dev.no-legacy-disk",), _DISKS),
            ("emu.usb", "bug in USB controllers and devices", ("dev.no-usb",), ("usb",)),
            ("emu.display", "bug in a graphics card, remote display or sound card", ("dev.no-display",), _SCREENS),
            (
                "emu.board",
                "bug in a part of the board that nobody needs, or in a device that QEMU does not secure",
                ("dev.machine", "dev.nodefaults", "dev.insecure-types", "dev.platform-off"),
                ("uart",),
            ),
        )
    ),
    Technique(
        id="emu.slirp",
        title="bug in the network stack inside the emulator (slirp)",
        nature=Nature.WEAKNESS,
        sources=(Node.GUEST_ROOT, Node.GUEST_KERNEL),
        target=Node.EMULATOR,
        closed_when=every("dev.no-slirp"),
        steps=(_S2,),
        slows=_BINARY,
        effort=2,
        history=("slirp",),
        references=(
            "CVE-2019-6778, CVE-2020-1983",
            "cves.md: slirp",
        ),
    ),
    Technique(
        id="emu.shared-directory",
        title="bug in a directory or memory shared with the guest (9p, virtiofs, ivshmem)",
        nature=Nature.WEAKNESS,
        sources=_INSIDE,
        target=Node.EMULATOR,
        closed_when=every("dev.no-share"),
        steps=(_S2,),
        slows=_BINARY,
        effort=2,
        history=("9p", "virtiofsd"),
        references=(
            "CVE-2026-93834, CVE-2017-7471",
            "cves.md: 9p, virtiofsd",
        ),
    ),
    Technique(
        id="emu.host-usb",
        title="USB device of the host or of a remote client in the guest",
        nature=Nature.WEAKNESS,
        sources=_INSIDE,
        target=Node.EMULATOR,
        closed_when=every("iommu.no-usb-host"),
        steps=(_S2,),
        effort=3,
        history=("usb-redir",),
        references=(
            "cves.md: USB",
            "QEMU, system/security",
        ),
    ),
    Technique(
        id="emu.tcg",
        title="the translator of guest code is no security boundary (TCG)",
        nature=Nature.WEAKNESS,
        sources=(Node.GUEST_USER, Node.GUEST_ROOT, Node.GUEST_KERNEL),
        target=Node.EMULATOR,
        closed_when=every("dev.kvm"),
        steps=(_S2,),
        effort=3,
        history=("tcg",),
        references=("QEMU, docs/system/security: only the virtualisation use case is a security boundary",),
    ),
    Technique(
        id="emu.known-bug",
        title="bug of the emulator that is known and not yet fixed here",
        nature=Nature.WEAKNESS,
        sources=_INSIDE,
        target=Node.EMULATOR,
        closed_when=every("dev.cve", Holds("os.updates", or_absent=True), "bin.version"),
        steps=(_S2,),
        slows=_BINARY,
        effort=2,
        history=_LEGACY + _REMAINING,
        references=(
            "cves.md",
            "Debian and Ubuntu security notices",
        ),
    ),
    Technique(
        id="emu.remote-image",
        title="server that answers the emulator's own network client for an image",
        nature=Nature.WEAKNESS,
        sources=(Node.NETWORK,),
        target=Node.EMULATOR,
        closed_when=every(Holds("img.no-remote", or_absent=True)),
        steps=(_S2, AttackStep.S8_IMAGE_TO_HOST),
        effort=3,
        history=("iscsi",),
        references=(
            "CVE-2016-5126",
            "cves.md: iSCSI",
        ),
    ),
    Technique(
        id="emu.unknown-bug",
        title="unknown bug in a device that the guest has",
        nature=Nature.UNKNOWN_BUG,
        sources=_INSIDE,
        target=Node.EMULATOR,
        closed_when=Never("every VM has at least one device"),
        steps=(_S2,),
        slows=_BINARY,
        effort=4,
        history=_REMAINING,
        contained_by=EMULATOR_HOLD,
        references=(
            "lecture: hardening of the emulator",
            "cves.md: other virtio",
        ),
    ),
    Technique(
        id="helper.known-bug",
        title="known bug in a helper that the guest speaks to (network, TPM, file sharing)",
        nature=Nature.WEAKNESS,
        sources=(Node.GUEST_ROOT, Node.GUEST_KERNEL),
        target=Node.HELPER,
        closed_when=every(Holds("os.updates-helpers", or_absent=True)),
        steps=(_S2,),
        effort=3,
        references=("Debian security tracker: passt, swtpm, virtiofsd",),
    ),
    Technique(
        id="helper.unknown-bug",
        title="unknown bug in a helper",
        nature=Nature.UNKNOWN_BUG,
        sources=(Node.GUEST_ROOT, Node.GUEST_KERNEL),
        target=Node.HELPER,
        closed_when=some(every(_NO_NETWORK, Absent("os.updates-helpers"))),
        steps=(_S2,),
        effort=4,
        contained_by=("proc.helpers",),
        references=("lecture: privileges of the VMM",),
    ),
)

GUEST_TECHNIQUES: Final = INTO_THE_GUEST + INSIDE_THE_GUEST + INTO_THE_EMULATOR
