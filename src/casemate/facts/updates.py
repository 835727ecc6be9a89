"""Security updates of what runs VMs that wait to be installed, from the package manager's own files; no network.

Debian and Ubuntu: installed versions from dpkg's status, offered ones from apt's copy of the lists of security suites
(their Release file says which suite it is, and when it was made). Hosts of rpm and dnf: `facts/updates_rpm.py`. Other
package managers: unknown, with the reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from calendar import timegm
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.root import Root
from casemate.facts.stamp import load_cache, save_cache
from casemate.facts.updates_lz4 import unpack_lz4
from casemate.facts.updates_version import VERSION_KEY, compare_versions

STATUS: Final = "/var/lib/dpkg/status"
LISTS: Final = "/var/lib/apt/lists"
_MAX_STATUS_BYTES: Final = 64 << 20
_MAX_LIST_BYTES: Final = 64 << 20
_MAX_RELEASE_BYTES: Final = 8 << 20
_KEPT_MAX: Final = 16
_MARK_CHARS: Final = 64
_DAY_S: Final = 86_400
# What is older than this says nothing about what waits today.
MAX_AGE_DAYS: Final = 30
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE: Final = re.compile(r"(?:\w{3}, )?(\d{1,2}) (\w{3}) (\d{4}) (\d\d):(\d\d):(\d\d) (?:UTC|GMT|\+0000)")

FAMILIES: Final[dict[str, str]] = {
    "kernel": r"linux-image-[a-z][a-z0-9.+-]*|linux-image-\d[a-z0-9.+-]*",
    "qemu": r"qemu-system-[a-z0-9-]+|qemu-system|qemu-utils|qemu-block-extra|qemu-kvm",
    "libvirt": r"libvirt0|libvirt-[a-z-]+",
    "firmware": r"ovmf|qemu-efi-[a-z0-9]+|seabios|ipxe-qemu",
    "helpers": r"swtpm|swtpm-tools|swtpm-libs|libtpms0|passt|libslirp0|virtiofsd|libspice-server1|libvirglrenderer1",
    "microcode": r"intel-microcode|amd64-microcode",
}
_KEPT: Final = "Package: (kept: "
KEPT_MARK: Final = f"{_KEPT}{hashlib.sha256(repr(sorted(FAMILIES.items())).encode()).hexdigest()[:12]})"
"""What a list begins with of which a capture kept these families; another version may have kept others."""
_WANTED: Final = re.compile(rf"^Package: ({'|'.join(FAMILIES.values())})$", re.MULTILINE)
_IN_FAMILY: Final = {family: re.compile(pattern) for family, pattern in FAMILIES.items()}
_FIELD: Final = re.compile(r"^([A-Za-z-]+): (.*)$", re.MULTILINE)
_KERNEL_IMAGE: Final = re.compile(r"linux-image-(?:unsigned-)?(\d[a-z0-9.+~-]*)")


class _Release(msgspec.Struct, frozen=True):
    """``prefix``: what names of this suite's lists begin with. ``date_s``: Unix time, 0 when it is not said."""

    prefix: str
    date_s: int


def collect_updates(root: Root, now_s: float | None = None) -> Facts:
    """``updates.FAMILY`` (what waits), ``updates.has-FAMILY`` (something of it is installed),
    ``updates.running-kernel``, ``updates.age-days`` (of the lists).

    Args:
        now_s: Unix time to which the lists' age is counted; without it the tree's own, of which a capture has one.
    """
    now_s = root.now_s() if now_s is None else now_s
    installed = _installed(root)
    if isinstance(installed, _Rpm):
        from casemate.facts.updates_rpm import collect_rpm_updates

        return collect_rpm_updates(root, installed.folder, now_s)
    if isinstance(installed, Unknown):
        names = [f"updates.{prefix}{family}" for family in FAMILIES for prefix in ("", "has-")]
        return dict.fromkeys((*names, "updates.age-days", "updates.running-kernel"), installed)
    facts: Facts = {}
    for family, pattern in _IN_FAMILY.items():
        found = sorted(name for name in installed if pattern.fullmatch(name))
        facts[f"updates.has-{family}"] = Known(bool(found), f"{STATUS}: {', '.join(found[:8]) or 'none'}")
    releases = _releases(root)
    facts["updates.age-days"] = _age(releases, now_s)
    facts["updates.running-kernel"] = _running_kernel(root, installed)
    offered = _offered(root, releases, now_s)
    for family, pattern in _IN_FAMILY.items():
        facts[f"updates.{family}"] = _pending(installed, offered, pattern)
    running = facts["updates.running-kernel"]
    if isinstance(running, Unknown):
        facts["updates.kernel"] = running
    return facts


def stanzas(text: str) -> dict[str, dict[str, str]]:
    """Packages of interest in a file of deb822 stanzas: name to its fields of one line; the highest version counts."""
    found: dict[str, dict[str, str]] = {}
    for match in _WANTED.finditer(text):
        start = text.rfind("\n\n", 0, match.start()) + 2 if match.start() else 0
        end = text.find("\n\n", match.end())
        fields = dict(_FIELD.findall(text, max(start, 0), len(text) if end < 0 else end))
        name, version = match[1], fields.get("Version", "")
        if version and (name not in found or compare_versions(version, found[name]["Version"]) > 0):
            found[name] = fields
    return found


class _Rpm(msgspec.Struct, frozen=True):
    """Packages are kept by rpm, in this folder."""

    folder: str


def _installed(root: Root) -> dict[str, str] | Unknown | _Rpm:
    """Installed packages of interest: name to version."""
    try:
        text = root.read_text(STATUS, _MAX_STATUS_BYTES)
    except FileNotFoundError:
        return _other_manager(root)
    except OSError as error:
        return Unknown(f"{STATUS}: {error.strerror or error}")
    if not text.startswith("Package: "):
        return Unknown(f"{STATUS}: does not begin with a package")
    if _was_kept_otherwise(text[:_MARK_CHARS]):
        return Unknown(f"{STATUS}: captured by a version that kept other packages")
    found = stanzas(text)
    return {n: f["Version"] for n, f in found.items() if f.get("Status", "").endswith(" installed")}


def _was_kept_otherwise(head: str) -> bool:
    """Whether a capture holds only a part of the list, and another part than is asked for."""
    return head.startswith(_KEPT) and not head.startswith(f"{KEPT_MARK}\n")


def _other_manager(root: Root) -> Unknown | _Rpm:
    from casemate.facts.rpm_packages import has_rpm

    try:
        folder = has_rpm(root)
        if folder:
            return _Rpm(folder)
        if root.exists("/var/lib/pacman"):
            return Unknown("packages are kept by pacman (/var/lib/pacman), which is not read; ask it: arch-audit")
    except OSError as error:
        return Unknown(f"{error.filename or '/var/lib'}: {error.strerror or error}")
    return Unknown(f"{STATUS}: does not exist, and no other package manager is known here")


def _releases(root: Root) -> tuple[_Release, ...] | Unknown:
    """The Release files of security suites."""
    found: list[_Release] = []
    try:
        for name in root.list_dir(LISTS):
            if not name.endswith(("_InRelease", "_Release")):
                continue
            head = root.read_text(f"{LISTS}/{name}", _MAX_RELEASE_BYTES).partition("\nSHA256:")[0]
            fields = dict(_FIELD.findall(head))
            suites = (fields.get("Suite", ""), fields.get("Codename", ""))
            if fields.get("Label") == "Debian-Security" or any(suite.endswith("-security") for suite in suites):
                prefix = name.removesuffix("InRelease").removesuffix("Release")
                found.append(_Release(prefix, _unix(fields.get("Date", ""))))
    except OSError as error:
        return Unknown(f"{error.filename or LISTS}: {error.strerror or error}")
    if not found:
        return Unknown(f"{LISTS}: no list of a security suite; run apt update")
    return tuple(found)


def security_releases(root: Root) -> tuple[tuple[str, int], ...] | Unknown:
    """The security suites whose lists are there: what names of their lists begin with, Unix time (0: not said)."""
    found = _releases(root)
    return found if isinstance(found, Unknown) else tuple((release.prefix, release.date_s) for release in found)


def _unix(text: str) -> int:
    """A date of a Release file as Unix time; 0 when there is none to be understood."""
    match = _DATE.fullmatch(text.strip())
    if match is None or match[2] not in _MONTHS:
        return 0
    day, _, year, hour, minute, second = match.groups()
    return timegm((int(year), _MONTHS.index(match[2]) + 1, int(day), int(hour), int(minute), int(second)))


def _age(releases: tuple[_Release, ...] | Unknown, now_s: float) -> Fact:
    """Days since the oldest of the lists was made."""
    if isinstance(releases, Unknown):
        return releases
    oldest = min(release.date_s for release in releases)
    if oldest == 0:
        return Unknown(f"{LISTS}: a Release file has no date")
    return Known(max(0, int((now_s - oldest) // _DAY_S)), f"{LISTS}: Date of {len(releases)} Release files")


def _offered(root: Root, releases: tuple[_Release, ...] | Unknown, now_s: float) -> dict[str, str] | Unknown:
    """What the security suites offer: name to the highest version."""
    if isinstance(releases, Unknown):
        return releases
    age = _age(releases, now_s)
    if isinstance(age, Unknown):
        return age
    if isinstance(age.value, int) and age.value > MAX_AGE_DAYS:
        return Unknown(f"{LISTS}: {age.value} days old, which says nothing about today; run apt update")
    return newest_offered(root, [release.prefix for release in releases], _read_list)


def newest_offered(
    root: Root, prefixes: Iterable[str], read: Callable[[Root, str], dict[str, str]]
) -> dict[str, str] | Unknown:
    """What the lists of some suites offer: name to the highest version.

    Args:
        prefixes: what names of a suite's lists begin with.
        read: the packages of one list, name to version; OSError or ValueError say why it cannot be read.
    """
    offered: dict[str, str] = {}
    try:
        names = root.list_dir(LISTS)
        for prefix in prefixes:
            mine = [name for name in names if name.startswith(prefix) and "_Packages" in name]
            if not mine:
                return Unknown(f"{LISTS}: {prefix}… has a Release file and no list of packages")
            for name in mine:
                for package, version in read(root, f"{LISTS}/{name}").items():
                    if package not in offered or compare_versions(version, offered[package]) > 0:
                        offered[package] = version
    except OSError as error:
        return Unknown(f"{error.filename or LISTS}: {error.strerror or error}")
    except ValueError as error:
        return Unknown(f"{LISTS}: {error}")
    return offered


def _read_list(root: Root, path: str) -> dict[str, str]:
    """The packages of interest in a list: name to version.

    Raises:
        OSError, ValueError: it cannot be read, is damaged, too large, or packed in a way nobody here understands.
    """
    data, suffix = root.read_bytes(path, _MAX_LIST_BYTES), path.rpartition("_Packages")[2]
    try:
        if root.cache is None or not suffix:
            return _versions(data, suffix)
        # Unpacking takes longer than the rest of the host together.
        place = root.cache / "updates" / hashlib.sha256(f"{_WANTED.pattern}\n{suffix}\n".encode() + data).hexdigest()
        kept = load_cache(place, dict[str, str])
        if kept is None:
            kept = _versions(data, suffix)
            save_cache(place, kept)
            _forget_old(place.parent)
        return kept
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _forget_old(folder: Path) -> None:
    """Lists change every few days: of what was kept, only the newest."""
    with contextlib.suppress(OSError):
        found = sorted(folder.iterdir(), key=lambda path: path.lstat().st_mtime, reverse=True)
        for path in found[_KEPT_MAX:]:
            path.unlink(missing_ok=True)


# Hosts of one fleet have the very same lists, so that many captures have the very same bytes.
@lru_cache(maxsize=4)
def _versions(data: bytes, suffix: str) -> dict[str, str]:
    text = unpacked(data, suffix).decode("utf-8", "backslashreplace")
    if _was_kept_otherwise(text[:_MARK_CHARS]):
        raise ValueError("captured by a version that kept other packages")
    found = stanzas(text)
    return {name: fields["Version"] for name, fields in found.items()}


def unpacked(data: bytes, suffix: str) -> bytes:
    """The text of a list of packages; ``suffix`` of its name says how it is packed, but a capture keeps the text.

    Raises:
        ValueError: damaged, too large, or packed in a way that nobody here understands.
    """
    if not suffix or data.startswith(b"Package: "):
        return data
    if suffix == ".lz4":
        return unpack_lz4(data, _MAX_LIST_BYTES)
    if suffix in (".gz", ".xz"):
        return _unpack(data, suffix)
    raise ValueError(f"packed as {suffix}, which is not understood")


def _unpack(data: bytes, suffix: str) -> bytes:
    import lzma
    import zlib

    packed = zlib.decompressobj(wbits=31) if suffix == ".gz" else lzma.LZMADecompressor(memlimit=256 << 20)
    try:
        unpacked = packed.decompress(data, _MAX_LIST_BYTES + 1)
    except (zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"damaged ({error})") from None
    if len(unpacked) > _MAX_LIST_BYTES:
        raise ValueError(f"larger than {_MAX_LIST_BYTES} bytes when unpacked")
    if not packed.eof:
        raise ValueError("ends too early")
    return unpacked


def _pending(installed: dict[str, str], offered: dict[str, str] | Unknown, family: re.Pattern[str]) -> Fact:
    """``NAME INSTALLED -> OFFERED`` for each package of the family that waits."""
    if isinstance(offered, Unknown):
        return offered
    waiting = tuple(
        f"{name} {version} -> {offered[name]}"
        for name, version in sorted(installed.items())
        if family.fullmatch(name) and name in offered and compare_versions(offered[name], version) > 0
    )
    return Known(waiting, f"{STATUS}, {LISTS}")


def _running_kernel(root: Root, installed: dict[str, str]) -> Fact:
    """``newest`` of the installed ones, or ``older than RELEASE``; unknown when no package brought the running one."""
    try:
        running = root.read_text("/proc/sys/kernel/osrelease", 4096).strip()
    except OSError as error:
        return Unknown(f"/proc/sys/kernel/osrelease: {error.strerror or error}")
    matches = ((_KERNEL_IMAGE.fullmatch(name), version) for name, version in installed.items())
    releases = {match[1]: version for match, version in matches if match is not None}
    if running not in releases:
        return Unknown(f"the running kernel {running[:80]} belongs to no package in {STATUS}")
    newest = max(releases, key=lambda release: (VERSION_KEY(releases[release]), VERSION_KEY(release)))
    source = f"/proc/sys/kernel/osrelease, {STATUS}"
    return Known("newest" if running == newest else f"older than {newest}", source)
