"""What must hold between the fields of ``[provision]`` and ``[secrets]``; part of ``spec/rules.py``."""

from __future__ import annotations

import datetime

from casemate.spec.faults import Faults
from casemate.spec.model import DiskFormat, DiskMode, Encryption, MachineType, Secret, SecretUse, Spec

SOURCES = ("file", "descriptor", "systemd_creds", "command", "age")
FW_CFG_PREFIX = "opt/io.systemd.credentials/"
FW_CFG_NAME_MAX = 55
"""FW_CFG_MAX_FILE_PATH is 56 with its NUL (include/hw/nvram/fw_cfg.h)."""


def check_secrets(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    """Each secret has one source that can be asked, and a name that its channel takes."""
    name_max = FW_CFG_NAME_MAX - len(FW_CFG_PREFIX)
    microvm = spec.machine.type is MachineType.MICROVM
    for name, secret in spec.secrets.items():
        where = f"secrets.{name}"
        if faults.broken(where):
            continue
        _check_source(where, secret, faults)
        if secret.use is SecretUse.CREDENTIAL and microvm and len(name) > name_max:
            message = f'has {len(name)} characters; the fw_cfg of a microvm takes {name_max}; use machine.type = "q35"'
            faults.add(where, "secret.name-length", message)


def _check_source(where: str, secret: Secret, faults: Faults) -> None:
    given = [source for source in SOURCES if getattr(secret, source) is not None]
    if len(given) != 1:
        got = f"says {' and '.join(given)}; keep one" if given else f"says none of {', '.join(SOURCES)}"
        faults.add(where, "secret.source", got)
    if (secret.age is None) != (secret.identity is None):
        faults.add(where, "secret.identity", "age and identity go together: the file, and the key that opens it")
    if secret.command is not None and not (secret.command and secret.command[0].startswith("/")):
        faults.add(f"{where}.command", "secret.command", "expected a program by its full path, then its arguments")


def check_encryption(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    """An encrypted disk has a key that is a secret of this specification, and every such secret is some disk's key."""
    keys = {name for name, secret in spec.secrets.items() if secret.use is SecretUse.DISK}
    used = set()
    for index, disk in enumerate(spec.disks):
        where = f"disk[{index}]"
        if disk.key is not None:
            used.add(disk.key)
        encrypted = disk.encryption is Encryption.LUKS
        if encrypted != (disk.key is not None) or (disk.key is not None and disk.key not in keys):
            message = 'encryption = "luks" and key go together; key names a table [secrets.NAME] with use = "disk"'
            faults.add(f"{where}.key", "disk.key", message)
        if encrypted and disk.mode is DiskMode.OVERLAY:
            message = 'goes with mode = "persistent" or "read-only": an overlay would be plain text'
            faults.add(f"{where}.encryption", "disk.encryption", message)
        if encrypted and disk.format is DiskFormat.QCOW2 and spec.machine.saveable:
            # block/qcow2.c opens the image anew when a guest goes on after a save; the emulator has forgotten the key.
            message = 'inside qcow2 does not go with saveable = true; format = "raw" does'
            faults.add(f"{where}.encryption", "disk.encryption", message)
    for name in sorted(keys - used):
        faults.add(f"secrets.{name}", "disk.key", "is the key of no disk")


def check_tpm(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    """A TPM's key is a secret of this specification, and a VM with a TPM is not saved."""
    keys = {name for name, secret in spec.secrets.items() if secret.use is SecretUse.TPM}
    if spec.tpm.key is not None and not spec.tpm.enabled:
        faults.add("tpm.key", "tpm.unused-key", "there is no TPM; add enabled = true to [tpm]")
    if spec.tpm.key is not None and spec.tpm.key not in keys:
        faults.add("tpm.key", "tpm.key", 'key names a table [secrets.NAME] with use = "tpm"')
    for name in sorted(keys - {spec.tpm.key}):
        faults.add(f"secrets.{name}", "tpm.key", "is the key of no TPM")
    if spec.tpm.enabled and spec.machine.saveable:
        message = "a VM with a TPM cannot be saved: its clones would share the TPM's keys; leave saveable or [tpm] out"
        faults.add("tpm.enabled", "tpm.saveable", message)


def check_provision(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    """One way to provision, and one source for each document of it."""
    cloud_init, ignition = spec.provision.cloud_init, spec.provision.ignition
    uses = [secret.use for secret in spec.secrets.values()]
    if (cloud_init or SecretUse.USER_DATA in uses) and (ignition or SecretUse.IGNITION in uses):
        faults.add(
            "provision", "provision.both", "has cloud-init and Ignition; keep the one that the image understands"
        )
    for use, file in (
        (SecretUse.USER_DATA, cloud_init.user_data if cloud_init else None),
        (SecretUse.IGNITION, ignition.config if ignition else None),
    ):
        if uses.count(use) + (file is not None) > 1:
            faults.add("secrets", "secret.twice", f"{use.value} comes from several places; keep one")
