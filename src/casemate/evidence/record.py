"""The launch record: what was started, what was read back, signed by the host and chained to the record before.

Bytes in, bytes out; key files and the record's place on disk are the engine's. A record on disk is one JSON object::

    {"record": {...}, "signature": "128 hexadecimal digits"}

in canonical form: UTF-8, keys sorted, no white space outside texts, no floating point numbers. The signature is Ed25519
over ``DOMAIN`` followed by the bytes of ``record`` as they stand, so they are verified before they are interpreted.
``previous`` in a record is the SHA-256 of the complete bytes of the host's record before it (`GENESIS` for the first)
and ``sequence`` counts from 1: a record that was removed, replaced or put in another order breaks the chain.

What verification shows: who holds the host's key wrote exactly this. Whether the findings please the reader is the
reader's policy. The key lies on the host: who takes the host over can sign anything from then on, but cannot change
records whose hash was noted elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from casemate.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DOMAIN: Final = b"casemate launch record v1\n"
GENESIS: Final = "0" * 64
RECORD_MAX_BYTES: Final = 4 * 1024 * 1024
PUBLIC_KEY_BYTES: Final = 32
SSH_TYPE: Final = "ssh-ed25519"

T = TypeVar("T")

Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Instant = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$")]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base: frozen, and an unknown key is a fault."""


class FileDigest(_Part, frozen=True, kw_only=True):
    """One file that the VM was started from: its role (``kernel``, ``emulator``), digest and size."""

    role: str
    sha256: Sha256
    size_bytes: Annotated[int, Meta(ge=0)]


class RecordedFinding(_Part, frozen=True, kw_only=True):
    """One finding of the live read-back, in the words of the judge. Verdicts are those of `controls.model.Verdict`."""

    control: str
    verdict: Literal["pass", "fail", "not-applicable", "unknown", "manual", "waived"]
    severity: str
    gate: Literal["launch", "report"]
    evidence: str
    expected: str
    why: str


class LaunchRecord(_Part, frozen=True, kw_only=True):
    """One launch. ``spec`` is the specification's canonical JSON text and ``spec_sha256`` its digest."""

    version: Literal[1] = 1
    sequence: Annotated[int, Meta(ge=1)]
    previous: Sha256
    key_sha256: Sha256
    vm_id: Annotated[str, Meta(min_length=1, max_length=64)]
    name: Annotated[str, Meta(max_length=64)]
    released_at: Instant
    accel: str
    spec: str
    spec_sha256: Sha256
    plan_sha256: Sha256
    findings: tuple[RecordedFinding, ...]
    files: tuple[FileDigest, ...]
    versions: dict[str, str]


class ChainLink(msgspec.Struct, frozen=True):
    """The end of a chain: how many records there are, and the digest of the last one's bytes."""

    sequence: int = 0
    sha256: str = GENESIS


class _Signed(_Part, frozen=True, kw_only=True):
    record: msgspec.Raw
    signature: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}$")]


def canonical_json(value: object) -> bytes:
    """A value as canonical JSON: keys sorted, no white space.

    Raises:
        InputError: it holds something that has no canonical form (a float, a lone surrogate, an unknown type).
    """
    try:
        plain = msgspec.to_builtins(value)
        _refuse_floats(plain)
        return msgspec.json.encode(plain, order="sorted")
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError("a value has no canonical JSON form", got=str(error)) from None


def sha256_hex(data: bytes) -> str:
    """SHA-256 of ``data``, 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def link_of(data: bytes, record: LaunchRecord) -> ChainLink:
    """The chain's end once ``record``, whose signed bytes are ``data``, is its last one."""
    return ChainLink(record.sequence, sha256_hex(data))


def sign_record(record: LaunchRecord, private_key: Ed25519PrivateKey) -> bytes:
    """The record's signed bytes, ready for disk.

    Raises:
        RuntimeError: the record names another key, its spec is not what ``spec_sha256`` says, or it has no findings.
        InputError: the record has no canonical form or is larger than `RECORD_MAX_BYTES`.
    """
    _check_content(record, private_key.public_key().public_bytes_raw(), RuntimeError)
    payload = canonical_json(record)
    signature = private_key.sign(DOMAIN + payload)
    data = b'{"record":' + payload + b',"signature":"' + signature.hex().encode() + b'"}'
    if len(data) > RECORD_MAX_BYTES:
        raise InputError("launch record", got=f"{len(data)} bytes", expected=f"at most {RECORD_MAX_BYTES} bytes")
    return data


def verify_record(data: bytes, public_key: bytes) -> LaunchRecord:
    """Verify a record's bytes and return what they say.

    1. Bounded size. 2. The envelope, closed. 3. The signature over the record's bytes as they stand. 4. The record,
    closed. 5. The bytes are the canonical ones. 6. The record names this key, its spec has its digest, it has findings.

    Args:
        data: the whole file.
        public_key: 32 raw bytes, from a source that the reader trusts (`parse_public_key`).

    Raises:
        InputError: any step fails; the message says which.
    """
    # 1. Bounded size.
    if len(data) > RECORD_MAX_BYTES:
        raise InputError("launch record", got=f"{len(data)} bytes", expected=f"at most {RECORD_MAX_BYTES} bytes")
    # 2. The envelope, closed.
    signed = _decode(data, _Signed, "launch record")
    payload = bytes(signed.record)
    # 3. The signature over the record's bytes as they stand.
    _verify_signature(public_key, bytes.fromhex(signed.signature), DOMAIN + payload)
    # 4. The record, closed.
    record = _decode(payload, LaunchRecord, "signed launch record")
    # 5. The bytes are the canonical ones.
    canonical = canonical_json(record)
    if data != b'{"record":' + canonical + b',"signature":"' + signed.signature.encode() + b'"}':
        raise InputError(
            "launch record", got="bytes that are not in canonical form", expected="the file as it was written"
        )
    # 6. The record names this key, its spec has its digest, it has findings.
    _check_content(record, public_key, InputError)
    return record


def public_key_text(public_key: bytes, comment: str = "casemate-launch-record") -> str:
    """The key as one OpenSSH public key line, which ``ssh-keygen -lf`` and people know how to compare."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise RuntimeError(f"an Ed25519 public key has {PUBLIC_KEY_BYTES} bytes, not {len(public_key)}")
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in (SSH_TYPE.encode(), public_key))
    return f"{SSH_TYPE} {base64.b64encode(blob).decode()} {comment}".rstrip()


def parse_public_key(text: str) -> bytes:
    """The 32 raw bytes of an Ed25519 key, from an OpenSSH public key line or from 64 hexadecimal digits.

    Raises:
        InputError: it is neither.
    """
    expected = "one line 'ssh-ed25519 AAAA… comment', or 64 hexadecimal digits"
    words = text.split() if len(text) <= 4096 else []
    if len(words) == 1 and len(words[0]) == 2 * PUBLIC_KEY_BYTES:
        try:
            return bytes.fromhex(words[0])
        except ValueError:
            raise InputError("public key", got="text that is not hexadecimal", expected=expected) from None
    if len(words) < 2 or words[0] != SSH_TYPE or "\n" in text.strip():
        raise InputError("public key", got="another kind of text", expected=expected)
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        raise InputError("public key", got="broken base64", expected=expected) from None
    head = len(SSH_TYPE).to_bytes(4, "big") + SSH_TYPE.encode() + PUBLIC_KEY_BYTES.to_bytes(4, "big")
    key = blob[len(head) :]
    if not blob.startswith(head) or len(key) != PUBLIC_KEY_BYTES:
        raise InputError("public key", got="a key of another type or length", expected=expected)
    return key


def _verify_signature(public_key: bytes, signature: bytes, message: bytes) -> None:
    # Imported here: it takes tens of milliseconds, and most commands verify nothing.
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except InvalidSignature:
        raise InputError(
            "launch record",
            got="a signature that this key did not make over these bytes",
            expected="the record as the host signed it, and the host's own public key",
            next_step="compare the key with `casemate key show` on the host",
        ) from None
    except ValueError as error:
        raise InputError("public key", got=str(error), expected="an Ed25519 public key") from None


def _decode(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(what, got=str(error), expected="a launch record of version 1") from None


def _check_content(record: LaunchRecord, public_key: bytes, error: type[InputError] | type[RuntimeError]) -> None:
    if record.key_sha256 != sha256_hex(public_key):
        raise error("launch record: key_sha256 is not the digest of the key that signs it")
    if record.spec_sha256 != sha256_hex(record.spec.encode()):
        raise error("launch record: spec_sha256 is not the digest of spec")
    if not record.findings:
        raise error("launch record: no findings, so nothing was read back")


def _refuse_floats(value: object) -> None:
    if isinstance(value, float):
        raise TypeError(f"a floating point number ({value})")
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for child in children:
        _refuse_floats(child)
