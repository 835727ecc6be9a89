"""Firmware: the files a machine opens by name, and the UEFI code and variable stores that the host offers.

QEMU looks for a firmware name in its working directory first and then in its data directories (``-L help``): the
jail's working directory must stay empty. The lists below were found by running QEMU 7.2 in a root that held nothing
else. UEFI images are described by JSON files (QEMU's docs/interop/firmware.json) in /usr/share/qemu/firmware, which
files of the same name in /etc/qemu/firmware replace; lower names come first.
"""

from __future__ import annotations

import enum
import fnmatch
from typing import Any, Final

import msgspec

from casemate.errors import HostError
from casemate.facts.root import Root
from casemate.facts.stamp import PlacedFile, stamp_of

_DESCRIPTOR_DIRS: Final = ("/usr/share/qemu/firmware", "/etc/qemu/firmware")
_DESCRIPTOR_BYTES: Final = 1 << 16
_MAX_DESCRIPTORS: Final = 128

# (machine, boot) -> (name, whether QEMU refuses or the guest cannot start without it)
_NEEDED: Final[dict[tuple[str, str], tuple[tuple[str, bool], ...]]] = {
    # qboot; the option ROM that hands a bzImage to the guest; the same for an uncompressed PVH kernel.
    ("microvm", "kernel"): (("bios-microvm.bin", True), ("linuxboot_dma.bin", True), ("pvh.bin", False)),
    ("q35", "kernel"): (
        ("bios-256k.bin", True),
        ("linuxboot_dma.bin", True),
        ("kvmvapic.bin", False),
        ("pvh.bin", False),
    ),
    ("q35", "bios"): (("bios-256k.bin", True), ("kvmvapic.bin", False)),
    # The code comes through pflash, by descriptor; only the option ROM of the APIC is opened by name.
    ("q35", "uefi"): (("kvmvapic.bin", False),),
    # The code is a copy in the root; QEMU still wants the ROM that only SeaBIOS would run. Same with QEMU 11.1.
    ("q35", "measured"): (("kvmvapic.bin", False), ("linuxboot_dma.bin", True)),
}
_PACKAGE: Final = {
    "bios-256k.bin": "apt install seabios (Debian, Ubuntu) or dnf install seabios-bin (Fedora)",
}
_PACKAGE_OTHER: Final = "apt install qemu-system-data (Debian, Ubuntu) or dnf install qemu-system-x86-core (Fedora)"

# Where distributions put OVMF when there is no descriptor: (code, variables template).
_KNOWN_PAIRS: Final = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
)


class UefiFirmware(msgspec.Struct, frozen=True):
    """One pair of UEFI code and variable store template; formats are ``raw`` or ``qcow2``.

    ``requires_smm``: the code relies on ``-machine q35,smm=on``. ``enrolled_keys``: Microsoft's keys are in the
    template and Secure Boot is on. ``described_by`` is the descriptor, or the code file when there was none.
    """

    code: str
    code_format: str
    variables: str
    variables_format: str
    secure_boot: bool
    enrolled_keys: bool
    requires_smm: bool
    described_by: str


def firmware_files(data_dirs: tuple[str, ...], machine: str, boot: str, root: Root) -> tuple[PlacedFile, ...]:
    """The firmware files that QEMU opens by name for this machine, with the place it will look for them.

    Args:
        data_dirs: as in ``Emulator.data_dirs``.
        machine: ``microvm`` or ``q35``.
        boot: ``kernel`` (given directly), ``bios`` or ``uefi``.
        root: the tree to look in.

    Raises:
        HostError: one that is needed is not there, or this machine cannot boot that way.
    """
    names = _NEEDED.get((machine, boot))
    if names is None:
        raise HostError(f"machine {machine} cannot boot by {boot}", expected=", ".join(f"{m}/{b}" for m, b in _NEEDED))
    found: list[PlacedFile] = []
    for name, is_needed in names:
        placed = _find(root, data_dirs, name)
        if placed is not None:
            found.append(placed)
        elif is_needed:
            raise HostError(
                f"firmware {name}",
                got="not found",
                expected=f"in {', '.join(data_dirs) or 'the data directories of QEMU, which it did not name'}",
                next_step=_PACKAGE.get(name, _PACKAGE_OTHER),
            )
    return tuple(found)


def descriptors(root: Root) -> tuple[str, ...]:
    """Paths of the firmware descriptors, in their order; a name in a later directory replaces an earlier one."""
    described: dict[str, str] = {}
    for directory in _DESCRIPTOR_DIRS:
        try:
            names = root.list_dir(directory, _MAX_DESCRIPTORS)
        except OSError:
            continue
        described.update({name: f"{directory}/{name}" for name in names if name.endswith(".json")})
    return tuple(described[name] for name in sorted(described))


def read_document(root: Root, path: str) -> dict[str, Any] | None:
    """A descriptor as plain data, None when it cannot be read (an empty file hides another)."""
    try:
        return msgspec.json.decode(root.read_bytes(path, _DESCRIPTOR_BYTES), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return None


def uefi_firmwares(root: Root, machine: str = "q35", architecture: str = "x86_64") -> tuple[UefiFirmware, ...]:
    """UEFI pairs that the host offers for a machine, in the descriptors' order; descriptors that we cannot read or
    whose files are missing are passed over."""
    found: list[UefiFirmware] = []
    for path in descriptors(root):
        firmware = _read_descriptor(root, path, machine, architecture)
        if firmware is not None:
            found.append(firmware)
    known = {item.code for item in found}
    if architecture == "x86_64":
        for code, variables in _KNOWN_PAIRS:
            if code not in known and _is_there(root, code) and _is_there(root, variables):
                found.append(UefiFirmware(code, "raw", variables, "raw", False, False, False, code))
    return tuple(found)


class Wanted(enum.Enum):
    """Which firmware: without Secure Boot; with it and the distribution's keys; with it and without any key."""

    PLAIN = "no UEFI firmware"
    ENROLLED = "no UEFI firmware with Secure Boot and the distribution's keys"
    SETUP = "no UEFI firmware with Secure Boot and an empty variable store"


def choose_uefi(root: Root, wanted: Wanted = Wanted.PLAIN, machine: str = "q35") -> UefiFirmware:
    """The first raw pair that fits; with Secure Boot only one whose variables system management mode guards.

    Raises:
        HostError: there is none; names the package.
    """
    offered = uefi_firmwares(root, machine)
    for firmware in offered:
        raw = (firmware.code_format, firmware.variables_format) == ("raw", "raw")
        plain = not firmware.secure_boot and not firmware.requires_smm
        secure = firmware.secure_boot and firmware.requires_smm
        fits = {
            Wanted.PLAIN: plain,
            Wanted.ENROLLED: secure and firmware.enrolled_keys,
            Wanted.SETUP: secure and not firmware.enrolled_keys,
        }
        if raw and fits[wanted]:
            return firmware
    raise HostError(
        wanted.value,
        got=", ".join(item.code for item in offered) or "none",
        expected="a raw OVMF pair" + ("" if wanted is Wanted.PLAIN else " that requires SMM"),
        next_step="apt install ovmf (Debian, Ubuntu) or dnf install edk2-ovmf (Fedora)",
    )


def _find(root: Root, data_dirs: tuple[str, ...], name: str) -> PlacedFile | None:
    for directory in data_dirs:
        target = f"{directory}/{name}"
        try:
            source = root.real_path(target)
            return PlacedFile(target, source, stamp_of(root.stat(source)))
        except OSError:
            continue
    return None


def _is_there(root: Root, path: str) -> bool:
    try:
        return root.exists(path)
    except OSError:
        return False


def _read_descriptor(root: Root, path: str, machine: str, architecture: str) -> UefiFirmware | None:
    """A descriptor as a pair, None when it is for something else or not understood."""
    document = read_document(root, path)
    if document is None:
        return None
    try:
        mapping, features = document["mapping"], document.get("features", [])
        targets = [t for t in document["targets"] if t["architecture"] == architecture]
        fits = any(fnmatch.fnmatchcase(f"pc-{machine}-0", pattern) for t in targets for pattern in t["machines"])
        if "uefi" not in document["interface-types"] or mapping["device"] != "flash" or not fits:
            return None
        code, variables = mapping["executable"], mapping["nvram-template"]
        firmware = UefiFirmware(
            code=code["filename"],
            code_format=code["format"],
            variables=variables["filename"],
            variables_format=variables["format"],
            secure_boot="secure-boot" in features,
            enrolled_keys="enrolled-keys" in features,
            requires_smm="requires-smm" in features,
            described_by=path,
        )
        firmware = msgspec.convert(msgspec.to_builtins(firmware), UefiFirmware)
    except (KeyError, TypeError, AttributeError, msgspec.MsgspecError):
        return None
    paths = (firmware.code, firmware.variables)
    return firmware if all(p.startswith("/") and _is_there(root, p) for p in paths) else None
