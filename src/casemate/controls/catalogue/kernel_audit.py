"""Layer kernel: how the host's own kernel is built, booted and set. Only audits judge these."""

from __future__ import annotations

from typing import Final

from casemate.controls.catalogue.common import BLUE_PILL, HOST, OTHERS, S3, S4, S5, S10, VM, kernel
from casemate.controls.catalogue.kernel_groups import GROUPS
from casemate.controls.expectations import AtLeast, Empty, Equals, NotEquals, OneOf
from casemate.controls.kernel_settings import ANSSI, KSPP
from casemate.controls.model import (
    AttackStep,
    Check,
    Condition,
    Control,
    Cost,
    Gate,
    Remedies,
    Scenario,
    Severity,
    Source,
    Subject,
)

_RUNNING: Final = "Says what the running kernel does now; whether it survives the next boot is not looked at."


def _single(
    control_id: str,
    fact: str,
    good: tuple[str, ...],
    title: str,
    question: str,
    severity: Severity,
    cuts: tuple[AttackStep, ...],
    remedy: str,
    sources: tuple[Source, ...],
    *,
    scenarios: tuple[Scenario, ...] = (HOST,),
    cost: Cost = Cost(),  # noqa: B008  frozen
    limits: str = _RUNNING,
    applies: tuple[Condition, ...] = (),
) -> Control:
    """A control about one fact that has to be one of ``good``."""
    return Control(
        id=control_id,
        title=title,
        question=question,
        severity=severity,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check(fact, OneOf(good)),),
        cuts=cuts,
        scenarios=scenarios,
        cost=cost,
        remedies=Remedies(host=remedy),
        sources=sources,
        limits=limits,
        applies_when=applies,
    )


_SINGLES: Final = (
    _single(
        "hk.lockdown",
        "kernel.lockdown",
        ("integrity", "confidentiality"),
        "Lockdown keeps root out of the kernel",
        "Can whoever is root change the running kernel, for instance to put a hypervisor below it?",
        Severity.HIGH,
        (S10,),
        "boot with lockdown=integrity (or confidentiality), or with Secure Boot where the distribution ties both",
        (kernel("kernel_lockdown(7)"), Source(KSPP, "kernel command line")),
        scenarios=(BLUE_PILL, HOST),
        cost=Cost(features="no unsigned modules, no hibernation, no writing to MSRs and /dev/mem, restricted tracing"),
    ),
    _single(
        "hk.modules",
        "kernel.module-signatures",
        ("enforced", "no-modules"),
        "Only signed modules are loaded",
        "Can root load a module of unknown origin into the kernel that runs the VMs?",
        Severity.HIGH,
        (S4, S10),
        "boot with module.sig_enforce=1, or lockdown=integrity; sign modules built on the host with a key of your own",
        (Source(KSPP, "kernel command line"), Source(ANSSI, "R18"), kernel("admin-guide/module-signing")),
        scenarios=(BLUE_PILL, HOST),
        cost=Cost(features="modules built on the host have to be signed"),
    ),
    _single(
        "hk.modules-disabled",
        "kernel.module-loading",
        ("disabled", "no-modules"),
        "No module is loaded after boot",
        "Can anything still be loaded into the kernel once the host is up?",
        Severity.MEDIUM,
        (S4, S10),
        "sysctl kernel.modules_disabled=1 as the last step of booting, after kvm and every driver is in",
        (Source(ANSSI, "R10"), kernel("admin-guide/sysctl/kernel: modules_disabled")),
        scenarios=(BLUE_PILL, HOST),
        cost=Cost(features="new hardware and rarely used file systems need a reboot"),
    ),
    _single(
        "hk.kexec",
        "kernel.kexec",
        ("disabled", "absent"),
        "No other kernel can be started from this one",
        "Can root swap the kernel below the VMs without a reboot through the firmware?",
        Severity.MEDIUM,
        (S10,),
        "sysctl kernel.kexec_load_disabled=1 (after kdump has loaded its kernel, where it is used)",
        (Source(KSPP, "sysctls"), kernel("admin-guide/sysctl/kernel: kexec_load_disabled")),
        scenarios=(BLUE_PILL,),
        cost=Cost(features="no kexec reboots until the next boot"),
    ),
    _single(
        "hk.bpf",
        "kernel.bpf",
        ("disabled", "disabled-locked", "absent"),
        "Users without rights load no BPF programs",
        "Can any user, or an emulator that was taken over, hand programs to the kernel's verifier and compiler?",
        Severity.MEDIUM,
        (S4,),
        "sysctl kernel.unprivileged_bpf_disabled=1",
        (Source(KSPP, "sysctls"), Source(ANSSI, "R9"), kernel("admin-guide/sysctl/kernel: unprivileged_bpf_disabled")),
    ),
    _single(
        "hk.io-uring",
        "kernel.io-uring",
        ("disabled", "privileged", "absent"),
        "io_uring is not open to everybody",
        "Can any user reach io_uring, whose requests pass by a filter of system calls?",
        Severity.MEDIUM,
        (S4,),
        "sysctl kernel.io_uring_disabled=1 with kernel.io_uring_group for who needs it, or 2",
        (Source(KSPP, "sysctls"), kernel("admin-guide/sysctl/kernel: io_uring_disabled")),
        cost=Cost(performance="disks with aio=io_uring have to use threads or native", features="aio=io_uring"),
    ),
    _single(
        "hk.userfaultfd",
        "kernel.userfaultfd",
        ("restricted", "absent"),
        "userfaultfd does not stop the kernel for users",
        "Can a user hold the kernel at a chosen access to memory, which makes races easy to win?",
        Severity.MEDIUM,
        (S4,),
        "sysctl vm.unprivileged_userfaultfd=0",
        (Source(KSPP, "sysctls"), kernel("admin-guide/sysctl/vm: unprivileged_userfaultfd")),
        cost=Cost(features="post-copy migration of an unprivileged QEMU"),
    ),
    _single(
        "hk.ptrace",
        "kernel.ptrace",
        ("2", "3"),
        "Processes do not look into each other",
        "Can one process of a user attach to another one, for instance to the emulator of a VM?",
        Severity.MEDIUM,
        (S5,),
        "sysctl kernel.yama.ptrace_scope=2, on a kernel with CONFIG_SECURITY_YAMA and yama in lsm=",
        (Source(ANSSI, "R11"), kernel("admin-guide/LSM/Yama"), Source(KSPP, "sysctls")),
        scenarios=(OTHERS, VM),
        cost=Cost(features="debuggers need rights"),
        limits="SELinux's deny_ptrace does the same and is not looked at.",
    ),
    _single(
        "hk.userns",
        "kernel.userns",
        ("nobody", "privileged", "by-profile", "absent"),
        "Not everybody may make user namespaces",
        "Can any user become root of a namespace, and reach the parts of the kernel that only root may?",
        Severity.MEDIUM,
        (S4,),
        "on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=1 and the profile from `casemate doctor`; on "
        "Debian: sysctl kernel.unprivileged_userns_clone=0, with VMs started by root",
        (Source(KSPP, "sysctls"), kernel("user_namespaces(7)")),
        cost=Cost(
            features="without user namespaces rootless VMs lose their jail (control os.userns): choose one of the two"
        ),
        limits="Contradicts os.userns except where AppArmor allows it by profile; waive the one you decided against.",
    ),
    _single(
        "hk.secure-boot",
        "kernel.secure-boot",
        ("on",),
        "The firmware starts signed code only",
        "Did this host come up with Secure Boot?",
        Severity.MEDIUM,
        (S10,),
        "turn Secure Boot on in the firmware; with a signed boot loader (shim) of the distribution or keys of your own",
        (Source(ANSSI, "R3, R4"), kernel("filesystems/efivarfs")),
        scenarios=(BLUE_PILL,),
        cost=Cost(features="unsigned kernels and boot loaders do not start"),
        limits="Whose keys are enrolled is not looked at (ANSSI R4 asks for keys of one's own).",
    ),
    _single(
        "hk.secure-boot-setup",
        "kernel.secure-boot-setup",
        ("user",),
        "The firmware's keys are closed",
        "Could software enrol a key of its own into Secure Boot?",
        Severity.MEDIUM,
        (S10,),
        "enrol a platform key in the firmware, which ends setup mode",
        (Source("UEFI specification 2.10", "32.3 Firmware/OS key exchange: SetupMode"),),
        scenarios=(BLUE_PILL,),
        applies=(
            Condition(
                "kernel.secure-boot", NotEquals("no-uefi"), "this host was not started by UEFI (hk.secure-boot says so)"
            ),
        ),
    ),
    _single(
        "hk.measured-boot",
        "kernel.tpm-log",
        ("present",),
        "The boot is measured into a TPM",
        "Is there a record, made below the kernel, of what was started?",
        Severity.LOW,
        (S10,),
        "turn the TPM on in the firmware and boot by UEFI; compare the log with values you expect",
        (kernel("security/tpm/tpm_event_log"),),
        scenarios=(BLUE_PILL,),
        limits="Says that there is a log, not that its values are the right ones.",
    ),
)

_MORE: Final = (
    Control(
        id="hk.weakening",
        title="The command line takes no protection away",
        question="Was the kernel started with words that switch off what it was built with?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("kernel.weakening", Empty()),),
        cuts=(S3, S4),
        scenarios=(HOST,),
        remedies=Remedies(host="remove these words from the boot loader's configuration (GRUB_CMDLINE_LINUX)"),
        sources=(kernel("admin-guide/kernel-parameters"), Source(ANSSI, "R8")),
        limits="Words that switch off mitigations of the CPU are judged by cpu.no-off-switch.",
    ),
    Control(
        id="hk.no-outer-vmm",
        title="No hypervisor runs below this host",
        question="Does something below this kernel already virtualise it, as a Blue Pill would?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("kernel.outer-vmm", Empty()),),
        cuts=(S10,),
        scenarios=(BLUE_PILL,),
        remedies=Remedies(
            host="on a host that is meant to be a VM (a cloud instance), waive this with that reason; on hardware, "
            "boot from trusted media and compare the firmware and the TPM's values"
        ),
        sources=(
            kernel("x86: CPUID leaf 1, ECX bit 31 (hypervisor)"),
            Source("Rutkowska, Subverting Vista Kernel For Fun And Profit, 2006", "Blue Pill"),
        ),
        limits="A hypervisor that hides shows none of these signs: a pass is no proof. `casemate detect` looks closer.",
    ),
    Control(
        id="hk.khc-report",
        title="kernel-hardening-checker has no complaint",
        question="Does the imported result of kernel-hardening-checker list failed checks?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        applies_when=(
            Condition("kernel.khc-imported", Equals(True), "no result of kernel-hardening-checker was given"),
        ),
        checks=(Check("kernel.khc-checks", AtLeast(1)), Check("kernel.khc-failed", Empty())),
        cuts=(S4,),
        scenarios=(HOST,),
        remedies=Remedies(host="see the documentation of each option in that tool's report"),
        sources=(Source("kernel-hardening-checker", "-m json"),),
        limits="Repeats what that tool says, at the time it said it; many of its checks do not concern hosts of VMs.",
    ),
)

CONTROLS: Final = (*_SINGLES, *_MORE, *GROUPS)
