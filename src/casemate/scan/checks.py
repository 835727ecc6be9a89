"""Validators: does what looks like a secret have the structure or the checksum of one? Pure, bounded, never raising.

Each takes the match and the bytes around it and returns what it found, or None. The bytes are hostile: every length in
them is compared with what is there before it is used.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Final

from casemate.scan.checks_keys import (
    check_bech32,
    check_der_ec,
    check_der_rsa,
    check_openssh_binary,
    check_pem,
    check_pgp,
    check_random_bytes,
)
from casemate.scan.model import Check, Found
from casemate.scan.weak import crypt_detail

_PLACEHOLDERS: Final = re.compile(
    rb"(?i)^(?:.*(?:example|sample|placeholder|changeme|change_me|your|insert|replace|dummy|redacted|xxxx|\.\.\.|%s|%d|<|\*\*\*).*"
    rb"|pass(?:word|wd|phrase)?[0-9]?|secret[0-9]?|mypass(?:word)?|user(?:name)?|token|key|foo(?:bar)?|bar|none|null|true|false"
    rb"|str(?:ing)?|value|[x*.#_-]+|prompt|test)$"
)
_USER: Final = re.compile(rb"[a-z_][a-z0-9_.-]{0,31}")
_B62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ALPHABETS: Final = re.compile(rb"abcdefgh|ABCDEFGH|01234567|0123456789|qwertyui|aaaaaa|AAAAAA|000000|111111")


def entropy(data: bytes) -> float:
    """Shannon entropy in bits per byte."""
    size = len(data)
    return -sum(n / size * math.log2(n / size) for n in Counter(data).values()) if size else 0.0


def secret_of(match: re.Match[bytes], group: int = 0) -> bytes:
    """The group ``secret`` where the expression has one that took part, else the group given."""
    if "secret" in match.re.groupindex and match["secret"] is not None:
        return match["secret"]
    if group and group <= (match.re.groups or 0) and match[group] is not None:
        return match[group]
    return match[0]


def is_placeholder(secret: bytes) -> bool:
    """Whether it is a word that documents put where a secret goes."""
    return _PLACEHOLDERS.match(secret) is not None


def _any(match: re.Match[bytes], data: bytes) -> Found | None:
    return Found(secret_of(match))


def _no_placeholder(match: re.Match[bytes], data: bytes) -> Found | None:
    secret = secret_of(match)
    return None if is_placeholder(secret) else Found(secret)


def _has_digit(match: re.Match[bytes], data: bytes) -> Found | None:
    secret = secret_of(match)
    return Found(secret) if any(0x30 <= byte <= 0x39 for byte in secret) and not is_placeholder(secret) else None


def _mixed(match: re.Match[bytes], data: bytes) -> Found | None:
    """Letters and digits; no path, no alphabet, no word."""
    secret = secret_of(match)
    digits = sum(0x30 <= byte <= 0x39 for byte in secret)
    letters = sum(chr(byte).isalpha() for byte in secret)
    if digits < 2 or letters < 2 or secret.count(b"/") > 4 or is_placeholder(secret) or _ALPHABETS.search(secret):
        return None
    return Found(secret)


def _mixed_case(match: re.Match[bytes], data: bytes) -> Found | None:
    """Capitals in the middle of words: no name of a function, which would be in one case or have few of them."""
    secret = secret_of(match)
    body = secret.rpartition(b"_")[2]
    capitals = sum(0x41 <= byte <= 0x5A for byte in body)
    return Found(secret) if 6 <= capitals <= len(body) - 6 and not is_placeholder(secret) else None


def _aws_key_id(match: re.Match[bytes], data: bytes) -> Found | None:
    """The characters behind the prefix are base32 and hold the account's number since 2019."""
    secret = secret_of(match)
    if secret.endswith(b"EXAMPLE") or _ALPHABETS.search(secret):
        return None
    number = int.from_bytes(base64.b32decode(secret[4:])[:6], "big")
    account = (number & 0x7FFF_FFFF_FF80) >> 7
    return Found(secret, f"account {account:012d}" if account < 10**12 else "")


def _crc_base62(match: re.Match[bytes], data: bytes) -> Found | None:
    """The last six characters are the CRC-32 of the others behind the prefix, in base 62 (GitHub 2021, npm 2021)."""
    secret = secret_of(match)
    body, said = secret.rpartition(b"_")[2][:-6], secret[-6:].decode()
    return Found(secret, "checksum verified") if base62(zlib.crc32(body)) == said else None


def base62(number: int, width: int = 6) -> str:
    """Digits, capitals, small letters; zeros in front."""
    digits = ""
    while number:
        number, rest = divmod(number, 62)
        digits = _B62[rest] + digits
    return digits.rjust(width, "0")


def _pypi(match: re.Match[bytes], data: bytes) -> Found | None:
    """A macaroon of version 2: a location field (1) that names the index."""
    secret = secret_of(match)
    raw = _unbase64(secret[5:], url=True)
    if len(raw) < 12 or raw[:2] != b"\x02\x01" or raw[2] > 32:
        return None
    location = raw[3 : 3 + raw[2]]
    if not location.endswith(b"pypi." + b"org"):
        return None
    return Found(secret, f"for {location.decode('ascii', 'replace')}")


def _jwt(match: re.Match[bytes], data: bytes) -> Found | None:
    """Header and payload are JSON objects; the header names an algorithm."""
    secret = secret_of(match)
    head, payload, _ = secret.split(b".", 2)
    try:
        fields, claims = json.loads(_unbase64(head, url=True)), json.loads(_unbase64(payload, url=True))
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not isinstance(claims, dict) or not isinstance(fields.get("alg"), str):
        return None
    if fields["alg"].lower() == "none" or claims.get("name") == "John Doe":
        return None
    return Found(
        secret, f"algorithm {fields['alg'][:16]}" + (", with an end" if "exp" in claims else ", without an end")
    )


def _discord(match: re.Match[bytes], data: bytes) -> Found | None:
    """The first part is the bot's number in base 64."""
    secret = secret_of(match)
    number = _unbase64(secret.split(b".")[0], url=True)
    return Found(secret) if number.isdigit() and 17 <= len(number) <= 20 else None


def _docker_auth(match: re.Match[bytes], data: bytes) -> Found | None:
    secret = secret_of(match)
    user, colon, word = _unbase64(secret).partition(b":")
    if not colon or not word or not user.isascii() or is_placeholder(word):
        return None
    return Found(secret, f"user {user[:24].decode('ascii', 'replace')!a}")


def _base64_pem(match: re.Match[bytes], data: bytes) -> Found | None:
    secret = secret_of(match)
    return Found(secret) if _unbase64(secret[:64]).startswith(b"-----BEGIN ") else None


def _command_line(match: re.Match[bytes], data: bytes) -> Found | None:
    secret = secret_of(match)
    if match[0].lstrip(b"\n\0;&| ").startswith(b"echo") and match["rest"] is None:
        return None
    return None if is_placeholder(secret) else Found(secret)


def _block_start(match: re.Match[bytes], data: bytes) -> Found | None:
    """At the start of a sector: files begin there. The caller aligns its runs of bytes to sectors."""
    return Found(secret_of(match)) if match.start() % 512 == 0 and entropy(match[0][:32]) > 2.8 else None


def _crypt(match: re.Match[bytes], data: bytes) -> Found | None:
    secret = match["secret"]
    user = match["user"] or b""
    if user:
        # A file begins at a block: letters before it are of another file.
        border = (match.end("user") - 1) // 1024 * 1024
        user = user[max(0, border - match.start("user")) :]
        if not _USER.fullmatch(user):
            user = b""
    detail = crypt_detail(secret.decode("ascii"), user.decode("ascii"))
    if detail is None:
        return None
    owner = f"of {user.decode('ascii')}" if user else ""
    return Found(secret, ", ".join(part for part in (owner, detail) if part))


def _unbase64(text: bytes, *, url: bool = False) -> bytes:
    """As far as it goes; padding is optional."""
    kept = text.rstrip(b"=")
    kept = kept[: len(kept) - (1 if len(kept) % 4 == 1 else 0)]
    try:
        return base64.b64decode(kept + b"=" * (-len(kept) % 4), altchars=b"-_" if url else None)
    except (binascii.Error, ValueError):
        return b""


CHECKS: Final[Mapping[str, Check]] = {
    "": _any,
    "aws_key_id": _aws_key_id,
    "base64_pem": _base64_pem,
    "bech32": check_bech32,
    "block_start": _block_start,
    "command_line": _command_line,
    "crc_base62": _crc_base62,
    "crypt": _crypt,
    "der_ec": check_der_ec,
    "der_rsa": check_der_rsa,
    "discord": _discord,
    "docker_auth": _docker_auth,
    "has_digit": _has_digit,
    "jwt": _jwt,
    "mixed": _mixed,
    "mixed_case": _mixed_case,
    "no_placeholder": _no_placeholder,
    "openssh_binary": check_openssh_binary,
    "pem": check_pem,
    "pgp": check_pgp,
    "pypi": _pypi,
    "random_bytes": check_random_bytes,
}
