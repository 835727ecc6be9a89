"""Where the built-in guest's kernel and busybox come from: installed packages when they are intact, signed downloads
otherwise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from casemate.errors import HostError
from casemate.image import packages
from casemate.image.guest_modules import decompress_module, load_order, module_name
from casemate.image.packages import Package

_META_PACKAGES = ("linux-image-cloud-amd64", "linux-image-amd64")
_IMAGE_NAME = re.compile(r"linux-image-(?P<release>[0-9][a-z0-9.+~-]*-(?:cloud-)?amd64)$")
# From Debian 14 the files of one kernel are spread over several packages.
_KERNEL_PARTS = re.compile(r"linux-(image|binary|modules|base)-[0-9]")
# The drivers that the built-in guest takes and what they depend on live here.
_DRIVERS = (
    "/kernel/drivers/virtio/",
    "/kernel/drivers/block/virtio",
    "/kernel/drivers/char/",
    "/kernel/drivers/net/virtio_net",
    "/kernel/drivers/net/net_failover",
    "/kernel/net/core/failover",
    "/kernel/drivers/input/evdev",
    "/kernel/drivers/acpi/button",
    "/kernel/drivers/misc/pvpanic/",
    "/kernel/lib/",
)
_BUSYBOX_PATHS = ("bin/busybox", "usr/bin/busybox")
_PT_INTERP = 3
_EM_X86_64 = 62


@dataclass(frozen=True, slots=True)
class KernelTree:
    """A kernel package, its modules still unread.

    ``available``: module name to the path that ``read_elf`` takes; ``builtin``: names compiled into the kernel.
    """

    release: str
    image: bytes
    available: dict[str, str]
    builtin: frozenset[str]
    read_elf: Callable[[str], bytes]
    packages: tuple[Package, ...]


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """``image``: bzImage bytes; ``modules``: (name, ELF bytes) in load order; ``packages``: where they came from."""

    release: str
    image: bytes
    modules: tuple[tuple[str, bytes], ...]
    packages: tuple[Package, ...]


def kernel_files(scratch: Path, report: Callable[[str], None]) -> KernelFiles:
    """The built-in guest's kernel and the modules that it loads; see `kernel_tree`."""
    tree = kernel_tree(scratch, report, _DRIVERS)
    order = load_order(tree.available, tree.builtin, tree.read_elf)
    return KernelFiles(tree.release, tree.image, order, tree.packages)


def kernel_tree(
    scratch: Path,
    report: Callable[[str], None],
    folders: Sequence[str],
    metas: Sequence[str] = _META_PACKAGES,
) -> KernelTree:
    """Return the cloud kernel (or, failing that, the plain one): installed and intact, or downloaded into ``scratch``.

    Args:
        folders: parts of the paths of the modules to take out of a downloaded package; a plain kernel has 300 MB.
        metas: the packages to try, in this order.

    Raises:
        HostError: not on x86-64, or no kernel to be had; carries the reason of each attempt.
    """
    machine = os.uname().machine
    if machine != "x86_64":
        raise HostError("the built-in guest", got=f"a {machine} host", expected="x86_64")
    reasons: list[str] = []
    next_step = ""
    for meta in metas:
        try:
            return _installed_kernel(meta, report) or _downloaded_kernel(meta, scratch, report, folders)
        except HostError as error:
            reasons.append(f"{meta}: {error.what}" + (f" ({error.got})" if error.got else ""))
            next_step = next_step or error.next_step
    raise HostError(
        "no kernel for the built-in guest", got="; ".join(reasons), next_step=next_step or "sudo apt-get update"
    )


def busybox_bytes(scratch: Path, report: Callable[[str], None]) -> tuple[bytes, Package]:
    """Return a static busybox: the installed package's file when it is intact, a download otherwise.

    Raises:
        HostError: neither is to be had.
    """
    version = packages.installed_version("busybox-static")
    if version is not None and packages.is_intact("busybox-static"):
        for path in _BUSYBOX_PATHS:
            try:
                data = Path("/", path).read_bytes()
            except OSError:
                continue
            if is_static_executable(data):
                return data, Package("busybox-static", version)
    package = packages.download("busybox-static", scratch, report)
    for path, data in packages.read_members(package, lambda name: name in _BUSYBOX_PATHS):
        if is_static_executable(data):
            return data, package
        raise HostError(f"package busybox-static: {path}", got="no static x86-64 program")
    raise HostError("package busybox-static", got="no busybox in it")


def is_static_executable(data: bytes) -> bool:
    """Whether ``data`` is an x86-64 ELF program that needs no loader (ELF-64, little endian, no PT_INTERP)."""
    if len(data) < 64 or data[:6] != b"\x7fELF\x02\x01" or int.from_bytes(data[18:20], "little") != _EM_X86_64:
        return False
    table = int.from_bytes(data[32:40], "little")
    entry_bytes = int.from_bytes(data[54:56], "little")
    count = int.from_bytes(data[56:58], "little")
    if entry_bytes != 56 or count == 0 or table + entry_bytes * count > len(data):
        return False
    kinds = (
        int.from_bytes(data[at : at + 4], "little") for at in range(table, table + entry_bytes * count, entry_bytes)
    )
    return _PT_INTERP not in kinds


def _installed_kernel(meta: str, report: Callable[[str], None]) -> KernelTree | None:
    flavour = "cloud-amd64" if "cloud" in meta else "amd64"
    found = [
        (match["release"], package)
        for package in packages.installed_matching("linux-image-[0-9]*")
        if (match := _IMAGE_NAME.match(package.name))
        and match["release"].endswith(flavour)
        and ("cloud" in match["release"]) == ("cloud" in meta)
    ]
    for release, package in sorted(found, key=lambda item: _release_key(item[0]), reverse=True):
        image = Path("/boot", f"vmlinuz-{release}")
        modules = Path("/lib/modules", release)
        parts = [
            package,
            *packages.installed_matching(f"linux-modules-{release}*"),
            *packages.installed_matching(f"linux-binary-{release}*"),
        ]
        if not os.access(image, os.R_OK) or not all(packages.is_intact(part.name) for part in parts):
            continue
        report(f"using the installed kernel package {package.name}")
        available = {name: str(path) for path in sorted(modules.rglob("*.ko*")) if (name := module_name(str(path)))}
        builtin = _builtin_names((modules / "modules.builtin").read_text())
        return KernelTree(
            release,
            image.read_bytes(),
            available,
            builtin,
            lambda path: decompress_module(path, Path(path).read_bytes()),
            tuple(parts),
        )
    return None


def _downloaded_kernel(meta: str, scratch: Path, report: Callable[[str], None], folders: Sequence[str]) -> KernelTree:
    names = [name for name in packages.dependencies(meta) if _IMAGE_NAME.match(name)]
    match = _IMAGE_NAME.match(names[0]) if names else None
    if match is None:
        raise HostError(f"package {meta}", got="no dependency on a kernel image")
    release = match["release"]
    parts = [
        names[0],
        *(name for name in packages.dependencies(names[0]) if _KERNEL_PARTS.match(name) and release in name),
    ]
    fetched = tuple(packages.download(name, scratch, report) for name in parts)
    report(f"unpacking kernel {release}")
    image = b""
    builtin: frozenset[str] = frozenset()
    files: dict[str, bytes] = {}
    for package in fetched:
        for path, data in packages.read_members(package, lambda path: _is_kernel_file(path, folders)):
            if path == f"boot/vmlinuz-{release}":
                image = data
            elif path.endswith("/modules.builtin"):
                builtin = _builtin_names(data.decode("ascii", "replace"))
            else:
                files[path] = data
    if not image or not builtin:
        raise HostError(f"package {names[0]}", got=f"no {'kernel image' if not image else 'modules.builtin'} in it")
    available = {name: path for path in sorted(files) if (name := module_name(path))}
    return KernelTree(release, image, available, builtin, lambda path: decompress_module(path, files[path]), fetched)


def _is_kernel_file(path: str, folders: Sequence[str]) -> bool:
    below = path.removeprefix("usr/")
    if below.startswith("lib/modules/"):
        wanted = any(part in below for part in folders) or "/modules.builtin" in below
        return wanted and not below.endswith(".modinfo")
    return below.startswith("boot/vmlinuz-")


def _builtin_names(text: str) -> frozenset[str]:
    return frozenset(name for line in text.splitlines() if (name := module_name(line.strip())))


def _release_key(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release))
