"""What a confidential guest needs beyond base, KVM and devices.

Never run on hardware: all rules have origin SOURCE. Read in QEMU 11.1: target/i386/sev.c, target/i386/kvm/tdx.c and
tdx-quote-generator.c, accel/kvm/kvm-all.c, system/physmem.c, target/s390x/kvm/pv.c.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Final

from casemate.jail.rules import Origin, Phase, Rule
from casemate.jail.rulesets.kvm_ioctls import KVM_IOCTLS, SEV_IOCTLS
from casemate.jail.rulesets.values import AF_UNIX, F_SETFL, FALLOC_PUNCH_HOLE_KEEP_SIZE, int_is

_SOURCE, _START = Origin.SOURCE, Phase.STARTUP


def _ioctls(names: Iterable[str], reason: str, phase: Phase = Phase.ALWAYS) -> tuple[Rule, ...]:
    numbers = KVM_IOCTLS | SEV_IOCTLS
    return tuple(Rule("ioctl", f"{n}: {reason}", (int_is(1, numbers[n]),), phase, _SOURCE) for n in names)


_PRIVATE_MEMORY: tuple[Rule, ...] = (
    *_ioctls(("KVM_CREATE_GUEST_MEMFD",), "memory that only the guest can read, one for each RAM block", _START),
    *_ioctls(("KVM_SET_MEMORY_ATTRIBUTES",), "pages become private, or shared again when the guest asks"),
    Rule(
        "fallocate",
        "pages that changed sides are given back: guest_memfd has no other way",
        (int_is(1, FALLOC_PUNCH_HOLE_KEEP_SIZE),),
        origin=_SOURCE,
    ),
)

SEV_SNP: tuple[Rule, ...] = (
    *_PRIVATE_MEMORY,
    *_ioctls(("SEV_ISSUE_CMD",), "QEMU asks the security processor for its state and firmware version", _START),
    *_ioctls(("KVM_GET_CPUID2",), "the CPUID page of the guest is filled when it is measured, at the first cont"),
    *_ioctls(("KVM_MEMORY_ENCRYPT_OP",), "the launch is measured page by page and ends at the first cont"),
)

TDX: tuple[Rule, ...] = (
    *_PRIVATE_MEMORY,
    *_ioctls(("KVM_MEMORY_ENCRYPT_OP",), "the domain is made, measured and ended", _START),
)

SE: tuple[Rule, ...] = _ioctls(
    ("KVM_S390_PV_COMMAND",), "the ultravisor unpacks the image when the guest asks to become secure, and at its end"
)

QUOTES: tuple[Rule, ...] = (
    Rule("socket", "each quote that the guest asks for is a connection", (int_is(0, AF_UNIX),), origin=_SOURCE),
    Rule("connect", "to the quote generation service: the only socket in the root", origin=_SOURCE),
    Rule("getsockname", "QEMU names the socket", origin=_SOURCE),
    Rule("getpeername", "QEMU names the service", origin=_SOURCE),
    Rule("fcntl", "the connection becomes non-blocking", (int_is(1, F_SETFL),), origin=_SOURCE),
)

PARTS: Final = MappingProxyType({"sev-snp": SEV_SNP, "tdx": TDX, "se": SE, "quotes": QUOTES})
