"""minisign signatures, made by minisign itself: prehashed and legacy, every bit that counts."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.signing import need, run

from casemate.errors import ImageError
from casemate.image.minisign import MinisignKey, is_signature, parse_key, parse_signature, verify_signature

CONTENT = b"an image of a disk"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    program = need("minisign", "minisign")
    where: Path = tmp_path_factory.mktemp("minisign")
    (where / "file").write_bytes(CONTENT)
    for name in ("own", "other"):
        run(program, "-G", "-W", "-p", where / f"{name}.pub", "-s", where / f"{name}.key")
    found = {}
    for name, flags in (("prehashed", ["-H"]), ("legacy", ["-l"])):
        run(program, "-S", *flags, "-s", where / "own.key", "-m", where / "file", "-x", where / name, "-t", "disk v1")
        found[name] = (where / name).read_bytes()
    return where, found


def message_for(prehashed: bool, content: bytes = CONTENT) -> bytes:
    return hashlib.blake2b(content).digest() if prehashed else content


@pytest.mark.parametrize("name", ["prehashed", "legacy"])
def test_what_minisign_signs_is_verified(made: Any, name: str) -> None:
    where, found = made
    key = parse_key((where / "own.pub").read_bytes(), "key")
    signature = parse_signature(found[name], "s")
    assert is_signature(found[name])
    assert signature.prehashed == (name == "prehashed")
    signer = verify_signature(signature, key, message_for(signature.prehashed), "s", expected_comment="disk v1")
    assert signer.key == f"minisign:{key.text}"
    assert signer.identity == "disk v1"
    assert parse_key(key.text.encode(), "key") == key
    with pytest.raises(ImageError, match="does not fit the content"):
        verify_signature(signature, key, message_for(signature.prehashed, b"other"), "s")
    with pytest.raises(ImageError, match="the trusted comment 'disk v1'"):
        verify_signature(signature, key, message_for(signature.prehashed), "s", expected_comment="disk v2")
    other = parse_key((where / "other.pub").read_bytes(), "key")
    with pytest.raises(ImageError, match=r"a signature by key [0-9A-F]{16}"):
        verify_signature(signature, other, message_for(signature.prehashed), "s")
    forged = other._replace(key_id=key.key_id)
    with pytest.raises(ImageError, match="does not fit"):
        verify_signature(signature, forged, message_for(signature.prehashed), "s")


def verify(data: bytes, key: MinisignKey) -> None:
    signature = parse_signature(data, "s")
    verify_signature(signature, key, message_for(signature.prehashed), "s")


@pytest.mark.parametrize("name", ["prehashed", "legacy"])
def test_every_flipped_bit_is_refused(made: Any, name: str) -> None:
    where, found = made
    key = parse_key((where / "own.pub").read_bytes(), "key")
    lines = found[name].rstrip(b"\n").split(b"\n")
    for line in (1, 2, 3):
        content = lines[line] if line == 2 else base64.b64decode(lines[line])
        for bit in range(len(content) * 8):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            changed = list(lines)
            changed[line] = bytes(flipped) if line == 2 else base64.b64encode(flipped)
            with pytest.raises(ImageError):
                verify(b"\n".join(changed) + b"\n", key)


@pytest.mark.parametrize("data", [b"", b"untrusted comment: x\n", b"AW" * 28, b"a\nb\nc\nd\n", b"\n" * 20000])
def test_other_data_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        parse_signature(data, "s")
    with pytest.raises(ImageError):
        parse_key(data, "k")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_calmly(data: bytes) -> None:
    for reader in (parse_signature, parse_key):
        with pytest.raises(ImageError):
            reader(b"untrusted comment: x\n" + data, "x")
