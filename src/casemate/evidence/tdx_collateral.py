"""Intel's collateral for TDX: what it consists of, and when each part of it is the newest. Bytes to fields.

Signatures and levels are judged elsewhere (`tdx_true.py`); the times are read here, because a part that has run out
is to be told apart from one that is false.
"""

from __future__ import annotations

import datetime
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence.crl import parse_list
from casemate.evidence.x509 import parse_many

MAX_BYTES: Final = 4 << 20


class _Dated(msgspec.Struct, frozen=True, rename="camel"):
    issue_date: datetime.datetime
    next_update: datetime.datetime
    tcb_evaluation_data_number: int


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """As dcap-qvl has it: chains in PEM, lists and signatures in hexadecimal, the JSON as it was signed."""

    pck_crl_issuer_chain: str
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str
    pck_certificate_chain: str | None = None


class Window(msgspec.Struct, frozen=True):
    """``what`` holds from ``begin`` until just before ``end``, as dcap-qvl's reader of revocation lists has it."""

    what: str
    begin: datetime.datetime
    end: datetime.datetime

    def holds(self, moment: datetime.datetime) -> bool:
        """Whether the moment is within it."""
        return self.begin <= moment < self.end


def evaluation_of(collateral: bytes) -> int:
    """The number of Intel's TCB recovery that the collateral is of: the lower one, of TCB info and QE identity.

    Raises:
        InputError: another form.
    """
    return min(item.tcb_evaluation_data_number for item in _dated(parts_of(collateral)))


def windows_of(collateral: bytes, pck_chain: bytes = b"") -> tuple[Window, ...]:
    """When each part of the collateral is the newest.

    Args:
        pck_chain: of the platform's key, PEM, out of the quote; the collateral's counts before it.

    Raises:
        InputError: another form.
    """
    parts = parts_of(collateral)
    info, identity = _dated(parts)
    found = [
        Window("TCB info", info.issue_date, info.next_update),
        Window("QE identity", identity.issue_date, identity.next_update),
    ]
    for what, text in (("root CRL", parts.root_ca_crl), ("PCK CRL", parts.pck_crl)):
        item = parse_list(hexadecimal(text))
        found.append(Window(what, item.this_update, item.next_update))
    chains = [parts.pck_crl_issuer_chain, parts.tcb_info_issuer_chain, parts.qe_identity_issuer_chain]
    pck = parts.pck_certificate_chain.encode() if parts.pck_certificate_chain else pck_chain
    for chain in (*(text.encode() for text in chains), *((pck,) if pck else ())):
        for certificate in parse_many(chain):
            found.append(Window(certificate.common_name, certificate.not_before, certificate.not_after))
    return tuple(dict.fromkeys(found))


def parts_of(collateral: bytes) -> Parts:
    """The parts, none of them looked into.

    Raises:
        InputError: another form.
    """
    if len(collateral) > MAX_BYTES:
        raise _fault(f"{len(collateral)} bytes")
    try:
        return msgspec.json.decode(collateral, type=Parts)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _fault(str(error)[:120]) from None


def _dated(parts: Parts) -> tuple[_Dated, _Dated]:
    try:
        info = msgspec.json.decode(parts.tcb_info, type=_Dated)
        identity = msgspec.json.decode(parts.qe_identity, type=_Dated)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _fault(str(error)[:120]) from None
    for item in (info, identity):
        if item.issue_date.tzinfo is None or item.next_update.tzinfo is None:
            raise _fault("a time without a zone")
    return info, identity


def hexadecimal(text: str) -> bytes:
    """A part's octets.

    Raises:
        InputError: another form.
    """
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise _fault("a list or a signature that is not hexadecimal") from None


def _fault(what: str) -> InputError:
    return InputError("the collateral cannot be read", got=what, expected="JSON as Intel's PCS and dcap-qvl have it")
