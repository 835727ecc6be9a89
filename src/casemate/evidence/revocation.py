"""Was a certificate of a chain taken back? What its issuers' lists say, and whether there was a list to ask.

1. A list counts for a certificate of its issuer, when that issuer's key signed it.
2. A certificate on a list is revoked, however old the list: nothing is ever taken off again but what has run out.
3. Where an issuer says that it publishes lists (CRL distribution points, which it signed), and none that is in its
   time came along, revocation is *unknown*: said, and what a policy makes of it.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from itertools import pairwise

from casemate.errors import InputError
from casemate.evidence.crl import RevocationList
from casemate.evidence.verdict import Reason, Revocation, false, stale
from casemate.evidence.x509 import Certificate


def revocation_of(
    chain: Sequence[Certificate], lists: Sequence[RevocationList], moment: datetime.datetime, *, what: str
) -> tuple[tuple[Reason, ...], Revocation]:
    """What lists say of a chain: (every reason against it, whether everything was asked).

    Args:
        chain: leaf first, up to its anchor; of which `chain.chain_faults` found no signature wrong.
        moment: when the lists have to be the newest.
        what: how messages name the chain.
    """
    reasons: list[Reason] = []
    asked, missing = False, len(chain) < 2
    for lower, upper in pairwise(chain):
        found, is_answered = _of_one(lower, upper, lists, moment, what)
        reasons += found
        asked |= is_answered
        missing |= not is_answered and lower.names_revocation_list
    if chain and any(item.is_about(chain[-1]) and chain[-1].serial in item.revoked for item in lists):
        reasons.append(false("revoked", f"{what}: {chain[-1].common_name!r} is on its issuer's revocation list"))
    if missing:
        return tuple(reasons), Revocation.UNKNOWN
    return tuple(reasons), Revocation.CHECKED if asked else Revocation.UNPUBLISHED


def _of_one(
    lower: Certificate, upper: Certificate, lists: Sequence[RevocationList], moment: datetime.datetime, what: str
) -> tuple[list[Reason], bool]:
    """(reasons, whether a list in its time spoke of the lower certificate)."""
    reasons: list[Reason] = []
    signed = []
    for item in lists:
        if not item.is_about(lower):
            continue
        try:
            is_signed = item.signed_by(upper)
        except InputError:
            is_signed = False
        if is_signed:
            signed.append(item)
        else:
            text = f"{what}: the revocation list of {item.issuer_name!r} is not signed by that authority"
            reasons.append(false("revocation.signature", text))
    if any(lower.serial in item.revoked for item in signed):
        reasons.append(false("revoked", f"{what}: {lower.common_name!r} is on its issuer's revocation list"))
    current = [item for item in signed if item.this_update <= moment <= item.next_update]
    if signed and not current:
        newest = max(signed, key=lambda item: item.next_update)
        period = f"{newest.this_update:%Y-%m-%d %H:%M} to {newest.next_update:%Y-%m-%d %H:%M}"
        reasons.append(stale("revocation.time", f"{what}: {newest.issuer_name!r}'s revocation list is of {period} UTC"))
    return reasons, bool(current)
