"""The evidence of a key broker's client, in the form that `evidence/verify.py` takes. Nothing is judged here.

| tee | what it sends | what the binding is compared with |
|---|---|---|
| snp | the report's fields, certificates | report data, 48 bytes and zeros |
| tdx | quote, event log | report data, 48 bytes and zeros |
| az-snp-vtpm, az-tdx-vtpm | HCL report, vTPM quote, VCEK or TD quote | the quote's nonce, 48 bytes |
| tpm | quote, PCRs, key, event log | the quote's nonce, the first 32 bytes: its attester cuts there |
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from casemate.errors import InputError
from casemate.evidence.verify import Inputs
from casemate.release.snp_json import parse_snp_json

_TPM_BINDING_BYTES: Final = 32


class _Tdx(msgspec.Struct, frozen=True):
    quote: Annotated[str, Meta(max_length=1 << 20)]
    cc_eventlog: Annotated[str, Meta(max_length=1 << 20)] | None = None


def prepare(kind: str, evidence: bytes, bound: bytes, inputs: Inputs) -> tuple[bytes, Inputs]:
    """What `verify` is called with.

    Args:
        kind: of `protocol.TEES`.
        evidence: JSON, as sent.
        bound: SHA-384 that the evidence has to carry.
        inputs: what the operator configured; its nonce is replaced.

    Raises:
        InputError: evidence in another form.
    """
    if kind == "sev-snp":
        report, certificates = parse_snp_json(evidence)
        parsed = _certificates(certificates)
        return report, msgspec.structs.replace(inputs, nonce=bound, certificates=(*parsed, *inputs.certificates))
    if kind == "tdx":
        quote, log = _tdx(evidence)
        return quote, msgspec.structs.replace(inputs, nonce=bound, event_log=log)
    if kind == "tpm":
        return evidence, msgspec.structs.replace(inputs, nonce=bound[:_TPM_BINDING_BYTES])
    return evidence, msgspec.structs.replace(inputs, nonce=bound)


def _certificates(found: tuple[bytes, ...]) -> list[object]:
    from casemate.evidence.x509 import parse_many

    return [item for data in found for item in parse_many(data)]


def _tdx(data: bytes) -> tuple[bytes, bytes | None]:
    try:
        found = msgspec.json.decode(data, type=_Tdx)
        log = base64.b64decode(found.cc_eventlog, validate=True) if found.cc_eventlog else None
        return base64.b64decode(found.quote, validate=True), log
    except (msgspec.MsgspecError, ValueError, RecursionError, binascii.Error) as error:
        raise InputError("TDX evidence in another form", got=str(error)[:120], expected="quote, cc_eventlog") from None
