"""Security updates that wait on a host of rpm and dnf: installed packages from rpm's database, offered ones from the
advisories in dnf's cache. Offline; facts as `facts/updates.py` names them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.root import Root
from casemate.facts.rpm_advisories import Offered, is_of_module, offered_by_advisories
from casemate.facts.rpm_answer import FAMILIES, host_packages
from casemate.facts.rpm_packages import DATABASE, PACKAGE_KEY, Package, compare
from casemate.facts.updates import MAX_AGE_DAYS

_IN_FAMILY: Final = {family: re.compile(pattern) for family, pattern in FAMILIES.items()}
_WANTED: Final = re.compile("|".join(FAMILIES.values()))
_KERNELS: Final = re.compile(r"kernel-core|kernel-(rt|64k|uek)-core|kernel-uek|kernel")
_DAY_S: Final = 86_400
_Key = tuple[str, str, bool]


def collect_rpm_updates(root: Root, folder: str, now_s: float) -> Facts:
    """The facts of `facts.updates.collect_updates`, on a host whose packages rpm keeps in this folder."""
    source = f"{folder}/{DATABASE}"
    every = host_packages(root, folder)
    if isinstance(every, Unknown):
        names = [f"updates.{prefix}{family}" for family in FAMILIES for prefix in ("", "has-")]
        return dict.fromkeys((*names, "updates.age-days", "updates.running-kernel"), every)
    installed = _newest([package for package in every if _WANTED.fullmatch(package.name)])
    offered = offered_by_advisories(root, _WANTED)
    facts: Facts = {"updates.age-days": _age(offered, now_s), "updates.running-kernel": _running(root, every, source)}
    usable = _usable(offered, facts["updates.age-days"])
    for family, pattern in _IN_FAMILY.items():
        mine = {key: package for key, package in installed.items() if pattern.fullmatch(package.name)}
        names = sorted({package.name for package in mine.values()})
        facts[f"updates.has-{family}"] = Known(bool(mine), f"{source}: {', '.join(names[:8]) or 'none'}")
        facts[f"updates.{family}"] = _pending(mine, usable, source)
    running = facts["updates.running-kernel"]
    if isinstance(running, Unknown):
        facts["updates.kernel"] = running
    return facts


def pending_of(packages: Sequence[Package], caches: Root, now_s: float, source: str) -> Fact:
    """``NAME INSTALLED -> OFFERED`` of every package, not only of those that matter to a host of VMs.

    Args:
        caches: where dnf's cached metadata are.
        source: where the packages were read.
    """
    offered = offered_by_advisories(caches, re.compile(".*"))
    return _pending(_newest(packages), _usable(offered, _age(offered, now_s)), source)


def _newest(packages: Iterable[Package]) -> dict[_Key, Package]:
    """Of what is installed in several versions (kernels are), the highest."""
    found: dict[_Key, Package] = {}
    for package in sorted(packages, key=PACKAGE_KEY):
        found[package.name, package.arch, is_of_module(package)] = package
    return found


def _age(offered: Offered | Unknown, now_s: float) -> Fact:
    """Days since the oldest of the repositories was made."""
    if isinstance(offered, Unknown):
        return offered
    if not offered.made_s:
        return Unknown(f"{offered.source}: they do not say when they were made")
    return Known(max(0, int((now_s - offered.made_s) // _DAY_S)), f"{offered.source}: repomd.xml")


def _usable(offered: Offered | Unknown, age: Fact) -> Offered | Unknown:
    if isinstance(offered, Unknown):
        return offered
    if isinstance(age, Unknown):
        return age
    if isinstance(age.value, int) and age.value > MAX_AGE_DAYS:
        return Unknown(f"{offered.source}: {age.value} days old, which says nothing about today; run dnf makecache")
    return offered


def _pending(installed: dict[_Key, Package], offered: Offered | Unknown, source: str) -> Fact:
    """``NAME INSTALLED -> OFFERED`` for each package that waits."""
    if isinstance(offered, Unknown):
        return offered
    waiting = tuple(
        f"{package.name} {package.evr} -> {offered.packages[key].evr}"
        for key, package in sorted(installed.items())
        if key in offered.packages and compare(offered.packages[key], package) > 0
    )
    return Known(waiting, f"{source}, {offered.source}")


def _running(root: Root, packages: tuple[Package, ...], source: str) -> Fact:
    """``newest`` of the installed kernels, or ``older than RELEASE``; unknown when no package brought what runs."""
    try:
        running = root.read_text("/proc/sys/kernel/osrelease", 4096).strip()
    except OSError as error:
        return Unknown(f"/proc/sys/kernel/osrelease: {error.strerror or error}")
    kernels = [package for package in packages if _KERNELS.fullmatch(package.name)]
    mine = [package for package in kernels if _release(package) == running.removesuffix("+rt").removesuffix("+64k")]
    if not mine:
        return Unknown(f"the running kernel {running[:80]} belongs to no package in {source}")
    newest = max((package for package in kernels if package.name == mine[0].name), key=PACKAGE_KEY)
    said = "newest" if _release(newest) == _release(mine[0]) else f"older than {_release(newest)}"
    return Known(said, f"/proc/sys/kernel/osrelease, {source}")


def _release(package: Package) -> str:
    return f"{package.version}-{package.release}.{package.arch}"
