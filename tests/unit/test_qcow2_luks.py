"""LUKS inside qcow2: QEMU reads what we write, we read what QEMU writes, and the header inside is judged like any."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.hosts import HOST, plan_of
from tests.support.qemu_luks import create_luks

from casemate.errors import CasemateError, ImageError, InputError
from casemate.image import luks_keys
from casemate.image.headers import inspect_image
from casemate.image.luks import ITERATIONS_MIN
from casemate.image.luks_keys import rekey, unlock
from casemate.image.qcow2_luks import encrypt_to_qcow2, inspect_qcow2_luks
from casemate.spec.model import Boot, Disk, DiskFormat, DiskMode, Encryption, Secret, SecretUse, Spec

KEY = b"a key of 20 bytes or more"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots at the least strength that is accepted."""
    monkeypatch.setattr(luks_keys, "KDF_S", 0.0)


def encrypted(directory: Path, content: bytes, hole_bytes: int = 0) -> Path:
    with (directory / "plain").open("wb") as file:
        file.seek(hole_bytes)
        file.write(content)
    source = os.open(directory / "plain", os.O_RDONLY)
    target = os.open(directory / "disk.qcow2", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    encrypt_to_qcow2(source, target, KEY, lambda _: None, ITERATIONS_MIN)
    os.close(source)
    os.close(target)
    return directory / "disk.qcow2"


def with_qemu(*words: str, key: bytes, directory: Path) -> subprocess.CompletedProcess[bytes]:
    (directory / "key").write_bytes(key)
    command = ["qemu-img", words[0], "--object", f"secret,id=k,file={directory / 'key'},format=raw", *words[1:]]
    return create_luks(command)


def same_for_qemu(disk: Path, key: bytes, directory: Path) -> None:
    """The image is sound, and holds what ``plain`` does."""
    source = f"driver=qcow2,encrypt.format=luks,encrypt.key-secret=k,file.filename={disk}"
    plain = f"driver=raw,file.filename={directory / 'plain'}"
    for words in (("check", "--image-opts", source), ("compare", "--image-opts", source, plain)):
        done = with_qemu(*words, key=key, directory=directory)
        assert done.returncode == 0, done.stdout + done.stderr


def made_by_qemu(path: Path, directory: Path) -> None:
    words = "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=300"
    done = with_qemu("create", "-f", "qcow2", "-o", words, str(path), "4M", key=KEY, directory=directory)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
@pytest.mark.parametrize(
    ("hole_bytes", "content"),
    [
        (0, bytes(512)),
        (0, os.urandom(3 << 20) + bytes(2 << 20) + b"the end".ljust(512, b"\0")),
        (513 << 20, os.urandom(65536 + 512)),
    ],
    ids=["one empty sector", "a hole inside", "two L2 tables"],
)
def test_qemu_reads_what_we_write(tmp_path: Path, hole_bytes: int, content: bytes) -> None:
    disk = encrypted(tmp_path, content, hole_bytes)
    same_for_qemu(disk, KEY, tmp_path)
    kept = content.strip(b"\0")
    assert kept[:64] not in disk.read_bytes() or not kept
    assert disk.stat().st_size < len(kept) + (6 << 20)
    descriptor = os.open(disk, os.O_RDWR)
    header, at, size = inspect_qcow2_luks(descriptor, "disk")
    assert (size, unlock(descriptor, header, KEY, "disk", at=at)[1]) == (hole_bytes + len(content), 0)
    assert rekey(descriptor, header, KEY, b"the new key", "disk", at=at) == 1
    header, at, _ = inspect_qcow2_luks(descriptor, "disk")
    with pytest.raises(InputError, match="opens none"):
        unlock(descriptor, header, KEY, "disk", at=at)
    os.close(descriptor)
    same_for_qemu(disk, b"the new key", tmp_path)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_the_header_inside_is_judged_like_any(tmp_path: Path) -> None:
    made_by_qemu(tmp_path / "good", tmp_path)
    descriptor = os.open(tmp_path / "good", os.O_RDONLY)
    header, at, size = inspect_qcow2_luks(descriptor, "good")
    assert size == 4 << 20
    assert len(unlock(descriptor, header, KEY, "good", at=at)[0]) == header.key_bytes
    os.close(descriptor)
    for offset, word in ((8, b"cipher_null"), (8, b"serpent"), (40, b"cbc-plain64"), (72, b"sha1")):
        whole = bytearray((tmp_path / "good").read_bytes())
        whole[at + offset : at + offset + 32] = word.ljust(32, b"\0")
        (tmp_path / "weak").write_bytes(whole)
        refused(tmp_path / "weak", word.decode())


def refused(path: Path, message: str) -> None:
    """With a key, and by readers that have no use for the content."""
    descriptor = os.open(path, os.O_RDONLY)
    with pytest.raises(ImageError, match=message):
        inspect_qcow2_luks(descriptor, path.name)
    with pytest.raises(ImageError, match=message):
        inspect_image(descriptor, path.name, "qcow2", allow_encrypted=True)
    os.close(descriptor)


def test_what_is_not_encrypted_or_with_the_old_cipher(tmp_path: Path) -> None:
    disk = encrypted(tmp_path, bytes(1 << 20))
    whole = bytearray(disk.read_bytes())
    place = whole.index(struct.pack(">I", 0x0537BE77))
    for offset, value, message in (
        (32, struct.pack(">I", 0), "does not fit its method"),
        (32, struct.pack(">I", 1), "AES"),
        (place + 16, struct.pack(">Q", 4096), "encryption header of 4096|key slots up to"),
        (place + 8, struct.pack(">Q", 1 << 40), "cut short"),
        (place, struct.pack(">I", 0x1234), "without its header extension"),
    ):
        changed = bytes(whole[:offset]) + value + bytes(whole[offset + len(value) :])
        (tmp_path / "x").write_bytes(changed)
        refused(tmp_path / "x", message)
    whole[32:36] = bytes(4)
    whole[place : place + 4] = struct.pack(">I", 0x1234)
    (tmp_path / "plain.qcow2").write_bytes(whole)
    descriptor = os.open(tmp_path / "plain.qcow2", os.O_RDONLY)
    with pytest.raises(ImageError, match="is not encrypted"):
        inspect_qcow2_luks(descriptor, "plain.qcow2")
    os.close(descriptor)


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_header_is_accepted_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Never another error, whatever the first cluster and the LUKS header say."""
    if not (tmp_path / "disk.qcow2").exists():
        encrypted(tmp_path, bytes(1 << 20))
    whole = bytearray((tmp_path / "disk.qcow2").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from([0, 65536])) + data.draw(st.integers(0, 160))
        whole[at] = data.draw(st.integers(0, 255))
    (tmp_path / "x").write_bytes(whole)
    descriptor = os.open(tmp_path / "x", os.O_RDONLY)
    try:
        header, _, _ = inspect_qcow2_luks(descriptor, "x")
    except CasemateError:
        return
    finally:
        os.close(descriptor)
    assert all(slot.iterations >= ITERATIONS_MIN for slot in header.slots if slot.active)


def test_the_emulator_gets_the_key_by_name(tmp_path: Path) -> None:
    disk = Disk(path="/d", format=DiskFormat.QCOW2, mode=DiskMode.PERSISTENT, encryption=Encryption.LUKS, key="data")
    secrets = {"data": Secret(file="/k", use=SecretUse.DISK)}
    argv = plan_of(Spec(boot=Boot(kernel="/k"), disks=(disk,), secrets=secrets), HOST).wall.argv
    node = next(word for word in argv if "node-name=disk0," in word)
    assert node.startswith("qcow2,")
    assert "encrypt.format=luks,encrypt.key-secret=disk-key0" in node
