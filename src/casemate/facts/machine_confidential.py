"""What the launch policy of a confidential guest says, decoded."""

from __future__ import annotations

from typing import Final

from casemate.facts.machine import Machine

_DEBUG_BITS: Final = {"sev": (0, False), "sev-snp": (19, True), "tdx": (0, True)}
"""Bit of the launch policy, and its value when the host may debug: NODBG of SEV's GUEST_POLICY, DEBUG of SEV-SNP's
POLICY and of TDX's ATTRIBUTES."""
_DEFAULT_POLICY: Final = {"sev": 0x1, "sev-snp": 0x30000, "tdx": 0x0}
"""What QEMU takes when -object does not say (qapi/qom.json)."""


def may_debug(machine: Machine) -> bool | None:
    """Whether the host may debug a confidential guest; None when nobody said, or the kind is not known."""
    kind = machine.launch_security
    if kind not in _DEBUG_BITS:
        return None
    stated = machine.settings.get("cc-policy", "")
    if machine.form != "libvirt":
        guest = next((b for b in machine.backends if b.kind == "object" and b.type == f"{kind}-guest"), None)
        if guest is None:
            return None
        stated = guest.properties.get("policy") or guest.properties.get("attributes") or hex(_DEFAULT_POLICY[kind])
    try:
        policy = int(stated, 0)
    except ValueError:
        return None
    bit, set_means_debug = _DEBUG_BITS[kind]
    return bool(policy >> bit & 1) is set_means_debug
