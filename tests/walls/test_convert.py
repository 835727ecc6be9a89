"""Conversion in the wall: every format comes out bit by bit; images made to exhaust, crash or escape end clearly."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import foreign_images as make
from tests.support.foreign_images import MIB, SOUND

from casemate.cell import convert as converter
from casemate.cell.convert import PROGRAM, convert, converter_wall
from casemate.engine.paths import Paths, prepare
from casemate.errors import HostError, ImageError, VmError
from casemate.image.foreign import SourceHeader, inspect_source
from casemate.image.reader import ImageReader
from casemate.jail.policy import Identity, IdentityMode

pytestmark = [
    pytest.mark.wall,
    pytest.mark.skipif(not os.access(PROGRAM, os.X_OK), reason="qemu-img is missing (qemu-utils)"),
]
RESERVED = range(61000, 61064)
OUTPUT = 1 << 30


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(f"{tmp_path}/run", f"{tmp_path}/data", f"{tmp_path}/cache")
    prepare(found)
    return found


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """20 MiB with data at the begin, in the middle and at the end."""
    path = tmp_path / "plain.raw"
    with path.open("wb") as file:
        file.truncate(20 * MIB)
        for at in (0, 7 * MIB + 512, 20 * MIB - 4096):
            file.seek(at)
            file.write(os.urandom(4096))
    return path


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def run(
    source: Path,
    paths: Paths,
    target_format: str = "qcow2",
    *,
    header: SourceHeader | None = None,
    output: int = OUTPUT,
    deadline_s: float | None = None,
    program: str = PROGRAM,
) -> Path:
    """Convert ``source``; the path of what came out."""
    out = source.parent / f"out.{target_format}"
    target = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    before = set(os.listdir(tempfile.gettempdir()))
    try:
        with opened(source) as fd:
            known = header or inspect_source(ImageReader(fd, "it"))
            convert(
                fd,
                known,
                target,
                name="it",
                paths=paths,
                reserved=RESERVED,
                target_format=target_format,
                max_output_bytes=output,
                deadline_s=deadline_s,
                program=program,
            )
    finally:
        os.close(target)
        left = [name for name in set(os.listdir(tempfile.gettempdir())) - before if name.startswith("casemate-convert")]
        assert left == []
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("casemate-nbd")]
    return out


@pytest.mark.parametrize("words", [
    "vmdk subformat=monolithicSparse", "vmdk subformat=streamOptimized", "vpc subformat=dynamic,force_size=on",
    "vpc subformat=fixed,force_size=on", "vhdx -", "vdi -", "qcow2 compression_type=zstd", "raw -",
])  # fmt: skip
def test_every_format_comes_out_as_it_went_in(words: str, plain: Path, paths: Paths) -> None:
    driver, _, options = words.partition(" ")
    source = plain.parent / "source"
    more = ["-o", options] if options != "-" else []
    packed = ["-c"] if driver == "qcow2" else []
    subprocess.run([PROGRAM, "convert", "-O", driver, *packed, *more, plain, source], check=True, timeout=60)
    header = None
    if driver == "raw":
        header = SourceHeader("raw", "", 20 * MIB, 20 * MIB)
    for target_format in ("qcow2", "raw"):
        out = run(source, paths, target_format, header=header)
        with opened(out) as fd:
            assert inspect_source(ImageReader(fd, "out"), target_format).virtual_size_bytes == 20 * MIB
        compare = [PROGRAM, "compare", "-f", target_format, "-F", "raw", out, plain]
        subprocess.run(compare, check=True, timeout=60)
        assert out.stat().st_blocks * 512 < 4 * MIB
    if driver != "raw":
        subprocess.run([PROGRAM, "check", "-q", "-f", "qcow2", plain.parent / "out.qcow2"], check=True, timeout=60)


@pytest.mark.parametrize("name", SOUND)
def test_images_without_data_come_out_empty(name: str, tmp_path: Path, paths: Paths) -> None:
    source = tmp_path / name
    source.write_bytes(SOUND[name])
    out = run(source, paths, "raw")
    with opened(source) as fd:
        size = inspect_source(ImageReader(fd, name)).virtual_size_bytes
    assert out.read_bytes() == bytes(size)


def test_a_part_of_a_file_is_all_that_it_sees(tmp_path: Path, paths: Paths) -> None:
    source, data = tmp_path / "archive", SOUND["dynamic.vdi"]
    source.write_bytes(b"secret before" + bytes(499) + data + b"secret behind")
    target = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    with opened(source) as fd:
        header = inspect_source(ImageReader(fd, "it", offset=512, size_bytes=len(data)))
        convert(
            fd, header, target, name="it", paths=paths, reserved=RESERVED, target_format="raw", offset=512,
            max_output_bytes=OUTPUT,
        )  # fmt: skip
    os.close(target)
    assert (tmp_path / "out").read_bytes() == bytes(2 * MIB)


def hostile_qcow2(path: Path, size: int = 8 << 30) -> None:
    """Every cluster of the disk is the same compressed cluster of the file: a few hundred KiB stand for gigabytes."""
    import zlib

    compress = zlib.compressobj(9, zlib.DEFLATED, -12)
    packed = compress.compress(os.urandom(64) * 1024) + compress.flush()
    l2_tables = -(-size // (1 << 29))
    with path.open("wb") as file:
        # header, one refcount table and block, one L1 entry for each 512 MiB, all on one L2 table
        head = struct.pack(">4sIQIIQIIQQIIQQQQIIQ", b"QFI\xfb", 3, 0, 0, 16, size, 0, l2_tables, 3 << 16, 1 << 16, 1,
                           0, 0, 0, 0, 0, 4, 104, 0)  # fmt: skip
        file.write(head)
        file.seek(1 << 16)
        file.write(struct.pack(">Q", 2 << 16))
        file.seek(2 << 16)
        file.write(struct.pack(">8H", 1, 1, 1, 1, 1, 1, 0, 0))
        file.seek(3 << 16)
        file.write(struct.pack(">Q", 1 << 63 | 4 << 16) * l2_tables)
        file.seek(4 << 16)
        sectors = -(-len(packed) // 512)
        file.write(struct.pack(">Q", 1 << 62 | (sectors - 1) << 54 | 5 << 16) * 8192)
        file.seek(5 << 16)
        file.write(packed.ljust(1 << 16, b"\0"))


def test_a_bomb_of_output_ends_at_the_bound(tmp_path: Path, paths: Paths) -> None:
    source = tmp_path / "bomb.qcow2"
    hostile_qcow2(source)
    assert source.stat().st_size < MIB
    with pytest.raises(ImageError, match="wrote more than it may") as error:
        run(source, paths, "raw", output=32 * MIB)
    assert "do not trust this image" in error.value.next_step
    assert (tmp_path / "out.raw").stat().st_blocks * 512 <= 40 * MIB


def test_a_bomb_of_time_ends_at_the_deadline(tmp_path: Path, paths: Paths) -> None:
    source = tmp_path / "bomb.qcow2"
    hostile_qcow2(source, 1 << 40)
    started = time.monotonic()
    with pytest.raises(ImageError, match="takes longer"):
        run(
            source,
            paths,
            "raw",
            output=1 << 40,
            deadline_s=1.0,
            header=SourceHeader("qcow2", "", 1 << 40, source.stat().st_size),
        )
    assert time.monotonic() - started < 30


def test_a_bomb_of_memory_ends_at_the_limit(tmp_path: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """An L1 table that our reader refuses, given to the converter all the same, under little memory."""
    source = tmp_path / "bomb.qcow2"
    with source.open("wb") as file:
        head = struct.pack(">4sIQIIQIIQQIIQQQQIIQ", b"QFI\xfb", 3, 0, 0, 21, 1 << 50, 0, 1 << 22, 3 << 21, 1 << 21, 1,
                           0, 0, 0, 0, 0, 4, 104, 0)  # fmt: skip
        file.write(head)
        file.truncate((3 << 21) + (1 << 25))
    monkeypatch.setattr(converter, "MEMORY_BYTES", 96 * MIB)
    with pytest.raises((ImageError, VmError)) as error:
        run(source, paths, "qcow2", header=SourceHeader("qcow2", "", 1 << 50, source.stat().st_size))
    assert "it" in str(error.value)


@pytest.mark.parametrize("name", ["sparse.vmdk", "dynamic.vhdx", "dynamic.vdi", "dynamic.vhd"])
def test_damage_behind_the_header_is_a_clear_error_or_a_disk(name: str, tmp_path: Path, paths: Paths) -> None:
    """Tables that only qemu-img reads: random bytes in them never crash us and never leave a process."""
    source = tmp_path / name
    for seed in range(3):
        data = bytearray(SOUND[name] + bytes(2 * MIB))
        data[1536:9000] = hashlib.shake_128(bytes([seed])).digest(9000 - 1536)
        source.write_bytes(data)
        header = SourceHeader(name.split(".")[1], "", 2 * MIB, len(data))
        with contextlib.suppress(ImageError, VmError):
            run(source, paths, "raw", header=header)


def test_a_reference_that_a_reader_overlooked_leads_nowhere(tmp_path: Path, paths: Paths) -> None:
    """The wall itself, without our reader: a VMDK whose extent and parent are files of the host."""
    bait = tmp_path / "bait"
    bait.write_bytes(b"secret of the host" * 1000)
    os.chmod(bait, 0o644)
    text = make.DESCRIPTOR.format(kind="monolithicFlat", sectors=2048, file="disk").replace("SPARSE", "FLAT")
    for data in (
        make.vmdk(capacity=0, text=text.replace('"disk"', f'"{bait}" 0')),
        make.vmdk(text=make.DESCRIPTOR.format(kind="monolithicSparse", sectors=2048, file="d")
                  + f'parentFileNameHint="{bait}"'),
    ):  # fmt: skip
        source = tmp_path / "hostile.vmdk"
        source.write_bytes(data)
        with pytest.raises(ImageError, match="refused it"):
            run(source, paths, "raw", header=SourceHeader("vmdk", "", MIB, len(data)))
        assert b"secret" not in (tmp_path / "out.raw").read_bytes()


def fake(tmp_path: Path, text: str) -> str:
    """A program in place of qemu-img, compiled: what a broken one could do."""
    source, made = tmp_path / "fake.c", tmp_path / "fake"
    source.write_text("#include <sys/syscall.h>\n#include <unistd.h>\n#include <string.h>\n#include <fcntl.h>\n"
                      "#include <stdlib.h>\n" + text)  # fmt: skip
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (gcc)")
    subprocess.run([compiler, "-O0", "-w", "-o", made, source], check=True, timeout=60)
    return str(made)


ASK = """
char request[28] = {0x25,0x60,0x95,0x13, 0,0, 0,%d, 0,0,0,0,0,0,0,1, 0,0,0,0,0,0,%d,0, 0,0,2,0}, b[8192];
static void hello(int fd) { int n = 0; while (n < 152) n += read(fd, b + n, 152 - n); }
"""

ATTACKS: dict[str, tuple[str, str, type[Exception]]] = {
    "opens a file after start-up": (
        ASK % (0, 0) + "int main() { hello(3); write(3, request, 28); read(3, b, 528);"
        ' return open("/usr/bin/qemu-img", O_RDONLY) >= 0 ? 0 : 7; }',
        "refused it",
        ImageError,
    ),
    "executes after start-up": (
        ASK % (0, 0) + "int main() { hello(3); write(3, request, 28); read(3, b, 528);"
        ' execl("/usr/bin/qemu-img", "x", 0); return 7; }',
        "refused it",
        ImageError,
    ),
    "opens a socket": ("int main() { return syscall(SYS_socket, 2, 1, 0); }", "SIGSYS", VmError),
    "traces": ("int main() { return syscall(SYS_ptrace, 0, 0, 0, 0); }", "SIGSYS", VmError),
    "writes to the source": (
        ASK % (1, 0) + "int main() { hello(3); write(3, request, 28); memset(b, 65, 512); write(3, b, 512);"
        " read(3, b, 16); return b[7] ? 7 : 0; }",
        "refused it",
        ImageError,
    ),
    "reads behind the source": (
        ASK % (0, 127) + "int main() { hello(3); write(3, request, 28); read(3, b, 16); return b[7] ? 7 : 0; }",
        "refused it",
        ImageError,
    ),
    "sends nonsense": (
        ASK % (0, 0) + 'int main() { hello(3); write(3, "nonsense nonsense nonsense n", 28); pause(); }',
        "no request",
        ImageError,
    ),
    "sends nothing": ("int main() { for (;;) ; }", "did not start in time", VmError),
    "floods its log": (
        "int main() { char t[4096]; memset(t, 0x1b, 4096); for (int i = 0; i < 2000; i++) write(2, t, 4096);"
        " return 1; }",
        "refused it",
        ImageError,
    ),
    "aborts": ("int main() { abort(); }", "crashed on it", VmError),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_broken_converter_reaches_nothing(
    name: str, tmp_path: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, words, kind = ATTACKS[name]
    monkeypatch.setattr(converter, "STARTUP_S", 1.0)
    source = tmp_path / "it.vdi"
    source.write_bytes(SOUND["dynamic.vdi"])
    with pytest.raises(kind) as error:
        run(source, paths, "raw", program=fake(tmp_path, text))
    assert words in str(error.value), str(error.value)
    assert "\x1b" not in str(error.value)
    assert source.read_bytes() == SOUND["dynamic.vdi"]


def test_a_full_disk_is_a_host_error(tmp_path: Path, paths: Paths) -> None:
    """A limit on file sizes stands for it: the write fails in our process, not in qemu-img's."""
    source = tmp_path / "b.qcow2"
    hostile_qcow2(source, 1 << 30)
    child = os.fork()
    if child == 0:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 * MIB, 8 * MIB))
        code = 1
        try:
            run(source, paths, "qcow2")
        except HostError as error:
            code = 0 if "no room" in str(error) else 2
        except BaseException:
            code = 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_it_dies_with_the_command(tmp_path: Path, paths: Paths) -> None:
    source = tmp_path / "bomb.qcow2"
    hostile_qcow2(source, 1 << 40)
    child = os.fork()
    if child == 0:
        header = SourceHeader("qcow2", "", 1 << 40, source.stat().st_size)
        with contextlib.suppress(BaseException):
            run(source, paths, "raw", output=1 << 40, header=header)
        os._exit(0)
    end = time.monotonic() + 20
    while not (found := converters(child)) and time.monotonic() < end:
        time.sleep(0.02)
    assert found
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while any(os.path.exists(f"/proc/{pid}/exe") for pid in found) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in found)


def converters(parent: int) -> list[int]:
    """Children of a process that are qemu-img."""
    found = []
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"convert" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(int(pid))
    return found


def test_a_missing_qemu_img_names_its_package(tmp_path: Path, paths: Paths) -> None:
    source = tmp_path / "it.vdi"
    source.write_bytes(SOUND["dynamic.vdi"])
    with pytest.raises(HostError, match="qemu-utils"):
        run(source, paths, program="/nonexistent/qemu-img")


def test_the_wall_holds_no_path_of_an_image(paths: Paths) -> None:
    wall = converter_wall(Identity(61000, 61000, IdentityMode.ROOT), paths, PROGRAM, "vmdk", "qcow2")
    assert [descriptor.role for descriptor in wall.descriptors] == ["null", "log", "log", "source", "target"]
    assert all(limit.value == 0 for limit in wall.rlimits if limit.name in {"core", "fsize", "memlock"})
    assert not any("/" in word for word in wall.argv[1:])
