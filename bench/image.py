"""Images benchmark: one file, a whole tree and 200 MB out of a 1.5 GB ext4 in a qcow2, by us and by the peers.

``python bench/image.py [--rounds N] [--dissect PYTHON] [--keep DIR]``; about 4 minutes. The image is
made by mmdebstrap. libguestfs is forced to TCG as we are, and its appliance is built before the first round; it takes
the kernel that the cell has. Dissect is a separately installed dissect.target under its own Python, on the bare host,
with no wall around it. Every round runs every row, so that a busy moment hits all of them. Prints Markdown; the second
table says where the cell's time goes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.figures import machine, write_figures  # noqa: E402

from casemate.cell import boot as cellboot  # noqa: E402
from casemate.cell.cell import open_cell  # noqa: E402
from casemate.cell.session import Session  # noqa: E402
from casemate.engine.paths import default_paths  # noqa: E402
from casemate.image import packages  # noqa: E402
from casemate.image.headers import inspect_image  # noqa: E402

CASEMATE = str(Path(sys.executable).with_name("casemate"))
BIG_BYTES = 200_000_000
DISSECT = """
import logging, sys
from dissect.target import Target
logging.disable()
target = Target.open(sys.argv[1])
if sys.argv[2]:
    with target.fs.path(sys.argv[2]).open("rb") as file:
        while data := file.read(1 << 20):
            sys.stdout.buffer.write(data)
else:
    for _, directories, files in target.fs.walk_ext("/"):
        for entry in directories + files:
            print(entry.path, entry.lstat().st_size)
"""
"""Run by the other interpreter, never by ours."""
AIMS_S = {"one file": 3.5, "tree": 6.0, "200 MB": 20.0}


def make_image(directory: Path) -> tuple[Path, int]:
    """The qcow2, and how many entries its tree has."""
    tar, tree, raw, image = (directory / name for name in ("root.tar", "root", "disk.raw", "disk.qcow2"))
    include = "systemd-sysv,openssh-server,python3,ca-certificates"
    _run("mmdebstrap", "--quiet", "--variant=important", f"--include={include}", _codename(), str(tar))
    tree.mkdir()
    _run("tar", "-xf", str(tar), "-C", str(tree))
    with (tree / "big").open("wb") as file:
        for _ in range(BIG_BYTES // 1_000_000):
            file.write(os.urandom(1_000_000))
    entries = sum(len(names) + len(files) for _, names, files in os.walk(tree))
    _run("mkfs.ext4", "-q", "-F", "-d", str(tree), str(raw), "1500M")
    _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(image))
    shutil.rmtree(tree)
    raw.unlink()
    return image, entries


def _codename() -> str:
    """The host's own release: its package lists are the ones that work here."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return next((line.partition("=")[2].strip('"') for line in lines if line.startswith("VERSION_CODENAME=")), "stable")


def guestfs_environment(directory: Path) -> dict[str, str] | None:
    """libguestfs under TCG with a kernel out of a package; None without libguestfs."""
    if shutil.which("guestfish") is None:
        return None
    Path("/lib/modules").mkdir(exist_ok=True)  # supermin wants it to be there, even if empty
    where = directory / "kernel"
    where.mkdir(exist_ok=True)
    name = next(name for name in packages.dependencies("linux-image-cloud-amd64") if name.startswith("linux-image-"))
    release = name.removeprefix("linux-image-")
    if not (where / "boot").exists():
        fetched = packages.download(name, where, lambda line: print(line, file=sys.stderr))
        _run("dpkg-deb", "-x", str(fetched.path), str(where))
        _run("depmod", "-b", str(where), release)
    return {
        **os.environ,
        "LIBGUESTFS_BACKEND": "direct",
        "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg",
        "SUPERMIN_KERNEL": f"{where}/boot/vmlinuz-{release}",
        "SUPERMIN_MODULES": f"{where}/lib/modules/{release}",
    }


def rows(
    image: Path, dissect: str | None, environment: dict[str, str] | None
) -> dict[tuple[str, str], Callable[[], float]]:
    """(what, by whom) -> one run in seconds."""
    found: dict[tuple[str, str], Callable[[], float]] = {}

    def row(what: str, who: str, *command: str, env: dict[str, str] | None = None) -> None:
        found[what, who] = lambda: _timed(command, env)

    us = (CASEMATE, "image")
    row("one file", "casemate", *us, "cat", "--format", "qcow2", str(image), "/etc/os-release")
    row("tree", "casemate", *us, "ls-files", "-r", "--format", "qcow2", str(image), "/")
    row("200 MB", "casemate", *us, "cat", "--format", "qcow2", str(image), "/big")
    if environment is not None:
        guestfish = ("guestfish", "--ro", "--format=qcow2", "-a", str(image), "-m", "/dev/sda")
        row("one file", "libguestfs", *guestfish, "cat", "/etc/os-release", env=environment)
        row("tree", "libguestfs", *guestfish, "find", "/", env=environment)
        row("200 MB", "libguestfs", *guestfish, "download", "/big", "/dev/stdout", env=environment)
    if dissect is not None:
        peer = (dissect, "-c", DISSECT, str(image))
        row("one file", "dissect, no wall", *peer, "/etc/os-release")
        row("tree", "dissect, no wall", *peer, "")
        row("200 MB", "dissect, no wall", *peer, "/big")
    return found


def where_the_time_goes(image: Path) -> dict[str, float]:
    """One cell, step by step, in milliseconds."""
    steps: dict[str, float] = {}
    last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        steps[name] = (now - last) * 1000
        last = now

    real_launch, real_hello = cellboot.launch, Session.wait_for_hello  # type: ignore[attr-defined]

    def launch(*given: object, **more: object) -> object:
        lap("guest found, files opened, plan judged")
        result = real_launch(*given, **more)  # type: ignore[arg-type]
        lap("wall, emulator, read-back of the live process")
        return result

    def hello(self: object) -> None:
        real_hello(self)  # type: ignore[arg-type]
        lap("guest kernel to the agent's hello")

    cellboot.launch, Session.wait_for_hello = launch, hello  # type: ignore[assignment,method-assign,attr-defined]
    descriptor = os.open(image, os.O_RDONLY)
    try:
        with open_cell(descriptor, inspect_image(descriptor, str(image), "qcow2"), name=str(image)) as cell:
            name = cell.system().name
            lap("devices found, superblocks looked at, mounted")
            cell.read(name, "/etc/os-release")
            lap("one file")
            count = sum(1 for _ in cell.walk(name))
            lap(f"tree of {count} entries")
            for _ in cell.stream(name, "/big"):
                pass
            lap("200 MB")
        lap("killed, removed")
    finally:
        os.close(descriptor)
        cellboot.launch, Session.wait_for_hello = real_launch, real_hello  # type: ignore[method-assign,attr-defined]
    return steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--dissect", metavar="PYTHON", help="the python of a virtual environment with dissect.target and dissect.extfs"
    )
    parser.add_argument("--keep", metavar="DIR", help="make the image here, or use the one that is here")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        base = Path(arguments.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="casemate-bench-")))
        base.mkdir(exist_ok=True)
        image = base / "disk.qcow2"
        if not image.exists():
            image, entries = make_image(base)
            print(f"image: {entries} entries", file=sys.stderr)
        environment = guestfs_environment(base)
        table = rows(image, arguments.dissect, environment)
        for (what, who), run in table.items():  # caches and the appliance, first
            if what == "one file":
                run()
                print(f"warm: {who}", file=sys.stderr)
        seconds: dict[tuple[str, str], list[float]] = {key: [] for key in table}
        for number in range(arguments.rounds):
            for key, run in table.items():
                # Ours are short: three runs each cost less than one of libguestfs.
                seconds[key] += [run() for _ in range(3 if key[1] == "casemate" else 1)]
                print(f"round {number + 1}: {key[0]}, {key[1]}: {seconds[key][-1]:.2f} s", file=sys.stderr)
        text = _table(seconds, where_the_time_goes(image))
    print(text)
    if arguments.write:
        write_figures("bench/image.py", text)


def _table(seconds: dict[tuple[str, str], list[float]], steps: dict[str, float]) -> str:
    lines = [f"{machine()} 1.5 GB ext4 in a qcow2, TCG.", ""]
    lines += ["| what | by | runs | median s | best s | aim | |", "|---|---|---|---|---|---|---|"]
    for (what, who), values in seconds.items():
        median, aim = statistics.median(values), AIMS_S[what]
        verdict = ("met" if median <= aim else "**missed**") if who == "casemate" else ""
        row = f"{what} | {who} | {len(values)} | {median:.2f} | {min(values):.2f}"
        lines.append(f"| {row} | {f'≤ {aim} s' if verdict else ''} | {verdict} |")
    lines += ["", "| where the cell's time goes | ms |", "|---|---|"]
    lines += [f"| {name} | {value:.0f} |" for name, value in steps.items()]
    cache = Path(default_paths().cache) / "cell"
    current = cache / (cache / "current").read_text().strip()
    initrd, modules = (current / "initrd").stat().st_size, sum(p.stat().st_size for p in (current / "m").iterdir())
    return "\n".join(
        [*lines, "", f"initramfs {initrd / 1e3:.0f} kB; modules that may be sent in {modules / 1e6:.1f} MB in all"]
    )


def _timed(command: tuple[str, ...], environment: dict[str, str] | None) -> float:
    """Run it; its output is read and thrown away, and must be there."""
    begin = time.perf_counter()
    digest = hashlib.blake2b()
    size = 0
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while data := process.stdout.read(1 << 20):
            digest.update(data)
            size += len(data)
        said = process.stderr.read()
    if process.returncode or size < 100:
        raise SystemExit(f"{' '.join(command)}: status {process.returncode}: {said.decode('utf-8', 'replace')[-500:]}")
    return time.perf_counter() - begin


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
