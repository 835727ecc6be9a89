"""Evidence of any kind, told by its content, to a verdict: fields, truth, policy. No I/O, and the time is given.

What binds pieces together is checked where the pieces are (`verify_*.py`): the report data of an Azure report are the
hash of the runtime data that hold the vTPM's key; the nonce is where each kind has it; the log is the one that the
registers were made by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from casemate.errors import InputError
from casemate.evidence import azure, gotpm, nitro, se, snp, tdx, tpm, tpm_json
from casemate.evidence.event_log import looks_like_event_log
from casemate.evidence.inputs import Inputs
from casemate.evidence.policy import Policy, names_measurements
from casemate.evidence.textual import binary_of
from casemate.evidence.verdict import Verified
from casemate.evidence.verify_azure import verify_azure
from casemate.evidence.verify_log import verify_log
from casemate.evidence.verify_nitro import verify_nitro
from casemate.evidence.verify_se import verify_se
from casemate.evidence.verify_snp import verify_snp
from casemate.evidence.verify_tdx import verify_tdx
from casemate.evidence.verify_tpm import verify_gotpm, verify_quote, verify_tpm_json

__all__ = ["NO_MEASUREMENT", "Inputs", "verify"]

NO_MEASUREMENT = "the policy does not name all that has to run: what it leaves open may be anything"


def verify(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    """Verify one piece of evidence.

    Raises:
        InputError: it is of no kind that is known, or cannot be read.
    """
    data = binary_of(data)
    for looks_like, check in _KINDS:
        if looks_like(data):
            found = check(data, inputs, policy)
            if found.kind == "event-log" or names_measurements(found.kind, policy):
                return found
            return msgspec.structs.replace(found, notes=(*found.notes, NO_MEASUREMENT))
    if tdx.looks_like_sgx(data):
        raise InputError(
            "the quote of an SGX enclave, not of a TD",
            got="version 3, or TEE type 0",
            expected="a quote of a whole virtual machine (TEE type 0x81)",
        )
    if data[:4] == azure.MAGIC:
        raise InputError(
            "an HCL report alone, which says nothing of what the VM runs",
            expected="Azure's evidence with the vTPM's quote, as az-snp-vtpm and az-tdx-vtpm write it",
        )
    raise InputError(
        "evidence of no known kind",
        got=f"{len(data)} bytes beginning {data[:8].hex()}",
        expected="a SEV-SNP report, TDX quote, TPM attestation, Nitro document, Azure's, pvattest's, or an event log",
    )


_Check = Callable[[bytes, Inputs, Policy], Verified]
_KINDS: Sequence[tuple[Callable[[bytes], bool], _Check]] = (
    (snp.looks_like_snp, verify_snp),
    (tdx.looks_like_tdx, verify_tdx),
    (nitro.looks_like_nitro, verify_nitro),
    (azure.looks_like_azure, verify_azure),
    (se.looks_like_se, verify_se),
    (tpm_json.looks_like_tpm_json, verify_tpm_json),
    (tpm.looks_like_quote, verify_quote),
    (gotpm.looks_like_gotpm, verify_gotpm),
    (looks_like_event_log, verify_log),
)
