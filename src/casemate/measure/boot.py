"""The PCRs of a machine with OVMF and a TPM, before it boots: from its firmware, variable store, kernel or disk.

1. PCR 0 and 7: the firmware's volumes; the variables of Secure Boot.
2. PCR 4, 5, 9, 11, 12: what the boot manager starts, and what that starts and measures.
3. All of 0 to 7: the separator where the firmware hands over (PCR 7 has it before); PCR 5 how it hands over.

Events follow edk2 (SecurityPkg, OvmfPkg); each boot path here was compared with real boots under QEMU and swtpm.
"""

from __future__ import annotations

from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence.event_log import EV_NO_ACTION, EventLog
from casemate.measure import linux, stub
from casemate.measure.early import VERSION, Machine, early_volume, is_known
from casemate.measure.pe import Pe, parse_pe
from casemate.measure.registers import SEPARATOR, Prediction, Step, Steps
from casemate.measure.secureboot import is_enforcing, measure_authority, measure_variables, vouches
from casemate.measure.variables import ENABLE, SECURITY, Variables
from casemate.measure.volumes import Volumes

REGISTERS: Final = (0, 2, 4, 5, 7, 8, 9, 11, 12)
CALLING: Final = b"Calling EFI Application from Boot Option"
_LEAVING: Final = (b"Exit Boot Services Invocation", b"Exit Boot Services Returned with Success")
_BOOT_VARIABLES: Final = "the firmware writes its boot variables, SMBIOS and ACPI tables itself"
_EARLY_VOLUME: Final = (
    "its first code writes what it finds out about the machine into the volume before measuring it; "
    "an event log of one boot of the same firmware and machine gives it (--reference-log)"
)
_ADDRESS_BITS: Final = (
    "its first code writes what it finds out about the machine into the volume before measuring it, "
    "among that how many address bits the CPU has (--address-bits)"
)


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """``variables``: of the store that the VM starts with. ``memory_bytes``: guest RAM. ``foreign_roms``: whether
    devices bring option ROMs that are not known. ``plain_kernel``: whether QEMU offers a kernel also as it is (10.0
    and newer); None: not known. ``is_td``: whether RTMRs of TDX take the place of a TPM. ``reference``: an event log of
    a boot that is trusted, for what the firmware alone decides (PCR 0). ``machine``: for firmware that is known to
    write what it finds out about it into what it measures; None: not known."""

    volumes: Volumes
    variables: Variables
    memory_bytes: int
    foreign_roms: bool = False
    plain_kernel: bool | None = None
    is_td: bool = False
    reference: EventLog | None = None
    machine: Machine | None = None

    @property
    def is_enforcing(self) -> bool:
        """Whether Secure Boot is on."""
        return is_enforcing(self.variables, capable=self.volumes.has_secure_boot)


class Direct(msgspec.Struct, frozen=True):
    """A kernel given to QEMU. ``initrd``: None when there is none."""

    kernel: bytes
    initrd: bytes | None
    cmdline: str


def predict_direct(platform: Platform, boot: Direct, banks: tuple[str, ...] = ("sha256",)) -> Prediction:
    """Direct kernel boot: QEMU hands kernel, initrd and command line to OVMF through fw_cfg.

    Raises:
        InputError: the firmware would refuse it, or nothing can be said about it.
    """
    steps = begin(platform, banks)
    _start_given(steps, platform, boot)
    steps.data(4, "boot option", CALLING)
    hand_over(steps)
    if not platform.is_td or linux.measures_for_td(boot.kernel):
        measure_linux(steps, boot.kernel, _utf16(_options(platform, boot)), boot.initrd)
    leave(steps)
    return steps.prediction()


def _start_given(steps: Steps, platform: Platform, boot: Direct) -> None:
    """The kernel as the firmware sees it: as it is, or with the header that QEMU filled in."""
    if platform.volumes.takes_plain_kernel and platform.plain_kernel is None:
        why = "QEMU 10.0 and newer hand it over as it is, older ones with a header of their own (--qemu VERSION)"
        steps.unknown(4, "kernel", why)
    elif platform.volumes.takes_plain_kernel and platform.plain_kernel:
        database = platform.variables.get((SECURITY, "db"), b"")
        if platform.is_enforcing and vouches(parse_pe(boot.kernel, "the kernel"), database) is None:
            _unchecked(steps, platform, "nothing in db vouches for it")
        else:
            start(steps, platform, boot.kernel, "the kernel")
    elif platform.is_enforcing:
        _unchecked(steps, platform, "QEMU changes its header, which breaks its signature")
    else:
        kernel = linux.as_loaded(boot.kernel, len(boot.initrd or b""), platform.memory_bytes)
        steps.digest(4, "the kernel", parse_pe(kernel, "the kernel").digest)


def _unchecked(steps: Steps, platform: Platform, why: str) -> None:
    """Such a kernel goes to a loader of OVMF's that checks no signature and measures nothing, or does not start.

    Raises:
        InputError: for a TPM. Of a trust domain MRTD stays worth having.
    """
    why = f"{why}: the firmware refuses it, or starts it without a check"
    if not platform.is_td:
        expected = "a disk with a signed boot loader or UKI"
        raise InputError("Secure Boot with a kernel given to QEMU", got=why, expected=expected)
    for register in (4, 7, 9):
        steps.unknown(register, "Secure Boot with a kernel given to QEMU", why)


def begin(platform: Platform, banks: tuple[str, ...]) -> Steps:
    """What is measured before anything is loaded.

    Raises:
        InputError: the firmware measures nothing, or the reference is of another one.
    """
    if not platform.is_td and not platform.volumes.has_tpm:
        raise InputError("this firmware has no TPM driver", got="nothing would be measured", expected="OVMF with TPM")
    steps = Steps(banks)
    _measure_firmware(steps, platform)
    steps.unknown(1, "configuration", _BOOT_VARIABLES)
    if platform.foreign_roms:
        steps.unknown(2, "option ROMs", "a device of the host is passed through, and may bring one")
    measure_variables(steps, platform.variables, capable=platform.volumes.has_secure_boot)
    return steps


def _measure_firmware(steps: Steps, platform: Platform) -> None:
    """PCR 0 before its separator."""
    volumes = platform.volumes
    if platform.reference is not None:
        steps.found += _from_reference(platform.reference, volumes, steps.banks)
    elif not is_known(volumes.early):
        steps.unknown(0, "firmware", _EARLY_VOLUME)
    elif platform.machine is None:
        steps.unknown(0, "firmware", _ADDRESS_BITS)
    else:
        steps.data(0, "version of the firmware", VERSION)
        steps.data(0, "first code, with what it finds out", early_volume(volumes.early, platform.machine))
        steps.data(0, "drivers", volumes.main)


def _from_reference(log: EventLog, volumes: Volumes, banks: tuple[str, ...]) -> list[Step]:
    """The events of PCR 0 before its separator, when the log is of this firmware."""
    events = [event for event in log.events if event.register == 0 and event.kind != EV_NO_ACTION]
    missing = sorted(set(banks) - set(log.banks))
    if missing or log.locality:
        raise InputError("the reference log", got=f"no {' '.join(missing) or 'locality 0'}", expected=", ".join(banks))
    steps = Steps(banks)
    steps.data(0, "", volumes.main)
    if [event.digests for event in events if _covers(event.digests, steps.found[0].digests)] == []:
        raise InputError(
            "the reference log is of another firmware", expected="one whose PCR 0 has the volume of this firmware"
        )
    return [
        Step(register=0, what="firmware, as the reference log has it", digests={b: event.digests[b] for b in banks})
        for event in events
        if event.data != SEPARATOR
    ]


def _covers(found: dict[str, bytes], wanted: dict[str, bytes]) -> bool:
    return all(found.get(bank) == digest for bank, digest in wanted.items())


def hand_over(steps: Steps) -> None:
    """The separators, as the boot manager signals that it is ready to boot."""
    for register in range(7):
        steps.data(register, "separator", SEPARATOR)


def leave(steps: Steps) -> None:
    """The boot loader, or the kernel, takes over from the firmware."""
    for text in _LEAVING:
        steps.data(5, text.decode(), text)


def start(steps: Steps, platform: Platform, data: bytes, what: str) -> Pe:
    """The boot manager calls an application: the authority that vouches for it, and its digest.

    Raises:
        InputError: it is none, or Secure Boot refuses it.
    """
    image = parse_pe(data, what)
    if platform.is_enforcing:
        entry = vouches(image, platform.variables.get((SECURITY, "db"), b""))
        if entry is None:
            raise InputError(f"Secure Boot refuses {what}", got="nothing in db vouches for it")
        measure_authority(steps, "db", entry)
    steps.digest(4, what, image.digest)
    return image


def measure_uki(steps: Steps, platform: Platform, image: Pe) -> None:
    """What a unified kernel image does once it runs."""
    why = stub.unpredictable(image)
    if why:
        for register in (4, 9, 11, 12):
            steps.unknown(register, "unified kernel image", why)
        return
    sees_td = not platform.is_td or linux.measures_for_td(stub.program(image))
    for name, contents in stub.measured_sections(image) if sees_td else ():
        steps.data(11, f"name of {name}", name.encode() + b"\0")
        steps.data(11, f"section {name}", contents)
    kernel = parse_pe(image.section(".linux") or b"", "the UKI's kernel")
    if platform.is_enforcing:
        # The stub goes round the firmware's check of the kernel inside, and with it round the measurement.
        if stub.asks_firmware_first(image) and vouches(kernel, platform.variables.get((SECURITY, "db"), b"")):
            steps.unknown(4, "kernel of the UKI", "it is signed itself, and an old stub lets the firmware check it")
    elif stub.loads_kernel_by_firmware(image):
        steps.digest(4, "kernel of the UKI", kernel.digest)
    if not platform.is_td or linux.measures_for_td(kernel.data):
        measure_linux(steps, kernel.data, _utf16(stub.command_line(image) or ""), stub.initrd(image))


def measure_linux(steps: Steps, kernel: bytes, options: bytes, initrd: bytes | None) -> None:
    """What the kernel's EFI stub measures into PCR 9. ``options``: its load options, as they are in memory."""
    if options and linux.measures_options(kernel):
        steps.data(9, "command line", options)
    if initrd and linux.measures_initrd(kernel):
        steps.data(9, "initrd", initrd)


def _utf16(text: str) -> bytes:
    """Load options: UTF-16 with its NUL; none for an empty text."""
    return (text + "\0").encode("utf-16-le") if text else b""


def _options(platform: Platform, boot: Direct) -> str:
    """The command line as OVMF hands it over."""
    if not boot.initrd:
        return boot.cmdline
    where = platform.volumes.initrd_option
    if where is None:
        raise InputError("this firmware's way of naming the initrd is not known", expected="OVMF of edk2 2021 to 2026")
    return f"{boot.cmdline} initrd=initrd" if where == "behind" else f"initrd=initrd {boot.cmdline}"


def without_secure_boot(variables: Variables) -> Variables:
    """The same store with Secure Boot switched off in the firmware's menu."""
    return {**variables, ENABLE: b"\0"}
