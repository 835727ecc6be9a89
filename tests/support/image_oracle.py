"""What QEMU itself makes of an image: one qemu-storage-daemon opens thousands, and tells when it wanted another file.

The daemon runs with limits on memory, processor time and file size, in a directory of its own. Another file is noticed
three ways: the error names one, a node for one appears, or (inotify) the bait was opened.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

MEMORY_BYTES = 2 << 30
_IN_OPEN = 0x20
_libc = ctypes.CDLL(None, use_errno=True)


class Answer(NamedTuple):
    """``opened``: QEMU takes it. ``other``: the file that it wanted beside it, empty for none."""

    opened: bool
    other: str
    virtual_size_bytes: int
    error: str


class Oracle:
    """One daemon; `ask` opens one image with a given driver and closes it again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bait = directory / "bait"
        self.bait.write_bytes(bytes(1 << 20))
        self._image = directory / "image"
        self._watch = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert _libc.inotify_add_watch(self._watch, os.fsencode(self.bait), _IN_OPEN) >= 0
        self.deaths: list[str] = []
        self._daemon = self._start()

    def _start(self) -> subprocess.Popen[str]:
        daemon = subprocess.Popen(
            ["qemu-storage-daemon", "--chardev", "stdio,id=q", "--monitor", "chardev=q"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self.directory,
            preexec_fn=_limit,  # noqa: PLW1509  no threads here
        )
        assert daemon.stdout is not None
        assert "QMP" in daemon.stdout.readline()
        self._daemon = daemon
        self._command("qmp_capabilities")
        return daemon

    def _command(self, name: str, **arguments: object) -> dict[str, Any]:
        assert self._daemon.stdin is not None
        assert self._daemon.stdout is not None
        self._daemon.stdin.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._daemon.stdin.flush()
        while True:
            line = self._daemon.stdout.readline()
            if not line:
                raise BrokenPipeError
            answer: dict[str, Any] = json.loads(line)
            if "event" not in answer:
                return answer

    def ask(self, data: bytes, driver: str) -> Answer:
        """What QEMU makes of ``data`` when it is told the format."""
        self._image.write_bytes(data)
        self._seen()
        try:
            return self._ask(driver)
        except (BrokenPipeError, OSError):
            self.deaths.append(driver)  # a limit of ours, or a bug of QEMU's
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = self._start()
            return Answer(False, "bait" if self._seen() else "", 0, "the daemon died")

    def _ask(self, driver: str) -> Answer:
        file = {"driver": "file", "filename": str(self._image), "node-name": "f", "read-only": True}
        assert "return" in self._command("blockdev-add", **file)
        added = self._command("blockdev-add", driver=driver, file="f", **{"node-name": "t", "read-only": True})
        error = str(added.get("error", {}).get("desc", ""))
        asked = self._command("query-named-block-nodes", flat=True)
        nodes = asked.get("return", [])  # an image whose tables make the question itself fail
        error += str(asked.get("error", {}).get("desc", ""))
        others = [node["file"] for node in nodes if node["node-name"] not in {"f", "t"}]
        size = next((int(node["image"]["virtual-size"]) for node in nodes if node["node-name"] == "t"), 0)
        if "return" in added:
            assert "return" in self._command("blockdev-del", **{"node-name": "t"})
        assert "return" in self._command("blockdev-del", **{"node-name": "f"})
        if self._seen():
            others.append("bait")
        if ("Could not open" in error or "Cannot use relative paths" in error) and str(self._image) not in error:
            others.append(error)
        return Answer("return" in added, " ".join(others), size, error)

    def _seen(self) -> bool:
        try:
            return bool(os.read(self._watch, 65536))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """End the daemon."""
        self._daemon.kill()
        self._daemon.wait()
        for stream in (self._daemon.stdin, self._daemon.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        os.close(self._watch)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def oracle(directory: Path) -> Iterator[Oracle]:
    """An `Oracle` in ``directory``."""
    made = Oracle(directory)
    try:
        yield made
    finally:
        made.close()
