"""Is a TDX quote true: Intel's collateral and rules, by dcap-qvl, with what it leaves to its caller decided here.

1. Signature, PCK chain to Intel's root, revocation lists, QE identity and TCB level: dcap-qvl (written for this; an
   implementation of ours of these rules would be one more to get wrong).
2. The TCB status must be named by the policy (default: UpToDate alone), and so must each advisory.
3. The collateral is within its time, told apart from false.
4. An event log replays to the RTMRs; register n of the log is RTMR n-1.
"""

from __future__ import annotations

import datetime
import hmac
from collections.abc import Iterator

import msgspec

from casemate.errors import InputError
from casemate.evidence.event_log import EventLog, replay
from casemate.evidence.tdx import TdxQuote
from casemate.evidence.verdict import Reason, false, stale

MAX_COLLATERAL: int = 4 << 20


class TcbStatus(msgspec.Struct, frozen=True):
    """What Intel says of the platform: ``UpToDate``, ``SWHardeningNeeded``, ``OutOfDate``…; empty: not known."""

    status: str
    advisories: tuple[str, ...]


def truth_of_tdx(
    quote: TdxQuote, collateral: bytes | None, moment: datetime.datetime
) -> tuple[tuple[Reason, ...], TcbStatus]:
    """Steps 1 and 3: (every reason why it is not true, the platform's status).

    Args:
        collateral: Intel's, as JSON (certificates, revocation lists, TCB info, QE identity); nothing is fetched.
    """
    nothing = TcbStatus("", ())
    if collateral is None:
        return (false("collateral", "there is no collateral: --collateral FILE (nothing is fetched)"),), nothing
    import dcap_qvl

    if len(collateral) > MAX_COLLATERAL:
        return (false("collateral", f"collateral of {len(collateral)} bytes"),), nothing
    try:
        parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral.decode())
    except (ValueError, UnicodeDecodeError) as error:
        return (false("collateral", f"the collateral cannot be read: {str(error)[:120]}"),), nothing
    try:
        found = dcap_qvl.verify(quote.raw, parsed, int(moment.timestamp()))
    except ValueError as error:
        text = str(error)[:160]
        is_time = any(word in text.lower() for word in ("expired", "not yet", "nextupdate", "next update", "future"))
        return ((stale if is_time else false)("collateral.time" if is_time else "quote", text),), nothing
    return (), TcbStatus(str(found.status), tuple(str(item) for item in found.advisory_ids))


def truth_of_rtmrs(quote: TdxQuote, log: EventLog) -> Iterator[Reason]:
    """Step 4."""
    try:
        replayed = replay(log, "sha384")
    except InputError as error:
        yield false("log", error.what)
        return
    for number, value in enumerate(quote.rtmrs):
        if not hmac.compare_digest(replayed.get(number + 1, bytes(48)), value):
            yield false(f"log.rtmr{number}", f"the event log does not replay to RTMR{number}")
    for register in sorted(replayed.keys() - {0, 1, 2, 3, 4}):
        yield false("log.register", f"the event log has register {register}, which TDX does not")
