"""A TDX quote to a verdict: alone, or within another kind of evidence."""

from __future__ import annotations

import msgspec

from casemate.evidence import tdx
from casemate.evidence.inputs import Inputs, log_of, moment_of, nonce_faults, notes_of
from casemate.evidence.policy import Policy
from casemate.evidence.policy_wants import wants_revocation, wants_tdx
from casemate.evidence.tdx_true import truth_of_rtmrs, truth_of_tdx
from casemate.evidence.verdict import Claim, Reason, Revocation, Verified


class TdxParts(msgspec.Struct, frozen=True):
    """What there is to say of a quote, for whoever has more to say."""

    quote: tdx.TdxQuote
    reasons: list[Reason]
    claims: dict[str, Claim]
    revocation: Revocation


def verify_tdx(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    """A quote, with collateral and a CCEL's event log where they were given."""
    parts = tdx_parts(data, inputs, policy)
    log = log_of(inputs)
    if log is not None:
        parts.reasons.extend(truth_of_rtmrs(parts.quote, log))
    parts.reasons.extend(nonce_faults(inputs.nonce, parts.quote.report_data, "report data"))
    return Verified(
        kind="tdx",
        claims=parts.claims,
        reasons=tuple(parts.reasons),
        notes=notes_of(inputs),
        revocation=parts.revocation,
    )


def tdx_parts(data: bytes, inputs: Inputs, policy: Policy) -> TdxParts:
    """Truth and policy of one quote, without its report data: those belong to whoever asked for it."""
    quote = tdx.parse_tdx(data)
    found, status = truth_of_tdx(quote, inputs.collateral, moment_of(inputs))
    # Intel's two lists are asked, in their time, for every certificate; without an answer of theirs nothing is true.
    revocation = Revocation.CHECKED if status.status and not found else Revocation.UNKNOWN
    reasons = [*found, *wants_tdx(quote, status, policy.tdx), *wants_revocation(revocation, policy)]
    claims: dict[str, Claim] = {
        "version": quote.version,
        "mrtd": quote.mrtd.hex(),
        **{f"rtmr{number}": value.hex() for number, value in enumerate(quote.rtmrs)},
        **{
            name: value.hex()
            for name, value in (
                ("mrowner", quote.mrowner),
                ("mrownerconfig", quote.mrownerconfig),
                ("mrservicetd", quote.mrservicetd),
            )
            if any(value)
        },
        "mrconfigid": quote.mrconfigid.hex(),
        "mrseam": quote.mrseam.hex(),
        "report-data": quote.report_data.hex(),
        "attributes": f"{quote.attributes:#x}",
        "debug": bool(quote.attributes & tdx.DEBUG),
        "migratable": bool(quote.attributes & tdx.MIGRATABLE),
        "sept-ve-disable": bool(quote.attributes & tdx.SEPT_VE_DISABLE),
        "tcb-status": status.status or "unknown",
        "tcb-evaluation": status.evaluation,
        "advisories": " ".join(status.advisories),
    }
    return TdxParts(quote, reasons, claims, revocation)
