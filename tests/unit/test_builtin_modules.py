"""Which modules the guest loads, in which order; what counts as a static program; what comes out of a package."""

from __future__ import annotations

import gzip
import lzma
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import HostError
from casemate.image import guest_modules
from casemate.image.guest_modules import decompress_module, load_order, module_depends, module_name
from casemate.image.guest_source import is_static_executable
from casemate.image.packages import Package, read_members

_REQUIRED = [name for name, _why in guest_modules.REQUIRED]


def _module(*depends: str) -> bytes:
    return b"\x7fELF" + bytes(60) + b"license=GPL\0depends=" + ",".join(depends).encode() + b"\0name=x\0"


def _order(files: Mapping[str, bytes], builtin: frozenset[str] = frozenset()) -> list[str]:
    return [name for name, _elf in load_order({name: name for name in files}, builtin, files.__getitem__)]


@given(st.data())
def test_every_dependency_loads_before_its_user(data: st.DataObject) -> None:
    helpers = [f"helper{number}" for number in range(6)]
    files: dict[str, bytes] = {}
    wants: dict[str, list[str]] = {}
    for number, name in enumerate(helpers + _REQUIRED):
        wants[name] = (
            data.draw(st.lists(st.sampled_from(helpers[: max(1, min(number, 6))]), unique=True)) if number else []
        )
        files[name] = _module(*wants[name])
    order = _order(files)
    assert set(_REQUIRED) <= set(order)
    assert len(order) == len(set(order))
    for position, name in enumerate(order):
        assert set(wants[name]) <= set(order[:position])


def test_what_is_built_in_needs_no_file() -> None:
    files = {name: _module("virtio") for name in _REQUIRED if name != "evdev"}
    order = _order(files, frozenset({"virtio", "evdev"}))
    assert sorted(order) == sorted(files)


@pytest.mark.parametrize("gone", _REQUIRED)
def test_a_missing_feature_is_named(gone: str) -> None:
    with pytest.raises(HostError, match=gone) as caught:
        _order({name: _module() for name in _REQUIRED if name != gone})
    assert caught.value.next_step


def test_the_panic_device_is_optional() -> None:
    files = {name: _module() for name in _REQUIRED}
    assert "pvpanic_mmio" not in _order(files)
    assert "pvpanic_mmio" in _order(files | {"pvpanic_mmio": _module()})


def test_circular_and_missing_dependencies_are_errors() -> None:
    files = {name: _module() for name in _REQUIRED}
    with pytest.raises(HostError, match="virtio_blk -> a -> virtio_blk"):
        _order(files | {"virtio_blk": _module("a"), "a": _module("virtio_blk")})
    with pytest.raises(HostError, match="virtio_blk -> nowhere"):
        _order(files | {"virtio_blk": _module("nowhere")})


def test_names_and_depends_are_canonical() -> None:
    assert module_name("kernel/drivers/char/hw_random/virtio-rng.ko") == "virtio_rng"
    assert module_name("x/button.ko.xz") == "button"
    assert module_name("modules.order") is None
    assert module_depends(_module("virtio-rng", "b")) == ("virtio_rng", "b")
    assert module_depends(_module()) == ()
    assert module_depends(b"\x7fELF") == ()


def test_compressed_modules_are_unpacked_within_a_bound() -> None:
    plain = _module("virtio")
    assert decompress_module("a.ko", plain) == plain
    assert decompress_module("a.ko.xz", lzma.compress(plain)) == plain
    assert decompress_module("a.ko.gz", gzip.compress(plain)) == plain
    bomb = lzma.compress(b"\x7fELF" + bytes(guest_modules.MAX_MODULE_BYTES))
    for path, data in (
        ("a.ko.xz", bomb),
        ("a.ko.zst", b"(\xb5/\xfd"),
        ("a.ko", b"#!/bin/sh"),
        ("a.ko.xz", b"no xz"),
        ("a.ko.gz", b"no gzip"),
    ):
        with pytest.raises(HostError, match=r"kernel module a\.ko"):
            decompress_module(path, data)


def _elf(*segment_types: int, machine: int = 62) -> bytes:
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, len(segment_types), 0, 0, 0)
    return head + b"".join(struct.pack("<II", kind, 5) + bytes(48) for kind in segment_types)


def test_a_static_program_has_no_interpreter() -> None:
    assert is_static_executable(_elf(1, 1))
    assert not is_static_executable(_elf(1, 3))
    assert not is_static_executable(_elf(1, machine=183))
    assert not is_static_executable(_elf())
    assert not is_static_executable(_elf(1)[:100])
    assert not is_static_executable(Path(sys.executable).resolve().read_bytes())


@given(st.binary(max_size=200))
def test_no_bytes_confuse_the_static_test(data: bytes) -> None:
    assert is_static_executable(b"\x7fELF\x02\x01" + data) in (True, False)


def _package(tmp_path: Path, files: Mapping[str, bytes]) -> Package:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: sample\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: x\n"
    )
    for name, data in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    (tree / "link").symlink_to("/etc/passwd")
    archive = tmp_path / "sample.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, archive], check=True, capture_output=True)
    return Package("sample", "1", archive)


def test_members_of_a_real_package_are_read_without_unpacking_it(tmp_path: Path) -> None:
    package = _package(
        tmp_path, {"boot/vmlinuz-1": b"kernel", "lib/modules/1/a.ko": b"module", "usr/other": bytes(300_000)}
    )
    assert dict(read_members(package, lambda path: not path.startswith("usr/"))) == {
        "boot/vmlinuz-1": b"kernel",
        "lib/modules/1/a.ko": b"module",
    }


def test_a_damaged_package_is_refused(tmp_path: Path) -> None:
    package = _package(tmp_path, {"boot/vmlinuz-1": bytes(range(256)) * 500})
    assert package.path is not None
    whole = package.path.read_bytes()
    package.path.write_bytes(whole[: len(whole) - 100])
    with pytest.raises(HostError, match="package sample"):
        list(read_members(package, lambda _path: True))
