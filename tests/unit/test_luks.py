"""LUKS1: what we write other programs open; what others write we read; and what is weak or lies is refused."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.qemu_luks import create_luks

from casemate.errors import ImageError, InputError
from casemate.image import luks_keys
from casemate.image.luks import HEADER_BYTES, ITERATIONS_MIN, inspect_luks, parse_header, write_header
from casemate.image.luks_keys import encrypt_disk, rekey, unlock

KEY = "a key, not a password: é".encode()
GOOD = luks_keys.create(KEY, ITERATIONS_MIN)[1][:HEADER_BYTES]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots at the least strength that is accepted."""
    monkeypatch.setattr(luks_keys, "KDF_S", 0.0)


def encrypted(directory: Path, content: bytes) -> Path:
    (directory / "plain").write_bytes(content)
    source = os.open(directory / "plain", os.O_RDONLY)
    target = os.open(directory / "disk.luks", os.O_RDWR | os.O_CREAT, 0o600)
    encrypt_disk(source, target, KEY, lambda _: None, ITERATIONS_MIN)
    os.close(source)
    os.close(target)
    return directory / "disk.luks"


def opened_by_qemu(disk: Path, key: bytes, directory: Path) -> bytes:
    """The content as qemu-img reads it."""
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    (directory / "key").write_bytes(key)
    secret = f"secret,id=k,file={directory / 'key'},format=raw"
    source = f"driver=luks,key-secret=k,file.filename={disk}"
    command = ["qemu-img", "convert", "--object", secret, "--image-opts", "-O", "raw", source, str(directory / "out")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return (directory / "out").read_bytes()


def test_qemu_reads_what_we_write(tmp_path: Path) -> None:
    content = os.urandom(3 << 20) + b"end" + bytes(509)
    disk = encrypted(tmp_path, content)
    assert content[:64] not in disk.read_bytes()
    descriptor = os.open(disk, os.O_RDWR)
    header, size = inspect_luks(descriptor, "disk")
    assert size == len(content)
    assert unlock(descriptor, header, KEY, "disk")[1] == 0
    with pytest.raises(InputError, match="opens none"):
        unlock(descriptor, header, b"another", "disk")
    assert opened_by_qemu(disk, KEY, tmp_path) == content

    assert rekey(descriptor, header, KEY, b"the new key", "disk") == 1
    header, _ = inspect_luks(descriptor, "disk")
    with pytest.raises(InputError, match="opens none"):
        unlock(descriptor, header, KEY, "disk")
    os.close(descriptor)
    assert opened_by_qemu(disk, b"the new key", tmp_path) == content


def test_we_read_what_qemu_and_cryptsetup_write(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY)
    found = []
    if shutil.which("qemu-img"):
        secret = f"secret,id=k,file={tmp_path / 'key'},format=raw"
        options = "key-secret=k,iter-time=300,hash-alg=sha512"
        command = ["qemu-img", "create", "--object", secret, "-f", "luks", "-o", options, str(tmp_path / "q"), "1M"]
        done = create_luks(command)
        assert done.returncode == 0, done.stderr
        found.append(tmp_path / "q")
    if shutil.which("cryptsetup"):
        (tmp_path / "c").write_bytes(bytes(8 << 20))
        command = ["cryptsetup", "luksFormat", "--batch-mode", "--type", "luks1", "--key-file", str(tmp_path / "key")]
        command += ["--pbkdf-force-iterations", "150000", str(tmp_path / "c")]
        if subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0:
            found.append(tmp_path / "c")
    if not found:
        pytest.skip("neither qemu-img nor cryptsetup is installed")
    for path in found:
        descriptor = os.open(path, os.O_RDONLY)
        header, _ = inspect_luks(descriptor, path.name)
        assert len(unlock(descriptor, header, KEY, path.name)[0]) == header.key_bytes
        os.close(descriptor)


def put(offset: int, data: bytes) -> bytes:
    return GOOD[:offset] + data + GOOD[offset + len(data) :]


def number(value: int) -> bytes:
    return struct.pack(">I", value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no LUKS header"),
        (put(0, b"LUKX"), "no LUKS header"),
        (put(6, b"\0\2"), "version 2"),
        (put(8, b"cipher_null".ljust(32, b"\0")), "cipher_null"),
        (put(8, b"null".ljust(32, b"\0")), "cipher null"),
        (put(40, b"ecb".ljust(32, b"\0")), "aes-ecb"),
        (put(40, b"cbc-plain64".ljust(32, b"\0")), "aes-cbc-plain64"),
        (put(72, b"sha1".ljust(32, b"\0")), "sha1"),
        (put(72, bytes(32)), "nothing"),
        (put(8, b"aes\0x".ljust(32, b"\0")), "a name that is none"),
        (put(8, b"a" * 32), "a name that is none"),
        (put(104, number(0)), "data from byte 0"),
        (put(104, number(0xFFFFFFFF)), "data from byte"),
        (put(108, number(16)), "16 key bytes"),
        (put(164, number(1)), "1 iterations of the key's digest"),
        (put(208, number(0x0000DEAD)), "no active key slot"),
        (put(212, number(1000)), "key slot 0 with 1000 iterations"),
        (put(248, number(0)), "key slot 0 at bytes 0"),
        (put(248, number(0xFFFFFFF0)), "key slot 0 at bytes"),
        (put(252, number(1)), "1 stripes"),
        (put(248 + 48, GOOD[248:252]), "overlap"),
        (put(256, number(0x12345678)), "key slot 1 with 0 iterations"),
    ],
)
def test_headers_that_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse_header(data, "x")
    assert message in str(caught.value)


def test_header_round_trip() -> None:
    assert write_header(parse_header(GOOD, "x")) == GOOD


@given(st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_any_byte_may_lie(at: int, change: int) -> None:
    """Whatever is changed: refused, or the same strong cipher and derivation as before."""
    data = GOOD[:at] + bytes([GOOD[at] ^ change]) + GOOD[at + 1 :]
    try:
        header = parse_header(data, "x")
    except ImageError:
        return
    assert header.key_bytes in (32, 64)
    assert header.hash_name in ("sha256", "sha512")
    assert all(slot.iterations >= ITERATIONS_MIN for slot in header.slots if slot.active)


@given(st.binary(max_size=700))
@settings(max_examples=200, deadline=None)
def test_hostile_headers(data: bytes) -> None:
    with pytest.raises(ImageError):
        parse_header(b"LUKS\xba\xbe\0\1" + data, "x")


def test_sizes_that_lie(tmp_path: Path) -> None:
    disk = encrypted(tmp_path, bytes(1024))
    for size in (HEADER_BYTES, luks_keys.PAYLOAD_BYTES, luks_keys.PAYLOAD_BYTES + 511):
        os.truncate(disk, size)
        descriptor = os.open(disk, os.O_RDONLY)
        with pytest.raises(ImageError):
            inspect_luks(descriptor, "x")
        os.close(descriptor)
