"""What is installed in a guest, and which security updates of it wait. From the files of dpkg, apk and rpm.

Security lists: the guest's own copy (/var/lib/apt/lists, /var/cache/dnf) or a directory that the caller gives, laid out
alike. Lists older than `MAX_AGE_DAYS` say nothing.
"""

from __future__ import annotations

import re
import time
from typing import Final

import msgspec

from casemate.facts import rpm_packages
from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.root import Root
from casemate.facts.updates import LISTS, MAX_AGE_DAYS, STATUS, newest_offered, security_releases, unpacked
from casemate.facts.updates_version import compare_versions

MAX_STATUS_BYTES: Final = 64 << 20
MAX_PACKAGES: Final = 50_000
APK: Final = "/lib/apk/db/installed"
_FIELD: Final = re.compile(r"^(Package|Version|Architecture|Status|Source|Maintainer|Homepage): (.*)$", re.MULTILINE)


class Package(msgspec.Struct, frozen=True, order=True):
    """One installed package. ``kind``: deb, apk or rpm, whose version may begin with an epoch."""

    name: str
    version: str
    architecture: str
    kind: str
    source: str = ""
    maintainer: str = ""
    homepage: str = ""


def installed_packages(root: Root) -> tuple[Package, ...] | Unknown:
    """Every installed package, by name; unknown with the reason where no list can be read."""
    try:
        text = root.read_text(STATUS, MAX_STATUS_BYTES)
    except FileNotFoundError:
        return _apk(root)
    except OSError as error:
        return Unknown(f"{STATUS}: {error.strerror or error}")
    found: list[Package] = []
    for stanza in text.split("\n\n"):
        fields = dict(_FIELD.findall(stanza))
        if fields.get("Status", "").endswith(" installed") and fields.get("Package") and fields.get("Version"):
            found.append(
                Package(
                    fields["Package"],
                    fields["Version"],
                    fields.get("Architecture", ""),
                    "deb",
                    fields.get("Source", "").partition(" ")[0],
                    fields.get("Maintainer", ""),
                    fields.get("Homepage", ""),
                )
            )
        if len(found) > MAX_PACKAGES:
            return Unknown(f"{STATUS}: more than {MAX_PACKAGES} packages")
    if not found:
        return Unknown(f"{STATUS}: names no installed package")
    return tuple(sorted(found, key=lambda package: package.name))


def _apk(root: Root) -> tuple[Package, ...] | Unknown:
    """Alpine: one stanza a package, a letter a field (apk(5))."""
    try:
        text = root.read_text(APK, MAX_STATUS_BYTES)
    except FileNotFoundError:
        return _rpm(root)
    except OSError as error:
        return Unknown(f"{APK}: {error.strerror or error}")
    found = []
    for stanza in text.split("\n\n")[: MAX_PACKAGES + 1]:
        fields = {line[0]: line[2:] for line in stanza.splitlines() if line[1:2] == ":"}
        if fields.get("P") and fields.get("V"):
            found.append(Package(fields["P"], fields["V"], fields.get("A", ""), "apk", fields.get("o", "")))
    return tuple(sorted(found, key=lambda package: package.name)) if found else Unknown(f"{APK}: names no package")


def _rpm(root: Root) -> tuple[Package, ...] | Unknown:
    try:
        folder = rpm_packages.has_rpm(root)
    except OSError as error:
        return Unknown(f"rpm's database: {error.strerror or error}")
    if not folder:
        return Unknown(f"{STATUS}: does not exist, and no other package manager is known here")
    found = rpm_packages.installed_packages(root, folder)
    if isinstance(found, Unknown):
        return found
    kept = [package for package in found if package.name != "gpg-pubkey"]  # keys of repositories, not software
    if not kept:
        return Unknown(f"{folder}: names no installed package")
    return tuple(sorted(Package(p.name, p.evr, p.arch, "rpm") for p in kept))


def collect_packages(root: Root, lists: Root | None = None, now_s: float | None = None) -> Facts:
    """``guest.packages`` (how many), ``guest.security-updates`` (``NAME INSTALLED -> OFFERED``).

    Args:
        lists: where the security lists are, when not in the guest.
        now_s: Unix time to which the lists' age is counted.
    """
    packages = installed_packages(root)
    if isinstance(packages, Unknown):
        return {"guest.packages": packages, "guest.security-updates": packages}
    now_s = time.time() if now_s is None else now_s
    kind = packages[0].kind
    where = {"deb": STATUS, "apk": APK, "rpm": rpm_packages.DATABASE}[kind]
    facts: Facts = {"guest.packages": Known(len(packages), where)}
    if kind == "deb":
        facts["guest.security-updates"] = pending(packages, lists or root, now_s, _codename(root))
    elif kind == "rpm":
        facts["guest.security-updates"] = _pending_rpm(packages, lists or root, now_s)
    else:
        facts["guest.security-updates"] = Unknown("security lists of this distribution are not known here")
    return facts


def _pending_rpm(packages: tuple[Package, ...], caches: Root, now_s: float) -> Fact:
    from casemate.facts.updates_rpm import pending_of

    try:
        found = [rpm_packages.Package.of_evr(item.name, item.version, item.architecture) for item in packages]
    except ValueError as error:
        return Unknown(f"{rpm_packages.DATABASE}: {error}")
    return pending_of(found, caches, now_s, rpm_packages.DATABASE)


def read_packages(root: Root, path: str) -> dict[str, str]:
    """Every package of a list: name to its highest version.

    Raises:
        OSError, ValueError: it cannot be read, is damaged, too large, or packed in a way nobody here understands.
    """
    text = unpacked(root.read_bytes(path, MAX_STATUS_BYTES), path.rpartition("_Packages")[2])
    found: dict[str, str] = {}
    for stanza in text.decode("utf-8", "backslashreplace").split("\n\n"):
        fields = dict(_FIELD.findall(stanza))
        name, version = fields.get("Package", ""), fields.get("Version", "")
        if name and version and (name not in found or compare_versions(version, found[name]) > 0):
            found[name] = version
    return found


def _codename(root: Root) -> str:
    """``VERSION_CODENAME`` of os-release; empty when it is not said."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            found = re.search(r"^VERSION_CODENAME=[\"']?([a-z]+)", root.read_text(path), re.MULTILINE)
        except OSError:
            continue
        return found[1] if found else ""
    return ""


def pending(packages: tuple[Package, ...], lists: Root, now_s: float, codename: str = "") -> Fact:
    """The packages for which a security suite of the distribution has something newer.

    Args:
        codename: ``bookworm``: lists of other releases say nothing about this one; empty: any.
    """
    found_releases = security_releases(lists)
    if isinstance(found_releases, Unknown):
        return Unknown(f"{found_releases.why}; give the lists with --security-lists DIR")
    releases = [
        (prefix, date)
        for prefix, date in found_releases
        if not codename or f"_{codename}-security_" in prefix or f"_{codename}_updates_" in prefix
    ]
    if not releases:
        return Unknown(f"{LISTS}: no list of a security suite of {codename}; give them with --security-lists DIR")
    oldest = min(date for _, date in releases)
    if oldest == 0:
        return Unknown(f"{LISTS}: a Release file has no date")
    days = int((now_s - oldest) // 86_400)
    if days > MAX_AGE_DAYS:
        return Unknown(
            f"{LISTS}: {days} days old, which says nothing about today; give newer ones: --security-lists DIR"
        )
    offered = newest_offered(lists, [prefix for prefix, _ in releases], read_packages)
    if isinstance(offered, Unknown):
        return offered
    waiting = tuple(
        f"{package.name} {package.version} -> {offered[package.name]}"
        for package in packages
        if package.name in offered and compare_versions(offered[package.name], package.version) > 0
    )
    return Known(waiting, f"{STATUS}, {len(releases)} security suites of {max(0, days)} days ago")
