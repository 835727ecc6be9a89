"""OpenPGP signatures: detached, cleartext (``gpg --clearsign``) and inline, through pysequoia.

What Sequoia's standard policy decides by itself (pysequoia 0.1.25 and later): MD5, SHA-1 and RIPEMD-160 signatures, RSA
and DSA keys below 2048 bits, signatures by a subkey that is not bound for signing, signatures from the future, expired
signatures, keys that were revoked or not alive *when the signature says it was made*. It says only "no valid
signatures", and it believes the signature's own date. On top of it stands here:

1. bounds, before the library sees anything; no compressed messages, which could unpack to any size;
2. signature types: documents in binary form, text only inside the cleartext framework;
3. the key as of *now*: expired or revoked keys are refused even for older signatures, because who steals a key that
   is out of use can write any date (gpg calls such a signature good); DSA keys are refused as well;
4. the reason, found by looking at signature and certificate ourselves, after the library has refused.

The keyring is the trust anchor: who is in it may sign. Bytes in, signers out; the time is given.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from casemate.errors import ImageError
from casemate.image.openpgp_packets import (
    MAX_SIGNATURES,
    LibraryError,
    call,
    dearmor,
    guarded,
    packet_tags,
    packets_in,
    packets_of_cert,
    printable,
    read,
    tag_of,
    word_of,
)
from casemate.image.origin import Signer, refuse

if TYPE_CHECKING:
    from pysequoia import Cert, Sig
    from pysequoia.packet import Packet

SIGNATURE_MAX_BYTES: Final = 256 << 10
MESSAGE_MAX_BYTES: Final = 4 << 20
KEYRING_MAX_BYTES: Final = 16 << 20
MAX_CERTS: Final = 4096
_CLEARTEXT: Final = b"-----BEGIN PGP SIGNED MESSAGE-----"
_WEAK_HASHES: Final = ("MD5", "SHA1", "RipeMD")
_NEXT: Final = "get the publisher's current key over a way that you trust, and give it with --keyring"


class _Signature(NamedTuple):
    """What a signature packet says, read once: the library's properties can raise on hostile packets."""

    raw: Sig
    issuer_fingerprint: str | None
    issuer_key_id: str | None
    kind: str
    hash_algorithm: str
    key_algorithm: str
    created: datetime.datetime | None
    expires: datetime.datetime | None


class Keyring:
    """Certificates that may sign, found by the fingerprint or key id of any of their keys."""

    def __init__(self, data: bytes, what: str) -> None:
        """Parse a keyring, binary or armored.

        Raises:
            ImageError: too large, no keyring, or empty.
        """
        if len(data) > KEYRING_MAX_BYTES:
            raise refuse(what, f"{len(data)} bytes", expected=f"at most {KEYRING_MAX_BYTES} bytes")
        from pysequoia import Cert

        self.what = what
        certs = guarded(lambda: Cert.split_bytes(data), what, "no OpenPGP keyring")
        if not certs:
            raise refuse(what, "no certificates", expected="an OpenPGP keyring: gpg --export KEY > FILE")
        if len(certs) > MAX_CERTS:
            raise refuse(what, f"{len(certs)} certificates", expected=f"at most {MAX_CERTS}")
        self._certs: dict[str, Cert] = {}
        for cert in certs:
            for packet in packets_of_cert(cert, what):
                for name in read(packet, what, "fingerprint", "key_id"):
                    if name:
                        self._certs.setdefault(name.lower(), cert)

    @classmethod
    def joined(cls, rings: Sequence[Keyring]) -> Keyring:
        """One keyring of several; of two certificates with one key the first counts."""
        one = cls.__new__(cls)
        one.what = f"{rings[0].what} and {len(rings) - 1} more keyrings"
        one._certs = {name: cert for ring in reversed(rings) for name, cert in ring._certs.items()}
        return one

    def cert_of(self, *names: str | None) -> Cert | None:
        """The certificate that has a key of one of these names (fingerprint or key id)."""
        return next((self._certs[name.lower()] for name in names if name and name.lower() in self._certs), None)


def verify_detached(
    signature: bytes, content: bytes | str, keyring: Keyring, now: datetime.datetime, what: str
) -> tuple[Signer, ...]:
    """Signers of ``content``: those whose key is in the keyring and whose signature holds; one at least.

    Args:
        signature: binary or armored; several may follow each other.
        content: the signed bytes, or the path of a file (``/proc/self/fd/N``) that is read once from its start; a path
            allows only one signature by a known key. pysequoia holds the interpreter's lock while it reads: a pipe
            must be fed by another process.
        now: aware; keys must be alive then.

    Raises:
        ImageError: why not, for the first signature that does not hold.
    """
    if len(signature) > SIGNATURE_MAX_BYTES:
        raise refuse(what, f"{len(signature)} bytes", expected=f"at most {SIGNATURE_MAX_BYTES} bytes")
    packets = packets_in(signature, what)
    if not 0 < len(packets) <= MAX_SIGNATURES or any(tag_of(packet, what) != "Signature" for packet in packets):
        raise refuse(what, "other OpenPGP data", expected=f"1 to {MAX_SIGNATURES} detached signatures")
    signatures = [_signature(packet, what) for packet in packets]
    known = [sig for sig in signatures if keyring.cert_of(sig.issuer_fingerprint, sig.issuer_key_id)]
    if not known:
        raise _unknown(signatures, keyring, what)
    if isinstance(content, str) and len(known) > 1:
        raise refuse(what, f"{len(known)} signatures by known keys", expected="one, over a file of this size")

    def one(sig: _Signature) -> Signer:
        if sig.kind != "Binary":
            raise refuse(what, f"a signature of the type {sig.kind}", expected="one over binary data")
        return _verify_one(sig, content, keyring, now, what)

    return _those_that_hold(one, known)


def verify_message(
    data: bytes, keyring: Keyring, now: datetime.datetime, what: str
) -> tuple[bytes, tuple[Signer, ...]]:
    """Content and signers of a message that carries its signature: cleartext or inline.

    Only the returned content was signed: use nothing else of ``data``.

    Raises:
        ImageError: why not.
    """
    if len(data) > MESSAGE_MAX_BYTES:
        raise refuse(what, f"{len(data)} bytes", expected=f"at most {MESSAGE_MAX_BYTES} bytes")
    import pysequoia

    if data.lstrip().startswith(_CLEARTEXT):
        signatures = _cleartext_signatures(data, what)
    else:
        signatures = _inline_signatures(data, what)
    wanted = [keyring.cert_of(sig.issuer_fingerprint, sig.issuer_key_id) for sig in signatures]
    certs = [cert for cert in wanted if cert is not None]
    if not certs:
        raise _unknown(signatures, keyring, what)
    try:
        result = call(lambda: pysequoia.verify(bytes=data, store=lambda _names: certs))
    except LibraryError as fault:
        for sig in signatures:
            if (cert := keyring.cert_of(sig.issuer_fingerprint, sig.issuer_key_id)) is not None:
                _check_key(sig, cert, sig.issuer_fingerprint or "", now, what)
        raise refuse(what, f"a signature that does not fit the content ({fault})", next_step=_BAD_NEXT) from None
    if result.bytes is None or not result.valid_sigs:
        raise refuse(what, "no valid signature")

    def one(valid: Any) -> Signer:
        sig = next((s for s in signatures if s.issuer_fingerprint == valid.signing_key), signatures[0])
        cert = keyring.cert_of(valid.certificate)
        if cert is None:
            raise refuse(what, f"a signature by {valid.certificate}, which is not in {keyring.what}")
        _check_key(sig, cert, valid.signing_key, now, what)
        return _signer(cert, sig)

    return bytes(result.bytes), _those_that_hold(one, result.valid_sigs)


def is_message(data: bytes) -> bool:
    """True if ``data`` looks like a message that carries its signature."""
    start = data.lstrip()[:40]
    return start.startswith((_CLEARTEXT, b"-----BEGIN PGP MESSAGE-----"))


def _those_that_hold(check: Callable[[Any], Signer], signatures: Iterable[Any]) -> tuple[Signer, ...]:
    """Publishers sign with the old key and the new one while they change keys: one that holds is enough.

    Raises:
        ImageError: the first reason, when none holds.
    """
    found, faults = [], []
    for signature in signatures:
        try:
            found.append(check(signature))
        except ImageError as fault:
            faults.append(fault)
    if not found:
        raise faults[0]
    return tuple(found)


_BAD_NEXT: Final = "download content and signature again from the publisher; do not use this image"


def _verify_one(sig: _Signature, content: bytes | str, keyring: Keyring, now: datetime.datetime, what: str) -> Signer:
    import pysequoia

    cert = keyring.cert_of(sig.issuer_fingerprint, sig.issuer_key_id)
    if cert is None:
        raise RuntimeError("an unknown key")
    try:
        if isinstance(content, str):
            result = call(lambda: pysequoia.verify(file=content, store=lambda _names: [cert], signature=sig.raw))
        else:
            result = call(lambda: pysequoia.verify(bytes=content, store=lambda _names: [cert], signature=sig.raw))
    except LibraryError as fault:
        _check_key(sig, cert, sig.issuer_fingerprint or "", now, what)
        raise refuse(
            what,
            f"a signature by {cert.fingerprint} that does not fit the content ({fault})",
            next_step=_BAD_NEXT,
        ) from None
    if len(result.valid_sigs) != 1:
        raise refuse(what, f"{len(result.valid_sigs)} valid signatures", expected="one")
    _check_key(sig, cert, result.valid_sigs[0].signing_key, now, what)
    return _signer(cert, sig)


def _signer(cert: Cert, sig: _Signature) -> Signer:
    users = guarded(lambda: [str(user) for user in cert.user_ids], cert.fingerprint, "a key with broken user ids")
    return Signer(
        key=f"openpgp:{cert.fingerprint.lower()}",
        identity=printable(users[0]) if users else "",
        signed_at=sig.created.strftime("%Y-%m-%dT%H:%M:%SZ") if sig.created else "",
    )


def _check_key(sig: _Signature, cert: Cert, signing_key: str, now: datetime.datetime, what: str) -> None:
    """Refuse with the reason when hash, certificate or signing subkey are not good enough now."""
    name = f"the key {cert.fingerprint}"
    if sig.hash_algorithm in _WEAK_HASHES:
        raise refuse(what, f"a digest that can be forged: {sig.hash_algorithm}", expected="SHA-256 or better")
    if sig.key_algorithm == "DSA":
        raise refuse(what, f"{name} is of the weak kind DSA", expected="RSA, ECDSA or EdDSA", next_step=_NEXT)
    try:
        revoked, expires = call(lambda: (cert.is_revoked, cert.expiration))
    except LibraryError as fault:
        raise refuse(what, f"{name} is not acceptable: {fault}", next_step=_NEXT) from None
    if revoked:
        raise refuse(what, f"{name} was revoked", next_step=_NEXT)
    if expires is not None and expires <= now:
        raise refuse(what, f"{name} expired on {expires:%Y-%m-%d}", next_step=_NEXT)
    if sig.expires is not None and sig.expires <= now:
        raise refuse(what, f"the signature expired on {sig.expires:%Y-%m-%d}", next_step=_NEXT)
    if sig.created is not None and sig.created > now + datetime.timedelta(hours=1):
        raise refuse(what, f"a signature from the future: {sig.created:%Y-%m-%d}", next_step="check the clock")
    if signing_key and signing_key.lower() != cert.fingerprint.lower():
        _check_subkey(cert, signing_key.lower(), now, what)


def _check_subkey(cert: Cert, fingerprint: str, now: datetime.datetime, what: str) -> None:
    """The subkey that signed: not revoked, and alive by its newest binding."""
    inside, born = False, None
    newest: tuple[datetime.datetime, datetime.timedelta | None] | None = None
    for packet in packets_of_cert(cert, what):
        name, created, kind, bound, period = read(
            packet, what, "fingerprint", "key_created", "signature_type", "signature_created", "key_validity_period"
        )
        if name:
            inside = name.lower() == fingerprint
            born = created if inside else born
        elif inside and word_of(kind) == "SubkeyRevocation":
            raise refuse(what, f"the subkey {fingerprint} was revoked", next_step=_NEXT)
        elif inside and word_of(kind) == "SubkeyBinding" and bound and (newest is None or bound >= newest[0]):
            newest = (bound, period)
    if born is not None and newest is not None and newest[1] and born + newest[1] <= now:
        raise refuse(what, f"the subkey {fingerprint} expired on {born + newest[1]:%Y-%m-%d}", next_step=_NEXT)


def _unknown(signatures: list[_Signature], keyring: Keyring, what: str) -> Exception:
    names = {sig.issuer_fingerprint or sig.issuer_key_id or "an unnamed key" for sig in signatures}
    return refuse(
        f"{what} is signed by a key that is not in {keyring.what}",
        ", ".join(sorted(names)[:4]),
        next_step=_NEXT,
    )


def _cleartext_signatures(data: bytes, what: str) -> list[_Signature]:
    _, found, armor = data.partition(b"-----BEGIN PGP SIGNATURE-----")
    if not found or b"-----BEGIN PGP" in armor or data.count(_CLEARTEXT) != 1:
        raise refuse(what, "a broken cleartext message", expected="one signed text and one block of signatures")
    return _signatures_in(packets_in(found + armor, what), what)


def _inline_signatures(data: bytes, what: str) -> list[_Signature]:
    binary = dearmor(data, what) if data.lstrip().startswith(b"-----BEGIN") else data
    tags = packet_tags(binary, what)
    if not set(tags) <= {2, 4, 11, 10, 21} or 2 not in tags or 11 not in tags:
        why = "a compressed message" if 8 in tags else "other OpenPGP data"
        raise refuse(
            what,
            why,
            expected="a signed message that is not compressed",
            next_step="gpg --clearsign or --detach-sign, or --compress-algo none with --sign",
        )
    return _signatures_in(packets_in(binary, what), what)


def _signature(packet: Packet, what: str) -> _Signature:
    from pysequoia import Sig

    def read() -> _Signature:
        sig = Sig.from_bytes(bytes(packet))
        words = (word_of(sig.signature_type), word_of(sig.hash_algorithm), word_of(sig.key_algorithm))
        return _Signature(sig, sig.issuer_fingerprint, sig.issuer_key_id, *words, sig.created, sig.expiration)

    found: _Signature = guarded(read, what, "no signature that is understood")
    return found


def _signatures_in(packets: list[Packet], what: str) -> list[_Signature]:
    found = [_signature(packet, what) for packet in packets if tag_of(packet, what) == "Signature"]
    if not 0 < len(found) <= MAX_SIGNATURES:
        raise refuse(what, f"{len(found)} signatures", expected=f"1 to {MAX_SIGNATURES}")
    return found
