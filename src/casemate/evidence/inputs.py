"""What comes along with evidence, and what every kind does with it."""

from __future__ import annotations

import datetime
import hmac
from collections.abc import Iterator

import msgspec

from casemate.errors import InputError
from casemate.evidence.crl import RevocationList
from casemate.evidence.event_log import EventLog, parse_event_log
from casemate.evidence.verdict import Reason, unwanted
from casemate.evidence.x509 import Certificate

NO_NONCE = "freshness is not known: no nonce was given"


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """What comes along with evidence. ``moment``: when it has to hold; None: the document's own time, for kinds that
    have one. ``anchors``: SHA-256 of certificates (of attestation keys, or above them) that the caller believes.
    ``keys``: SHA-256 of attestation keys themselves (SubjectPublicKeyInfo), for TPMs that were met before.
    ``revocations``: lists of whatever authorities. ``signature``, ``pcrs``: files beside a TPM's quote that came alone;
    ``public_keys``: that may have signed it, as `tpm.parse_key` reads them. ``request_key``: with which a request for
    Secure Execution evidence was sealed; a secret."""

    certificates: tuple[Certificate, ...] = ()
    collateral: bytes | None = None
    event_log: bytes | None = None
    nonce: bytes | None = None
    moment: datetime.datetime | None = None
    anchors: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    revocations: tuple[RevocationList, ...] = ()
    signature: bytes | None = None
    pcrs: bytes | None = None
    public_keys: tuple[bytes, ...] = ()
    request_key: bytes | None = None


def moment_of(inputs: Inputs) -> datetime.datetime:
    """When evidence without a time of its own has to hold.

    Raises:
        InputError: nobody said when.
    """
    if inputs.moment is None:
        raise InputError("this evidence has no time of its own", next_step="--at TIME, or leave --at out for now")
    return inputs.moment


def nonce_faults(nonce: bytes | None, found: bytes, where: str) -> Iterator[Reason]:
    """A field of fixed length holds the nonce at its beginning, and zeros."""
    if nonce is None:
        return
    if len(nonce) > len(found) or not hmac.compare_digest(nonce.ljust(len(found), b"\0"), found):
        yield unwanted("nonce", f"the {where} is not the nonce: this may be a replay")


def notes_of(inputs: Inputs, *more: str) -> tuple[str, ...]:
    """What could not be looked at."""
    return (*more, *(() if inputs.nonce is not None else (NO_NONCE,)))


def log_of(inputs: Inputs) -> EventLog | None:
    """The event log that was given.

    Raises:
        InputError: it cannot be read.
    """
    return parse_event_log(inputs.event_log) if inputs.event_log is not None else None
