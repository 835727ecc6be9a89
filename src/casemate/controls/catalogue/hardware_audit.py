"""Layer hardware: what an audit asks about the host's CPUs, beyond what a launch asks."""

from __future__ import annotations

from casemate.controls.catalogue.common import OTHERS, S6, kernel, lecture
from casemate.controls.expectations import OneOf
from casemate.controls.model import Check, Control, Cost, Gate, Remedies, Severity, Source, Subject

CONTROLS = (
    Control(
        id="cpu.ksm-host",
        title="The host merges no equal pages of different VMs",
        question="Is kernel same-page merging (KSM) stopped, or not built in?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("cpu.ksm-run", OneOf(("0", "2", "absent"))),),
        cuts=(S6,),
        scenarios=(OTHERS,),
        cost=Cost(performance="no memory saved between equal guests"),
        remedies=Remedies(host="echo 2 > /sys/kernel/mm/ksm/run; systemctl disable --now ksm ksmtuned"),
        sources=(
            Source("Firecracker, production host setup", "Disable Kernel Samepage Merging"),
            kernel("admin-guide/mm/ksm"),
            lecture("Matériel: canaux cachés"),
        ),
    ),
)
