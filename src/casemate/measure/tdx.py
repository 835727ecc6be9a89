"""MRTD and RTMR 0 to 3 of a TDX guest under QEMU, before it starts.

MRTD is the firmware's (`tdvf.py`). What a TPM would hold in its PCRs goes into the RTMRs (UEFI specification, 38.4.1):
PCR 1 and 7 into RTMR 0, 2 to 6 into RTMR 1, 8 to 15 into RTMR 2; each with one separator. RTMR 3 is for the guest.
"""

from __future__ import annotations

from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence.event_log import EV_NO_ACTION, EventLog
from casemate.measure.registers import Prediction, Step, Steps
from casemate.measure.tdvf import Tdvf

RTMRS: Final = (0, 1, 2, 3)
_OF_PCR: Final = {1: 0, 7: 0} | dict.fromkeys(range(2, 7), 1) | dict.fromkeys(range(8, 16), 2)
_SEPARATORS: Final = (4, 7)
_MACHINE: Final = (
    "the memory map and the ACPI tables are QEMU's; "
    "the event log of one boot of the same machine gives them (--reference-log)"
)


def measure_tdx(pcrs: Prediction, firmware: Tdvf, reference: EventLog | None) -> Prediction:
    """The RTMRs.

    Args:
        pcrs: what a TPM of the same machine would hold, with SHA-384.
        reference: the event log (CCEL) of a boot that is trusted, for RTMR 0.

    Raises:
        InputError: the reference is of another firmware, or of other variables.
    """
    steps = Steps(("sha384",))
    for step in pcrs.steps:
        register = _OF_PCR.get(step.register)
        if register in (1, 2) and (step.what != "separator" or step.register in _SEPARATORS):
            steps.found.append(msgspec.structs.replace(step, register=register))
    own = Steps(("sha384",))
    own.data(0, "variables of the firmware", firmware.variables)
    own.found += [msgspec.structs.replace(step, register=0) for step in pcrs.steps if step.register == 7]
    if reference is None:
        steps.unknown(0, "machine", _MACHINE)
        steps.found += own.found
    else:
        steps.found += _from_reference(reference, own.found)
    return steps.prediction()


def _from_reference(log: EventLog, own: list[Step]) -> list[Step]:
    """RTMR 0 as a log has it, when everything that can be computed is in it, in order."""
    if "sha384" not in log.banks:
        raise InputError("the reference log", got="no SHA-384", expected="the CCEL of a TDX guest")
    events = [event for event in log.events if event.register == 1 and event.kind != EV_NO_ACTION]
    left = iter(events)
    for step in own:
        if step.unknown or not any(event.digests["sha384"] == step.digests["sha384"] for event in left):
            raise InputError(
                "the reference log is of another launch",
                got=f"no event for {step.what}",
                expected="a log of the same firmware and keys",
            )
    return [
        Step(register=0, what="machine, as the reference log has it", digests={"sha384": event.digests["sha384"]})
        for event in events
    ]
