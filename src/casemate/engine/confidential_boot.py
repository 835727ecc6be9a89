"""Whether the measured firmware of a confidential guest would start the kernel that it is given.

TDX firmware comes with Secure Boot and keys (Debian's OVMF.inteltdx.ms.fd has Microsoft's), and its variables are part
of the image: a kernel that nobody there vouches for is not started, and the guest waits in the firmware's menu.
"""

from __future__ import annotations

from typing import Final

from casemate.errors import InputError
from casemate.measure.pe import parse_pe
from casemate.measure.secureboot import is_enforcing, vouches
from casemate.measure.tdvf import parse_tdvf
from casemate.measure.variables import SECURITY, parse_variables
from casemate.measure.volumes import parse_volumes

_FIRMWARE_MAX_BYTES: Final = 16 << 20
_KERNEL_MAX_BYTES: Final = 256 << 20


def refuses_kernel(firmware: str, kernel: str) -> bool:
    """Whether Secure Boot of a TDX firmware refuses a kernel; no, where either cannot be read or understood."""
    try:
        image = _read(firmware, _FIRMWARE_MAX_BYTES)
        variables = parse_variables(parse_tdvf(image).variables)
        if not is_enforcing(variables, capable=True):  # before anything large is unpacked
            return False
        if not parse_volumes(image).has_secure_boot:
            return False
        program = parse_pe(_read(kernel, _KERNEL_MAX_BYTES), "the kernel")
        return vouches(program, variables.get((SECURITY, "db"), b"")) is None
    except (InputError, OSError):
        return False


def _read(path: str, limit: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(limit)
