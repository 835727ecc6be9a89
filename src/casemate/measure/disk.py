"""Boot from a disk: which application the boot manager starts, and what follows from it.

1. The boot order of the variable store, when it names one; otherwise the removable path of the first EFI system
   partition.  2. PCR 5: the partition table of the disk that it comes from.  3. What the application is: a unified
   kernel image, shim with GRUB; of others only themselves are known.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.measure import boot, shim, stub
from casemate.measure.fat import Fat
from casemate.measure.gpt import Gpt, Partition, Read, read_gpt
from casemate.measure.grub import Place, run_grub
from casemate.measure.grub_script import NotUnderstoodError
from casemate.measure.labels import FileSystem, file_systems
from casemate.measure.linux import measures_for_td
from casemate.measure.pe import Pe
from casemate.measure.registers import Prediction, Steps
from casemate.measure.variables import GLOBAL, Variables

REMOVABLE: Final = "EFI/BOOT/BOOTX64.EFI"
_COMPANIONS: Final = ("loader/credentials", "loader/addons", "loader/extensions")
_ACTIVE: Final = 1
_CATEGORY: Final = 0x1F00
_MAX_OPTIONS: Final = 256


class Disk(msgspec.Struct, frozen=True):
    """``read``: of the disk that the guest sees first. ``files``: of other partitions, by GRUB's path, for what a boot
    loader reads from file systems that are not read here."""

    read: Read
    files: Mapping[str, bytes] = {}


def predict_disk(platform: boot.Platform, disk: Disk, banks: tuple[str, ...] = ("sha256",)) -> Prediction:
    """Boot of a disk through its EFI system partition.

    Raises:
        InputError: there is no boot loader, the firmware would refuse it, or the disk contradicts itself.
    """
    steps = boot.begin(platform, banks)
    table = read_gpt(disk.read)
    if table is None or table.esp is None:
        raise InputError(
            "no EFI system partition on the first disk",
            got="no GUID partition table" if table is None else "other partitions",
            expected="a disk that UEFI firmware boots",
        )
    path, why = boot_path(platform.variables, table)
    steps.data(4, "boot option", boot.CALLING)
    boot.hand_over(steps)
    steps.data(5, "partition table", table.measured)
    if why:
        for register in (4, 7, 8, 9, 11, 12, 14):
            steps.unknown(register, "boot order", why)
        return steps.prediction()
    volume = Fat(_within(disk.read, table.esp))
    data = volume.file(path)
    if data is None:
        raise InputError(f"{path} is not on the EFI system partition", expected="a boot loader for x86-64")
    image = boot.start(steps, platform, data, path)
    if stub.stub_version(image) is not None:
        _measure_companions(steps, volume, path)
        boot.measure_uki(steps, platform, image)
        boot.leave(steps)
    elif shim.is_shim(image):
        systems = file_systems(disk.read, table.partitions)
        stage = Stage(image, path, volume, f"hd0,gpt{table.esp.number}", disk.files, systems)
        _measure_shim(steps, platform, stage)
        boot.leave(steps)
    else:
        _unknown(steps, path)
    return steps.prediction()


def _measure_companions(steps: Steps, volume: Fat, path: str) -> None:
    """What systemd-stub takes along from the partition: credentials, extensions, add-ons."""
    found = [name for name in (f"{path}.extra.d", *_COMPANIONS) if volume.names(name)]
    for register in (4, 9, 12, 13) if found else ():
        steps.unknown(register, "unified kernel image", f"the stub takes along what is in {' and '.join(found)}")


class Stage(msgspec.Struct, frozen=True):
    """A boot loader and where it came from. ``device``: GRUB's name of that partition."""

    image: Pe
    path: str
    volume: Fat
    device: str
    files: Mapping[str, bytes]
    systems: tuple[FileSystem, ...]


def _measure_shim(steps: Steps, platform: boot.Platform, stage: Stage) -> None:
    """shim, and GRUB behind it."""
    folder = stage.path.rpartition("/")[0]
    why = shim.unpredictable(stage.volume, folder, platform.variables)
    second = f"{folder}/{shim.SECOND_STAGE}"
    data = stage.volume.file(second)
    if data is None:
        why = why or f"{second} is not there"
    if platform.is_td and not measures_for_td(stage.image.data):
        why = why or "this shim is from before TDX (15.8 and newer measure for it)"
    if why or data is None:
        for register in (4, 7, 8, 9, 14):
            steps.unknown(register, "shim", why)
        return
    shim.measure_lists(steps, stage.image)
    shim.measure_level(steps, platform, stage.image)
    vendor = shim.Vendor(steps, platform, stage.image)
    image = vendor.start(data, second)
    try:
        place = Place(stage.volume, stage.device, stage.files, stage.systems)
        run_grub(steps, image, vendor, place, is_td=platform.is_td)
    except NotUnderstoodError as error:
        for register in (4, 7, 8, 9):
            steps.unknown(register, "GRUB", f"what it does cannot be followed: {error}")


def _unknown(steps: Steps, path: str) -> None:
    why = "what this application starts and measures is not known"
    for register in (4, 5, 7, 8, 9, 11, 12, 14):
        steps.unknown(register, path, why)


def boot_path(variables: Variables, table: Gpt) -> tuple[str, str]:
    """(path on the EFI system partition, why it cannot be told). The first active boot option that is no application
    of the firmware itself decides, when it names a file; one that names a device alone means the removable path."""
    order = variables.get((GLOBAL, "BootOrder"), b"")
    if (GLOBAL, "BootNext") in variables:
        return "", "the variable store holds BootNext"
    for (number,) in list(struct.iter_unpack("<H", order[: len(order) & ~1]))[:_MAX_OPTIONS]:
        option = variables.get((GLOBAL, f"Boot{number:04X}"), b"")
        found = _option(option)
        if found is None:
            continue
        partition, path, is_with_data = found
        if not path and partition is None:
            return REMOVABLE, ""
        if is_with_data or (partition is not None and (table.esp is None or partition != table.esp.identity)):
            return "", f"Boot{number:04X} starts something else, or with options of its own"
        return path or REMOVABLE, ""
    return REMOVABLE, ""


def _option(option: bytes) -> tuple[uuid.UUID | None, str, bool] | None:
    """(partition, path, whether it has data of its own) of EFI_LOAD_OPTION; None when it is not tried."""
    if len(option) < 6:
        return None
    attributes, length = struct.unpack_from("<IH", option)
    if not attributes & _ACTIVE or attributes & _CATEGORY:
        return None
    at = 6
    while option[at : at + 2] not in (b"\0\0", b"", option[at : at + 1]):
        at += 2
    at += 2
    end = at + length
    partition, path = None, ""
    while at + 4 <= min(end, len(option)):
        kind, subkind, size = struct.unpack_from("<BBH", option, at)
        if size < 4 or kind == 0x7F:
            break
        node = option[at + 4 : at + size]
        if (kind, subkind) == (4, 1) and len(node) >= 38:
            partition = uuid.UUID(bytes_le=node[20:36])
        elif (kind, subkind) == (4, 4):
            path += node.decode("utf-16-le", "replace").rstrip("\0")
        elif kind == 4:
            return None  # an application inside of a firmware volume
        at += size
    return partition, path.replace("\\", "/").strip("/"), len(option) > end


def _within(read: Read, partition: Partition) -> Read:
    def inner(offset: int, length: int) -> bytes:
        return read(partition.offset + offset, max(0, min(length, partition.size - offset)))

    return inner
