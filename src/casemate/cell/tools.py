"""The programs that open RAID, volume groups and encrypted volumes inside a cell: out of the distribution's signed
packages, with the libraries that they need and nothing else.

    cache/cell-tools/PACKAGE-DIGEST.cpio    newc: the program and its closure, at the places where the loader looks;
                                            DIGEST is that of the file and checked before use

An installed package whose files dpkg finds intact is used as it is; otherwise the package and its libraries are
downloaded and unpacked in memory, never installed. Only a cell that needs them asks for them.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from casemate.engine import files
from casemate.engine.paths import own_directory
from casemate.errors import HostError, ImageError
from casemate.facts.closure import needed_closure
from casemate.facts.root import Root
from casemate.image import packages
from casemate.image.cpio import read_cpio, regular, write_cpio

PROGRAMS = {
    "mdadm": "sbin/mdadm",
    "lvm2": "sbin/lvm",
    "cryptsetup-bin": "sbin/cryptsetup",
    "ntfs-3g": "bin/ntfs-3g",
}
"""Package to the program that is taken out of it."""
_PACKAGES_MAX = 60
_CPIO_MAX_BYTES = 64 << 20


def tool_files(
    package: str, cache_dir: Path, report: Callable[[str], None] = lambda _: None
) -> tuple[tuple[str, bytes], ...]:
    """Absolute path in the guest and content of a package's program and of all that it loads.

    Raises:
        HostError: neither installed nor to be had from the distribution.
    """
    store = cache_dir / "cell-tools"
    own_directory(str(store))
    found = _cached(store, package)
    if found is not None:
        return found
    report(f"taking {PROGRAMS[package].rpartition('/')[2]} out of its package")
    made = _from_host(package) or _from_packages(package, report)
    data = write_cpio([regular(path.lstrip("/"), content, 0o755) for path, content in made])
    digest = hashlib.sha256(data).hexdigest()
    files.write_atomic(str(store / f"{package}-{digest}.cpio"), data)
    return made


def _cached(store: Path, package: str) -> tuple[tuple[str, bytes], ...] | None:
    for path in sorted(store.glob(f"{package}-*.cpio")):
        digest = path.name[len(package) + 1 : -len(".cpio")]
        try:
            data = files.read_bounded(str(path), _CPIO_MAX_BYTES)
            if hashlib.sha256(data).hexdigest() == digest:
                return tuple((f"/{item.name}", item.data) for item in read_cpio(data) if stat.S_ISREG(item.mode))
        except (OSError, ImageError):
            pass
        files.unlink_if_there(str(path))
    return None


def _closure_in(tree: Path, program: str) -> tuple[tuple[str, bytes], ...]:
    """The program first, then what it loads, read out of ``tree``."""
    root = Root(tree)
    placed = needed_closure(f"/{program}", root)
    found = {f"/{program}": root.read_bytes(f"/{program}", _CPIO_MAX_BYTES)}
    for item in placed:
        found[item.target] = root.read_bytes(item.source, _CPIO_MAX_BYTES)
    return tuple(found.items())


def _from_host(package: str) -> tuple[tuple[str, bytes], ...] | None:
    if packages.installed_version(package) is None or not packages.is_intact(package):
        return None
    for prefix in ("", "usr/"):
        program = prefix + PROGRAMS[package]
        if os.access(f"/{program}", os.R_OK):
            found = _closure_in(Path("/"), program)
            return ((f"/{PROGRAMS[package]}", found[0][1]), *found[1:])
    return None


def _from_packages(package: str, report: Callable[[str], None]) -> tuple[tuple[str, bytes], ...]:
    """Unpack the package, then what it depends on, level by level, until the loader would find everything."""
    with tempfile.TemporaryDirectory(prefix="casemate-tools-") as name:
        scratch = Path(name)
        tree = scratch / "tree"
        tree.mkdir()
        waiting, seen = [package], {package}
        while waiting and len(seen) <= _PACKAGES_MAX:
            level, waiting = waiting, []
            for which in level:
                if _unpack(which, scratch, tree, report) or which == package:
                    fresh = [name for name in packages.dependencies(which) if name.startswith("lib")]
                    waiting += [name for name in dict.fromkeys(fresh) if name not in seen]
                    seen.update(waiting)
            found = _try_closure(tree, PROGRAMS[package])
            if found is not None:
                return found
        raise HostError(
            f"the programs of package {package} for the cell",
            got="libraries that its dependencies do not bring",
            next_step=f"apt-get install {package}",
        )


def _unpack(package: str, scratch: Path, tree: Path, report: Callable[[str], None]) -> bool:
    """False for what cannot be had: a virtual package, whose provider comes through another one's dependencies."""
    try:
        fetched = packages.download(package, scratch, report)
    except HostError:
        if package in PROGRAMS:
            raise
        return False
    status, said = packages.run_program(("dpkg-deb", "-x", str(fetched.path), str(tree)))
    if status:
        raise HostError(f"package {package} cannot be unpacked", got=said.strip()[:300])
    for part in ("bin", "lib", "lib64", "sbin"):  # newer packages have everything below /usr
        if not (tree / part).exists() and (tree / "usr" / part).exists():
            (tree / part).symlink_to(f"usr/{part}")
    return True


def _try_closure(tree: Path, program: str) -> tuple[tuple[str, bytes], ...] | None:
    for prefix in ("", "usr/"):
        if (tree / prefix / program).exists():
            try:
                found = _closure_in(tree, prefix + program)
            except HostError:
                continue  # a library is still missing
            return ((f"/{program}", found[0][1]), *found[1:])
    return None
