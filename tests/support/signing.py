"""Keys and signatures made by the real programs (gpg, ssh-keygen, minisign), for tests that verify them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest


def need(program: str, package: str) -> str:
    """Path of a program, or a skip that names its package."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed (package {package})")
    return path


def run(*argv: str | Path, stdin: bytes = b"", env: dict[str, str] | None = None, rc: int = 0) -> bytes:
    """Run a program that must end with ``rc``; returns what it printed."""
    done = subprocess.run(
        [str(word) for word in argv], input=stdin, capture_output=True, timeout=60, check=False, env=env
    )
    assert done.returncode == rc, (argv, done.stdout, done.stderr)
    return done.stdout


class Gpg:
    """A GnuPG home of its own."""

    def __init__(self, home: Path) -> None:
        self._program = need("gpg", "gnupg")
        self._env = {**os.environ, "GNUPGHOME": str(home), "LC_ALL": "C"}

    def call(self, *argv: str | Path, stdin: bytes = b"", at: str = "") -> bytes:
        """Run gpg; ``at`` is its idea of the time (YYYYMMDDThhmmss)."""
        clock = ["--faked-system-time", at] if at else []
        fixed = ["--batch", "--quiet", "--yes", "--pinentry-mode", "loopback", "--passphrase", "", "--no-tty"]
        return run(self._program, *fixed, *clock, *argv, stdin=stdin, env=self._env)

    def key(self, user: str, kind: str = "ed25519", expires: str = "never", usage: str = "sign", at: str = "") -> str:
        """A new key; returns its fingerprint."""
        self.call("--quick-gen-key", user, kind, usage, expires, at=at)
        listed = self.call("--list-keys", "--with-colons", f"={user}").decode().splitlines()
        return next(line.split(":")[9] for line in listed if line.startswith("fpr:")).lower()

    def stop(self) -> None:
        """End the agent that gpg started for this home."""
        gpgconf = shutil.which("gpgconf")
        if gpgconf:
            subprocess.run([gpgconf, "--kill", "all"], env=self._env, check=False, capture_output=True, timeout=30)


def gpg_home() -> Generator[Gpg, None, None]:
    """A GnuPG home in a short path: its sockets have at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="cm", dir="/tmp") as name:
        os.chmod(name, 0o700)
        gpg = Gpg(Path(name))
        try:
            yield gpg
        finally:
            gpg.stop()
