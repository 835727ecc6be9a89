"""Each control has one minimal change to otherwise good facts that flips it, and it alone, for every fact it reads."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from casemate.controls.catalogue.launch import launch_controls
from casemate.controls.judge import judge, refusals
from casemate.controls.model import Control, Finding, Gate, Verdict
from casemate.facts.fact import Facts, Known, Stage, Unknown, Value

PASSING = msgspec.json.decode(
    (Path(__file__).parent.parent / "golden" / "facts_passing.json").read_bytes(), type=dict[str, Value]
)
CONTROLS = {control.id: control for control in launch_controls()}

GOOD_TYPES = PASSING["dev.types"]
assert isinstance(GOOD_TYPES, tuple)

# (control, fact) -> the nearest value that is not good enough.
MUTATIONS: dict[tuple[str, str], Value] = {
    ("os.mac", "host.lsm"): ("capability", "landlock"),
    ("hk.landlock", "host.landlock-abi"): 0,
    ("hk.core-sched", "host.core-sched"): False,
    ("os.userns", "host.userns"): False,
    ("dev.kvm", "dev.accel"): "tcg",
    ("kvm.irqchip-split", "kvm.irqchip"): "on",
    ("kvm.no-pit", "kvm.pit"): True,
    ("kvm.no-pic", "kvm.pic"): True,
    ("kvm.no-vhost-net", "vhost.descriptors"): ("/dev/vhost-net",),
    ("kvm.no-vhost-other", "vhost.descriptors"): ("/dev/vhost-vsock",),
    ("kvm.no-vhost-other", "dev.types"): (*GOOD_TYPES, "vhost-vsock-pci"),
    ("kvm.nested-off", "cpu.nested-flags"): ("vmx",),
    ("kvm.dev-perm", "host.kvm-device"): "root:kvm 0666",
    ("cpu.ksm", "mem.merge"): True,
    ("dev.nodefaults", "dev.nodefaults"): False,
    ("dev.machine", "dev.machine"): "pc-i440fx-7.2-machine",
    ("dev.insecure-types", "dev.insecure-types"): ("sga",),
    ("dev.no-floppy", "dev.types"): (*GOOD_TYPES, "isa-fdc"),
    ("dev.no-legacy-nic", "dev.types"): (*GOOD_TYPES, "rtl8139"),
    ("dev.no-legacy-disk", "dev.types"): (*GOOD_TYPES, "lsi53c895a"),
    ("dev.no-usb", "dev.usb"): ("qemu-xhci",),
    ("dev.no-usb", "dev.types"): (*GOOD_TYPES, "piix3-usb-uhci"),
    ("dev.no-display", "dev.display"): "vnc",
    ("dev.no-display", "dev.types"): (*GOOD_TYPES, "cirrus-vga"),
    ("dev.no-share", "dev.types"): (*GOOD_TYPES, "virtio-9p-pci"),
    ("dev.platform-off", "dev.types"): (*GOOD_TYPES, "hpet"),
    ("dev.smm", "dev.smm"): True,
    ("dev.boot-variables", "dev.boot-variables"): ("system.flash1 takes writes from any code",),
    ("dev.secure-boot", "dev.secure-boot"): "off: SecureBootEnable is 0",
    ("dev.boot-keys", "dev.boot-keys"): ("db: x509:00 added",),
    ("dev.no-hotplug", "dev.types"): (*GOOD_TYPES, "pcie-root-port"),
    ("iommu.no-hostdev", "vm.passthrough"): ("0000:3b:02.1",),
    ("iommu.no-hostdev", "dev.types"): (*GOOD_TYPES, "vfio-pci"),
    ("iommu.no-usb-host", "dev.types"): (*GOOD_TYPES, "usb-host"),
    ("vmm.qmp", "qmp.transport"): "unix",
    ("vmm.no-debug", "emu.debug"): ("-gdb",),
    ("vmm.console-bounded", "console.bounded"): False,
    ("mem.no-dump", "mem.dump"): True,
    ("proc.uid", "proc.uid"): 0,
    ("proc.gid", "proc.gid"): 0,
    ("proc.uid-unique", "run.uid-unique"): False,
    ("proc.groups", "proc.groups"): ("27",),
    ("proc.kvm-group", "proc.kvm-group"): ("104",),
    ("proc.caps", "proc.caps"): ("cap_chown",),
    ("proc.securebits", "proc.securebits"): "0x2f",
    ("proc.no-new-privs", "proc.no-new-privs"): False,
    ("proc.seccomp-on", "proc.seccomp-mode"): 0,
    ("proc.seccomp-on", "proc.seccomp-filters"): 0,
    ("proc.seccomp-strength", "proc.seccomp-dangerous"): ("ptrace",),
    ("proc.seccomp-arch", "proc.seccomp-foreign-arch"): "allow",
    ("proc.seccomp-size", "proc.seccomp-allowed"): 71,
    ("proc.qemu-sandbox", "emu.sandbox"): "on,obsolete=deny,elevateprivileges=deny,spawn=allow,resourcecontrol=deny",
    ("proc.ns", "proc.namespaces"): ("user", "mnt", "pid", "net", "ipc", "uts"),
    ("proc.root", "proc.root-unexpected"): ("/bin/sh",),
    ("proc.mounts", "proc.mounts-writable"): ("/tmp",),
    ("proc.landlock", "proc.landlock"): 0,
    ("proc.mac-label", "proc.mac-label"): "system_u:system_r:svirt_t:s0",
    ("proc.mcs-unique", "proc.mcs-unique"): False,
    ("cpu.core-sched", "proc.core-cookie"): False,
    ("proc.exe", "proc.exe"): "/usr/bin/qemu-system-x86_64 (deleted)",
    ("proc.no-rwx", "proc.wx-maps"): 1,
    ("proc.fds", "proc.fds-unexpected"): ("11 -> /etc",),
    ("proc.rlimits", "proc.rlimit-core"): 1,
    ("proc.dumpable", "proc.dumpable"): True,
    ("proc.cgroup", "proc.cgroup-controllers"): ("cpu", "io", "memory"),
    ("proc.cgroup", "proc.cgroup"): ("memory.max=max", "pids.max=128"),
    ("proc.cgroup-cpu", "proc.cgroup-controllers"): ("io", "memory", "pids"),
    ("proc.session", "proc.session"): False,
    ("proc.parent-death", "proc.parent-death-signal"): 0,
    ("dev.no-slirp", "net.backend"): "user",
    ("net.host-loopback", "net.host-loopback"): True,
    ("net.egress", "net.egress"): "any",
    ("net.publish-wide", "net.publish-wide"): ("0.0.0.0:8080",),
    ("img.format-explicit", "img.formats"): ("disk0=qcow2", "disk1=vmdk"),
    ("img.no-backing", "img.backing"): ("disk0: /etc/shadow",),
    ("img.exclusive", "img.shared-writable"): ("disk0",),
    ("img.hash", "img.digest-checked"): (),
    ("img.origin", "img.origin-unverified"): ("disk0: debian: no signature",),
    ("img.local-origin", "img.origin-local"): ("disk0: disk.img",),
    ("img.enforced", "img.launch-only"): ("disk0",),
    ("ent.virtio-rng", "ent.virtio-rng"): "/dev/hwrng",
    ("tpm.state-encrypted", "tpm.state-encrypted"): False,
    ("tpm.state-encrypted", "tpm.key-in-arguments"): True,
    ("tpm.confined", "tpm.wall-faults"): ("proc.caps: ('cap_chown',), planned ()",),
    ("tpm.own-uid", "tpm.own-uid"): False,
}

# (control, context fact) -> a value with which the control does not apply.
NOT_APPLICABLE: dict[tuple[str, str], Value] = {
    ("kvm.irqchip-split", "dev.accel"): "tcg",
    ("kvm.no-pit", "dev.accel"): "tcg",
    ("kvm.no-pic", "dev.accel"): "tcg",
    ("proc.no-rwx", "dev.accel"): "tcg",
    ("dev.boot-variables", "vm.firmware"): "uefi",
    ("dev.secure-boot", "vm.firmware"): "uefi",
    ("dev.boot-keys", "vm.firmware"): "bios",
    ("proc.landlock", "host.landlock-abi"): 0,
    ("proc.mac-label", "host.lsm"): ("capability", "landlock"),
    ("proc.mcs-unique", "host.lsm"): ("capability", "apparmor"),
    ("cpu.core-sched", "host.core-sched"): False,
    ("net.egress", "net.backend"): "none",
    ("img.format-explicit", "img.formats"): (),
    ("img.origin", "img.formats"): (),
    ("img.origin", "img.origin-judged"): (),
    ("img.local-origin", "img.formats"): (),
    ("img.enforced", "img.formats"): (),
    ("img.enforced", "img.origin-pinned"): (),
    ("tpm.state-encrypted", "tpm.backend"): "none",
    ("tpm.confined", "tpm.backend"): "emulator",
    ("tpm.own-uid", "tpm.backend"): "passthrough",
}


def observed(changes: dict[str, Value] | None = None) -> Facts:
    """The passing facts, with changes, as read from a live process."""
    return {name: Known(value, f"test: {name}") for name, value in {**PASSING, **(changes or {})}.items()}


def verdicts(facts: Facts) -> dict[str, Finding]:
    return {f.control_id: f for f in judge(launch_controls(), facts, stage=Stage.OBSERVED)}


def test_the_good_vm_passes_every_control() -> None:
    findings = verdicts(observed())
    assert {f.verdict for f in findings.values()} == {Verdict.PASS}
    assert refusals(tuple(findings.values())) == ()


def test_every_control_and_every_fact_it_reads_has_a_mutation() -> None:
    wanted = {(c.id, check.fact) for c in launch_controls() for check in c.checks}
    assert wanted == set(MUTATIONS)


def test_every_condition_has_a_case_in_which_it_does_not_hold() -> None:
    wanted = {(c.id, condition.fact) for c in launch_controls() for condition in c.applies_when}
    assert wanted == set(NOT_APPLICABLE)


def test_the_passing_facts_are_those_that_controls_read() -> None:
    read = {name for c in launch_controls() for name in (*c.facts_read(), *(k.fact for k in c.applies_when))}
    assert read == set(PASSING)


@pytest.mark.parametrize(("control_id", "fact"), MUTATIONS, ids=lambda v: v)
def test_one_minimal_change_flips_exactly_that_control(control_id: str, fact: str) -> None:
    findings = verdicts(observed({fact: MUTATIONS[control_id, fact]}))
    assert {i for i, f in findings.items() if f.verdict is Verdict.FAIL} == {control_id}
    # A change of a context fact may take others out of play; nothing else may happen to them.
    may_leave = {c for c, context in NOT_APPLICABLE if context == fact}
    others = {i: f.verdict for i, f in findings.items() if i != control_id and i not in may_leave}
    assert set(others.values()) == {Verdict.PASS}


@pytest.mark.parametrize(("control_id", "fact"), MUTATIONS, ids=lambda v: v)
def test_a_failed_control_explains_itself(control_id: str, fact: str) -> None:
    finding = verdicts(observed({fact: MUTATIONS[control_id, fact]}))[control_id]
    assert fact in finding.evidence
    assert f"test: {fact}" in finding.evidence
    assert fact in finding.expected
    assert fact in finding.why
    assert finding.remedy


@pytest.mark.parametrize(("control_id", "fact"), MUTATIONS, ids=lambda v: v)
@pytest.mark.parametrize("gone", ["missing", "unknown"])
def test_what_is_not_known_is_unknown_and_stops_a_launch(control_id: str, fact: str, gone: str) -> None:
    facts = observed()
    del facts[fact]
    if gone == "unknown":
        facts[fact] = Unknown("the test took it away")
    findings = judge(launch_controls(), facts, stage=Stage.OBSERVED)
    finding = next(f for f in findings if f.control_id == control_id)
    assert finding.verdict is Verdict.UNKNOWN
    assert (finding in refusals(findings)) is (CONTROLS[control_id].gate is Gate.LAUNCH)


@pytest.mark.parametrize("control", launch_controls(), ids=lambda c: c.id)
def test_declared_values_satisfy_only_controls_that_say_so(control: Control) -> None:
    facts: Facts = {name: Known(value, "plan", Stage.DECLARED) for name, value in PASSING.items()}
    at_launch = judge((control,), facts, stage=Stage.OBSERVED)[0]
    in_plan = judge((control,), facts, stage=Stage.DECLARED)[0]
    if control.needs_stage is Stage.DECLARED:
        assert (at_launch.verdict, in_plan.verdict) == (Verdict.PASS, Verdict.PASS)
    else:
        assert (at_launch.verdict, at_launch.pending) == (Verdict.UNKNOWN, False)
        assert (in_plan.verdict, in_plan.pending) == (Verdict.UNKNOWN, True)
        assert refusals((in_plan,)) == ()


@pytest.mark.parametrize(("control_id", "fact"), NOT_APPLICABLE, ids=lambda v: v)
def test_applicability_is_decided_by_data(control_id: str, fact: str) -> None:
    finding = verdicts(observed({fact: NOT_APPLICABLE[control_id, fact]}))[control_id]
    assert finding.verdict is Verdict.NOT_APPLICABLE
    condition = next(c for c in CONTROLS[control_id].applies_when if c.fact == fact)
    assert finding.why == condition.otherwise


@pytest.mark.parametrize(("control_id", "fact"), NOT_APPLICABLE, ids=lambda v: v)
def test_unknown_applicability_is_unknown_not_a_way_out(control_id: str, fact: str) -> None:
    facts = observed()
    facts[fact] = Unknown("nobody could tell")
    assert verdicts(facts)[control_id].verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(("control_id", "fact"), NOT_APPLICABLE, ids=lambda v: v)
def test_a_declared_context_cannot_switch_a_live_control_off(control_id: str, fact: str) -> None:
    facts = observed()
    facts[fact] = Known(NOT_APPLICABLE[control_id, fact], "plan", Stage.DECLARED)
    assert verdicts(facts)[control_id].verdict is Verdict.UNKNOWN
