"""Is a TPM quote true: signed by the attestation key, over exactly the PCRs and the log that came with it.

1. The signature over the quote is the key's.
2. The key is an attestation key, and believed: its certificate hangs on a pinned root, or the caller says that the key
   is the right one (an Azure report does, by its report data). None is of the generator whose keys can be factored
   (`weak_rsa.py`).
3. The PCR values that came along hash to the quote's digest, in the order of the selection.
4. The log replays to those values, for each PCR that both have.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from casemate.errors import InputError
from casemate.evidence.chain import chain_faults
from casemate.evidence.event_log import EventLog, replay
from casemate.evidence.tpm import ATTESTATION_KEY, DECRYPT, PublicKey, Quote, Signature
from casemate.evidence.verdict import Reason, false
from casemate.evidence.weak_rsa import weak_key_faults
from casemate.evidence.x509 import Certificate, verify

Pcrs = Mapping[str, Mapping[int, bytes]]
"""PCR values by bank and number."""


GOOGLE_ROOTS: Final = frozenset(
    {
        "9bd5285f8fb18502a7947e621ffd470266f49fcd3b73e19a190f690ad32a7caf",
        "594759594b9b61524f6c8ef668f7177f7b9066bc0674f2f49fe9e052be78beb2",
    }
)
"""SHA-256 of the roots above the attestation keys of Google Compute Engine's vTPMs: tpm_ek_v1_cloud_host_root (2018),
EK/AK CA Root (2022), as go-tpm-tools pins them."""


def truth_of_key(
    key: PublicKey,
    chain: Sequence[Certificate],
    believed: Collection[str],
    anchors: Collection[str],
    moment: datetime.datetime,
) -> Iterator[Reason]:
    """Step 2.

    Args:
        chain: of the key's certificate, leaf first, or empty.
        believed: SHA-256 of keys (SubjectPublicKeyInfo) that the caller knows.
        anchors: SHA-256 of certificates that the caller believes, beside Google's.
    """
    if key.attributes is not None:
        yield from attribute_faults(key.attributes)
    if chain:
        if chain[0].key != key.key:
            yield false("key", "the certificate is of another key than the one that came along")
        if not chain[0].may("digitalSignature"):
            yield false("chain.usage", "the certificate's key may not sign")
    fingerprint = hashlib.sha256(key.key).hexdigest()
    if fingerprint in believed:
        return
    if chain:
        yield from chain_faults(chain, {*anchors, *GOOGLE_ROOTS}, moment, what="attestation key")
    else:
        text = f"nobody vouches for the attestation key {fingerprint}: --trust FILE (the key, or its certificate)"
        yield false("key.unknown", text)


def attribute_faults(attributes: int) -> Iterator[Reason]:
    """Whether a key with these attributes (TPMA_OBJECT) signs only what its TPM made, and never leaves it."""
    missing = [name for bit, name in ATTESTATION_KEY.items() if not attributes >> bit & 1]
    if missing or attributes >> DECRYPT & 1:
        text = f"is not {', '.join(missing)}" if missing else "decrypts too"
        yield false("key.attributes", f"the key that signs is no attestation key: it {text}")


def truth_of_quote(quote: Quote, signature: Signature, key: bytes) -> Iterator[Reason]:
    """Step 1, and of step 2 what the key itself shows. ``key``: SubjectPublicKeyInfo of the attestation key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    if signature.hash_name == "sha1":
        yield false("signature.sha1", "the quote is signed over SHA-1, which can be forged")
    try:
        public = load_der_public_key(key)
    except (ValueError, UnsupportedAlgorithm):
        yield false("key", "the attestation key cannot be read")
        return
    yield from weak_key_faults(public, "key.weak", "attestation key")
    if not verify(public, signature.scheme, signature.hash_name, signature.value, quote.signed):
        yield false("signature", "the quote is not signed by the attestation key")


def truth_of_pcrs(quote: Quote, pcrs: Pcrs, hash_name: str) -> Iterator[Reason]:
    """Step 3.

    Args:
        hash_name: that the digest of the selection is made with: the signature's.
    """
    values = []
    for bank, numbers in quote.selected:
        for number in numbers:
            value = pcrs.get(bank, {}).get(number)
            if value is None:
                yield false("pcrs.missing", f"{bank} PCR {number} was quoted, and its value did not come along")
                return
            values.append(value)
    if not values:
        yield false("pcrs.none", "the quote is over no PCR at all")
    elif not hmac.compare_digest(hashlib.new(hash_name, b"".join(values)).digest(), quote.digest):
        yield false("pcrs.digest", "the PCR values that came along are not those that were quoted")


def truth_of_log(quote: Quote, pcrs: Pcrs, log: EventLog) -> Iterator[Reason]:
    """Step 4, for the PCRs that the log has events of: others are somebody else's (IMA), whose log is not here."""
    for bank, numbers in quote.selected:
        if bank not in log.banks:
            continue
        try:
            replayed = replay(log, bank)
        except InputError as error:
            yield false("log", error.what)
            return
        for number in numbers:
            value = pcrs.get(bank, {}).get(number, b"")
            if number in replayed and not hmac.compare_digest(replayed[number], value):
                yield false(f"log.{bank}.{number}", f"the event log does not replay to {bank} PCR {number}")


def covers_secure_boot(pcrs: Pcrs, log: EventLog) -> bool:
    """Whether quoted values say what a log says of Secure Boot: those of PCR 7, in a bank that both have. A log of
    SHA-1 alone proves nothing: two logs of one digest can be made."""
    return any(7 in values for bank, values in pcrs.items() if bank in log.banks and bank != "sha1")


def covered(quote: Quote, bank: str) -> tuple[int, ...]:
    """The PCRs of a bank that the quote is over."""
    return tuple(number for name, numbers in quote.selected if name == bank for number in numbers)
