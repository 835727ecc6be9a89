"""OpenPGP: what gpg signs, we verify; what is weak, expired, revoked, changed or unknown, we refuse and say why."""

from __future__ import annotations

import contextlib
import datetime
import os
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.signing import gpg_home

from casemate.errors import ImageError
from casemate.image.openpgp import (
    KEYRING_MAX_BYTES,
    MESSAGE_MAX_BYTES,
    SIGNATURE_MAX_BYTES,
    Keyring,
    is_message,
    verify_detached,
    verify_message,
)
from casemate.image.openpgp_packets import packet_tags

NOW = datetime.datetime.now(tz=datetime.UTC)
CONTENT = b"11" * 32 + b"  disk.qcow2\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Keys of every kind and what they signed, made once."""
    homes = gpg_home()
    gpg = next(homes)
    where = tmp_path_factory.mktemp("openpgp")
    file = where / "file"
    file.write_bytes(CONTENT)
    keys = {
        "good": gpg.key("good", at="20200101T000000"),
        "rsa": gpg.key("rsa", "rsa2048"),
        "p256": gpg.key("p256", "nistp256"),
        "weak": gpg.key("weak", "rsa1024"),
        "dsa": gpg.key("dsa", "dsa2048"),
        "expired": gpg.key("expired", expires="30d", at="20200101T000000"),
        "revoked": gpg.key("revoked"),
        "stranger": gpg.key("stranger"),
        "sub": gpg.key("sub", usage="cert"),
    }
    gpg.call("--quick-add-key", keys["sub"], "ed25519", "sign", "never")

    def sign(user: str, *more: str, at: str = "", how: str = "--detach-sign") -> bytes:
        out = where / "out"
        gpg.call("-u", f"={user}", *more, how, "-o", out, file, at=at)
        return out.read_bytes()

    made = SimpleNamespace(gpg=gpg, keys=keys, where=where, file=file, sign=sign)
    made.detached = {name: sign(name) for name in ("good", "rsa", "p256", "weak", "dsa", "revoked", "stranger", "sub")}
    made.detached["expired"] = sign("expired", at="20200110T000000")
    made.detached["sha1"] = sign("good", "--digest-algo", "SHA1")
    made.detached["text"] = sign("good", "--textmode")
    made.detached["short-lived"] = sign("good", "--default-sig-expire", "1d", at="20240101T000000")
    # gpg writes a revocation certificate for every new key, with a colon that keeps it from being used by accident
    home = Path(gpg._env["GNUPGHOME"])
    revocation = (home / "openpgp-revocs.d" / f"{keys['revoked'].upper()}.rev").read_text()
    (where / "rev").write_text(revocation.replace("\n:-----", "\n-----"))
    gpg.call("--import", where / "rev")
    names = [keys[name] for name in keys if name != "stranger"]
    made.ring = Keyring(gpg.call("--export", *names), "the keyring")
    made.good_ring = gpg.call("--export", keys["good"])
    yield made
    homes.close()


@pytest.mark.parametrize("name", ["good", "rsa", "p256", "sub"])
def test_a_good_signature_names_certificate_user_and_time(made: Any, name: str) -> None:
    (signer,) = verify_detached(made.detached[name], CONTENT, made.ring, NOW, "f.sig")
    assert signer.key == f"openpgp:{made.keys[name]}"
    assert signer.identity == name
    assert signer.signed_at.startswith(str(NOW.year)[:2])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("weak", "RSA1024 is not considered secure"),
        ("dsa", "weak kind DSA"),
        ("expired", "expired on 2020-01-31"),
        ("revoked", "was revoked"),
        ("stranger", "not in the keyring"),
        ("sha1", "can be forged: SHA1"),
        ("text", "of the type Text"),
        ("short-lived", "the signature expired on"),
    ],
)
def test_what_is_refused_is_refused_with_its_reason(made: Any, name: str, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        verify_detached(made.detached[name], CONTENT, made.ring, NOW, "f.sig")


def test_an_expired_subkey_is_refused_even_for_an_older_signature(made: Any) -> None:
    gpg = made.gpg
    fingerprint = gpg.key("old-sub", usage="cert", at="20200101T000000")
    gpg.call("--quick-add-key", fingerprint, "ed25519", "sign", "30d", at="20200102T000000")
    signature = made.sign("old-sub", at="20200110T000000")
    ring = Keyring(gpg.call("--export", fingerprint), "ring")
    then = datetime.datetime(2020, 1, 11, tzinfo=datetime.UTC)
    assert verify_detached(signature, CONTENT, ring, then, "s")
    with pytest.raises(ImageError, match=r"the subkey .* expired on 2020-02-01"):
        verify_detached(signature, CONTENT, ring, NOW, "s")


def test_one_of_two_signatures_is_enough_while_a_publisher_changes_keys(made: Any) -> None:
    both = made.detached["expired"] + made.detached["good"]
    signers = verify_detached(both, CONTENT, made.ring, NOW, "s")
    assert [signer.identity for signer in signers] == ["good"]
    with pytest.raises(ImageError, match="does not fit the content"):
        verify_detached(made.detached["good"] * 2, CONTENT + b"x", made.ring, NOW, "s")


def test_a_large_file_is_verified_through_a_pipe(made: Any) -> None:
    reader, writer = os.pipe()

    # at once: the library holds the interpreter's lock while it reads, so no thread of ours could feed it
    os.write(writer, CONTENT)
    os.close(writer)
    signers = verify_detached(made.detached["good"], f"/proc/self/fd/{reader}", made.ring, NOW, "s")
    os.close(reader)
    assert signers[0].identity == "good"


@pytest.mark.parametrize("how", [["--clearsign"], ["--sign", "--compress-algo", "none"]])
@pytest.mark.parametrize("armor", [[], ["--armor"]])
def test_messages_that_carry_their_signature(made: Any, how: list[str], armor: list[str]) -> None:
    message = made.sign("good", *how[1:], *armor, how=how[0])
    content, signers = verify_message(message, made.ring, NOW, "m")
    assert content.rstrip(b"\n") == CONTENT.rstrip(b"\n")
    assert signers[0].key == f"openpgp:{made.keys['good']}"
    assert is_message(message) == (message[:5] == b"-----")
    stranger = made.sign("stranger", *how[1:], *armor, how=how[0])
    with pytest.raises(ImageError, match="not in the keyring"):
        verify_message(stranger, made.ring, NOW, "m")
    weak = made.sign("weak", *how[1:], *armor, how=how[0])
    with pytest.raises(ImageError, match="RSA1024"):
        verify_message(weak, made.ring, NOW, "m")


def test_text_around_a_cleartext_message_does_not_count(made: Any) -> None:
    message = made.sign("good", how="--clearsign")
    for evil in (b"22" * 32 + b"  disk.qcow2\n" + message, message + b"\n22  disk.qcow2\n", message + message):
        try:
            content, _ = verify_message(evil, made.ring, NOW, "m")
        except ImageError:
            continue
        assert content.rstrip() == CONTENT.rstrip()


def test_compressed_messages_are_refused_unopened(made: Any) -> None:
    with pytest.raises(ImageError, match="compressed"):
        verify_message(made.sign("good", how="--sign"), made.ring, NOW, "m")


def test_every_flipped_bit_of_the_content_is_refused(made: Any) -> None:
    ring = Keyring(made.good_ring, "ring")
    for bit in range(len(CONTENT) * 8):
        flipped = bytearray(CONTENT)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ImageError):
            verify_detached(made.detached["good"], bytes(flipped), ring, NOW, "s")


def test_a_flipped_bit_of_a_signature_is_refused_or_changes_nothing_that_is_signed(made: Any) -> None:
    ring = Keyring(made.good_ring, "ring")
    signature = made.detached["good"]
    # old header 2, version, type, key kind, digest kind; then the length of the hashed area
    hashed_end = 8 + int.from_bytes(signature[6:8], "big")
    original = verify_detached(signature, CONTENT, ring, NOW, "s")
    for bit in range(len(signature) * 8):
        flipped = bytearray(signature)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            signers = verify_detached(bytes(flipped), CONTENT, ring, NOW, "s")
        except ImageError:
            continue
        assert not 2 <= bit // 8 < hashed_end, f"bit {bit} is signed"
        assert signers == original


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_of_a_cleartext_message_never_changes_what_is_believed(made: Any, data: st.DataObject) -> None:
    message = made.__dict__.setdefault("clear", None) or made.sign("good", how="--clearsign")
    made.clear = message
    bit = data.draw(st.integers(0, len(message) * 8 - 1))
    flipped = bytearray(message)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        content, _ = verify_message(bytes(flipped), Keyring(made.good_ring, "ring"), NOW, "m")
    except ImageError:
        return
    assert [line.rstrip() for line in content.splitlines()] == [line.rstrip() for line in CONTENT.splitlines()]


def test_bounds_come_before_the_library(made: Any) -> None:
    with pytest.raises(ImageError, match="at most"):
        Keyring(bytes(KEYRING_MAX_BYTES + 1), "ring")
    with pytest.raises(ImageError, match="at most"):
        verify_detached(bytes(SIGNATURE_MAX_BYTES + 1), b"", made.ring, NOW, "s")
    with pytest.raises(ImageError, match="at most"):
        verify_message(bytes(MESSAGE_MAX_BYTES + 1), made.ring, NOW, "m")


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n"])
def test_what_is_no_keyring_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        Keyring(data, "ring")


def test_mutated_material_never_crashes_and_never_passes_for_other_content(made: Any) -> None:
    chance = random.Random(4)
    seeds = [*made.detached.values(), made.good_ring, made.sign("good", "--armor", how="--clearsign")]
    for _ in range(600):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        for attempt in (
            lambda d=bytes(data): verify_detached(d, b"other content", made.ring, NOW, "s"),
            lambda d=bytes(data): verify_message(d, made.ring, NOW, "m")[0] != CONTENT.rstrip() and 1,
            lambda d=bytes(data): packet_tags(d, "p") and None,
            lambda d=bytes(data): Keyring(d, "ring") and None,
        ):
            with contextlib.suppress(ImageError):
                assert not attempt()


def test_armor_headers_are_read_in_linear_time(made: Any) -> None:
    """A key with colons in it could be split in as many ways; lines of them multiply."""
    headers = (b"a: " * 200 + b"\n") * 40
    with pytest.raises(ImageError, match="broken armor"):
        verify_message(b"-----BEGIN PGP MESSAGE-----\n" + headers + b"\n!!\n", made.ring, NOW, "m")
