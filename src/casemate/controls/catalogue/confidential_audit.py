"""Layer confidential computing: memory that the host cannot read."""

from __future__ import annotations

from casemate.controls.catalogue.common import ACCELERATED, S9, VM, kernel, libvirt
from casemate.controls.expectations import Equals, NotEquals, OneOf
from casemate.controls.model import Check, Condition, Control, Cost, Gate, Remedies, Severity, Source

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
            libvirt="<launchSecurity type='sev-snp'>", host="a CPU and a kernel with SEV-SNP or TDX; kvm_amd sev_snp=1"
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
        gate=Gate.REPORT,
        checks=(Check("cc.debug", Equals(False)),),
        applies_when=(Condition("cc.type", NotEquals("none"), "the VM is not confidential"),),
        cuts=(S9,),
        scenarios=(VM,),
        remedies=Remedies(libvirt="<policy> with the NODBG bit: SEV 0x0001; SEV-SNP without bit 19; TDX without bit 0"),
        sources=(
            Source("libvirt", "formatdomain: launchSecurity policy"),
            kernel("virt/kvm/x86/amd-memory-encryption"),
        ),
    ),
)
