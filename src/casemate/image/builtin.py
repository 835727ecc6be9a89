"""The built-in guest: the distribution's kernel, busybox-static and an init of ours, built from signed packages and
kept in the cache.

Layout below a cache directory (0700, the caller's own or root's)::

    guest/lock               flock: held while building and while replacing ``current``
    guest/current            name of the directory in use, replaced by rename
    guest/<digest>/kernel    bzImage
    guest/<digest>/initrd    newc cpio, uncompressed: with 2.7 MB, TCG boots it as fast as gzip or lz4
    guest/<digest>/manifest.json   BuiltinManifest, written last

``<digest>`` covers kernel, initrd and command line: the same packages and the same Casemate give the same directory,
byte for byte. A directory is
complete when it has its name: it is built under a temporary name in the same file system and renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from casemate.errors import HostError
from casemate.image import guest_modules
from casemate.image.guest_reseed import reseed_program

CMDLINE = "console=ttyS0 reboot=t panic=-1 quiet loglevel=3 cryptomgr.notests"
"""``reboot=t`` ``panic=-1``: a reset or a panic ends the emulator at once; ``cryptomgr.notests`` saves a quarter of a
second under TCG.
"""

READY_MARKER = "casemate-guest: ready"
"""The line that the guest's init prints when it is up."""

_RECIPE_VERSION = 1
_MAX_MANIFEST_BYTES = 64 << 10
_KEEP_BUILDS = 2


class BuiltinManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a build is made of. ``recipe``: digest of everything of Casemate's own that went in; ``sources``: package
    to version.
    """

    recipe: str
    cmdline: str
    kernel_sha256: str
    kernel_bytes: int
    initrd_sha256: str
    initrd_bytes: int
    kernel_release: str
    sources: dict[str, str]


class BuiltinGuest(msgspec.Struct, frozen=True):
    """One built guest. Digests are lower-case hex SHA-256: whoever copies the files compares them while copying."""

    kernel: Path
    initrd: Path
    cmdline: str
    kernel_sha256: str
    initrd_sha256: str
    kernel_release: str
    sources: dict[str, str]


def find_builtin(cache_dirs: Sequence[Path]) -> BuiltinGuest | None:
    """Return the current build of the first cache directory that has a sound one made by this version of Casemate.

    Sound: owned by the caller or root, writable by nobody else, files of the recorded sizes. The digests are not
    computed here.
    """
    for cache_dir in cache_dirs:
        guest = _load_current(cache_dir / "guest")
        if guest is not None:
            return guest
    return None


def verify_builtin(guest: BuiltinGuest) -> bool:
    """Whether both files have the recorded digests; reads about 17 MB."""
    for path, expected in ((guest.kernel, guest.kernel_sha256), (guest.initrd, guest.initrd_sha256)):
        try:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return False
        except OSError:
            return False
    return True


def build_builtin(cache_dir: Path, report: Callable[[str], None], *, refresh: bool = False) -> BuiltinGuest:
    """Build the guest in ``cache_dir`` and make it current; a sound existing build is returned unless ``refresh``.

    Safe to call from several processes at once: one builds, the others wait and take its result.

    Args:
        cache_dir: created with mode 0700 when missing.
        report: called with one line per long step.

    Raises:
        HostError: no kernel or busybox to be had, or the directory cannot be written.
    """
    store = cache_dir / "guest"
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        store.mkdir(mode=0o700, exist_ok=True)
        with _locked(store):
            existing = None if refresh else _load_current(store)
            if existing is not None and verify_builtin(existing):
                return existing
            import tempfile

            with tempfile.TemporaryDirectory(prefix=".build-", dir=store) as scratch:
                return _build(store, Path(scratch), report)
    except OSError as error:
        raise HostError(
            f"cannot write the guest cache {store}", got=str(error), next_step="free space, or set XDG_CACHE_HOME"
        ) from error


def assemble_initrd(busybox: bytes, modules: Sequence[tuple[str, bytes]], init: bytes) -> bytes:
    """Return the initramfs: deterministic, the same inputs give the same bytes."""
    from casemate.image.cpio import character_device, directory, regular, symlink, write_cpio

    entries = [
        directory("dev"),
        character_device("dev/console", 5, 1),
        directory("proc"),
        directory("sys"),
        directory("run"),
        directory("root", 0o700),
        directory("tmp", 0o1777),
        regular("init", init, 0o755),
        regular("bin/busybox", busybox, 0o755),
        symlink("bin/sh", "busybox"),
        regular("etc/profile", _PROFILE.encode()),
        regular("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
        regular("etc/group", b"root:x:0:\n"),
        regular("sbin/reseed", reseed_program(), 0o755),
        regular("etc/udhcpc.sh", _UDHCPC.encode(), 0o755),
        regular("etc/acpi/PWRF/00000080", _POWER_BUTTON.encode(), 0o755),
        regular("lib/modules/order", "".join(f"{name}\n" for name, _ in modules).encode()),
    ]
    entries += [regular(f"lib/modules/{name}.ko", elf) for name, elf in modules]
    return write_cpio(entries)


# The interactive shell's own: pid 1 is a shell that waits, so the plain commands would signal in vain.
_PROFILE = """\
PS1='casemate-guest:\\w# '
poweroff() { sync; /bin/busybox poweroff -f; }
reboot() { sync; /bin/busybox reboot -f; }
halt() { poweroff; }
"""

_UDHCPC = """\
#!/bin/busybox sh
bb=/bin/busybox
case "$1" in
    deconfig) $bb ip addr flush dev "$interface" ;;
    bound|renew)
        $bb ip addr replace "$ip/${mask:-24}" dev "$interface"
        for gateway in $router; do $bb ip route replace default via "$gateway" dev "$interface" onlink; break; done
        for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf ;;
esac
"""

_POWER_BUTTON = """\
#!/bin/busybox sh
echo "casemate-guest: power button" >/dev/console
/bin/busybox sync
exec /bin/busybox poweroff -f
"""


def _init_script() -> bytes:
    return Path(__file__).with_name("guest_init").read_bytes()


def _recipe() -> str:
    parts = (
        str(_RECIPE_VERSION),
        CMDLINE,
        _PROFILE,
        _UDHCPC,
        _POWER_BUTTON,
        repr(guest_modules.REQUIRED + guest_modules.OPTIONAL),
        reseed_program().hex(),
    )
    return hashlib.sha256("\0".join(parts).encode() + b"\0" + _init_script()).hexdigest()


def _build(store: Path, scratch: Path, report: Callable[[str], None]) -> BuiltinGuest:
    from casemate.image.guest_source import busybox_bytes, kernel_files

    kernel = kernel_files(scratch, report)
    busybox, busybox_source = busybox_bytes(scratch, report)
    report(f"assembling the guest from kernel {kernel.release} and busybox {busybox_source.version}")
    initrd = assemble_initrd(busybox, kernel.modules, _init_script())
    manifest = BuiltinManifest(
        recipe=_recipe(),
        cmdline=CMDLINE,
        kernel_sha256=hashlib.sha256(kernel.image).hexdigest(),
        kernel_bytes=len(kernel.image),
        initrd_sha256=hashlib.sha256(initrd).hexdigest(),
        initrd_bytes=len(initrd),
        kernel_release=kernel.release,
        sources={package.name: package.version for package in (*kernel.packages, busybox_source)},
    )
    encoded = msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"
    name = hashlib.sha256(encoded).hexdigest()[:32]
    target = store / name
    if (same := _load_build(store, name)) is None or not verify_builtin(same):
        fresh = scratch / "guest"
        fresh.mkdir(mode=0o700)
        _write(fresh / "kernel", kernel.image)
        _write(fresh / "initrd", initrd)
        _write(fresh / "manifest.json", encoded)
        _sync_directory(fresh)
        if target.exists():
            target.rename(scratch / "damaged")
        fresh.rename(target)
    _write(scratch / "current", name.encode() + b"\n")
    (scratch / "current").rename(store / "current")
    _sync_directory(store)
    _drop_old_builds(store, keep=target)
    guest = _load_current(store)
    if guest is None:
        raise RuntimeError(f"the guest just built in {target} does not load")
    return guest


def _load_current(store: Path) -> BuiltinGuest | None:
    name = _read_owned(store / "current", 256)
    if name is None:
        return None
    base = name.decode("ascii", "replace").strip()
    if len(base) != 32 or set(base) - set("0123456789abcdef"):
        return None
    return _load_build(store, base)


def _load_build(store: Path, base: str) -> BuiltinGuest | None:
    raw = _read_owned(store / base / "manifest.json", _MAX_MANIFEST_BYTES)
    if raw is None or hashlib.sha256(raw).hexdigest()[:32] != base:
        return None
    try:
        manifest = msgspec.json.decode(raw, type=BuiltinManifest)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    kernel, initrd = store / base / "kernel", store / base / "initrd"
    sizes = _owned_size(kernel), _owned_size(initrd)
    if manifest.recipe != _recipe() or sizes != (manifest.kernel_bytes, manifest.initrd_bytes):
        return None
    return BuiltinGuest(
        kernel=kernel,
        initrd=initrd,
        cmdline=manifest.cmdline,
        kernel_sha256=manifest.kernel_sha256,
        initrd_sha256=manifest.initrd_sha256,
        kernel_release=manifest.kernel_release,
        sources=manifest.sources,
    )


def _is_ours(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def _owned_size(path: Path) -> int | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size if _is_ours(status) else None


def _read_owned(path: Path, limit: int) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not _is_ours(status) or status.st_size > limit:
            return None
        return file.read(limit)


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    descriptor = os.open(store / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _drop_leftovers(store)
        yield
    finally:
        os.close(descriptor)


def _drop_leftovers(store: Path) -> None:
    # Under the lock nobody else builds: scratch directories are those of builders that were killed.
    for path in store.glob(".build-*"):
        _remove_tree(path)


def _drop_old_builds(store: Path, *, keep: Path) -> None:
    # One older build stays: a launch that has just found it may still be copying its files.
    others = [path for path in store.iterdir() if path.is_dir() and path != keep and not path.name.startswith(".")]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[_KEEP_BUILDS - 1 :]:
        _remove_tree(path)


def _remove_tree(path: Path) -> None:
    """Remove a directory of the store; what cannot be removed stays for the next build."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
