"""How fast images are verified, beside sha256sum and veritysetup: ``python bench/verify.py [--mib N] [--rounds N]``.

Every round runs every row once on one file in the page cache, so that a busy moment hits all of them; the median
counts. Rows: hashlib's SHA-256 over memory (what one core can do at best); our one pass (SHA-256, and SHA-256 with
SHA-512); the tree digest on one core and on all; fs-verity and dm-verity trees; sha256sum; veritysetup verify. Aims:
one pass at 0.9 of hashlib or more, the tree on two cores at 1.7 of one core or more. Prints a table; takes under two
minutes with the defaults.
"""

from __future__ import annotations

import argparse
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figures import machine, write_figures

from casemate.image.origin_digest import digests_of, tree_digest
from casemate.image.verity import dm_verity, fsverity_digest

PATH = f"/usr/sbin:/sbin:{os.environ.get('PATH', '')}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How fast images are verified.")
    parser.add_argument("--mib", type=int, default=1024, help="size of the file (default 1024)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as name:  # tmpfs would be unfair
        text = measure(Path(name), arguments.mib, arguments.rounds)
    print(text)
    if arguments.write:
        write_figures("bench/verify.py", text)


def measure(where: Path, mib: int, rounds: int) -> str:
    """Make the file, run the rows; the table."""
    size, path = mib << 20, where / "image"
    piece = os.urandom(1 << 20)
    with path.open("wb") as file:
        for number in range(mib):
            file.write(number.to_bytes(8, "big") + piece[8:])
    descriptor = os.open(path, os.O_RDONLY)
    cores = len(os.sched_getaffinity(0))
    rows: dict[str, Callable[[], object]] = {
        "hashlib SHA-256 over memory": lambda: _memory(piece, mib),
        "one pass: SHA-256": lambda: digests_of(descriptor, {"sha256"}),
        "one pass: SHA-256 and SHA-512": lambda: digests_of(descriptor, {"sha256", "sha512"}),
        "tree digest, 1 thread": lambda: tree_digest(descriptor, threads=1),
        f"tree digest, {cores} threads": lambda: tree_digest(descriptor, threads=cores),
        "fs-verity digest from content": lambda: fsverity_digest(descriptor),
        "sha256sum": lambda: subprocess.run(["sha256sum", path], check=True, capture_output=True),
    }
    program = shutil.which("veritysetup", path=PATH)
    if program is not None:
        tree = dm_verity(descriptor, size, b"salt", bytes(16))
        (where / "hash").write_bytes(tree.area)
        argv: list[str | Path] = [program, "verify", path, where / "hash", tree.root_hash]
        rows["veritysetup verify"] = lambda: subprocess.run(argv, check=True, capture_output=True)
        rows["dm-verity tree from content"] = lambda: dm_verity(descriptor, size, b"salt", bytes(16))
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for _ in range(rounds):
        for row, action in rows.items():
            began = time.perf_counter()
            action()
            seconds[row].append(time.perf_counter() - began)
    os.close(descriptor)
    median = {row: statistics.median(found) for row, found in seconds.items()}
    best = median["hashlib SHA-256 over memory"]
    one = median["tree digest, 1 thread"]
    lines = [f"{machine()} {mib} MiB, {rounds} rounds.", "", "| row | MiB/s | of hashlib | of one thread |"]
    lines.append("|---|---:|---:|---:|")
    for row, found in median.items():
        share = f"{one / found:.2f}" if row.startswith("tree") else ""
        lines.append(f"| {row} | {mib / found:.0f} | {best / found:.2f} | {share} |")
    lines += ["", "| aim | figure | |", "|---|---|---|"]
    for what, figure, aim in (
        ("one pass, of hashlib", best / median["one pass: SHA-256"], 0.9),
        ("tree on two cores, of one thread", one / median[f"tree digest, {cores} threads"], 1.7),
    ):
        lines.append(f"| {what}: {aim} or more | {figure:.2f} | {'met' if figure >= aim else '**missed**'} |")
    return "\n".join(lines)


def _memory(piece: bytes, count: int) -> None:
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(piece)


if __name__ == "__main__":
    main()
