"""How provisioning and secrets reach QEMU: one read-only disk, and one FIFO for each secret. Pure.

QEMU 7.2 to 11 reads the files of ``-fw_cfg`` and ``-object secret`` with g_file_get_contents, and those of ``-smbios``
before descriptor sets exist: none of them takes /dev/fdset. All of them read a FIFO to its end. So each secret has a
FIFO in the emulator's root, which the supervisor fills once, from a sealed memfd, while QEMU starts; ``string=`` would
put it into the arguments.

    seed         cloud-init's NoCloud disk: a sealed memfd, by descriptor set
    ignition     fw_cfg opt/com.coreos/config
    disk-key     the key of a LUKS disk: a secret object, deleted again before the guest runs
    credential   q35: SMBIOS type 11; microvm, which has no SMBIOS: fw_cfg opt/io.systemd.credentials/NAME
"""

from __future__ import annotations

import msgspec

from casemate.jail.policy import OneShot
from casemate.plan.options import write_option as option
from casemate.spec.model import MachineType, SecretUse, Spec
from casemate.spec.secret_rules import FW_CFG_PREFIX

FOLDER = "/provision"
SEED = "seed"
SEED_CMDLINE = "ci.ds=NoCloud"
"""For a guest whose kernel is given: cloud-init looks at no other data source (tools/ds-identify)."""

CREDENTIAL_MAX_BYTES = 16 * 1024
SMBIOS_MAX_BYTES = 48 * 1024
"""All strings of one VM together: an SMBIOS 2.1 table has at most 65535 bytes."""
IGNITION_MAX_BYTES = 512 * 1024
_ENCODED_MAX_BYTES = 2 * CREDENTIAL_MAX_BYTES
DISK_KEY_MAX_BYTES = 4096
IGNITION_KEY = "opt/com.coreos/config"


class Channel(msgspec.Struct, frozen=True):
    """One thing that QEMU reads once. ``kind``: ``smbios``, ``fw-cfg``, ``secret``; ``name``: what the guest, or the
    specification, knows it by.
    """

    role: str
    kind: str
    name: str
    size_max_bytes: int

    @property
    def target(self) -> str:
        """Its FIFO in the emulator's root."""
        return f"{FOLDER}/{self.role}"


def disk_key(index: int) -> str:
    """Role of the FIFO, and id of the emulator's object, for the key of a disk."""
    return f"disk-key{index}"


def wants_seed(spec: Spec) -> bool:
    """Whether the VM gets a NoCloud disk."""
    uses = (secret.use for secret in spec.secrets.values())
    return spec.provision.cloud_init is not None or SecretUse.USER_DATA in uses


def wants_ignition(spec: Spec) -> bool:
    """Whether the VM gets an Ignition config."""
    from_secret = any(secret.use is SecretUse.IGNITION for secret in spec.secrets.values())
    return from_secret or (spec.provision.ignition is not None and spec.provision.ignition.config is not None)


def is_provisioned(spec: Spec) -> bool:
    """Whether anything here is asked for at all."""
    told = any(secret.use is not SecretUse.TPM for secret in spec.secrets.values())
    return told or wants_seed(spec) or wants_ignition(spec)


def credentials(spec: Spec) -> tuple[str, ...]:
    """Names of the secrets that become systemd credentials, in the order of the specification."""
    return tuple(name for name, secret in spec.secrets.items() if secret.use is SecretUse.CREDENTIAL)


def channels(spec: Spec) -> tuple[Channel, ...]:
    """Everything that goes through a FIFO."""
    found = []
    if wants_ignition(spec):
        found.append(Channel("ignition", "fw-cfg", IGNITION_KEY, IGNITION_MAX_BYTES))
    kind = "fw-cfg" if spec.machine.type is MachineType.MICROVM else "smbios"
    for number, name in enumerate(credentials(spec)):
        found.append(Channel(f"credential{number}", kind, name, _ENCODED_MAX_BYTES))
    for index, disk in enumerate(spec.disks):
        if disk.key is not None:
            found.append(Channel(disk_key(index), "secret", disk.key, DISK_KEY_MAX_BYTES))
    return tuple(found)


def pipes(spec: Spec) -> tuple[OneShot, ...]:
    """The FIFOs of the emulator's root."""
    return tuple(OneShot(channel.role, channel.target, channel.size_max_bytes) for channel in channels(spec))


def channel_arguments(spec: Spec) -> list[str]:
    """QEMU's arguments for the FIFOs; they name files, never what is in them."""
    argv = []
    for channel in channels(spec):
        if channel.kind == "secret":
            argv += ["-object", option("secret", id=channel.role, file=channel.target, format="raw")]
        elif channel.kind == "smbios":
            argv += ["-smbios", option("", type=11, path=channel.target)]
        else:
            name = channel.name if channel.role == "ignition" else FW_CFG_PREFIX + channel.name
            argv += ["-fw_cfg", option("", name=name, file=channel.target)]
    return argv


def channel_facts(spec: Spec) -> tuple[str, ...]:
    """``credential-smbios``, ``credential-fw-cfg``, ``ignition-fw-cfg``, ``nocloud-disk``: each kind that is used."""
    found = {f"{channel.role.rstrip('0123456789')}-{channel.kind}" for channel in channels(spec)}
    if wants_seed(spec):
        found.add("nocloud-disk")
    return tuple(sorted(found))
