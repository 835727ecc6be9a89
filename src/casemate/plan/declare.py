"""What the plan declares about the VM, under the same fact names that the read-back uses.

A declared fact never proves anything; it is what the observed one is compared with (control proc.drift).
"""

from __future__ import annotations

import hashlib
from itertools import pairwise

from casemate.facts.fact import Facts, Known, Stage, Unknown, Value
from casemate.jail.policy import NAMESPACES, Layer, Wall
from casemate.jail.rules import Phase, Profile
from casemate.plan.accel import Board
from casemate.plan.argv import SANDBOX, program_of
from casemate.plan.confidential import FIRMWARE_ROLE, promise
from casemate.plan.label import observed_form
from casemate.plan.model import HelperPlan, Host, OpenFile
from casemate.plan.provisioning import channel_facts, is_provisioned
from casemate.spec.model import Egress, MachineType, NetworkMode, Spec
from casemate.spec.network import bracketed, is_loopback

SECCOMP_FILTERS = 2
"""Ours and QEMU's own ``-sandbox``."""


def declare(
    spec: Spec,
    board: Board,
    host: Host,
    wall: Wall,
    profile: Profile,
    files: tuple[OpenFile, ...],
    vm_id: str,
    helpers: tuple[HelperPlan, ...],
) -> Facts:
    """All declared facts of a launch."""
    facts: Facts = {}

    def say(name: str, value: Value, source: str) -> None:
        facts[name] = Known(value, source, Stage.DECLARED)

    _process(say, spec, wall, profile)
    planned = tuple(sorted(a.split(",")[0] for flag, a in pairwise(wall.argv) if flag == "-device"))
    _devices(say, spec, board, planned)
    say("img.formats", tuple(sorted({file.image_format for file in files if file.image_format})), "specification")
    say("img.shared-writable", (), "lock on every image")
    say("img.backing", (), "header readers refuse every external reference")
    promised = tuple(f"disk{index}" for index, disk in enumerate(spec.disks) if disk.sha256 is not None)
    roles = {"kernel", "initrd", FIRMWARE_ROLE, "firmware-code"}
    booted = tuple(file.role for file in files if file.role in roles)
    say("img.digest-checked", (*booted, *promised), "plan")
    say("console.bounded", True, f"console.log_max_kib = {spec.console.log_max_kib}")
    say("qmp.transport", "inherited-descriptor", "argv: -chardev socket,fd=")
    if is_provisioned(spec):
        say("prov.channels", channel_facts(spec), "specification")
        say("prov.in-arguments", False, "argv: files and descriptors only, never string=")
    _tpm(say, wall, helpers)
    say("vm.passthrough", tuple(item.address for item in spec.passthrough), "specification")
    _network(say, spec)
    _confidential(say, spec)
    say("run.rootless", host.rootless, "uid of the caller")
    say("host.lsm", host.lsms, "/sys/kernel/security/lsm")
    say("host.core-sched", host.core_sched, "prctl PR_SCHED_CORE")
    if host.kvm_device:
        say("host.kvm-device", host.kvm_device, "stat /dev/kvm")
    if host.core_sched:
        say("proc.core-cookie", True, "plan")
    say("host.landlock-abi", host.landlock_abi, "landlock_create_ruleset")
    say("vm.id", vm_id, "plan")
    if wall.exec_label is not None:
        say("proc.mac-label", observed_form(wall.exec_label), "plan: label")
        if wall.exec_label.startswith("selinux:"):
            say("proc.mcs-unique", True, "plan: categories from the uid, which a lock holds")
    elif host.mac is not None:
        facts["proc.mac-label"] = facts["proc.mcs-unique"] = Unknown(host.mac.why_not)
    if not wall.cgroup.directories:
        facts["proc.cgroup"] = Unknown(wall.cgroup.why_none or "no cgroup")
    return facts


def _process(say: object, spec: Spec, wall: Wall, profile: Profile) -> None:
    assert callable(say)
    say("proc.uid", wall.identity.uid, "plan: identity")
    say("proc.gid", wall.identity.gid, "plan: identity")
    who = wall.identity
    say("proc.groups", tuple(str(group) for group in who.groups if group != who.kvm_group), "plan: identity")
    say("proc.kvm-group", tuple(str(group) for group in who.groups if group == who.kvm_group), "plan: identity")
    say("run.uid-unique", True, "lock on the uid")
    say("proc.exe", program_of(spec), "plan: root")
    say("proc.seccomp-foreign-arch", "kill", "compiler: bad architecture is killed")
    say("vhost.descriptors", (), "plan: descriptors")
    say("proc.caps", (), "plan: capabilities")
    say("proc.no-new-privs", True, "plan")
    say("proc.seccomp-mode", 2, "plan")
    say("proc.seccomp-filters", SECCOMP_FILTERS, "plan: allowlist and -sandbox")
    allowed = {rule.syscall for rule in profile.rules if rule.phase is Phase.ALWAYS and rule.errno is None}
    say("proc.seccomp-allowed", len(allowed), f"profile {profile.name}")
    say("proc.seccomp-dangerous", (), f"profile {profile.name}")
    say("proc.namespaces", NAMESPACES if wall.has(Layer.NAMESPACES) else (), "plan")
    say("proc.root-unexpected", (), "plan: root")
    say("proc.mounts-writable", (), "plan: root")
    say("proc.fds-unexpected", (), "plan: descriptors")
    say("proc.rlimits", tuple(sorted(f"{item.name}={item.value}" for item in wall.rlimits)), "plan: limits")
    say("proc.rlimit-core", 0, "plan: limits")
    say("proc.cgroup", wall.cgroup.limits, "plan: cgroup")
    say("proc.cgroup-controllers", wall.cgroup.controllers, "plan: cgroup")
    say("proc.landlock", wall.landlock_abi, "plan: landlock")
    say("proc.parent-death-signal", 9, "plan")
    say("proc.session", True, "plan")
    digest = hashlib.sha256("\0".join(wall.argv).encode()).hexdigest()
    say("proc.argv", digest, "plan: argv")


def _devices(say: object, spec: Spec, board: Board, planned: tuple[str, ...]) -> None:
    assert callable(say)
    say("dev.machine", spec.machine.type.value, "argv: -machine")
    say("dev.accel", board.accel, "argv: -accel")
    say("dev.insecure-types", (), "argv")
    say("emu.debug", (), "argv")
    if board.accel == "kvm":
        say("proc.wx-maps", 0, "KVM needs no code generator")
    say("dev.types", planned, "argv: -device")
    say("vm.firmware", "kernel" if spec.boot.kernel is not None else spec.boot.firmware.value, "specification")
    say("dev.smm", spec.boot.is_secure, "argv: smm")
    if spec.boot.is_secure:
        say("dev.boot-variables", (), "argv: smm=on, and secure=on for the flash")
        say("dev.secure-boot", "on", "specification")
    say("dev.nodefaults", True, "argv: -nodefaults -no-user-config")
    say("dev.display", "none", "argv: -display none")
    say("dev.usb", (), "argv: usb=off")
    say("emu.sandbox", SANDBOX, "argv: -sandbox")
    say("kvm.irqchip", board.irqchip, "argv: kernel-irqchip")
    say("kvm.pit", board.pit, "argv: pit")
    say("kvm.pic", _has_pic(spec, board), "argv: pic")
    say("cpu.nested-flags", (), "argv: -cpu with vmx and svm off")
    say("mem.merge", False, "argv: mem-merge=off")
    say("mem.dump", False, "argv: dump-guest-core=off")
    say("ent.virtio-rng", "/dev/urandom", "argv: rng-random on an inherited descriptor")


def _has_pic(spec: Spec, board: Board) -> bool:
    """A q35 has one unless it is told otherwise, as only a confidential one is."""
    return board.pic or (spec.machine.type is MachineType.Q35 and spec.confidential is None)


def _confidential(say: object, spec: Spec) -> None:
    """What is measured, and what the launch policy lets the host do."""
    assert callable(say)
    promised = promise(spec)
    if promised is None:
        return
    say("cc.type", promised.type, "argv: confidential-guest-support")
    for name, value in (
        ("cc.debug", promised.debug),
        ("cc.migration-agent", promised.migration_agent),
        ("cc.kernel", promised.kernel),
        ("cc.firmware-variables", promised.variables),
    ):
        if value is not None:
            say(name, value, "argv: -object")


def _tpm(say: object, wall: Wall, helpers: tuple[HelperPlan, ...]) -> None:
    assert callable(say)
    swtpm = next((helper for helper in helpers if helper.name == "swtpm"), None)
    say("tpm.backend", "swtpm" if swtpm is not None else "none", "specification")
    if swtpm is not None:
        say("tpm.state-encrypted", True, "argv of swtpm: --key")
        say("tpm.key-in-arguments", False, "argv of swtpm: --key fd=")
        say("tpm.own-uid", swtpm.run_as is not None and swtpm.run_as.uid != wall.identity.uid, "plan: identities")
        say("tpm.wall-faults", (), "plan: wall of swtpm")


def _network(say: object, spec: Spec) -> None:
    assert callable(say)
    network = spec.network
    backend = "passt" if network.mode is NetworkMode.USER else "none"
    say("net.backend", backend, "specification")
    say("net.host-loopback", False, "passt --no-map-gw; host side refuses loopback")
    say("net.egress", (network.egress if backend == "passt" else Egress.NONE).value, "specification")
    say(
        "net.published",
        tuple(f"{bracketed(p.address)}:{p.host_port}:{p.guest_port}" for p in network.publish),
        "specification",
    )
    wide = tuple(p.address for p in network.publish if not is_loopback(p.address))
    say("net.publish-wide", wide, "specification")
