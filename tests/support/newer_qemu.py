"""A newer QEMU than the host's, unpacked beside the system: Debian 13's backports, with its own libc.

    <user's cache>/tests/qemu-<key>/    built under a temporary name, renamed when complete

Nothing of it is installed: ``mmdebstrap --variant=extract`` unpacks signed packages without running their scripts. The
archive is the one that this host uses. ``<key>`` is the digest of this recipe; the version is what the archive has.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from casemate.engine.paths import default_paths

SUITE = "trixie"
NEWER = f"{SUITE}-backports"
_PACKAGES = ("base-files", "qemu-system-x86", "qemu-system-s390x", "qemu-system-data", "seabios")
_TIMEOUT_S = 600
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


@dataclass(frozen=True)
class NewerQemu:
    """An unpacked QEMU. ``command``: how its programs are started."""

    root: Path

    def command(self, program: str = "qemu-system-x86_64") -> list[str]:
        """The program under its own loader and libraries, with its own firmware."""
        libraries = self.root / _LIBRARIES
        loader = [str(self.root / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
        data = [word for name in ("qemu", "seabios") for word in ("-L", str(self.root / "usr/share" / name))]
        return [*loader, str(self.root / "usr/bin" / program), *data]

    @property
    def environment(self) -> dict[str, str]:
        """Where it finds its modules."""
        return {**os.environ, "QEMU_MODULE_DIR": str(self.root / _LIBRARIES / "qemu")}

    def version(self) -> tuple[int, ...]:
        """Major, minor, micro."""
        done = subprocess.run(
            [*self.command(), "-version"], capture_output=True, text=True, timeout=60, check=True, env=self.environment
        )
        return tuple(int(part) for part in done.stdout.split()[3].split("."))


def newer_qemu() -> NewerQemu:
    """The QEMU of this recipe, unpacked when it is not in the cache (half a minute).

    In CI a failure is a failure; elsewhere the test is skipped and says why.
    """
    store = Path(default_paths().cache) / "tests"
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    place = store / f"qemu-{key}"
    with (store / "qemu-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            with tempfile.TemporaryDirectory(dir=store, prefix="building-qemu-") as work:
                _unpack(Path(work) / "root")
                (Path(work) / "root").rename(place)
        for old in store.glob("qemu-*"):
            if old.is_dir() and old != place:
                subprocess.run(["rm", "-rf", "--one-file-system", str(old)], check=True)
    return NewerQemu(place)


def _unpack(target: Path) -> None:
    """As a tar through a pipe: root of mmdebstrap's namespace is another uid, which cannot enter this user's cache."""
    default = f'--aptopt=APT::Default-Release "{NEWER}"'
    command = ["mmdebstrap", "--variant=extract", "--mode=auto", "--format=tar", f"--include={','.join(_PACKAGES)}"]
    command += ["--aptopt=APT::Install-Recommends false", "--aptopt=Acquire::Retries 3", default]
    command += ["--skip=output/dev", SUITE, "-", *_archives()]
    extract = ["tar", "-x", "--no-same-owner", "-C", str(target)]
    target.mkdir()
    try:
        with tempfile.TemporaryFile("w+") as errors:
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as fetching:
                try:
                    subprocess.run(extract, stdin=fetching.stdout, stderr=errors, timeout=_TIMEOUT_S, check=True)
                    fetching.wait(60)
                finally:
                    fetching.kill()
            errors.seek(0)
            why = (errors.read()[-600:] or str(fetching.returncode)) if fetching.returncode else ""
    except (OSError, subprocess.SubprocessError) as fault:
        why = str(fault)
    if why:
        message = f"no newer QEMU: Debian's {NEWER} could not be unpacked: {why}"
        if "CI" in os.environ:
            raise RuntimeError(message)
        pytest.skip(message)


def _archives() -> list[str]:
    """Debian 13 and its backports, from where this host gets Debian."""
    fields = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    fields += ["Component: main", "Label: Debian"]
    lines = subprocess.run(fields, capture_output=True, text=True, timeout=60, check=False).stdout.splitlines()
    return [f"deb {line} {suite} main" for line in lines[:1] for suite in (SUITE, NEWER)]
