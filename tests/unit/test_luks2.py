"""LUKS2: what cryptsetup writes is accepted; each way to make a header lie is refused with its own code."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.cli.main import main
from casemate.errors import ImageError
from casemate.image.luks2 import Luks2Header, parse_luks2
from casemate.image.luks2_judge import Luks2Wanted, judge_luks2

CRYPTSETUP = shutil.which("cryptsetup") or "/usr/sbin/cryptsetup"
pytestmark = pytest.mark.skipif(not os.access(CRYPTSETUP, os.X_OK), reason="cryptsetup is not installed")
VOLUME_BYTES = 32 << 20
SOUND = Luks2Wanted()
Change = Callable[[dict[str, Any]], object]


def formatted(path: Path, *options: str) -> Path:
    """A volume as cryptsetup makes it."""
    with path.open("wb") as file:
        file.truncate(VOLUME_BYTES)
    command = [CRYPTSETUP, "luksFormat", "--type", "luks2", "--batch-mode", "--key-file", "-", *options, str(path)]
    subprocess.run(command, input=b"key", check=True, timeout=120, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    return path


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("luks2")
    return formatted(directory / "disk", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")


@pytest.fixture(scope="module")
def good(volume: Path) -> bytes:
    return volume.read_bytes()[:32768]


def rewritten(data: bytes, change: Change, *, copies: tuple[int, ...] = (0, 1)) -> bytes:
    """Both headers with another JSON, their checksums made right: what whoever can write the disk can do."""
    found = bytearray(data)
    size = len(data) // 2
    for copy in copies:
        start = copy * size
        area = bytes(found[start + 4096 : start + size])
        document = json.loads(area.partition(b"\0")[0])
        change(document)
        text = json.dumps(document, separators=(",", ":")).encode()
        found[start + 4096 : start + size] = text.ljust(size - 4096, b"\0")
        seal(found, start, size)
    return bytes(found)


def seal(found: bytearray, start: int, size: int) -> None:
    """The checksum of one copy."""
    found[start + 448 : start + 512] = bytes(64)
    found[start + 448 : start + 512] = hashlib.sha256(found[start : start + size]).digest().ljust(64, b"\0")


def codes(data: bytes, wanted: Luks2Wanted = SOUND, volume_bytes: int = VOLUME_BYTES) -> list[str]:
    """What the judge says."""
    return [fault.code for fault in judge_luks2(parse_luks2(data, "disk"), volume_bytes, wanted)]


def test_what_cryptsetup_writes_is_accepted(good: bytes) -> None:
    assert codes(good) == []
    header = parse_luks2(good, "disk")
    assert codes(good, Luks2Wanted(digest=header.digest, uuid=header.first.uuid)) == []
    assert header.digest == hashlib.sha256(good).hexdigest()


@pytest.mark.parametrize(
    ("options", "faults"),
    [
        (("--pbkdf", "argon2id", "--pbkdf-memory", "32768", "--pbkdf-force-iterations", "4"), []),
        (("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", "sha512", "--key-size", "256"), []),
        (("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--luks2-metadata-size", "64k"), []),
        (("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--sector-size", "512"), []),
        (
            ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--cipher", "aes-cbc-essiv:sha256"),
            ["segment.cipher"],
        ),
    ],
)
def test_other_settings_of_cryptsetup(tmp_path: Path, options: tuple[str, ...], faults: list[str]) -> None:
    found = codes(formatted(tmp_path / "disk", *options).read_bytes()[: 8 << 20])
    assert [code for code in found if code.startswith("segment")] == faults
    assert bool(found) == bool(faults)


def test_more_key_slots_and_tokens_are_counted(volume: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    shutil.copyfile(volume, path)
    (tmp_path / "new").write_bytes(b"another")
    add = [CRYPTSETUP, "luksAddKey", "--key-file", "-", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
    subprocess.run([*add, str(path), str(tmp_path / "new")], input=b"key", check=True, timeout=120)
    token = b'{"type":"x","keyslots":["0"]}'
    subprocess.run([CRYPTSETUP, "token", "import", str(path)], input=token, check=True, timeout=120)
    data = path.read_bytes()[:32768]
    assert codes(data) == ["keyslots", "tokens"]
    assert codes(data, Luks2Wanted(keyslots=2, tokens=1)) == []


def put(path: str, value: object) -> Change:
    """Set one member, by its path."""

    def change(document: dict[str, Any]) -> None:
        *names, last = path.split("/")
        for name in names:
            document = document[name]
        document[last] = value

    return change


def drop(path: str) -> Change:
    """Take one member away."""

    def change(document: dict[str, Any]) -> None:
        *names, last = path.split("/")
        for name in names:
            document = document[name]
        del document[last]

    return change


def second_segment(document: dict[str, Any]) -> None:
    """A part of the disk that is not encrypted."""
    document["segments"]["1"] = {"type": "linear", "offset": "20971520", "size": "4096"}


def second_slot(document: dict[str, Any]) -> None:
    """A key slot whose material is that of the first."""
    document["keyslots"]["1"] = document["keyslots"]["0"]
    document["digests"]["0"]["keyslots"].append("1")


LIES: dict[str, tuple[Change, str]] = {
    "null cipher of the slot (CVE-2025-59054)": (
        put("keyslots/0/area/encryption", "cipher_null-ecb"),
        "keyslot.cipher",
    ),
    "null cipher of the data (CVE-2025-58356)": (put("segments/0/encryption", "cipher_null-ecb"), "segment.cipher"),
    "null cipher, differently written": (
        put("segments/0/encryption", "capi:ecb(cipher_null)-plain64"),
        "segment.cipher",
    ),
    "ecb": (put("segments/0/encryption", "aes-ecb"), "segment.cipher"),
    "upper case": (put("segments/0/encryption", "AES-XTS-PLAIN64"), "segment.cipher"),
    "short slot key": (put("keyslots/0/area/key_size", 1), "keyslot.cipher"),
    "short volume key": (put("keyslots/0/key_size", 1), "keyslot.key"),
    "no stripes": (put("keyslots/0/af/stripes", 1), "keyslot.splitter"),
    "splitter with another hash": (put("keyslots/0/af/hash", "crc32"), "keyslot.splitter"),
    "material in the headers": (put("keyslots/0/area/offset", "0"), "keyslot.area"),
    "material in the data": (put("keyslots/0/area/offset", "16777216"), "keyslot.area"),
    "material without end": (put("keyslots/0/area/size", "9223372036854775807"), "keyslot.area"),
    "too little material": (put("keyslots/0/area/size", "4096"), "keyslot.area-size"),
    "another kind of area": (put("keyslots/0/area/type", "journal"), "keyslot.area-type"),
    "another kind of slot": (put("keyslots/0/type", "luks3"), "keyslot.type"),
    "two slots of one material": (second_slot, "keyslot.overlap"),
    "no slot": (put("keyslots", {}), "keyslots"),
    "few iterations": (put("keyslots/0/kdf/iterations", 1), "keyslot.kdf"),
    "iterations for a day": (put("keyslots/0/kdf/iterations", 4294967295), "keyslot.kdf"),
    "derivation with a weak hash": (put("keyslots/0/kdf/hash", "sha1"), "keyslot.kdf"),
    "unknown derivation": (put("keyslots/0/kdf/type", "none"), "keyslot.kdf"),
    "argon2 with all memory": (
        put("keyslots/0/kdf", {"type": "argon2id", "time": 1, "memory": 4294967295, "cpus": 1, "salt": "A" * 44}),
        "keyslot.kdf",
    ),
    "no salt": (put("keyslots/0/kdf/salt", ""), "keyslot.salt"),
    "priority": (put("keyslots/0/priority", 9), "keyslot.priority"),
    "segment that is not encrypted": (put("segments/0/type", "linear"), "segment.type"),
    "second segment": (second_segment, "segments"),
    "no segment": (put("segments", {}), "segments"),
    "segment of a part only": (put("segments/0/size", "4096"), "segment.size"),
    "segment on the headers": (put("segments/0/offset", "4096"), "segment.offset"),
    "segment behind the end": (put("segments/0/offset", "9223372036854775807"), "segment.offset"),
    "tweak": (put("segments/0/iv_tweak", "8"), "segment.sectors"),
    "huge sectors": (put("segments/0/sector_size", 65536), "segment.sectors"),
    "integrity": (put("segments/0/integrity", {"type": "none"}), "segment.integrity"),
    "backup of a reencryption": (put("segments/0/flags", ["backup-final"]), "segment.flags"),
    "digest of no slot": (put("digests/0/keyslots", []), "digest.covers"),
    "digest of no segment": (put("digests/0/segments", []), "digest.covers"),
    "digest of one iteration": (put("digests/0/iterations", 1), "digest.kind"),
    "digest of one byte": (put("digests/0/digest", base64.b64encode(b"x").decode()), "digest.size"),
    "no digest": (put("digests", {}), "digests"),
    "token": (put("tokens/0", {"type": "luks2-keyring", "keyslots": ["0"], "key_description": "x"}), "tokens"),
    "flags": (put("config/flags", ["no-read-workqueue"]), "flags"),
    "requirements": (put("config/requirements", {"mandatory": ["online-reencrypt-v2"]}), "requirements"),
    "area of another size": (put("config/json_size", "4096"), "config"),
}


@pytest.mark.parametrize("lie", LIES)
def test_each_lie_is_refused_with_its_own_code(good: bytes, lie: str) -> None:
    change, code = LIES[lie]
    assert code in codes(rewritten(good, change))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (put("keyslots/1", {"type": "reencrypt", "mode": "reencrypt", "direction": "forward"}), "reencryption"),
        (put("keyslots/0/unheard", 1), "unheard"),
        (put("unheard", {}), "unheard"),
        (put("segments/0/offset", "-1"), "offset"),
        (put("segments/0/offset", "010"), "offset"),
        (put("keyslots/00", {}), "keyslots"),
        (drop("digests"), "digests"),
        (drop("keyslots/0/area"), "area"),
    ],
)
def test_json_of_another_form_is_not_read(good: bytes, change: Change, word: str) -> None:
    with pytest.raises(ImageError, match=word):
        parse_luks2(rewritten(good, change), "disk")


@pytest.mark.parametrize("copy", [0, 1])
def test_copies_that_do_not_agree_are_refused_whichever_is_obeyed(good: bytes, copy: int) -> None:
    lied = rewritten(good, put("segments/0/encryption", "cipher_null-ecb"), copies=(copy,))
    assert "copies" in codes(lied)
    newer = bytearray(good)
    newer[copy * 16384 + 16 : copy * 16384 + 24] = (99).to_bytes(8, "big")
    seal(newer, copy * 16384, 16384)
    assert codes(bytes(newer)) == ["copies"]


@pytest.mark.parametrize("offset", [8, 16, 30, 170, 210, 256, 448, 4100, 16384 + 20, 16384 + 4100])
def test_a_damaged_copy_is_refused(good: bytes, offset: int) -> None:
    damaged = bytearray(good)
    damaged[offset] ^= 1
    try:
        assert codes(bytes(damaged)) != []
    except ImageError:
        return


def test_two_members_of_one_name_are_not_read(good: bytes) -> None:
    """Which one counts, readers do not agree upon."""
    text = good[4096:16384].partition(b"\0")[0]
    doubled = text.replace(b'"tokens":{}', b'"tokens":{},"tokens":{}')
    assert doubled != text
    with pytest.raises(ImageError, match="two members"):
        parse_luks2(good[:4096] + doubled.ljust(12288, b"\0") + good[16384:], "disk")


@pytest.mark.parametrize(
    "data",
    [b"", b"LUKS\xba\xbe", b"LUKS\xba\xbe\x00\x01" + bytes(8192), b"SKUL\xba\xbe\x00\x02" + bytes(32760), bytes(32768)],
)
def test_what_is_no_luks2_is_said(data: bytes) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        parse_luks2(data, "disk")


def test_the_expected_header_and_no_other(good: bytes) -> None:
    header = parse_luks2(good, "disk")
    other = rewritten(good, put("keyslots/0/kdf/iterations", 1001))
    assert codes(other) == [], "sound by itself"
    assert codes(other, Luks2Wanted(digest=header.digest)) == ["digest-of-header"]
    assert codes(good, Luks2Wanted(uuid="00000000-0000-0000-0000-000000000000")) == ["uuid"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 32767), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_changed_bytes_never_give_another_accepted_header(
    cached: Luks2Header, changes: list[tuple[int, int]], sealed: bool
) -> None:
    found = bytearray(DATA["good"])
    for place, value in changes:
        found[place] = value
    if sealed:
        seal(found, 0, 16384)
        seal(found, 16384, 16384)
    try:
        header = parse_luks2(bytes(found), "disk")
    except ImageError:
        return
    faults = judge_luks2(header, VOLUME_BYTES, Luks2Wanted(digest=cached.digest))
    assert bool(faults) == (bytes(found) != DATA["good"])


DATA: dict[str, bytes] = {}


@pytest.fixture(scope="module")
def cached(good: bytes) -> Luks2Header:
    """For hypothesis, which wants no fixture of a function."""
    DATA["good"] = good
    return parse_luks2(good, "disk")


def test_the_command(volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], good: bytes) -> None:
    digest = hashlib.sha256(good).hexdigest()
    assert main(["image", "check-luks", str(volume), "--expect-digest", digest]) == 0
    assert f"digest {digest} of 32768 bytes" in capsys.readouterr().out
    bad = tmp_path / "bad"
    bad.write_bytes(rewritten(good, put("segments/0/encryption", "cipher_null-ecb")).ljust(VOLUME_BYTES, b"\0"))
    assert main(["image", "check-luks", str(bad), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["accepted"]) == ("casemate.luks2/1", False)
    assert [fault["code"] for fault in found["faults"]] == ["segment.cipher"]
    shifted = tmp_path / "shifted"
    shifted.write_bytes(bytes(1 << 20) + volume.read_bytes())
    assert main(["image", "check-luks", str(shifted), "--offset", str(1 << 20)]) == 0
    assert main(["image", "check-luks", str(shifted)]) == 2
    backup = tmp_path / "backup"
    command = [CRYPTSETUP, "luksHeaderBackup", str(volume), "--header-backup-file", str(backup)]
    subprocess.run(command, check=True, timeout=120)
    assert main(["image", "check-luks", str(backup), "--expect-digest", digest]) == 0, "a copy is judged as the disk is"


def test_cryptsetup_obeys_what_we_refuse(good: bytes, volume: Path, tmp_path: Path) -> None:
    """Why this exists: cryptsetup of this host reads a null cipher out of a header without a word."""
    path = tmp_path / "disk"
    path.write_bytes(rewritten(good, put("segments/0/encryption", "cipher_null-ecb")) + volume.read_bytes()[32768:])
    dump = subprocess.run([CRYPTSETUP, "luksDump", str(path)], capture_output=True, text=True, check=True, timeout=60)
    assert "cipher_null-ecb" in dump.stdout
    test = [CRYPTSETUP, "open", "--test-passphrase", "--key-file", "-", str(path)]
    assert subprocess.run(test, input=b"key", check=False, timeout=60).returncode == 0
    assert "segment.cipher" in codes(path.read_bytes()[:32768])
