"""The controls that a launch is judged by: the VM's own, and those of the host that it repeats aloud."""

from __future__ import annotations

from casemate.controls.catalogue import (
    boot,
    confinement,
    devices,
    entropy,
    host,
    image,
    image_origin,
    kvm,
    network,
    process,
    tpm,
)
from casemate.controls.drift import DRIFT
from casemate.controls.model import Control


def launch_controls() -> tuple[Control, ...]:
    """Every control that `judge` takes for a launch, host first. Drift is compared, not judged: see `catalogue`."""
    layers = (host, kvm, devices, boot, confinement, process, network, image, image_origin, entropy, tpm)
    return tuple(control for layer in layers for control in layer.CONTROLS)


def confidential_controls() -> tuple[Control, ...]:
    """What the launch of a confidential guest is judged by: the controls of every launch, and its own."""
    from casemate.controls.catalogue import confidential

    return (*launch_controls(), *confidential.CONTROLS)


def catalogue() -> tuple[Control, ...]:
    """All controls there are, each id once: those of a launch, confidential or not, and drift."""
    return (*confidential_controls(), DRIFT)
