"""Is a Nitro document true: signed by its leaf certificate, whose chain ends at AWS's pinned root."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Final

from casemate.errors import InputError
from casemate.evidence.chain import chain_faults
from casemate.evidence.nitro import NitroDocument
from casemate.evidence.verdict import Reason, false
from casemate.evidence.x509 import Certificate, parse, parse_authority, verify

AWS_ROOTS: Final = frozenset({"641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"})
"""SHA-256 of the root of aws.nitro-enclaves (G1)."""


def chain_of(document: NitroDocument) -> tuple[tuple[Certificate, ...], list[Reason]]:
    """(the document's certificates, leaf first, or none; why one cannot be read).

    The bundle is in order, root first: what AWS's instructions say, and nothing is searched for. All but the leaf are
    the same in every document of a host.
    """
    try:
        return (parse(document.certificate), *map(parse_authority, reversed(document.bundle))), []
    except InputError as error:
        return (), [false("certificate", f"{error.what}: {error.got}")]


def truth_of_nitro(
    document: NitroDocument, chain: Sequence[Certificate], moment: datetime.datetime
) -> Iterator[Reason]:
    """Every reason why the document is not true.

    Args:
        chain: as `chain_of` has it.
        moment: when the certificates have to be valid; the leaf lives three hours.
    """
    leaf = chain[0]
    if not _is_signed(document, leaf):
        yield false("signature", "the document is not signed by its certificate's key")
    if leaf.is_authority:
        yield false("chain.leaf", "the leaf certificate is an authority")
    if not leaf.may("digitalSignature"):
        yield false("chain.usage", "the leaf certificate's key may not sign documents")
    yield from chain_faults(chain, AWS_ROOTS, moment, what="enclave")


def _is_signed(document: NitroDocument, leaf: Certificate) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    try:
        key = leaf.public_key()
    except InputError:
        return False
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        return False
    r, s = (int.from_bytes(part, "big") for part in (document.signature[:48], document.signature[48:]))
    return verify(key, "ecdsa", "sha384", encode_dss_signature(r, s), document.signed)
