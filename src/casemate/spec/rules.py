"""What must hold between the fields of a specification. Pure: today's date is given, no clock and no file is read.

A rule names the fields it reads; when one of them already has a fault the rule says nothing, because its complaint
would be a consequence. Rules over lists look at each sound item.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from casemate.spec.confidential_rules import check_board, check_channels, check_keys, check_measured_boot
from casemate.spec.faults import Faults
from casemate.spec.model import (
    ConsoleDevice,
    DiskMode,
    Egress,
    Firmware,
    MachineType,
    NetworkMode,
    SecretUse,
    Spec,
)
from casemate.spec.network import is_ipv6
from casemate.spec.secret_rules import check_encryption, check_provision, check_secrets, check_tpm

MICROVM_TRANSPORTS = 8
"""virtio-mmio devices of QEMU's microvm (include/hw/i386/microvm.h)."""
MICROVM_MAX_DISKS = 4
"""As many as there is room for beside rng, network, serial and a seed."""


T = TypeVar("T")
Check = Callable[[Spec, datetime.date, Faults], None]


class Rule(NamedTuple):
    """``reads``: the paths whose faults silence the rule."""

    reads: tuple[str, ...]
    check: Check


def check_rules(spec: Spec, today: datetime.date, faults: Faults) -> None:
    """Note every broken rule of ``spec`` in ``faults``; ``today`` is the UTC date that expiry is judged by."""
    for rule in RULES:
        if not any(faults.broken(path) for path in rule.reads):
            rule.check(spec, today, faults)


def _sound(items: tuple[T | None, ...]) -> Iterator[tuple[int, T]]:
    """Index and item of every item that the walk could build."""
    return ((index, item) for index, item in enumerate(items) if item is not None)


def _boot_method(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    kernel, firmware = spec.boot.kernel is not None, spec.boot.firmware is not Firmware.NONE
    if kernel and firmware:
        why = "the firmware finds its own kernel"
        if spec.boot.is_secure:
            # edk2, X86QemuLoadImageLib: what fails authentication goes to the loader of old; docs/boot.md shows it.
            why = "OVMF starts a kernel that is given without asking for a signature, whatever Secure Boot says"
        faults.add("boot", "boot.both", f"has a kernel and a firmware; keep one: {why}")
    elif not kernel and not firmware:
        if spec.machine.type is MachineType.MICROVM:
            message = 'a microvm needs a kernel; to boot an image with its own boot loader say machine.type = "q35"'
        else:
            message = "nothing to boot"
        wanted = 'kernel = "PATH" or firmware = "uefi", "uefi-secure" or "bios"'
        faults.add("boot", "boot.missing", f"{message}; expected {wanted}")


def _boot_needs_kernel(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    for name in ("initrd", "cmdline"):
        if getattr(spec.boot, name) and spec.boot.kernel is None:
            faults.add(f"boot.{name}", "boot.needs-kernel", f"{name} goes with a kernel, and there is none")


def _firmware_needs(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    if spec.boot.firmware is Firmware.NONE:
        return
    if spec.machine.type is MachineType.MICROVM:
        faults.add(
            "boot.firmware", "machine.needs-q35", 'firmware needs the q35 machine; add type = "q35" to [machine]'
        )
    if not spec.disks:
        faults.add(
            "boot.firmware", "boot.needs-disk", "firmware boots the first disk, and there is none; add a [[disk]]"
        )


def _boot_keys(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    if spec.boot.keys is not None and not spec.boot.is_secure:
        message = f'keys go with firmware = "uefi-secure"; this VM has "{spec.boot.firmware.value}"'
        faults.add("boot.keys", "boot.needs-secure", message)


def _microvm_limits(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    if spec.machine.type is not MachineType.MICROVM:
        return
    if len(spec.disks) > MICROVM_MAX_DISKS:
        message = f'a microvm takes {MICROVM_MAX_DISKS} disks, got {len(spec.disks)}; use machine.type = "q35"'
        faults.add("disk", "machine.microvm-disks", message)
    places = MICROVM_TRANSPORTS - 1  # one is the entropy device's
    places -= spec.network.mode is not NetworkMode.NONE
    places -= spec.console.device is ConsoleDevice.VIRTIO
    places -= spec.machine.saveable
    places -= spec.keys.port
    uses = [secret.use for secret in spec.secrets.values()]
    places -= spec.provision.cloud_init is not None or SecretUse.USER_DATA in uses
    if places < len(spec.disks) <= MICROVM_MAX_DISKS:
        message = f"beside what else it has a microvm takes {places} disks, got {len(spec.disks)}"
        faults.add("disk", "machine.microvm-disks", f'{message}; use machine.type = "q35"')
    if spec.passthrough:
        faults.add("passthrough", "machine.needs-q35", 'a microvm has no PCI bus; use machine.type = "q35"')


def _same_disk(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    first: dict[str, int] = {}
    for index, disk in _sound(spec.disks):
        if disk.path in first:
            faults.add(f"disk[{index}].path", "disk.duplicate", f"the same image as disk[{first[disk.path]}]")
        first.setdefault(disk.path, index)


def _fixed_content(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    for index, disk in _sound(spec.disks):
        if disk.image is not None and disk.sha256 is None:
            faults.add(f"disk[{index}].image", "disk.image", "has an image of the store and a path; keep one")
        elif disk.sha256 is not None and disk.mode is DiskMode.PERSISTENT:
            what = "an image of the store" if disk.image is not None else "an image with a sha256"
            faults.add(f"disk[{index}].mode", "disk.immutable", f'{what} is never written; use mode = "overlay"')


def _network_needs_user(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    if spec.network.mode is not NetworkMode.NONE:
        return
    if spec.network.publish:
        faults.add("network.publish", "publish.needs-user", 'published ports need network.mode = "user"')
    if spec.network.egress is Egress.LIST:
        faults.add("network.egress", "egress.needs-user", 'an egress list needs network.mode = "user"')
    if spec.network.ipv6:
        faults.add("network.ipv6", "ipv6.needs-user", 'IPv6 needs network.mode = "user"')


def _ipv6_wanted(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    """A port or block of IPv6 that would silently do nothing is a mistake."""
    if spec.network.ipv6:
        return
    for index, port in _sound(spec.network.publish):
        if is_ipv6(port.address):
            faults.add(f"network.publish[{index}]", "ipv6.off", f"[{port.address}] needs ipv6 = true, or --ipv6")
    for index, block in _sound(spec.network.allow):
        if is_ipv6(block):
            faults.add(f"network.allow[{index}]", "ipv6.off", f"{block} needs ipv6 = true, or --ipv6")


def _allow_list(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    listed = spec.network.egress is Egress.LIST
    if listed and not spec.network.allow:
        faults.add(
            "network.allow", "egress.allow-empty", 'egress = "list" needs blocks in allow; for none say egress = "none"'
        )
    if spec.network.allow and not listed:
        faults.add("network.allow", "egress.allow-unused", 'allow counts only with egress = "list"')


def _same_block(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    first: dict[str, int] = {}
    for index, block in _sound(spec.network.allow):
        if block in first:
            faults.add(f"network.allow[{index}]", "cidr.duplicate", f"the same block as network.allow[{first[block]}]")
        first.setdefault(block, index)


def _same_port(spec: Spec, _today: datetime.date, faults: Faults) -> None:
    """passt keeps one entry per protocol and number, whatever the address (conf_ports in its conf.c)."""
    first: dict[tuple[str, int], int] = {}
    for index, port in _sound(spec.network.publish):
        key = (port.protocol, port.host_port)
        if key in first:
            taken = f"host port {port.host_port}/{port.protocol} is already taken by network.publish[{first[key]}]"
            message = f"{taken}; a number is published once, on one address"
            faults.add(f"network.publish[{index}]", "publish.duplicate", message)
        first.setdefault(key, index)


def _waivers(spec: Spec, today: datetime.date, faults: Faults) -> None:
    first: dict[str, int] = {}
    for index, waiver in _sound(spec.waivers):
        if waiver.control in first:
            message = f"{waiver.control} is already waived by waiver[{first[waiver.control]}]"
            faults.add(f"waiver[{index}].control", "waiver.duplicate", message)
        first.setdefault(waiver.control, index)
        if waiver.expires < today:
            message = f"{waiver.control} was waived until {waiver.expires}; fix the cause or decide again"
            faults.add(f"waiver[{index}].expires", "waiver.expired", message)


def _passthrough(spec: Spec, today: datetime.date, faults: Faults) -> None:
    first: dict[str, int] = {}
    for index, device in _sound(spec.passthrough):
        if device.address in first:
            message = f"the same function as passthrough[{first[device.address]}]"
            faults.add(f"passthrough[{index}].address", "passthrough.duplicate", message)
        first.setdefault(device.address, index)
        if device.expires < today:
            message = f"{device.address} was given until {device.expires}; remove it or decide again"
            faults.add(f"passthrough[{index}].expires", "passthrough.expired", message)


RULES: tuple[Rule, ...] = (
    Rule(("boot.kernel", "boot.firmware", "machine.type"), _boot_method),
    Rule(("boot.kernel", "boot.firmware"), _boot_needs_kernel),
    Rule(("boot.firmware", "machine.type"), _firmware_needs),
    Rule(("boot.firmware", "boot.keys"), _boot_keys),
    Rule(("machine.type", "secrets", "network.mode", "console.device"), _microvm_limits),
    Rule((), _same_disk),
    Rule((), _fixed_content),
    Rule(("network.mode", "network.egress"), _network_needs_user),
    Rule(("network.egress",), _allow_list),
    Rule(("network.ipv6",), _ipv6_wanted),
    Rule((), _same_block),
    Rule((), _same_port),
    Rule((), _waivers),
    Rule((), _passthrough),
    Rule(("machine.type",), check_secrets),
    Rule(("provision",), check_provision),
    Rule(("disk", "machine.saveable", "secrets"), check_encryption),
    Rule(("confidential.kind", "machine"), check_board),
    Rule(("confidential.kind", "boot"), check_measured_boot),
    Rule(("confidential.kind",), check_channels),
    Rule(("confidential",), check_keys),
    Rule(("tpm", "secrets", "machine.saveable"), check_tpm),
)
