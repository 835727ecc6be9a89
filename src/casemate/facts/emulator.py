"""Facts of an emulator binary: its file, who could change it, what is built in, what is known against it."""

from __future__ import annotations

import os
import re
import stat as stat_module
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Final

from casemate.errors import HostError
from casemate.facts.cve_reach import family_of, is_about_qemu
from casemate.facts.cve_table import is_fixed, load_table
from casemate.facts.elf import ElfFormatError
from casemate.facts.elf_hardening import Hardening
from casemate.facts.emulator_cache import Look
from casemate.facts.emulator_package import bridge_facts, package_facts
from casemate.facts.fact import Fact, Facts, Known, Unknown, Value
from casemate.facts.qemu import Emulator, describe_emulator
from casemate.facts.root import Root

_RISKY_LIBRARIES: Final = re.compile(r"lib(slirp|virglrenderer|rdmacm|ibverbs|fuse3?|usbredir\w*|usb-1|vnc\w*)[-.].*")
_CHANGELOG_BYTES: Final = 8 << 20
_FILE_FACTS: Final = (
    *("owner", "writable", "privileges", "vmm", "package", "digest"),
    *("cves-open", "cves-unclear", "cves-unfixed", "cves-unrecorded"),
    *("bridge-helper", "bridge-open"),
)
CVE_FACTS: Final = tuple(f"bin.{name}" for name in _FILE_FACTS if name.startswith("cves-"))
"""``open``, ``unclear``: of what is built in. ``unfixed``, ``unrecorded``: of all rows, for one machine's share."""
_ELF_FACTS: Final = [
    "pie",
    "relro",
    "stack",
    "writable-code",
    "canary",
    "fortify",
    "cfi",
    "rpath",
    "needed",
    "libraries-risky",
    "static",
    "stripped",
]
_RUN_FACTS: Final = [
    "version",
    "sha256",
    "version-number",
    "accelerators",
    "device-types",
    "device-count",
    "high-risk-types",
    "modules",
]
_VMMS: Final = (
    ("qemu", re.compile(r"qemu-(system-[\w-]+|kvm)|kvm")),
    ("firecracker", re.compile(r"firecracker(-v[\w.]+)?")),
    ("cloud-hypervisor", re.compile(r"cloud-hypervisor(-static)?")),
    ("crosvm", re.compile(r"crosvm")),
    ("kvmtool", re.compile(r"lkvm(-static)?|kvmtool")),
    ("stratovirt", re.compile(r"stratovirt")),
)
# No cache: nothing can be written below a device node, and a cache that cannot be written is no error.
_NO_CACHE: Final = Path("/dev/null/cache")


def vmm_of(name: str) -> str:
    """Which VMM a file's name stands for: ``qemu``, ``firecracker`` …, ``unknown``."""
    return next((vmm for vmm, pattern in _VMMS if pattern.fullmatch(name)), "unknown")


def collect_emulator(root: Root, path: str, *, run: bool = True, cache_dir: Path = _NO_CACHE) -> Facts:
    """Everything there is to know of the emulator at ``path``.

    Args:
        run: whether it may be asked; a captured tree's is never run, nor one that others can change.
        cache_dir: where its answers, and what takes long to read from its file, are kept.
    """
    try:
        real = root.real_path(path)
        descriptor = root.open_regular(real)
    except OSError as error:
        why = f"{path}: {error.strerror or error}"
        names = (*_ELF_FACTS, *_RUN_FACTS, *_FILE_FACTS)
        return {f"bin.{name}": Unknown(why) for name in names}
    try:
        facts: Facts = {"bin.vmm": Known(vmm_of(PurePosixPath(real).name), f"{real}: its name")}
        look = Look(descriptor, real, cache_dir if root.is_live else None)
        facts |= _file_facts(root, real, descriptor) | package_facts(root, real, look.md5) | bridge_facts(root)
        try:
            facts |= _elf_facts(look.hardening(), real)
        except (ElfFormatError, OSError, ValueError, RecursionError, MemoryError) as error:
            facts |= {f"bin.{name}": Unknown(f"{real}: {error}") for name in _ELF_FACTS}
        look.keep()
    finally:
        os.close(descriptor)
    facts |= _answers(root, real, facts, run, cache_dir)
    return facts | _cve_facts(root, facts)


def _file_facts(root: Root, path: str, descriptor: int) -> Facts:
    status = os.fstat(descriptor)
    bits = ((stat_module.S_ISUID, "setuid"), (stat_module.S_ISGID, "setgid"))
    privileges = [name for bit, name in bits if status.st_mode & bit]
    try:
        if os.getxattr(descriptor, "security.capability"):
            privileges.append("file capabilities")
    except OSError:
        privileges += []  # none, or a file system without them
    writable: list[str] = []
    for name in (path, *map(str, PurePosixPath(path).parents)):
        try:
            there = root.stat(name)
        except OSError as error:
            return {"bin.writable": Unknown(f"{name}: {error.strerror or error}")}
        if there.st_uid != 0 or there.st_mode & 0o002 or (there.st_mode & 0o020 and there.st_gid != 0):
            writable.append(f"{name} ({there.st_uid}:{there.st_gid} {there.st_mode & 0o7777:04o})")
    return {
        "bin.owner": Known(f"{status.st_uid}:{status.st_gid} {status.st_mode & 0o7777:04o}", path),
        "bin.writable": Known(tuple(writable), f"{path} and the directories above it"),
        "bin.privileges": Known(tuple(privileges), path),
    }


def _elf_facts(found: Hardening, path: str) -> Facts:
    def known(value: Value | None, why: str = "") -> Fact:
        return Unknown(f"{path}: {why}") if value is None else Known(value, path)

    cfi: tuple[str, ...] | None = (*found.features, *(("clang-cfi",) if found.clang_cfi else ()))
    if not cfi and found.clang_cfi is None:
        cfi = None
    return {
        "bin.pie": known(found.pie),
        "bin.relro": known(found.relro),
        "bin.stack": known(found.stack),
        "bin.writable-code": known(found.writable_code),
        "bin.canary": known(found.canary, "a static program does not say whether it has stack canaries"),
        "bin.fortify": known(found.fortify_percent, "no function that could be fortified is imported"),
        "bin.cfi": known(cfi, "no IBT or SHSTK, and Clang's CFI leaves no trace in a stripped file"),
        "bin.rpath": known(found.search),
        "bin.needed": known(found.needed),
        "bin.libraries-risky": known(tuple(name for name in found.needed if _RISKY_LIBRARIES.fullmatch(name))),
        "bin.static": known(found.static),
        "bin.stripped": known(found.stripped),
    }


def _answers(root: Root, path: str, facts: Facts, run: bool, cache_dir: Path) -> Facts:
    why = ""
    writable = facts["bin.writable"]
    if not run or not root.is_live:
        why = "not asked: it was not to be run"
    elif not isinstance(writable, Known) or writable.value:
        why = "not asked: others than root can change it"
    elif not PurePosixPath(path).name.startswith("qemu-"):
        why = "not asked: its name is not that of a QEMU"
    try:
        if not why:
            return _answer_facts(describe_emulator(path, cache_dir, root), load_table(root).device_weight)
    except HostError as error:
        why = str(error)
    return {f"bin.{name}": Unknown(f"{path}: {why}") for name in _RUN_FACTS}


def _answer_facts(emulator: Emulator, weight: Callable[[str], int]) -> Facts:
    types = tuple(name for name in emulator.device_types if not name.endswith("-cpu"))
    source = f"{emulator.path}: QMP"
    major, minor, micro = emulator.version
    return {
        "bin.version": Known(emulator.version_text, source),
        "bin.sha256": Known(emulator.sha256, emulator.path),
        "bin.version-number": Known(major * 10_000 + minor * 100 + micro, source),
        "bin.accelerators": Known(emulator.accelerators, source),
        "bin.device-types": Known(types, source),
        "bin.device-count": Known(len(types), source),
        "bin.high-risk-types": Known(tuple(name for name in types if weight(name) >= 10), source),
        "bin.modules": Known(
            tuple(name for name in emulator.modules if not name.startswith("accel-")), emulator.module_dir or source
        ),
    }


def _changelog(root: Root) -> str:
    for name in ("qemu-system-x86", "qemu-system-common", "qemu-kvm"):
        try:
            packed = root.read_bytes(f"/usr/share/doc/{name}/changelog.Debian.gz", _CHANGELOG_BYTES)
            return zlib.decompressobj(31).decompress(packed, _CHANGELOG_BYTES).decode("utf-8", "replace")
        except (OSError, zlib.error):
            continue
    return ""


def _cve_facts(root: Root, facts: Facts) -> Facts:
    number, types = facts["bin.version-number"], facts["bin.device-types"]
    if not isinstance(number, Known) or not isinstance(types, Known):
        why = Unknown("version and devices of the emulator are not known")
        return dict.fromkeys(CVE_FACTS, why)
    version = (int(str(number.value)) // 10_000, int(str(number.value)) // 100 % 100, int(str(number.value)) % 100)
    package = facts.get("bin.package")
    is_packaged = isinstance(package, Known) and package.value != "none"
    # The changelog speaks of the package's file, not of one that somebody built.
    log = set(re.findall(r"CVE-\d{4}-\d{4,7}", _changelog(root))) if is_packaged else set()
    table = load_table(root)
    rows = [cve for cve in table.cves if is_about_qemu(cve) and cve.id not in log]
    unfixed = tuple(cve.id for cve in rows if is_fixed(cve, version) is False)
    unrecorded = tuple(cve.id for cve in rows if is_fixed(cve, version) is None)
    # Back ends and formats are no types: what needs one of them counts as built in.
    built_in = {cve.id for cve in table.reaching(types.value if isinstance(types.value, tuple) else ())}
    built_in |= {cve.id for cve in rows if any(family_of(pattern) != "type" for pattern in cve.types)}
    source = f"{table.source} of {table.date}, the version, the package's changelog"
    unclear = tuple(number for number in unrecorded if number in built_in)
    found: Facts = {
        "bin.cves-unfixed": Known(unfixed, source),
        "bin.cves-unrecorded": Known(unrecorded, source),
        "bin.cves-open": Known(tuple(number for number in unfixed if number in built_in), source),
        "bin.cves-unclear": Known((), source),
    }
    if unclear:
        # Nobody recorded the fix: that is no knowledge of a fault, and no knowledge of its absence either.
        found["bin.cves-unclear"] = Unknown(f"{table.source} names no release with the fix of {', '.join(unclear)}")
    return found
