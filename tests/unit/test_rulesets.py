"""The reviewed allowlists against the traces: nothing missing, nothing too much, nothing dangerous.

Decided here in plain Python on `Rule` objects, independently of the compiler and of BPF.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.bpf.syscalls import numbers
from casemate.jail.choices import build_calls
from casemate.jail.profiles import (
    ACCELERATORS,
    CONFIDENTIAL,
    DEVICES,
    passt_profile,
    qemu_img_profile,
    qemu_profile,
    reader_profile,
    supervisor_profile,
    swtpm_profile,
)
from casemate.jail.rules import Arg, Op, Origin, Phase, Profile, Rule
from casemate.jail.rulesets import qemu_base, qemu_confidential, qemu_devices
from casemate.jail.rulesets.kvm_ioctls import KVM_IOCTLS, SEV_IOCTLS
from casemate.jail.rulesets.values import AF_UNIX, CLONE_THREAD_GLIBC, int_is

ROOT = Path(__file__).resolve().parents[2]
TRACES = sorted((ROOT / "tests/data/traces").glob("*.json"))
CORE = frozenset({"blk", "rng", "console"})
HELPERS = [passt_profile(), supervisor_profile(), qemu_img_profile(), reader_profile(), swtpm_profile()]

_DANGEROUS_WORDS = """
    execve execveat fork vfork clone3 ptrace bpf mount umount2 pivot_root chroot move_mount open_tree fsopen fsmount
    fsconfig fspick mount_setattr unshare setns init_module finit_module delete_module kexec_load kexec_file_load
    userfaultfd perf_event_open open_by_handle_at name_to_handle_at io_uring_setup io_uring_enter io_uring_register
    keyctl add_key request_key process_vm_readv process_vm_writev process_madvise pidfd_getfd reboot swapon swapoff
    settimeofday clock_settime adjtimex iopl ioperm modify_ldt personality quotactl acct syslog setuid setgid setgroups
    setresuid setresgid capset chown fchown fchownat setxattr mknod mknodat memfd_create memfd_secret
"""
DANGEROUS = frozenset(_DANGEROUS_WORDS.split())


def applies(rule: Rule, args: dict[int, int]) -> bool:
    """Whether a rule's comparisons hold; an argument that a trace does not record is a fault of the tracer."""
    return all(holds(arg, args) for arg in rule.args)


def holds(arg: Arg, args: dict[int, int]) -> bool:
    """One comparison."""
    assert arg.index in args, f"the traces do not record argument {arg.index}: add it to tools/trace/strace_summary.py"
    value = args[arg.index]
    return {
        Op.EQ: value == arg.value,
        Op.NE: value != arg.value,
        Op.LT: value < arg.value,
        Op.LE: value <= arg.value,
        Op.GT: value > arg.value,
        Op.GE: value >= arg.value,
        Op.MASKED_EQ: value & arg.mask == arg.value,
    }[arg.op]


def decide(profile: Profile, syscall: str, args: dict[int, int]) -> Rule | None:
    """The rule that decides, in the compiler's order: always, start-up, errno; None: the process is killed."""
    found = [rule for rule in profile.rules if rule.syscall == syscall and applies(rule, args)]
    for errno, phase in ((False, Phase.ALWAYS), (False, Phase.STARTUP), (True, Phase.ALWAYS)):
        for rule in found:
            if (rule.errno is not None) == errno and rule.phase is phase:
                return rule
    return None


def load(path: Path) -> dict[str, Any]:
    """One trace summary."""
    trace: dict[str, Any] = json.loads(path.read_text())
    return trace


def profile_of(trace: dict[str, Any]) -> Profile:
    """The profile under which the traced program would have run."""
    if trace["program"] == "passt":
        return passt_profile()
    if trace["program"] == "supervisor":
        return supervisor_profile()
    if trace["program"] == "swtpm":
        return swtpm_profile()
    if trace["program"] == "reader":
        return reader_profile()
    if trace["program"] == "qemu-img":
        return qemu_img_profile()
    return qemu_profile(trace["accel"], frozenset(trace["devices"]))


def events(trace: dict[str, Any]) -> list[tuple[str, str, dict[int, int]]]:
    """(phase, call, arguments) of a trace."""
    return [
        (phase, name, {int(index): value for index, value in variant.items()})
        for phase in ("startup", "always")
        for name, variants in trace[phase].items()
        for variant in variants or [{}]
    ]


def allowed(profile: Profile, phase: Phase | None = None) -> set[str]:
    """Distinct system calls that a profile allows for some arguments, in ``phase`` or at all."""
    return {rule.syscall for rule in profile.rules if rule.errno is None and phase in {None, rule.phase}}


def every_profile() -> list[Profile]:
    """Each accelerator with each set of devices, and the helpers."""
    subsets = [frozenset(s) for n in range(len(DEVICES) + 1) for s in itertools.combinations(DEVICES, n)]
    kinds = [frozenset(k) for n in range(len(CONFIDENTIAL) + 1) for k in itertools.combinations(CONFIDENTIAL, n) if k]
    encrypted = [qemu_profile("kvm", CORE | {"net"} | kind) for kind in kinds]
    return [qemu_profile(accel, s) for accel in ACCELERATORS for s in subsets] + encrypted + HELPERS


def test_there_are_traces_of_both_accelerators_both_versions_and_the_helpers() -> None:
    traces = [load(path) for path in TRACES]
    assert {trace.get("accel") for trace in traces if trace["program"] == "qemu"} == {"tcg", "kvm"}
    assert len({trace["version"].split(".")[0] for trace in traces if trace["program"] == "qemu"}) >= 2
    assert {trace["program"] for trace in traces} == {"qemu", "passt", "supervisor", "qemu-img", "reader", "swtpm"}


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_replay_every_traced_call_is_answered_in_its_phase(path: Path) -> None:
    trace = load(path)
    profile = profile_of(trace)
    survived = qemu_base.SURVIVED_AFTER_STARTUP if trace["program"] == "qemu" else {}
    missing = []
    for phase, name, args in events(trace):
        rule = decide(profile, name, args)
        late = phase == "always" and rule is not None and rule.phase is Phase.STARTUP
        if rule is None or (late and name not in survived):
            missing.append(f"{phase}: {name} {args}")
    assert not missing, f"{profile.name} lacks rules that {path.stem} needs:\n" + "\n".join(missing)


def test_every_traced_rule_is_needed_in_its_phase_by_a_trace() -> None:
    needed: set[tuple[str, Rule]] = set()
    known: set[tuple[str, Rule]] = set()
    for path in TRACES:
        trace = load(path)
        profile = profile_of(trace)
        for phase, name, args in events(trace):
            rule = decide(profile, name, args)
            # A rule for the whole life must be seen after start-up; an errno may be seen at any time.
            if rule is not None and (rule.errno is not None or rule.phase.value == phase):
                needed.add((name, rule))
    for profile in (qemu_profile("tcg", frozenset(DEVICES)), qemu_profile("kvm", frozenset(DEVICES))):
        known |= {(rule.syscall, rule) for rule in profile.rules if rule.origin is Origin.TRACED}
    for profile in HELPERS:
        known |= {(rule.syscall, rule) for rule in profile.rules if rule.origin is Origin.TRACED}
    idle = sorted(f"{rule.syscall} {rule.phase} {rule.args}: {rule.reason}" for _, rule in known - needed)
    assert not idle, "rules that no trace needs (remove them, or mark them SOURCE):\n" + "\n".join(idle)


def test_every_survived_call_is_seen_after_start_up() -> None:
    late = {
        name
        for path in TRACES
        if (trace := load(path))["program"] == "qemu"
        for phase, name, args in events(trace)
        if phase == "always" and (rule := decide(profile_of(trace), name, args)) and rule.phase is Phase.STARTUP
    }
    assert late == set(qemu_base.SURVIVED_AFTER_STARTUP)


@pytest.mark.parametrize(("accel", "most"), [("kvm", 64), ("tcg", 70)])
def test_number_of_allowed_calls(accel: str, most: int) -> None:
    profile = qemu_profile(accel, CORE)
    whole, later = len(allowed(profile)), len(allowed(profile, Phase.ALWAYS))
    print(f"{profile.name}: {whole} calls allowed, {later} of them after start-up (aim: at most {most})")
    assert 20 < later < whole <= most


@pytest.mark.parametrize("profile", every_profile(), ids=lambda profile: profile.name)
def test_profiles_are_well_formed_and_free_of_dangerous_calls(profile: Profile) -> None:
    assert build_calls(profile, "x86_64")
    assert not allowed(profile, Phase.ALWAYS) & DANGEROUS
    for rule in profile.rules:
        assert len(rule.reason) > 3
        assert rule.syscall in numbers("x86_64")
    sockets = [rule for rule in profile.rules if rule.syscall == "socket" and rule.phase is Phase.ALWAYS]
    if profile.name == "passt":
        assert {rule.args[0].value for rule in sockets} == {2, 10}
    elif "+quotes" in profile.name:  # one socket lies in the root, and abstract ones belong to the network namespace
        assert [rule.args for rule in sockets] == [(int_is(0, AF_UNIX),)]
        assert not allowed(profile) & {"bind", "listen"}
    else:
        assert not allowed(profile) & {"socket", "connect", "bind", "listen"}


@pytest.mark.parametrize("accel", sorted(ACCELERATORS))
def test_no_executable_memory_and_no_process_after_start_up(accel: str) -> None:
    profile = qemu_profile(accel, frozenset(DEVICES))
    for name in ("mmap", "mprotect"):
        for protection in (4, 5, 6, 7):
            rule = decide(profile, name, {2: protection, 3: 0x22})
            assert rule is None or rule.phase is Phase.STARTUP
    assert decide(profile, "clone", {0: CLONE_THREAD_GLIBC}) is not None
    for flag in range(64):
        assert decide(profile, "clone", {0: CLONE_THREAD_GLIBC ^ (1 << flag)}) is None
    assert decide(profile, "clone", {0: 17}) is None


def test_kvm_ioctls_exist_only_under_kvm_and_terminals_nowhere() -> None:
    kvm, tcg = qemu_profile("kvm", CORE), qemu_profile("tcg", CORE)
    assert decide(kvm, "ioctl", {1: KVM_IOCTLS["KVM_RUN"]}) is not None
    for number in KVM_IOCTLS.values():
        assert decide(tcg, "ioctl", {1: number}) is None
    for tiocsti in (0x5412, 0x541C):
        assert decide(kvm, "ioctl", {1: tiocsti}) is None


@given(st.integers(0, 0xFFFF_FFFF), st.integers(0, 0xFFFF_FFFF))
def test_an_ioctl_number_is_judged_by_the_32_bits_that_the_kernel_reads(high: int, low: int) -> None:
    profile = qemu_profile("kvm", frozenset(DEVICES))
    for number in (low, KVM_IOCTLS["KVM_GET_MSRS"], KVM_IOCTLS["KVM_RUN"]):
        assert decide(profile, "ioctl", {1: high << 32 | number}) == decide(profile, "ioctl", {1: number})


def test_parts_only_add() -> None:
    for accel in ACCELERATORS:
        bare = set(qemu_profile(accel, frozenset()).rules)
        for device in DEVICES:
            with_device = qemu_profile(accel, frozenset({device}))
            assert set(with_device.rules) == bare | set(qemu_devices.PARTS[device])
            assert with_device.parts == ("qemu_base", f"qemu_{accel}", f"qemu_devices.{device}")


def test_what_encrypts_is_allowed_to_confidential_guests_only() -> None:
    """And all of it is marked as read in the source: none was ever run on hardware here."""
    plain = qemu_profile("kvm", frozenset(DEVICES))
    for name in ("KVM_MEMORY_ENCRYPT_OP", "KVM_CREATE_GUEST_MEMFD", "KVM_SET_MEMORY_ATTRIBUTES", "KVM_S390_PV_COMMAND"):
        assert decide(plain, "ioctl", {1: KVM_IOCTLS[name]}) is None
    assert decide(plain, "ioctl", {1: SEV_IOCTLS["SEV_ISSUE_CMD"]}) is None
    for kind in CONFIDENTIAL:
        rules = qemu_confidential.PARTS[kind]
        assert {rule.origin for rule in rules} == {Origin.SOURCE}
        assert set(qemu_profile("kvm", CORE | {kind}).rules) == set(qemu_profile("kvm", CORE).rules) | set(rules)
    snp, tdx = qemu_profile("kvm", CORE | {"sev-snp"}), qemu_profile("kvm", CORE | {"tdx"})
    encrypt = {1: KVM_IOCTLS["KVM_MEMORY_ENCRYPT_OP"]}
    # SEV-SNP is measured to its end by the first cont; a trust domain is ready before it.
    assert [getattr(decide(p, "ioctl", encrypt), "phase", None) for p in (snp, tdx)] == [Phase.ALWAYS, Phase.STARTUP]


def test_numbers_of_the_ioctls_of_confidential_guests() -> None:
    """Made as the kernel's headers make them: direction, size, type, number."""
    made = {
        "KVM_MEMORY_ENCRYPT_OP": (3, 8, 0xAE, 0xBA),
        "KVM_CREATE_GUEST_MEMFD": (3, 64, 0xAE, 0xD4),
        "KVM_SET_MEMORY_ATTRIBUTES": (1, 32, 0xAE, 0xD2),
        "KVM_GET_CPUID2": (3, 8, 0xAE, 0x91),
        "KVM_S390_PV_COMMAND": (3, 32, 0xAE, 0xC5),
        "SEV_ISSUE_CMD": (3, 16, ord("S"), 0),
    }
    for name, (direction, size, kind, number) in made.items():
        assert (KVM_IOCTLS | SEV_IOCTLS)[name] == direction << 30 | size << 16 | kind << 8 | number


def test_names_and_wrong_use() -> None:
    assert qemu_profile("tcg", frozenset({"net", "blk"})).name == "qemu-tcg+blk+net"
    with pytest.raises(RuntimeError, match="accelerator 'xen'"):
        qemu_profile("xen", frozenset())
    with pytest.raises(RuntimeError, match="usb"):
        qemu_profile("tcg", frozenset({"usb"}))


def test_documentation_is_what_the_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("seccomp_doc", ROOT / "tools/seccomp_doc.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs/seccomp.md").read_text() == module.render(), "run: python tools/seccomp_doc.py"
