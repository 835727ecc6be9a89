"""Layer entropy: beyond that there is a virtio-rng at all."""

from __future__ import annotations

from casemate.controls.catalogue.common import OTHERS, S1, S6, VM, kernel, lecture, libvirt, qemu
from casemate.controls.expectations import Empty, Equals, NotEquals
from casemate.controls.model import Check, Condition, Control, Cost, Gate, Remedies, Severity, Source, Subject

CONTROLS: tuple[Control, ...] = (
    Control(
        id="ent.rate",
        title="What the guest takes of the host's entropy has a rate",
        question="Has every virtio-rng a limit of bytes per period?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        checks=(Check("ent.rng-unlimited", Empty()),),
        applies_when=(Condition("ent.virtio-rng", NotEquals("none"), "the VM has no virtio-rng"),),
        cuts=(S1,),
        scenarios=(OTHERS,),
        cost=Cost(performance="a guest that reads much from /dev/hwrng waits"),
        remedies=Remedies(libvirt="<rng><rate bytes='1024' period='1000'/></rng>"),
        sources=(
            qemu("virtio-rng: max-bytes, period"),
            libvirt("formatdomain: rng rate"),
        ),
    ),
    Control(
        id="ent.vmgenid",
        title="A cloned guest learns that it was cloned",
        question="Is there a VM generation id device?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("ent.vmgenid", Equals(True)),),
        cuts=(S6,),
        scenarios=(
            VM,
            OTHERS,
        ),
        remedies=Remedies(libvirt="<genid/>"),
        sources=(
            libvirt("formatdomain: genid"),
            kernel("drivers/virt/vmgenid: reseeds the kernel's generator"),
        ),
        limits="Matters for guests that are cloned or restored; the guest's kernel needs the driver (5.18 or later).",
    ),
    Control(
        id="ent.no-haveged",
        title="The guest runs no user space entropy daemon",
        question="Are haveged, pollinate and jitterentropy-rngd absent from the guest?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        subject=Subject.GUEST,
        cuts=(S1,),
        scenarios=(VM,),
        remedies=Remedies(host="apt purge haveged; kernels from 5.6 on gather it themselves"),
        sources=(
            lecture("Entropie dans une machine virtuelle: une seule solution, VirtIO-RNG"),
            Source("haveged", "README: kernels from 5.6 on"),
        ),
        manual="Look for haveged, pollinate and jitterentropy-rngd inside the guest.",
    ),
)
