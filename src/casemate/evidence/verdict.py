"""What a verification says: typed reasons, all of them together, and what the evidence claims. Types only.

Three steps in three kinds of modules: bytes to fields (`snp.py`, `tpm.py`…, which judge nothing); is it true
(`*_true.py`: signatures, chains to pinned roots, revocation, time); is it what the policy wants (`policy.py`). Evidence
is true, or accepted, only when nobody gave a reason against it.
"""

from __future__ import annotations

import enum

import msgspec


class Step(enum.StrEnum):
    """Where a reason comes from. ``stale``: true once, but the time is not within a certificate's or collateral's life:
    apart from false, because fresh collateral may change it."""

    TRUTH = "truth"
    STALE = "stale"
    POLICY = "policy"


class Revocation(enum.StrEnum):
    """``checked``: every list that the chain's issuers publish was there and in its time. ``unknown``: one was not.
    ``unpublished``: the issuers publish none."""

    CHECKED = "checked"
    UNKNOWN = "unknown"
    UNPUBLISHED = "unpublished"


class Reason(msgspec.Struct, frozen=True):
    """One thing that speaks against the evidence. ``code``: stable, for programs (``signature``, ``chain.root``)."""

    step: Step
    code: str
    message: str


Claim = str | int | bool


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one piece of evidence.

    ``kind``: ``sev-snp``, ``tdx``, ``tpm``, ``nitro``, ``azure-snp``… ``claims``: what it says, by name; digests in
    hexadecimal. ``notes``: what could not be looked at. ``revocation``: whether lists were asked.
    """

    kind: str
    claims: dict[str, Claim]
    reasons: tuple[Reason, ...]
    notes: tuple[str, ...] = ()
    revocation: Revocation = Revocation.UNKNOWN

    @property
    def is_true(self) -> bool:
        """Whether signatures, chains and times hold."""
        return all(reason.step is Step.POLICY for reason in self.reasons)

    @property
    def is_accepted(self) -> bool:
        """Whether it is true, and what the policy wants."""
        return not self.reasons


def false(code: str, message: str) -> Reason:
    """It is not true."""
    return Reason(Step.TRUTH, code, message)


def stale(code: str, message: str) -> Reason:
    """It is not within its time."""
    return Reason(Step.STALE, code, message)


def unwanted(code: str, message: str) -> Reason:
    """The policy does not want it."""
    return Reason(Step.POLICY, code, message)
