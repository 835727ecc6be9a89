"""SSH signatures (PROTOCOL.sshsig of OpenSSH) and allowed_signers files (ssh-keygen(1)). Bytes in, signers out.

    -----BEGIN SSH SIGNATURE-----      base64 of:   "SSHSIG" version=1
                                       string public key   string namespace   string reserved
                                       string hash algorithm   string signature
    signed bytes:  "SSHSIG" string namespace  string reserved  string hash algorithm  string H(message)

Narrower than ssh-keygen on purpose: one fault in an allowed_signers file refuses the whole file; certificates are
refused (``cert-authority`` lines never match a plain key, as in OpenSSH); RSA keys below 2048 bits and SHA-1 are
refused; signatures of FIDO keys count only when a person touched the key.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import fnmatch
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from casemate.image.origin import Signer, refuse
from casemate.image.ssh_keys import Fields, fingerprint, key_type_of, put, verify_with_key

SIGNATURE_MAX_BYTES: Final = 64 << 10
SIGNERS_MAX_BYTES: Final = 1 << 20
MAGIC: Final = b"SSHSIG"
DEFAULT_NAMESPACE: Final = "file"
HASHES: Final = ("sha512", "sha256")
_NEXT: Final = "download image and signature again from the publisher; do not use this image"


class SshSignature(NamedTuple):
    """A parsed signature; nothing is verified yet. ``public_key`` and ``signature`` are SSH wire format."""

    public_key: bytes
    namespace: str
    hash_algorithm: str
    signature: bytes


class AllowedSigner(NamedTuple):
    """One line of an allowed_signers file; times are aware."""

    principals: str
    public_key: bytes
    namespaces: tuple[str, ...] | None
    valid_after: datetime.datetime | None
    valid_before: datetime.datetime | None
    cert_authority: bool
    line: int


def parse_signature(data: bytes, what: str) -> SshSignature:
    """Parse an armored signature.

    Raises:
        ImageError: it is none, or uses a version or hash that we do not accept.
    """
    if len(data) > SIGNATURE_MAX_BYTES:
        raise refuse(what, f"{len(data)} bytes", expected=f"at most {SIGNATURE_MAX_BYTES} bytes")
    match = re.fullmatch(
        rb"\s*-----BEGIN SSH SIGNATURE-----\r?\n([A-Za-z0-9+/=\r\n]+)\r?\n-----END SSH SIGNATURE-----\s*", data
    )
    try:
        if match is None:
            raise binascii.Error
        blob = base64.b64decode(re.sub(rb"[\r\n]", b"", match[1]), validate=True)
    except binascii.Error:
        raise refuse(what, "other data", expected="an SSH signature, as ssh-keygen -Y sign writes it") from None
    fields = Fields(blob, what)
    if fields.take(len(MAGIC)) != MAGIC:
        raise refuse(what, "no SSHSIG at its start", expected="an SSH signature")
    version = fields.uint32()
    if version != 1:
        raise refuse(what, f"version {version}", expected="version 1")
    public_key = fields.string()
    namespace = fields.text()
    if fields.string():
        raise refuse(what, "reserved data", expected="none in version 1")
    hash_algorithm = fields.text()
    signature = fields.string()
    fields.end()
    if hash_algorithm not in HASHES:
        raise refuse(what, f"the digest {hash_algorithm[:40]!r}", expected=" or ".join(HASHES))
    if not namespace:
        raise refuse(what, "an empty namespace", expected=f"a namespace such as {DEFAULT_NAMESPACE!r}")
    return SshSignature(public_key, namespace, hash_algorithm, signature)


def signed_bytes(namespace: str, hash_algorithm: str, digest: bytes) -> bytes:
    """What is really signed for a message with this digest."""
    return MAGIC + b"".join(put(part) for part in (namespace.encode(), b"", hash_algorithm.encode(), digest))


def armor(signature: SshSignature) -> bytes:
    """The signature as ssh-keygen writes it: 70 characters a line."""
    parts = (signature.public_key, signature.namespace.encode(), b"", signature.hash_algorithm.encode())
    blob = MAGIC + (1).to_bytes(4, "big") + b"".join(put(part) for part in (*parts, signature.signature))
    text = base64.b64encode(blob).decode()
    lines = "\n".join(text[start : start + 70] for start in range(0, len(text), 70))
    return f"-----BEGIN SSH SIGNATURE-----\n{lines}\n-----END SSH SIGNATURE-----\n".encode()


def verify_signature(
    signature: SshSignature,
    digests: Mapping[str, bytes],
    allowed: tuple[AllowedSigner, ...],
    now: datetime.datetime,
    what: str,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    identity: str | None = None,
) -> Signer:
    """Who signed.

    1. The namespace is the wanted one. 2. A line of the file allows this key, for this identity if one is given, for
    the namespace, now. 3. The signature holds.

    Args:
        digests: of the message, by name; the signature's ``hash_algorithm`` must be among them.

    Raises:
        ImageError: which step failed, and why.
    """
    if signature.namespace != namespace:  # 1
        raise refuse(what, f"a signature for {signature.namespace[:80]!r}", expected=f"the namespace {namespace!r}")
    entry = _allowing(signature.public_key, allowed, namespace, identity, now, what)  # 2
    message = signed_bytes(signature.namespace, signature.hash_algorithm, digests[signature.hash_algorithm])
    if not verify_with_key(signature.public_key, signature.signature, message, what):  # 3
        name = fingerprint(signature.public_key)
        raise refuse(what, f"a signature by {name} that does not fit the content", next_step=_NEXT)
    return Signer(key=f"ssh:{fingerprint(signature.public_key)}", identity=identity or entry.principals)


def parse_allowed_signers(data: bytes, what: str) -> tuple[AllowedSigner, ...]:
    """Every line of an allowed_signers file.

    Raises:
        ImageError: a line that we do not understand completely, or no lines at all.
    """
    if len(data) > SIGNERS_MAX_BYTES:
        raise refuse(what, f"{len(data)} bytes", expected=f"at most {SIGNERS_MAX_BYTES} bytes")
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as fault:
        raise refuse(what, f"no UTF-8 at byte {fault.start}", expected="an allowed_signers file") from None
    found = tuple(
        _signer_line(line.strip(), number, what)
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    if not found:
        raise refuse(what, "no signers", expected="lines such as 'name@example.org ssh-ed25519 AAAA…'")
    return found


def _allowing(
    public_key: bytes,
    allowed: tuple[AllowedSigner, ...],
    namespace: str,
    identity: str | None,
    now: datetime.datetime,
    what: str,
) -> AllowedSigner:
    name = fingerprint(public_key)
    why = f"the key {name}, which no line allows"
    for entry in allowed:
        if entry.public_key != public_key:
            continue
        where = f"the key {name}, which line {entry.line} allows only"
        if entry.cert_authority:
            why = f"{where} to certify others; certificates are not accepted here"
        elif identity is not None and not _matches(identity, entry.principals):
            why = f"{where} for {entry.principals!r}, not for {identity!r}"
        elif entry.namespaces is not None and not _matches(namespace, ",".join(entry.namespaces)):
            why = f"{where} for the namespaces {', '.join(entry.namespaces)}"
        elif entry.valid_after is not None and now < entry.valid_after:
            why = f"{where} after {entry.valid_after.isoformat()}"
        elif entry.valid_before is not None and now > entry.valid_before:
            why = f"{where} before {entry.valid_before.isoformat()}"
        else:
            return entry
    raise refuse(what, why, expected="a signature by an allowed signer", next_step="ssh-keygen -Y find-principals")


def _matches(word: str, patterns: str) -> bool:
    """OpenSSH's pattern lists (ssh_config(5), PATTERNS): ``*`` and ``?``; a pattern with ``!`` that fits refuses."""
    hit = False
    for pattern in patterns.split(","):
        negated = pattern.startswith("!")
        # fnmatch knows brackets, OpenSSH does not
        if fnmatch.fnmatchcase(word, pattern.removeprefix("!").replace("[", "[[]")):
            if negated:
                return False
            hit = True
    return hit


_OPTION = re.compile(r'([A-Za-z-]+)(?:="((?:[^"\\]|\\")*)")?(,|\s+|$)')


def _signer_line(line: str, number: int, what: str) -> AllowedSigner:
    where = f"{what}, line {number}"
    match = re.match(r'("[^"]+"|[^\s"]+)\s+(.+)$', line)
    if match is None:
        raise refuse(where, f"{line[:60]!r}", expected="principals, options, key")
    principals, rest = match[1].strip('"'), match[2]
    options: dict[str, str] = {}
    if key_type_of(rest.split()[0]) is None:
        rest = _take_options(rest, options, where)
    words = rest.split()
    if len(words) < 2 or key_type_of(words[0]) is None:
        raise refuse(where, f"a key of the type {words[0][:40] if words else ''!r}", expected="an SSH public key")
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        raise refuse(where, "broken base64", expected="an SSH public key") from None
    if Fields(blob, where).text() != words[0]:
        raise refuse(where, "a key of another type than it says", expected=words[0])
    namespaces = options.get("namespaces")
    return AllowedSigner(
        principals,
        blob,
        None if namespaces is None else tuple(namespaces.split(",")),
        _time(options["valid-after"], where) if "valid-after" in options else None,
        _time(options["valid-before"], where) if "valid-before" in options else None,
        "cert-authority" in options,
        number,
    )


def _take_options(rest: str, options: dict[str, str], where: str) -> str:
    """Fill ``options`` from the start of ``rest``; returns what follows them."""
    while True:
        match = _OPTION.match(rest)
        if match is None:
            raise refuse(where, f"{rest[:60]!r}", expected='options such as namespaces="file", then the key')
        name, value = match[1].lower(), match[2]
        takes_value = name in {"namespaces", "valid-after", "valid-before"}
        if (not takes_value and name != "cert-authority") or takes_value != (value is not None) or name in options:
            known = 'cert-authority, namespaces="…", valid-after="…", valid-before="…", each once'
            raise refuse(where, f"the option {match[0].strip()[:60]!r}", expected=known)
        options[name] = (value or "").replace('\\"', '"')
        rest = rest[match.end() :]
        if match[3] != ",":
            return rest


def _time(text: str, where: str) -> datetime.datetime:
    """YYYYMMDD[HHMM[SS]][Z]; without Z in the time zone of this host, as ssh-keygen reads it."""
    digits = text.removesuffix("Z")
    shape = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}.get(len(digits))
    try:
        if shape is None or not digits.isascii() or not digits.isdigit():
            raise ValueError
        plain = datetime.datetime.strptime(digits, shape)  # noqa: DTZ007  the zone follows
        return plain.replace(tzinfo=datetime.UTC) if text.endswith("Z") else plain.astimezone()
    except (ValueError, OverflowError, OSError):
        raise refuse(where, f"the time {text[:40]!r}", expected="YYYYMMDD[HHMM[SS]][Z]") from None
