"""Controls that are planned and not judged yet, by what they are about: said here so that none is dropped silently."""

from __future__ import annotations

from typing import Final

LATER: Final[dict[str, tuple[str, ...]]] = {
    "CPU and hardware of the host": (
        "cpu.vulns",
        "cpu.no-off-switch",
        "cpu.smt",
        "cpu.l1tf-vmx",
        "cpu.vmscape",
        "cpu.itlb-multihit",
        "cpu.microcode",
        "cpu.guest-flags",
        "cpu.swap",
    ),
    "IOMMU and passthrough": (
        "iommu.on",
        "iommu.translate",
        "iommu.strict",
        "iommu.irq-remap",
        "iommu.acs",
        "iommu.group-whole",
        "iommu.reset",
        "iommu.vf-only",
    ),
    "KVM module": (
        "kvm.two-dim-paging",
        "kvm.unsafe-params",
        "kvm.no-hyperv-xen",
        "kvm.no-xen",
        "kvm.off-elsewhere",
        "kvm.cve-level",
    ),
    "VMM and access to libvirt": ("vmm.no-raw-args",),
    "Emulator binary": ("bin.provenance", "bin.bridge-helper"),
    "Device model": ("dev.no-secret-args", "dev.uefi", "dev.surface"),
    "Helpers": ("proc.helpers",),
    "Network of bridges": ("net.antispoof", "net.isolated"),
    "Images": ("img.size", "img.perm-label", "img.encrypted", "img.ram-files"),
    "Secrets in images": ("sec.keys", "sec.passwords"),
    "Guest system": ("guest.updates", "guest.kernel", "guest.root", "guest.agent", "guest.lockdown"),
    "Entropy": ("ent.no-haveged", "ent.vmgenid"),
    "Confidential computing": ("cc.launch", "cc.attest"),
}
