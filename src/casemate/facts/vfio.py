"""PCI functions that someone wants to give to a guest: driver, IOMMU group, interrupt remapping, reset, VF or not.

Read from /sys/bus/pci/devices/ADDRESS (Documentation/ABI/testing/sysfs-bus-pci, sysfs-kernel-iommu_groups,
sysfs-devices-vfio-dev in the kernel).
"""

from __future__ import annotations

import msgspec

from casemate.facts.root import Root

_GROUP_MAX = 64


class PciFunction(msgspec.Struct, frozen=True):
    """One function. Empty text: not there; ``others`` are the other members of its group with their drivers.

    ``device_node`` is the VFIO character device (``vfio0``), which exists once vfio-pci is bound (kernel 6.6).
    """

    address: str
    exists: bool
    driver: str = ""
    class_code: str = ""
    group: str = ""
    group_type: str = ""
    others: tuple[tuple[str, str], ...] = ()
    reset_methods: tuple[str, ...] = ()
    is_virtual_function: bool = False
    device_node: str = ""

    @property
    def is_network(self) -> bool:
        """PCI base class 02."""
        return self.class_code.startswith("0x02")


def read_function(root: Root, address: str) -> PciFunction:
    """Everything that sysfs says about one function; never raises for what is missing."""
    base = f"/sys/bus/pci/devices/{address}"
    if not root.exists(base):
        return PciFunction(address, exists=False)
    group = _link_name(root, f"{base}/iommu_group")
    members = _list(root, f"/sys/kernel/iommu_groups/{group}/devices") if group else ()
    nodes = _list(root, f"{base}/vfio-dev")
    return PciFunction(
        address=address,
        exists=True,
        driver=_link_name(root, f"{base}/driver"),
        class_code=_text(root, f"{base}/class"),
        group=group,
        group_type=_text(root, f"/sys/kernel/iommu_groups/{group}/type") if group else "",
        others=tuple(
            (name, _link_name(root, f"/sys/bus/pci/devices/{name}/driver")) for name in members if name != address
        ),
        reset_methods=tuple(_text(root, f"{base}/reset_method").split()),
        is_virtual_function=root.exists(f"{base}/physfn"),
        device_node=nodes[0] if nodes else "",
    )


def unsafe_interrupts(root: Root) -> bool | None:
    """Whether VFIO works without interrupt remapping; None: cannot be read, which is not a no."""
    text = _text(root, "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")
    return {"N": False, "0": False, "Y": True, "1": True}.get(text)


def _text(root: Root, path: str) -> str:
    try:
        return root.read_text(path, 4096).strip()
    except (OSError, ValueError):
        return ""


def _link_name(root: Root, path: str) -> str:
    try:
        return root.readlink(path).rpartition("/")[2]
    except OSError:
        return ""


def _list(root: Root, path: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(root.list_dir(path, _GROUP_MAX)))
    except OSError:
        return ()
