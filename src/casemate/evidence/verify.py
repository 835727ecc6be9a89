"""Evidence of any kind, told by its content, to a verdict: fields, truth, policy. No I/O, and the time is given.

What binds pieces together is checked where the pieces are (`verify_*.py`): the report data of an Azure report are the
hash of the runtime data that hold the vTPM's key; the nonce is where each kind has it; the log is the one that the
registers were made by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from casemate.errors import InputError
from casemate.evidence import azure, gotpm, nitro, snp, tdx, tpm_json
from casemate.evidence.inputs import Inputs
from casemate.evidence.policy import Policy
from casemate.evidence.verdict import Verified
from casemate.evidence.verify_azure import verify_azure
from casemate.evidence.verify_nitro import verify_nitro
from casemate.evidence.verify_snp import verify_snp
from casemate.evidence.verify_tdx import verify_tdx
from casemate.evidence.verify_tpm import verify_gotpm, verify_tpm_json

__all__ = ["Inputs", "verify"]


def verify(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    """Verify one piece of evidence.

    Raises:
        InputError: it is of no kind that is known, or cannot be read.
    """
    for looks_like, check in _KINDS:
        if looks_like(data):
            return check(data, inputs, policy)
    raise InputError(
        "evidence of no known kind",
        got=f"{len(data)} bytes beginning {data[:8].hex()}",
        expected="a SEV-SNP report, TDX quote, TPM attestation, Nitro document or Azure evidence",
    )


_Check = Callable[[bytes, Inputs, Policy], Verified]
_KINDS: Sequence[tuple[Callable[[bytes], bool], _Check]] = (
    (snp.looks_like_snp, verify_snp),
    (tdx.looks_like_tdx, verify_tdx),
    (nitro.looks_like_nitro, verify_nitro),
    (azure.looks_like_azure, verify_azure),
    (tpm_json.looks_like_tpm_json, verify_tpm_json),
    (gotpm.looks_like_gotpm, verify_gotpm),
)
