"""A firmware's event log by itself: what it replays to. It proves nothing, and the verdict says so."""

from __future__ import annotations

from casemate.errors import InputError
from casemate.evidence.event_log import EventLog, parse_event_log, replay, secure_boot
from casemate.evidence.inputs import Inputs
from casemate.evidence.policy import Policy
from casemate.evidence.verdict import Claim, Verified, false

NO_QUOTE = "no quote covers this log: anybody can write one, only a quote beside it says that it is true"
_CCEL_SECURE_BOOT_REGISTER = 1
"""RTMR 0, which is where a TD's firmware measures its variables."""


def verify_log(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    """Never true; its claims are what a quote over the same registers would have to say."""
    log = parse_event_log(data)
    return Verified(
        kind="event-log",
        claims=claims_of_log(log),
        reasons=(false("log.unquoted", NO_QUOTE),),
    )


def claims_of_log(log: EventLog) -> dict[str, Claim]:
    """The registers that it replays to, by bank, and whether Secure Boot was on by it."""
    claims: dict[str, Claim] = {"events": len(log.events)}
    for bank in log.banks:
        try:
            values = replay(log, bank)
        except InputError as error:
            claims[f"{bank}-replay"] = error.what
            continue
        if log.is_ccel:
            claims |= {f"rtmr{number - 1}": value.hex() for number, value in sorted(values.items())}
        else:
            claims |= {f"{bank}-pcr{number}": value.hex() for number, value in sorted(values.items())}
    state = secure_boot(log, _CCEL_SECURE_BOOT_REGISTER if log.is_ccel else 7)
    claims["secure-boot"] = "unknown" if state is None else state
    return claims
