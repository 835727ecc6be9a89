"""SSH signatures: made by ssh-keygen, verified by us, and the other way round; allowed_signers line by line."""

from __future__ import annotations

import base64
import datetime
import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.signing import need, run

from casemate.errors import ImageError
from casemate.image.ssh_keys import Fields, fingerprint, put, verify_with_key
from casemate.image.sshsig import (
    SIGNATURE_MAX_BYTES,
    SshSignature,
    armor,
    parse_allowed_signers,
    parse_signature,
    signed_bytes,
    verify_signature,
)

NOW = datetime.datetime(2026, 5, 1, 12, tzinfo=datetime.UTC)
CONTENT = b"an image"
KINDS = [("ed25519", ""), ("ecdsa", "256"), ("ecdsa", "384"), ("ecdsa", "521"), ("rsa", "2048"), ("rsa", "1024")]


def digests(content: bytes = CONTENT) -> dict[str, bytes]:
    return {name: hashlib.new(name, content).digest() for name in ("sha256", "sha512")}


@pytest.fixture(scope="module")
def sign(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[bytes, str, Path]]:
    """Sign with a key of a kind; returns signature, public key line, directory. Keys are made once."""
    keygen = need("ssh-keygen", "openssh-client")
    where = tmp_path_factory.mktemp("ssh")
    made: dict[tuple[Any, ...], tuple[bytes, str, Path]] = {}

    def call(kind: str, bits: str = "", namespace: str = "file", *options: str) -> tuple[bytes, str, Path]:
        if (kind, bits, namespace, *options) in made:
            return made[kind, bits, namespace, *options]
        key = where / f"{kind}{bits}"
        if not key.exists():
            run(keygen, "-q", "-t", kind, *(["-b", bits] if bits else []), "-N", "", "-C", "comment", "-f", key)
        more = [word for option in options for word in ("-O", option)]
        signature = run(keygen, "-q", "-Y", "sign", "-f", key, "-n", namespace, *more, stdin=CONTENT)
        result = (signature, key.with_suffix(".pub").read_text().strip(), where)
        return made.setdefault((kind, bits, namespace, *options), result)

    return call


def allow(line: str, principals: str = "ana@example.org", options: str = "") -> Any:
    return parse_allowed_signers(f"{principals} {options} {line}\n".encode(), "allowed")


@pytest.mark.parametrize(("kind", "bits"), KINDS[:-1])
@pytest.mark.parametrize("option", [(), ("hashalg=sha256",)])
def test_what_ssh_keygen_signs_is_verified(sign: Any, kind: str, bits: str, option: tuple[str, ...]) -> None:
    data, line, where = sign(kind, bits, "file", *option)
    signature = parse_signature(data, "s")
    signer = verify_signature(signature, digests(), allow(line), NOW, "s")
    printed = run(need("ssh-keygen", "openssh-client"), "-lf", where / f"{kind}{bits}.pub").decode().split()[1]
    assert signer.key == f"ssh:{printed}"
    assert signer.identity == "ana@example.org"
    assert armor(signature) == data
    with pytest.raises(ImageError, match="does not fit the content"):
        verify_signature(signature, digests(b"another"), allow(line), NOW, "s")


def test_a_short_rsa_key_is_refused(sign: Any) -> None:
    data, line, _ = sign("rsa", "1024")
    with pytest.raises(ImageError, match="an RSA key of 1024 bits"):
        verify_signature(parse_signature(data, "s"), digests(), allow(line), NOW, "s")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("", ""),
        ('namespaces="file"', ""),
        ('namespaces="git,fi*"', ""),
        ('namespaces="git"', "only for the namespaces git"),
        ('namespaces="*,!file"', "only for the namespaces"),
        ('valid-after="20260501Z"', ""),
        ('valid-after="20260502Z"', "only after"),
        ('valid-before="20260501130000Z"', ""),
        ('valid-before="202605011159Z",namespaces="file"', "only before"),
        ('valid-after="20200101",valid-before="20991231"', ""),
        ("cert-authority", "certificates are not accepted"),
    ],
)
def test_options_of_allowed_signers(sign: Any, options: str, why: str) -> None:
    data, line, where = sign("ed25519")
    allowed = allow(line, options=options)
    signature = parse_signature(data, "s")
    file = where / "allowed"
    file.write_text(f"ana@example.org {options} {line}\n")
    (where / "sig").write_bytes(data)
    argv: list[str | Path] = ["-Y", "verify", "-f", file, "-I", "ana@example.org", "-n", "file", "-s", where / "sig"]
    argv += ["-O", "verify-time=20260501120000Z"]
    # ssh-keygen judges the same
    run(need("ssh-keygen", "openssh-client"), *argv, stdin=CONTENT, rc=255 if why else 0)
    if why:
        with pytest.raises(ImageError, match=why):
            verify_signature(signature, digests(), allowed, NOW, "s", identity="ana@example.org")
    else:
        assert verify_signature(signature, digests(), allowed, NOW, "s", identity="ana@example.org")


@pytest.mark.parametrize(
    ("principals", "identity", "good"),
    [
        ("*@example.org", "ana@example.org", True),
        ("ben@example.org,ana@example.org", "ana@example.org", True),
        ("*@example.org,!ana@*", "ana@example.org", False),
        ("ben@example.org", "ana@example.org", False),
        ("[a]na", "ana", False),
        ("an?", "ana", True),
    ],
)
def test_identities_match_as_openssh_matches(sign: Any, principals: str, identity: str, good: bool) -> None:
    data, line, _ = sign("ed25519")
    try:
        verify_signature(parse_signature(data, "s"), digests(), allow(line, principals), NOW, "s", identity=identity)
    except ImageError:
        assert not good
    else:
        assert good


def test_another_namespace_or_key_is_refused(sign: Any) -> None:
    data, line, _ = sign("ed25519", "", "git")
    with pytest.raises(ImageError, match="a signature for 'git'"):
        verify_signature(parse_signature(data, "s"), digests(), allow(line), NOW, "s")
    assert verify_signature(parse_signature(data, "s"), digests(), allow(line), NOW, "s", namespace="git")
    other = sign("ecdsa", "256")[1]
    with pytest.raises(ImageError, match="no line allows"):
        verify_signature(parse_signature(sign("ed25519")[0], "s"), digests(), allow(other), NOW, "s")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment\n",
        "ana ssh-ed25519\n",
        "ana ssh-ed25519 AAAA\n",
        "ana ssh-ed25519 !!!!\n",
        'ana unheard="of" ssh-ed25519 AAAA\n',
        "ana namespaces ssh-ed25519 AAAA\n",
        'ana cert-authority="1" ssh-ed25519 AAAA\n',
        'ana valid-after="2026" {key}\n',
        'ana valid-after="20261399" {key}\n',
        'ana namespaces="a",namespaces="b" {key}\n',
        "ana ssh-rsa {blob}\n",
        "ana ssh-ed25519-cert-v01@openssh.com {blob}\n",
        "ana\n",
    ],
)
def test_a_line_that_is_not_understood_refuses_the_file(sign: Any, text: str) -> None:
    key = " ".join(sign("ed25519")[1].split()[:2])
    text = text.replace("{key}", key).replace("{blob}", key.split()[1])
    with pytest.raises(ImageError):
        parse_allowed_signers(
            text.encode() + (b"" if not text or text.startswith("#") else f"ben {key}\n".encode()),
            "allowed",
        )


def test_every_flipped_bit_is_refused(sign: Any) -> None:
    data, line, _ = sign("ed25519")
    blob = base64.b64decode(b"".join(data.split(b"\n")[1:-2]))
    allowed = allow(line)
    for bit in range(len(blob) * 8):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        text = base64.b64encode(flipped)
        armored = b"-----BEGIN SSH SIGNATURE-----\n" + text + b"\n-----END SSH SIGNATURE-----\n"
        with pytest.raises(ImageError):
            verify_signature(parse_signature(armored, "s"), digests(), allowed, NOW, "s")


@pytest.mark.parametrize("curve", ["ed25519", "ecdsa"])
@pytest.mark.parametrize("flags", [0x01, 0x05, 0x00])
def test_signatures_of_fido_keys(tmp_path: Path, curve: str, flags: int) -> None:
    """Made here as an authenticator makes them; ssh-keygen is the judge beside us."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils

    message = signed_bytes("file", "sha512", digests()["sha512"])
    tail = bytes([flags]) + (7).to_bytes(4, "big")
    to_sign = hashlib.sha256(b"ssh:").digest() + tail + hashlib.sha256(message).digest()
    if curve == "ed25519":
        kind, private = b"sk-ssh-ed25519@openssh.com", ed25519.Ed25519PrivateKey.generate()
        blob = put(kind) + put(private.public_key().public_bytes_raw()) + put(b"ssh:")
        raw = put(private.sign(to_sign))
    else:
        kind, secret = b"sk-ecdsa-sha2-nistp256@openssh.com", ec.generate_private_key(ec.SECP256R1())
        shape = (serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        blob = put(kind) + put(b"nistp256") + put(secret.public_key().public_bytes(*shape)) + put(b"ssh:")
        numbers = utils.decode_dss_signature(secret.sign(to_sign, ec.ECDSA(hashes.SHA256())))
        raw = put(b"".join(put(n.to_bytes(n.bit_length() // 8 + 1, "big")) for n in numbers))
    signature = SshSignature(blob, "file", "sha512", put(kind) + raw + tail)
    line = f"{kind.decode()} {base64.b64encode(blob).decode()}"
    (tmp_path / "allowed").write_text(f"ana {line}\n")
    (tmp_path / "sig").write_bytes(armor(signature))
    argv: list[str | Path] = [
        "-Y",
        "verify",
        "-f",
        tmp_path / "allowed",
        "-I",
        "ana",
        "-n",
        "file",
        "-s",
        tmp_path / "sig",
    ]
    if flags & 1:
        run(need("ssh-keygen", "openssh-client"), *argv, stdin=CONTENT)
        assert verify_signature(parse_signature(armor(signature), "s"), digests(), allow(line), NOW, "s")
        with pytest.raises(ImageError, match="does not fit"):
            verify_signature(signature, digests(b"x"), allow(line), NOW, "s")
    else:
        with pytest.raises(ImageError, match="nobody touched"):
            verify_signature(signature, digests(), allow(line), NOW, "s")


def test_mixed_kinds_are_refused(sign: Any) -> None:
    ed, p256 = parse_signature(sign("ed25519")[0], "s"), parse_signature(sign("ecdsa", "256")[0], "s")
    with pytest.raises(ImageError, match="one kind"):
        verify_with_key(ed.public_key, p256.signature, b"", "s")
    rsa = parse_signature(sign("rsa", "2048")[0], "s")
    sha1 = put(b"ssh-rsa") + rsa.signature[4 + len("rsa-sha2-512") :]
    with pytest.raises(ImageError, match="of the kind 'ssh-rsa'"):
        verify_with_key(rsa.public_key, sha1, b"", "s")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_signature_or_an_error(data: bytes) -> None:
    for attempt in (parse_signature, parse_allowed_signers):
        with pytest.raises(ImageError):
            attempt(data, "x")
    fields = Fields(data, "x")
    try:
        while True:
            fields.mpint()
    except ImageError:
        pass


def test_mutated_signatures_never_crash(sign: Any) -> None:
    chance = random.Random(7)
    allowed = tuple(entry for kind, bits in KINDS for entry in allow(sign(kind, bits)[1]))
    for _ in range(800):
        original = parse_signature(sign(*chance.choice(KINDS))[0], "s")
        parts = [original.public_key, original.signature]
        which = chance.randrange(2)
        data = bytearray(parts[which])
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        parts[which] = bytes(data)
        changed = original._replace(public_key=parts[0], signature=parts[1])
        if changed == original:
            continue
        # any key is let in, so that the arithmetic is reached
        open_door = (*allowed, *(entry._replace(public_key=changed.public_key) for entry in allowed[:1]))
        with pytest.raises(ImageError):
            verify_signature(changed, digests(b"other"), open_door, NOW, "s")


def test_a_signature_is_bounded() -> None:
    with pytest.raises(ImageError, match="at most"):
        parse_signature(b" " * (SIGNATURE_MAX_BYTES + 1), "s")
    assert fingerprint(b"").startswith("SHA256:47DEQpj8HBSa")
