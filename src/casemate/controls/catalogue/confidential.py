"""Layer confidential computing: memory that the host cannot read."""

from __future__ import annotations

from casemate.controls.catalogue.common import ACCELERATED, S9, VM, kernel, libvirt, qemu
from casemate.controls.expectations import Equals, NotEquals, OneOf
from casemate.controls.model import Check, Condition, Control, Cost, Gate, Remedies, Severity, Source

NO_POLICY = "no launch policy: the VM is not confidential, or of a kind that has none"

CONTROLS: tuple[Control, ...] = (
    Control(
        id="cc.launch",
        title="The memory of the guest is encrypted against the host",
        question="Is the VM started with SEV-SNP, TDX or IBM Secure Execution?",
        severity=Severity.INFO,
        gate=Gate.REPORT,
        checks=(Check("cc.type", OneOf(("sev-snp", "tdx", "s390-pv"))),),
        applies_when=(ACCELERATED,),
        cuts=(S9,),
        scenarios=(VM,),
        cost=Cost(performance="a few percent", features="no live migration, bounce buffers for devices"),
        remedies=Remedies(
            spec='[confidential] kind = "sev-snp" or "tdx"',
            libvirt="<launchSecurity type='sev-snp'>",
            host="a CPU and a kernel with SEV-SNP or TDX; kvm_amd sev_snp=1",
        ),
        sources=(
            Source("libvirt", "kbase/launch_security_sev"),
            kernel("virt/coco"),
        ),
        limits="Says that it is asked for; whether the platform is genuine is cc.attest.",
    ),
    Control(
        id="cc.attest",
        title="The confidential guest was attested before it got a secret",
        question="Did somebody else than the host verify the launch measurement?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        applies_when=(Condition("cc.type", NotEquals("none"), "the VM is not confidential"),),
        cuts=(S9,),
        scenarios=(VM,),
        remedies=Remedies(host="virt-qemu-sev-validate without --insecure, or casemate attest"),
        sources=(libvirt("manpages/virt-qemu-sev-validate"),),
        manual="Ask the owner of the secret which measurement he verified, and when.",
    ),
    Control(
        id="cc.no-debug",
        title="The host may not debug the confidential guest",
        question="Is debugging off in the launch policy?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("cc.debug", Equals(False)),),
        applies_when=(Condition("cc.type", OneOf(("sev", "sev-snp", "tdx")), NO_POLICY),),
        cuts=(S9,),
        scenarios=(VM,),
        remedies=Remedies(
            spec="confidential.host_may_debug = false",
            libvirt="<policy> with the NODBG bit: SEV 0x0001; SEV-SNP without bit 19; TDX without bit 0",
        ),
        sources=(
            Source("libvirt", "formatdomain: launchSecurity policy"),
            kernel("virt/kvm/x86/amd-memory-encryption"),
        ),
    ),
    Control(
        id="cc.no-migration",
        title="The memory of the confidential guest may not be sent to another host",
        question="Does the launch policy forbid migration agents (SEV-SNP) and sending (SEV)?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("cc.migration-agent", Equals(False)),),
        applies_when=(Condition("cc.type", OneOf(("sev", "sev-snp")), NO_POLICY),),
        cuts=(S9,),
        scenarios=(VM,),
        cost=Cost(features="no migration, which neither QEMU nor libvirt can do with such guests anyway"),
        remedies=Remedies(
            spec="confidential.migration_agent = false",
            libvirt="<policy>: SEV with bit 3 (NOSEND); SEV-SNP without bit 18 (MIGRATE_MA)",
        ),
        sources=(
            Source("AMD", "SEV-SNP firmware ABI 56860, guest policy"),
            Source("AMD", "SEV API 55766, guest policy"),
        ),
    ),
    Control(
        id="cc.kernel-hashes",
        title="The kernel that the host gives a confidential guest is part of its measurement",
        question="Are kernel, initrd and command line hashed into the launch?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("cc.kernel", OneOf(("measured", "none"))),),
        applies_when=(Condition("cc.type", OneOf(("sev", "sev-snp")), "not SEV: its firmware measures what it boots"),),
        cuts=(S9,),
        scenarios=(VM,),
        remedies=Remedies(libvirt="<launchSecurity type='sev-snp' kernelHashes='yes'>, and OVMF's AmdSev build"),
        sources=(qemu("docs/system/i386/amd-memory-encryption, kernel-hashes"),),
    ),
    Control(
        id="cc.stateless-firmware",
        title="The firmware of the confidential guest keeps no variables",
        question="Does it boot from an image without a variable store?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("cc.firmware-variables", Equals(False)),),
        applies_when=(
            Condition("cc.type", OneOf(("sev", "sev-snp", "tdx")), "no UEFI firmware: another kind, or none"),
        ),
        cuts=(S9,),
        scenarios=(VM,),
        remedies=Remedies(libvirt="<loader stateless='yes'/>, or type='rom'"),
        sources=(qemu("docs/system/i386/amd-memory-encryption: the NVRAM area is not measured"),),
    ),
)
