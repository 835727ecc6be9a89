"""The cache of the built-in guest: deterministic, atomic, shared by concurrent builders, and never trusted when
somebody else could have written it.

The packages' bytes are small stand-ins here, since they come over the network; tests/boot/test_builtin_guest.py
builds and boots the real ones.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from casemate.errors import HostError
from casemate.image import builtin, guest_source
from casemate.image.builtin import BuiltinGuest, assemble_initrd, build_builtin, find_builtin, verify_builtin
from casemate.image.cpio import read_cpio
from casemate.image.guest_source import KernelFiles
from casemate.image.packages import Package

_MODULES = (("virtio_ring", b"\x7fELFring"), ("virtio", b"\x7fELFvirtio"))


class Sources:
    """Stands in for the distribution: hands out kernel bytes and counts the builds in a file."""

    def __init__(self, counter: Path) -> None:
        self.counter = counter
        self.kernel = b"kernel one"

    def kernel_files(self, scratch: Path, report: Callable[[str], None]) -> KernelFiles:
        """As guest_source.kernel_files."""
        assert scratch.stat().st_mode & 0o777 == 0o700
        report("kernel")
        with self.counter.open("a") as file:
            file.write("x")
        return KernelFiles("6.1.0-1-cloud-amd64", self.kernel, _MODULES, (Package("linux-image-1", "1.0"),))

    def busybox_bytes(self, scratch: Path, report: Callable[[str], None]) -> tuple[bytes, Package]:
        """As guest_source.busybox_bytes."""
        assert scratch.is_dir()
        report("busybox")
        return b"busybox", Package("busybox-static", "1.35")

    @property
    def builds(self) -> int:
        """How often a kernel was asked for, over all processes."""
        return len(self.counter.read_text()) if self.counter.exists() else 0


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """Replace the two functions that reach the distribution."""
    made = Sources(tmp_path / "count")
    monkeypatch.setattr(guest_source, "kernel_files", made.kernel_files)
    monkeypatch.setattr(guest_source, "busybox_bytes", made.busybox_bytes)
    return made


def _build(cache: Path, *, refresh: bool = False) -> BuiltinGuest:
    return build_builtin(cache, lambda _line: None, refresh=refresh)


def test_a_build_is_found_again_and_says_what_it_is_made_of(tmp_path: Path, sources: Sources) -> None:
    cache = tmp_path / "cache"
    assert find_builtin([cache]) is None
    guest = _build(cache)
    assert find_builtin([tmp_path / "nowhere", cache]) == guest
    assert verify_builtin(guest)
    assert guest.kernel.read_bytes() == b"kernel one"
    assert guest.sources == {"linux-image-1": "1.0", "busybox-static": "1.35"}
    assert guest.kernel_release == "6.1.0-1-cloud-amd64"
    names = {entry.name: entry for entry in read_cpio(guest.initrd.read_bytes())}
    assert names["lib/modules/order"].data == b"virtio_ring\nvirtio\n"
    assert names["init"].data.startswith(b"#!/bin/busybox sh\n")
    assert b"say ready" in names["init"].data
    assert builtin.READY_MARKER == "casemate-guest: ready"
    assert cache.stat().st_mode & 0o777 == 0o700
    assert sources.builds == 1


def test_a_second_build_takes_the_first_and_refresh_does_not(tmp_path: Path, sources: Sources) -> None:
    first = _build(tmp_path)
    assert _build(tmp_path) == first
    assert sources.builds == 1
    assert _build(tmp_path, refresh=True) == first
    assert sources.builds == 2


def test_two_builds_of_the_same_inputs_are_equal_byte_for_byte(tmp_path: Path, sources: Sources) -> None:
    first, second = _build(tmp_path / "a"), _build(tmp_path / "b")
    assert sources.builds == 2
    assert first.initrd.parent.name == second.initrd.parent.name
    assert first.initrd.read_bytes() == second.initrd.read_bytes()


def test_the_initrd_depends_on_each_input() -> None:
    base = assemble_initrd(b"busybox", _MODULES, b"init")
    assert assemble_initrd(b"busybox", _MODULES, b"init") == base
    others = {
        assemble_initrd(b"busybo", _MODULES, b"init"),
        assemble_initrd(b"busybox", _MODULES[::-1], b"init"),
        assemble_initrd(b"busybox", _MODULES, b"init2"),
    }
    assert len(others | {base}) == 4


def test_a_newer_kernel_becomes_current_and_only_one_older_build_stays(tmp_path: Path, sources: Sources) -> None:
    seen = [_build(tmp_path)]
    for number in range(3):
        sources.kernel = f"kernel {number}".encode()
        seen.append(_build(tmp_path, refresh=True))
        os.utime(seen[-1].kernel.parent, (1000 + number, 1000 + number))
    assert find_builtin([tmp_path]) == seen[-1]
    left = {path.name for path in (tmp_path / "guest").iterdir() if path.is_dir()}
    assert seen[-1].kernel.parent.name in left
    assert len(left) == 2


def test_a_build_of_another_casemate_is_not_used(
    tmp_path: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    _build(tmp_path)
    monkeypatch.setattr(builtin, "CMDLINE", "console=hvc0")
    assert find_builtin([tmp_path]) is None
    assert _build(tmp_path).cmdline == "console=hvc0"
    assert sources.builds == 2


def _grow(guest: BuiltinGuest) -> None:
    with guest.kernel.open("ab") as file:
        file.write(b"more")


def _edit_manifest(guest: BuiltinGuest) -> None:
    manifest = guest.kernel.parent / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"console=ttyS0", b"console=ttyS1"))


def _open_to_others(guest: BuiltinGuest) -> None:
    guest.initrd.chmod(0o666)


def _link(guest: BuiltinGuest) -> None:
    elsewhere = guest.initrd.with_name("elsewhere")
    guest.initrd.rename(elsewhere)
    guest.initrd.symlink_to(elsewhere)


def _fifo(guest: BuiltinGuest) -> None:
    manifest = guest.kernel.parent / "manifest.json"
    manifest.unlink()
    os.mkfifo(manifest)


def _remove(guest: BuiltinGuest) -> None:
    guest.initrd.unlink()


def _escape(guest: BuiltinGuest) -> None:
    (guest.kernel.parent.parent / "current").write_text("../../etc\n")


def _binary_pointer(guest: BuiltinGuest) -> None:
    (guest.kernel.parent.parent / "current").write_bytes(b"\xff\0" * 16)


@pytest.mark.parametrize(
    "damage",
    [_grow, _edit_manifest, _open_to_others, _link, _fifo, _remove, _escape, _binary_pointer],
    ids=lambda f: f.__name__,
)
def test_a_damaged_build_is_not_used_and_the_next_build_repairs_it(
    tmp_path: Path, sources: Sources, damage: Callable[[BuiltinGuest], None]
) -> None:
    guest = _build(tmp_path)
    damage(guest)
    assert find_builtin([tmp_path]) is None
    repaired = _build(tmp_path)
    assert sources.builds == 2
    assert verify_builtin(repaired)
    assert repaired == guest


def test_changed_content_of_the_same_size_is_seen_by_the_digest(tmp_path: Path, sources: Sources) -> None:
    guest = _build(tmp_path)
    guest.kernel.write_bytes(b"kernel two")
    assert not verify_builtin(guest)
    assert verify_builtin(_build(tmp_path))
    assert sources.builds == 2


def test_a_file_of_another_user_is_not_used(tmp_path: Path, sources: Sources) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    guest = _build(tmp_path)
    os.chown(guest.kernel, 12345, 12345)
    assert find_builtin([tmp_path]) is None
    assert sources.builds == 1


def test_what_a_killed_builder_left_goes_away(tmp_path: Path, sources: Sources) -> None:
    leftover = tmp_path / "guest" / ".build-killed"
    leftover.mkdir(parents=True)
    (leftover / "kernel").write_bytes(b"half")
    _build(tmp_path)
    assert not leftover.exists()
    assert not list((tmp_path / "guest").glob(".build-*"))
    assert sources.builds == 1


def test_a_failed_build_leaves_the_current_one(
    tmp_path: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = _build(tmp_path)

    def fail(scratch: Path, report: Callable[[str], None]) -> KernelFiles:
        (scratch / "half").write_bytes(b"x")
        raise HostError("no network")

    monkeypatch.setattr(guest_source, "kernel_files", fail)
    with pytest.raises(HostError, match="no network"):
        _build(tmp_path, refresh=True)
    assert find_builtin([tmp_path]) == guest
    assert not list((tmp_path / "guest").glob(".build-*"))


def test_an_unwritable_cache_is_an_error_with_a_next_step(tmp_path: Path, sources: Sources) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(HostError, match="cannot write the guest cache") as caught:
        _build(tmp_path / "cache")
    assert caught.value.next_step
    assert sources.builds == 0


def _build_in_child(cache: Path, answers: multiprocessing.Queue[str]) -> None:
    answers.put(_build(cache).kernel_sha256)


def test_concurrent_builders_build_once(tmp_path: Path, sources: Sources) -> None:
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[str] = context.Queue()
    children = [context.Process(target=_build_in_child, args=(tmp_path, answers)) for _ in range(4)]
    for child in children:
        child.start()
    digests = {answers.get(timeout=60) for _ in children}
    for child in children:
        child.join(60)
    assert len(digests) == 1
    assert sources.builds == 1
