"""Is a chain of certificates true: each signed by the next, up to one that is pinned by its digest, all in time."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

from casemate.errors import InputError
from casemate.evidence.verdict import Reason, false, stale
from casemate.evidence.x509 import Certificate


def chain_faults(
    chain: Sequence[Certificate], anchors: Collection[str], moment: datetime.datetime, *, what: str
) -> Iterator[Reason]:
    """Every fault of a chain.

    Args:
        chain: leaf first, towards the root. What lies above the first anchor does not matter.
        anchors: SHA-256 of the certificates that are believed, in hexadecimal.
        moment: when it has to have been valid.
        what: how messages name it (``VCEK``).
    """
    if not chain:
        yield false("chain.empty", f"there is no {what} certificate")
        return
    digests = [hashlib.sha256(certificate.encoded).hexdigest() for certificate in chain]
    anchor = next((index for index, digest in enumerate(digests) if digest in anchors), None)
    if anchor is None:
        yield false("chain.root", f"the chain of {what} ends at {chain[-1].common_name!r}, which nobody pinned")
    believed = chain[: len(chain) if anchor is None else anchor + 1]
    for lower, upper in pairwise(believed):
        try:
            signed = lower.signed_by(upper)
        except InputError as error:
            yield false("chain.key", f"{what}: {error.what}: {upper.common_name!r}")
            continue
        if not signed:
            yield false("chain.signature", f"{what}: {lower.common_name!r} is not signed by {upper.common_name!r}")
        if not upper.is_authority:
            yield false("chain.authority", f"{what}: {upper.common_name!r} may not sign certificates")
    for certificate in believed:
        if not certificate.covers(moment):
            period = f"{certificate.not_before:%Y-%m-%d %H:%M} to {certificate.not_after:%Y-%m-%d %H:%M}"
            yield stale("chain.time", f"{what}: {certificate.common_name!r} is valid from {period} UTC")


def order(leaf: Certificate, others: Sequence[Certificate], *, longest: int = 8) -> tuple[Certificate, ...]:
    """The chain from a leaf, out of certificates in any order, by issuer's name; as far as they reach."""
    chain = [leaf]
    while len(chain) < longest and chain[-1].issuer != chain[-1].subject:
        upper = next((item for item in others if item.subject == chain[-1].issuer and item not in chain), None)
        if upper is None:
            break
        chain.append(upper)
    return tuple(chain)
