"""Real cells around real images: every file system by its own tool, layers, hostile ones, and how a cell ends."""

from __future__ import annotations

import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cell_disks import CONTENT, EMPTY, KEY, available, file_systems, layered

from casemate import contents
from casemate.cell import boot
from casemate.cell.cell import Cell
from casemate.cell.model import Entry, Piece, Volume
from casemate.engine.paths import default_paths
from casemate.errors import HostError, ImageError, InputError, VmError

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU"),
    pytest.mark.skipif(
        shutil.which("gcc") is None and shutil.which("clang") is None, reason="needs a C compiler for the agent"
    ),
]

KINDS = available()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int], dict[str, int]]:
    """One disk with a partition for each file system."""
    return file_systems(tmp_path_factory.mktemp("systems"), KINDS)


@pytest.fixture(scope="module")
def cell(disk: tuple[Path, dict[str, int], dict[str, int]]) -> Iterator[Cell]:
    """One cell for all tests that only look."""
    with contents.open_contents(str(disk[0])) as opened:
        yield opened


@pytest.fixture(scope="module")
def volumes(cell: Cell, disk: tuple[Path, dict[str, int], dict[str, int]]) -> dict[str, Volume]:
    """File system -> volume."""
    found = {volume.name: volume for volume in cell.volumes()}
    return {kind: found[f"vda{number}"] for kind, number in disk[1].items()}


@pytest.mark.parametrize("kind", [kind for kind, _, _ in KINDS])
def test_each_file_system(cell: Cell, volumes: dict[str, Volume], kind: str) -> None:
    volume = volumes[kind]
    assert volume.content == kind
    assert volume.partition_name == f"part-{kind}"
    if kind == "swap":
        with pytest.raises(ImageError, match="swap"):
            cell.list(volume.name, "/")
        return
    assert volume.readable, volume.notes
    assert not any("replayed" in note for note in volume.notes)
    if kind == "ntfs":  # ntfscp makes no directories
        assert cell.read(volume.name, "/content") == CONTENT
        return
    if kind in EMPTY:
        assert [entry for entry in cell.list(volume.name, "/") if entry.is_file] == []
        return
    assert volume.os is not None
    assert volume.os.pretty_name == "Test OS"
    assert cell.read(volume.name, "/etc/content") == CONTENT
    assert cell.read(volume.name, "etc/content", 10) == CONTENT[:10]
    paths = {entry.path: entry for entry in cell.walk(volume.name)}
    assert paths[b"deep/er/est/empty"].size_bytes == 0
    assert paths[b"etc"].is_directory
    assert paths[b"etc/content"].size_bytes == len(CONTENT)
    if kind != "vfat":
        assert paths[b"absolute"].target == b"/etc/content"
        for name in ("absolute", "climbing", "inside"):  # all lead to the volume's own file, as in a chroot
            assert cell.read(volume.name, name) == CONTENT


def test_questions_about_what_is_not_there(cell: Cell, volumes: dict[str, Volume]) -> None:
    name = volumes["ext4"].name
    with pytest.raises(InputError, match="no such file"):
        cell.read(name, "/missing")
    with pytest.raises(InputError, match="is a directory"):
        cell.read(name, "/etc")
    with pytest.raises(InputError, match="no volume"):
        cell.read("vdz9", "/etc")
    with pytest.raises(InputError, match="NUL"):
        cell.stat(name, b"a\0b")
    with pytest.raises(ImageError, match="more files"):
        list(cell.walk(name, entries_max=3))
    with pytest.raises(InputError, match="several volumes"):
        cell.system()
    assert not cell.exists(name, "/etc/content/below")
    assert cell.stat(name, "/inside").is_link
    assert [entry.path for entry in cell.list(name, "/etc/content")] == [b"/etc/content"]


def test_a_tree_in_one_stream(cell: Cell, volumes: dict[str, Volume]) -> None:
    found: dict[bytes, bytes] = {}
    current = b""
    for item in cell.walk_contents(volumes["xfs"].name, limit=100):
        if isinstance(item, Entry):
            current = item.path
        else:
            assert isinstance(item, Piece)
            found[current] = found.get(current, b"") + item.data
    assert found[b"etc/content"] == CONTENT[:100]


def test_the_volumes_are_mounted_read_only_and_harmless(cell: Cell, volumes: dict[str, Volume]) -> None:
    table = cell._session.pread("/proc/self/mounts", 0, 1 << 16).decode()
    lines = [line.split() for line in table.splitlines() if line.split()[1].startswith("/v/")]
    assert len(lines) >= sum(volume.readable for volume in volumes.values())
    for line in lines:
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(line[3].split(",")), line
    assert cell._session.pread("/sys/class/block/vda/ro", 0, 8).strip() == b"1"
    assert cell._session.pread("/proc/net/dev", 0, 4096).count(b":") == 1  # lo, and no card


def test_layers(tmp_path: Path) -> None:
    """LVM, LUKS 1 in LVM, LUKS 2 and RAID 1 over four disks, in one cell; without a key only the others."""
    try:
        disks = [str(path) for path in layered(tmp_path)]
    except HostError as error:
        pytest.skip(f"the tools are not to be had: {error}")
    with contents.open_contents(disks[0], declared="raw", more=disks[1:], keys=[b"wrong", KEY]) as cell:
        found = {volume.name: volume for volume in cell.volumes()}
        for name in ("data-group/files", "luks-vdb", "luks-data-group-secret", "md0"):
            assert found[name].readable, found
            assert cell.read(name, "/etc/content") == CONTENT
        assert found["vdb"].content == "crypto_LUKS"
    with contents.open_contents(disks[1], declared="raw") as cell:
        assert "--key-file" in " ".join(cell.volumes()[0].notes)
        with pytest.raises(ImageError, match="no volume whose files can be read"):
            cell.system()


def test_hostile_superblocks_and_a_dirty_journal(
    disk: tuple[Path, dict[str, int], dict[str, int]], tmp_path: Path
) -> None:
    """Each file system with noise over its metadata; whatever the guest's kernel makes of it, this host goes on."""
    hostile = tmp_path / "hostile.img"
    subprocess.run(["cp", "--sparse=always", str(disk[0]), str(hostile)], check=True)
    noise = random.Random(4)  # the same lies every time
    with hostile.open("r+b") as file:
        for kind, offset in disk[2].items():
            if kind == "ext3":
                file.seek(offset + 1024 + 96)
                flags = int.from_bytes(file.read(4), "little")
                file.seek(offset + 1024 + 96)
                file.write((flags | 4).to_bytes(4, "little"))
                continue
            # The magic stays, so that the driver really runs; what follows is wrong.
            for _ in range(40):
                file.seek(offset + noise.choice((200, 1400, 5000, 66_000, 70_000)) + noise.randrange(4000))
                file.write(noise.randbytes(8))
    number = disk[1]["ext3"]
    try:
        with contents.open_contents(str(hostile)) as cell:
            found = {volume.name: volume for volume in cell.volumes()}
            assert any("journal was not replayed" in note for note in found[f"vda{number}"].notes)
            assert cell.read(f"vda{number}", "/etc/content") == CONTENT
            for volume in found.values():
                if volume.readable:
                    for _ in cell.walk(volume.name, entries_max=1000):
                        pass
    except (VmError, ImageError) as error:
        print(f"the cell's kernel fell over, which is an answer too: {error}")
    _nothing_is_left()


def test_a_killed_command_leaves_no_cell(disk: tuple[Path, dict[str, int], dict[str, int]]) -> None:
    script = (
        "import sys, time\nfrom casemate import contents\n"
        "with contents.open_contents(sys.argv[1]) as cell:\n"
        "    print(*cell._session._link._tails, flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(disk[0])], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        end = time.monotonic() + 20
        while any(Path(f"/proc/{child}/exe").exists() for child in children) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(Path(f"/proc/{child}/exe").exists() for child in children)
    finally:
        process.kill()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()
    from casemate.cell.boot import sweep_stale

    sweep_stale(default_paths())
    _nothing_is_left()


def test_a_guest_that_says_nothing_is_started_once_more(
    disk: tuple[Path, dict[str, int], dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "HELLO_MAX_S", (0.01, 60.0))
    with contents.open_contents(str(disk[0])) as cell:
        assert cell.messages()
    monkeypatch.setattr(boot, "HELLO_MAX_S", (0.01, 0.01))
    with pytest.raises(VmError, match="silent"), contents.open_contents(str(disk[0])):
        pass
    _nothing_is_left()


def test_copy_out_by_the_real_command(disk: tuple[Path, dict[str, int], dict[str, int]], tmp_path: Path) -> None:
    target = tmp_path / "out"
    name = f"vda{disk[1]['ext4']}"
    command = [
        sys.executable,
        "-m",
        "casemate.cli.main",
        "image",
        "copy-out",
        "--volume",
        name,
        str(disk[0]),
        "/",
        str(target),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (target / "etc" / "content").read_bytes() == CONTENT
    assert (target / "inside").readlink() == Path("etc/content")
    assert not (target / "absolute").is_symlink()
    assert "may lead out" in done.stderr
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


def _nothing_is_left() -> None:
    home = Path(default_paths().runtime) / "cells"
    assert not home.exists() or [path for path in home.iterdir() if not _is_alive(path)] == []


def _is_alive(home: Path) -> bool:
    from casemate.engine.files import is_locked

    return is_locked(str(home / "lock"))
