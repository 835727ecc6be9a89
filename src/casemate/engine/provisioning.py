"""What a guest is given at its start: files checked early, secrets asked for late, all of it in sealed memory.

1. `check_documents`, also for ``plan`` and ``create``: user-data, network-config and Ignition configs that are files.
2. `fill`, at a launch that no control refuses: ask the secrets' sources, build the seed, hand everything over as
   memfds by role. Nothing is kept: the next start asks again.
"""

from __future__ import annotations

import binascii
import fcntl
import os
from typing import TYPE_CHECKING, NamedTuple

from casemate.engine.opening import Opened
from casemate.engine.secret_sources import read_secret
from casemate.errors import HostError, InputError
from casemate.facts.fact import Facts, Known, Stage
from casemate.image.opening import open_regular_file
from casemate.plan.model import LaunchPlan
from casemate.plan.provisioning import (
    CREDENTIAL_MAX_BYTES,
    DISK_KEY_MAX_BYTES,
    SEED,
    SMBIOS_MAX_BYTES,
    Channel,
    channels,
    credentials,
    wants_seed,
)
from casemate.provision.cloudinit import DOCUMENT_MAX_BYTES, build_seed, check_network_config, check_user_data
from casemate.provision.credentials import smbios_string, wipe
from casemate.provision.ignition import CONFIG_MAX_BYTES, check_ignition
from casemate.spec.model import SecretUse, Spec

if TYPE_CHECKING:
    from casemate.engine.startup import Startup

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
SEARCHED_BYTES = 8
"""Shorter values are words that an argument vector may hold by chance."""
_MFD_NOEXEC_SEAL = 0x8
"""linux/memfd.h, Linux 6.3."""


class Documents(NamedTuple):
    """Files of ``[provision]``, checked; None where there is none."""

    user_data: bytes | None
    network_config: bytes | None
    ignition: bytes | None


def check_documents(spec: Spec) -> Documents:
    """Read and check the files of ``[provision]``.

    Raises:
        InputError: with all faults of the first bad file.
    """
    cloud_init, ignition = spec.provision.cloud_init, spec.provision.ignition
    user_data = network_config = config = None
    if cloud_init is not None and cloud_init.user_data is not None:
        user_data = _document(cloud_init.user_data, "user-data", DOCUMENT_MAX_BYTES)
        check_user_data(user_data, f"user-data {cloud_init.user_data!r}")
    if cloud_init is not None and cloud_init.network_config is not None:
        network_config = _document(cloud_init.network_config, "network-config", DOCUMENT_MAX_BYTES)
        check_network_config(network_config, f"network-config {cloud_init.network_config!r}")
    if ignition is not None and ignition.config is not None:
        config = _document(ignition.config, "Ignition config", CONFIG_MAX_BYTES)
        check_ignition(config, f"Ignition config {ignition.config!r}")
    return Documents(user_data, network_config, config)


def _document(path: str, what: str, limit: int) -> bytes:
    descriptor = open_regular_file(path, what=what)
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{what} {path!r}", got=f"more than {limit} bytes")
    return data


def fill(plan: LaunchPlan, opened: Opened) -> None:
    """Open what the plan calls ``memory`` and what its FIFOs carry: sealed memfds in ``opened.by_role``.

    Raises:
        InputError, HostError: a source gives nothing that can be used; nothing is left of the others.
    """
    spec = plan.spec
    documents = check_documents(spec)
    values: dict[str, bytearray] = {}
    try:
        for name, secret in spec.secrets.items():
            if secret.use is SecretUse.TPM:
                continue  # tpm_state.py asks for it
            values[name] = read_secret(name, secret, _limit(secret.use))
        for channel in channels(spec):
            opened.by_role[channel.role] = _channel(spec, channel, values, documents)
        if wants_seed(spec):
            opened.by_role[SEED] = _seed(plan, values, documents)
    finally:
        for value in values.values():
            wipe(value)
    total = sum(os.fstat(opened.by_role[c.role]).st_size for c in channels(spec) if c.kind == "smbios")
    if total > SMBIOS_MAX_BYTES:
        raise InputError(
            "the credentials of this VM are too large together",
            got=f"{total} bytes as SMBIOS strings",
            expected=f"at most {SMBIOS_MAX_BYTES}",
            next_step="hand over a key, and let the guest fetch the rest",
        )


def _limit(use: SecretUse) -> int:
    if use is SecretUse.CREDENTIAL:
        return CREDENTIAL_MAX_BYTES
    if use is SecretUse.DISK:
        return DISK_KEY_MAX_BYTES
    return DOCUMENT_MAX_BYTES if use is SecretUse.USER_DATA else CONFIG_MAX_BYTES


def _only(spec: Spec, use: SecretUse) -> str | None:
    """The name of the secret with this use, of which a specification has at most one."""
    return next((name for name, secret in spec.secrets.items() if secret.use is use), None)


def _channel(spec: Spec, channel: Channel, values: dict[str, bytearray], documents: Documents) -> int:
    if channel.role == "ignition":
        name = _only(spec, SecretUse.IGNITION)
        if name is None:
            return sealed(channel.role, documents.ignition or b"")
        check_ignition(values[name], f"secret {name}", secret=True)
        return sealed(channel.role, values[name])
    if channel.kind == "secret":
        return sealed(channel.role, checked_key(channel.name, values[channel.name]))
    if channel.name not in credentials(spec):
        raise RuntimeError(f"nobody knows what goes into {channel.role}")
    if channel.kind != "smbios":
        return sealed(channel.role, values[channel.name])
    text = smbios_string(channel.name, values[channel.name])
    try:
        return sealed(channel.role, text)
    finally:
        wipe(text)


def checked_key(name: str, value: bytearray) -> bytearray:
    """QEMU takes a key as text, and stops at a NUL."""
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        fault = "bytes that are not UTF-8"
    else:
        fault = "a NUL byte" if 0 in value else ""
    if fault:
        step = "head -c 32 /dev/urandom | base64 -w0 makes one"
        raise InputError(f"secret {name}", got=fault, expected="a key as text", next_step=step)
    return value


def _seed(plan: LaunchPlan, values: dict[str, bytearray], documents: Documents) -> int:
    spec, cloud_init = plan.spec, plan.spec.provision.cloud_init
    name = _only(spec, SecretUse.USER_DATA)
    user_data: bytes | bytearray | None = documents.user_data
    if name is not None:
        user_data = values[name]
        check_user_data(user_data, f"secret {name}", secret=True)
    instance = (cloud_init.instance_id if cloud_init else None) or f"casemate-{plan.vm_id}"
    image = build_seed(instance, cloud_init.hostname if cloud_init else None, user_data, documents.network_config)
    try:
        return sealed(SEED, image)
    finally:
        wipe(image)


def observe_provisioning(plan: LaunchPlan, delivered: tuple[str, ...], opened: Opened) -> Facts:
    """What the emulator really took, and whether any of it stands in its arguments.

    Args:
        delivered: roles of the FIFOs that it has read to their end.
    """
    kinds = {f"{c.role.rstrip('0123456789')}-{c.kind}" for c in channels(plan.spec) if c.role in delivered}
    if wants_seed(plan.spec):
        kinds.add("nocloud-disk")
    argv = "\0".join(plan.wall.argv).encode()
    told = [
        role
        for role in delivered
        if role.startswith(("credential", "disk-key")) and _is_part(opened.by_role[role], argv)
    ]
    source = "what the emulator read out of its FIFOs, and the descriptor of its disk"
    live = f"the live argument vector (proc.argv) searched for each value of {SEARCHED_BYTES} bytes or more"
    return {
        "prov.channels": Known(tuple(sorted(kinds)), source, Stage.OBSERVED),
        "prov.in-arguments": Known(bool(told), live, Stage.OBSERVED),
    }


def forget_keys(plan: LaunchPlan, startup: Startup) -> None:
    """The disks are open: the emulator has no further use for their keys as they were given."""
    for channel in channels(plan.spec):
        if channel.kind == "secret":
            startup.command("object-del", id=channel.role)


def _is_part(descriptor: int, text: bytes) -> bool:
    """Whether what a credential's memfd holds, encoded or not, is part of ``text``."""
    content = bytearray(os.fstat(descriptor).st_size)
    os.preadv(descriptor, [content], 0)
    encoded = content.startswith(b"io.systemd.")
    value = bytearray(binascii.a2b_base64(content.partition(b"=")[2])) if encoded else content
    found = len(value) >= SEARCHED_BYTES and (bytes(value) in text or (encoded and bytes(content) in text))
    wipe(value)
    wipe(content)
    return found


def sealed(name: str, content: bytes | bytearray) -> int:
    """A read-only descriptor of memory that holds ``content`` and that nobody can change any more.

    Raises:
        HostError: the kernel gives none.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        try:
            descriptor = os.memfd_create(f"casemate-{name}", flags | _MFD_NOEXEC_SEAL)
        except OSError:  # an older kernel
            descriptor = os.memfd_create(f"casemate-{name}", flags)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            # QEMU takes a descriptor out of a set only with the access that it asks for.
            return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(descriptor)
    except OSError as fault:
        raise HostError("no sealed memory for what the guest is given", got=fault.strerror or str(fault)) from fault
