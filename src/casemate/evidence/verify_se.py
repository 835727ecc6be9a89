"""Secure Execution evidence to a verdict."""

from __future__ import annotations

import hmac

from casemate.evidence import se
from casemate.evidence.inputs import Inputs
from casemate.evidence.policy import Policy
from casemate.evidence.policy_wants import wants_revocation, wants_se
from casemate.evidence.se_true import truth_of_se
from casemate.evidence.verdict import Claim, Revocation, Verified, unwanted

ONCE = "fresh only when this request was used once: whoever keeps a response can show it again"
HOSTS = "the certificates of the hosts that could open the request were checked when it was made, not here"


def verify_se(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    """A response. It has no time and no chain: what it has is a key that its verifier made."""
    response = se.parse_response(data)
    parts = response.parts()
    images = tuple(bytes.fromhex(image) for image in policy.se.image)
    truth = truth_of_se(response, inputs.request_key, images)
    reasons = [*truth.reasons, *wants_se(response, parts, policy.se)]
    if inputs.nonce is not None and not hmac.compare_digest(truth.nonce, inputs.nonce):
        reasons.append(unwanted("nonce", "the request has another nonce: this may be a replay"))
    claims: dict[str, Claim] = {
        "config-uid": response.config_uid.hex(),
        "user-data": response.user_data.hex(),
        "image": truth.image.hex() if truth.image is not None else "",
        **{name: value.hex() for name, value in parts.items()},
    }
    reasons += wants_revocation(Revocation.UNKNOWN, policy)
    notes = (HOSTS,) if inputs.nonce is not None else (ONCE, HOSTS)
    return Verified(kind="se", claims=claims, reasons=tuple(reasons), notes=notes)
