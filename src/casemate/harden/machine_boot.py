"""What a machine boots, in the words of a specification."""

from __future__ import annotations

import re
from typing import Any, Final

from casemate.facts.machine import Machine
from casemate.facts.machine_boot import firmware_of
from casemate.harden.machine_confidential import is_taken
from casemate.harden.model import Notes, Reason

_UEFI: Final = re.compile(r"ovmf|edk2|aavmf|uefi|efi|_code", re.IGNORECASE)
_OLD_ROOT: Final = re.compile(r"(?<![\w/])(root=)/dev/(?:sd|hd|xvd)([a-h][0-9]*)\b")
_XEN_CONSOLE: Final = re.compile(r"\bconsole=(hvc0|xvc0|tty0?)\b")


def boot(machine: Machine, notes: Notes) -> dict[str, Any]:
    """The ``[boot]`` table: a kernel, or the firmware that finds one on the first disk."""
    if machine.kernel:
        found = {"kernel": machine.kernel}
        if machine.initrd:
            found["initrd"] = machine.initrd
        if machine.cmdline:
            found["cmdline"] = _cmdline(machine, notes)
        if machine.firmware and not is_taken(machine):
            notes.leave("dev.uefi", "firmware", "a kernel and a firmware: the kernel boots", Reason.LIMIT)
        return found
    if is_taken(machine):
        return {"firmware": "uefi"}
    text = " ".join(machine.firmware)
    if firmware_of(machine) == "uefi-secure":
        notes.leave(
            "dev.uefi",
            "firmware",
            "Secure Boot with the keys of the host's distribution and fresh variables takes the place of its firmware",
            Reason.DECIDE,
            'a guest that is signed for other keys needs [boot.keys], one that is not signed firmware = "uefi"',
        )
        return {"firmware": "uefi-secure"}
    uefi = bool(_UEFI.search(text)) or machine.settings.get("firmware") == "efi"
    if uefi:
        notes.leave(
            "dev.uefi",
            "firmware",
            "the host's OVMF with fresh variables takes the place of its firmware",
            Reason.LIMIT,
            "boot entries and Secure Boot keys of the old variable store are not taken over",
        )
    elif machine.firmware:
        notes.leave(
            "dev.uefi",
            "firmware",
            f"firmware {text[:100]} becomes SeaBIOS of the host",
            Reason.DECIDE,
            'firmware = "uefi"',
        )
    return {"firmware": "uefi" if uefi else "bios"}


def _cmdline(machine: Machine, notes: Notes) -> str:
    text = machine.cmdline
    changed = _OLD_ROOT.sub(r"\1/dev/vd\2", text)
    if changed != text:
        notes.change(
            "dev.no-legacy-disk",
            "kernel command line",
            f"{_OLD_ROOT.search(text)[0]} becomes {re.search(r'root=/dev/vd[a-h][0-9]*', changed)[0]}",  # type: ignore[index]
            "its disk is a virtio one now",
            "say root=UUID=… to be independent of names",
        )
    console = _XEN_CONSOLE.sub("console=ttyS0", changed)
    if console != changed and machine.form == "xl":
        notes.change(
            "kvm.no-hyperv-xen",
            "kernel command line",
            "console=hvc0 becomes console=ttyS0",
            "Xen's console is a hypercall; a VM of ours has a serial one",
        )
        return console
    return changed
