"""A Nitro document to a verdict: of an enclave, or of an instance with a NitroTPM."""

from __future__ import annotations

import hmac

from casemate.evidence import nitro
from casemate.evidence.chain import believed_part
from casemate.evidence.inputs import Inputs, notes_of
from casemate.evidence.nitro_true import AWS_ROOTS, chain_of, truth_of_nitro
from casemate.evidence.policy import Policy
from casemate.evidence.policy_wants import wants_nitro, wants_revocation
from casemate.evidence.revocation import revocation_of
from casemate.evidence.verdict import Claim, Revocation, Verified, unwanted


def verify_nitro(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    """A document, as of its own time when no other was given."""
    document = nitro.parse_document(data)
    moment = inputs.moment or document.moment
    chain, reasons = chain_of(document)
    revocation = Revocation.UNKNOWN
    if chain:
        reasons += truth_of_nitro(document, chain, moment)
        more, revocation = revocation_of(believed_part(chain, AWS_ROOTS), inputs.revocations, moment, what="enclave")
        reasons += more
    reasons += wants_nitro(document, policy.nitro)
    reasons += wants_revocation(revocation, policy)
    if inputs.nonce is not None and not hmac.compare_digest(document.nonce, inputs.nonce):
        reasons.append(unwanted("nonce", "the document has another nonce: this may be a replay"))
    claims: dict[str, Claim] = {
        "module": document.module,
        "time": document.moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        **{f"pcr{number}": value.hex() for number, value in document.pcrs.items() if any(value)},
        "user-data": document.user_data.hex(),
        "nonce": document.nonce.hex(),
        "public-key": document.public_key.hex(),
    }
    kind = "nitro-tpm" if document.is_tpm else "nitro"
    return Verified(kind=kind, claims=claims, reasons=tuple(reasons), notes=notes_of(inputs), revocation=revocation)
