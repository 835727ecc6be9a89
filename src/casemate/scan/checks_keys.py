"""Validators of private keys: DER and the other encodings, read as far as needed to know that it is a key.

RSAPrivateKey  SEQUENCE { INTEGER 0, INTEGER n, INTEGER e, INTEGER d, … }          RFC 8017 A.1.2
ECPrivateKey   SEQUENCE { INTEGER 1, OCTET STRING key, [0] curve, [1] public }      RFC 5915
PKCS #8        SEQUENCE { INTEGER 0, SEQUENCE { OID, … }, OCTET STRING }            RFC 5958
encrypted      SEQUENCE { SEQUENCE { OID, … }, OCTET STRING }                       RFC 5958
OpenSSH        "openssh-key-v1\\0", string cipher, string kdf, string options, uint32 keys, string public …
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from casemate.scan.model import Found

MAX_BODY_BYTES: Final = 20_000
_ARMOR: Final = re.compile(rb"[A-Za-z0-9+/]+={0,2}")
_HEADERS: Final = re.compile(rb"^(?:[A-Za-z][A-Za-z0-9-]{0,40}: [^\n]{0,400}\n)+")
_SEQUENCE, _INTEGER, _OCTETS, _OID = 0x30, 0x02, 0x04, 0x06
_EXPONENTS: Final = frozenset({3, 5, 17, 35, 257, 65537})
_OIDS: Final = {
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01": "RSA",
    b"\x2a\x86\x48\xce\x3d\x02\x01": "elliptic curve",
    b"\x2b\x65\x70": "Ed25519",
    b"\x2b\x65\x71": "Ed448",
    b"\x2b\x65\x6e": "X25519",
    b"\x2a\x86\x48\xce\x38\x04\x01": "DSA",
    b"\x2a\x86\x48\x86\xf7\x0d\x01\x03\x01": "Diffie-Hellman",
}


def check_pem(match: re.Match[bytes], data: bytes) -> Found | None:
    """A PEM block whose body has the structure that its label says; only its beginning may be there."""
    body, encrypted = _pem_body(data[match.end() : match.end() + MAX_BODY_BYTES])
    if len(body) < 60:
        return None
    secret = base64.b64encode(body)
    kind = match["kind"]
    if kind == b"OPENSSH PRIVATE KEY":
        detail = openssh_detail(body)
        return Found(secret, detail) if detail else None
    if encrypted:
        return Found(secret, "encrypted with a passphrase") if len(set(body)) > 40 else None
    detail = der_detail(body)
    return Found(secret, detail) if detail else None


def _pem_body(text: bytes) -> tuple[bytes, bool]:
    """The decoded body, and whether its headers say that it is encrypted. Line ends may be written out (``\\n``)."""
    text = text.split(b"-----END", 1)[0]
    text = text.replace(b"\\r", b"").replace(b"\\n", b"\n").replace(b"\r", b"").replace(b"\\", b"")
    text = b"\n".join(line.strip(b" \t") for line in text.split(b"\n")).lstrip(b" \t\n\"'")
    headers = _HEADERS.match(text)
    encrypted = headers is not None and b"ENCRYPTED" in headers[0]
    if headers is not None:
        text = text[headers.end() :]
    # The body ends at the first line that is no base64: with a block of another file behind it, only a part is there.
    parts: list[bytes] = []
    for line in text.split(b"\n"):
        stripped = line.strip(b" \t\"',+;|")
        if not stripped and not parts:
            continue
        found = _ARMOR.match(stripped)
        if found is None:
            break
        parts.append(found[0])
        if found.end() != len(stripped):
            break
    return _decode(b"".join(parts)), encrypted


def _decode(text: bytes) -> bytes:
    text = text.rstrip(b"=")
    text = text[: len(text) - (1 if len(text) % 4 == 1 else 0)]
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""


def _header(data: bytes, at: int) -> tuple[int, int, int] | None:
    """(tag, start of the content, its length) of the DER element at ``at``; the content may end behind the data."""
    if at + 2 > len(data):
        return None
    tag, length, start = data[at], data[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 3 or start + count > len(data):
            return None
        length = int.from_bytes(data[start : start + count], "big")
        start += count
    return tag, start, length


def der_detail(data: bytes) -> str:
    """What kind of private key this is; empty when it is none. The end may be cut off."""
    outer = _header(data, 0)
    if outer is None or outer[0] != _SEQUENCE or not 40 <= outer[2] <= 16_384:
        return ""
    first = _header(data, outer[1])
    if first is None:
        return ""
    tag, start, length = first
    if tag == _SEQUENCE:
        return "encrypted with a passphrase" if _oid(data, start) is not None else ""
    if tag != _INTEGER or length != 1 or data[start : start + 1] not in {b"\0", b"\1"}:
        return ""
    second = _header(data, start + length)
    if second is None:
        return ""
    if second[0] == _SEQUENCE:
        oid = _oid(data, second[1])
        return "" if oid is None else f"{_OIDS.get(oid, 'unknown kind')}, not encrypted"
    if second[0] == _OCTETS and data[start] == 1:
        return f"elliptic curve, {second[2] * 8} bits, not encrypted"
    if second[0] == _INTEGER and second[2] >= 64:
        return f"RSA or DSA, {(second[2] - 1) * 8} bits, not encrypted"
    return ""


def _oid(data: bytes, at: int) -> bytes | None:
    header = _header(data, at)
    if header is None or header[0] != _OID or not 3 <= header[2] <= 16:
        return None
    return data[header[1] : header[1] + header[2]]


def openssh_detail(body: bytes) -> str:
    """What an OpenSSH key is; empty when it is none."""
    magic = b"openssh-key-v1\0"
    if not body.startswith(magic):
        return ""
    cipher, at = _string(body, len(magic))
    kdf, at = _string(body, at)
    if (
        cipher is None
        or kdf is None
        or not re.fullmatch(rb"none|[a-z0-9-]{6,20}(?:-ctr|-cbc|-gcm@openssh\.com)?(?:@openssh\.com)?", cipher)
    ):
        return ""
    _options, at = _string(body, at)
    public, _ = _string(body, at + 4)
    name = _string(public, 0)[0] if public else None
    if name is None or not re.fullmatch(rb"[a-z0-9@.-]{4,64}", name):
        return ""
    state = "not encrypted" if cipher == b"none" else "encrypted with a passphrase"
    return f"{name.decode()}, {state}"


def _string(data: bytes, at: int) -> tuple[bytes | None, int]:
    """A string with its length before it (RFC 4251), at most 4096 bytes, and where it ends."""
    if at < 0 or at + 4 > len(data):
        return None, len(data)
    length = int.from_bytes(data[at : at + 4], "big")
    if length > 4096 or at + 4 + length > len(data):
        return None, len(data)
    return data[at + 4 : at + 4 + length], at + 4 + length


def check_openssh_binary(match: re.Match[bytes], data: bytes) -> Found | None:
    """The decoded form, as agents and memory dumps hold it."""
    body = data[match.start() : match.start() + 8192]
    detail = openssh_detail(body)
    return Found(body[:512], detail) if detail else None


def check_der_rsa(match: re.Match[bytes], data: bytes) -> Found | None:
    """An odd modulus, a usual exponent, and a private exponent of about the modulus's size follow."""
    outer = _header(data, match.start())
    if outer is None:
        return None
    at = outer[1] + 3
    numbers: list[tuple[int, int]] = []
    for _ in range(3):
        header = _header(data, at)
        if header is None or header[0] != _INTEGER:
            return None
        numbers.append((header[1], header[2]))
        at = header[1] + header[2]
    (n_at, n_len), (e_at, e_len), (_d_at, d_len) = numbers
    modulus = data[n_at : n_at + n_len]
    if n_len < 64 or len(modulus) != n_len or not modulus[-1] & 1 or len(set(modulus)) < 32:
        return None
    exponent = int.from_bytes(data[e_at : e_at + e_len], "big") if e_len <= 4 else 0
    if exponent not in _EXPONENTS or not n_len * 3 // 4 <= d_len <= n_len + 1:
        return None
    return Found(data[match.start() : match.start() + 512], f"RSA, {(n_len - 1) * 8} bits, not encrypted")


def check_der_ec(match: re.Match[bytes], data: bytes) -> Found | None:
    """The key is followed by its curve or public key, or by the end of its sequence."""
    outer = _header(data, match.start())
    key = _header(data, outer[1] + 3) if outer is not None else None
    if outer is None or key is None or key[0] != _OCTETS:
        return None
    secret = data[key[1] : key[1] + key[2]]
    end, stop = key[1] + key[2], outer[1] + outer[2]
    tail = data[end : end + 3]
    curve = len(tail) == 3 and ((tail[0] == 0xA0 and tail[2] == _OID) or (tail[0] == 0xA1 and tail[2] in (0x03, 0x81)))
    if len(secret) != key[2] or not (curve and end < stop) or len(set(secret)) < 16:
        return None
    return Found(secret, f"elliptic curve, {key[2] * 8} bits, not encrypted")


def check_random_bytes(match: re.Match[bytes], data: bytes) -> Found | None:
    """Tells a key from a template that a library carries: 32 random bytes have about 30 different values."""
    secret = match["secret"]
    return Found(secret, "not encrypted") if len(set(secret)) >= 20 else None


def check_pgp(match: re.Match[bytes], data: bytes) -> Found | None:
    """The armoured block begins with a secret-key packet (tag 5)."""
    text = data[match.end() : match.end() + MAX_BODY_BYTES].replace(b"\\n", b"\n").replace(b"\r", b"")
    _headers, blank, rest = text.partition(b"\n\n")
    if not blank or len(_headers) > 1024:
        return None
    lines = []
    for line in rest.split(b"\n"):
        if not _ARMOR.fullmatch(line):
            break
        lines.append(line)
    body = _decode(b"".join(lines))
    if len(body) < 40 or body[0] not in {0x94, 0x95, 0x96, 0x97, 0xC5}:
        return None
    return Found(base64.b64encode(body))


_BECH32: Final = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def check_bech32(match: re.Match[bytes], data: bytes) -> Found | None:
    """The checksum of BIP 173, as age uses it."""
    secret = match["secret"]
    human, _, coded = secret.lower().rpartition(b"1")
    values = [_BECH32.find(bytes([byte])) for byte in coded]
    if -1 in values:
        return None
    expanded = [byte >> 5 for byte in human] + [0] + [byte & 31 for byte in human]
    return Found(secret, "checksum verified") if _polymod(expanded + values) == 1 else None


def _polymod(values: list[int]) -> int:
    generators = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(generators):
            check ^= generator if (top >> bit) & 1 else 0
    return check
