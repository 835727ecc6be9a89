"""What starts the guest of a described machine, and who may write to what it starts from."""

from __future__ import annotations

import re

from casemate.facts.machine import Machine
from casemate.facts.machine_sayer import Sayer
from casemate.facts.qemu_argv_text import is_off, is_on


def boot_facts(sayer: Sayer, machine: Machine) -> None:
    """``vm.firmware``, ``dev.smm``, and where it means to boot with Secure Boot ``dev.boot-variables``."""
    firmware = firmware_of(machine)
    sayer.say("vm.firmware", firmware, "firmware")
    # QEMU's own choice is on wherever the accelerator has it (x86_machine_is_smm_enabled).
    is_pc = machine.vmm == "qemu" and machine.architecture in ("x86_64", "i386", "i686")
    smm = is_pc and not is_off(machine.board_options.get("smm"))
    sayer.say("dev.smm", smm, "board's option smm")
    if firmware != "uefi-secure":
        return
    # libvirt's <loader secure='yes'> makes both (qemuFirmwareFillDomain, qemuBuildDomainLoaderCommandLine).
    guarded = machine.settings.get("secure-boot") == "yes" or is_on(machine.settings.get("flash-secure"))
    ways = [] if guarded else ["the flash takes writes from any code"]
    if not smm:
        ways.append("system management mode is off")
    sayer.say("dev.boot-variables", tuple(ways), "flash: secure")
    for name in ("dev.secure-boot", "dev.boot-keys"):
        sayer.miss(name, "the VM's variables say that, and only a launch of Casemate's looks into them")


def firmware_of(machine: Machine) -> str:
    """``bios``, ``uefi``, ``uefi-secure`` (by name of the file or as libvirt asks for it) or ``kernel``."""
    text = " ".join(machine.firmware).lower()
    if machine.settings.get("secure-boot") == "yes" or re.search(r"secboot|secure|\.ms\.|snakeoil", text):
        return "uefi-secure"
    if machine.settings.get("firmware") == "efi" or re.search(r"ovmf|edk2|aavmf|uefi|code", text):
        return "uefi"
    if machine.kernel and (machine.board == "microvm" or (machine.vmm != "qemu" and not machine.firmware)):
        return "kernel"
    return "bios"
