"""A confidential guest's launch, in the words of a specification. Pure.

What weakens the launch (a debugger's way in, memory that may leave, a kernel that nothing measures) is not taken over;
what a specification cannot say is listed. A guest that a specification could not describe keeps no table at all, and
that is for its owner to decide: it would be an ordinary VM.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

import msgspec

from casemate.facts.machine import Backend, Machine
from casemate.facts.machine_confidential import launch_object
from casemate.harden.model import Notes, Reason
from casemate.spec.confidential import (
    DEFAULT_CPU,
    ID_AUTH_BYTES,
    ID_BLOCK_BYTES,
    TDX_ATTRIBUTES,
    Confidential,
    Kind,
    id_block_policy,
    snp_policy,
)

_CPU: Final = re.compile(r"EPYC(-(Rome|Milan|Genoa|Turin))?(-v[0-9]{1,2})?")
_PLAIN_POLICY: Final = 0x30000
_SMT, _MIGRATION_AGENT, _DEBUG, _CIPHERTEXT_HIDING = 1 << 16, 1 << 18, 1 << 19, 1 << 24
_KNOWN_POLICY: Final = 0x30000 | _MIGRATION_AGENT | _DEBUG | _CIPHERTEXT_HIDING | 0xFFFF
_ON: Final = ("on", "yes", "true")


def is_taken(machine: Machine) -> bool:
    """Whether the launch becomes a ``[confidential]`` table."""
    if machine.form != "argv" or launch_object(machine) is None:
        return False
    return machine.launch_security == Kind.TDX or (machine.launch_security == Kind.SEV_SNP and bool(machine.kernel))


def launch(machine: Machine, notes: Notes) -> dict[str, dict[str, Any]]:
    """The ``[confidential]`` table, or nothing and why."""
    guest = launch_object(machine)
    if not machine.launch_security:
        return {}
    if guest is None or not is_taken(machine):
        what, step = f"{machine.launch_security} is not in the specification", "keep this VM where it is"
        if machine.launch_security == Kind.SEV_SNP and guest is not None:
            what += ": nothing measures what its disk boots"
            step = "give it a kernel, which the launch measures (docs/confidential.md), or keep this VM where it is"
        notes.leave("cc.launch", "launch security", what, Reason.DECIDE, step)
        return {}
    found: dict[str, Any] = {"kind": machine.launch_security}
    if len(machine.firmware) == 1 and machine.firmware[0]:
        found["firmware"] = machine.firmware[0]
    else:
        what = "its firmware and variables become the OVMF of the host that the launch measures"
        notes.leave("cc.stateless-firmware", "firmware", what, Reason.LIMIT, "another OVMF is another measurement")
    if machine.launch_security == Kind.TDX:
        _tdx(guest, found, notes)
    else:
        _snp(machine, guest, found, notes)
    return {"confidential": found}


def _snp(machine: Machine, guest: Backend, found: dict[str, Any], notes: Notes) -> None:
    if _CPU.fullmatch(machine.cpu_model):
        found["cpu"] = machine.cpu_model
    else:
        what = f"CPU model {machine.cpu_model[:40] or '(none)'} becomes {DEFAULT_CPU}"
        notes.leave("cc.launch", "cpu", what, Reason.LIMIT, "the processor's signature is measured: another digest")
    if guest.properties.get("kernel-hashes", "") not in _ON:
        notes.change(
            "cc.kernel-hashes",
            guest.origin,
            "the launch measures kernel, initrd and command line",
            "the host could boot another kernel, and every report would look the same",
            "another launch digest",
        )
    _policy(guest, found, notes)
    _bytes(guest, "host-data", "host_data", 32, found, notes)
    _id_block(guest, found, notes)


def _policy(guest: Backend, found: dict[str, Any], notes: Notes) -> None:
    stated = guest.properties.get("policy", hex(_PLAIN_POLICY))
    policy = _number(stated)
    if policy is None:
        policy = _PLAIN_POLICY
        notes.leave("cc.launch", guest.origin, "its policy is no number", Reason.DECIDE, "the default was taken")
    if not policy & _SMT:
        found["smt"] = False
    if policy & _CIPHERTEXT_HIDING:
        found["ciphertext_hiding"] = True
    if policy & 0xFFFF:
        found["abi_minimum"] = f"{policy >> 8 & 0xFF}.{policy & 0xFF}"
    if policy & _DEBUG:
        why = "whoever may debug the guest reads its memory"
        notes.change("cc.no-debug", guest.origin, "the host may not debug it any more", why, "the host's debugger")
    if policy & _MIGRATION_AGENT:
        what = "no migration agent may be bound to it any more"
        why = "a migration agent gets the guest's memory"
        notes.change("cc.no-migration", guest.origin, what, why, "migration by such an agent")
    if unknown := policy & ~_KNOWN_POLICY:
        what = f"policy bits {unknown:#x} are not in the specification"
        step = "they restrict where the guest runs (one socket, AES-256, no RAPL): verify what you rely on"
        notes.leave("cc.launch", guest.origin, what, Reason.DECIDE, step)


def _id_block(guest: Backend, found: dict[str, Any], notes: Notes) -> None:
    """The ID block comes along when it is signed for the policy that is left."""
    block, auth = guest.properties.get("id-block", ""), guest.properties.get("id-auth", "")
    if not block and not auth:
        return
    octets = _decoded(block, ID_BLOCK_BYTES)
    is_whole = octets is not None and _decoded(auth, ID_AUTH_BYTES) is not None
    if octets is not None and is_whole and id_block_policy(octets) == snp_policy(msgspec.convert(found, Confidential)):
        found |= {"id_block": block, "id_auth": auth}
        if guest.properties.get("author-key-enabled", "") in _ON:
            found["author_key"] = True
        return
    what = "the ID block is not whole" if not is_whole else "the ID block is signed for another policy"
    notes.leave("cc.launch", guest.origin, f"{what}, and not taken over", Reason.DECIDE, "sign one for this launch")


def _tdx(guest: Backend, found: dict[str, Any], notes: Notes) -> None:
    for name in ("mrconfigid", "mrowner", "mrownerconfig"):
        _bytes(guest, name, name, 48, found, notes)
    attributes = _number(guest.properties.get("attributes", "0"))
    if attributes is None or attributes & ~TDX_ATTRIBUTES:
        what = "attributes other than SEPT_VE_DISABLE are not in the specification"
        notes.leave("cc.launch", guest.origin, what, Reason.DECIDE, "see whether the guest needs them")
    prefix = "quote-generation-socket."
    socket = {key.removeprefix(prefix): item for key, item in guest.properties.items() if key.startswith(prefix)}
    path = socket.get("path", "")
    if socket.get("type") == "unix" and path.startswith("/"):
        found["quote_socket"] = path
    elif socket:
        what = "its way to the quote generation service is not a Unix socket"
        notes.leave("cc.launch", guest.origin, what, Reason.DECIDE, "let the service listen on a Unix socket")


def _bytes(guest: Backend, theirs: str, ours: str, size: int, found: dict[str, Any], notes: Notes) -> None:
    """A value of ``size`` octets: QEMU reads base64, a specification hexadecimal."""
    stated = guest.properties.get(theirs, "")
    octets = _decoded(stated, size)
    if octets is not None:
        found[ours] = octets.hex()
    elif stated:
        what = f"{theirs} is not {size} bytes of base64, and not taken over"
        notes.leave("cc.launch", guest.origin, what, Reason.DECIDE, f"{ours} of [confidential]")


def _decoded(text: str, size: int) -> bytes | None:
    try:
        octets = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return octets if len(octets) == size else None


def _number(text: str) -> int | None:
    try:
        found = int(text[:24], 0)
    except ValueError:
        return None
    return found if 0 <= found < 1 << 64 else None
