"""Which accelerator, which interrupt controllers, which timers, and why."""

from __future__ import annotations

import msgspec

from casemate.errors import HostError, InputError
from casemate.plan.model import Host
from casemate.spec.confidential import Confidential, Kind
from casemate.spec.model import AccelChoice, Irqchip, MachineType, Spec

# QEMU derives the number of extended CPUID leaves from the features: without svm, leaf 0x80000008 (address sizes) would
# go too, and a Linux guest, which finds LA57 but no sizes, takes user addresses for wrong ones.
_TCG_CPU = "max,-svm,xlevel=0x80000008"


class Board(msgspec.Struct, frozen=True):
    """The decided board. ``irqchip`` is ``none`` under TCG, where the emulator has every controller.

    ``cmdline`` is added to the guest kernel's command line. ``c_bit``: the encryption bit of this host's SEV.
    """

    accel: str
    accel_why: str
    cpu: str
    irqchip: str
    pit: bool
    pic: bool
    rtc: bool
    timers_why: str
    cmdline: str = ""
    c_bit: int | None = None


def choose_board(spec: Spec, host: Host) -> Board:
    """Decide accelerator, CPU model, interrupt controllers and timers.

    Raises:
        HostError: KVM was demanded and this host cannot give it.
        InputError: ``irqchip = "off"`` where it does not start.
    """
    wanted = spec.machine.accel
    if spec.confidential is not None:
        return _confidential(spec.confidential, host)
    if wanted is AccelChoice.KVM and host.kvm_verdict != "usable":
        # KVM that answers but emulates still runs small guests: on demand it is tried, with a word.
        if host.kvm_verdict != "emulated":
            raise HostError(
                "KVM was asked for and this host does not have it",
                got=f"{host.kvm_verdict}: {host.kvm_why}",
                next_step='casemate doctor; or accel = "tcg" for tests',
            )
        return _kvm(spec, host, f"demanded, although {host.kvm_why}")
    if wanted is AccelChoice.KVM or (wanted is AccelChoice.AUTO and host.kvm_verdict == "usable"):
        return _kvm(spec, host, host.kvm_why)
    why = "demanded" if wanted is AccelChoice.TCG else f"KVM is {host.kvm_verdict}: {host.kvm_why}"
    return _tcg(spec, host, why)


def _kvm(spec: Spec, host: Host, why: str) -> Board:
    if spec.boot.is_secure and not host.kvm_smm:
        raise HostError(
            'firmware = "uefi-secure" needs system management mode, and this host\'s KVM does not emulate it',
            got="no KVM_CAP_X86_SMM",
            next_step='another host (nested KVM often lacks it), or accel = "tcg" for tests',
        )
    off = spec.machine.irqchip is Irqchip.OFF
    if off and not host.kvm_irqchip_off:
        raise InputError(
            'machine.irqchip = "off" does not start on this host',
            got="a KVM that needs its in-kernel local APIC",
            expected="split",
            next_step="leave machine.irqchip out",
        )
    without_timers = host.kvm_tsc_deadline
    reason = (
        "the guest's CPU has tsc-deadline: no PIT, no PIC"
        if without_timers
        else "no tsc-deadline timer in this KVM's CPUID: the PIT stays, in the emulator"
    )
    mode = "off" if off else "split"
    flags = ["host", "-vmx", "-svm", *(f"-{flag}" for flag in host.kvm_refused_flags.get(mode, ()))]
    return Board(
        accel="kvm",
        accel_why=why,
        cpu=",".join(flags),
        irqchip=mode,
        pit=not without_timers,
        pic=not without_timers,
        rtc=spec.machine.type is MachineType.Q35,
        timers_why=reason,
    )


def _confidential(wanted: Confidential, host: Host) -> Board:
    """Always KVM; whether the host has one that can do it is asked apart (``plan/confidential.py``).

    SEV-SNP: a named model, because its signature is measured; QEMU hides the TSC deadline timer from such a guest. TDX:
    QEMU takes no named model and no PIC, and the module tells the guest the frequency of its TSC.
    """
    snp = wanted.kind is Kind.SEV_SNP
    return Board(
        accel="kvm",
        accel_why=f'kind = "{wanted.kind}": only the processor encrypts',
        cpu="host" if wanted.kind is Kind.SE else f"{wanted.cpu if snp else 'host'},-vmx,-svm",
        irqchip="split",
        pit=snp,
        pic=snp,
        rtc=True,
        timers_why=(
            "QEMU hides tsc-deadline from a SEV-SNP guest: the PIT stays, in the emulator"
            if snp
            else "the guest is told the frequency of its TSC: no PIT, no PIC"
        ),
        c_bit=host.confidential.c_bit if host.confidential is not None else None,
    )


def _tcg(spec: Spec, host: Host, why: str) -> Board:
    told = spec.machine.type is MachineType.MICROVM and host.tsc_khz > 0
    return Board(
        accel="tcg",
        accel_why=why,
        cpu=_TCG_CPU,
        irqchip="none",
        pit=not told,
        pic=not told,
        rtc=True,
        timers_why=(
            "the guest is told the frequency of its TSC: no PIT, no PIC"
            if told
            else "TCG has no tsc-deadline timer: the guest calibrates its clock with the PIT"
        ),
        # "reliable": Linux trusts the counters of several CPUs without being told only on Intel's, and TCG's is AMD's.
        cmdline=f"tsc_early_khz={host.tsc_khz} tsc=reliable" if told else "",
    )
