"""Words of the kernel command line that switch mitigations of the CPU's vulnerabilities off.

See kernel-parameters.txt and hw-vuln/attack_vector_controls.rst in the kernel's documentation; the latter describes
``mitigations=auto,no_guest_host`` (from 6.17 on). The last word with a name counts, as in the kernel.
"""

from __future__ import annotations

from typing import Final

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.kernel_cmdline import CMDLINE, Cmdline, read_cmdline
from casemate.facts.root import Root

_BARE: Final[tuple[str, ...]] = (
    "nospectre_v1",
    "nospectre_v2",
    "nospectre_bhb",
    "nospec_store_bypass_disable",
    "nopti",
    "noibrs",
    "noibpb",
)
_OFF: Final[dict[str, tuple[str, ...]]] = {
    "spectre_v2": ("off",),
    "spectre_v2_user": ("off",),
    "spectre_bhi": ("off",),
    "spec_store_bypass_disable": ("off",),
    "pti": ("off", "0"),
    "kpti": ("off", "0", "n", "no"),
    "ssbd": ("force_off",),
    "l1tf": ("off",),
    "mds": ("off",),
    "tsx_async_abort": ("off",),
    "mmio_stale_data": ("off",),
    "reg_file_data_sampling": ("off",),
    "gather_data_sampling": ("off",),
    "srbds": ("off",),
    "retbleed": ("off",),
    "spec_rstack_overflow": ("off",),
    "indirect_target_selection": ("off",),
    "tsa": ("off", "user"),
    "vmscape": ("off",),
    "kvm.nx_huge_pages": ("off", "never", "0", "n"),
    "kvm_intel.vmentry_l1d_flush": ("never",),
}
_GUEST_VECTORS: Final[tuple[str, ...]] = ("no_guest_host", "no_guest_guest")


def collect_switches(root: Root) -> Facts:
    """``cpu.off-switches`` and ``cpu.guest-vectors-off``."""
    cmdline = read_cmdline(root)
    return {"cpu.off-switches": _off_switches(cmdline), "cpu.guest-vectors-off": _vectors_off(cmdline)}


def _off_switches(cmdline: Cmdline | Unknown) -> Fact:
    if isinstance(cmdline, Unknown):
        return cmdline
    last = dict(cmdline.words)
    found = [name for name in _BARE if name in last]
    found += [f"{name}={last[name]}" for name, bad in _OFF.items() if last.get(name, "").lower() in bad]
    # "off" may be followed by words about vectors; whatever they say, all is off.
    if last.get("mitigations", "").startswith("off"):
        found.append(f"mitigations={last['mitigations']}")
    return Known(tuple(found), CMDLINE)


def _vectors_off(cmdline: Cmdline | Unknown) -> Fact:
    """Attack vectors from guests whose mitigations are off. Vectors add up over several ``mitigations=``."""
    if isinstance(cmdline, Unknown):
        return cmdline
    said = [
        word for name, value in cmdline.words if name == "mitigations" for word in value.replace(";", ",").split(",")
    ]
    return Known(tuple(word for word in _GUEST_VECTORS if word in said), f"{CMDLINE}: mitigations")
