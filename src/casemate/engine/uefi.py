"""UEFI firmware of a VM: which files, what they hash to, and the variables that are the VM's own.

code        read by every VM, never written
template    copied at a VM's first start; the copy, vms/<id>/vars.fd, is the VM's own and goes with it
keys.json   beside it, with Secure Boot: what was enrolled (uefi_keys.py)
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from casemate.engine import files
from casemate.engine.content import Promise
from casemate.errors import HostError
from casemate.facts.fact import Facts
from casemate.facts.firmware import Wanted, choose_uefi
from casemate.facts.root import Root
from casemate.image.opening import open_regular_file
from casemate.plan.model import FirmwarePair, OpenFile
from casemate.spec.model import Boot

if TYPE_CHECKING:
    from casemate.engine.uefi_keys import Enrolled

CODE, VARIABLES = "firmware-code", "firmware-vars"
VARS_FILE, NOTE_FILE = "vars.fd", "keys.json"
_SIZE_MAX_BYTES = 64 << 20


def find_firmware(boot: Boot, root: Root) -> FirmwarePair | None:
    """The firmware that a VM needs, None when it needs none.

    Raises:
        HostError: it is not there; names the package.
    """
    if not boot.has_uefi:
        return None
    wanted = Wanted.PLAIN
    if boot.is_secure:
        wanted = Wanted.ENROLLED if boot.keys is None else Wanted.SETUP
    found = choose_uefi(root, wanted)
    code, variables = root.real_path(found.code), root.real_path(found.variables)  # Debian's are links to one another
    return FirmwarePair(
        code,
        variables,
        hashlib.sha256(_read(code)).hexdigest(),
        hashlib.sha256(_read(variables)).hexdigest(),
        found.described_by,
        boot.is_secure,
    )


def own_variables(file: OpenFile, boot: Boot, directory: str) -> int:
    """The VM's own UEFI variables, open for reading and writing; made from the template at the first start.

    Args:
        directory: the VM's data directory.

    Raises:
        HostError: the template is not the one that was planned with, or keys cannot be enrolled.
        InputError, RefusedError: the owner's certificates cannot be read, or are others than at the first start.
    """
    path = f"{directory}/{VARS_FILE}"
    if not os.path.lexists(path):
        _make_variables(file, boot, directory)
    elif boot.keys is not None:
        from casemate.engine.uefi_enrol import check_owner

        enrolled = read_enrolled(boot, directory)
        if enrolled is not None:  # without a note dev.secure-boot is unknown, which refuses too
            check_owner(boot.keys, enrolled)
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def read_enrolled(boot: Boot, directory: str) -> Enrolled | None:
    """What a VM's variables had enrolled at its first start; None without Secure Boot, or when that is not known."""
    if not boot.is_secure:
        return None
    from casemate.engine.uefi_keys import read_note

    return read_note(f"{directory}/{NOTE_FILE}")


def observe_variables(boot: Boot, by_role: dict[str, int], enrolled: Enrolled | None) -> Facts:
    """What the variables say that a paused VM is about to start with; nothing for a VM without Secure Boot."""
    if not boot.is_secure:
        return {}
    from casemate.engine.uefi_keys import variables_facts

    return variables_facts(os.pread(by_role[VARIABLES], _SIZE_MAX_BYTES, 0), enrolled)


def firmware_promises(planned: tuple[OpenFile, ...]) -> tuple[Promise, ...]:
    """That the code which the emulator gets is the one that was planned with."""
    return tuple(
        Promise(file.role, "the firmware", file.path, file.sha256, "sha256", file.sha256)
        for file in planned
        if file.role == CODE
    )


def variables_digest(by_role: dict[str, int]) -> dict[str, str]:
    """Role -> SHA-256 of the variables that a paused VM is about to start with; empty for a VM without UEFI."""
    if VARIABLES not in by_role:
        return {}
    return {VARIABLES: hashlib.sha256(os.pread(by_role[VARIABLES], _SIZE_MAX_BYTES, 0)).hexdigest()}


def _make_variables(file: OpenFile, boot: Boot, directory: str) -> None:
    data = _read(file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise HostError(
            f"{file.path} changed while the VM was planned", next_step="wait for the update, then try again"
        )
    if boot.keys is not None:
        from casemate.engine.uefi_enrol import enrol

        data = enrol(data, boot.keys)
    if boot.is_secure:
        from casemate.engine.uefi_keys import note_of
        from casemate.measure.variables import parse_variables

        files.write_json(f"{directory}/{NOTE_FILE}", note_of(parse_variables(data)))
    files.write_atomic(f"{directory}/{VARS_FILE}", data)  # last: with it the first start is over


def _read(path: str) -> bytes:
    descriptor = open_regular_file(path, what="UEFI firmware")
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= _SIZE_MAX_BYTES:
            raise HostError(f"UEFI firmware {path}", got=f"{size} bytes", expected=f"1 to {_SIZE_MAX_BYTES}")
        return file.read(size)
