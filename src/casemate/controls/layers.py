"""The layers of the lecture, in its order; the first word of a control's id says which one it belongs to."""

from __future__ import annotations

import enum


class Layer(enum.StrEnum):
    """One layer of the lecture; reports are grouped by it."""

    HARDWARE = "hardware"
    IOMMU = "iommu"
    KVM = "kvm"
    KERNEL = "kernel"
    HOST = "host"
    VMM = "vmm"
    EMULATOR = "emulator"
    DEVICES = "devices"
    CONFINEMENT = "confinement"
    NETWORK = "network"
    IMAGE = "image"
    ENTROPY = "entropy"
    GUEST = "guest"
    CONFIDENTIAL = "confidential"


_LAYERS = {
    "cpu": Layer.HARDWARE,
    "iommu": Layer.IOMMU,
    "kvm": Layer.KVM,
    "hk": Layer.KERNEL,
    "os": Layer.HOST,
    "vmm": Layer.VMM,
    "bin": Layer.EMULATOR,
    "dev": Layer.DEVICES,
    "mem": Layer.DEVICES,
    "proc": Layer.CONFINEMENT,
    "run": Layer.CONFINEMENT,
    "net": Layer.NETWORK,
    "img": Layer.IMAGE,
    "sec": Layer.IMAGE,
    "ent": Layer.ENTROPY,
    "guest": Layer.GUEST,
    "cc": Layer.CONFIDENTIAL,
    "tpm": Layer.CONFIDENTIAL,
}


def layer_of(control_id: str) -> Layer:
    """The layer of a control.

    Raises:
        RuntimeError: no layer has this first word: the catalogue is wrong.
    """
    layer = _LAYERS.get(control_id.partition(".")[0])
    if layer is None:
        raise RuntimeError(f"control {control_id}: no layer has ids like this")
    return layer
