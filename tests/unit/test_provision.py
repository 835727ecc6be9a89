"""What a guest is given: the seed's image, the documents in it, the forms that channels carry. Pure."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import InputError
from casemate.provision.cloudinit import build_seed, check_network_config, check_user_data, meta_data
from casemate.provision.cloudinit_data import CLOUD_CONFIG_KEYS
from casemate.provision.credentials import smbios_string, wipe
from casemate.provision.ignition import check_ignition
from casemate.provision.ignition_data import OBJECTS
from casemate.provision.iso9660 import FILE_MAX_BYTES, SECTOR_BYTES, write_iso

SENTINEL = "hunter2-sentinel"


def extract(image: Path, into: Path) -> dict[str, bytes]:
    """Every file of an ISO image, as another implementation reads it."""
    if shutil.which("xorriso") is None:
        pytest.skip("xorriso is not installed")
    command = ["xorriso", "-indev", str(image), "-osirrox", "on", "-extract", "/", str(into)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    found = {path.name: path.read_bytes() for path in into.iterdir()}
    subprocess.run(["chmod", "-R", "u+w", str(into)], check=True)
    return found


# ---- the image ------------------------------------------------------------------------------------------------------


def test_another_reader_finds_the_same_files(tmp_path: Path) -> None:
    files = {"user-data": b"#cloud-config\n", "meta-data": b"x" * 5000, "network-config": b"", "b.ign": bytes(2048)}
    (tmp_path / "seed.iso").write_bytes(write_iso(list(files.items()), "CIDATA"))
    assert extract(tmp_path / "seed.iso", tmp_path / "out") == files


def test_label_and_sizes_stand_where_readers_look() -> None:
    image = write_iso([("meta-data", b"abc")], "CIDATA")
    assert image[16 * SECTOR_BYTES : 16 * SECTOR_BYTES + 7] == b"\x01CD001\x01"
    assert image[16 * SECTOR_BYTES + 40 : 16 * SECTOR_BYTES + 72] == b"CIDATA".ljust(32)
    assert image[17 * SECTOR_BYTES + 40 : 17 * SECTOR_BYTES + 52].decode("utf-16-be") == "CIDATA"
    assert int.from_bytes(image[16 * SECTOR_BYTES + 80 : 16 * SECTOR_BYTES + 84], "little") * SECTOR_BYTES == len(image)
    assert image == write_iso([("meta-data", b"abc")], "CIDATA"), "the same arguments, the same image"


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9]{0,9}(-[a-z]{1,5})?(\.[a-z]{1,3})?", fullmatch=True),
        st.binary(max_size=5000),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_every_file_lies_where_its_records_say(files: dict[str, bytes]) -> None:
    try:
        image = write_iso(list(files.items()), "X")
    except ValueError:  # two names that plain ECMA-119 cannot tell apart
        assert len({name.replace(".", "-").replace("-", "_") for name in files}) < len(files)
        return
    for root, decode in ((23, None), (24, "utf-16-be")):
        at, found = root * SECTOR_BYTES, {}
        while image[at]:
            record = image[at : at + image[at]]
            sector, size = int.from_bytes(record[2:6], "little"), int.from_bytes(record[10:14], "little")
            assert record[2:6] == record[6:10][::-1]
            identifier = bytes(record[33 : 33 + record[32]])
            content = bytes(image[sector * SECTOR_BYTES : sector * SECTOR_BYTES + size])
            if identifier not in (b"\0", b"\1"):
                if decode is None:
                    use = bytes(record[33 + record[32] + (record[32] + 1) % 2 :])
                    assert use[:2] == b"NM"
                    found[use[5 : use[2]].decode()] = content
                else:
                    found[identifier.decode(decode)] = content
            at += image[at]
        assert found == files


@pytest.mark.parametrize(
    ("files", "label", "message"),
    [
        ([], "X", "1 to 8 files"),
        ([("a", b"")] * 2, "X", "different names"),
        ([("A", b"")], "X", "a name is"),
        ([("../a", b"")], "X", "a name is"),
        ([("a", b"")], "cidata", "volume label"),
        ([("a", bytes(FILE_MAX_BYTES + 1))], "X", "at most"),
    ],
)
def test_what_does_not_fit_is_refused(files: list[tuple[str, bytes]], label: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_iso(files, label)


# ---- cloud-init -----------------------------------------------------------------------------------------------------


def test_seed_holds_what_nocloud_reads(tmp_path: Path) -> None:
    seed = build_seed("casemate-1", "web", b"#cloud-config\nruncmd: []\n", b"version: 2\n")
    (tmp_path / "seed.iso").write_bytes(seed)
    found = extract(tmp_path / "seed.iso", tmp_path / "out")
    assert json.loads(found["meta-data"]) == {"instance-id": "casemate-1", "local-hostname": "web"}
    assert found["user-data"].startswith(b"#cloud-config\n")
    assert b"datasource_list: [ NoCloud, None ]" in found["vendor-data"]
    assert found["network-config"] == b"version: 2\n"


def test_a_seed_without_anything_still_has_user_data_and_no_network_config(tmp_path: Path) -> None:
    (tmp_path / "seed.iso").write_bytes(build_seed("i", None, None, None))
    found = extract(tmp_path / "seed.iso", tmp_path / "out")
    assert found["user-data"] == b"#cloud-config\n"
    assert "network-config" not in found
    assert meta_data("i", None) == b'{\n "instance-id": "i"\n}\n'


@pytest.mark.parametrize(
    "text",
    [
        "#cloud-config\n",
        "#cloud-config\nusers:\n  - name: ana\n    ssh_authorized_keys: [x]\nruncmd:\n  - [sh, -c, 'true']\n",
        "#cloud-config\nusers: &u [default]\nntp:\n",
        "#!/bin/sh\nexit 0\n",
        "#cloud-config\n{}\n",
    ],
)
def test_user_data_that_cloud_init_understands(text: str) -> None:
    check_user_data(text.encode(), "user-data")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 bytes"),
        ("runcmd: []\n", "another first line"),
        ("#include\nhttp://example.org/x\n", "#include"),
        ("Content-Type: multipart/mixed\n", "Content-Type"),
        ("#cloud-config\nsshauthorized_keys: []\n", "ssh_authorized_keys?"),
        ("#cloud-config\nruncmd: reboot\n", "expected a list"),
        ("#cloud-config\npassword: {a: b}\n", "expected a plain value"),
        ("#cloud-config\nusers: []\nusers: []\n", "there twice"),
        ("#cloud-config\n- users\n", "expected a table of keys"),
        ("#cloud-config\na: b: c\n", "is not YAML; got line 2"),
        ("#cloud-config\n---\n{}\n---\n{}\n", "several documents"),
        ("#cloud-config\n" + "[" * 5000, "nested deeper"),
        ("#cloud-config\n? [a]\n: b\n", "not a plain word"),
        ("#cloud-config\n" + "".join(f"k{n}: 1\n" for n in range(600)), "more than 512 keys"),
    ],
)
def test_user_data_that_it_would_not(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_user_data(text.encode(), "user-data")
    assert message in str(caught.value)


def test_all_faults_of_user_data_come_together() -> None:
    with pytest.raises(InputError, match="3 faults") as caught:
        check_user_data(b"#cloud-config\nuser_s: []\nruncmd: 1\nbootcmd: {}\n", "user-data")
    assert str(caught.value).count("\n") == 3


@pytest.mark.parametrize(
    "text", [f"#cloud-config\n{SENTINEL}: x\n", f"#cloud-config\nruncmd: {SENTINEL}\n", f"#cloud-config\n'{SENTINEL}"]
)
def test_messages_about_secret_user_data_quote_nothing(text: str) -> None:
    with pytest.raises(InputError) as caught:
        check_user_data(text.encode(), "secret x", secret=True)
    assert SENTINEL not in str(caught.value)


@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda text: f"#cloud-config\n{text}".encode())))
@settings(max_examples=300, deadline=None)
def test_hostile_user_data_is_refused_or_accepted_and_nothing_else(data: bytes) -> None:
    for check in (check_user_data, check_network_config, check_ignition):
        try:
            check(data, "x")
        except InputError:
            continue


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("version: 2\nethernets:\n  eth0: {dhcp4: true}\n", ""),
        ("network:\n  version: 2\n  ethernets: {}\n", ""),
        ("version: 1\nconfig: disabled\n", ""),
        ("network: {config: disabled}\n", ""),
        ("network: {config: enabled}\n", "no version"),
        ("version: 3\n", "no version"),
        ("ethernets: {}\n", "no version"),
        ("version: 2\nethernet: {}\n", "ethernets?"),
        ("network:\n  version: 2\n  wifi: {}\n", "wifis?"),
        ("version: 2\nversion: 1\n", "no version"),
    ],
)
def test_network_config(text: str, fault: str) -> None:
    if not fault:
        check_network_config(text.encode(), "n")
        return
    with pytest.raises(InputError) as caught:
        check_network_config(text.encode(), "n")
    assert fault in str(caught.value)


def test_the_table_of_keys_is_sane() -> None:
    assert all(set(kinds) <= set("slm0") and kinds for kinds in CLOUD_CONFIG_KEYS.values())
    assert {"users", "write_files", "runcmd", "ssh_pwauth", "chpasswd"} <= set(CLOUD_CONFIG_KEYS)


# ---- Ignition -------------------------------------------------------------------------------------------------------


def config(**more: Any) -> bytes:
    return json.dumps({"ignition": {"version": "3.4.0"}, **more}).encode()


def test_sound_configs() -> None:
    check_ignition(config(), "i")
    user = {"name": "core", "sshAuthorizedKeys": ["ssh-ed25519 AAAA"], "shell": None}
    file = {"path": "/etc/x", "mode": 420, "contents": {"source": "data:,x"}, "overwrite": True, "user": {"id": 0}}
    hashed = {"source": "http://example.org/x", "verification": {"hash": "sha512-00"}}
    check_ignition(config(passwd={"users": [user]}, storage={"files": [file, {"path": "/y", "append": [hashed]}]}), "i")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "expected an object"),
        (b"{}", "ignition: is missing"),
        (b'{"ignition": {}}', "ignition.version: is missing"),
        (b'{"ignition": {"version": "2.3.0"}}', "expected one of 3.0.0"),
        (b'{"ignition": {"version": 3}}', "expected str"),
        (b'{"ignition": {"version": "3.0.0"}, "ignition": {}}', "keys twice"),
        (config(storge={}), "storage?"),
        (config(systemd={"units": {}}), "systemd.units: expected a list"),
        (config(systemd={"units": [{"name": "x", "enabled": 1}]}), "expected bool"),
        (config(storage={"files": [{"path": "/x", "mode": True}]}), "storage.files[0].mode: expected int"),
        (config(storage={"files": [{"path": "/x", "contents": {"source": "http://a/b"}}]}), "without verification"),
        (config(storage={"files": [{"path": "/x", "contents": {"source": "file:///etc"}}]}), "expected a URL"),
        (b"[" * 100000, "not JSON"),
    ],
)
def test_configs_that_ignition_would_refuse(data: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_ignition(data, "i")
    assert message in str(caught.value)


def test_messages_about_a_secret_config_quote_nothing() -> None:
    with pytest.raises(InputError) as caught:
        check_ignition(config(**{SENTINEL: 1}), "secret i", secret=True)
    assert SENTINEL not in str(caught.value)


def test_every_object_that_is_named_is_described() -> None:
    named = {kind.rstrip("!").strip("[]") for members in OBJECTS.values() for kind in members.values()}
    assert named - {"str", "int", "bool"} <= set(OBJECTS)


# ---- credentials ----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=500))
def test_smbios_string_is_the_value_in_base64(value: bytes) -> None:
    text = bytes(smbios_string("db", bytearray(value)))
    head, _, encoded = text.partition(b"=")
    assert head == b"io.systemd.credential.binary:db"
    assert base64.b64decode(encoded, validate=True) == value
    assert b"\0" not in text


def test_wiped_is_zero_in_place() -> None:
    value = bytearray(b"secret")
    view = memoryview(value)
    wipe(value)
    assert bytes(view) == bytes(6)
