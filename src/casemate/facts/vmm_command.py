"""Command lines of VMMs other than QEMU: which one it is, and Cloud Hypervisor's as the VmConfig that it stands for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from casemate.errors import InputError
from casemate.facts.emulator import vmm_of
from casemate.facts.machine import Machine
from casemate.facts.qemu_argv_draft import Draft
from casemate.facts.qemu_argv_text import MAX_ARGUMENT_CHARS, MAX_ARGUMENTS, MAX_TOTAL_CHARS
from casemate.facts.vmm_cloud_hypervisor import machine_of
from casemate.facts.vmm_crosvm import read_crosvm_command
from casemate.facts.vmm_document import View
from casemate.facts.vmm_firecracker import read_firecracker_command
from casemate.units import parse_size_bytes

_SIZES: Final = frozenset({"size", "hotplug_size", "hugepage_size"})
_NUMBERS: Final = frozenset({"boot", "max", "cid", "num_queues", "queue_size", "pci_segment", "mtu", "max_phys_bits"})
_LISTS: Final = {
    "disk": "disks",
    "net": "net",
    "fs": "fs",
    "pmem": "pmem",
    "device": "devices",
    "user-device": "user_devices",
    "vdpa": "vdpa",
    "generic-vhost-user": "generic_vhost_user",
}
_OBJECTS: Final = {"rng": "rng", "balloon": "balloon", "vsock": "vsock", "tpm": "tpm", "platform": "platform"}
_TEXTS: Final = {"kernel": "kernel", "firmware": "firmware", "initramfs": "initramfs", "cmdline": "cmdline"}
_FLAGS: Final = frozenset({"watchdog", "pvpanic", "pvmemcontrol"})
_QUIET: Final = frozenset(
    {"log-file", "event-monitor", "numa", "pci-segment", "rate-limit-group", "landlock-rules", "host-data", "v", "vv"}
)
_IMAGE_TYPES: Final = {"raw": "Raw", "qcow2": "Qcow2", "vhdx": "Vhdx", "vhd": "FixedVhd", "vmdk": "FlatVmdk"}


def reader_of(program: str) -> Callable[[Sequence[str], str], Machine] | None:
    """Who reads the command line of this program; None for QEMU and for what nobody reads."""
    readers: dict[str, Callable[[Sequence[str], str], Machine]] = {
        "firecracker": read_firecracker_command,
        "cloud-hypervisor": read_cloud_hypervisor_command,
        "crosvm": read_crosvm_command,
    }
    reader = readers.get(vmm_of(program.rpartition("/")[2]))
    if reader is None:
        return None

    def bounded(argv: Sequence[str], source: str) -> Machine:
        total, longest = sum(map(len, argv)), max(map(len, argv))
        if len(argv) > MAX_ARGUMENTS or longest > MAX_ARGUMENT_CHARS or total > MAX_TOTAL_CHARS:
            raise InputError(f"{source}: the command line is larger than a VM's can be", got=f"{len(argv)} arguments")
        return reader(argv, source)

    return bounded


def read_cloud_hypervisor_command(argv: Sequence[str], source: str) -> Machine:
    """The machine of ``cloud-hypervisor --kernel … --disk path=… --net tap=…``."""
    draft = Draft()
    tree: dict[str, Any] = {"payload": {}}
    monitors: list[str] = []
    loosened: list[str] = []
    options: list[tuple[str, str]] = []
    for name, values in _options(argv, draft):
        options += [(f"--{name}", value) for value in values or ("",)]
        _option(name, values, tree, draft, monitors, loosened)
    machine = machine_of(View(tree, "", draft), draft, source)
    return msgspec.structs.replace(
        machine,
        form="cloud-hypervisor-command",
        emulator=argv[0],
        monitors=tuple(monitors) or ("none",),
        options=tuple(options),
        settings={**machine.settings, "sandbox-off": "; ".join(loosened)},
    )


def _options(argv: Sequence[str], draft: Draft) -> list[tuple[str, list[str]]]:
    """Each option with the words up to the next one: several disks may follow one ``--disk``."""
    found: list[tuple[str, list[str]]] = []
    for word in argv[1:]:
        if word.startswith("-") and len(word) > 1:
            name, equals, value = word.lstrip("-").partition("=")
            found.append((name, [value] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            draft.miss(f"{word[:80]}: a word before any option")
    return found


def _option(
    name: str, values: list[str], tree: dict[str, Any], draft: Draft, monitors: list[str], loosened: list[str]
) -> None:
    first = values[0] if values else ""
    if name in _LISTS:
        tree.setdefault(_LISTS[name], []).extend(_fields(value, draft) for value in values)
    elif name in _OBJECTS:
        tree[_OBJECTS[name]] = _fields(first, draft)
    elif name in _TEXTS:
        tree["payload"][name] = " ".join(values) if name == "cmdline" else first
    elif name in _FLAGS:
        tree[name] = True
    elif name == "memory":
        tree["memory"] = {**tree.get("memory", {}), **_fields(first, draft)}
    elif name == "memory-zone":
        tree.setdefault("memory", {}).setdefault("zones", []).extend(_fields(value, draft) for value in values)
    elif name == "cpus":
        found = _fields(first, draft) if "=" in first else {"boot": int(first) if first.isdecimal() else 1}
        tree["cpus"] = {{"boot": "boot_vcpus", "max": "max_vcpus"}.get(key, key): v for key, v in found.items()}
    elif name == "igvm":
        tree["payload"]["igvm"] = first
    elif name in ("landlock", "gdb"):
        tree["landlock_enable" if name == "landlock" else name] = True if name == "landlock" else {}
    else:
        _access(name, first, tree, draft, monitors, loosened)


def _access(
    name: str, first: str, tree: dict[str, Any], draft: Draft, monitors: list[str], loosened: list[str]
) -> None:
    """Options about who reaches the VMM, and what holds it."""
    if name in ("serial", "console", "debug-console"):
        mode, _, path = first.partition("=")
        tree[name.replace("-", "_")] = {"mode": mode.partition(",")[0], **({"file": path} if path else {})}
    elif name == "api-socket":
        path = first.removeprefix("path=")
        monitors.append("fd" if path.startswith("fd=") else f"unix:{path}")
    elif name.startswith("dbus-"):
        monitors.append("dbus")
    elif name == "seccomp":
        if first != "true":
            loosened.append(f"--seccomp {first[:20]}: calls outside of its filter go through")
    elif name not in _QUIET:
        draft.miss(f"--{name[:60]}: not known to this reader")


def _fields(text: str, draft: Draft) -> dict[str, Any]:
    """``path=/a,readonly=on`` by Cloud Hypervisor's rules: commas in brackets or quotes do not separate."""
    found: dict[str, Any] = {}
    for part in _split(text):
        key, equals, value = part.partition("=")
        if not key:
            continue
        if not equals:
            draft.miss(f"{part[:60]}: no value")
        elif key in _SIZES:
            try:
                found[key] = parse_size_bytes(value)
            except ValueError:
                draft.miss(f"{part[:60]}: no size")
        elif key in _NUMBERS and value.isascii() and value.isdecimal() and len(value) < 12:
            found[key] = int(value)
        elif value in ("on", "off", "true", "false"):
            found[key] = value in ("on", "true")
        elif key == "image_type":
            found[key] = _IMAGE_TYPES.get(value.lower(), value)
        elif key == "hotplug_method":
            found[key] = {"virtio-mem": "VirtioMem", "acpi": "Acpi"}.get(value, value)
        else:
            found[key] = value.strip('"')
    return found


def _split(text: str) -> list[str]:
    parts, depth, quoted, current = [], 0, False, ""
    for piece in re.split(r'([\[\]",])', text):
        if piece == '"':
            quoted = not quoted
        elif piece in ("[", "]") and not quoted:
            depth += 1 if piece == "[" else -1
        if piece == "," and not quoted and depth <= 0:
            parts.append(current)
            current = ""
        else:
            current += piece
    return [*parts, current]
