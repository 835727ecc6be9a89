"""Speed of the image scan beside plain regular expressions and, where it is installed, detect-secrets.

    python bench/scan.py IMAGE [--format raw]

Prints MB/s over bytes that are not holes. detect-secrets and the plain expressions get a sample of the image's text,
because they would take hours: the figure is per byte all the same.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from casemate import scans
from casemate.scan.engine import Engine
from casemate.scan.prefilter import Hyperscan
from casemate.scan.redact import Redactor
from casemate.scan.ruleset import builtin

SAMPLE_BYTES = 2 << 20


def main() -> None:
    """Measure and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("--format")
    parser.add_argument("--rules", help="a rule file to add, for example of gitleaks")
    arguments = parser.parse_args()
    for jobs in (1, len(os.sched_getaffinity(0))):
        best = max(
            (scans.scan_image(arguments.image, image_format=arguments.format, live=False, jobs=jobs) for _ in range(3)),
            key=lambda outcome: outcome.read_bytes / outcome.seconds,
        )
        show(f"casemate, {jobs} process{'es' if jobs > 1 else ''}", best.read_bytes, best.seconds)
    if arguments.rules:
        outcome = scans.scan_image(
            arguments.image, image_format=arguments.format, live=False, jobs=1, rule_file=arguments.rules
        )
        show("casemate with that rule file, 1 process", outcome.read_bytes, outcome.seconds)
    started = time.monotonic()
    scans.scan_image(arguments.image, image_format=arguments.format)
    print(f"{'end to end, files through the cell':<44} {time.monotonic() - started:8.1f} s")
    sample = text_sample(Path(arguments.image))
    rules = builtin().rules
    measure("our rules in memory, hyperscan", sample, Engine(rules, Hyperscan(rules), Redactor()).scan)
    expressions = [re.compile(rule.regex.encode("latin-1")) for rule in rules]
    measure("our rules, plain expressions", sample, lambda data: [list(e.finditer(data)) for e in expressions])
    detect_secrets(sample)


def text_sample(image: Path) -> bytes:
    """Printable bytes of the image, as a scanner of files would get them."""
    parts: list[bytes] = []
    size = 0
    with image.open("rb") as file:
        while size < SAMPLE_BYTES and (chunk := file.read(1 << 20)):
            for match in re.finditer(rb"[\x09\x0a\x20-\x7e]{256,}", chunk):
                parts.append(match[0])
                size += len(match[0])
    return b"\n".join(parts)[:SAMPLE_BYTES]


def measure(name: str, data: bytes, work: Callable[[bytes], object]) -> None:
    """One run over the sample."""
    started = time.monotonic()
    work(data)
    show(name, len(data), time.monotonic() - started)


def detect_secrets(sample: bytes) -> None:
    """The library's own scan of a file, all its plugins."""
    try:
        from detect_secrets import SecretsCollection  # type: ignore[import-not-found]
        from detect_secrets.settings import default_settings  # type: ignore[import-not-found]
    except ImportError:
        print("detect-secrets is not installed: pip install detect-secrets")
        return
    with tempfile.NamedTemporaryFile(suffix=".txt") as file, default_settings():
        file.write(sample)
        file.flush()
        found = SecretsCollection()
        measure("detect-secrets", sample, lambda data: found.scan_file(file.name))


def show(name: str, size_bytes: int, seconds: float) -> None:
    """One line."""
    print(f"{name:<44} {size_bytes / max(seconds, 1e-9) / 1e6:8.1f} MB/s")


if __name__ == "__main__":
    main()
