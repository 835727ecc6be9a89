"""Layer devices: Secure Boot, and system management mode, which is its price."""

from __future__ import annotations

from casemate.controls.catalogue.common import BLUE_PILL, HOST, S1, S2, S3, S10, VM, kernel, qemu
from casemate.controls.expectations import Empty, Equals
from casemate.controls.model import Check, Condition, Control, Cost, Gate, Remedies, Severity, Source

_SECURE_BOOT = Condition("vm.firmware", Equals("uefi-secure"), "the guest does not boot with Secure Boot")

CONTROLS = (
    Control(
        id="dev.smm",
        title="System management mode is off",
        question="Is the processor mode above the kernel, which Secure Boot alone has a use for, absent?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        checks=(Check("dev.smm", Equals(False)),),
        cuts=(S2, S3),
        scenarios=(HOST,),
        cost=Cost(
            features="Secure Boot: only code in system management mode may write to its variables (dev.boot-variables)"
        ),
        remedies=Remedies(
            libvirt="<features><smm state='off'/></features>, where <loader> is not secure",
            spec='firmware = "uefi" where nobody needs Secure Boot; with "uefi-secure" this is its price, worth paying',
        ),
        sources=(
            qemu("hw/isa/lpc_ich9.c, docs/system/i386: -machine smm"),
            kernel("arch/x86/kvm/smm.c: entry and exit, a state save area in guest memory, a second address space"),
        ),
        limits="With it on, a guest's kernel calls the firmware's guarded part at will, and KVM or QEMU emulates entry"
        " and exit for it; what that buys is that it cannot write to Secure Boot's keys.",
    ),
    Control(
        id="dev.boot-variables",
        title="Only the firmware writes to Secure Boot's variables",
        question="Does the flash take writes from system management mode alone, and is that mode there?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("dev.boot-variables", Empty()),),
        applies_when=(_SECURE_BOOT,),
        cuts=(S1, S10),
        scenarios=(VM, BLUE_PILL),
        cost=Cost(features="system management mode has to be on (dev.smm)"),
        remedies=Remedies(
            libvirt="<loader secure='yes'> and <smm state='on'/>", spec="none needed: uefi-secure is started so"
        ),
        sources=(
            qemu("hw/block/pflash_cfi01.c: property secure"),
            Source("edk2", "OvmfPkg/README: SMM_REQUIRE"),
        ),
        limits="Against the guest's own kernel. Whoever owns the host reads and writes the file of the variables; a"
        " quote of a TPM shows it (PCR 7).",
    ),
    Control(
        id="dev.secure-boot",
        title="Secure Boot is on, under the platform key that the VM was given",
        question="Do the variables that the VM starts with say so?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("dev.secure-boot", Equals("on")),),
        applies_when=(_SECURE_BOOT,),
        cuts=(S1, S10),
        scenarios=(VM, BLUE_PILL),
        cost=Cost(features="unsigned kernels, boot loaders and modules"),
        remedies=Remedies(
            spec="find out who turned it off (the firmware's menu does, for whoever has the console), make the VM anew"
        ),
        sources=(Source("UEFI specification", "32.3: SetupMode, PK, SecureBoot"),),
        limits="Read before the guest's first instruction. That the guest really came up so, a quote of a TPM shows.",
    ),
    Control(
        id="dev.boot-keys",
        title="Secure Boot trusts nobody new",
        question="Are the keys and digests that may start, or may change that, those of the first start?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("dev.boot-keys", Empty()),),
        applies_when=(_SECURE_BOOT,),
        cuts=(S1, S10),
        scenarios=(VM, BLUE_PILL),
        remedies=Remedies(
            spec="a signed update from inside the guest does this too (fwupd): where there was none, make the VM anew"
        ),
        sources=(Source("UEFI specification", "32.4: db, dbx, KEK"),),
        limits="Compared with the host's note of the first start; additions to dbx, which forbid more, are not listed.",
    ),
)
