"""Verdicts from synthetic reports, decoding of CPUID and names, presentation. No KVM needed."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.cli.host import print_kvm
from casemate.facts.kvm import refused_cpu_flags
from casemate.facts.kvm_collect import decode_cpuid, failure_of
from casemate.facts.kvm_components import Handler, in_kernel_components, vhost_drivers
from casemate.facts.kvm_names import CAPABILITIES, EXIT_REASONS, PV_FEATURES, bit_names, exit_name
from casemate.facts.kvm_report import (
    USABLE_MIN_INSTRUCTIONS_PER_S,
    CpuMode,
    DeviceNode,
    Extension,
    Failure,
    GuestRun,
    Hypercall,
    Irqchip,
    IrqchipMode,
    KvmReport,
    Limits,
    Verdict,
    judge_report,
    rate_per_s,
)
from casemate.sys.kvm import CpuidEntry


def guest(name: str, rate: int | None, error: str = "") -> GuestRun:
    """A synthetic run of one guest."""
    mode = CpuMode.USER if name == "count-user" else CpuMode.KERNEL
    return GuestRun(name, mode, 3, 1000, 2000, {"io": 1}, 10, 10, rate, rate, error)


def report(rate: int | None = 3_000_000_000, **changes: Any) -> KvmReport:
    """A synthetic report of a healthy host, with changes."""
    values: dict[str, Any] = {
        "device": "/dev/kvm",
        "machine": "x86_64",
        "kernel_release": "6.1.0",
        "node": DeviceNode(0o660, 0, 106, "kvm"),
        "api_version": 12,
        "extensions": (Extension(8, "CLOCKSOURCE", 1), Extension(36, "IOEVENTFD", 1)),
        "irqchips": (
            Irqchip(IrqchipMode.KERNEL, True, "", pic=True, ioapic=True, pit=True, local_apic=True),
            Irqchip(IrqchipMode.SPLIT, True, "", local_apic=True),
            Irqchip(IrqchipMode.USERSPACE, True, ""),
        ),
        "limits": Limits(4, 1024, 4096, 32764, 12288, 40, 4),
        "guests": (guest("count-kernel", rate, "" if rate else "exit shutdown"), guest("count-user", 5_000_000_000)),
    }
    values.update(changes)
    return judge_report(KvmReport(**values))


def fatal(step: str, number: int, **changes: Any) -> KvmReport:
    """A report that ended at ``step``."""
    failure = failure_of(step, OSError(number, ""), fatal=True)
    return report(api_version=None, guests=(), irqchips=(), failures=(failure,), **changes)


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [
        (8_000_000_000, Verdict.USABLE),
        (USABLE_MIN_INSTRUCTIONS_PER_S, Verdict.USABLE),
        (USABLE_MIN_INSTRUCTIONS_PER_S - 1, Verdict.EMULATED),
        (1_700_000, Verdict.EMULATED),
        (1, Verdict.EMULATED),
        (None, Verdict.BROKEN),
    ],
)
def test_speed_of_kernel_mode_decides(rate: int | None, verdict: Verdict) -> None:
    assert report(rate).verdict is verdict


def test_emulated_names_the_measured_rate_threshold_and_next_step() -> None:
    found = report(1_700_000)
    assert "1.7 M instructions/s" in found.why
    assert "user mode: 5,000 M/s" in found.why
    assert "at least 100 M/s" in found.why
    assert 'accel = "tcg"' in found.next_step
    assert "not a security boundary" in found.next_step


def test_usable_needs_no_next_step() -> None:
    assert report().next_step == ""


def test_guest_that_was_never_run_is_broken() -> None:
    found = report(guests=())
    assert found.verdict is Verdict.BROKEN
    assert "was not run" in found.why


def test_other_api_version_is_broken() -> None:
    found = report(api_version=11)
    assert found.verdict is Verdict.BROKEN
    assert "11" in found.why


def test_other_architecture_is_honestly_unknown() -> None:
    found = report(machine="aarch64", guests=())
    assert found.verdict is Verdict.UNKNOWN
    assert "aarch64 is not supported by this probe" in found.why


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_denied_open(number: int) -> None:
    found = fatal("open", number)
    assert found.verdict is Verdict.DENIED
    assert errno.errorcode[number] in found.why
    assert "usermod -aG kvm" in found.next_step


def test_denied_open_of_a_root_only_node_names_the_node() -> None:
    found = fatal("open", errno.EACCES, node=DeviceNode(0o600, 0, 0, "root"))
    assert "0600, group root" in found.next_step
    assert "chown root:kvm /dev/kvm" in found.next_step


def test_denied_ioctl_points_at_the_security_module() -> None:
    found = fatal("KVM_CREATE_VM", errno.EACCES)
    assert found.verdict is Verdict.DENIED
    assert "security module" in found.next_step


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR])
def test_absent(number: int) -> None:
    found = fatal("open", number)
    assert found.verdict is Verdict.ABSENT
    assert "kvm_intel" in found.next_step


@pytest.mark.parametrize(
    ("step", "number"),
    [("open", errno.ENOTTY), ("KVM_CREATE_VM", errno.EBUSY), ("KVM_CREATE_VM", errno.ENODEV), ("KVM_RUN", errno.EIO)],
)
def test_broken_names_step_and_errno(step: str, number: int) -> None:
    found = fatal(step, number)
    assert found.verdict is Verdict.BROKEN
    assert step in found.why
    assert errno.errorcode[number] in found.why
    assert found.next_step


def test_busy_names_the_likely_culprit() -> None:
    assert "VirtualBox" in fatal("KVM_CREATE_VM", errno.EBUSY).next_step


def test_absent_wins_over_architecture() -> None:
    assert fatal("open", errno.ENOENT, machine="aarch64").verdict is Verdict.ABSENT


@given(st.integers(min_value=1, max_value=20_000_000_000))
def test_verdict_is_monotonic_in_the_rate(rate: int) -> None:
    assert (report(rate).verdict is Verdict.USABLE) == (rate >= USABLE_MIN_INSTRUCTIONS_PER_S)


def test_report_survives_json() -> None:
    call = Hypercall("vmcall", CpuMode.KERNEL, 5, "KICK_CPU", 0, True, False, 900)
    found = report(hypercalls=(call,), failures=(Failure("x", "EIO", "y"),))
    assert msgspec.json.decode(msgspec.json.encode(found), type=KvmReport) == found


def test_rate_of_an_interval_too_short_to_measure() -> None:
    assert rate_per_s(7, 0) == 7_000_000_000
    assert rate_per_s(500, 1_000_000_000) == 500


# CPUID ------------------------------------------------------------------------------------------------------------


def _words(text: bytes) -> tuple[int, int, int]:
    return tuple(int.from_bytes(text[at : at + 4], "little") for at in (0, 4, 8))  # type: ignore[return-value]


def _entries(ecx1: int = 0, ecx81: int = 0, features: int = 0, hints: int = 0) -> tuple[CpuidEntry, ...]:
    ebx, edx, ecx = _words(b"GenuineIntel")
    kvm = _words(b"KVMKVMKVM\0\0\0")
    return (
        CpuidEntry(0, 0, 0, 0x20, ebx, ecx, edx),
        CpuidEntry(1, 0, 0, 0, 0, ecx1, 0),
        CpuidEntry(7, 0, 1, 2, 0, 0, 0),
        CpuidEntry(7, 1, 1, 0, 0, 0, 0),
        CpuidEntry(0x8000_0001, 0, 0, 0, 0, ecx81, 0),
        CpuidEntry(0x4000_0000, 0, 0, 0x4000_0001, *kvm),
        CpuidEntry(0x4000_0001, 0, 0, features, 0, 0, hints),
    )


def test_cpuid_leaves() -> None:
    found = decode_cpuid(_entries(1 << 24 | 1 << 5 | 1 << 31, 1 << 2, 1 << 3 | 1 << 7 | 1 << 24, 1), ())
    assert found.vendor == "GenuineIntel"
    assert found.kvm_signature == "KVMKVMKVM"
    assert (found.tsc_deadline, found.vmx, found.svm, found.hypervisor, found.x2apic) == (True, True, True, True, False)
    assert found.kvm_features == ("clocksource2", "pv-unhalt", "clocksource-stable-bit")
    assert found.kvm_hints == ("realtime",)
    assert found.entries == 7


def test_tsc_deadline_by_capability_alone() -> None:
    assert decode_cpuid(_entries(), (Extension(72, "TSC_DEADLINE_TIMER", 1),)).tsc_deadline
    assert not decode_cpuid(_entries(), (Extension(72, "TSC_DEADLINE_TIMER", 0),)).tsc_deadline


def test_empty_cpuid_claims_nothing() -> None:
    found = decode_cpuid((), ())
    assert not any((found.tsc_deadline, found.vmx, found.svm, found.kvm_features, found.vendor, found.kvm_signature))


@given(st.lists(st.tuples(*[st.integers(0, 0xFFFF_FFFF)] * 7), max_size=40))
def test_any_cpuid_decodes_to_printable_text(rows: list[tuple[int, int, int, int, int, int, int]]) -> None:
    found = decode_cpuid(tuple(CpuidEntry(*row) for row in rows), ())
    assert (found.vendor + found.kvm_signature).isprintable()


@given(st.integers(0, 0xFFFF_FFFF))
def test_every_set_bit_gets_one_name(value: int) -> None:
    names = bit_names(value, PV_FEATURES)
    assert len(names) == len(set(names)) == value.bit_count()


def test_name_tables_have_no_doubles() -> None:
    for table in (CAPABILITIES, EXIT_REASONS, PV_FEATURES):
        assert len(set(table.values())) == len(table)
    assert exit_name(2) == "io"
    assert exit_name(999) == "exit-999"


# components, text ------------------------------------------------------------------------------------------


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_refused_msrs_become_cpu_flags() -> None:
    chip = Irqchip(IrqchipMode.USERSPACE, True, msrs_refused=("0x4b564d06", "0x10a", "0xdead"))
    assert refused_cpu_flags(chip) == ("arch-capabilities", "kvm-asyncpf-int")


def test_components_follow_what_was_measured(tmp_path: Path) -> None:
    surface = in_kernel_components(report(), tmp_path)
    assert surface.modes == (IrqchipMode.KERNEL, IrqchipMode.SPLIT, IrqchipMode.USERSPACE)
    chips = {"local APIC", "IOAPIC", "PIC (i8259)", "PIT (i8254)"}
    assert chips & set(surface.in_kernel(IrqchipMode.KERNEL)) == chips
    assert chips & set(surface.in_kernel(IrqchipMode.SPLIT)) == {"local APIC"}
    assert chips & set(surface.in_kernel(IrqchipMode.USERSPACE)) == set()
    assert "instruction emulator" in surface.in_kernel(IrqchipMode.USERSPACE)


def test_components_without_a_measurement_are_unknown(tmp_path: Path) -> None:
    absent = fatal("open", errno.ENOENT, extensions=())
    surface = in_kernel_components(absent, tmp_path)
    assert surface.modes == ()
    assert {handler for part in surface.components for handler in part.handlers.values()} == {Handler.UNKNOWN}


def test_vhost_drivers_by_node_and_module(tmp_path: Path) -> None:
    root = _tree(
        tmp_path, {"dev/vhost-net": "", "dev/vhost-vdpa-0": "", "proc/modules": "vhost_vsock 1 0 - Live 0x0\n"}
    )
    found = {driver.name: (driver.node_present, driver.module_loaded) for driver in vhost_drivers(root)}
    assert found == {"vhost-net": (True, False), "vhost-vsock": (False, True), "vhost-vdpa-0": (True, False)}


def test_vhost_without_any_module_list(tmp_path: Path) -> None:
    (driver,) = vhost_drivers(_tree(tmp_path, {"dev/vhost-net": ""}))
    assert driver.module_loaded is None


def printed(found: KvmReport, root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``doctor --kvm`` says of a report."""
    print_kvm(msgspec.to_builtins(found), msgspec.to_builtins(in_kernel_components(found, root)))
    return capsys.readouterr().out


def test_doctor_prints_verdict_next_step_and_who_emulates_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _tree(tmp_path, {"dev/vhost-net": "", "proc/modules": ""})
    calls = (
        Hypercall("vmcall", CpuMode.KERNEL, 5, "KICK_CPU", 0, True, False, 1900),
        Hypercall("vmmcall", CpuMode.KERNEL, 5, "KICK_CPU", None, None, False, None, "it never returned"),
    )
    text = printed(report(1_700_000, hypercalls=calls), root, capsys)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].startswith("emulated: ")
    assert lines[1].startswith("next: ")
    assert "local APIC kernel kernel emulator in the kernel where KVM_GET_LAPIC answers" in lines
    assert (
        "vhost-net kernel kernel kernel /dev/vhost-net is there; its module is not loaded; no VM of ours uses it"
        in (lines)
    )
    assert any(line.startswith("count-kernel kernel 1,700,000 ") for line in lines)
    assert "vmcall KICK_CPU kernel kernel 1,900 returned 0" in lines
    assert "vmmcall KICK_CPU kernel - - it never returned" in lines


def test_doctor_says_of_an_absent_kvm_only_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(fatal("open", errno.ENOENT, extensions=()), tmp_path, capsys)
    assert text.startswith("absent: no KVM at ")
    assert "failed: open: ENOENT" in text
    assert "Who emulates what" not in text
