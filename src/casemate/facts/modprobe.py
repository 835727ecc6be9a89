"""Kernel modules: which are loaded, which could be, and what modprobe's configuration says of them (modprobe.d(5))."""

from __future__ import annotations

import re
import shlex
from functools import lru_cache
from typing import Final

import msgspec

from casemate.facts.fact import Unknown
from casemate.facts.kernel_cmdline import Cmdline, read_cmdline
from casemate.facts.root import Root
from casemate.facts.sysfiles import is_there, line, names, names_or_none

FOLDERS: Final = (
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
)
_RELEASE: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+~-]{0,127}")
_NOTHING: Final = re.compile(r"(?:/usr)?/s?bin/(?:false|true)|:|exit \d+")
_INDEX_BYTES: Final = 8 << 20
_FILE_BYTES: Final = 1 << 18
_FILES_MAX: Final = 512


class ModprobeConfig(msgspec.Struct, frozen=True):
    """Names with underscores. ``blocked``: blacklisted, or installed by a command that does nothing. ``options``:
    (module, option, value) in order."""

    blocked: frozenset[str]
    options: tuple[tuple[str, str, str], ...]

    def option(self, module: str, name: str) -> str | None:
        """The last value of an option; None when not set."""
        return next((value for m, n, value in reversed(self.options) if (m, n) == (module, name)), None)


@lru_cache(maxsize=512)
def parse_modprobe(text: str) -> ModprobeConfig:
    """One file of modprobe.d; commands that do not matter here are skipped."""
    blocked: set[str] = set()
    options: list[tuple[str, str, str]] = []
    for row in text.replace("\\\n", " ").split("\n"):
        words = row.split()
        if len(words) < 2 or words[0].startswith("#"):
            continue
        module = words[1].replace("-", "_")
        if words[0] == "blacklist" or (words[0] == "install" and _NOTHING.fullmatch(" ".join(words[2:]))):
            blocked.add(module)
        elif words[0] == "options":
            options += [(module, *_option(word)) for word in _split(" ".join(words[2:]))]
    return ModprobeConfig(frozenset(blocked), tuple(options))


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _option(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    # A switch without a value is on.
    return name.replace("-", "_"), value if equals else "Y"


def read_modprobe(root: Root) -> ModprobeConfig | Unknown:
    """All folders; a file hides those of its name in later folders. The command line comes last."""
    files: dict[str, str] = {}
    for folder in FOLDERS:
        there = names(root, folder)
        if isinstance(there, Unknown):
            if is_there(root, folder) is False:
                continue
            return there
        for name in there:
            if name.endswith(".conf"):
                files.setdefault(name, f"{folder}/{name}")
    if len(files) > _FILES_MAX:
        return Unknown(f"modprobe.d: {len(files)} files")
    blocked: set[str] = set()
    options: list[tuple[str, str, str]] = []
    for name in sorted(files):
        try:
            part = parse_modprobe(root.read_text(files[name], _FILE_BYTES))
        except OSError as error:
            return Unknown(f"{files[name]}: {error.strerror or error}")
        blocked |= part.blocked
        options += part.options
    cmdline = read_cmdline(root)
    if isinstance(cmdline, Cmdline):
        options += _from_cmdline(cmdline)
        for name, value in cmdline.words:
            if name in ("module_blacklist", "modprobe.blacklist"):
                blocked |= {module.replace("-", "_") for module in value.split(",")}
    return ModprobeConfig(frozenset(blocked), tuple(options))


def _from_cmdline(cmdline: Cmdline) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    for name, value in cmdline.words:
        module, dot, option = name.partition(".")
        if dot:
            found.append((module, option, value or "Y"))
    return found


def loaded_modules(root: Root) -> frozenset[str] | Unknown:
    """Modules that are loaded, and built-in ones as far as they have parameters (both have a folder in /sys/module)."""
    there = names(root, "/sys/module")
    return there if isinstance(there, Unknown) else frozenset(there)


def loadable(root: Root, wanted: tuple[str, ...], config: ModprobeConfig | Unknown) -> tuple[str, ...] | Unknown:
    """Those of ``wanted`` that are built in, or that a request of the kernel or of a user would load."""
    if is_there(root, "/proc/modules") is False and is_there(root, "/proc/sys/kernel/osrelease") is True:
        # Without CONFIG_MODULES there is neither this file nor a way to load anything.
        return ()
    release = line(root, "/proc/sys/kernel/osrelease")
    if isinstance(release, Unknown):
        return release
    if not _RELEASE.fullmatch(release):
        return Unknown(f"/proc/sys/kernel/osrelease: {release[:80]!r} is no name of a folder")
    base = next(
        (b for b in (f"/lib/modules/{release}", f"/usr/lib/modules/{release}") if is_there(root, b) is True), ""
    )
    if not base:
        return Unknown(f"/lib/modules/{release}: not there, so what could be loaded is not known")
    built_in = _indexed(root, f"{base}/modules.builtin")
    if isinstance(built_in, Unknown):
        return built_in
    found = [f"{name} (built in)" for name in wanted if name in built_in]
    if line(root, "/proc/sys/kernel/modules_disabled") == "1":
        return tuple(found)
    on_disk = _indexed(root, f"{base}/modules.dep")
    if isinstance(on_disk, Unknown):
        return on_disk
    if isinstance(config, Unknown):
        return config
    return (*found, *(name for name in wanted if name in on_disk and name not in config.blocked))


def _indexed(root: Root, path: str) -> frozenset[str] | Unknown:
    """Module names of modules.dep or modules.builtin: ``kernel/drivers/vhost/vhost_net.ko.xz: …``."""
    try:
        text = root.read_text(path, _INDEX_BYTES)
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")
    return frozenset(
        row.partition(":")[0].rpartition("/")[2].partition(".ko")[0].replace("-", "_")
        for row in text.split("\n")
        if row
    )


def taints(root: Root, modules: tuple[str, ...]) -> tuple[str, ...] | Unknown:
    """Modules that taint the kernel, with the letters (Documentation/admin-guide/tainted-kernels): ``vboxdrv: OE``."""
    found: list[str] = []
    for name in modules:
        base = f"/sys/module/{name}"
        if names_or_none(root, base, "/sys/module") == ():
            continue
        if is_there(root, f"{base}/taint") is False:
            # Loaded modules have the file; what is built in cannot taint by itself.
            continue
        letters = line(root, f"{base}/taint")
        if isinstance(letters, Unknown):
            return letters
        if letters:
            found.append(f"{name}: {letters}")
    return tuple(found)
