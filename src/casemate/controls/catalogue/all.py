"""The whole catalogue: the controls of a launch and those that only an audit judges, by subject."""

from __future__ import annotations

from casemate.controls.catalogue.launch import catalogue as launch_catalogue
from casemate.controls.model import Control, Subject

AUDIT_MODULES: tuple[str, ...] = (
    "hardware_audit",
    "vulnerabilities_audit",
    "iommu_audit",
    "kvm_audit",
    "kvm_host_audit",
    "kernel_audit",
    "vmm_audit",
    "host_audit",
    "devices_audit",
    "others_audit",
    "process_audit",
    "network_audit",
    "image_audit",
    "image_origin_audit",
    "guest_audit",
    "guest_image_audit",
    "entropy_audit",
    "provision_audit",
    "emulator_audit",
)
"""Modules below this package whose ``CONTROLS`` only audits judge; imported on use, because a launch needs none."""


def all_controls() -> tuple[Control, ...]:
    """Every control there is, each id once.

    Raises:
        RuntimeError: an id twice.
    """
    import importlib

    found = list(launch_catalogue())
    for name in AUDIT_MODULES:
        found += importlib.import_module(f"casemate.controls.catalogue.{name}").CONTROLS
    ids = [control.id for control in found]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise RuntimeError(f"controls with one id: {', '.join(twice)}")
    return tuple(found)


def controls_about(*subjects: Subject) -> tuple[Control, ...]:
    """The controls about these subjects."""
    return tuple(control for control in all_controls() if control.subject in subjects)
