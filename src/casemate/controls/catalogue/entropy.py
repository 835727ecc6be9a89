"""Layer entropy: a guest has few sources of its own; the lecture's one solution is virtio-rng."""

from __future__ import annotations

from casemate.controls.catalogue.common import S1, VM, lecture
from casemate.controls.expectations import Matches
from casemate.controls.model import Check, Control, Gate, Remedies, Severity

CONTROLS = (
    Control(
        id="ent.virtio-rng",
        title="The guest gets entropy from the host's kernel",
        question="Is there a virtio-rng device, fed from /dev/urandom or /dev/random and not over a socket?",
        severity=Severity.MEDIUM,
        gate=Gate.LAUNCH,
        checks=(Check("ent.virtio-rng", Matches(r"/dev/u?random", "/dev/urandom or /dev/random of the host")),),
        cuts=(S1,),
        scenarios=(VM,),
        remedies=Remedies(
            libvirt="<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>", spec="none needed"
        ),
        sources=(lecture("Entropie dans une machine virtuelle: une seule solution, VirtIO-RNG"),),
    ),
)
