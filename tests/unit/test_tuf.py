"""A repository of images and the attacks of TUF's specification (1.5.2) against its client, over a directory."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import CasemateError, ImageError, InputError
from casemate.image.tuf_client import Repository, refreshed
from casemate.image.tuf_repo import add_target, check_target_name, create, publish, renew_root, rotate, target_names

NOW = datetime.datetime.now(tz=datetime.UTC)
WORD = b"correct horse"


class World:
    """A publisher, a mirror that an attacker may change, and a client."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.repo, self.keys = str(where / "repo"), str(where / "keys")
        self.root_digest = create(self.repo, self.keys, {"root": (2, 3)}, lambda _: WORD, NOW)
        self.root = (where / "repo/metadata/1.root.json").read_bytes()

    def add(self, name: str, content: bytes, now: datetime.datetime = NOW) -> None:
        path = self.where / "content"
        path.write_bytes(content)
        descriptor = os.open(path, os.O_RDONLY)
        add_target(self.repo, self.keys, name, descriptor, {"format": "raw"}, lambda _: WORD, now)
        os.close(descriptor)

    def publish(self, now: datetime.datetime = NOW) -> dict[str, int]:
        return publish(self.repo, self.keys, lambda _: WORD, now)

    def sync(self, name: str = "disk.raw", root: bool = True) -> bytes:
        out = self.where / "out"
        out.unlink(missing_ok=True)
        with refreshed(self.repo, str(self.where / "state"), self.root if root else None) as repository:
            assert isinstance(repository, Repository)
            repository.fetch(name, str(out))
        return out.read_bytes()

    def metadata(self, name: str) -> Path:
        return Path(self.repo) / "metadata" / name

    def keep(self) -> Path:
        return Path(shutil.copytree(self.repo, self.where / f"old{len(list(self.where.iterdir()))}"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.add("disk.raw", b"first content")
    made.publish()
    return made


def test_what_is_published_arrives(world: World) -> None:
    assert world.sync() == b"first content"
    world.add("disk.raw", b"second content")
    assert world.sync() == b"first content"  # signed, not published
    world.publish()
    assert world.sync(root=False) == b"second content"
    assert target_names(world.repo) == ("disk.raw",)
    assert world.publish() == {"root": 1, "targets": 3, "snapshot": 4, "timestamp": 4}
    assert world.sync() == b"second content"


def test_the_first_contact_needs_a_root_and_later_ones_the_same(world: World) -> None:
    with pytest.raises(InputError, match="never used before"):
        world.sync(root=False)
    world.sync()
    other = World(world.where / "other")
    world.root = other.root
    with pytest.raises(InputError, match="another root"):
        world.sync()


def test_rollback(world: World) -> None:
    old = world.keep()
    world.add("disk.raw", b"second content")
    world.publish()
    world.sync()
    shutil.rmtree(world.repo)
    shutil.copytree(old, world.repo)
    with pytest.raises(ImageError, match="older than what was seen"):
        world.sync()


def test_freeze(world: World) -> None:
    world.publish(NOW - datetime.timedelta(days=8))  # valid for seven
    with pytest.raises(ImageError, match="has expired"):
        world.sync()
    world.publish()
    assert world.sync() == b"first content"


def test_mix_and_match(world: World) -> None:
    old = world.keep()
    world.add("disk.raw", b"second content")
    world.publish()
    version = len(list(world.metadata("").glob("*.targets.json")))
    shutil.copy(old / "metadata" / f"{version - 1}.targets.json", world.metadata(f"{version}.targets.json"))
    with pytest.raises(ImageError, match="another length or digest"):
        world.sync()


def test_too_few_signatures(world: World) -> None:
    path = world.metadata("1.root.json")
    root = json.loads(path.read_text())
    root["signatures"] = root["signatures"][:1]
    world.root = json.dumps(root).encode()
    with pytest.raises(ImageError, match="not enough of the right keys"):
        world.sync()


def test_one_key_that_signs_twice_is_one_key(world: World) -> None:
    root = json.loads(world.root)
    root["signatures"] = [root["signatures"][0]] * 3
    world.root = json.dumps(root).encode()
    with pytest.raises(ImageError):
        world.sync()


def test_a_stranger_who_signs_everything_anew_is_not_believed(world: World) -> None:
    world.sync()
    stranger = World(world.where / "stranger")
    stranger.add("disk.raw", b"evil")
    for _ in range(5):
        stranger.publish()
    shutil.rmtree(world.repo)
    shutil.copytree(stranger.repo, world.repo)
    with pytest.raises(ImageError, match="not enough of the right keys"):
        world.sync()


@pytest.mark.parametrize("content", [b"other content", b"first content and more", b"first", b""])
def test_arbitrary_target_and_endless_data(world: World, content: bytes) -> None:
    (target,) = (Path(world.repo) / "targets").iterdir()
    target.write_bytes(content)
    with pytest.raises(ImageError, match=r"another length or digest|more bytes"):
        world.sync()


@pytest.mark.parametrize("name", ["timestamp.json", "2.targets.json", "2.snapshot.json", "2.root.json"])
def test_endless_metadata(world: World, name: str) -> None:
    path = world.metadata(name)
    with path.open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(ImageError):
        world.sync()


@pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_every_kind_of_damage_is_refused(world: World, name: str) -> None:
    path = world.metadata(name)
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        changed = bytearray(data)
        changed[at] ^= 0x20 if chr(changed[at]).isalpha() else 0x01
        path.write_bytes(changed)
        shutil.rmtree(world.where / "state", ignore_errors=True)
        with contextlib.suppress(ImageError):
            assert world.sync() == b"first content"  # the bit was in white space or in an unknown key's name
    path.unlink()
    shutil.rmtree(world.where / "state", ignore_errors=True)
    with pytest.raises(ImageError):
        world.sync()


def test_a_target_that_is_a_link_is_not_followed(world: World) -> None:
    (target,) = (Path(world.repo) / "targets").iterdir()
    target.unlink()
    target.symlink_to("/etc/passwd")
    with pytest.raises(CasemateError):
        world.sync()


def test_keys_are_encrypted_private_and_enough(world: World) -> None:
    for path in Path(world.keys).iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert b"ENCRYPTED" in path.read_bytes()
    with pytest.raises(InputError, match="wrong passphrase"):
        publish(world.repo, world.keys, lambda _: b"wrong", NOW)
    (Path(world.keys) / "snapshot-1.pem").unlink()
    with pytest.raises(InputError, match="not enough keys for snapshot"):
        world.publish()
    (Path(world.keys) / "targets-1.pem").chmod(0o644)
    with pytest.raises(InputError, match="readable by others"):
        world.add("x", b"x")


def test_a_renewed_root_is_followed_and_older_ones_are_not_gone_back_to(world: World) -> None:
    world.sync()
    assert renew_root(world.repo, world.keys, lambda _: WORD, NOW) == 2
    world.publish()
    assert world.sync() == b"first content"
    shutil.rmtree(world.where / "state")
    assert world.sync() == b"first content"


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_new_keys_are_followed_and_stolen_old_ones_are_worth_nothing(world: World, role: str) -> None:
    world.sync()
    stolen = world.where / "stolen"
    shutil.copytree(world.keys, stolen)
    written = rotate(world.repo, world.keys, role, lambda _: WORD, NOW)
    assert len(written) == (3 if role == "root" else 1)
    world.publish()
    assert world.sync() == b"first content"
    shutil.rmtree(world.where / "state")
    assert world.sync() == b"first content"  # also from the first root on

    def use_stolen() -> None:
        if role == "root":
            renew_root(world.repo, str(stolen), lambda _: WORD, NOW)
        world.keys = str(stolen)
        world.add("x", b"x")
        world.publish()

    with pytest.raises(InputError, match=f"not enough keys for {role}"):
        use_stolen()


def test_a_role_that_is_none(world: World) -> None:
    with pytest.raises(InputError, match="no role"):
        rotate(world.repo, world.keys, "mirrors", lambda _: WORD, NOW)


def test_what_cannot_be_made_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not empty"):
        create(world.repo, str(tmp_path / "k"), {}, lambda _: WORD, NOW)
    with pytest.raises(InputError, match="2 of 1 keys"):
        create(str(tmp_path / "r"), str(tmp_path / "k"), {"root": (2, 1)}, lambda _: WORD, NOW)
    with pytest.raises(InputError, match="no repository"):
        publish(str(tmp_path), world.keys, lambda _: WORD, NOW)
    for name in ("", "../x", "a/b", ".hidden", "A", "a..b", "x" * 200):
        with pytest.raises(InputError, match="cannot name a target"):
            check_target_name(name)


def test_hostile_target_names_do_not_get_through(world: World) -> None:
    from tuf.api.metadata import Metadata, TargetFile

    import casemate.image.tuf_repo as repo

    targets: Any = repo._load(world.repo, "targets")
    assert isinstance(targets, Metadata)
    targets.signed.targets["../../etc/cron.d/x"] = TargetFile(1, {"sha256": "a" * 64}, "../../etc/cron.d/x")
    repo._bump(targets, "targets", NOW)
    repo._save(world.repo, "targets", targets, repo._signers(world.repo, world.keys, "targets", lambda _: WORD))
    world.publish()
    with pytest.raises(InputError, match="cannot name a target"):
        world.sync()
