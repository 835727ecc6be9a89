"""The key client for a guest's initrd: one static program, compiled on this host out of ``client/keyclient.c``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from casemate.errors import HostError

_FLAGS: Final = ("-std=gnu11", "-O2", "-static", "-s", "-fstack-protector-strong", "-Wl,--build-id=none")
_TIMEOUT_S: Final = 60.0
_PACKAGES: Final = "apt-get install gcc libc6-dev"


def compile_client(scratch: Path) -> bytes:
    """The program.

    Args:
        scratch: a directory of the caller's; the program is left there, too.

    Raises:
        HostError: no compiler or no static C library, or it failed.
    """
    source, target = Path(__file__).with_name("client") / "keyclient.c", scratch / "keyclient"
    compiler = next(filter(None, (shutil.which(name, path="/usr/bin:/usr/local/bin") for name in ("gcc", "clang"))), "")
    if not compiler:
        raise HostError("no C compiler for the key client", expected="gcc or clang", next_step=_PACKAGES)
    try:
        done = subprocess.run(
            [compiler, *_FLAGS, "-o", str(target), str(source)],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TMPDIR": os.fspath(scratch)},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{compiler} did not compile the key client", got=str(error)[:300]) from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()[:500]
        raise HostError(f"{compiler} did not compile the key client", got=said, next_step=_PACKAGES)
    return target.read_bytes()
