"""Fuzzes the readers of proofs of origin: each answers or raises its own error, and none believes other content.

Seeds are made here with keys that are no secret (SSH, minisign) or are empty OpenPGP shapes; tests/unit/test_origin_*
mutate what the real programs wrote. Run for longer with ``python tests/fuzz/fuzz_origin.py -max_total_time=60``;
tests/fuzz/test_fuzz_origin.py runs a few thousand inputs.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import sys
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.errors import CasemateError
from casemate.image import minisign, openpgp, sshsig, sums
from casemate.image.openpgp_packets import packet_tags
from casemate.image.origin_check import kind_of
from casemate.image.ssh_keys import put

CONTENT = b"the content"
OTHER = b"other content"
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@cache
def key() -> Ed25519PrivateKey:
    """A key that is no secret."""
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@cache
def ssh_seed() -> tuple[bytes, bytes]:
    """A signature over the content and an allowed_signers file."""
    kind = put(b"ssh-ed25519")
    public = kind + put(key().public_key().public_bytes_raw())
    message = sshsig.signed_bytes("file", "sha256", hashlib.sha256(CONTENT).digest())
    signature = sshsig.SshSignature(public, "file", "sha256", kind + put(key().sign(message)))
    line = f'ana,*@example.org namespaces="file" ssh-ed25519 {base64.b64encode(public).decode()} comment\n'
    return sshsig.armor(signature), line.encode()


@cache
def minisign_seed() -> tuple[bytes, bytes]:
    """A prehashed signature and its key."""
    name = b"keyident"
    raw = key().sign(hashlib.blake2b(CONTENT).digest())
    comment = b"file:disk"
    parts = (b"ED" + name + raw, key().sign(raw + comment), b"Ed" + name + key().public_key().public_bytes_raw())
    first, second, public = (base64.b64encode(part) for part in parts)
    text = b"untrusted comment: x\n" + first + b"\ntrusted comment: " + comment + b"\n" + second + b"\n"
    return text, public


SUMS = b"a" * 64 + b"  disk.img\nSHA512 (b) = " + b"c" * 128 + b"\n"


def read_ssh(signature: bytes, allowed: bytes, content: bytes) -> bool:
    """True when it is believed."""
    parsed = sshsig.parse_signature(signature, "s")
    digests = {name: hashlib.new(name, content).digest() for name in sshsig.HASHES}
    sshsig.verify_signature(parsed, digests, sshsig.parse_allowed_signers(allowed, "a"), NOW, "s")
    return True


def read_minisign(signature: bytes, public: bytes, content: bytes) -> bool:
    """True when it is believed."""
    parsed = minisign.parse_signature(signature, "s")
    message = hashlib.blake2b(content).digest() if parsed.prehashed else content
    minisign.verify_signature(parsed, minisign.parse_key(public, "k"), message, "s")
    return True


def mutated(seed: bytes, choices: bytes) -> bytes:
    """``seed`` with a byte changed for every three bytes of ``choices``."""
    data = bytearray(seed)
    for at in range(0, len(choices) - 2, 3):
        place = int.from_bytes(choices[at : at + 2], "big") % (len(data) or 1)
        data[place : place + 1] = choices[at + 2 : at + 3] if choices[at] & 1 else b""
        if not data:
            break
    return bytes(data)


def one_input(data: bytes) -> None:
    """One input: its first byte says which reader, the rest what to change; then the rest as it is, for all."""
    which, choices = (data[0] if data else 0) % 4, data[1:]
    signature, allowed = ssh_seed()
    small, public = minisign_seed()
    attempts = (
        lambda: read_ssh(mutated(signature, choices), allowed, OTHER),
        lambda: read_minisign(mutated(small, choices), public, OTHER),
        lambda: not sshsig.parse_allowed_signers(mutated(allowed, choices), "a"),
        lambda: not sums.parse_sums(mutated(SUMS, choices), "s"),
    )
    refused_or_false(attempts[which])
    for reader in (
        lambda: not sums.parse_sums(choices, "s"),
        lambda: read_ssh(choices, allowed, CONTENT),
        lambda: read_minisign(choices, public, CONTENT),
        lambda: packet_tags(choices, "p") is None,
        lambda: openpgp.Keyring(choices, "k") is None,
        lambda: kind_of(choices) not in {"ssh", "sigstore", "minisign", "openpgp"},
    ):
        refused_or_false(reader)


def refused_or_false(attempt: object) -> None:
    """Run it: an error of ours, or false; true would be belief in other content."""
    assert callable(attempt)
    with contextlib.suppress(CasemateError):
        assert not attempt()


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
