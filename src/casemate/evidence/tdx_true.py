"""Is a TDX quote true: Intel's collateral and rules, by dcap-qvl, with what it leaves to its caller decided here.

1. Signature, PCK chain to Intel's root, revocation lists, QE identity and TCB level: dcap-qvl (written for this). It
   calls no quote true of a TD that its host can debug, and so on: where it finds nothing but that, `tdx_signed.py` goes
   through the same rules without it, and whether such a TD is wanted is the policy's to say.
2. The TCB status must be named by the policy (default: UpToDate alone), and so must each advisory.
3. Each part of the collateral is within its time; what has run out is told apart from what is false.
4. An event log replays to the RTMRs; register n of the log is RTMR n-1.
"""

from __future__ import annotations

import datetime
import hmac
from collections.abc import Iterator, Sequence
from typing import Final

from casemate.errors import InputError
from casemate.evidence.event_log import EventLog, replay
from casemate.evidence.tdx import TdxQuote
from casemate.evidence.tdx_collateral import Window, evaluation_of, windows_of
from casemate.evidence.tdx_levels import TcbStatus
from casemate.evidence.tdx_signed import signature_faults, truth_of_signed
from casemate.evidence.verdict import Reason, false, stale

_NOTHING = TcbStatus("", ())


def truth_of_tdx(
    quote: TdxQuote, collateral: bytes | None, moment: datetime.datetime
) -> tuple[tuple[Reason, ...], TcbStatus]:
    """Steps 1 and 3: (every reason why it is not true, the platform's status, or what it was within its time).

    Args:
        collateral: Intel's, as JSON (certificates, revocation lists, TCB info, QE identity); nothing is fetched.
    """
    if collateral is None:
        text = "there is no collateral: --collateral FILE, or `casemate attest fetch` beforehand"
        return (*_signature_faults(quote), false("collateral", text)), _NOTHING
    try:
        evaluation = evaluation_of(collateral)
        faults, status = _judged(quote, collateral, moment, evaluation)
        if not faults:
            return (), status
        windows = windows_of(collateral, _pck_chain(quote))
    except InputError as error:
        return (false("collateral", f"{error.what}: {error.got}"),), _NOTHING
    outside = [item for item in windows if not item.holds(moment)]
    if not outside:
        return faults, _NOTHING
    # Something has run out, and dcap-qvl stops there: was it true while everything was in its time?
    reasons = [stale("collateral.time", f"{item.what}: {_period(item)}") for item in outside]
    within = _moment_within(windows, moment)
    if within is None:
        reasons += _signature_faults(quote)
    else:
        faults, status = _judged(quote, collateral, within, evaluation)
        reasons += faults
    return tuple(reasons), status


def _judged(
    quote: TdxQuote, collateral: bytes, moment: datetime.datetime, evaluation: int
) -> tuple[tuple[Reason, ...], TcbStatus]:
    """(why it is not true; the status)."""
    import dcap_qvl

    try:
        parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral.decode())
    except (ValueError, UnicodeDecodeError) as error:
        return (false("collateral", f"the collateral cannot be read: {str(error)[:120]}"),), _NOTHING
    try:
        found = dcap_qvl.verify(quote.raw, parsed, max(int(moment.timestamp()), 0))
    except ValueError as error:
        text = " ".join(str(error).removeprefix("Verification failed:").split())[:200]
        if any(part in text for part in _OF_POLICY):
            return _signed(quote, collateral, moment)
        code = next((code for part, code in _CODES if part in text), "quote")
        return (false(code, text),), _NOTHING
    return (), TcbStatus(str(found.status), tuple(str(item) for item in found.advisory_ids), evaluation)


def _signature_faults(quote: TdxQuote) -> tuple[Reason, ...]:
    """What can be said without collateral, or with one that was never all in its time."""
    try:
        return signature_faults(quote)
    except InputError as error:
        return (false("quote", str(error).partition("\n")[0][:200]),)


def _signed(quote: TdxQuote, collateral: bytes, moment: datetime.datetime) -> tuple[tuple[Reason, ...], TcbStatus]:
    try:
        return truth_of_signed(quote, collateral, moment)
    except InputError as error:
        return (false("quote", str(error).partition("\n")[0][:200]),), _NOTHING


_OF_POLICY: Final = (
    "Debug mode is enabled",
    "TD profiling is enabled",
    "SERVTD_EXT is enabled",
    "SEPT_VE_DISABLE is not enabled",
    "Reserved bits in TD attributes",
    "TD migration is enabled",
    "Invalid MR service TD",
)
"""What dcap-qvl stops at, by a part of its message, that says nothing against the quote's truth. It looks at these
last; any other message, one that nobody knows yet among them, is a reason why the quote is not true."""
_CODES: Final = (
    ("CertRevoked", "revoked"),
    ("TCB status is invalid", "tcb-status.revoked"),
)
"""What dcap-qvl's messages say, by a part of them; any other is ``quote``. It decides no verdict: all are false."""


def _pck_chain(quote: TdxQuote) -> bytes:
    """The chain of the platform's key in the quote, PEM; empty when there is none that can be read."""
    import dcap_qvl

    try:
        return dcap_qvl.parse_quote(quote.raw).cert_chain_pem_bytes() or b""
    except ValueError:
        return b""


def _moment_within(windows: Sequence[Window], moment: datetime.datetime) -> datetime.datetime | None:
    """The moment nearest to this one at which everything was in its time, if there was any."""
    begin = max(item.begin for item in windows)
    end = min(item.end for item in windows) - datetime.timedelta(seconds=1)
    return min(max(moment, begin), end) if begin <= end else None


def _period(item: Window) -> str:
    return f"in its time from {item.begin:%Y-%m-%d %H:%M} to {item.end:%Y-%m-%d %H:%M} UTC"


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
