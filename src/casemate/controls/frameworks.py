"""Measures that others published, mapped to controls, or to the reason why one host cannot have them."""

from __future__ import annotations

from typing import Final

import msgspec


class Measure(msgspec.Struct, frozen=True):
    """One published measure: the controls that check it here, or why nothing on one host can (``cannot``)."""

    title: str
    controls: tuple[str, ...] = ()
    cannot: str = ""


FRAMEWORKS: Final[dict[str, tuple[Measure, ...]]] = {
    "gcp7": (
        Measure(
            "proactive vulnerability search", cannot="it is the work of the maker of the hypervisor, not a host's state"
        ),
        Measure(
            "reduced attack surface area",
            (
                "dev.nodefaults",
                "dev.no-floppy",
                "dev.no-legacy-nic",
                "kvm.irqchip-split",
                "kvm.no-pit",
                "kvm.nested-off",
            ),
        ),
        Measure("non-QEMU implementation", ("bin.device-types", "bin.no-tcg", "dev.machine", "dev.insecure-types")),
        Measure(
            "boot and jobs communication",
            cannot="needs a fleet whose control plane trusts a host only after it proved its boot",
        ),
        Measure("code provenance", ("bin.owner", "img.hash")),
        Measure("rapid and graceful vulnerability response", ("bin.cve", "bin.version")),
        Measure("carefully controlled releases", cannot="staged roll-outs need more hosts than one"),
    ),
}
"""By name: Google's "7 ways we harden our KVM hypervisor" (2017)."""
