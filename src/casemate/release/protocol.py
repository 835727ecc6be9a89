"""The messages of confidential-containers' key broker protocol (RCAR), bytes to types and back. Nothing is judged here.

    POST /kbs/v0/auth      {"version", "tee", "extra-params"}      -> {"nonce", "extra-params"}, cookie kbs-session-id
    POST /kbs/v0/attest    0.2.0  {"tee-pubkey", "tee-evidence": …}
                           0.3.0  {"tee-pubkey", "tee-evidence": {"primary_evidence", "additional_evidence"}}
                           0.4.0  {"init-data", "runtime-data": {"nonce", "tee-pubkey"}, "tee-evidence": as 0.3.0}
                                                                   -> {"token"}
    GET  /kbs/v0/resource/REPOSITORY/TYPE/TAG                      -> JWE, flattened JSON

What the evidence has to be bound to is SHA-384 over canonical JSON (RFC 8785) of nonce, key and, from 0.3.0 on, the
text of the additional evidence. Source: kbs/docs/kbs_attestation_protocol.md and kbs/src/attestation of
confidential-containers/trustee, attestation-agent/kbs_protocol of guest-components. Versions 0.1.x wrapped their
answers with RSA PKCS #1 v1.5 and did not authenticate the header: refused.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from casemate.errors import InputError
from casemate.release.tee_key import TeeKey

VERSIONS: Final = ("0.2.0", "0.3.0", "0.4.0")
COOKIE: Final = "kbs-session-id"
PREFIX: Final = "/kbs/v0/"
NONCE_BYTES: Final = 32
TEES: Final = {
    "snp": "sev-snp",
    "tdx": "tdx",
    "tpm": "tpm",
    "az-snp-vtpm": "azure-snp",
    "azsnpvtpm": "azure-snp",
    "az-tdx-vtpm": "azure-tdx",
    "aztdxvtpm": "azure-tdx",
}
"""Name on the wire (the documents' and the one that kbs-types writes) to the kind of evidence that it must be."""
ERRORS: Final = "https://github.com/confidential-containers/kbs/errors/"

T = TypeVar("T")
Short = Annotated[str, Meta(max_length=64)]


class _Closed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Base: frozen, and an unknown key is a fault."""


class Request(_Closed, frozen=True):
    """``extra_params``: algorithms that the client offers; SHA-384, which all take, is used for every kind here."""

    version: Short
    tee: Short
    extra_params: msgspec.Raw = msgspec.Raw(b'""')


class RuntimeData(_Closed, frozen=True):
    """What the evidence is bound to."""

    nonce: Annotated[str, Meta(max_length=128)]
    tee_pubkey: TeeKey


class InitData(_Closed, frozen=True):
    """What the guest was configured with, as the client says."""

    format: Short
    body: Annotated[str, Meta(max_length=256 << 10)]


class Composite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Evidence of the machine, and of devices as text."""

    primary_evidence: msgspec.Raw
    additional_evidence: Annotated[str, Meta(max_length=64)] = ""


class _Attestation4(_Closed, frozen=True):
    runtime_data: RuntimeData
    tee_evidence: Composite
    init_data: InitData | None = None


class _Attestation3(_Closed, frozen=True):
    tee_pubkey: TeeKey
    tee_evidence: Composite


class _Attestation2(_Closed, frozen=True):
    tee_pubkey: TeeKey
    tee_evidence: msgspec.Raw


class Attestation(msgspec.Struct, frozen=True):
    """One attestation of any version. ``evidence``: JSON, as sent. ``bound``: the SHA-384 that it must carry."""

    key: TeeKey
    evidence: bytes
    bound: bytes
    init_data: InitData | None


def parse_request(data: bytes) -> Request:
    """The first message.

    Raises:
        InputError: no JSON of this form, or a version that is not spoken here.
    """
    found = _decode(data, Request, "request")
    if found.version not in VERSIONS:
        raise InputError(
            "KBS Client Protocol Version Mismatch", got=found.version[:32], expected=", ".join(reversed(VERSIONS))
        )
    return found


def parse_attestation(data: bytes, version: str, nonce: str) -> Attestation:
    """The third message, in the form of the version that the session began with.

    Args:
        nonce: that the session was given; the binding is computed with it, whatever the client says.

    Raises:
        InputError: no JSON of this form, another nonce, or evidence of devices, which nobody here could verify.
    """
    if version == "0.4.0":
        four = _decode(data, _Attestation4, "attestation")
        if four.runtime_data.nonce != nonce:
            raise InputError(
                "the nonce of the attestation", got="another one", expected="that of the session's challenge"
            )
        return _composite(four.runtime_data.tee_pubkey, four.tee_evidence, nonce, four.init_data)
    if version == "0.3.0":
        three = _decode(data, _Attestation3, "attestation")
        return _composite(three.tee_pubkey, three.tee_evidence, nonce, None)
    two = _decode(data, _Attestation2, "attestation")
    return Attestation(two.tee_pubkey, bytes(two.tee_evidence), _bound(two.tee_pubkey, nonce, None), None)


def _composite(key: TeeKey, evidence: Composite, nonce: str, init_data: InitData | None) -> Attestation:
    more = evidence.additional_evidence
    if more.strip() not in ("", "{}"):
        raise InputError("additional evidence", got="evidence of devices", expected="none: it cannot be verified here")
    return Attestation(key, bytes(evidence.primary_evidence), _bound(key, nonce, more), init_data)


def _bound(key: TeeKey, nonce: str, more: str | None) -> bytes:
    document: dict[str, object] = {"nonce": nonce, "tee-pubkey": key.jwk()}
    if more is not None:
        document["additional-evidence"] = more
    return canonical_sha384(document)


def canonical_sha384(document: dict[str, object]) -> bytes:
    """SHA-384 of canonical JSON: RFC 8785 for texts, integers, and objects with names in ASCII."""
    return hashlib.sha384(msgspec.json.encode(document, order="sorted")).digest()


def init_data_digest(found: InitData) -> bytes:
    """The digest of init-data, by the algorithm that they name, over the text as it is.

    Raises:
        InputError: another format or algorithm.
    """
    if found.format != "toml":
        raise InputError("init-data", got=found.format, expected="toml")
    try:
        algorithm = msgspec.toml.decode(found.body, type=_InitDataHead).algorithm
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError("init-data", got=str(error)[:100], expected="TOML with version, algorithm and data") from None
    if algorithm not in ("sha256", "sha384", "sha512"):
        raise InputError("init-data", got=f"algorithm {algorithm[:16]}", expected="sha256, sha384 or sha512")
    return hashlib.new(algorithm, found.body.encode()).digest()


class _InitDataHead(msgspec.Struct, frozen=True):
    algorithm: Short


def challenge(nonce: str) -> bytes:
    """The second message."""
    return msgspec.json.encode({"nonce": nonce, "extra-params": ""})


def problem(kind: str, detail: str) -> bytes:
    """An error as trustee's clients read it (RFC 7807)."""
    return msgspec.json.encode({"type": ERRORS + kind, "detail": detail})


def encode_nonce(nonce: bytes) -> str:
    """Base64, as trustee does."""
    return base64.b64encode(nonce).decode()


def _decode(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind, strict=True)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"the {what} is not in the protocol's form", got=str(error)[:160]) from None
