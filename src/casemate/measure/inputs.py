"""Everything that a measurement depends on, in one value, and the measurement that it gives. Pure: bytes in, bytes out.

`explain` changes one of the inputs at a time, so each kind is computed from here and nowhere else.
"""

from __future__ import annotations

import functools

import msgspec

from casemate.errors import InputError
from casemate.evidence.event_log import EventLog
from casemate.evidence.policy import Policy
from casemate.evidence.se import parse_image
from casemate.measure import boot, expected
from casemate.measure.disk import Disk, predict_disk
from casemate.measure.early import Machine
from casemate.measure.eif import measure_eif
from casemate.measure.expected import Expected
from casemate.measure.gpt import Read
from casemate.measure.ovmf import parse_firmware
from casemate.measure.registers import Prediction
from casemate.measure.sev import SNP_ACTIVE, Guest, hash_kernel, seves_digest, snp_digest
from casemate.measure.tdvf import parse_tdvf
from casemate.measure.tdx import RTMRS, measure_tdx
from casemate.measure.variables import parse_variables
from casemate.measure.vmsa import CPUS
from casemate.measure.volumes import parse_volumes

_firmware = functools.lru_cache(maxsize=4)(parse_firmware)
_kernel = functools.lru_cache(maxsize=4)(hash_kernel)
_volumes = functools.lru_cache(maxsize=4)(parse_volumes)
_FIRMWARE_ALONE = "the launch measures the firmware and nothing behind it: whatever that starts gives the same digest"


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """Of every kind; a kind takes what it measures.

    ``firmware``: OVMF, as the launch loads it. ``variables``: the variable store. ``eif``: a Nitro enclave image.
    ``kernel``: None when the guest boots from its disk. ``memory_bytes``: guest RAM. ``cpu``: QEMU's model.
    ``features``: SEV_FEATURES. ``kernel_hashes``: whether SEV firmware is to check the kernel. ``secure_boot_off``: as
    if it were switched off in the store. ``foreign_roms``: devices of the host are passed through, with option ROMs of
    their own. ``plain_kernel``: whether QEMU offers the kernel also as it is; None: not known. ``address_bits``: of a
    physical address, as the CPU of a q35 without sleep states reports them; None: not known. ``two_passes``: whether
    the host adds pages of a trust domain before it measures them. ``reference``: an event log that is trusted, for what
    firmware and machine alone decide. ``wanted``: what evidence has to say beside it.
    """

    kind: str
    firmware: bytes = b""
    variables: bytes = b""
    kernel: bytes | None = None
    initrd: bytes | None = None
    cmdline: str = ""
    disk: Disk | None = None
    eif: Read | None = None
    memory_bytes: int = 0
    vcpus: int = 1
    cpu: str = ""
    features: int = SNP_ACTIVE
    kernel_hashes: bool = True
    secure_boot_off: bool = False
    foreign_roms: bool = False
    plain_kernel: bool | None = None
    address_bits: int | None = None
    two_passes: bool = False
    reference: EventLog | None = None
    banks: tuple[str, ...] = ("sha256",)
    registers: tuple[int, ...] = boot.REGISTERS
    wanted: Policy = Policy()


def measured(inputs: Inputs, described: dict[str, str | int]) -> Expected:
    """The measurement.

    Args:
        described: the inputs by name, for whoever reads the result.

    Raises:
        InputError: it cannot be measured so, or there is no such kind.
    """
    if inputs.kind in ("sev-snp", "sev-es"):
        digest = snp_digest if inputs.kind == "sev-snp" else seves_digest
        values = {"measurement": digest(_guest(inputs)).hex()}
        silent = {} if inputs.kernel is not None and inputs.kernel_hashes else {"boot": _FIRMWARE_ALONE}
        return Expected(kind=inputs.kind, values=values, inputs=described, unpredictable=silent, wanted=inputs.wanted)
    if inputs.kind == "tpm":
        return expected.of_tpm(_predict(inputs), inputs.registers, described)
    if inputs.kind == "se" and inputs.kernel is not None:
        return Expected(kind="se", values={"image": parse_image(inputs.kernel).hex()}, inputs=described)
    if inputs.kind == "tdx":
        return msgspec.structs.replace(_td(inputs, described), wanted=inputs.wanted)
    if inputs.kind == "nitro" and inputs.eif is not None:
        return expected.of_registers("nitro", "pcr", measure_eif(inputs.eif).prediction(), described)
    raise InputError(f"there is no measurement {inputs.kind!r}", expected=", ".join(expected.KINDS))


def _guest(inputs: Inputs) -> Guest:
    model, _, version = inputs.cpu.partition("-v")
    if model not in CPUS or (version and not version.isdigit()):
        raise InputError(f"CPU model {inputs.cpu!r} is not known", expected=", ".join(CPUS))
    kernel = None
    if inputs.kernel is not None and inputs.kernel_hashes:
        kernel = _kernel(inputs.kernel, inputs.initrd or b"", inputs.cmdline)
    return Guest(
        firmware=_firmware(inputs.firmware),
        vcpus=inputs.vcpus,
        signature=CPUS[model],
        features=inputs.features,
        kernel=kernel,
    )


def _predict(inputs: Inputs) -> Prediction:
    """What a TPM would hold; of a trust domain the same events go into its own registers."""
    is_td = inputs.kind == "tdx"
    variables = parse_variables(parse_tdvf(inputs.firmware).variables if is_td else inputs.variables)
    if inputs.secure_boot_off:
        variables = boot.without_secure_boot(variables)
    platform = boot.Platform(
        volumes=_volumes(inputs.firmware),
        variables=variables,
        memory_bytes=inputs.memory_bytes,
        foreign_roms=inputs.foreign_roms,
        plain_kernel=True if is_td else inputs.plain_kernel,
        is_td=is_td,
        reference=None if is_td else inputs.reference,
        machine=_machine(inputs),
    )
    banks = ("sha384",) if is_td else inputs.banks
    if inputs.kernel is not None:
        return boot.predict_direct(platform, boot.Direct(inputs.kernel, inputs.initrd, inputs.cmdline), banks)
    if inputs.disk is not None:
        return predict_disk(platform, inputs.disk, banks)
    raise InputError("nothing to boot", expected="a kernel, or a disk")


def _machine(inputs: Inputs) -> Machine | None:
    if inputs.address_bits is None:
        return None
    return Machine(inputs.memory_bytes, inputs.vcpus, inputs.address_bits)


def _td(inputs: Inputs, described: dict[str, str | int]) -> Expected:
    firmware = parse_tdvf(inputs.firmware)
    found = expected.of_registers(
        "tdx", "rtmr", measure_tdx(_predict(inputs), firmware, inputs.reference), described, RTMRS
    )
    mrtd = firmware.mrtd(two_passes=inputs.two_passes).hex()
    return msgspec.structs.replace(found, values={"mrtd": mrtd, **found.values})
