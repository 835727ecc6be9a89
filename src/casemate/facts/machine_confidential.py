"""What the launch of a confidential guest says: its policy decoded, what it measures and what it does not."""

from __future__ import annotations

from typing import Final

from casemate.facts.machine import Backend, Machine

_DEBUG_BITS: Final = {"sev": (0, False), "sev-snp": (19, True), "tdx": (0, True)}
"""Bit of the launch policy, and its value when the host may debug: NODBG of SEV's GUEST_POLICY, DEBUG of SEV-SNP's
POLICY and of TDX's ATTRIBUTES."""
_MIGRATION_BITS: Final = {"sev": (3, False), "sev-snp": (18, True)}
"""The same for memory that may leave for another host: NOSEND of SEV, MIGRATE_MA of SEV-SNP."""
_DEFAULT_POLICY: Final = {"sev": 0x1, "sev-snp": 0x30000, "tdx": 0x0}
"""What QEMU takes when -object does not say (qapi/qom.json)."""
_SEV: Final = ("sev", "sev-snp")


def may_debug(machine: Machine) -> bool | None:
    """Whether the host may debug a confidential guest; None when nobody said, or the kind is not known."""
    return _bit(machine, _DEBUG_BITS)


def may_migrate(machine: Machine) -> bool | None:
    """Whether the guest's memory may be sent to another host; None as for `may_debug`."""
    return _bit(machine, _MIGRATION_BITS)


def boots_measured(machine: Machine) -> str | None:
    """``measured`` or ``unmeasured`` for a kernel that the host gives; ``none`` when a firmware finds its own; None for
    a kind whose firmware decides.
    """
    if machine.launch_security not in _SEV:
        return None
    if not machine.kernel:
        return "none"
    if machine.form == "libvirt":
        stated = machine.settings.get("cc-kernel-hashes", "")
    else:
        guest = launch_object(machine)
        stated = guest.properties.get("kernel-hashes", "") if guest is not None else ""
    return "measured" if stated in ("yes", "on", "true") else "unmeasured"


def keeps_variables(machine: Machine) -> bool | None:
    """Whether the firmware has a store of variables, which no launch measures; None when nobody said."""
    if machine.form == "libvirt":
        stateless = machine.settings.get("stateless", "")
        return None if not stateless else stateless != "yes"
    flash = [name for name in ("pflash0", "pflash1") if machine.board_options.get(name)]
    return "pflash1" in flash or len(machine.firmware) > 1


def launch_object(machine: Machine) -> Backend | None:
    """The object of a command line that its machine is linked with. Another one beside it is made, and launches
    nothing: what it says of a policy is about no guest."""
    options = machine.board_options
    linked = options.get("confidential-guest-support") or options.get("memory-encryption", "")
    wanted = f"{machine.launch_security}-guest"
    objects = (item for item in machine.backends if item.kind == "object" and item.type == wanted)
    return next((item for item in objects if linked and item.id == linked), None)


def _bit(machine: Machine, bits: dict[str, tuple[int, bool]]) -> bool | None:
    kind = machine.launch_security
    if kind not in bits:
        return None
    stated = machine.settings.get("cc-policy", "")
    if machine.form != "libvirt":
        guest = launch_object(machine)
        if guest is None:
            return None
        stated = guest.properties.get("policy") or guest.properties.get("attributes") or hex(_DEFAULT_POLICY[kind])
    try:
        policy = int(stated, 0)
    except ValueError:
        return None
    bit, set_means_yes = bits[kind]
    return bool(policy >> bit & 1) is set_means_yes
