"""Layer vmm: what only other VMMs than QEMU, and Kata Containers around one, can have wrong."""

from __future__ import annotations

from casemate.controls.catalogue.common import HOST, OTHERS, S1, S4, S6, S7, VM
from casemate.controls.expectations import Empty, Equals, Matches, OneOf
from casemate.controls.model import Check, Condition, Control, Cost, Gate, Remedies, Severity, Source

_SAYS_IT = Condition(
    "vm.form",
    Matches(r"(firecracker|cloud-hypervisor|crosvm)-command|kata", "a command line of such a VMM, or Kata's file"),
    "nothing here says whether a VMM has a sandbox of its own (QEMU's is proc.qemu-sandbox)",
)
_KATA = Condition("vm.form", Equals("kata"), "only Kata's configuration has this")

CONTROLS: tuple[Control, ...] = (
    Control(
        id="vmm.own-sandbox",
        title="The VMM's own sandbox is not switched off",
        question="Are system call filter, per-device jail, unprivileged user and label left as the VMM's makers meant?",
        severity=Severity.CRITICAL,
        gate=Gate.REPORT,
        checks=(Check("vmm.sandbox-off", Empty()),),
        applies_when=(_SAYS_IT,),
        cuts=(S4,),
        scenarios=(HOST, OTHERS),
        cost=Cost(features="running without the rights to build a sandbox, as in some containers"),
        remedies=Remedies(
            host="no --no-seccomp, --seccomp false|log, --disable-sandbox, --seccomp-log-failures; Kata:"
            " rootless = true, disable_selinux = false, disable_seccomp = false, a jailer_path for Firecracker"
        ),
        sources=(
            Source("Firecracker", "docs/prod-host-setup: jailer; docs/seccomp: --no-seccomp"),
            Source("Cloud Hypervisor", "docs/seccomp"),
            Source("crosvm", "book: sandboxing; --disable-sandbox"),
            Source("Kata Containers", "configuration-*.toml: rootless, disable_selinux, jailer_path"),
        ),
        limits="Says that nothing was switched off, not how strong the sandbox is: proc.seccomp-* do, on a process.",
    ),
    Control(
        id="vmm.annotations",
        title="A pod cannot change its VMM's settings",
        question="Does Kata accept no annotation but those about sizes?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        checks=(Check("vmm.annotations", Empty()),),
        applies_when=(_KATA,),
        cuts=(S4, S7),
        scenarios=(HOST,),
        cost=Cost(features="pods that choose kernel, firmware or helper of their own"),
        remedies=Remedies(host='enable_annotations = [] or sizes only, as ["default_vcpus", "default_memory"]'),
        sources=(Source("Kata Containers", "configuration-*.toml: enable_annotations; how-to-set-sandbox-config"),),
        limits="Who may write annotations is the cluster's matter; valid_*_paths narrow what they can name.",
    ),
    Control(
        id="mem.template",
        title="VMs are not cloned from one template",
        question="Is the factory's template of Kata off?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("mem.template", Equals(False)),),
        applies_when=(_KATA,),
        cuts=(S6,),
        scenarios=(OTHERS,),
        cost=Cost(performance="each VM boots by itself and has memory of its own"),
        remedies=Remedies(host="[factory] enable_template = false"),
        sources=(Source("Kata Containers", "configuration-*.toml: factory.enable_template; what-is-vm-templating"),),
        limits="Clones share pages, addresses and the state of their random generators.",
    ),
    Control(
        id="net.mmds",
        title="The guest's metadata service asks for a token",
        question="Is Firecracker's MMDS off, or of version 2?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        checks=(Check("net.mmds", OneOf(("none", "V2"))),),
        applies_when=(Condition("vm.vmm", Equals("firecracker"), "only Firecracker has MMDS"),),
        cuts=(S1,),
        scenarios=(VM,),
        remedies=Remedies(host='"mmds-config": {"version": "V2", …}'),
        sources=(Source("Firecracker", "docs/mmds/mmds-user-guide: version 2"),),
        limits="Version 1 answers any request that a program in the guest can be made to send.",
    ),
)
