"""Why a reported measurement is another one: the single change of an input that gives it, tried out.

Tried in this order: number of vCPUs, CPU model, guest features, without the kernel's hashes, other firmwares given.
When none gives it, more than one thing changed, or something that no input here stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.measure.ovmf import Firmware
from casemate.measure.sev import Guest
from casemate.measure.vmsa import CPUS

VCPUS_TRIED: Final = 256
FEATURES_TRIED: Final = (0x1, 0x21, 0x9, 0x11, 0x5, 0x201, 0x221)
"""SEV_FEATURES: SNP alone; with debug swap; with restricted or alternate injection; reflecting #VC; with a secure TSC;
with that and debug swap."""


def explain(
    guest: Guest, reported: bytes, digest: Callable[[Guest], bytes], firmwares: Mapping[str, Firmware]
) -> str | None:
    """What would have to be otherwise for the measurement to be the reported one; None: no single change does it."""
    for what, other in _changes(guest, firmwares):
        try:
            if digest(other) == reported:
                return what
        except InputError:
            continue
    return None


def _changes(guest: Guest, firmwares: Mapping[str, Firmware]) -> Iterator[tuple[str, Guest]]:
    yield "nothing: the inputs give the reported measurement", guest
    for vcpus in range(1, VCPUS_TRIED + 1):
        if vcpus != guest.vcpus:
            yield f"{vcpus} vCPUs in place of {guest.vcpus}", msgspec.structs.replace(guest, vcpus=vcpus)
    for name, signature in CPUS.items():
        if signature != guest.signature:
            yield f"CPU model {name}", msgspec.structs.replace(guest, signature=signature)
    for features in FEATURES_TRIED:
        if features != guest.features:
            yield f"guest features {features:#x}", msgspec.structs.replace(guest, features=features)
    if guest.kernel is not None:
        yield "no hashes of kernel, initrd and command line", msgspec.structs.replace(guest, kernel=None)
    for name, firmware in firmwares.items():
        yield f"firmware {name}", msgspec.structs.replace(guest, firmware=firmware)
