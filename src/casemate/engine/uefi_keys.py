"""The keys of Secure Boot in a VM's variables: enrolled at its first start, looked at before every start.

    vars.fd     the VM's variables; the guest's firmware writes to them
    keys.json   what was enrolled, noted by the host; no guest has it

An entry of a database is written as ``x509:`` and the SHA-256 of its certificate, ``sha256:`` and the digest that it
lists, or its type's GUID and a digest: a kind that nobody here knows is seen too.

EFI_SIGNATURE_LIST (UEFI specification, 32.4.1): type, size (4), header size (4), entry size (4); entries: owner, data
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Iterator
from typing import Final

import msgspec

from casemate.engine import files
from casemate.errors import InputError
from casemate.facts.fact import Facts, Known, Unknown
from casemate.measure.variables import CUSTOM, ENABLE, GLOBAL, SECURITY, Variables, parse_variables

_NOTE_MAX_BYTES: Final = 4 << 20
_ENTRIES_MAX: Final = 16384
_X509: Final = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
_SHA256: Final = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le
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
    return Enrolled(*(tuple(sorted(_entries(variables.get(key, b"")))) for key in _DATABASES))


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


def _entries(data: bytes) -> Iterator[str]:
    at = count = 0
    while at < len(data):
        if at + 28 > len(data):
            raise _fault("a list that is cut off")
        kind, size, header, entry = struct.unpack_from("<16sIII", data, at)
        if size < 28 + header or size > len(data) - at or entry < 17 or (size - 28 - header) % entry:
            raise _fault(f"a list of {size} bytes with entries of {entry}")
        for start in range(at + 28 + header, at + size, entry):
            count += 1
            if count > _ENTRIES_MAX:
                raise _fault(f"more than {_ENTRIES_MAX} entries")
            yield _entry(kind, data[start + 16 : start + entry])
        at += size


def _entry(kind: bytes, data: bytes) -> str:
    if kind == _X509:
        return certificate_entry(data)
    if kind == _SHA256:
        return f"sha256:{data.hex()}"
    return f"{uuid.UUID(bytes_le=kind)}:{hashlib.sha256(data).hexdigest()}"


def _fault(got: str) -> InputError:
    return InputError("a database of Secure Boot makes no sense", got=got, expected="EFI signature lists")
