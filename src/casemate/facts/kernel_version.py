"""Which vulnerabilities of the kernel's virtualisation code the running version still has, as far as a version can say.

A kernel of kernel.org (release ``6.12.101``, nothing behind it) has exactly the fixes of its version. Whoever builds
another one adds a suffix (``6.1.0-18-amd64``, ``5.14.0-503.el9``): such a kernel has at least the fixes of the version
that it is based on, and maybe more. So a version that is new enough shows that a fix is in; an older one with a suffix
shows nothing, and the answer is Unknown.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from casemate.facts.cpu_info import CpuInfo
from casemate.facts.fact import Fact, Known, Unknown
from casemate.facts.kernel_cve_data import AS_OF, ROWS
from casemate.facts.root import Root
from casemate.facts.sysfiles import line, names_or_none

OSRELEASE: Final = "/proc/sys/kernel/osrelease"
_SHOWN_MAX: Final = 8
_RELEASE: Final = re.compile(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,6}))?([^\d\s].{0,200})?")
_BASED_ON: Final = (
    # Debian writes the version of its source package behind the build number, Ubuntu has a file of its own.
    ("/proc/version", re.compile(r"\bDebian (\d{1,4}\.\d{1,4}\.\d{1,6})[-~+]")),
    ("/proc/version_signature", re.compile(r"(?:\A|\s)(\d{1,4}\.\d{1,4}\.\d{1,6})\s*\Z")),
)

Version = tuple[int, int, int]


class KernelVersion(msgspec.Struct, frozen=True):
    """``base``: the version of kernel.org that it has at least. ``is_plain``: it is exactly that one."""

    release: str
    base: Version
    is_plain: bool


def parse_version(text: str) -> Version:
    """``6.12`` or ``6.12.101`` as numbers.

    Raises:
        ValueError: something else.
    """
    numbers = [int(part) for part in text.split(".")]
    if len(numbers) == 2:
        numbers.append(0)
    major, minor, patch = numbers
    return major, minor, patch


def parse_release(release: str, based_on: str = "") -> KernelVersion:
    """A release name of uname, and the version that a distribution says it is based on.

    Raises:
        ValueError: the release does not begin with a version.
    """
    match = _RELEASE.fullmatch(release)
    if match is None:
        raise ValueError(f"{release[:80]!r} does not begin with a version")
    base = (int(match[1]), int(match[2]), int(match[3] or 0))
    suffix = match[4] or ""
    if suffix.startswith("-rc"):
        # A candidate of 7.2 has what 7.1 has, and an unknown part of the rest.
        base = (base[0], base[1] - 1, 0) if base[1] else (base[0] - 1, 0, 0)
    if based_on and (said := parse_version(based_on))[:2] == base[:2]:
        base = max(base, said)
    return KernelVersion(release, base, is_plain=not suffix)


def read_version(root: Root) -> KernelVersion | Unknown:
    """The running kernel's version."""
    release = line(root, OSRELEASE)
    if isinstance(release, Unknown):
        return release
    based_on = ""
    for path, pattern in _BASED_ON:
        text = line(root, path)
        match = pattern.search(text) if isinstance(text, str) else None
        if match is not None:
            based_on = match[1]
    try:
        return parse_release(release, based_on)
    except ValueError as error:
        return Unknown(f"{OSRELEASE}: {error}")


def lacks_fix(version: Version, first_fixed: str, stable: str) -> bool:
    """Whether a version of kernel.org is older than the fix of its series.

    Args:
        first_fixed: version of the main line that has the fix.
        stable: fixed versions of stable series, parted by blanks.
    """
    if version >= parse_version(first_fixed):
        return False
    fixes = {fix[:2]: fix for fix in map(parse_version, stable.split())}
    return version[:2] not in fixes or version < fixes[version[:2]]


def open_cves(component: str, version: KernelVersion, whose: frozenset[str]) -> tuple[str, ...]:
    """Vulnerabilities whose fix the version does not show.

    Args:
        whose: the host's marks, of ``x86``, ``intel``, ``amd``, ``arm64``.
    """
    found: list[str] = []
    for identity, of, who, since, fixed, stable in ROWS:
        if of != component or (who and who not in whose):
            continue
        # A distribution also takes new code back into old versions: "not there yet" holds for plain kernels only.
        if version.is_plain and since and version.base < parse_version(since):
            continue
        if lacks_fix(version.base, fixed, stable):
            found.append(identity)
    return tuple(found)


def marks(cpu: CpuInfo | Unknown) -> frozenset[str]:
    """Whose vulnerabilities concern this host; all of them when its CPU is not known."""
    if isinstance(cpu, Unknown):
        return frozenset({"x86", "intel", "amd", "arm64"})
    if cpu.architecture != "x86":
        return frozenset({cpu.architecture})
    vendor = {"GenuineIntel": {"intel"}, "AuthenticAMD": {"amd"}, "HygonGenuine": {"amd"}}
    return frozenset({"x86"} | vendor.get(cpu.vendor, {"intel", "amd"}))


def cve_fact(root: Root, component: str, version: KernelVersion | Unknown, cpu: CpuInfo | Unknown) -> Fact:
    """The open vulnerabilities of a component (``kvm``, ``vhost``, ``vfio``, ``sysret``)."""
    if isinstance(version, Unknown):
        return version
    found = open_cves(component, version, marks(cpu))
    source = f"{OSRELEASE}: {version.release}, fixes as of {AS_OF}"
    if not found:
        return Known((), source)
    shown = ", ".join(found[-_SHOWN_MAX:]) + (
        f" and {len(found) - _SHOWN_MAX} older" if len(found) > _SHOWN_MAX else ""
    )
    if not version.is_plain:
        return Unknown(
            f"kernel {version.release} is based on {'.'.join(map(str, version.base))}, which lacks the fixes of"
            f" {shown}; its vendor may have added them: see the vendor's security tracker"
        )
    patches = names_or_none(root, "/sys/kernel/livepatch", "/sys/kernel")
    if patches:
        what = patches.why if isinstance(patches, Unknown) else f"live patches are loaded ({', '.join(patches[:4])})"
        return Unknown(f"kernel {version.release} lacks the fixes of {shown}, but {what}")
    return Known(found, source)
