"""The first processor of /proc/cpuinfo: vendor, flags, bugs, and whether the host is itself a guest."""

from __future__ import annotations

from typing import Final

import msgspec

from casemate.facts.fact import Unknown
from casemate.facts.root import Root
from casemate.facts.sysfiles import head

CPUINFO: Final = "/proc/cpuinfo"


class CpuInfo(msgspec.Struct, frozen=True):
    """``architecture``: ``x86``, ``arm64`` or ``other``. ``vendor``: CPUID text (``GenuineIntel``); empty elsewhere.
    ``flags`` are those that the kernel uses: it clears what a command line switched off."""

    architecture: str
    vendor: str
    flags: frozenset[str]
    bugs: frozenset[str]

    @property
    def is_guest(self) -> bool:
        """CPUID has the hypervisor bit."""
        return "hypervisor" in self.flags


def parse_cpuinfo(text: str) -> CpuInfo:
    """The first processor's fields.

    Raises:
        ValueError: neither flags (x86) nor Features (arm64) in it.
    """
    fields: dict[str, str] = {}
    for row in text.split("\n"):
        key, colon, value = row.partition(":")
        key = key.strip()
        if colon and key == "processor" and "flags" in fields:
            break
        if colon:
            fields.setdefault(key, value.strip())
    if "flags" in fields:
        words = frozenset(fields["flags"].split())
        return CpuInfo("x86", fields.get("vendor_id", ""), words, frozenset(fields.get("bugs", "").split()))
    if "Features" in fields:
        return CpuInfo("arm64", "", frozenset(fields["Features"].split()), frozenset())
    if "processor" in fields or "cpu" in fields or "vendor_id" in fields:
        return CpuInfo("other", fields.get("vendor_id", ""), frozenset(), frozenset())
    raise ValueError("no processor")


def read_cpuinfo(root: Root) -> CpuInfo | Unknown:
    """The first processor, or why it is not known."""
    text = head(root, CPUINFO)
    if isinstance(text, Unknown):
        return text
    try:
        return parse_cpuinfo(text)
    except ValueError as error:
        return Unknown(f"{CPUINFO}: not understood ({error})")
