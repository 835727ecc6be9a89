"""Why is a reported measurement another one? Tries one change of an input at a time until the values agree.

A value that two changes together would explain is not found; tried are changes that launches really get wrong: number
and model of vCPUs, memory, guest features, kernel hashes, Secure Boot, no initrd, no command line, other files where
they are given, and one event of the log that is missing or there twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from casemate.errors import InputError
from casemate.evidence.event_log import EV_NO_ACTION, Event, EventLog
from casemate.measure.early import ADDRESS_BITS
from casemate.measure.expected import Expected
from casemate.measure.inputs import Inputs, measured
from casemate.measure.registers import Prediction, Step, extended
from casemate.measure.vmsa import CPUS

VCPUS_TRIED: Final = 256
MACHINE_VCPUS_TRIED: Final = 64
FEATURES_TRIED: Final = (0x1, 0x21, 0x9, 0x11, 0x5, 0x25, 0x201, 0x221)
"""SEV_FEATURES: SNP alone; with debug swap; with restricted or alternate injection; reflecting #VC, alone and with
debug swap; with a secure TSC, alone and with debug swap."""
MEMORY_TRIED_MIB: Final = (256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768, 65536)
OTHERS: Final = ("firmware", "variables", "kernel", "initrd", "cmdline", "disk", "eif")
"""Inputs of which other ones may be given to try."""
SAME: Final = "nothing: the inputs give the reported measurement"


def explain(inputs: Inputs, name: str, value: str, others: Mapping[str, Sequence[tuple[str, Any]]]) -> str | None:
    """What would have to be otherwise for a value to be the reported one; None: no single change does it.

    Args:
        name: of the value, as in `Expected.values`; empty for whichever has it.
        value: hexadecimal.
        others: by input (`OTHERS`), what else it may have been: (how to call it, the input).

    Raises:
        InputError: there is no such value in this kind.
    """
    known = measured(inputs, {})
    if name and name not in known.values and name not in known.unpredictable:
        raise InputError(f"there is no value {name!r}", expected=", ".join((*known.values, *known.unpredictable)))
    if name in known.unpredictable:
        raise InputError(f"{name} cannot be predicted", got=known.unpredictable[name])
    for what, other in _changes(inputs, others):
        try:
            if _has(measured(other, {}), name, value):
                return what
        except InputError:
            continue
    return next(_events(known, inputs, name, value), None)


def _has(found: Expected, name: str, value: str) -> bool:
    return found.values.get(name) == value if name else value in found.values.values()


def _changes(inputs: Inputs, others: Mapping[str, Sequence[tuple[str, Any]]]) -> Iterator[tuple[str, Inputs]]:
    replace = msgspec.structs.replace
    yield SAME, inputs
    if inputs.kind in ("sev-snp", "sev-es"):
        yield from _sev_changes(inputs)
    for kind, given in others.items():
        for name, other in given:
            yield f"{kind} {name}", replace(inputs, **{kind: other})
    if inputs.kernel is not None and inputs.initrd is not None:
        yield "no initrd", replace(inputs, initrd=None)
    if inputs.cmdline:
        yield "no command line", replace(inputs, cmdline="")
    if inputs.kind == "tdx":
        yield "pages are added before they are measured (kernels before 6.16)", replace(inputs, two_passes=True)
    if inputs.kind in ("tpm", "tdx"):
        yield from _boot_changes(inputs)


def _boot_changes(inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    replace = msgspec.structs.replace
    yield "Secure Boot off", replace(inputs, secure_boot_off=True)
    for plain in (True, False):
        if inputs.kernel is not None and plain is not inputs.plain_kernel:
            yield f"QEMU {'10.0 or newer' if plain else 'older than 10.0'}", replace(inputs, plain_kernel=plain)
    for mib in MEMORY_TRIED_MIB:
        if (inputs.kernel is not None or inputs.address_bits is not None) and mib << 20 != inputs.memory_bytes:
            yield f"{mib} MiB of memory", replace(inputs, memory_bytes=mib << 20)

    if inputs.address_bits is None:
        return
    for bits in ADDRESS_BITS:
        if bits != inputs.address_bits:
            yield f"{bits} address bits in place of {inputs.address_bits}", replace(inputs, address_bits=bits)
    for vcpus in range(1, MACHINE_VCPUS_TRIED + 1):
        if vcpus != inputs.vcpus:
            yield f"{vcpus} vCPUs in place of {inputs.vcpus}", replace(inputs, vcpus=vcpus)


def _sev_changes(inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    replace = msgspec.structs.replace
    for vcpus in range(1, VCPUS_TRIED + 1):
        if vcpus != inputs.vcpus:
            yield f"{vcpus} vCPUs in place of {inputs.vcpus}", replace(inputs, vcpus=vcpus)
    own = CPUS.get(inputs.cpu.partition("-v")[0])
    for model, signature in CPUS.items():
        if signature != own:
            yield f"CPU model {model}", replace(inputs, cpu=model)
    for features in FEATURES_TRIED:
        if features != inputs.features:
            yield f"guest features {features:#x}", replace(inputs, features=features)
    if inputs.kernel is not None and inputs.kernel_hashes:
        yield "no hashes of kernel, initrd and command line", replace(inputs, kernel_hashes=False)


def _events(known: Expected, inputs: Inputs, name: str, value: str) -> Iterator[str]:
    """One event of a register left out, or there twice."""
    registers = sorted({step.register for step in known.steps if not step.unknown})
    banks = inputs.banks if inputs.kind == "tpm" else ("sha384",)
    for bank in banks:
        for number in registers:
            if name and name not in (f"{bank}.{number}", f"rtmr{number}", f"pcr{number}"):
                continue
            steps = [step for step in known.steps if step.register == number]
            if any(step.unknown for step in steps):
                continue
            digests = [step.digests[bank] for step in steps]
            for at, step in enumerate(steps):
                if extended(bank, digests[:at] + digests[at + 1 :]).hex() == value:
                    yield f"without the event {step.what!r} of register {number}"
                if extended(bank, [*digests[: at + 1], *digests[at:]]).hex() == value:
                    yield f"with the event {step.what!r} of register {number} twice"


def differences(prediction: Prediction, log: EventLog, registers: Sequence[int]) -> Iterator[str]:
    """How a log differs from what was computed: for each register the first event that is another one."""
    for number in registers:
        steps = [step for step in prediction.steps if step.register == number]
        events = [event for event in log.events if event.register == number and event.kind != EV_NO_ACTION]
        if any(step.unknown for step in steps):
            continue
        found = next((text for at in range(max(len(steps), len(events))) if (text := _differs(steps, events, at))), "")
        if found:
            yield f"register {number}: {found}"


def _differs(steps: Sequence[Step], events: Sequence[Event], at: int) -> str:
    """How one event differs; empty when it does not."""
    if at >= len(events):
        return f"event {at + 1}, {steps[at].what!r}, is missing from the log"
    if at >= len(steps):
        return f"event {at + 1} of the log was not expected: {_shown(events[at].data)}"
    if any(events[at].digests.get(bank) != digest for bank, digest in steps[at].digests.items()):
        return f"event {at + 1}, {steps[at].what!r}, is another one: {_shown(events[at].data)}"
    return ""


def _shown(data: bytes) -> str:
    """The text beside an event, as far as it can be shown; it proves nothing."""
    text = data[:96].decode("utf-8", "replace")
    shown = "".join(character for character in text if character.isprintable() and character != "\ufffd")
    return repr(shown) if shown else f"{len(data)} bytes"
