"""Is a TDX quote true whatever its TD may do: Intel's rules once more, for TDs of which dcap-qvl calls no quote true.

dcap-qvl mixes one question of policy into truth: it stops at a TD that may be debugged, profiled or moved, that works
without SEPT_VE_DISABLE, or that has a service TD, and offers no way around. Its word still counts: it must have found
nothing else wrong (`tdx_true.py`). Here is the rest, by Intel's own description (DCAP quoting library API, appendix 3;
PCS, version 4; Intel's quote verification library):

1. Everything in the collateral, and the platform's chain, is in its time.
2. Each chain ends at Intel's root; each certificate was asked for at its issuer's revocation list, which was there.
3. Intel's signing key made TCB info and QE identity.
4. The platform's key made the report of the quoting enclave, which vouches for the attestation key.
5. The attestation key made the quote.
6. Platform, TDX module and enclave have a level that is not revoked: `tdx_levels.py`.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import hmac
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final

import msgspec

from casemate.evidence.chain import chain_faults, order
from casemate.evidence.crl import RevocationList, parse_list
from casemate.evidence.revocation import revocation_of
from casemate.evidence.tdx import Authentication, TdxQuote, authentication_of
from casemate.evidence.tdx_collateral import Window, hexadecimal, parts_of, windows_of
from casemate.evidence.tdx_levels import (
    QeIdentity,
    TcbInfo,
    TcbStatus,
    level_of_enclave,
    level_of_platform,
    parse_qe_identity,
    parse_tcb_info,
    platform_key,
)
from casemate.evidence.verdict import Reason, false
from casemate.evidence.x509 import Certificate, parse_authority, parse_many, pem_blocks, verify

INTEL_ROOTS: Final = frozenset({"44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"})
"""SHA-256 of the certificate of Intel's SGX root, of which there is one."""
_SIGNER: Final = "Intel SGX TCB Signing"
_PLATFORM: Final = "Intel SGX PCK Certificate"
_REMEMBERED: Final = 8
_REMEMBERED_BYTES: Final = 128 << 10
_CHAIN_BYTES: Final = 16 << 10


class _Collateral(msgspec.Struct, frozen=True):
    """``faults``: of its signatures and chains, which no time changes as long as all ``windows`` hold. ``platform``:
    the chain of the platform's key, where it comes with the collateral."""

    windows: tuple[Window, ...]
    lists: tuple[RevocationList, ...]
    info: TcbInfo
    identity: QeIdentity
    platform: tuple[Certificate, ...]
    faults: tuple[Reason, ...]


def truth_of_signed(
    quote: TdxQuote, collateral: bytes, moment: datetime.datetime
) -> tuple[tuple[Reason, ...], TcbStatus]:
    """Every reason why the quote is not true, and the platform's status; empty when there is a reason.

    Raises:
        InputError: the quote, the collateral or a certificate cannot be read, or there is no level for it.
    """
    authentication = authentication_of(quote)
    found = _remembered(collateral) if len(collateral) <= _REMEMBERED_BYTES else _read(collateral)
    platform = found.platform or _certificates(authentication.certificates)
    reasons = [*found.faults, *_time_faults(found, platform, moment)]
    reasons += _chain_faults(platform, found.lists, moment, "platform's key")
    if not platform:
        return tuple(reasons), TcbStatus("", ())
    reasons += _signature_faults(quote, authentication, platform[0])
    status = level_of_platform(found.info, platform_key(platform[0]), quote.body)
    status = status.joined(level_of_enclave(found.identity, authentication.report))
    evaluation = min(found.info.tcb_evaluation_data_number, found.identity.tcb_evaluation)
    if status.status == "Revoked":
        reasons.append(false("tcb-status.revoked", "Intel revoked this platform's TCB level"))
    return tuple(reasons), TcbStatus("", ()) if reasons else msgspec.structs.replace(status, evaluation=evaluation)


def _read(collateral: bytes) -> _Collateral:
    """Step 3, and step 2 for what Intel signs: as of when the last of its parts began, for at every moment at which all
    of them hold the same is true of them."""
    parts = parts_of(collateral)
    windows = windows_of(collateral)
    begin = max(item.begin for item in windows)
    lists = tuple(parse_list(hexadecimal(text)) for text in (parts.root_ca_crl, parts.pck_crl))
    faults = list(_chain_faults(_certificates(parts.pck_crl_issuer_chain.encode()), lists, begin, "PCK CRL"))
    for what, pem, text, signature in (
        ("TCB info", parts.tcb_info_issuer_chain, parts.tcb_info, parts.tcb_info_signature),
        ("QE identity", parts.qe_identity_issuer_chain, parts.qe_identity, parts.qe_identity_signature),
    ):
        chain = _certificates(pem.encode())
        faults += _chain_faults(chain, lists, begin, what)
        signer = chain[0] if chain and chain[0].common_name == _SIGNER else None
        if signer is None or not _is_signed(signer, hexadecimal(signature), text.encode()):
            faults.append(false("collateral.signature", f"{what} is not signed by the key that comes with it"))
    return _Collateral(
        windows,
        lists,
        parse_tcb_info(parts.tcb_info),
        parse_qe_identity(parts.qe_identity),
        _certificates(parts.pck_certificate_chain.encode()) if parts.pck_certificate_chain else (),
        tuple(faults),
    )


_remembered: Final[Callable[[bytes], _Collateral]] = functools.lru_cache(maxsize=_REMEMBERED)(_read)
"""The same collateral comes along with every quote of a family of platforms, for a month."""


def _certificates(pem: bytes) -> tuple[Certificate, ...]:
    """A chain from its first certificate on; remembered, for every quote of one platform brings the same."""
    return _chain_of(pem) if len(pem) <= _CHAIN_BYTES else _parsed(pem)


def _parsed(pem: bytes) -> tuple[Certificate, ...]:
    blocks = [block for label, block in pem_blocks(pem) if label == "CERTIFICATE"]
    if not blocks:
        return ()
    leaf, *others = (parse_many(blocks[0])[0], *(parse_authority(block) for block in blocks[1:]))
    return order(leaf, others)


_chain_of: Final[Callable[[bytes], tuple[Certificate, ...]]] = functools.lru_cache(maxsize=64)(_parsed)


def _time_faults(found: _Collateral, platform: tuple[Certificate, ...], moment: datetime.datetime) -> Iterator[Reason]:
    """Step 1. Which of them ran out is said where stale is told apart from false."""
    ends = [(item.not_before, item.not_after) for item in platform]
    if not all(item.holds(moment) for item in found.windows) or any(not begin <= moment < end for begin, end in ends):
        yield false("collateral.time", "something is not within its time")


def _chain_faults(
    chain: tuple[Certificate, ...], lists: tuple[RevocationList, ...], moment: datetime.datetime, what: str
) -> Iterator[Reason]:
    """Step 2."""
    faults = tuple(chain_faults(chain, INTEL_ROOTS, moment, what=what))
    yield from faults
    if faults:
        return
    yield from revocation_of(chain, lists, moment, what=what)[0]
    for lower, _ in pairwise(chain):
        if not any(item.is_about(lower) for item in lists):
            yield false("revocation.unknown", f"{what}: no revocation list speaks of {lower.common_name!r}")


def signature_faults(quote: TdxQuote) -> tuple[Reason, ...]:
    """Steps 4 and 5 alone, of a quote that brings its platform's certificate along.

    Raises:
        InputError: the quote or the certificate cannot be read.
    """
    found = authentication_of(quote)
    chain = _certificates(found.certificates)
    return tuple(_signature_faults(quote, found, chain[0])) if chain else ()


def _signature_faults(quote: TdxQuote, found: Authentication, platform: Certificate) -> Iterator[Reason]:
    """Steps 4 and 5."""
    if platform.common_name != _PLATFORM or not _is_signed(platform, found.report_signature, found.report):
        yield false("quote.enclave", "the platform's key did not sign the quoting enclave's report")
    vouched = hashlib.sha256(found.key + found.more).digest().ljust(64, b"\0")
    if not hmac.compare_digest(found.report[320:384], vouched):
        yield false("quote.key", "the quoting enclave does not vouch for the attestation key")
    if not _attested(found, quote.raw[: quote.signed_bytes]):
        yield false("quote.signature", "the quote is not signed by the attestation key")


def _is_signed(certificate: Certificate, signature: bytes, signed: bytes) -> bool:
    return len(signature) == 64 and verify(certificate.public_key(), "ecdsa", "sha256", _sequence(signature), signed)


def _attested(found: Authentication, signed: bytes) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + found.key)
    except ValueError:
        return False
    return verify(key, "ecdsa", "sha256", _sequence(found.signature), signed)


def _sequence(signature: bytes) -> bytes:
    """R and S as the library wants them."""
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    return encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
