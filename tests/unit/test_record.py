"""The launch record: signed, canonical, chained; every change to its bytes is seen."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from casemate.controls.model import Verdict
from casemate.engine.keys import KEY_NAME, HostKey, load_or_create_key
from casemate.engine.paths import Paths
from casemate.engine.verification import verify
from casemate.errors import HostError, InputError
from casemate.evidence.record import (
    DOMAIN,
    GENESIS,
    RECORD_MAX_BYTES,
    ChainLink,
    FileDigest,
    LaunchRecord,
    RecordedFinding,
    canonical_json,
    link_of,
    parse_public_key,
    public_key_text,
    sha256_hex,
    sign_record,
    verify_record,
)

SPEC = '{"name":"web"}'


@pytest.fixture
def key(tmp_path: Path) -> HostKey:
    tmp_path.chmod(0o700)
    return load_or_create_key(tmp_path)


def record(key: HostKey, **changes: object) -> LaunchRecord:
    finding = RecordedFinding(
        control="proc.uid",
        verdict="pass",
        severity="critical",
        gate="launch",
        evidence="proc.uid = 1900000001, observed from /proc/7/status",
        expected="proc.uid: at least 1",
        why="as expected",
    )
    base = LaunchRecord(
        sequence=1,
        previous=GENESIS,
        key_sha256=sha256_hex(key.public),
        vm_id="0123456789abcdef",
        name="web",
        released_at="2026-03-01T10:00:00.250Z",
        accel="tcg",
        spec=SPEC,
        spec_sha256=sha256_hex(SPEC.encode()),
        plan_sha256=sha256_hex(b"plan"),
        findings=(finding,),
        files=(FileDigest(role="kernel", sha256=sha256_hex(b"kernel"), size_bytes=6),),
        versions={"qemu": "7.2.9", "casemate": "0.1.0"},
    )
    return msgspec.structs.replace(base, **changes)


def chain(key: HostKey, length: int) -> list[bytes]:
    link, signed = ChainLink(), []
    for number in range(length):
        entry = record(key, sequence=link.sequence + 1, previous=link.sha256, vm_id=f"vm{number}")
        signed.append(sign_record(entry, key.private))
        link = link_of(signed[-1], entry)
    return signed


def test_what_was_signed_is_what_is_read(key: HostKey) -> None:
    entry = record(key, name="wéb\n")
    assert verify_record(sign_record(entry, key.private), key.public) == entry


def test_the_bytes_are_one_canonical_json_object(key: HostKey) -> None:
    data = sign_record(record(key), key.private)
    assert data == canonical_json(msgspec.json.decode(data))
    assert b": " not in data.split(b'"evidence"')[0]
    assert data.endswith(b'"}')


def test_every_changed_byte_is_seen(key: HostKey) -> None:
    data = sign_record(record(key), key.private)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x01
        with pytest.raises(InputError):
            verify_record(bytes(changed), key.public)


def test_truncated_and_extended_records_are_refused(key: HostKey) -> None:
    data = sign_record(record(key), key.private)
    for faulty in (b"", data[:-1], data + b"\n", b" " + data, data + data, data.replace(b'{"record":', b'{"record": ')):
        with pytest.raises(InputError):
            verify_record(faulty, key.public)


def test_another_key_does_not_verify(key: HostKey, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir(mode=0o700)
    other = load_or_create_key(tmp_path / "other")
    with pytest.raises(InputError, match="a signature that this key did not make"):
        verify_record(sign_record(record(key), key.private), other.public)


def test_a_key_that_is_no_key_is_refused(key: HostKey) -> None:
    with pytest.raises(InputError, match="public key"):
        verify_record(sign_record(record(key), key.private), b"short")


def signed_by_hand(key: HostKey, payload: bytes, domain: bytes = DOMAIN) -> bytes:
    """What an attacker who holds the key, or another program that uses it, could make of any bytes."""
    return b'{"record":' + payload + b',"signature":"' + key.private.sign(domain + payload).hex().encode() + b'"}'


def test_a_signature_from_another_protocol_is_refused(key: HostKey) -> None:
    payload = canonical_json(record(key))
    assert verify_record(signed_by_hand(key, payload), key.public) == record(key)
    with pytest.raises(InputError, match="did not make"):
        verify_record(signed_by_hand(key, payload, domain=b""), key.public)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.replace(b'"name":"web",', b'"name":"web","name":"web",'),
        lambda p: p.replace(b'"name":"web"', b'"name": "web"'),
        lambda p: p.replace(b'"name":"web"', b'"name":"w\\u0065b"'),
        lambda p: p.replace(b'{"accel"', b'{"zzz":1,"accel"'),
        lambda p: p.replace(b'"version":1', b'"version":2'),
        lambda p: p.replace(b'"version":1', b'"version":1.0'),
        lambda p: p.replace(b'"verdict":"pass"', b'"verdict":"fine"'),
        lambda p: p.replace(b'"sequence":1', b'"sequence":0'),
        lambda p: p.replace(b"2026-03-01T10", b"2026-03-01 10"),
    ],
    ids=["repeated-key", "white-space", "escape", "unknown-key", "version", "float", "verdict", "sequence", "time"],
)
def test_correctly_signed_nonsense_is_refused(key: HostKey, change: object) -> None:
    payload = canonical_json(record(key))
    changed = change(payload)  # type: ignore[operator]
    assert changed != payload
    with pytest.raises(InputError):
        verify_record(signed_by_hand(key, changed), key.public)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": "{}"}, "spec_sha256"),
        ({"key_sha256": "0" * 64}, "key_sha256"),
        ({"findings": ()}, "no findings"),
    ],
)
def test_content_that_contradicts_itself(key: HostKey, changes: dict[str, object], message: str) -> None:
    faulty = record(key, **changes)
    with pytest.raises(RuntimeError, match=message):
        sign_record(faulty, key.private)
    with pytest.raises(InputError, match=message):
        verify_record(signed_by_hand(key, canonical_json(faulty)), key.public)


def test_size_is_bounded_both_ways(key: HostKey) -> None:
    with pytest.raises(InputError, match="at most"):
        sign_record(record(key, versions={"x": "y" * RECORD_MAX_BYTES}), key.private)
    with pytest.raises(InputError, match="at most"):
        verify_record(b" " * (RECORD_MAX_BYTES + 1), key.public)


@pytest.mark.parametrize("value", [1.5, {"a": [0.0]}, "\ud800", {1.5: 1}, object()])
def test_values_without_a_canonical_form(value: object) -> None:
    with pytest.raises(InputError, match="no canonical JSON form"):
        canonical_json(value)


def test_verdicts_are_those_of_the_judge() -> None:
    kinds = next(f.type for f in msgspec.structs.fields(RecordedFinding) if f.name == "verdict")
    assert set(kinds.__args__) == {verdict.value for verdict in Verdict}


# --- the chain -----------------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path, key: HostKey) -> Paths:
    """Directories of a host whose key is ``key``."""
    return Paths(str(tmp_path / "run"), str(tmp_path), str(tmp_path / "cache"))


def keep(host: Paths, signed: Sequence[bytes], end: ChainLink) -> None:
    """Lay signed records down, oldest first, with the note of where their chain ends."""
    directory = Path(host.data) / "records"
    directory.mkdir(exist_ok=True)
    for number, data in enumerate(signed, start=1):
        (directory / f"{number:08d}-vm.json").write_bytes(data)
    (directory / "chain.json").write_bytes(msgspec.json.encode(end))


def end_of(key: HostKey, signed: Sequence[bytes]) -> ChainLink:
    return link_of(signed[-1], verify_record(signed[-1], key.public))


def faults(host: Paths) -> list[str]:
    """What is said of the chain's records and end that do not hold."""
    found = verify(host, (), None)
    assert found["chain"] is True
    assert found["ok"] is not any(not item["ok"] for item in found["records"])
    return [item["why"] for item in found["records"] if not item["ok"]]


def test_a_whole_chain(key: HostKey, host: Paths) -> None:
    signed = chain(key, 4)
    keep(host, signed, end_of(key, signed))
    found = verify(host, (), None)
    assert found["ok"]
    assert [item["id"] for item in found["records"]] == ["vm0", "vm1", "vm2", "vm3"]


@pytest.mark.parametrize("order", [[1, 2, 3], [0, 2, 3], [0, 2, 1, 3], [0, 0, 1], [0, 1, 1]])
def test_missing_repeated_and_reordered_records_are_seen(key: HostKey, host: Paths, order: list[int]) -> None:
    signed = chain(key, 4)
    keep(host, [signed[i] for i in order], end_of(key, [signed[i] for i in order]))
    assert "records are missing or out of order" in faults(host)[0]


def test_records_that_were_cut_off_are_seen(key: HostKey, host: Paths) -> None:
    signed = chain(key, 4)
    keep(host, signed[:3], end_of(key, signed))
    (why,) = faults(host)
    assert why == "the chain ends at record 3, but the note says 4: records were cut off or added"


@pytest.mark.parametrize("note", [None, b"", b"{", b'{"sequence":"3","sha256":""}'])
def test_a_chain_without_a_note_of_its_end_does_not_hold(key: HostKey, host: Paths, note: bytes | None) -> None:
    signed = chain(key, 3)
    keep(host, signed, end_of(key, signed))
    path = Path(host.data) / "records/chain.json"
    path.unlink()
    if note is not None:
        path.write_bytes(note)
    (why,) = faults(host)
    assert why.startswith("the note of the chain's end cannot be read")


def test_a_replaced_record_is_seen_by_the_next_one(key: HostKey, host: Paths) -> None:
    signed = chain(key, 3)
    second = verify_record(signed[1], key.public)
    end = end_of(key, signed)
    signed[1] = sign_record(msgspec.structs.replace(second, name="other"), key.private)
    keep(host, signed, end)
    assert faults(host) == ["the record before it was replaced: its digest is not the one named here"]


def test_a_changed_record_is_one_fault_and_the_chain_goes_on_behind_it(key: HostKey, host: Paths) -> None:
    signed = chain(key, 3)
    end = end_of(key, signed)
    signed[1] = signed[1].replace(b'"web"', b'"wab"')
    keep(host, signed, end)
    first, second = faults(host)
    assert "a signature that this key did not make" in first
    assert second == "the record before it was replaced: its digest is not the one named here"


def test_an_empty_chain_proves_nothing(key: HostKey, host: Paths) -> None:
    with pytest.raises(InputError, match="no launch records"):
        verify(host, (), None)


# --- the key -------------------------------------------------------------------------------------------------------


def test_the_key_is_made_once_private_and_whole(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    old = os.umask(0)
    try:
        first = load_or_create_key(tmp_path)
    finally:
        os.umask(old)
    assert [entry.name for entry in tmp_path.iterdir()] == [KEY_NAME]
    assert stat.S_IMODE((tmp_path / KEY_NAME).stat().st_mode) == 0o600
    assert load_or_create_key(tmp_path).public == first.public


def test_the_private_key_is_in_no_text(key: HostKey, tmp_path: Path) -> None:
    pem = (tmp_path / KEY_NAME).read_text()
    secret = key.private.private_bytes_raw()
    for text in (repr(key), str(key), f"{key}", key.public_text()):
        assert secret.hex() not in text
        assert pem.splitlines()[1] not in text
        assert "private" not in text


def test_many_first_users_at_once_agree_on_one_key(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    barrier, keys = threading.Barrier(8), []

    def first_use() -> None:
        barrier.wait()
        keys.append(load_or_create_key(tmp_path).public)

    threads = [threading.Thread(target=first_use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == [KEY_NAME]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o700])
def test_a_key_that_others_could_have_read_is_refused(key: HostKey, tmp_path: Path, mode: int) -> None:
    assert key.public
    (tmp_path / KEY_NAME).chmod(mode)
    with pytest.raises(HostError, match=f"got mode {mode:04o}") as caught:
        load_or_create_key(tmp_path)
    assert "a new key" in caught.value.next_step


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720])
def test_a_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(HostError, match=f"got mode {mode:04o}"):
        load_or_create_key(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_anothers_key_is_refused(key: HostKey, tmp_path: Path) -> None:
    assert key.public
    os.chown(tmp_path / KEY_NAME, 1234, 1234)
    with pytest.raises(HostError, match="uid 1234"):
        load_or_create_key(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"A" * 10_000],
    ids=["empty", "text", "broken", "huge"],
)
def test_a_file_without_a_key_is_refused_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / KEY_NAME).write_bytes(content)
    (tmp_path / KEY_NAME).chmod(0o600)
    with pytest.raises(HostError, match="no Ed25519 key") as caught:
        load_or_create_key(tmp_path)
    assert not content or content.decode() not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_key_of_another_algorithm_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    tmp_path.chmod(0o700)
    other = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / KEY_NAME).write_bytes(other)
    (tmp_path / KEY_NAME).chmod(0o600)
    with pytest.raises(HostError, match="no Ed25519 key"):
        load_or_create_key(tmp_path)


def test_links_and_pipes_in_place_of_the_key_are_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / KEY_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError, match="symbolic link"):
        load_or_create_key(tmp_path)
    (tmp_path / KEY_NAME).unlink()
    os.mkfifo(tmp_path / KEY_NAME, 0o600)
    with pytest.raises(HostError, match="not a regular file"):
        load_or_create_key(tmp_path)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="mkdir -p -m 0700"):
        load_or_create_key(tmp_path / "none")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen here")
def test_ssh_keygen_understands_the_public_key(key: HostKey, tmp_path: Path) -> None:
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        pytest.skip("ssh-keygen refuses to run for a uid without a passwd entry")
    (tmp_path / "key.pub").write_text(key.public_text() + "\n")
    shown = subprocess.run(
        ["ssh-keygen", "-lf", tmp_path / "key.pub"], capture_output=True, text=True, check=True
    ).stdout
    assert shown.startswith("256 SHA256:")
    assert shown.rstrip().endswith("casemate-launch-record (ED25519)")


def test_public_keys_are_read_back_from_both_forms(key: HostKey) -> None:
    assert parse_public_key(key.public_text()) == key.public
    assert parse_public_key(key.public_text() + "\n") == key.public
    assert parse_public_key(key.public.hex()) == key.public
    with pytest.raises(RuntimeError, match="32 bytes"):
        public_key_text(b"short")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519",
        "ssh-rsa AAAA x",
        "ssh-ed25519 !!!! x",
        "ssh-ed25519 AAAA x",
        "z" * 64,
        "ssh-ed25519 " + "A" * 5000,
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA== short",
    ],
)
def test_other_texts_are_no_public_key(text: str) -> None:
    with pytest.raises(InputError, match="public key"):
        parse_public_key(text)
