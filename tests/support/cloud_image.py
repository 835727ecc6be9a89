"""A Debian 12 with cloud-init: the root file system of `debian_image` and the package cloud-init, for one test.

Kept beside the other image, under a key of its own; about a minute to build, and built only when that test is asked
for. cloud-init is the distribution's, unchanged: which data source it may use is decided from outside, by the seed and
the kernel's command line.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.support import debian_image as base

from casemate.engine.paths import default_paths

_PACKAGES = ("cloud-init", "python3-minimal", "netplan.io")
_ROOT_MIB = 640


class CloudImage(NamedTuple):
    """Files of one build; nobody may write to them."""

    kernel: Path
    initrd: Path
    root: Path


def cloud_image() -> CloudImage:
    """The image, built when it is not in the cache.

    Raises:
        RuntimeError: a program failed; the message ends with its last words.
    """
    store = Path(default_paths().cache) / "tests"
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = hashlib.sha256(Path(__file__).read_bytes() + Path(base.__file__).read_bytes()).hexdigest()[:16]
    place = store / f"cloud-{key}"
    with base._locked(store / "cloud-lock"):
        if not place.is_dir():
            with tempfile.TemporaryDirectory(dir=store, prefix="cloud-building-") as work:
                build = Path(work) / "cloud"
                build.mkdir()
                _bootstrap(build)
                build.rename(place)
        os.utime(place)
    return CloudImage(place / "kernel", place / "initrd", place / "root.img")


def _bootstrap(place: Path) -> None:
    command = ["mmdebstrap", "--variant=minbase", "--mode=auto", f"--include={','.join((*base._PACKAGES, *_PACKAGES))}"]
    command += ["--aptopt=APT::Install-Recommends false", "--aptopt=Acquire::Retries 3"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in base._LEFT_OUT]
    early = base._write_files(base._EARLY_FILES)
    command += [f"--setup-hook={early}", f"--customize-hook={base._write_files(base._FILES)}"]
    command.append(f"--customize-hook={base._configure()}")
    command.append(f"--customize-hook={base._fill_image().replace(f'{base._ROOT_MIB}M', f'{_ROOT_MIB}M')}")
    wanted = {"/root.img": "root.img", "/boot/casemate-kernel": "kernel", "/boot/casemate-initrd": "initrd"}
    for inside, outside in wanted.items():
        command.append(f"--customize-hook=download {inside} {place / outside}")
    base._run([*command, base.SUITE, "/dev/null", *base._archives()], timeout_s=base._BUILD_TIMEOUT_S)


if __name__ == "__main__":
    print(cloud_image())
