"""What hypervisors, platforms and containers call themselves, as tables: signature, vendor text or number to a name.

Names are those of systemd-detect-virt(1) where it has one. Sources: the hypervisors' own interface documents (KVM:
Documentation/virt/kvm/x86/cpuid.rst; Hyper-V: top level functional specification; Xen: arch-x86/cpuid.h; VMware: KB
1009458; bhyve: libvmm), the PCI ID repository, and the kernel's include/linux/proc_ns.h.
"""

from __future__ import annotations

from typing import Final

SIGNATURES: Final[dict[str, str]] = {
    "KVMKVMKVM": "kvm",
    "Linux KVM Hv": "kvm",
    "TCGTCGTCGTCG": "qemu",
    "Microsoft Hv": "microsoft",
    "VMwareVMware": "vmware",
    "XenVMMXenVMM": "xen",
    "VBoxVBoxVBox": "oracle",
    "bhyve bhyve ": "bhyve",
    "prl hyperv  ": "parallels",
    " lrpepyh  vr": "parallels",
    "QNXQVMBSQG": "qnx",
    "ACRNACRNACRN": "acrn",
    "SRESRESRESRE": "sre",
    "Apple VZ": "apple",
    "___ NVMM ___": "nvmm",
    "OpenBSDVMM58": "openbsd",
    "HAXMHAXMHAXM": "haxm",
    "Jailhouse": "jailhouse",
    "UnisysSpar64": "spar",
    "EVMMEVMMEVMM": "evmm",
}
"""CPUID leaf 0x40000000 (EBX, ECX, EDX), trailing zero bytes removed. HAXM and others may stand at 0x40000100."""

FORGED_BY_OTHERS: Final = frozenset({"microsoft"})
"""Signatures that KVM and Xen also show on request, so that Windows feels at home; another one beside it is true."""

DMI_WORDS: Final[tuple[tuple[str, str, str], ...]] = (
    # text at the beginning of a DMI field, hypervisor ("" when the platform uses several), platform
    ("KVM", "kvm", ""),
    ("QEMU", "", "qemu"),
    ("Bochs", "", "bochs"),
    ("SeaBIOS", "", "seabios"),
    ("EFI Development Kit II / OVMF", "", "ovmf"),
    ("OpenStack", "", "openstack"),
    ("KubeVirt", "kvm", "kubevirt"),
    ("Amazon EC2", "", "amazon"),
    ("Google Compute Engine", "kvm", "google"),
    ("Google", "", "google"),
    ("DigitalOcean", "kvm", "digitalocean"),
    ("Hetzner", "", "hetzner"),
    ("Alibaba Cloud", "", "alibaba"),
    ("OracleCloud", "", "oracle-cloud"),
    ("VMware", "vmware", ""),
    ("VMW", "vmware", ""),
    ("innotek GmbH", "oracle", ""),
    ("VirtualBox", "oracle", ""),
    ("Oracle VM VirtualBox", "oracle", ""),
    ("Xen", "xen", ""),
    ("HVM domU", "xen", ""),
    ("Parallels", "parallels", ""),
    ("BHYVE", "bhyve", ""),
    ("Hyper-V", "microsoft", ""),
    ("Virtual Machine", "microsoft", ""),
    ("Apple Virtualization", "apple", ""),
    ("RHEV Hypervisor", "kvm", "rhev"),
    ("oVirt", "kvm", "ovirt"),
    ("Nutanix AHV", "kvm", "nutanix"),
    ("crosvm", "kvm", "crosvm"),
    ("Cloud Hypervisor", "", "cloud-hypervisor"),
)

WEAK_PLATFORMS: Final = frozenset({"google", "hetzner", "amazon", "alibaba", "oracle-cloud"})
"""They sell bare metal under the same vendor name."""

ACPI_OEMS: Final[dict[str, tuple[str, str]]] = {
    "BOCHS": ("", "qemu"),
    "VBOX": ("oracle", ""),
    "PTLTD": ("vmware", ""),
    "XEN": ("xen", ""),
    "VRTUAL": ("microsoft", ""),
    "MSFTVM": ("microsoft", ""),
    "PRLS": ("parallels", ""),
    "BHYVE": ("bhyve", ""),
    "FIRECK": ("", "firecracker"),
    "CLOUDH": ("", "cloud-hypervisor"),
    "CROSVM": ("", "crosvm"),
    "GOOGLE": ("", "google"),
    "AMAZON": ("", "amazon"),
    "ACRN": ("acrn", ""),
}
"""OEM id of an ACPI table header (bytes 10 to 15, padding removed) to (hypervisor, platform)."""

ACPI_DEVICES: Final[dict[str, tuple[str, str, str]]] = {
    "QEMU": ("", "qemu", "a device of QEMU (fw_cfg, pvpanic, guest memory)"),
    "LNRO0005": ("", "", "a virtio-mmio device"),
    "VMGENCTR": ("", "", "VM generation id: only hypervisors have it"),
    "VMBUS": ("microsoft", "", "Hyper-V's VMBus"),
    "XEN0000": ("xen", "", "Xen"),
    "AMZNC10C": ("", "firecracker", "Amazon's VM clock device"),
}
"""Beginning of a name in /sys/bus/acpi/devices to (hypervisor, platform, what it is)."""

PCI_VENDORS: Final[dict[str, tuple[str, str, str, bool]]] = {
    "0x1af4": ("", "", "virtio (Red Hat)", True),
    "0x1b36": ("", "qemu", "QEMU's own devices (Red Hat)", True),
    "0x1234": ("", "qemu", "QEMU's display", True),
    "0x15ad": ("vmware", "", "VMware", True),
    "0x80ee": ("oracle", "", "VirtualBox", True),
    "0x1414": ("microsoft", "", "Hyper-V", True),
    "0x5853": ("xen", "", "Xen platform device", True),
    "0x1ab8": ("parallels", "", "Parallels", True),
    "0x1ae0": ("", "google", "Google", False),
    "0x1d0f": ("", "amazon", "Amazon", False),
}
"""PCI vendor to (hypervisor, platform, what it is, whether that is strong). Real SmartNICs speak virtio too."""

PCI_SUBSYSTEM_VENDORS: Final[dict[str, str]] = {"0x1af4": "qemu"}
"""QEMU stamps the emulated devices of others with this subsystem vendor."""

DISK_MODELS: Final[tuple[tuple[str, str, str], ...]] = (
    ("QEMU", "", "qemu"),
    ("VBOX", "oracle", ""),
    ("VMware", "vmware", ""),
    ("Virtual Disk", "microsoft", ""),
    ("Amazon Elastic Block Store", "", "amazon"),
    ("PersistentDisk", "", "google"),
)

CLOCKS: Final[dict[str, str]] = {
    "kvm-clock": "kvm",
    "hyperv_clocksource_tsc_page": "microsoft",
    "hyperv_clocksource_msr": "microsoft",
    "xen": "xen",
}
"""Clock sources that a kernel registers only after the hypervisor has answered it."""

MODULES: Final[dict[str, tuple[str, str]]] = {
    "hv_vmbus": ("microsoft", ""),
    "vmw_balloon": ("vmware", ""),
    "vmwgfx": ("vmware", ""),
    "vboxguest": ("oracle", ""),
    "virtio_balloon": ("", ""),
    "qemu_fw_cfg": ("", "qemu"),
    "nitro_enclaves": ("", "amazon"),
}
"""Drivers that are loaded (or built in) where such a machine was found, and sometimes elsewhere."""

MAC_PREFIXES: Final[dict[str, tuple[str, str]]] = {
    "52:54:00": ("", "qemu"),
    "00:16:3e": ("xen", ""),
    "00:0c:29": ("vmware", ""),
    "00:50:56": ("vmware", ""),
    "00:05:69": ("vmware", ""),
    "08:00:27": ("oracle", ""),
    "00:15:5d": ("microsoft", ""),
    "00:1c:42": ("parallels", ""),
}

INITIAL_NAMESPACES: Final[dict[str, int]] = {
    "pid": 0xEFFFFFFC,
    "user": 0xEFFFFFFD,
    "uts": 0xEFFFFFFE,
    "ipc": 0xEFFFFFFF,
    "cgroup": 0xEFFFFFFB,
}
"""Inode numbers of the namespaces that the kernel starts with (include/linux/proc_ns.h)."""

CGROUP_CONTAINERS: Final[tuple[tuple[str, str], ...]] = (
    ("/docker", "docker"),
    ("docker-", "docker"),
    ("/kubepods", "kubernetes"),
    ("/libpod", "podman"),
    ("libpod-", "podman"),
    ("/lxc", "lxc"),
    ("/machine.slice/machine-", "systemd-nspawn"),
    ("/crio-", "cri-o"),
    ("cri-containerd", "containerd"),
)

LIMITS: Final = (
    "From inside, nothing here can exclude a hypervisor that wants to stay hidden (Blue Pill): whoever controls CPUID, "
    "the clock and the firmware's tables can make every one of these answers look like bare metal.",
    "What can be done about it: boot only what is signed (Secure Boot, with the measured boot log checked by another "
    "machine), switch VT-x and AMD-V off in the firmware where no hypervisor is wanted, and time from outside.",
)
