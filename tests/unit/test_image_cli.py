"""casemate image: the commands as their user sees them, on a store of the test's own."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli_runner import Cli
from tests.support.foreign_images import MIB, SOUND
from tests.unit.test_image_unpack import ova

from casemate.errors import ExitCode, ImageError


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "home").mkdir()
    return Cli(tmp_path / "home")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "web.raw"
    path.write_bytes(bytes(510) + b"\x55\xaa" + os.urandom(1000) + bytes(2 * MIB - 1512))
    return path


def test_add_ls_tag_inspect_rm(cli: Cli, disk: Path) -> None:
    digest = hashlib.sha256(disk.read_bytes()).hexdigest()
    assert cli.ok("image", "add", disk) == f"{digest}\n"
    assert cli.ok("image", "ls", "-q") == f"{digest}\n"
    assert re.search(rf"^web +{digest[:12]} +raw +2 MiB ", cli.ok("image", "ls"), re.MULTILINE)
    cli.ok("image", "tag", "web", "www")
    document = cli.json("image", "ls", "--json")
    assert document["schema"] == "casemate.images/1"
    assert document["images"][0]["names"] == ["web", "www"]
    shown = cli.ok("image", "inspect", "--header", "web")
    assert f"sha256:{digest}" in shown
    assert str(disk) in shown
    assert cli.json("image", "inspect", "--header", "--json", "www")["stored"]["digest"] == digest
    assert "has 2 names" in cli.fails(ExitCode.USAGE, "image", "rm", digest)
    assert cli.ok("image", "rm", "web") == "untagged web\n"
    assert cli.ok("image", "rm", "www") == f"untagged www\nremoved sha256:{digest}\n"
    assert "there is no image" in cli.fails(ExitCode.USAGE, "image", "rm", "web")


def test_what_a_vm_uses_stays(cli: Cli, disk: Path, tmp_path: Path) -> None:
    cli.ok("image", "add", disk)
    spec = tmp_path / "vm.toml"
    policy = tmp_path / "policy.toml"
    policy.write_text('version = 1\n[waivers]\nallowed = ["img.origin"]\n')
    policy.chmod(0o600)
    waiver = '[[waiver]]\ncontrol = "img.origin"\nreason = "a test of the store"\nexpires = '
    waiver += f"{datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=30)}\n"
    spec.write_text(f'name = "one"\n[boot]\nkernel = "/bin/true"\n[[disk]]\nimage = "web"\n{waiver}')
    assert "img.origin" in cli("plan", spec).stderr, "nobody has signed it"
    plan = cli.json("plan", spec, "--policy", policy, "--json")
    assert plan["spec"]["disk"][0]["image"] == "web"
    cli.ok("create", spec, "--policy", policy)
    try:
        message = cli.fails(ExitCode.REFUSED, "image", "rm", "--force", "web")
        assert "VM one" in message
        assert cli.ok("image", "prune", "--all") == ""
        # The name moves on, the VM keeps what it was defined with.
        disk.write_bytes(bytes(510) + b"\x55\xaa" + bytes(MIB - 512))
        cli.ok("image", "add", disk)
        assert len(cli.json("image", "ls", "--json")["images"]) == 2
        assert cli.ok("image", "prune") == ""
        assert cli.json("inspect", "one", "--json")["spec"]["disk"][0]["sha256"] == plan["spec"]["disk"][0]["sha256"]
    finally:
        cli.clean()
    assert len(cli.ok("image", "prune", "--all").split()) == 2


def test_names_and_files(cli: Cli, disk: Path) -> None:
    cli.ok("image", "add", disk, "--name", "builtin2")
    beside = disk.parent / "builtin2"
    beside.write_bytes(disk.read_bytes())
    assert "say image:builtin2" in cli.fails(ExitCode.USAGE, "plan", "builtin2", cwd=disk.parent)
    plan = json.loads(cli("plan", "image:builtin2", "--json").stdout)
    assert plan["spec"]["disk"][0]["mode"] == "overlay"
    assert "never written" in cli.fails(ExitCode.USAGE, "plan", "builtin", "--disk", "image:builtin2:persistent")
    assert "there is no image" in cli.fails(ExitCode.USAGE, "plan", "builtin", "--disk", "image:nothing")
    assert "cannot name an image" in cli.fails(ExitCode.USAGE, "image", "add", disk, "--name", "builtin")


def test_packed_and_promised(cli: Cli, disk: Path) -> None:
    packed = disk.with_suffix(".raw.gz")
    packed.write_bytes(gzip.compress(disk.read_bytes()))
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    assert "not what was promised" in cli.fails(ExitCode.USAGE, "image", "add", packed, "--sha256", "0" * 64)
    cli.ok("image", "add", packed, "--sha256", digest)
    image = cli.json("image", "ls", "--json")["images"][0]
    assert image["names"] == ["web"]
    assert image["origin"]["source_sha256"] == digest
    assert image["origin"]["source_format"] == "gzip+raw"
    assert image["digest"] == hashlib.sha256(disk.read_bytes()).hexdigest()


def test_quota(cli: Cli, disk: Path) -> None:
    assert "image store is full" in cli.fails(ExitCode.REFUSED, "image", "add", disk, "--quota", "1k")
    assert "is not a size" in cli.fails(ExitCode.USAGE, "image", "add", disk, "--quota", "much")
    store = cli.data / "images"
    (store / "store.toml").write_text('quota = "1k"\n')
    assert "image store is full" in cli.fails(ExitCode.REFUSED, "image", "add", disk)
    (store / "store.toml").write_text('max_virtual_size = "1M"\n')
    assert "larger than a disk may be" in cli.fails(ExitCode.USAGE, "image", "add", disk)
    (store / "store.toml").write_text("quota = x\n")
    assert "store.toml cannot be used" in cli.fails(ExitCode.USAGE, "image", "add", disk)
    assert os.listdir(store / "incoming") == []


def test_strangers_are_noted(cli: Cli, disk: Path) -> None:
    cli.ok("image", "add", disk)
    (cli.data / "images" / "notes").write_text("mine")
    done = cli("image", "ls")
    assert "not of the store, left alone: notes" in done.stderr


def test_wrong_use(cli: Cli, tmp_path: Path) -> None:
    assert "cannot open" in cli.fails(ExitCode.USAGE, "image", "add", tmp_path / "nothing")
    (tmp_path / "empty").touch()
    assert "is empty" in cli.fails(ExitCode.USAGE, "image", "add", tmp_path / "empty")
    assert "required" in cli.fails(ExitCode.USAGE, "image")
    assert "did you mean ls" in cli.fails(ExitCode.USAGE, "image", "lss")


@pytest.mark.wall
@pytest.mark.skipif(not os.access("/usr/bin/qemu-img", os.X_OK), reason="qemu-img is missing (qemu-utils)")
def test_other_formats_become_qcow2(cli: Cli, tmp_path: Path) -> None:
    for name, data in (("a.vdi", SOUND["dynamic.vdi"]), ("b.ova", ova())):
        (tmp_path / name).write_bytes(data)
        cli.ok("image", "add", tmp_path / name)
    found = {image["names"][0]: image for image in cli.json("image", "ls", "--json")["images"]}
    assert {image["format"] for image in found.values()} == {"qcow2"}
    assert found["a"]["origin"]["source_format"] == "vdi dynamic"
    assert found["b"]["origin"]["source_format"] == "vmdk streamOptimized"
    (tmp_path / "c.ova").write_bytes(ova(manifest=f"SHA256(disk.vmdk)= {'0' * 64}\n"))
    assert "not what was promised" in cli.fails(ExitCode.USAGE, "image", "add", tmp_path / "c.ova")
    assert cli.ok("image", "add", tmp_path / "a.vdi", "--convert-to", "raw", "--name", "plain") != ""
    assert cli.json("image", "inspect", "--header", "--json", "plain")["header"]["virtual_size_bytes"] == 2 * MIB


def test_what_was_checked_is_what_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that somebody rewrites behind the check: others can write to it, so it is copied before it is read."""
    from casemate.cell import intake
    from casemate.cell.intake import Wanted, take_in
    from casemate.engine.paths import Paths
    from casemate.image.store import Store

    good = bytes(510) + b"\x55\xaa" + b"good" * 256 + bytes(MIB - 1536)
    source = tmp_path / "disk.raw.gz"
    source.write_bytes(gzip.compress(good))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    real = vars(intake)["unpack"]

    def rewrite_first(*words: Any, **more: Any) -> int:
        source.write_bytes(gzip.compress(good.replace(b"good", b"evil")))
        return int(real(*words, **more))

    monkeypatch.setattr(intake, "unpack", rewrite_first)
    store = Store(str(tmp_path / "images"))
    paths = Paths(f"{tmp_path}/run", f"{tmp_path}/data", f"{tmp_path}/cache")
    with source.open("rb") as file, pytest.raises(ImageError, match="changed between"):
        take_in(
            store,
            file.fileno(),
            "it",
            Wanted(name="it", expected_digest=digest),
            origin={},
            paths=paths,
            reserved=range(0),
        )
    assert store.images() == []
    monkeypatch.setattr("casemate.cell.intake.verify_unchanged", lambda *_: None)
    source.write_bytes(gzip.compress(good))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    with source.open("rb") as file:
        wanted = Wanted(name="it", expected_digest=digest)
        image = take_in(store, file.fileno(), "it", wanted, origin={}, paths=paths, reserved=range(0))
    assert image.digest == hashlib.sha256(good).hexdigest(), "even where the change cannot be seen"
    assert os.listdir(f"{store.directory}/incoming") == []


def test_a_quota_counts_an_image_once(cli: Cli, disk: Path) -> None:
    """What is unpacked on the way is not counted beside what it becomes."""
    disk.write_bytes(bytes(510) + b"\x55\xaa" + os.urandom(3 * MIB - 512))
    packed = disk.with_suffix(".raw.gz")
    packed.write_bytes(gzip.compress(disk.read_bytes()))
    cli.ok("image", "add", packed, "--quota", "4M")
    cli.ok("image", "rm", "web")
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    cli.ok("image", "add", packed, "--quota", "8M", "--sha256", digest)
    cli.ok("image", "rm", "web")
    message = cli.fails(ExitCode.USAGE, "image", "add", packed, "--quota", "4M", "--sha256", digest)
    assert "more than there is room for" in message, "the copy that was checked, and what comes out of it"
