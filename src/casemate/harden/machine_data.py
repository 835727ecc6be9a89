"""What becomes of each kind of device when a machine turns into a specification of ours. First match wins."""

from __future__ import annotations

import enum
import re
from typing import Final, NamedTuple

_RULE: Final = enum.Enum("_RULE", "GONE REPLACED DECIDE LIMIT OURS")
GONE, REPLACED, DECIDE, LIMIT, OURS = _RULE
"""GONE: left out. REPLACED: virtio takes its place. DECIDE, LIMIT: listed, as in `model.Reason`. OURS: every VM of ours
has it or needs no mention."""


class DeviceRule(NamedTuple):
    """``what``: what it is, in the words of the list. ``why`` and ``cost`` for a change, ``step`` for what is left."""

    pattern: re.Pattern[str]
    rule: _RULE
    control: str
    what: str
    why: str = ""
    cost: str = "none"
    step: str = ""


def _rule(
    pattern: str, rule: _RULE, control: str = "", what: str = "", why: str = "", cost: str = "none", step: str = ""
) -> DeviceRule:
    return DeviceRule(re.compile(pattern), rule, control, what, why, cost, step)


_USB: Final = "USB emulation has had public guest-to-host exploits (CVE-2020-14364)"
_SCREEN: Final = "display, sound and remote desktop code in QEMU is large and reachable from the guest or the network"
_SHARE: Final = "the other side is a process or directory of the host that the guest can send anything to"

DEVICE_RULES: Final[tuple[DeviceRule, ...]] = (
    _rule(
        r"vfio-.*",
        DECIDE,
        "iommu.no-hostdev",
        "device of the host",
        step="add [[passthrough]] with its address, a reason and a date if the guest cannot do without it",
    ),
    _rule(
        r"usb-(host|redir)",
        GONE,
        "iommu.no-usb-host",
        "USB device of the host or of a client",
        "descriptors of a device that somebody else built are parsed by QEMU and by the guest",
        "the device in the guest",
    ),
    _rule(r"u2f-.*|ccid.*", GONE, "dev.no-usb", "smart card or token reader", _USB, "smart cards in the guest"),
    _rule(r".*usb.*|.*(xhci|ehci|uhci|ohci).*", GONE, "dev.no-usb", "USB", _USB, "USB keyboard, tablet, disks"),
    _rule(
        r"vhost-user-.*",
        DECIDE,
        "dev.no-share",
        "device of another process, which shares the guest's whole memory",
        step="a disk image or our network in its place",
    ),
    _rule(
        r"vhost-vsock.*|vhost-scsi.*|vhost-vdpa.*",
        GONE,
        "kvm.no-vhost-other",
        "device in the host's kernel",
        "the host's kernel handles the guest's queues: an escape there ignores every confinement",
        "what used it (vsock: the console or the network can do it)",
    ),
    _rule(
        r"virtio-9p.*|virtio-fs.*|ivshmem.*|pvrdma", GONE, "dev.no-share", "share with the host", _SHARE, "shared files"
    ),
    _rule(
        r"isa-fdc|floppy.*", GONE, "dev.no-floppy", "floppy", "the floppy controller let guests out (VENOM)", "floppies"
    ),
    _rule(r"virtio-net.*", OURS),
    _rule(
        r"e1000.*|rtl8139|pcnet|ne2k.*|vmxnet3|tulip|i825[56]\w*|i82801|igb|sungem|rocker",
        REPLACED,
        "dev.no-legacy-nic",
        "emulated network card",
        "emulated cards have had guest-to-host code execution; virtio-net is a fraction of their code",
        "the guest needs a virtio-net driver; its network names may change",
    ),
    _rule(r"virtio-blk.*", OURS),
    _rule(
        r"ide-.*|piix\d-ide.*|ich9-ahci|ahci|scsi-.*|virtio-scsi.*|lsi.*|megasas.*|mptsas.*|am53c974|dc390|esp.*|pvscsi|"
        r"sdhci.*|sd-card|nvme.*",
        REPLACED,
        "dev.no-legacy-disk",
        "emulated disk or controller",
        "emulated IDE, AHCI and SCSI controllers have had guest-to-host code execution",
        "the guest sees /dev/vda for /dev/sda: mount by UUID; it needs a virtio-blk driver",
    ),
    _rule(
        r"xen-.*",
        REPLACED,
        "kvm.no-hyperv-xen",
        "paravirtualised device of Xen",
        "KVM has no Xen bus unless it emulates one: hypercalls more in the host's kernel",
        "the guest needs virtio drivers; its disks are called /dev/vda",
    ),
    _rule(r"virtio-rng.*", OURS),
    _rule(r"virtio-serial.*|virtconsole|isa-serial|serial|pci-serial.*", OURS),
    _rule(
        r"virtserialport",
        GONE,
        "guest.agent",
        "channel to a process of the host",
        "whoever holds its socket runs commands and reads files in the guest through its agent",
        "the guest agent, clipboard and resolution of a desktop",
    ),
    _rule(
        r"virtio-balloon.*",
        GONE,
        "dev.platform-off",
        "memory balloon",
        "a device less; with a balloon one guest's memory pressure shows in others",
        "no memory given back while the guest runs",
    ),
    _rule(
        r"virtio-(vga|gpu|input|keyboard|mouse|tablet|sound|snd).*|.*(vga|VGA|qxl|cirrus|bochs|ramfb|vmware-svga).*",
        GONE,
        "dev.no-display",
        "display or input",
        _SCREEN,
        "the screen: the console is a serial one (casemate console)",
    ),
    _rule(
        r"(ich9-)?intel-hda|hda-.*|AC97|ES1370|sb16|adlib|gus|cs4231a|pcspk|isa-pcspk",
        GONE,
        "dev.no-display",
        "sound",
        _SCREEN,
        "sound",
    ),
    _rule(r"(tpm|spapr-tpm)-.*", OURS),  # machine_rest.tpm speaks of it
    _rule(r"vmgenid", LIMIT, "ent.vmgenid", "generation id", step="a specification has none: reseed a clone yourself"),
    _rule(
        r"pcie-root-port|ioh3420|x3130.*|pxb.*|i82801b11-bridge|pci(e-pci)?-bridge",
        GONE,
        "dev.no-hotplug",
        "port or bridge",
        "hot-plug code and empty ports are devices a guest can talk to (CVE-2014-5388, CVE-2017-5525)",
        "nothing can be added while the guest runs",
    ),
    _rule(
        r"pvpanic.*|vmcoreinfo|i6300esb|ib700|isa-parallel|isa-debug.*|isa-applesmc|vmmouse|vmport|.*ipmi.*|edu|pc-testdev",
        GONE,
        "dev.platform-off",
        "part of the board that nothing needs",
        "an emulated device less",
        "that part",
    ),
    _rule(
        r"(intel|amd|virtio)-iommu.*",
        LIMIT,
        "dev.surface",
        "IOMMU of the guest",
        step="a specification has none; it is of use with devices of the host or nested guests only",
    ),
    _rule(
        r"pc-dimm|nvdimm|virtio-mem.*|virtio-pmem.*",
        LIMIT,
        "dev.surface",
        "pluggable memory",
        step="say the whole size in machine.memory_mib",
    ),
    _rule(r".*-cpu|.*-x86_64-cpu|kvmclock.*|loader", OURS),
)
