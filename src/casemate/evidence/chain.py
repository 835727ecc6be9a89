"""Is a chain of certificates true: each signed by the next, up to one that is pinned by its digest, all in time."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

from casemate.errors import InputError
from casemate.evidence.verdict import Reason, false, stale
from casemate.evidence.x509 import Certificate


def believed_part(chain: Sequence[Certificate], anchors: Collection[str]) -> tuple[Certificate, ...]:
    """The chain up to its first anchor; all of it when it has none."""
    for index, certificate in enumerate(chain):
        if hashlib.sha256(certificate.encoded).hexdigest() in anchors:
            return tuple(chain[: index + 1])
    return tuple(chain)


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
    believed = believed_part(chain, anchors)
    if hashlib.sha256(believed[-1].encoded).hexdigest() not in anchors:
        yield false("chain.root", f"{what}: {_where_it_ends(chain[-1])}")
    for below, (lower, upper) in enumerate(pairwise(believed)):
        yield from _link_faults(lower, upper, below, what)
    for certificate in believed:
        if certificate.unknown_critical:
            text = f"critical extensions that nobody here understands ({', '.join(certificate.unknown_critical)})"
            yield false("chain.critical", f"{what}: {_name(certificate)} has {text}")
        if not certificate.covers(moment):
            period = f"{certificate.not_before:%Y-%m-%d %H:%M} to {certificate.not_after:%Y-%m-%d %H:%M}"
            yield stale("chain.time", f"{what}: {_name(certificate)} is valid from {period} UTC")


def _link_faults(lower: Certificate, upper: Certificate, below: int, what: str) -> Iterator[Reason]:
    """Of one certificate and the authority above it, which has ``below`` authorities below itself."""
    try:
        signed = lower.signed_by(upper)
    except InputError as error:
        yield false("chain.key", f"{what}: {error.what}: {_name(upper)}")
        return
    if not signed:
        yield false("chain.signature", f"{what}: {_name(lower)} is not signed by {_name(upper)}")
    if not upper.is_authority:
        yield false("chain.authority", f"{what}: {_name(upper)} may not sign certificates")
    elif upper.longest_path is not None and below > upper.longest_path:
        text = f"{_name(upper)} may have {upper.longest_path} authorities below it, and has {below}"
        yield false("chain.path", f"{what}: {text}")


def _where_it_ends(last: Certificate) -> str:
    if last.issuer == last.subject:
        return f"the chain ends at the root {_name(last)}, which nobody pinned"
    return f"the chain ends at {_name(last)}; the certificate of its issuer {last.issuer_name!r} is missing (--certs)"


def _name(certificate: Certificate) -> str:
    return repr(certificate.common_name) if certificate.common_name else f"certificate {certificate.serial:#x}"


def order(leaf: Certificate, others: Sequence[Certificate], *, longest: int = 8) -> tuple[Certificate, ...]:
    """The chain from a leaf, out of certificates in any order, by issuer's name; as far as they reach.

    Of several of one name the one whose key made the signature: makers issue an authority's certificate again.
    """
    chain = [leaf]
    while len(chain) < longest and chain[-1].issuer != chain[-1].subject:
        named = [item for item in others if item.subject == chain[-1].issuer and item not in chain]
        if not named:
            break
        chain.append(next((item for item in named if _signs(item, chain[-1])), named[0]) if named[1:] else named[0])
    return tuple(chain)


def _signs(upper: Certificate, lower: Certificate) -> bool:
    try:
        return lower.signed_by(upper)
    except InputError:
        return False
