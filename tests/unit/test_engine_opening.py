"""Files of a launch: opened once, checked through the descriptor, locked, and never left open after an error."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from casemate.engine.opening import open_planned_files, open_spec_files
from casemate.engine.paths import Paths
from casemate.errors import HostError, ImageError, InputError
from casemate.plan.model import OpenFile
from casemate.spec.model import Spec


def open_descriptors() -> set[str]:
    """Our own open descriptors, as /proc shows them."""
    return {
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{name}")
    }


def spec_of(kernel: Path, *disks: tuple[Path, str, str]) -> Spec:
    return msgspec.convert(
        {
            "boot": {"kernel": str(kernel)},
            "disk": [{"path": str(path), "format": kind, "mode": mode} for path, kind, mode in disks],
        },
        Spec,
    )


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"MZ" + bytes(5000))
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    return path


def test_sizes_and_roles(kernel: Path, raw: Path) -> None:
    opened = open_spec_files(spec_of(kernel, (raw, "raw", "persistent")))
    try:
        assert opened.sizes == {"kernel": 5002, "disk0": 1 << 20}
        assert set(opened.by_role) == {"kernel", "disk0"}
        opened.verify_unchanged()
    finally:
        opened.close()


def test_a_change_between_check_and_use_is_refused(kernel: Path) -> None:
    opened = open_spec_files(spec_of(kernel))
    try:
        kernel.write_bytes(b"MZ" + b"evil" * 2000)
        with pytest.raises(ImageError, match="changed between check and use"):
            opened.verify_unchanged()
    finally:
        opened.close()


def test_two_names_of_one_file_in_one_vm(kernel: Path, raw: Path) -> None:
    """The message is about this VM, not about another one; two readers are no fault."""
    twin = raw.with_name("twin.raw")
    os.link(raw, twin)
    for first, second in (("persistent", "persistent"), ("persistent", "read-only"), ("overlay", "persistent")):
        with pytest.raises(InputError, match=r"disk\[1\] .*twin.raw' is the same file as disk\[0\]"):
            open_spec_files(spec_of(kernel, (raw, "raw", first), (twin, "raw", second)))
    open_spec_files(spec_of(kernel, (raw, "raw", "overlay"), (twin, "raw", "read-only"))).close()


def test_one_writer_and_nobody_else(kernel: Path, raw: Path) -> None:
    first = open_spec_files(spec_of(kernel, (raw, "raw", "persistent")))
    try:
        for mode in ("persistent", "overlay", "read-only"):
            with pytest.raises(InputError, match="in use by another VM"):
                open_spec_files(spec_of(kernel, (raw, "raw", mode)))
    finally:
        first.close()
    open_spec_files(spec_of(kernel, (raw, "raw", "persistent"))).close()


def test_many_readers_keep_a_writer_out(kernel: Path, raw: Path) -> None:
    readers = [open_spec_files(spec_of(kernel, (raw, "raw", mode))) for mode in ("overlay", "read-only", "overlay")]
    try:
        with pytest.raises(InputError, match="in use by another VM"):
            open_spec_files(spec_of(kernel, (raw, "raw", "persistent")))
    finally:
        for reader in readers:
            reader.close()


def test_the_emulator_cannot_give_our_lock_back(kernel: Path, raw: Path) -> None:
    """Its descriptor is another open file description: unlocking that one changes nothing."""
    opened = open_spec_files(spec_of(kernel, (raw, "raw", "persistent")))
    try:
        fcntl.flock(opened.by_role["disk0"], fcntl.LOCK_UN)
        with pytest.raises(InputError, match="in use"):
            open_spec_files(spec_of(kernel, (raw, "raw", "read-only")))
    finally:
        opened.close()


@pytest.mark.parametrize("content", [b"", bytes(300)])
def test_errors_leave_nothing_open(kernel: Path, tmp_path: Path, content: bytes) -> None:
    bad = tmp_path / "bad.qcow2"
    bad.write_bytes(content)
    before = open_descriptors()
    with pytest.raises(ImageError):
        open_spec_files(spec_of(kernel, (bad, "qcow2", "overlay")))
    assert open_descriptors() == before


def test_an_empty_kernel_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "vmlinuz"
    empty.touch()
    with pytest.raises(InputError, match="kernel"):
        open_spec_files(spec_of(empty))


def test_overlay_has_no_name_and_is_valid(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path / "run"), str(tmp_path / "data"), str(tmp_path / "cache"))
    directory = Path(paths.vm_data("abc"))
    directory.mkdir(parents=True)
    from casemate.engine.opening import Opened

    opened = Opened()
    try:
        open_planned_files((OpenFile("overlay0", "", "overlay", "qcow2", 1 << 30),), opened, paths, "abc")
        assert list(directory.iterdir()) == []
        shown = subprocess.run(
            ["qemu-img", "check", f"/proc/self/fd/{opened.by_role['overlay0']}"],
            pass_fds=[opened.by_role["overlay0"]],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "No errors were found" in shown.stdout, shown.stderr
    finally:
        opened.close()


def test_variables_are_copied_once_and_kept(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path / "run"), str(tmp_path / "data"), str(tmp_path / "cache"))
    Path(paths.vm_data("abc")).mkdir(parents=True)
    template = tmp_path / "VARS.fd"
    template.write_bytes(b"template")
    from casemate.engine.opening import Opened

    file = OpenFile("firmware-vars", str(template), "vars", sha256=hashlib.sha256(b"template").hexdigest())
    for expected in (b"template", b"own data"):
        opened = Opened()
        open_planned_files((file,), opened, paths, "abc")
        assert os.pread(opened.by_role["firmware-vars"], 100, 0) == expected
        os.pwrite(opened.by_role["firmware-vars"], b"own data", 0)
        opened.close()
    assert template.read_bytes() == b"template"
    template.write_bytes(b"a newer package")
    Path(paths.vm_data("abc"), "vars.fd").unlink()
    with pytest.raises(HostError, match="changed while the VM was planned"):
        open_planned_files((file,), Opened(), paths, "abc")
    assert os.listdir(paths.vm_data("abc")) == []
