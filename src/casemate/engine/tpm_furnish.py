"""What a new TPM is furnished with before a guest sees it: its SHA-256 bank alone, two keys."""

from __future__ import annotations

from collections.abc import Callable

from casemate.engine import tpm_commands as ask
from casemate.errors import VmError

Tell = Callable[[bytes, str], bytes]
"""Sends a command, named for people; gives what follows the header of its response, or raises VmError."""


def furnish(tell: Tell, reset: Callable[[], int]) -> tuple[bytes, bytes]:
    """Make it ready; returns the public parts (TPMT_PUBLIC) of its endorsement and its attestation key.

    Args:
        reset: CMD_INIT, which is a reset of the TPM; gives its result.

    Raises:
        VmError: the TPM refused something.
    """
    tell(ask.startup(), "TPM2_Startup")
    banks = ask.parse_banks(tell(ask.get_banks(), "TPM2_GetCapability"))
    if not ask.parse_allocated(tell(ask.pcr_allocate(tuple(banks), ask.SHA256), "TPM2_PCR_Allocate")):
        raise VmError("the TPM cannot have its SHA-256 bank alone")
    tell(ask.shutdown(), "TPM2_Shutdown")
    result = reset()
    if result != 0:
        raise VmError("the TPM does not come back from a reset", got=f"{result:#x}")
    tell(ask.startup(), "TPM2_Startup")
    banks = ask.parse_banks(tell(ask.get_banks(), "TPM2_GetCapability"))
    if [bank for bank, bits in banks.items() if any(bits)] != [ask.SHA256]:
        raise VmError("the TPM has other PCR banks than SHA-256", got=", ".join(f"{bank:#06x}" for bank in banks))
    endorsement = _keep(tell, ask.EK_TEMPLATE, ask.EK_HANDLE, "endorsement key")
    attestation = _keep(tell, ask.AK_TEMPLATE, ask.AK_HANDLE, "attestation key")
    tell(ask.shutdown(), "TPM2_Shutdown")
    return endorsement, attestation


def _keep(tell: Tell, template: bytes, handle: int, name: str) -> bytes:
    transient, public = ask.parse_primary(tell(ask.create_primary(template), f"making its {name}"))
    tell(ask.evict_control(transient, handle), f"keeping its {name}")
    tell(ask.flush_context(transient), "TPM2_FlushContext")
    return public
