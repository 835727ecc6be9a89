"""What ``[confidential]`` excludes, each with its reason; part of ``spec/rules.py``."""

from __future__ import annotations

import datetime

import msgspec

from casemate.spec.confidential import (
    ID_AUTH_BYTES,
    ID_BLOCK_BYTES,
    KEYS,
    Confidential,
    Kind,
    id_block_policy,
    snp_policy,
)
from casemate.spec.faults import Faults
from casemate.spec.model import AccelChoice, Firmware, Irqchip, MachineType, SecretUse, Spec

_BOARD = {Kind.SEV_SNP: MachineType.Q35, Kind.TDX: MachineType.Q35, Kind.SE: MachineType.S390}


def check_board(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    """The machine that each kind needs, and what it cannot have."""
    machine, wanted = spec.machine, spec.confidential
    if wanted is None:
        if machine.type is MachineType.S390:
            message = 'is for IBM Secure Execution; say kind = "se" in [confidential], or take another machine'
            faults.add("machine.type", "confidential.machine", message)
        return
    board = _BOARD[wanted.kind]
    if machine.type is not board:
        why = "OVMF boots it, which a microvm has no place for" if board is MachineType.Q35 else "it runs on s390x only"
        faults.add("machine.type", "confidential.machine", f'{wanted.kind} needs type = "{board}": {why}')
    if machine.accel is AccelChoice.TCG:
        faults.add(
            "machine.accel", "confidential.accel", "under TCG the emulator is the processor: nothing is encrypted"
        )
    if machine.irqchip is not Irqchip.SPLIT:
        message = 'needs irqchip = "split": the emulator has no access to the registers of an encrypted vCPU'
        faults.add("machine.irqchip", "confidential.irqchip", message)
    if machine.saveable:
        message = "memory and registers are encrypted: nothing of them can be saved"
        faults.add("machine.saveable", "confidential.saveable", message)


def check_measured_boot(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    """Only what the launch measures, or what that measures in turn, may boot."""
    boot, wanted = spec.boot, spec.confidential
    if wanted is None:
        return
    if boot.firmware not in (Firmware.NONE, Firmware.UEFI):
        message = (
            'expected no firmware with a kernel, or "uefi", which is then the OVMF that the launch measures: without'
            " variables and without SMM, which an encrypted guest cannot have"
        )
        faults.add("boot.firmware", "confidential.firmware", message)
    elif boot.kernel is None and wanted.kind is not Kind.TDX:
        message = "nothing measures what a disk boots; expected a kernel, which the launch measures"
        faults.add("boot.kernel", "confidential.kernel", message)
    if wanted.kind is Kind.SE:
        for name in ("initrd", "cmdline"):
            if getattr(boot, name):
                message = "is inside the encrypted image (genprotimg); outside of it nothing protects it"
                faults.add(f"boot.{name}", "confidential.kernel", message)


def check_channels(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    """What the host says to the guest is not measured, and whoever obeys it obeys the host."""
    if spec.confidential is None:
        return
    for name, secret in spec.secrets.items():
        if secret.use is SecretUse.DISK:
            message = "the emulator would decrypt the disk; let the guest do it, with a key released after attestation"
        else:
            message = "the host reads this channel and nothing measures it; release the secret after attestation"
        faults.add(f"secrets.{name}", "confidential.secret", message)
    if spec.provision.cloud_init is not None or spec.provision.ignition is not None:
        message = "the guest obeys it as root and nothing measures it; put it into the image or into the initrd"
        faults.add("provision", "confidential.provision", message)
    if spec.tpm.enabled:
        message = "the host emulates the TPM and could make it say anything; the guest's evidence is its own report"
        faults.add("tpm.enabled", "confidential.tpm", message)
    if spec.passthrough:
        message = "nothing attests the device, and it reads and writes only what the guest shares with the host"
        faults.add("passthrough", "confidential.passthrough", message)


def check_keys(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    """Only the keys of this kind, and an ID block that can be right."""
    wanted = spec.confidential
    if wanted is None:
        return
    for field in msgspec.structs.fields(Confidential):
        if field.name == "kind" or field.name in KEYS[wanted.kind]:
            continue
        if getattr(wanted, field.name) != field.default:
            known = ", ".join(KEYS[wanted.kind]) or "none beside kind"
            message = f'kind = "{wanted.kind}" has no such key; it takes {known}'
            faults.add(f"confidential.{field.name}", "confidential.key", message)
    if any(int(part) > 255 for part in (wanted.abi_minimum or "0").split(".")):
        faults.add("confidential.abi_minimum", "value.range", f"got {wanted.abi_minimum}; each number has one byte")
    elif wanted.kind is Kind.SEV_SNP:
        _check_id_block(wanted, faults)


def _check_id_block(wanted: Confidential, faults: Faults) -> None:
    """ID block and signature go together, have their sizes, and are for this policy."""
    if (wanted.id_block is None) != (wanted.id_auth is None):
        message = "id_block and id_auth go together: the firmware checks one with the other"
        faults.add("confidential.id_block", "confidential.id-block", message)
    if wanted.author_key and wanted.id_auth is None:
        message = "the author key is part of id_auth, which is missing"
        faults.add("confidential.author_key", "confidential.id-block", message)
    block = _decoded(wanted.id_block, ID_BLOCK_BYTES, "id_block", faults)
    _decoded(wanted.id_auth, ID_AUTH_BYTES, "id_auth", faults)
    if block is not None and id_block_policy(block) != snp_policy(wanted):
        message = (
            f"is signed for policy {id_block_policy(block):#x}; this specification asks for {snp_policy(wanted):#x}"
        )
        faults.add("confidential.id_block", "confidential.id-block", message)


def _decoded(text: str | None, size: int, name: str, faults: Faults) -> bytes | None:
    if text is None:
        return None
    import base64

    try:
        found = base64.b64decode(text, validate=True)
    except ValueError:
        found = b""
    if len(found) == size:
        return found
    message = f"has {len(found)} bytes of base64; expected {size}"
    faults.add(f"confidential.{name}", "confidential.id-block", message)
    return None
