"""Credential activation: a TPM proves that an attestation key lives in it, by opening what only its endorsement key
opens (TPM2_ActivateCredential). The state between question and answer holds a digest of the secret, not the secret.

1. The endorsement key's certificate, its public area and the attestation key are judged (`ek_true.py`).
2. A fresh secret of 256 bits is sealed to the endorsement key and to the attestation key's name.
3. Only the TPM that has both gives the secret back: it checks the name before it does.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence import ek
from casemate.evidence.chain import believed_part, order
from casemate.evidence.credential import Protector, make_credential
from casemate.evidence.ek_true import truth_of_attestation_key, truth_of_endorsement, truth_of_storage_key
from casemate.evidence.inputs import Inputs, moment_of
from casemate.evidence.policy import Policy
from casemate.evidence.policy_wants import wants_revocation
from casemate.evidence.revocation import revocation_of
from casemate.evidence.verdict import Claim, Reason, Revocation, Verified, false
from casemate.evidence.x509 import Certificate

SCHEMA: Final = "casemate.challenge/1"
SECRET_BYTES: Final = 32


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept until the answer comes. ``secret_sha256``: of the secret. ``claims``: of the keys that were judged,
    as the verdict had them."""

    schema: str
    secret_sha256: str
    claims: dict[str, str]
    revocation: Revocation


class Challenge(msgspec.Struct, frozen=True):
    """``blob``: for the TPM; ``asked``: to keep. Both None unless the verdict accepts."""

    verdict: Verified
    blob: bytes | None
    asked: Asked | None


def challenge(
    key: bytes, certificates: tuple[Certificate, ...], area: bytes | None, inputs: Inputs, policy: Policy
) -> Challenge:
    """Judge an endorsement key and an attestation key; where nothing speaks against them, a question for their TPM.

    Args:
        key: the attestation key's public area.
        certificates: the endorsement key's first, then what came in its file.
        area: the endorsement key's public area, or None: its template is told by the certificate's key.

    Raises:
        InputError: something cannot be read.
    """
    attested = ek.parse_attestation_key(key)
    storage = None if area is None else ek.parse_storage_key(area)
    moment = moment_of(inputs)
    leaf = certificates[0]
    chain = order(leaf, [*certificates[1:], *inputs.certificates])
    reasons: list[Reason] = list(truth_of_endorsement(chain, inputs.anchors, moment))
    believed = believed_part(chain, inputs.anchors)
    more, revocation = revocation_of(believed, inputs.revocations, moment, what="endorsement key")
    reasons += more
    if storage is not None:
        reasons += truth_of_storage_key(storage, leaf)
    reasons += truth_of_attestation_key(attested)
    reasons += wants_revocation(revocation, policy)
    claims = _claims(attested, leaf)
    verdict = Verified(
        kind="tpm-endorsement",
        claims=dict[str, Claim](claims),
        reasons=tuple(dict.fromkeys(reasons)),
        notes=("whether the attestation key is in that TPM is not known before its answer (attest answer)",),
        revocation=revocation,
    )
    if not verdict.is_accepted:
        return Challenge(verdict, None, None)
    protector = Protector.of_key(leaf.key)
    if storage is not None:
        protector = protector._replace(hash_name=storage.hash_name, key_bits=storage.key_bits)
    secret = secrets.token_bytes(SECRET_BYTES)
    asked = Asked(SCHEMA, hashlib.sha256(secret).hexdigest(), claims, revocation)
    return Challenge(verdict, make_credential(protector, attested.name, secret), asked)


def _claims(attested: ek.AttestationKey, leaf: Certificate) -> dict[str, str]:
    try:
        names = ek.read_endorsement(leaf).names
    except InputError:
        names = {}  # a reason says so
    return {
        "attestation-key": hashlib.sha256(attested.key).hexdigest(),
        "attestation-key-name": attested.name.hex(),
        "endorsement-key": hashlib.sha256(leaf.key).hexdigest(),
        "endorsement-certificate": hashlib.sha256(leaf.encoded).hexdigest(),
        **{f"tpm-{name}": value for name, value in names.items()},
    }


def parse_asked(data: bytes, name: str) -> Asked:
    """What `challenge` kept.

    Raises:
        InputError: it is something else.
    """
    try:
        asked = msgspec.json.decode(data, type=Asked)
        is_ours = asked.schema == SCHEMA and len(bytes.fromhex(asked.secret_sha256)) == hashlib.sha256().digest_size
    except (msgspec.DecodeError, ValueError):
        is_ours = False
    if not is_ours:
        raise InputError(f"{name} is no challenge", expected="the file that `attest challenge --challenge` wrote")
    return asked


def judge_answer(asked: Asked, answer: bytes) -> Verified:
    """Whether what a guest sent is what its TPM took out of the challenge."""
    digest = hashlib.sha256(answer).digest()
    is_right = hmac.compare_digest(digest, bytes.fromhex(asked.secret_sha256))
    text = "the answer is not the secret: nothing shows that the attestation key is in the TPM of that certificate"
    return Verified(
        kind="tpm-activation",
        claims=dict[str, Claim](asked.claims),
        reasons=() if is_right else (false("credential.answer", text),),
        revocation=asked.revocation,
    )
