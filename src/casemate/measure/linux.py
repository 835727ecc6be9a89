"""A Linux kernel that QEMU hands to OVMF (direct kernel boot): as the firmware sees it, and what it measures itself.

QEMU fills in the boot protocol's header before the firmware reads it (hw/i386/x86.c, x86_load_linux), so that the
image that is measured is not the file: type of loader, heap, address of the command line, address and size of the
initrd. The address follows from the memory below 4 GiB.
"""

from __future__ import annotations

import struct
import uuid
from typing import Final

from casemate.errors import InputError

_ACPI_BYTES: Final = 0x28000
_LOW_MEMORY: Final = 0xB0000000
_LOW_MEMORY_LARGE: Final = 0x80000000
_LOADER_QEMU: Final = 0xB0
_CAN_USE_HEAP: Final = 0x80
_ABOVE_4G: Final = 0x02
_OPTIONS_MEASURED: Final = b"LOADED_IMAGE::LoadOptions\0"
_INITRD_MEASURED: Final = b"Linux initrd\0"
_CC_MEASUREMENT: Final = uuid.UUID("96751a3d-72f4-41a6-a794-ed5d0e67ae6b").bytes_le[8:]
"""EFI_CC_MEASUREMENT_PROTOCOL; compilers write the first half of a GUID as they like."""


def as_loaded(kernel: bytes, initrd_bytes: int, memory_bytes: int) -> bytes:
    """The kernel as fw_cfg of a q35 machine gives it to the firmware.

    Raises:
        InputError: no bzImage of boot protocol 2.6 or newer, or an initrd that does not fit.
    """
    if len(kernel) < 0x1000 or kernel[0x202:0x206] != b"HdrS":
        raise InputError("the kernel", got="no header of the boot protocol", expected="a bzImage")
    version = int.from_bytes(kernel[0x206:0x208], "little")
    if version < 0x206 or not kernel[0x211] & 1:
        raise InputError("the kernel", got=f"boot protocol {version:#x}", expected="a bzImage of protocol 2.6 or newer")
    real, command = 0x10000, 0x20000
    image = bytearray(kernel)
    image[0x210] = _LOADER_QEMU
    image[0x211] |= _CAN_USE_HEAP
    struct.pack_into("<H", image, 0x224, command - real - 0x200)
    struct.pack_into("<I", image, 0x228, command)
    if initrd_bytes:
        struct.pack_into(
            "<II", image, 0x218, _initrd_address(kernel, version, initrd_bytes, memory_bytes), initrd_bytes
        )
    return bytes(image)


def _initrd_address(kernel: bytes, version: int, initrd_bytes: int, memory_bytes: int) -> int:
    most = int.from_bytes(kernel[0x22C:0x230], "little")
    if version >= 0x20C and int.from_bytes(kernel[0x236:0x238], "little") & _ABOVE_4G:
        most = 0xFFFFFFFF
    low = memory_bytes if memory_bytes < _LOW_MEMORY else _LOW_MEMORY_LARGE
    most = min(most or 0x37FFFFFF, low - _ACPI_BYTES - 1)
    if initrd_bytes >= most:
        raise InputError("the initrd", got=f"{initrd_bytes} bytes", expected=f"less than {most}, to fit into memory")
    return (most - initrd_bytes) & ~4095


def measures_options(kernel: bytes) -> bool:
    """Whether its EFI stub measures its command line into PCR 9 (Linux 6.1 and newer)."""
    return _OPTIONS_MEASURED in kernel


def measures_initrd(kernel: bytes) -> bool:
    """Whether its EFI stub measures an initrd that it loads itself into PCR 9 (Linux 5.18 and newer)."""
    return _INITRD_MEASURED in kernel


def measures_for_td(program: bytes) -> bool:
    """Whether an EFI program measures into a TDX guest's registers: it knows the protocol for that (Linux 6.9)."""
    return _CC_MEASUREMENT in program
