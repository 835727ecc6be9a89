"""The public API of measurement: a specification and the files of its launch in, expected values out, before it runs.

    found = measure("web.toml", kind="tpm")
    found.expected.values["sha256.4"]        what PCR 4 will hold
    found.expected.policy()                  what evidence of that launch has to say (`evidence/policy.py`)
    found.expected.policy_text()             the same as a file, for ``attest verify --policy`` and for key release

One object gives all three: they cannot drift apart. No root, no QEMU, no hardware. Everything below is imported on use.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from casemate.errors import InputError

if TYPE_CHECKING:
    from casemate.measure.expected import Expected
    from casemate.measure.gpt import Read
    from casemate.measure.inputs import Inputs
    from casemate.spec.model import Spec

__all__ = ["Choices", "Measured", "measure"]

FIRMWARE_MAX_BYTES = 64 << 20
KERNEL_MAX_BYTES = 1 << 30
LOG_MAX_BYTES = 32 << 20
_PLAIN_KERNEL_QEMU = 10
"""Since when QEMU offers a kernel also as it is (fw_cfg etc/boot/kernel)."""


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """What a specification does not say. File names, except where noted; None: what the host offers, or nothing.

    ``kind``: one of `expected.KINDS`; None: the confidential guest's, Nitro for an EIF, SEV-SNP when a CPU model is
    given, else the TPM's registers. ``variables``: the variable store that the VM starts with. ``reference_log``: of a
    trusted boot of the same firmware and machine. ``qemu``: version of the emulator, which some firmwares make a
    difference of. ``address_bits``: of a physical address, that the VM's CPU reports. ``files``: what GRUB reads from
    file systems that are not read here, GRUB's path to file.
    ``others``: tried by ``reported``, input to file (or text, for ``cmdline``). ``reported``: ``HEX`` or ``NAME=HEX``.
    """

    kind: str | None = None
    firmware: str | None = None
    variables: str | None = None
    cpu: str | None = None
    vcpus: int | None = None
    features: int | None = None
    kernel_hashes: bool = True
    banks: tuple[str, ...] = ("sha256",)
    reference_log: str | None = None
    qemu: str | None = None
    address_bits: int | None = None
    files: Mapping[str, str] = {}
    others: Sequence[tuple[str, str]] = ()
    reported: str | None = None
    observed_log: str | None = None


class Measured(msgspec.Struct, frozen=True):
    """``explained``: for a reported value, the single change that gives it; empty when none does; None when nothing was
    reported. ``differences``: of an observed log, None when there was none."""

    expected: Expected
    explained: str | None
    differences: tuple[str, ...] | None

    def document(self) -> dict[str, Any]:
        """As JSON: schema ``casemate.measure/1``."""
        found = self.expected.document()
        if self.explained is not None:
            found["explained"] = self.explained
        if self.differences is not None:
            found["differences"] = list(self.differences)
        return found


def measure(spec: str | None, choices: Choices) -> Measured:
    """What a launch will measure, from the files that it loads.

    Args:
        spec: a specification; None: a guest without a kernel of its own (SEV).

    Raises:
        InputError: a file cannot be read or cannot be measured so; something is not known. SpecError: its faults.
        HostError: no firmware was given and the host has none.
    """
    from casemate.measure.expected import KINDS
    from casemate.measure.explain import explain
    from casemate.measure.inputs import measured

    is_image = choices.kind == "nitro" or (choices.kind is None and _is_eif(spec))
    loaded = None if is_image else _load(spec)
    choices = _with_confidential(loaded, choices)
    kind = choices.kind or ("nitro" if is_image else "sev-snp" if choices.cpu is not None else "tpm")
    if kind not in KINDS:
        raise InputError(f"there is no measurement {kind!r}", expected=", ".join(KINDS))
    described: dict[str, str | int] = {}
    inputs = _eif(spec, described) if kind == "nitro" else _inputs(kind, loaded, choices, described)
    expected = measured(inputs, described)
    if loaded is not None and loaded.confidential is not None and choices.reported is None and kind == "sev-snp":
        from casemate.measure.confidential import check_id_block

        check_id_block(loaded.confidential, expected.values["measurement"])
    explained = None
    if choices.reported is not None:
        name, value = _reported(choices.reported)
        explained = explain(inputs, name, value, _others(choices)) or ""
    return Measured(expected, explained, _differences(expected, choices))


def _eif(path: str | None, described: dict[str, str | int]) -> Inputs:
    from casemate.measure.inputs import Inputs

    if path is None:
        raise InputError("an enclave is measured from its image", expected="an EIF in place of the specification")
    described["eif"] = path
    return Inputs(kind="nitro", eif=_reader(path))


def _is_eif(path: str | None) -> bool:
    """Whether a file begins like an enclave image; what cannot be read is none, and said later."""
    if path is None or path == "-":
        return False
    try:
        return _reader(path)(0, 4) == b".eif"
    except InputError:
        return False


def _load(target: str | None) -> Spec | None:
    """What `casemate run` would start."""
    from pathlib import Path

    from casemate.engine.paths import default_paths
    from casemate.engine.target import load_target

    if target is None:
        return None
    return load_target(target, {}, paths=default_paths(), base_dir=Path.cwd(), report=lambda _: None)


def _with_confidential(spec: Spec | None, choices: Choices) -> Choices:
    """What a confidential guest's specification says itself, where the choices leave it open.

    Raises:
        InputError: the choices are about another kind of guest.
    """
    from casemate.facts.confidential import measured_firmware
    from casemate.facts.root import Root
    from casemate.spec.confidential import Kind

    wanted = spec.confidential if spec is not None else None
    if wanted is None:
        return choices
    if choices.kind not in (None, wanted.kind.value):
        raise InputError(f"--kind {choices.kind} of a guest of kind {wanted.kind}", expected=wanted.kind.value)
    firmware = choices.firmware or wanted.firmware
    if firmware is None:
        is_direct = spec is not None and spec.boot.kernel is not None
        firmware = measured_firmware(Root(), wanted.kind.value, is_direct=is_direct) or None
    cpu = choices.cpu or (wanted.cpu if wanted.kind is Kind.SEV_SNP else None)
    return msgspec.structs.replace(choices, kind=wanted.kind.value, firmware=firmware, cpu=cpu)


def _inputs(kind: str, spec: Spec | None, choices: Choices, described: dict[str, str | int]) -> Inputs:
    """The files of the launch, read; ``described`` gets them by name."""
    from casemate.measure.inputs import Inputs
    from casemate.measure.sev import SNP_ACTIVE

    fields: dict[str, Any] = {"kind": kind, "banks": choices.banks, "vcpus": choices.vcpus or 1}
    if spec is not None:
        fields |= _from_spec(spec, choices, described)
    if kind == "se":
        pass  # the encrypted image is all there is
    elif kind == "tpm":
        fields |= _from_machine(spec, choices, described)
    elif kind == "tdx":
        fields |= _from_td(spec, choices, described)
    else:
        if choices.firmware is None or choices.cpu is None:
            raise InputError(f"{kind} needs more", expected="--firmware FILE and --cpu MODEL")
        fields |= {"firmware": _read(choices.firmware, FIRMWARE_MAX_BYTES), "cpu": choices.cpu}
        fields |= {"features": SNP_ACTIVE if choices.features is None else choices.features}
        fields["kernel_hashes"] = choices.kernel_hashes
        described |= {"firmware": choices.firmware, "vcpus": fields["vcpus"], "cpu": choices.cpu}
        described["features"] = f"{fields['features']:#x}"
    return Inputs(**fields)


def _from_spec(spec: Spec, choices: Choices, described: dict[str, str | int]) -> dict[str, Any]:
    from casemate.plan.argv import kernel_cmdline

    fields: dict[str, Any] = {"memory_bytes": spec.machine.memory_mib << 20}
    fields["vcpus"] = choices.vcpus or spec.machine.vcpus
    if spec.confidential is not None:
        from casemate.measure.confidential import wanted_policy

        fields["wanted"] = wanted_policy(spec.confidential)
    if spec.boot.kernel is not None:
        fields["kernel"] = _read(spec.boot.kernel, KERNEL_MAX_BYTES)
        fields["initrd"] = None if spec.boot.initrd is None else _read(spec.boot.initrd, KERNEL_MAX_BYTES)
        fields["cmdline"] = kernel_cmdline(spec)
        described |= {
            "kernel": spec.boot.kernel,
            "initrd": spec.boot.initrd or "",
            "cmdline": fields["cmdline"],
        }
    return fields


def _from_machine(spec: Spec | None, choices: Choices, described: dict[str, str | int]) -> dict[str, Any]:
    """Firmware, variables, disk and reference of a machine with a TPM."""
    from casemate.measure.early import ADDRESS_BITS
    from casemate.spec.model import Firmware, MachineType

    if spec is None:
        raise InputError("the registers of a TPM follow from what boots", expected="a specification")
    if spec.boot.firmware is Firmware.BIOS or (spec.boot.firmware is Firmware.NONE and choices.firmware is None):
        raise InputError(
            "this VM has no firmware that measures what it starts",
            got=f"firmware = {spec.boot.firmware.value}",
            expected='firmware = "uefi", or --firmware OVMF.fd for a kernel that OVMF is to start',
        )
    firmware, variables = _pair(spec, choices)
    fields: dict[str, Any] = {
        "firmware": _read(firmware, FIRMWARE_MAX_BYTES),
        "variables": _read(variables, FIRMWARE_MAX_BYTES),
        "foreign_roms": bool(spec.passthrough),
    }
    described |= {"firmware": firmware, "variables": variables, "memory_mib": spec.machine.memory_mib}
    if spec.boot.keys is not None and choices.variables is None:
        from casemate.engine.uefi_enrol import enrol

        fields["variables"] = enrol(fields["variables"], spec.boot.keys)  # as the VM's first start does
        described["keys"] = "boot.keys, enrolled"
    if choices.qemu is not None:
        fields["plain_kernel"] = _major(choices.qemu) >= _PLAIN_KERNEL_QEMU
        described["qemu"] = choices.qemu
    if choices.address_bits is not None and spec.machine.type is MachineType.Q35:
        if choices.address_bits not in ADDRESS_BITS:
            raise InputError("--address-bits", got=str(choices.address_bits), expected="36 to 52")
        fields["address_bits"] = described["address-bits"] = choices.address_bits
    return fields | _boot_fields(spec, choices, described)


def _from_td(spec: Spec | None, choices: Choices, described: dict[str, str | int]) -> dict[str, Any]:
    """Firmware, disk and reference of a TDX guest; its variables are part of the firmware."""
    if spec is None or choices.firmware is None:
        raise InputError("TDX needs more", expected="a specification and --firmware FILE")
    described |= {"firmware": choices.firmware, "memory_mib": spec.machine.memory_mib}
    return {"firmware": _read(choices.firmware, FIRMWARE_MAX_BYTES)} | _boot_fields(spec, choices, described)


def _boot_fields(spec: Spec, choices: Choices, described: dict[str, str | int]) -> dict[str, Any]:
    """The disk that is booted, when no kernel is given, and the reference."""
    from casemate.evidence.event_log import parse_event_log
    from casemate.measure.disk import Disk

    fields: dict[str, Any] = {}
    if choices.reference_log is not None:
        fields["reference"] = parse_event_log(_read(choices.reference_log, LOG_MAX_BYTES))
        described["reference-log"] = choices.reference_log
    if spec.boot.kernel is None and spec.disks:
        first = spec.disks[0]
        fields["disk"] = Disk(_disk_reader(first.path, first.format.value), _grub_files(choices))
        described["disk"] = first.path
    return fields


def _grub_files(choices: Choices) -> dict[str, bytes]:
    return {path: _read(name, KERNEL_MAX_BYTES) for path, name in choices.files.items()}


def _major(version: str) -> int:
    """10 of 10.0.2.

    Raises:
        InputError: it is no version.
    """
    first = version.partition(".")[0]
    if not (first.isascii() and first.isdigit() and len(first) < 4):
        raise InputError(f"QEMU {version}", expected="a version, such as 10.0")
    return int(first)


def _pair(spec: Spec, choices: Choices) -> tuple[str, str]:
    """Firmware and variable store: as given, or those that the VM would start with on this host."""
    if choices.firmware is not None and choices.variables is not None:
        return choices.firmware, choices.variables
    from casemate.engine.uefi import find_firmware
    from casemate.facts.firmware import uefi_firmwares
    from casemate.facts.root import Root

    root = Root()
    found = find_firmware(spec.boot, root) if choices.firmware is None else None
    if found is not None:
        return found.code, choices.variables or found.variables
    for pair in uefi_firmwares(root):
        if choices.firmware in (pair.code, root.real_path(pair.code)):
            return pair.code, choices.variables or pair.variables
    raise InputError(f"the variable store that goes with {choices.firmware} is not known", expected="--variables FILE")


def _reader(path: str) -> Read:
    """Bounded reads of a disk; the descriptor lives as long as the reader."""
    from casemate.audit.text import open_regular

    try:
        file = os.fdopen(open_regular(path), "rb", buffering=0)
    except OSError as error:
        raise InputError(f"cannot read {path}", got=(error.strerror or str(error)).lower()) from None

    def read(offset: int, length: int) -> bytes:
        parts = []
        while length > 0:
            part = os.pread(file.fileno(), min(length, 64 << 20), offset)
            if not part:
                break
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    return read


def _disk_reader(path: str, declared: str | None) -> Read:
    """Reads of a disk as the guest sees it, raw or qcow2.

    Args:
        declared: the format; None: told by content.

    Raises:
        InputError, ImageError: it cannot be read, or is none that a VM would get.
    """
    from casemate.audit.text import open_regular
    from casemate.image.headers import inspect_image
    from casemate.image.qcow2 import read_fixed
    from casemate.image.reader import ImageReader
    from casemate.measure.qcow2 import qcow2_reader

    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise InputError(f"cannot read {path}", got=(error.strerror or str(error)).lower()) from None
    try:
        if inspect_image(descriptor, path, declared).format == "raw":
            return _reader(path)
        return qcow2_reader(_reader(path), read_fixed(ImageReader(descriptor, path)))
    finally:
        os.close(descriptor)


def _reported(text: str) -> tuple[str, str]:
    """(name or nothing, value) of what was reported."""
    name, found, value = text.rpartition("=")
    value = value.lower()
    try:
        size = len(bytes.fromhex(value))
    except ValueError:
        size = 0
    if size not in (20, 32, 48, 64):
        raise InputError("the reported measurement", got=f"{len(value)} characters", expected="HEX, or NAME=HEX")
    return (name if found else ""), value


def _others(choices: Choices) -> dict[str, list[tuple[str, Any]]]:
    from casemate.measure.disk import Disk
    from casemate.measure.explain import OTHERS

    found: dict[str, list[tuple[str, Any]]] = {}
    for kind, name in choices.others:
        if kind not in OTHERS:
            raise InputError(f"there is no input {kind!r} to try", expected=", ".join(OTHERS))
        value: Any
        if kind == "cmdline":
            value = name
        elif kind == "disk":
            value = Disk(_disk_reader(name, None), _grub_files(choices))
        else:
            value = _reader(name) if kind == "eif" else _read(name, KERNEL_MAX_BYTES)
        found.setdefault(kind, []).append((name, value))
    return found


def _differences(expected: Expected, choices: Choices) -> tuple[str, ...] | None:
    from casemate.evidence.event_log import parse_event_log
    from casemate.measure.explain import differences
    from casemate.measure.registers import Prediction

    if choices.observed_log is None:
        return None
    if not expected.steps:
        raise InputError(f"{expected.kind} has no event log", expected="a TPM's registers, or TDX")
    log = parse_event_log(_read(choices.observed_log, LOG_MAX_BYTES))
    if expected.kind == "tdx":  # a CCEL counts from 1: RTMR n is its register n + 1
        log = msgspec.structs.replace(
            log, events=tuple(msgspec.structs.replace(event, register=event.register - 1) for event in log.events)
        )
    return tuple(differences(Prediction(choices.banks, expected.steps), log, expected.registers()))


def _read(name: str, limit: int) -> bytes:
    from casemate.audit.text import read_input

    return read_input(name, limit)
