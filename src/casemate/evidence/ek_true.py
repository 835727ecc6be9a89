"""Is an endorsement key a TPM's, and may it vouch for this attestation key? All faults together.

1. The certificate hangs on an authority that the caller believes (`chain.py`).
2. It is an endorsement key's by the TCG EK Credential Profile: purpose tcg-kp-EKCertificate, names of the TPM (critical
   where there is no subject), a key usage that decrypts and nothing that signs, no authority. A maker's authority also
   certifies attestation keys and platforms: without the purpose one would pass for another. Nor is the purpose enough:
   Google's signing keys of vTPMs (2022) have it too.
3. The public area that came along is of that very key, and of one that never leaves its TPM.
4. The attestation key is one whose quotes the TPM made itself; its name is over a digest without known collisions.
5. Neither is of the generator whose keys can be factored (`weak_rsa.py`): then others than the TPM have it.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from casemate.errors import InputError
from casemate.evidence.chain import chain_faults
from casemate.evidence.credential import Protector
from casemate.evidence.ek import AttestationKey, StorageKey, read_endorsement
from casemate.evidence.tpm import ATTESTATION_KEY, DECRYPT
from casemate.evidence.tpm_true import attribute_faults
from casemate.evidence.verdict import Reason, false
from casemate.evidence.weak_rsa import weak_key_faults
from casemate.evidence.x509 import Certificate

EK_PURPOSE: Final = "2.23.133.8.1"
"""tcg-kp-EKCertificate."""
_KEY_USAGE: Final = "2.5.29.15"
_ENDORSEMENT_KEY: Final = {
    **{bit: name for bit, name in ATTESTATION_KEY.items() if name != "sign"},
    DECRYPT: "decrypt",
}
_SIGN: Final = 18


def truth_of_endorsement(
    chain: Sequence[Certificate], anchors: Collection[str], moment: datetime.datetime
) -> Iterator[Reason]:
    """Steps 1, 2 and 5.

    Args:
        chain: the endorsement key's certificate first.
        anchors: SHA-256 of certificates that the caller believes.
    """
    yield from chain_faults(chain, anchors, moment, what="endorsement key")
    leaf = chain[0]
    try:
        found = read_endorsement(leaf)
    except InputError as error:
        yield false("ek.certificate", f"what the certificate says of the TPM cannot be read: {error.what}")
        return
    if EK_PURPOSE not in found.purposes:
        yield false("ek.purpose", f"the certificate is not for an endorsement key (extended key usage {EK_PURPOSE})")
    if found.claims_authority:
        yield false("ek.authority", "the certificate is an authority's, and an endorsement key signs nothing")
    missing = [name for name in ("manufacturer", "model", "version") if not found.names.get(name)]
    if missing:
        yield false("ek.names", f"the certificate does not name the TPM's {', '.join(missing)}")
    elif not found.has_subject and not found.are_names_critical:
        yield false("ek.names", "the certificate has no subject, and its names of the TPM are not critical")
    yield from _usage_faults(leaf)


def _usage_faults(leaf: Certificate) -> Iterator[Reason]:
    try:
        wanted = Protector.of_key(leaf.key).usage
    except InputError as error:
        yield false("ek.key", f"{error.what}: {error.got}" if error.got else error.what)
        return
    if _KEY_USAGE not in leaf.extensions or not leaf.may(wanted):
        yield false("ek.usage", f"the certificate's key is not for {wanted}")
    elif leaf.may("digitalSignature") or leaf.may("keyCertSign"):
        yield false("ek.usage", "the certificate's key may sign, which an endorsement key does not")
    yield from weak_key_faults(leaf.public_key(), "ek.weak", "endorsement key")


def truth_of_storage_key(found: StorageKey, leaf: Certificate) -> Iterator[Reason]:
    """Step 3."""
    if found.key != leaf.key:
        yield false("ek.public", "the public area is of another key than the certificate")
    missing = [name for bit, name in _ENDORSEMENT_KEY.items() if not found.attributes >> bit & 1]
    if missing or found.attributes >> _SIGN & 1:
        text = f"is not {', '.join(missing)}" if missing else "signs too"
        yield false("ek.attributes", f"the public area is of no endorsement key: it {text}")


def truth_of_attestation_key(found: AttestationKey) -> Iterator[Reason]:
    """Steps 4 and 5."""
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    yield from attribute_faults(found.attributes)
    if found.name_hash == "sha1":
        yield false("key.name", "the attestation key's name is a SHA-1 digest, which can be forged")
    yield from weak_key_faults(load_der_public_key(found.key), "key.weak", "attestation key")
