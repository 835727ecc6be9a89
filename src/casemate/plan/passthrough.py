"""[[passthrough]]: which checks stand before a device may reach a guest, and how QEMU gets it.

QEMU gets descriptors (iommufd and the VFIO device node; QEMU 8.2, kernel 6.6): an older one would need sysfs and
/dev/vfio inside its root, and we do not open the root for that.

Checks: 1. QEMU takes descriptors · 2. the function exists and vfio-pci has it · 3. its whole IOMMU group is with
vfio-pci or no driver · 4. the group translates · 5. interrupts are remapped · 6. it can be reset · 7. a network card
only as a virtual function.
"""

from __future__ import annotations

from casemate.errors import HostError, RefusedError
from casemate.facts.vfio import PciFunction
from casemate.plan.model import Emulator, Host, OpenFile
from casemate.plan.options import write_option
from casemate.spec.model import Spec

MINIMUM_VERSION = (8, 2)


def check_passthrough(spec: Spec, host: Host, emulator: Emulator) -> None:
    """Refuse what is not safe to hand over.

    Raises:
        HostError, RefusedError: naming device, control and next step.
    """
    if not spec.passthrough:
        return
    if emulator.version < MINIMUM_VERSION:  # 1
        raise HostError(
            "[[passthrough]] needs a QEMU that takes VFIO descriptors",
            got="QEMU " + ".".join(map(str, emulator.version)),
            expected="8.2 or newer",
            next_step="install qemu-system-x86 from the distribution's backports",
        )
    found = {function.address: function for function in host.pci}
    for wanted in spec.passthrough:
        function = found.get(wanted.address, PciFunction(wanted.address, exists=False))
        _check_function(function)
    if host.unsafe_interrupts is not False:  # 5
        raise RefusedError(
            "iommu.irq-remap",
            "a guest's device could inject interrupts into the host",
            got="allow_unsafe_interrupts=" + ("Y" if host.unsafe_interrupts else "unknown"),
            expected="N",
            next_step="switch interrupt remapping on in the firmware; modprobe -r vfio_iommu_type1 and load it anew",
        )


def _check_function(function: PciFunction) -> None:
    address = function.address
    if not function.exists or function.driver != "vfio-pci" or not function.device_node:  # 2
        raise HostError(
            f"PCI function {address} is not ready for a guest",
            got=f"driver {function.driver or 'none'}" if function.exists else "no such function",
            expected="bound to vfio-pci, with a node below /dev/vfio/devices",
            next_step=f"driverctl set-override {address} vfio-pci",
        )
    foreign = [f"{name} ({driver})" for name, driver in function.others if driver not in {"", "vfio-pci", "pcieport"}]
    if not function.group or foreign:  # 3
        raise RefusedError(
            "iommu.group-whole",
            f"{address} shares its IOMMU group with devices of the host",
            got=", ".join(foreign) or "no IOMMU group",
            expected="every function of the group with vfio-pci or without a driver",
            next_step="bind them to vfio-pci too, or use another slot; never pcie_acs_override",
        )
    if function.group_type not in {"DMA", "DMA-FQ"}:  # 4
        raise RefusedError(
            "iommu.translate",
            f"the IOMMU does not translate for {address}",
            got=function.group_type or "unknown",
            expected="DMA",
            next_step="boot without iommu=pt and iommu.passthrough=1",
        )
    if not function.reset_methods:  # 6
        raise RefusedError(
            "iommu.reset",
            f"{address} cannot be reset: the next user would find what this guest left in it",
            got="no reset method",
            expected="flr, pm or bus",
            next_step="use another device",
        )
    if function.is_network and not function.is_virtual_function:  # 7
        raise RefusedError(
            "iommu.vf-only",
            f"{address} is a whole network card",
            got="a physical function",
            expected="a virtual function, whose MAC and VLAN the host decides",
            next_step="echo 4 > .../sriov_numvfs, and name one of the virtual functions",
        )


def passthrough_files(spec: Spec, host: Host) -> tuple[OpenFile, ...]:
    """Device nodes that the engine opens."""
    if not spec.passthrough:
        return ()
    nodes = {function.address: function.device_node for function in host.pci}
    files = [OpenFile("iommufd", "/dev/iommu", "device")]
    for index, wanted in enumerate(spec.passthrough):
        files.append(OpenFile(f"vfio{index}", f"/dev/vfio/devices/{nodes[wanted.address]}", "device"))
    return tuple(files)


def passthrough_options(index: int, descriptor: int) -> list[str]:
    """Arguments for one device whose node is ``descriptor``."""
    return ["-device", write_option("vfio-pci", id=f"pass{index}", iommufd="iommufd0", fd=descriptor, rombar=0)]
