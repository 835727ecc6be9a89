"""The launch of a confidential domain: who may debug it, whether its memory may leave, what boots unmeasured."""

from __future__ import annotations

from typing import Final, NamedTuple

from casemate.harden.context import Domain
from casemate.harden.document import Element
from casemate.harden.model import Reason


class _Bit(NamedTuple):
    """A bit of the policy and the value that it should have."""

    control: str
    number: int
    wanted: int
    why: str
    cost: str


_DEBUG: Final = "whoever may debug the guest reads its memory"
_MOVES: Final = "whoever moves the guest has its memory on another host"
_BITS: Final = {
    "sev": (
        _Bit("cc.no-debug", 0, 1, _DEBUG, "the host's debugger"),
        _Bit("cc.no-migration", 3, 1, _MOVES, "live migration of the encrypted guest"),
    ),
    "sev-snp": (
        _Bit("cc.no-debug", 19, 0, _DEBUG, "the host's debugger"),
        _Bit("cc.no-migration", 18, 0, _MOVES, "migration by a migration agent"),
    ),
    "tdx": (_Bit("cc.no-debug", 0, 0, _DEBUG, "the host's debugger"),),
}
"""NODBG and NOSEND of SEV; DEBUG and MIGRATE_MA of SEV-SNP; DEBUG of TDX's attributes."""
_SIGNED: Final = {"sev": ("dhCert", "session"), "sev-snp": ("idBlock",), "tdx": ()}
"""Elements that are signed together with the policy."""


def launch_security(domain: Domain) -> None:
    """``<launchSecurity>``: the policy's bits, and the kernel that libvirt hands over."""
    node = domain.root.first("launchSecurity")
    if node is None or node.get("type") not in _BITS:
        return
    kind = node.get("type") or ""
    _policy(domain, node, kind)
    control = "cc.kernel-hashes"
    if kind == "tdx" or not domain.root.value("os/kernel") or node.get("kernelHashes") == "yes":
        return
    if domain.notes.wants(control, node.place(), "the launch does not measure its kernel"):
        node.set("kernelHashes", "yes")
        domain.notes.change(
            control,
            node.place(),
            "kernelHashes='yes'",
            "the host could boot another kernel, and every report would look the same",
            "another launch digest; a firmware made for it (OVMF's AmdSev build)",
        )


def _policy(domain: Domain, node: Element, kind: str) -> None:
    stated = node.first("policy")
    if stated is None:  # SEV demands one; QEMU's own for the others has these bits as they should be
        return
    try:
        policy = int(stated.text, 0)
    except ValueError:
        policy = -1
    if policy < 0:
        domain.notes.leave("cc.no-debug", stated.place(), "its policy is no number", Reason.DECIDE, "virsh edit it")
        return
    signed = next((name for name in _SIGNED[kind] if node.first(name) is not None), "")
    for bit in _BITS[kind]:
        if policy >> bit.number & 1 == bit.wanted:
            continue
        what = f"bit {bit.number} of the policy is {1 - bit.wanted}"
        if not domain.notes.wants(bit.control, stated.place(), what):
            continue
        if signed:
            step = f"make <{signed}> anew for a policy with bit {bit.number} = {bit.wanted}"
            domain.notes.leave(bit.control, stated.place(), f"{what}, and <{signed}> is for it", Reason.DECIDE, step)
            continue
        policy ^= 1 << bit.number
        stated.say(f"{policy:#x}")
        cost = f"{bit.cost}; what is verified must want the new policy"
        domain.notes.change(bit.control, stated.place(), f"policy {policy:#x}", bit.why, cost)
