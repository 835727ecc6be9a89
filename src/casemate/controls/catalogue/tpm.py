"""Layer TPM: the emulator of a VM's TPM, and what it keeps on the host."""

from __future__ import annotations

from casemate.controls.catalogue.common import HOST, OTHERS, S2, S4, S5, S9, VM, lecture, libvirt
from casemate.controls.expectations import Empty, Equals, OneOf
from casemate.controls.model import Check, Condition, Control, Cost, Gate, Remedies, Severity, Source

_SWTPM = Source("swtpm", "manual page: --key, --tpmstate, --seccomp")
_EMULATED = Condition("tpm.backend", OneOf(("swtpm", "emulator")), "the VM has no TPM emulated on this host")
_OURS = Condition(
    "tpm.backend", Equals("swtpm"), "the VM has no TPM that Casemate started: proc.helpers judges processes of others"
)

CONTROLS = (
    Control(
        id="tpm.state-encrypted",
        title="The TPM's state is encrypted on the host",
        question="Is what swtpm writes encrypted, with a key that is in no argument?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("tpm.state-encrypted", Equals(True)), Check("tpm.key-in-arguments", Equals(False))),
        applies_when=(_EMULATED,),
        cuts=(S9,),
        scenarios=(VM,),
        cost=Cost(features="without its key the TPM, and what the guest sealed with it, is gone"),
        remedies=Remedies(
            libvirt="<backend type='emulator'><encryption secret='UUID'/></backend>",
            spec='[tpm] key = "NAME" keeps the key off the host\'s disk; without it one is kept beside the VM',
        ),
        sources=(_SWTPM, libvirt("formatdomain: tpm, encryption"), lecture("Confidential Computing: TPM virtuels")),
        limits="The host that runs swtpm can read its memory: a TPM emulated by the host is no hardware root.",
    ),
    Control(
        id="tpm.confined",
        title="The TPM's emulator is behind a wall of its own",
        question="Has swtpm its own namespaces, root, seccomp allowlist, Landlock and limits, and no capability?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("tpm.wall-faults", Empty()),),
        applies_when=(_OURS,),
        cuts=(S2, S4),
        scenarios=(HOST,),
        remedies=Remedies(host="casemate doctor; report a swtpm that does not start", spec="none needed"),
        sources=(_SWTPM,),
    ),
    Control(
        id="tpm.own-uid",
        title="The TPM's emulator has a uid of its own",
        question="Does swtpm run as a user that no other process has, the emulator included?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("tpm.own-uid", Equals(True)),),
        applies_when=(_EMULATED,),
        cuts=(S5, S9),
        scenarios=(OTHERS, VM),
        remedies=Remedies(
            host="give the caller subordinate ids: apt-get install uidmap; usermod --add-subuids …",
            libvirt="swtpm_user is one user for all domains; keep <seclabel type='dynamic' model='selinux'/>",
        ),
        sources=(libvirt("qemu.conf: swtpm_user"),),
    ),
)
