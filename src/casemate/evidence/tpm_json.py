"""A TPM's evidence as JSON: what confidential-containers' TPM attester writes, with room for what it leaves out.

ak_public          base64: SubjectPublicKeyInfo, or the TPM's own public area (TPM2B_PUBLIC, TPMT_PUBLIC)
tpm_quote          message (base64: TPMS_ATTEST), signature (base64: TPMT_SIGNATURE),
                   pcrs: SHA-256 values from PCR 0 on, or {"sha384": {"7": "..."}}, hexadecimal
ak_certificate     optional: PEM, the key's certificate and those above it
event_log          optional: base64
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from casemate.errors import InputError
from casemate.evidence.textual import octets_of
from casemate.evidence.tpm import DIGEST_BYTES, MAX_PCRS
from casemate.evidence.x509 import Certificate, parse_many

MAX_BYTES: Final = 1 << 20
_Text = Annotated[str, Meta(max_length=MAX_BYTES)]
_Digest = Annotated[str, Meta(max_length=128)]


class _Quote(msgspec.Struct, frozen=True):
    message: _Text
    signature: _Text
    pcrs: list[_Digest] | dict[str, dict[str, _Digest]]


class _Evidence(msgspec.Struct, frozen=True):
    ak_public: _Text
    tpm_quote: _Quote
    ak_certificate: _Text | None = None
    event_log: _Text | None = None


class TpmEvidence(msgspec.Struct, frozen=True):
    """``key``: as it came, `tpm.parse_key` reads it. ``pcrs``: by bank and number. ``chain``: leaf first, or empty."""

    key: bytes
    quote: bytes
    signature: bytes
    pcrs: dict[str, dict[int, bytes]]
    chain: tuple[Certificate, ...]
    event_log: bytes | None


def looks_like_tpm_json(data: bytes) -> bool:
    """Whether it is JSON with a key and a quote."""
    head = data[:MAX_BYTES]
    return head.lstrip()[:1] == b"{" and b'"ak_public"' in head and b'"tpm_quote"' in head


def parse_tpm_json(data: bytes) -> TpmEvidence:
    """The parts of the evidence.

    Raises:
        InputError: another form.
    """
    try:
        found = msgspec.json.decode(data, type=_Evidence)
        return TpmEvidence(
            key=octets_of(found.ak_public),
            quote=octets_of(found.tpm_quote.message),
            signature=octets_of(found.tpm_quote.signature),
            pcrs=_pcrs(found.tpm_quote.pcrs),
            chain=parse_many(found.ak_certificate.encode()) if found.ak_certificate else (),
            event_log=octets_of(found.event_log) if found.event_log else None,
        )
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(
            "TPM evidence in another form", got=str(error)[:120], expected="ak_public, tpm_quote as in docs/attest.md"
        ) from None


def _pcrs(found: list[str] | dict[str, dict[str, str]]) -> dict[str, dict[int, bytes]]:
    banks = {"sha256": {str(number): text for number, text in enumerate(found)}} if isinstance(found, list) else found
    values: dict[str, dict[int, bytes]] = {}
    for bank, texts in banks.items():
        if bank not in DIGEST_BYTES:
            raise ValueError(f"no bank {bank[:16]!r}")
        values[bank] = {_number(number): bytes.fromhex(text) for number, text in texts.items()}
        if any(len(value) != DIGEST_BYTES[bank] for value in values[bank].values()):
            raise ValueError(f"a {bank} PCR of another length")
    return values


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 2 and int(text) < MAX_PCRS):
        raise ValueError(f"no PCR {text[:8]!r}")
    return int(text)
