"""The host's memory as far as VMs leak through it: page sharing, swap, error correction, energy counters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from casemate.facts.fact import Fact, Facts, Known, Unknown, Value
from casemate.facts.mountinfo import parse_mountinfo, unescape
from casemate.facts.root import Root
from casemate.facts.sysfiles import is_there, line, names, names_or_none

KSM: Final = "/sys/kernel/mm/ksm"
SWAPS: Final = "/proc/swaps"
POWERCAP: Final = "/sys/class/powercap"
EDAC: Final = "/sys/devices/system/edac/mc"
_SWAPS_MAX: Final = 256
_DEPTH_MAX: Final = 8
_DEVICE: Final = re.compile(r"\d{1,7}:\d{1,7}")


def collect_memory(root: Root) -> Facts:
    """``cpu.ksm-*``, ``cpu.swap-plain``, ``cpu.energy-readable``, ``cpu.ecc``."""
    return {
        "cpu.ksm-run": _ksm(root, "run", str.strip),
        "cpu.ksm-shared": _ksm(root, "pages_shared", int),
        "cpu.swap-plain": _swap(root),
        "cpu.energy-readable": _energy(root),
        "cpu.ecc": _ecc(root),
    }


def _ksm(root: Root, file: str, parse: Callable[[str], Value]) -> Fact:
    """A file of KSM; 0 when the directory of the memory management is there and KSM is not: it is not built in."""
    if is_there(root, KSM) is False and is_there(root, KSM.rpartition("/")[0]) is True:
        return Known(parse("0"), f"{KSM}: this kernel has no KSM")
    return root.fact(f"{KSM}/{file}", parse)


def _swap(root: Root) -> Fact:
    """Swap areas whose content reaches a disk in the clear."""
    try:
        rows = [row for row in root.read_text(SWAPS).split("\n") if row.strip()]
    except OSError as error:
        # A kernel without CONFIG_SWAP has no such file, but the rest of /proc.
        if isinstance(error, FileNotFoundError) and is_there(root, "/proc/meminfo") is True:
            return Known((), f"{SWAPS}: this kernel has no swap")
        return Unknown(f"{SWAPS}: {error.strerror or error}")
    if not rows or not rows[0].startswith("Filename") or len(rows) > _SWAPS_MAX:
        return Unknown(f"{SWAPS}: not understood")
    plain: list[str] = []
    for row in rows[1:]:
        words = row.split()
        if len(words) < 2:
            return Unknown(f"{SWAPS}: line {row[:80]!r} not understood")
        encrypted = _is_encrypted(root, unescape(words[0]), words[1])
        if isinstance(encrypted, Unknown):
            return encrypted
        if not encrypted:
            plain.append(unescape(words[0]))
    return Known(tuple(plain), SWAPS)


def _is_encrypted(root: Root, area: str, kind: str) -> bool | Unknown:
    """Whether every disk below a swap area is reached through dm-crypt, or the area lives in memory (zram)."""
    try:
        if kind == "partition":
            number = _device_number(root, area)
            return _block_encrypted(root, number, _DEPTH_MAX) if isinstance(number, str) else number
        mounts = parse_mountinfo(root.read_text("/proc/self/mountinfo"))
    except (OSError, ValueError) as error:
        return Unknown(f"swap {area}: {error}")
    holding = [m for m in mounts if m.point == "/" or area == m.point or area.startswith(m.point.rstrip("/") + "/")]
    if not holding:
        return Unknown(f"swap {area}: no mount holds it")
    return _block_encrypted(root, max(holding, key=lambda m: len(m.point)).device, _DEPTH_MAX)


def _device_number(root: Root, area: str) -> str | Unknown:
    """``major:minor`` of a block device, by its name in /sys/class/block."""
    name = area.rpartition("/")[2]
    if area.startswith("/dev/mapper/"):
        # /proc/swaps names the node that swapon was given; in a tree it is a link to ../dm-N.
        try:
            name = root.readlink(area).rpartition("/")[2]
        except OSError as error:
            return Unknown(f"swap {area}: {error.strerror}")
    number = line(root, f"/sys/class/block/{name}/dev")
    if isinstance(number, Unknown):
        return number
    return number if _DEVICE.fullmatch(number) else Unknown(f"/sys/class/block/{name}/dev: {number[:40]!r}")


def _block_encrypted(root: Root, number: str, depth: int) -> bool | Unknown:
    base = f"/sys/dev/block/{number}"
    if depth == 0:
        return Unknown(f"{base}: devices stacked too deep")
    if is_there(root, base) is not True:
        return Unknown(f"{base}: nothing is known of this device")
    uuid = line(root, f"{base}/dm/uuid")
    if isinstance(uuid, str) and uuid.startswith("CRYPT-"):
        return True
    backing = line(root, f"{base}/backing_dev")
    if isinstance(backing, str):
        # zram: pages stay in memory unless it writes back to a disk.
        return backing == "none"
    below = names_or_none(root, f"{base}/slaves", base)
    if isinstance(below, Unknown):
        return below
    for name in below:
        inner = line(root, f"{base}/slaves/{name}/dev")
        if isinstance(inner, Unknown):
            return inner
        if not _DEVICE.fullmatch(inner):
            return Unknown(f"{base}/slaves/{name}/dev: {inner[:40]!r}")
        found = _block_encrypted(root, inner, depth - 1)
        if found is not True:
            return found
    return bool(below)


def _energy(root: Root) -> Fact:
    """Energy counters that any user may read (PLATYPUS, CVE-2020-8694)."""
    zones = names_or_none(root, POWERCAP, "/sys/class")
    if isinstance(zones, Unknown):
        return zones
    open_to_all: list[str] = []
    for zone in zones:
        try:
            mode = root.stat(f"{POWERCAP}/{zone}/energy_uj").st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            return Unknown(f"{POWERCAP}/{zone}/energy_uj: {error.strerror}")
        if mode & 0o004:
            open_to_all.append(zone)
    return Known(tuple(open_to_all), f"{POWERCAP}/*/energy_uj: mode")


def _ecc(root: Root) -> Fact:
    """How each memory module corrects errors, as the EDAC driver of the memory controller says it."""
    controllers = names(root, EDAC)
    if isinstance(controllers, Unknown):
        return Unknown(f"no EDAC driver shows a memory controller ({controllers.why})")
    modes: list[str] = []
    for controller in (name for name in controllers if re.fullmatch(r"mc\d+", name)):
        parts = names(root, f"{EDAC}/{controller}")
        for part in () if isinstance(parts, Unknown) else parts:
            if re.fullmatch(r"(dimm|rank)\d+", part):
                mode = line(root, f"{EDAC}/{controller}/{part}/dimm_edac_mode")
                if isinstance(mode, Unknown):
                    return mode
                modes.append(mode)
    if not modes:
        return Unknown(f"{EDAC}: no memory controller with modules (no EDAC driver fits it)")
    return Known(tuple(dict.fromkeys(modes)), f"{EDAC}/mc*/*/dimm_edac_mode")
