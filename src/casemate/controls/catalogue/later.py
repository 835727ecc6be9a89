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
        "kvm.no-xen",
        "kvm.off-elsewhere",
        "kvm.cve-level",
    ),
    "Emulator binary": ("bin.provenance", "bin.bridge-helper"),
    "Helpers": ("proc.helpers",),
}
