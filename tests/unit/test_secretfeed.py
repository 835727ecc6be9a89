"""One-shot FIFOs: read once and whole, by whoever is slow, and given up on whoever never comes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.hosts import HOST, plan_of

from casemate.engine.provisioning import sealed
from casemate.engine.secretfeed import SecretFeed
from casemate.errors import VmError
from casemate.jail.policy import OneShot, Wall
from casemate.jail.spawn import Spawned
from casemate.spec.model import Boot, Spec

BIG = os.urandom(300_000)
"""More than a pipe holds."""


@pytest.fixture
def contents() -> Iterator[dict[str, int]]:
    found = {"small": sealed("small", b"secret"), "big": sealed("big", BIG)}
    yield found
    for descriptor in found.values():
        os.close(descriptor)


def wall(directory: Path, *roles: str) -> Wall:
    """A wall whose root is ours, so that its FIFOs lie where the test makes them."""
    import msgspec

    pipes = tuple(OneShot(role, f"{directory}/{role}", 1 << 20) for role in roles)
    return msgspec.structs.replace(plan_of(Spec(boot=Boot(kernel="/k")), HOST).wall, root=pipes)


def feed(directory: Path, contents: dict[str, int], *roles: str, deadline_s: float = 20.0) -> SecretFeed:
    for role in roles:
        if not (directory / role).exists():
            os.mkfifo(directory / role)
    return SecretFeed(Spawned(os.getpid(), -1, -1), wall(directory, *roles), contents, deadline_s)


def test_each_is_read_once_and_whole(tmp_path: Path, contents: dict[str, int]) -> None:
    found = feed(tmp_path, contents, "small", "big")
    # The emulator takes them in its own order.
    assert (tmp_path / "big").read_bytes() == BIG
    assert (tmp_path / "small").read_bytes() == b"secret"
    assert sorted(found.result()) == ["big", "small"]
    again = os.open(tmp_path / "small", os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(again, 100) == b"", "nothing is left in it"
    os.close(again)


def test_none_is_no_thread(tmp_path: Path, contents: dict[str, int]) -> None:
    before = threading.active_count()
    found = feed(tmp_path, contents)
    assert threading.active_count() == before
    assert found.result() == ()
    found.stop()


def test_one_that_is_never_read(tmp_path: Path, contents: dict[str, int]) -> None:
    found = feed(tmp_path, contents, "small", deadline_s=0.05)
    with pytest.raises(VmError, match="small: it was never read"):
        found.result()


def test_a_reader_that_goes_away_in_the_middle(tmp_path: Path, contents: dict[str, int]) -> None:
    found = feed(tmp_path, contents, "big")
    reader = os.open(tmp_path / "big", os.O_RDONLY)
    os.read(reader, 1000)
    os.close(reader)
    with pytest.raises(VmError, match="did not take"):
        found.result()


def test_a_reader_that_stops_reading(tmp_path: Path, contents: dict[str, int]) -> None:
    found = feed(tmp_path, contents, "big", deadline_s=0.2)
    reader = os.open(tmp_path / "big", os.O_RDONLY)
    os.read(reader, 10)
    with pytest.raises(VmError, match="stopped reading"):
        found.result()
    os.close(reader)


def test_what_is_no_fifo_gets_nothing(tmp_path: Path, contents: dict[str, int]) -> None:
    (tmp_path / "small").write_bytes(b"")
    found = feed(tmp_path, contents, "small")
    with pytest.raises(VmError, match="did not take"):
        found.result()
    assert (tmp_path / "small").read_bytes() == b""
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "big").symlink_to(tmp_path / "target")
    with pytest.raises(VmError, match="did not take"):
        feed(tmp_path, contents, "big").result()
    assert (tmp_path / "target").read_bytes() == b""


def test_giving_up_ends_the_thread(tmp_path: Path, contents: dict[str, int]) -> None:
    before = threading.active_count()
    found = feed(tmp_path, contents, "small", "big")
    found.stop()
    assert threading.active_count() == before
