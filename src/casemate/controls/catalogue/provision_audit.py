"""Layer entropy and provisioning, as an audit sees it: the host's random numbers, and guests that will be cloned."""

from __future__ import annotations

from casemate.controls.catalogue.common import OTHERS, S1, S6, VM, kernel, lecture
from casemate.controls.expectations import Empty, Equals, NotEquals, Present
from casemate.controls.model import Check, Control, Gate, Remedies, Severity, Source, Subject

_LECTURE = lecture("Entropie dans une machine virtuelle: une seule solution, VirtIO-RNG")

CONTROLS: tuple[Control, ...] = (
    Control(
        id="ent.host-ready",
        title="The host's random number generator has been started",
        question="Has the kernel's generator come in 256 bits of entropy since boot?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("ent.host-ready", Equals(True)),),
        cuts=(S1, S6),
        scenarios=(VM, OTHERS),
        remedies=Remedies(host="start VMs after systemd-random-seed.service; a virtio-rng or TPM for a virtual host"),
        sources=(_LECTURE, kernel("admin-guide/sysctl/kernel: random; drivers/char/random.c")),
        limits="From a captured tree only with Linux 5.18 or later (or 5.10.119, 5.15.44): older kernels write nowhere "
        "whether it is ready.",
    ),
    Control(
        id="ent.host-sources",
        title="The host has a hardware source of random numbers",
        question="Does the CPU have RDRAND or RDSEED, or is a hardware generator in use?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("ent.host-sources", Present()),),
        cuts=(S1, S6),
        scenarios=(VM, OTHERS),
        remedies=Remedies(host="modprobe tpm-rng, or a virtio-rng when this host is a guest itself"),
        sources=(_LECTURE, kernel("admin-guide/hw_random")),
        limits="Interrupt timing and jitter stay when it fails; the kernel mixes all of them.",
    ),
    Control(
        id="ent.host-seed",
        title="The host carries a random seed from one boot to the next",
        question="Is there a seed of systemd-random-seed, and can only root read it?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("ent.host-seed", NotEquals("readable")), Check("ent.host-seed", NotEquals("none"))),
        cuts=(S1,),
        scenarios=(VM,),
        remedies=Remedies(host="systemctl enable --now systemd-random-seed.service; chmod 600 the seed"),
        sources=(Source("systemd", "systemd-random-seed.service(8)"),),
    ),
    Control(
        id="ent.host-daemons",
        title="The host runs no user space entropy daemon",
        question="Are haveged, pollinate and jitterentropy-rngd absent from the host?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("ent.host-daemons", Empty()),),
        cuts=(S1,),
        scenarios=(VM,),
        remedies=Remedies(host="apt purge haveged: since Linux 5.6 the kernel gathers the same by itself"),
        sources=(_LECTURE, Source("haveged", "README: kernels from 5.6 on")),
    ),
    Control(
        id="ent.vmgenid-driver",
        title="The guest's kernel knows when it was cloned",
        question="Does the guest's kernel have the vmgenid driver, and did it find the device?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        subject=Subject.GUEST,
        cuts=(S6,),
        scenarios=(VM, OTHERS),
        remedies=Remedies(host="a guest kernel with CONFIG_VMGENID (5.18 or later; Debian's cloud kernels lack it)"),
        sources=(kernel("drivers/virt/vmgenid.c: reseeds the generator and tells user space"),),
        manual="In the guest: grep VMGENID /boot/config-$(uname -r); ls -d /sys/bus/acpi/drivers/vmgenid/*:00",
    ),
)
