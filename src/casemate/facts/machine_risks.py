"""Which device types count as insecure, as USB, as a display: the words of the live read-back, for descriptions too."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

INSECURE: Final = (
    *("ac97", "adlib", "am53c974", "ati-vga", "bochs", "ccid", "cirrus", "cs4231a", "dc390", "e1000", "ehci", "es1370"),
    *("esp", "floppy", "gus", "hda-", "i8255", "i82562", "i82801", "ich9-ahci", "ide-", "igb", "intel-hda", "ipmi"),
    *("isa-fdc", "isa-parallel", "ivshmem", "lsi", "megasas", "mptsas", "ne2k", "nvme", "ohci", "pcnet", "piix3-ide"),
    *("pvrdma", "pvscsi", "qxl", "rocker", "rtl8139", "sb16", "sdhci", "sungem", "tulip", "uhci", "usb-", "vmware"),
    *("vmxnet3", "xen", "virtio-9p"),
)
DISPLAYS: Final = ("VGA", "vga", "qxl", "cirrus", "virtio-gpu", "ramfb", "bochs")
USB: Final = ("usb", "xhci", "ehci", "uhci", "ohci")


@lru_cache(4096)
def is_insecure(kind: str) -> bool:
    """Whether QEMU's security policy leaves this type out, or its history of escapes is long."""
    return kind.lower().startswith(INSECURE)


@lru_cache(4096)
def is_usb(kind: str) -> bool:
    """Whether this is a USB controller or sits behind one."""
    return any(word in kind for word in USB)


@lru_cache(4096)
def is_display(kind: str) -> bool:
    """Whether this is a graphics card."""
    return kind.startswith(DISPLAYS)
