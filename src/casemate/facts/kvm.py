"""The KVM probe: does /dev/kvm execute guest code, at what speed, and what does KVM offer.

``probe_kvm`` asks in a child with a deadline; ``cached_probe`` keeps the answer for as long as nothing it rests on has
changed. Types and judgement: kvm_report. Questions: kvm_collect.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from casemate.facts.kvm_names import MSR_CPU_FLAGS
from casemate.facts.kvm_report import (
    REPORT_FORMAT,
    Failure,
    Irqchip,
    KvmReport,
    Verdict,
    judge_report,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.facts.kvm_child import ChildResult

DEADLINE_S = 5.0
CACHE_BYTES_MAX = 1 << 20
PARAMETER_BYTES_MAX = 4096


def probe_kvm(device: str = "/dev/kvm", deadline_s: float = DEADLINE_S, machine: str | None = None) -> KvmReport:
    """Ask KVM everything, run the small guests, judge. Takes about 0.3 s; never longer than ``deadline_s`` + 4 s.

    Nothing raises for what the device does: a device that hangs or kills the child is ``broken``, with the step.

    Args:
        device: path of the KVM device.
        deadline_s: after this long the child is killed.
        machine: architecture (``uname -m``); the running one by default.

    Raises:
        OSError: no process or pipe was to be had (EAGAIN, EMFILE).
    """
    # Here, not above: a launch with a warm cache needs neither. Before the fork: the child imports nothing.
    from casemate.facts.kvm_child import run_in_child
    from casemate.facts.kvm_collect import collect

    architecture = machine or os.uname().machine

    def work(stage: Callable[[str], None]) -> bytes:
        return msgspec.json.encode(collect(device, architecture, stage, budget_s=0.4 * deadline_s))

    return judge_report(report_from_child(run_in_child(work, deadline_s), device, architecture))


def report_from_child(child: ChildResult, device: str, machine: str) -> KvmReport:
    """The child's report, or one that says how the child failed."""
    message = f"{child.outcome}: {child.detail}"
    if child.outcome == "done":
        try:
            return msgspec.json.decode(child.result, type=KvmReport)
        except (msgspec.DecodeError, msgspec.ValidationError) as fault:
            message = f"the probe's answer is unreadable: {fault}"
    failure = Failure(child.step or "start of the probe", "ETIME" if "timed" in child.outcome else "EIO", message, True)
    return KvmReport(device=device, machine=machine, kernel_release=os.uname().release, failures=(failure,))


class _CacheKey(msgspec.Struct, frozen=True):
    """What a cached report rests on: another boot, kernel, device node or KVM module makes it void.

    ``node``: st_dev, st_ino, st_rdev, st_ctime_ns of the device. ``modules``: kvm* under /sys/module with their inodes,
    which change when a module is loaded again.
    """

    boot_id: str
    kernel_release: str
    device: str
    node: tuple[int, ...]
    modules: tuple[str, ...]
    format: int = REPORT_FORMAT


class _CacheEntry(msgspec.Struct, frozen=True):
    key: _CacheKey
    report: KvmReport


def cached_probe(
    cache_file: Path, *, device: str = "/dev/kvm", root: Path = Path("/"), deadline_s: float = DEADLINE_S
) -> KvmReport:
    """``probe_kvm``, or its earlier answer while boot, kernel, device node and modules are the same.

    1. Without a key, or when the device does not open, probe (a denial is quick and must never be remembered). 2. A
    cache file counts only if it is a regular file of this user or root that nobody else can write, and decodes. 3. Only
    ``usable`` and ``emulated`` are kept: everything else may be repaired at any moment. 4. Written by rename; a cache
    that cannot be written costs time, not the answer.

    Args:
        cache_file: in a directory that only this user can write.
        root: where ``sys`` and ``proc`` are found.
    """
    key = _cache_key(device, root) if _opens(device) else None  # 1
    if key is None:
        return probe_kvm(device, deadline_s)
    entry = _read_cache(cache_file)  # 2
    if entry is not None and entry.key == key:
        return entry.report
    report = probe_kvm(device, deadline_s)
    if report.verdict in (Verdict.USABLE, Verdict.EMULATED):  # 3
        with suppress(OSError):  # 4
            _write_cache(cache_file, _CacheEntry(key, report))
    return report


def _opens(device: str) -> bool:
    try:
        if not stat.S_ISCHR(Path(device).stat().st_mode):
            return False
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _cache_key(device: str, root: Path) -> _CacheKey | None:
    boot_id = _read_line(root / "proc/sys/kernel/random/boot_id")
    if not boot_id:
        return None
    try:
        status = Path(device).stat()
        modules = tuple(sorted(f"{path.name}:{path.stat().st_ino}" for path in (root / "sys/module").glob("kvm*")))
    except OSError:
        return None
    node = (status.st_dev, status.st_ino, status.st_rdev, status.st_ctime_ns)
    return _CacheKey(boot_id, os.uname().release, device, node, modules)


def _read_cache(cache_file: Path) -> _CacheEntry | None:
    try:
        fd = os.open(cache_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid()):
            return None
        if status.st_size > CACHE_BYTES_MAX:
            return None
        return msgspec.json.decode(os.read(fd, CACHE_BYTES_MAX), type=_CacheEntry)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError, RecursionError):
        return None
    finally:
        os.close(fd)


def _write_cache(cache_file: Path, entry: _CacheEntry) -> None:
    temporary = cache_file.with_name(f".{cache_file.name}.{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(msgspec.json.encode(entry))
        temporary.replace(cache_file)
    except OSError as fault:
        if fault.errno != errno.EEXIST:  # another writer's file is not ours to remove
            temporary.unlink(missing_ok=True)
        raise


def _read_line(path: Path) -> str | None:
    """The first line of a small file, or None."""
    try:
        with open(path, "rb") as file:
            text = file.read(PARAMETER_BYTES_MAX).decode("ascii", errors="replace")
    except OSError:
        return None
    lines = text.splitlines()
    return lines[0].strip() if lines else None


def refused_cpu_flags(chip: Irqchip) -> tuple[str, ...]:
    """CPU flags to switch off (``-cpu host,-FLAG``) so that QEMU does not abort in this interrupt controller mode.

    An MSR in ``chip.msrs_refused`` that has no flag here is still a reason to expect an abort.
    """
    return tuple(sorted(MSR_CPU_FLAGS[msr] for msr in chip.msrs_refused if msr in MSR_CPU_FLAGS))
