"""The cell's guest: the distribution's kernel, an initramfs with our agent and five modules, and, beside it, the
modules that are sent in when a superblock asks for them.

    cache/cell/lock               held while building
    cache/cell/current            name of the directory in use, replaced by rename
    cache/cell/<digest>/kernel    bzImage
    cache/cell/<digest>/initrd    newc cpio: /init (agent/), /m/order, /m/NAME.ko
    cache/cell/<digest>/m/NAME.ko on demand; their digests stand in the manifest
    cache/cell/<digest>/manifest.json   CellManifest, written last; <digest> is its digest

The agent is compiled on this host (gcc or clang, no C library, no headers): 13 KB, which no package has.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from casemate.engine import files
from casemate.engine.paths import own_directory
from casemate.errors import HostError
from casemate.image.cpio import character_device, directory, regular, write_cpio
from casemate.image.guest_modules import load_order, module_depends
from casemate.image.guest_source import KernelTree, kernel_tree

CMDLINE = "console=ttyS0 reboot=t panic=-1 quiet loglevel=3 cryptomgr.notests mitigations=off"
"""``panic=-1`` ``reboot=t`` (and QEMU's ``-no-reboot``): a panic ends the emulator. ``mitigations=off``: nothing in
this guest has a secret from anything else in it, and under TCG they cost a tenth of a second.
"""

FIRST = (("virtio_mmio", "the board's bus"), ("virtio_blk", "disks"), ("virtio_console", "the agent's port"))
ON_DEMAND = (
    *("xfs", "btrfs", "vfat", "exfat", "isofs", "udf", "squashfs", "erofs", "ntfs3", "f2fs", "ext4", "fuse"),
    *("nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8"),
    *("dm_mod", "dm_crypt", "dm_mirror", "dm_raid", "dm_snapshot", "dm_thin_pool", "dm_integrity"),
    *("linear", "raid0", "raid1", "raid10", "raid456", "md_mod"),
    *("xts", "cbc", "essiv", "ecb", "aes_generic", "sha256_generic", "sha512_generic", "serpent_generic"),
    *("twofish_generic", "crc32c_generic", "algif_skcipher", "algif_hash", "af_alg", "lzo_rle"),
)
"""What `volumes.py` may ask for. A module that this kernel has built in, or not at all, is not in the cache."""
_FOLDERS = (
    *("/kernel/drivers/virtio/", "/kernel/drivers/block/virtio", "/kernel/drivers/char/virtio_console"),
    *("/kernel/fs/", "/kernel/drivers/md/", "/kernel/crypto/", "/kernel/lib/", "/kernel/arch/x86/crypto/"),
    *("/kernel/drivers/cdrom/", "/kernel/block/"),
)
_RECIPE = 1
_AGENT_FILES = ("agent.c", "walk.c", "wire.h", "system.h")
_FLAGS = (
    *("-std=c11", "-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie"),
    *("-fno-asynchronous-unwind-tables", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-s"),
)
_COMPILE_TIMEOUT_S = 60.0
_MODULE_MAX_BYTES = 16 << 20


class CellManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a build is made of. ``modules``: name to (digest, names that must be loaded before)."""

    recipe: str
    kernel_sha256: str
    initrd_sha256: str
    kernel_release: str
    compiler: str
    builtin: tuple[str, ...]
    modules: dict[str, tuple[str, tuple[str, ...]]]
    sources: dict[str, str]


class CellGuest(msgspec.Struct, frozen=True):
    """One built guest. Whoever copies kernel and initrd compares the digests while copying."""

    directory: Path
    manifest: CellManifest

    @property
    def kernel(self) -> Path:
        """The bzImage."""
        return self.directory / "kernel"

    @property
    def initrd(self) -> Path:
        """The initramfs."""
        return self.directory / "initrd"

    @property
    def kernel_sha256(self) -> str:
        """Lower-case hex."""
        return self.manifest.kernel_sha256

    @property
    def initrd_sha256(self) -> str:
        """Lower-case hex."""
        return self.manifest.initrd_sha256

    @property
    def cmdline(self) -> str:
        """The kernel's arguments."""
        return CMDLINE

    def has(self, name: str) -> bool:
        """Whether this kernel knows the module or feature."""
        return name in self.manifest.modules or name in self.manifest.builtin

    def module(self, name: str) -> bytes:
        """A module's ELF bytes, checked against the manifest.

        Raises:
            HostError: the cache was changed.
        """
        digest = self.manifest.modules[name][0]
        try:
            data = files.read_bounded(str(self.directory / "m" / f"{name}.ko"), _MODULE_MAX_BYTES)
        except OSError as error:
            raise HostError(f"the cell's module {name}", got=str(error), next_step=_AGAIN) from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise HostError(f"the cell's module {name}", got="another content than was built", next_step=_AGAIN)
        return data

    def closure(self, name: str) -> tuple[str, ...]:
        """``name`` and what it needs, dependencies first; built-in parts are left out."""
        ordered: dict[str, None] = {}

        def visit(which: str) -> None:
            if which in self.manifest.modules and which not in ordered:
                for needed in self.manifest.modules[which][1]:
                    visit(needed)
                ordered[which] = None

        visit(name)
        return tuple(ordered)


_AGAIN = "remove the directory cell in the cache (casemate doctor names it): it is built again"


def build_cell_guest(cache_dir: Path, report: Callable[[str], None]) -> CellGuest:
    """The guest of this version of Casemate, built when the cache has none; one process builds, others wait.

    Raises:
        HostError: no kernel to be had, no compiler, or the directory cannot be written.
    """
    store = cache_dir / "cell"
    found = _load_current(store)
    if found is not None:
        return found
    own_directory(str(store))
    lock = files.take_lock(str(store / "lock"), wait=True)
    try:
        found = _load_current(store)
        if found is not None:
            return found
        for left in store.glob(".build-*"):
            files.remove_tree(str(left))
        with tempfile.TemporaryDirectory(prefix=".build-", dir=store) as scratch:
            return _build(store, Path(scratch), report)
    except OSError as error:
        raise HostError(f"cannot write the cell's cache {store}", got=str(error), next_step="free space") from error
    finally:
        if lock is not None:
            os.close(lock)


def compile_agent(scratch: Path) -> tuple[bytes, str]:
    """The agent's program and the name of the compiler that made it.

    Raises:
        HostError: no compiler, or it failed.
    """
    source = Path(__file__).with_name("agent")
    target = scratch / "agent"
    inputs = [str(source / name) for name in _AGENT_FILES if name.endswith(".c")]
    for compiler in ("gcc", "clang", "cc"):
        path = shutil.which(compiler, path="/usr/bin:/usr/local/bin:/bin")
        if path is None:
            continue
        command = [path, *_FLAGS, "-o", str(target), *inputs]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_COMPILE_TIMEOUT_S,
                check=False,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TMPDIR": str(scratch)},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise HostError(f"{path} did not compile the cell's agent", got=str(error)[:300]) from error
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip()[:500]
            raise HostError(f"{path} did not compile the cell's agent", got=said, next_step="apt-get install gcc")
        return target.read_bytes(), compiler
    raise HostError(
        "no C compiler for the cell's agent",
        expected="gcc or clang, once: the program is kept in the cache",
        next_step="apt-get install gcc",
    )


def assemble_initrd(agent: bytes, modules: tuple[tuple[str, bytes], ...]) -> bytes:
    """The initramfs; the same inputs give the same bytes."""
    entries = [
        *(directory(name) for name in ("dev", "proc", "sys", "run", "tmp", "v", "m")),
        character_device("dev/console", 5, 1),
        regular("init", agent, 0o755),
        regular("m/order", "".join(f"{name}\n" for name, _ in modules).encode()),
    ]
    entries += [regular(f"m/{name}.ko", elf) for name, elf in modules]
    return write_cpio(entries)


def _recipe() -> str:
    digest = hashlib.sha256(repr((_RECIPE, FIRST, ON_DEMAND, _FLAGS)).encode())
    for name in _AGENT_FILES:
        digest.update(Path(__file__).with_name("agent").joinpath(name).read_bytes())
    return digest.hexdigest()


def _build(store: Path, scratch: Path, report: Callable[[str], None]) -> CellGuest:
    tree = kernel_tree(scratch, report, _FOLDERS)
    report(f"assembling the cell's guest from kernel {tree.release}")
    agent, compiler = compile_agent(scratch)
    first = load_order(tree.available, tree.builtin, tree.read_elf, FIRST, ())
    initrd = assemble_initrd(agent, first)
    fresh = scratch / "guest"
    (fresh / "m").mkdir(mode=0o700, parents=True)
    fresh.chmod(0o700)
    loaded = frozenset(name for name, _ in first)
    manifest = CellManifest(
        recipe=_recipe(),
        kernel_sha256=hashlib.sha256(tree.image).hexdigest(),
        initrd_sha256=hashlib.sha256(initrd).hexdigest(),
        kernel_release=tree.release,
        compiler=compiler,
        builtin=tuple(sorted({*ON_DEMAND} & tree.builtin)),
        modules=_write_modules(tree, fresh / "m", loaded),
        sources={package.name: package.version for package in tree.packages},
    )
    files.write_atomic(str(fresh / "kernel"), tree.image)
    files.write_atomic(str(fresh / "initrd"), initrd)
    encoded = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"
    files.write_atomic(str(fresh / "manifest.json"), encoded)
    name = hashlib.sha256(encoded).hexdigest()[:32]
    if (store / name).exists():  # damaged, or it would have been found
        (store / name).rename(scratch / "damaged")
    fresh.rename(store / name)
    files.write_atomic(str(store / "current"), name.encode())
    for path in store.iterdir():
        if path.is_dir() and path.name != name and not path.name.startswith("."):
            files.remove_tree(str(path))
    found = _load_current(store)
    if found is None:
        raise RuntimeError(f"the cell's guest just built in {store} does not load")
    return found


def _write_modules(tree: KernelTree, target: Path, loaded: frozenset[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    modules: dict[str, tuple[str, tuple[str, ...]]] = {}

    def visit(name: str) -> None:
        if name in modules or name in loaded or name in tree.builtin or name not in tree.available:
            return
        elf = tree.read_elf(tree.available[name])
        needed = tuple(which for which in module_depends(elf) if which not in tree.builtin and which not in loaded)
        for which in needed:
            visit(which)
        if all(which in modules for which in needed):
            files.write_atomic(str(target / f"{name}.ko"), elf)
            modules[name] = (hashlib.sha256(elf).hexdigest(), needed)

    for name in ON_DEMAND:
        visit(name)
    return modules


def _load_current(store: Path) -> CellGuest | None:
    """The directory in use, if it is sound and made by this very version; digests of the files are checked at use."""
    try:
        name = files.read_bounded(str(store / "current"), 64).decode("ascii").strip()
        if len(name) != 32 or set(name) - set("0123456789abcdef"):
            return None
        place = store / name
        status = place.lstat()
        raw = files.read_bounded(str(place / "manifest.json"), 1 << 20)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022 or hashlib.sha256(raw).hexdigest()[:32] != name:
            return None
        manifest = msgspec.json.decode(raw, type=CellManifest)
        for part in ("kernel", "initrd"):
            (place / part).lstat()
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    return CellGuest(place, manifest) if manifest.recipe == _recipe() else None
