"""The probe against the real /dev/kvm, and against things that are not one. Structure is asserted, never timing."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from casemate.facts import kvm_collect, kvm_guest
from casemate.facts.kvm import cached_probe, probe_kvm, refused_cpu_flags
from casemate.facts.kvm_child import Outcome, run_in_child
from casemate.facts.kvm_collect import collect
from casemate.facts.kvm_components import in_kernel_components
from casemate.facts.kvm_machine import NEVER_ENDED, Machine, measure
from casemate.facts.kvm_names import HYPERCALLS
from casemate.facts.kvm_report import (
    USABLE_MIN_INSTRUCTIONS_PER_S,
    CpuMode,
    IrqchipMode,
    KvmReport,
    Verdict,
    judge_report,
)
from casemate.sys import kvm

pytestmark = pytest.mark.wall

DEVICE = "/dev/kvm"
needs_kvm = pytest.mark.skipif(
    platform.machine() != "x86_64" or not os.access(DEVICE, os.R_OK | os.W_OK), reason="no /dev/kvm for this user"
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="setuid needs root")


def _open_fds() -> set[str]:
    return {entry for entry in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{entry}").exists()}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No descriptor and no child is left by any probe."""
    before = _open_fds()
    yield
    assert _open_fds() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture(scope="module")
def report() -> KvmReport:
    return probe_kvm(DEVICE, deadline_s=20)


@needs_kvm
def test_verdict_follows_from_the_measured_rate(report: KvmReport) -> None:
    run = report.guest("count-kernel")
    assert run is not None
    assert run.error == ""
    assert run.instructions_per_s is not None
    assert run.instructions_per_s == run.instructions * 1_000_000_000 // run.cpu_ns
    fast = run.instructions_per_s >= USABLE_MIN_INSTRUCTIONS_PER_S
    assert report.verdict is (Verdict.USABLE if fast else Verdict.EMULATED)
    assert report.why
    assert bool(report.next_step) is not fast


@needs_kvm
def test_every_guest_ran_to_its_end_with_the_exits_it_should_have(report: KvmReport) -> None:
    runs = {run.name: run for run in report.guests}
    assert set(runs) == {"count-kernel", "count-real", "count-user", "port-io", "mmio", "hlt"}
    assert [run.error for run in report.guests] == [""] * 6
    for name in ("count-kernel", "count-real", "count-user"):
        assert runs[name].exits == {"io": 1}  # nothing but the end reaches user space
        assert runs[name].instructions == 2 * runs[name].iterations
    assert runs["port-io"].exits == {"io": runs["port-io"].iterations + 1}
    assert runs["mmio"].exits == {"mmio": runs["mmio"].iterations, "io": 1}
    assert runs["hlt"].exits == {"hlt": 1}
    assert runs["count-user"].cpu_mode is CpuMode.USER


@needs_kvm
def test_interrupt_controllers_are_where_the_mode_puts_them(report: KvmReport) -> None:
    assert [chip.mode for chip in report.irqchips] == list(IrqchipMode)
    for chip in report.irqchips:
        if chip.available:
            in_kernel = chip.mode is IrqchipMode.KERNEL
            assert (chip.pic, chip.ioapic, chip.pit) == (in_kernel,) * 3
            assert chip.local_apic is (chip.mode is not IrqchipMode.USERSPACE)
        else:
            assert chip.error


@needs_kvm
def test_extensions_limits_and_cpuid(report: KvmReport) -> None:
    assert report.api_version == 12
    assert report.extension("USER_MEMORY") == 1
    assert report.extension("IMMEDIATE_EXIT") == 1
    assert report.limits.max_vcpus == report.extension("MAX_VCPUS")
    assert report.limits.run_area_bytes is not None
    assert report.limits.run_area_bytes >= 4096
    assert report.limits.state_msrs is not None
    assert report.limits.state_msrs > 0
    cpuid = report.cpuid
    assert cpuid is not None
    assert cpuid.kvm_signature == "KVMKVMKVM"
    assert cpuid.vendor in ("GenuineIntel", "AuthenticAMD", "HygonGenuine")
    assert cpuid.guest_kvm_signature == cpuid.kvm_signature
    assert cpuid.guest_kvm_features == cpuid.kvm_features


@needs_kvm
def test_hypercalls_are_all_accounted_for(report: KvmReport) -> None:
    seen = [(call.cpu_mode, call.instruction, call.number) for call in report.hypercalls]
    modes, names = (CpuMode.KERNEL, CpuMode.USER), ("vmcall", "vmmcall")
    assert seen == [(mode, name, number) for mode in modes for name in names for number in HYPERCALLS]
    for call in report.hypercalls:
        assert (call.return_value is None) == bool(call.fault)
        if call.fault:
            assert call.cost_ns is None
            continue
        assert call.in_kernel is True
        assert call.cost_ns is not None
        if call.cpu_mode is CpuMode.USER:
            assert call.return_value == -1  # KVM_EPERM: KVM serves ring 0 only
        elif call.name == "unknown":
            assert call.return_value == -1000  # KVM_ENOSYS


@needs_kvm
def test_report_is_json_and_its_presentations_agree(report: KvmReport) -> None:
    assert msgspec.json.decode(msgspec.json.encode(report), type=KvmReport) == report
    surface = in_kernel_components(report)
    assert set(surface.modes) == {chip.mode for chip in report.irqchips if chip.available}


@needs_kvm
def test_cache_of_the_real_device(report: KvmReport, tmp_path: Path) -> None:
    cache = tmp_path / "kvm.json"
    first = cached_probe(cache, device=DEVICE, deadline_s=20)
    assert first.verdict is report.verdict
    if first.verdict in (Verdict.USABLE, Verdict.EMULATED):
        assert cached_probe(cache, device=DEVICE) == first


@needs_kvm
@pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="QEMU (package qemu-system-x86) is not installed"
)
@pytest.mark.parametrize("mode", [IrqchipMode.SPLIT, IrqchipMode.USERSPACE])
def test_qemu_aborts_exactly_where_an_msr_is_refused(report: KvmReport, mode: IrqchipMode) -> None:
    chip = report.irqchip(mode)
    assert chip is not None
    if not chip.available:
        pytest.skip(chip.error)
    flags = refused_cpu_flags(chip)
    assert len(flags) == len(chip.msrs_refused), "an MSR is refused for which no CPU flag is known"
    assert _qemu_starts(mode, flags)
    if flags:
        assert not _qemu_starts(mode, ())


def _qemu_starts(mode: IrqchipMode, flags_off: tuple[str, ...]) -> bool:
    """Whether QEMU with ``-cpu host`` sets up its vCPU: it answers ``quit`` with exit 0 instead of SIGABRT."""
    cpu = ",".join(["host", *(f"-{flag}" for flag in flags_off)])
    command = [
        "qemu-system-x86_64", "-M", f"microvm,kernel-irqchip={mode},x-option-roms=off", "-accel", "kvm", "-cpu", cpu,
        "-m", "64", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-qmp", "stdio",
    ]  # fmt: skip
    talk = b'{"execute":"qmp_capabilities"}\n{"execute":"quit"}\n'
    done = subprocess.run(command, input=talk, capture_output=True, timeout=60, check=False)
    assert done.returncode in (0, -signal.SIGABRT), done.stderr
    return done.returncode == 0


def _endless_guest(limit_s: float) -> Callable[[Callable[[str], None]], bytes]:
    """Work that runs a guest which never ends; its outcome is the work's answer."""

    def work(stage: Callable[[str], None]) -> bytes:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        with Machine(fd, IrqchipMode.USERSPACE) as vm:
            vm.load(kvm_guest.ENDLESS)
            vm.start(kvm_guest.ENDLESS, {})
            stage("endless guest")
            return vm.run(kvm_guest.ENDLESS, limit_s).error.encode()

    return work


@needs_kvm
def test_endless_guest_is_stopped_by_its_own_limit() -> None:
    found = run_in_child(_endless_guest(0.1), 20)
    assert (found.outcome, found.result.decode()) == (Outcome.DONE, NEVER_ENDED)


@needs_kvm
def test_endless_guest_without_a_limit_is_killed_at_the_deadline() -> None:
    found = run_in_child(_endless_guest(3600), 0.3)
    assert (found.outcome, found.step) == (Outcome.TIMED_OUT, "endless guest")


def test_probe_itself_is_killed_at_the_deadline_and_says_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(device: str, machine: str, stage: Callable[[str], None], **_: float) -> NoReturn:
        stage("a call that never returns")
        while True:
            signal.pause()

    monkeypatch.setattr(kvm_collect, "collect", hang)
    found = probe_kvm(DEVICE, deadline_s=1)
    assert found.verdict is Verdict.BROKEN
    assert "timed out: killed after 1 s" in found.why
    assert [failure.step for failure in found.failures] == ["a call that never returns"]


@needs_kvm
def test_out_of_time_the_rest_is_left_out_and_what_is_known_is_kept() -> None:
    def work(stage: Callable[[str], None]) -> bytes:
        return msgspec.json.encode(collect(DEVICE, "x86_64", stage, budget_s=0.0))

    found = msgspec.json.decode(run_in_child(work, 20).result, type=KvmReport)
    assert found.api_version == 12
    assert found.guests == ()
    assert found.hypercalls == ()
    assert {failure.error for failure in found.failures} == {"ETIME"}
    assert judge_report(found).verdict is Verdict.BROKEN  # nothing was executed: never usable


@needs_kvm
def test_fault_in_a_guest_is_named() -> None:
    """An undefined instruction goes through the guest's own IDT and comes back as #UD."""
    bad = kvm_guest.Program("ud2", CpuMode.KERNEL, (("0f 0b", "ud2"),), per_iteration=1)
    worse = kvm_guest.Program("ud2", CpuMode.USER, (("0f 0b", "ud2"),), per_iteration=1)

    def work(_: Callable[[str], None]) -> bytes:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        with Machine(fd, IrqchipMode.USERSPACE, kvm.get_supported_cpuid(fd)) as vm:
            return msgspec.json.encode([measure(vm, program, 1000).error for program in (bad, worse)])

    assert msgspec.json.decode(run_in_child(work, 20).result) == ["exception #UD in the guest"] * 2


@needs_kvm
def test_machine_closes_what_it_opened_when_it_fails() -> None:
    def work(_: Callable[[str], None]) -> bytes:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        before = _open_fds()
        wrong = [kvm.CpuidEntry(0, 0, 0, 0, 0, 0, 0)] * (kvm.CPUID_ENTRIES_MAX + 1)
        try:
            Machine(fd, IrqchipMode.SPLIT, wrong)
        except OSError as fault:
            return f"{fault.filename} {_open_fds() == before}".encode()
        return b"it was accepted"

    assert run_in_child(work, 20).result == b"KVM_SET_CPUID2 True"


@pytest.mark.parametrize("device", ["/nonexistent/kvm", "/dev/null/kvm"])
def test_absent(device: str) -> None:
    found = probe_kvm(device)
    assert found.verdict is Verdict.ABSENT
    assert device in found.why
    assert found.next_step


@pytest.mark.parametrize("kind", ["/dev/null", "/dev/zero", "file", "directory", "fifo", "link"])
def test_what_is_not_the_kvm_device_is_broken_and_never_crashes(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "kvm"
    if kind == "file":
        target.write_bytes(b"KVM")
    elif kind == "directory":
        target.mkdir()
    elif kind == "fifo":
        os.mkfifo(target)
    elif kind == "link":
        target.symlink_to("/dev/null")
    else:
        target = Path(kind)
    found = probe_kvm(str(target))
    assert found.verdict is Verdict.BROKEN
    assert "not the KVM device" in found.why
    assert str(target) in found.next_step


@needs_kvm
@needs_root
def test_denied_to_a_user_without_rights(tmp_path: Path) -> None:
    """A node of the KVM device that only root may open, asked by another uid."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    status = os.stat(DEVICE)
    node = tmp_path / "kvm"
    try:
        os.mknod(node, 0o20600, status.st_rdev)
        os.close(os.open(node, os.O_RDWR))
    except OSError as fault:
        pytest.skip(f"no device nodes in {tmp_path}: {fault}")
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.write(write_fd, msgspec.json.encode(probe_kvm(str(node))))
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        found = msgspec.json.decode(pipe.read(), type=KvmReport)
    os.waitpid(pid, 0)
    assert found.verdict is Verdict.DENIED
    assert "EACCES" in found.why
    assert "group kvm" in found.next_step
    assert "0600, group root" in found.next_step


@needs_kvm
def test_another_architecture_is_not_pretended() -> None:
    found = probe_kvm(DEVICE, machine="aarch64")
    assert found.verdict is Verdict.UNKNOWN
    assert found.api_version == 12
    assert found.extensions
    assert found.guests == ()
    assert "not supported by this probe" in found.why
