"""The keys of Secure Boot in a VM's variables: enrolled at its first start, looked at before every start.

    vars.fd     the VM's variables; the guest's firmware writes to them
    keys.json   what was enrolled, noted by the host; no guest has it

An entry of a database is written as ``x509:`` and the SHA-256 of its certificate, ``sha256:`` and the digest that it
lists, or its type's GUID and a digest: a kind that nobody here knows is seen too.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Final

import msgspec

from casemate.engine import files
from casemate.errors import InputError
from casemate.facts.fact import Facts, Known, Unknown
from casemate.measure.siglists import SHA256, X509, Entry, signature_entries
from casemate.measure.variables import CUSTOM, ENABLE, GLOBAL, SECURITY, Variables, parse_variables

_NOTE_MAX_BYTES: Final = 4 << 20
_DATABASES: Final = ((GLOBAL, "PK"), (GLOBAL, "KEK"), (SECURITY, "db"), (SECURITY, "dbx"))


class Enrolled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """keys.json: the entries of each database."""

    pk: tuple[str, ...]
    kek: tuple[str, ...]
    db: tuple[str, ...]
    dbx: tuple[str, ...]


def note_of(variables: Variables) -> Enrolled:
    """What a variable store has enrolled.

    Raises:
        InputError: a database contradicts itself.
    """
    return Enrolled(*(tuple(sorted(map(_name, signature_entries(variables.get(key, b""))))) for key in _DATABASES))


def read_note(path: str) -> Enrolled | None:
    """keys.json, None when there is none that can be read: what that means is for a judge to say."""
    try:
        return msgspec.json.decode(files.read_bounded(path, _NOTE_MAX_BYTES), type=Enrolled)
    except (OSError, msgspec.MsgspecError):
        return None


def certificate_entry(der: bytes) -> str:
    """A certificate as an entry."""
    return f"x509:{hashlib.sha256(der).hexdigest()}"


def variables_facts(store: bytes, enrolled: Enrolled | None) -> Facts:
    """``dev.secure-boot`` and ``dev.boot-keys`` of the variables that a VM is about to start with."""
    source = "its variables, read before its first instruction"
    try:
        variables = parse_variables(store)
        now = note_of(variables)
    except InputError as error:
        why = Unknown(f"{error.what}: {error.got}")
        return {"dev.secure-boot": why, "dev.boot-keys": why}
    state = state_of(variables)
    if enrolled is None:
        why = Unknown("the note of what was enrolled is gone")
        return {"dev.secure-boot": why if state == "on" else Known(state, source), "dev.boot-keys": why}
    if state == "on" and now.pk != enrolled.pk:
        state = "on, with another platform key"
    changed = [f"KEK: {entry} added" for entry in now.kek if entry not in enrolled.kek]
    changed += [f"db: {entry} added" for entry in now.db if entry not in enrolled.db]
    changed += [f"dbx: {entry} gone" for entry in enrolled.dbx if entry not in now.dbx]
    return {
        "dev.secure-boot": Known(state, source),
        "dev.boot-keys": Known(tuple(changed), f"{source}, and the note of what was enrolled"),
    }


def state_of(variables: Variables) -> str:
    """``on``, or what the firmware will make of its variables instead (edk2, AuthVariableLib, SecureBootConfigDxe: no
    platform key is setup mode; in custom mode whoever has the console changes keys without a signature).
    """
    if not variables.get((GLOBAL, "PK")):
        return "off: no platform key (setup mode)"
    if variables.get(ENABLE, b"\1") != b"\1":
        return "off: SecureBootEnable is 0"
    return "on" if variables.get(CUSTOM, b"\0") == b"\0" else "on, in custom mode"


def _name(entry: Entry) -> str:
    if entry.kind == X509:
        return certificate_entry(entry.data)
    if entry.kind == SHA256:
        return f"sha256:{entry.data.hex()}"
    return f"{uuid.UUID(bytes_le=entry.kind)}:{hashlib.sha256(entry.data).hexdigest()}"
