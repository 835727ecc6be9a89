"""UEFI firmware of a VM: which files, what they hash to, and the variables that are the VM's own.

code        read by every VM, never written
template    copied at a VM's first start; the copy, vms/<id>/vars.fd, is the VM's own and goes with it
"""

from __future__ import annotations

import hashlib
import os

from casemate.engine.content import Promise
from casemate.errors import HostError, InputError
from casemate.facts.firmware import Wanted, choose_uefi
from casemate.facts.root import Root
from casemate.image.opening import open_regular_file
from casemate.plan.model import FirmwarePair, OpenFile
from casemate.spec.model import Boot

CODE, VARIABLES = "firmware-code", "firmware-vars"
_SIZE_MAX_BYTES = 64 << 20


def find_firmware(boot: Boot, root: Root) -> FirmwarePair | None:
    """The firmware that a VM needs, None when it needs none.

    Raises:
        HostError: it is not there; names the package.
    """
    if not boot.has_uefi:
        return None
    wanted = Wanted.PLAIN
    if boot.keys is not None:
        raise InputError("[boot.keys] cannot be enrolled yet", next_step="leave it out for the distribution's keys")
    if boot.is_secure:
        wanted = Wanted.ENROLLED if boot.keys is None else Wanted.SETUP
    found = choose_uefi(root, wanted)
    code, variables = root.real_path(found.code), root.real_path(found.variables)  # Debian's are links to one another
    return FirmwarePair(
        code,
        variables,
        _sha256_of(code),
        _sha256_of(variables),
        found.described_by,
        boot.is_secure,
    )


def own_variables(file: OpenFile, path: str) -> int:
    """The VM's own UEFI variables, copied from the template at the first start.

    Raises:
        HostError: the template is not the one that was planned with.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        pass
    data = _read(file.path)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise HostError(
            f"{file.path} changed while the VM was planned", next_step="wait for the update, then try again"
        )
    temporary = f"{path}.{os.urandom(6).hex()}.tmp"
    with open(temporary, "xb") as target:
        os.fchmod(target.fileno(), 0o600)
        target.write(data)
        target.flush()
        os.fsync(target.fileno())
    os.rename(temporary, path)
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def firmware_promises(files: tuple[OpenFile, ...]) -> tuple[Promise, ...]:
    """That the code which the emulator gets is the one that was planned with."""
    return tuple(
        Promise(file.role, "the firmware", file.path, file.sha256, "sha256", file.sha256)
        for file in files
        if file.role == CODE
    )


def variables_digest(by_role: dict[str, int]) -> dict[str, str]:
    """Role -> SHA-256 of the variables that a paused VM is about to start with; empty for a VM without UEFI."""
    if VARIABLES not in by_role:
        return {}
    return {VARIABLES: hashlib.sha256(os.pread(by_role[VARIABLES], _SIZE_MAX_BYTES, 0)).hexdigest()}


def _sha256_of(path: str) -> str:
    return hashlib.sha256(_read(path)).hexdigest()


def _read(path: str) -> bytes:
    descriptor = open_regular_file(path, what="UEFI firmware")
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 < size <= _SIZE_MAX_BYTES:
            raise HostError(f"UEFI firmware {path}", got=f"{size} bytes", expected=f"1 to {_SIZE_MAX_BYTES}")
        return file.read(size)
