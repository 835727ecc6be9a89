"""Debian 12 roots in which tests run Casemate itself: built by mmdebstrap as root, cached, and what goes in.

<user's cache>/tests/<kind>-<key>/     kernel, initrd and images of one recipe; another recipe is another build
payload.tar                            made for each run: this checkout, its dependencies, the built-in guest, the
                                       script that runs inside; the guest unpacks it from its second disk
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from casemate.engine.paths import default_paths

SUITE = "bookworm"
SOURCE = Path(__file__).parents[2] / "src"
OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")
_TIMEOUT_S = 900
_DEPENDENCIES = ("msgspec", "pyseccomp", "cffi", "_cffi_backend", "pycparser", "cryptography")
_INITRAMFS = {
    "/etc/initramfs-tools/conf.d/casemate": "MODULES=list\nBUSYBOX=n\nCOMPRESS=gzip\nFSTYPE=ext4\n",
    "/etc/initramfs-tools/modules": "ext4\nvirtio_blk\nvirtio_mmio\nvirtio_pci\n",
}


def cached(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory that ``build`` filled; it is called when the cache has none of this key."""
    store = Path(default_paths().cache) / "tests"
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = store / f"{kind}-{key}"
    with (store / f"{kind}-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            for old in store.glob(f"{kind}-*/"):  # other recipes, and builds that were killed: we hold the lock
                shutil.rmtree(old, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=store, prefix=f"{kind}-building-") as work:
                done = Path(work) / "done"
                done.mkdir()
                build(done)
                done.rename(place)
    return place


def bootstrap(place: Path, packages: str, finish: tuple[str, ...]) -> Path:
    """Make a root below ``place``, with ``finish`` as the last hook; kernel and initrd are copied beside it."""
    root = place / "root"
    last = (
        *finish,
        f'cp "$1"/boot/vmlinuz-* {shlex.quote(str(place))}/kernel',
        f'cp "$1"/boot/initrd.img-* {shlex.quote(str(place))}/initrd',
        'find "$1"/var/lib/apt/lists "$1"/var/cache/apt -type f -delete',
    )
    # As root mmdebstrap mounts /proc, /sys, /dev/pts and /dev/shm into the new root. A mount namespace of its own takes
    # them along when it is killed; left on the host, whoever removes the directory would empty the host's /dev/shm.
    command = list(OWN_MOUNTS)
    command += ["mmdebstrap", "--variant=minbase", "--mode=root", f"--include={packages}"]
    command += ["--aptopt=APT::Install-Recommends false", "--aptopt=Acquire::Retries 3"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "info", "locale")]
    hook = "; ".join(("set -e", *last))
    command += [f"--setup-hook={write_hook(_INITRAMFS)}", f"--customize-hook={hook}", SUITE, str(root), "-"]
    run_tool(command, stdin=_archives(), timeout_s=_TIMEOUT_S)
    return root


def fill_ext4(root: Path, image: Path, size_mib: int) -> None:
    """An ext4 image with the content of ``root``, which goes."""
    options = ["-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1"]
    run_tool(["mke2fs", "-q", *options, "-d", str(root), str(image), f"{size_mib}M"])
    shutil.rmtree(root)


def write_hook(files: dict[str, str]) -> str:
    """A shell hook that writes ``files`` into the new root."""
    lines = []
    for path, text in files.items():
        lines += [f'mkdir -p "$1"{os.path.dirname(path)}', f'printf %s {shlex.quote(text)} >"$1"{path}']
    return "; ".join(lines)


def write_payload(target: Path, scripts: tuple[Path, ...], more: dict[str, Path]) -> None:
    """``target``: a tar with all that ``scripts`` need; ``more``: name in the tar -> file or directory."""
    with tarfile.open(target, "w") as archive:
        archive.add(SOURCE, "src", filter=lambda item: None if "__pycache__" in item.name else item)
        for name in _DEPENDENCIES:
            found = importlib.util.find_spec(name)
            if found is None or found.origin is None:
                raise RuntimeError(f"{name} is not installed")
            origin = Path(found.origin)
            origin = origin.parent if origin.name == "__init__.py" else origin
            archive.add(origin, f"site/{origin.name}")
        for script in scripts:
            archive.add(script, f"tests/support/{script.name}")
        for name, path in more.items():
            archive.add(path, name)
    with target.open("ab") as file:
        file.truncate(-(-file.tell() // 512) * 512)


def run_tool(command: list[str], *, stdin: str = "", timeout_s: float = 120) -> str:
    """stdout of a program that must succeed.

    Raises:
        RuntimeError: it failed; the message ends with its last words.
    """
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)[:200]}: status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def _archives() -> str:
    """Debian 12 as this host gets it; empty when it does not, then mmdebstrap has a default."""
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    wanted = ("Created-By: Packages", "Origin: Debian")
    lines = run_tool(["apt-get", "indextargets", "--format", fields, *wanted]).splitlines()
    found = [line for line in lines if line.split()[1:] in ([SUITE, "main"], [f"{SUITE}-security", "main"])]
    return "".join(f"deb {line}\n" for line in dict.fromkeys(found))
