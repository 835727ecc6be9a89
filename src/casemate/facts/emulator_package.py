"""Whose package a binary belongs to, and whether it still is the file that the package brought; QEMU's bridge helper.

From dpkg's own database (``/var/lib/dpkg/info``): nothing is run, so a captured tree can be asked too. The digests are
MD5, as dpkg records them: good enough to see a replaced file, and as trustworthy as the database beside them.
"""

from __future__ import annotations

import errno
import os
import re
import stat as stat_module
from collections.abc import Callable
from typing import Final

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.root import Root

INFO: Final = "/var/lib/dpkg/info"
_DIVERSIONS: Final = "/var/lib/dpkg/diversions"
_PACKAGES_MAX: Final = 65_536
_LIST_BYTES: Final = 32 << 20
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.+-]*(?::[a-z0-9-]+)?")

HELPERS: Final = (
    "/usr/lib/qemu/qemu-bridge-helper",
    "/usr/libexec/qemu-bridge-helper",
    "/usr/local/libexec/qemu-bridge-helper",
)
_ACLS: Final = ("/etc/qemu/bridge.conf", "/etc/qemu-kvm/bridge.conf", "/usr/local/etc/qemu/bridge.conf")
_ACL_BYTES: Final = 1 << 16
_ACL_FILES: Final = 64
_DATABASE_BYTES: Final = 512 << 20


def package_facts(root: Root, path: str, md5: Callable[[], str]) -> Facts:
    """``bin.package`` (``none`` when no package has it) and ``bin.digest`` (``as packaged``, ``changed``).

    Args:
        path: without symbolic links, inside the tree.
        md5: digest of the file, as hexadecimal digits; OSError when it cannot be read.
    """
    package = _owner(root, path)
    if not isinstance(package, Known):
        return {"bin.package": package, "bin.digest": package}
    if package.value == "none":
        return {"bin.package": package, "bin.digest": Unknown("no package holds a digest of it")}
    return {"bin.package": package, "bin.digest": _digest(root, path, str(package.value), md5)}


def _spellings(path: str) -> tuple[str, ...]:
    """Names under which packages may have the file: /bin and /lib were merged into /usr."""
    other = path.removeprefix("/usr") if path.startswith(("/usr/bin/", "/usr/sbin/", "/usr/lib")) else ""
    return (path, other) if other else (path,)


def _owner(root: Root, path: str) -> Fact:
    try:
        names = root.list_dir(INFO, _PACKAGES_MAX)
    except FileNotFoundError:
        return Unknown(f"{INFO}: does not exist; only dpkg's packages are known here: rpm -Vf {path}")
    except OSError as error:
        return Unknown(f"{INFO}: {error.strerror or error}")
    wanted = [f"\n{name}\n".encode() for name in _spellings(path)]
    unread, left = "", _DATABASE_BYTES
    # A package is mostly called like its programs: those first, and no other has to be read.
    word = path.rpartition("/")[2].partition("-")[0]
    for name in sorted(names, key=lambda name: not name.startswith(word)):
        if not name.endswith(".list") or not _NAME.fullmatch(name.removesuffix(".list")):
            continue
        try:
            content = b"\n" + root.read_bytes(f"{INFO}/{name}", min(_LIST_BYTES, left)) + b"\n"
            left -= len(content)
        except OSError as error:
            unread = unread or f"{INFO}/{name}: {error.strerror or error}"
            continue
        if any(word in content for word in wanted):
            return Known(name.removesuffix(".list"), f"{INFO}/{name}")
    return Unknown(unread) if unread else Known("none", f"{INFO}/*.list")


def _digest(root: Root, path: str, package: str, md5: Callable[[], str]) -> Fact:
    try:
        if any(f"\n{name}\n" in f"\n{root.read_text(_DIVERSIONS, _LIST_BYTES)}\n" for name in _spellings(path)):
            return Unknown(f"{_DIVERSIONS}: the file was diverted: another one may stand in its place")
    except FileNotFoundError:
        pass
    except OSError as error:
        return Unknown(f"{_DIVERSIONS}: {error.strerror or error}")
    source = f"{INFO}/{package}.md5sums"
    try:
        lines = root.read_text(source, _LIST_BYTES).splitlines()
    except OSError as error:
        return Unknown(f"{source}: {error.strerror or error}")
    names = {name.lstrip("/") for name in _spellings(path)}
    recorded = next((digest for digest, _, name in (line.partition("  ") for line in lines) if name in names), "")
    if not re.fullmatch(r"[0-9a-f]{32}", recorded):
        return Unknown(f"{source}: no digest of {path}")
    try:
        actual = md5()
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")
    return Known("as packaged" if actual == recorded else "changed", f"{source}, compared with the file")


def bridge_facts(root: Root) -> Facts:
    """``bin.bridge-helper``: helpers with privileges that everybody may run. ``bin.bridge-open``: bridges that any
    local user can plug a network card into through one of them; ``all`` stands for every bridge."""
    helpers: list[str] = []
    for path in HELPERS:
        try:
            status = root.stat(path)
            privileged = bool(status.st_mode & stat_module.S_ISUID) or _has_capability(root, path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            why = Unknown(f"{path}: {error.strerror or error}")
            return {"bin.bridge-helper": why, "bin.bridge-open": why}
        if privileged and status.st_mode & stat_module.S_IXOTH:
            helpers.append(f"{path} ({status.st_uid}:{status.st_gid} {status.st_mode & 0o7777:04o})")
    source = ", ".join(HELPERS)
    facts: Facts = {"bin.bridge-helper": Known(tuple(helpers), source)}
    if not helpers:
        return facts | {"bin.bridge-open": Known((), "no helper with privileges that everybody may run")}
    allowed: list[str] = []
    for path in _ACLS:
        try:
            allowed += allowed_bridges(root, path)
        except OSError as error:
            return facts | {"bin.bridge-open": Unknown(f"{path}: {error.strerror or error}")}
    return facts | {"bin.bridge-open": Known(tuple(dict.fromkeys(allowed)), ", ".join(_ACLS))}


def _has_capability(root: Root, path: str) -> bool:
    descriptor = root.open_regular(path)
    try:
        return bool(os.getxattr(descriptor, "security.capability"))
    except OSError:
        return False
    finally:
        os.close(descriptor)


def allowed_bridges(root: Root, path: str, seen: list[str] | None = None) -> list[str]:
    """Bridges that an access list of the helper opens to everybody.

    The helper reads its lists with the rights of who called it: one that others may not read is no list for everybody.
    The first rule about a bridge decides; without any the answer is no.

    Raises:
        OSError: a list cannot be read, or they include each other without end.
    """
    seen = [] if seen is None else seen
    seen.append(path)
    if len(seen) > _ACL_FILES:
        raise OSError(errno.ELOOP, "lists include each other without end", path)
    try:
        if not root.stat(path).st_mode & stat_module.S_IROTH:
            return []
        text = root.read_text(path, _ACL_BYTES)
    except FileNotFoundError:
        return []
    allowed, denied = [], set()
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "deny":
            denied.add(words[1])
            if words[1] == "all":
                break
        elif words[0] == "allow" and words[1] not in denied:
            allowed.append(words[1])
        elif words[0] == "include":
            allowed += [name for name in allowed_bridges(root, words[1], seen) if name not in denied]
    return allowed
