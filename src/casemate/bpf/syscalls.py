"""System call names and numbers, and the AUDIT_ARCH value a filter sees, per architecture.

Architectures are named as ``uname -m`` names them. Numbers are the kernel's ABI and never change; a kernel newer than
the table has calls that are not in it, which `analyse.survey_beyond` covers by number.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Final

from casemate.bpf.syscalls_data import AARCH64, X86_64

AUDIT_ARCH_X86_64: Final = 0xC000_003E
AUDIT_ARCH_I386: Final = 0x4000_0003
AUDIT_ARCH_AARCH64: Final = 0xC000_00B7
AUDIT_ARCH_ARM: Final = 0x4000_0028

AUDIT_ARCH: Final[Mapping[str, int]] = MappingProxyType({"x86_64": AUDIT_ARCH_X86_64, "aarch64": AUDIT_ARCH_AARCH64})
"""The architectures that Casemate has tables for."""

OTHER_ARCHES: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {"x86_64": (AUDIT_ARCH_I386,), "aarch64": (AUDIT_ARCH_ARM,)}
)
"""The other calling conventions that a kernel of this architecture may answer to."""

X32_BIT: Final = 0x4000_0000
"""Set in nr for the x32 ABI, which has x86-64's AUDIT_ARCH (arch/x86/include/uapi/asm/unistd.h)."""

_TABLES: Final = {"x86_64": X86_64, "aarch64": AARCH64}


def audit_arch(arch: str) -> int:
    """The AUDIT_ARCH constant of ``arch``; ValueError for one without a table."""
    if arch not in AUDIT_ARCH:
        raise ValueError(f"architecture {arch!r}: expected one of {', '.join(AUDIT_ARCH)}")
    return AUDIT_ARCH[arch]


@cache
def numbers(arch: str) -> Mapping[str, int]:
    """Name to number, in the order of the numbers; ValueError for an architecture without a table."""
    audit_arch(arch)
    table: dict[str, int] = {}
    number = 0
    for word in _TABLES[arch].split():
        if word.isdigit():
            number = int(word)
        else:
            table[word] = number
            number += 1
    return MappingProxyType(table)


@cache
def names(arch: str) -> Mapping[int, str]:
    """Number to name; ValueError for an architecture without a table."""
    return MappingProxyType({number: name for name, number in numbers(arch).items()})


def number_of(name: str, arch: str) -> int:
    """The number of a call; ValueError when ``arch`` has no call of that name."""
    table = numbers(arch)
    if name not in table:
        raise ValueError(f"no system call {name!r} on {arch}")
    return table[name]
