"""Enrol an owner's own keys: virt-fw-vars writes them into the distribution's empty variable store.

virt-fw-vars (the package virt-firmware, GPL) runs as a separate program, is never imported, and sees the template and
certificates only, never variables that a guest has had. What it wrote is read back with a parser of ours and has to be
what was asked for, and nothing else.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Final

from casemate.engine import files
from casemate.engine.uefi_keys import Enrolled, certificate_entry, note_of, state_of
from casemate.errors import HostError, InputError, RefusedError
from casemate.image.opening import open_regular_file
from casemate.measure.variables import parse_variables
from casemate.spec.model import BootKeys

PROGRAM: Final = "virt-fw-vars"
OWNER: Final = "4f5a3c0e-8a0b-5d2e-9a53-6b8c0b1d7e42"
"""Who put a key there, as its entry names it: Casemate, for the owner of the VM."""
INSTALL: Final = (
    "apt install python3-virt-firmware (Debian 13), dnf install python3-virt-firmware (Fedora), "
    "or pip install 'casemate[secureboot]'"
)
_CERTIFICATE_MAX_BYTES: Final = 64 << 10
_TIMEOUT_S: Final = 60.0
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----")
_FLAGS: Final = {"pk": "--set-pk", "kek": "--add-kek", "db": "--add-db"}
_OWN: Final = frozenset({"PK", "KEK", "db", "dbx", "SecureBootEnable", "CustomMode"})
"""Variables that enrolment writes; every other one stays as the template has it."""


def find_program() -> str | None:
    """virt-fw-vars: beside this interpreter, where the extra installs it, or on the PATH."""
    places = (os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath))
    return shutil.which(PROGRAM, path=os.pathsep.join(places))


def enrol(template: bytes, keys: BootKeys) -> bytes:
    """The template with the owner's keys, and Secure Boot on.

    Raises:
        HostError: virt-fw-vars is missing, failed, or did something else. InputError: a file is no certificate.
    """
    program = find_program()
    if program is None:
        raise HostError(
            "[boot.keys] needs virt-fw-vars, which writes keys into a new VM's variables",
            got=f"no program {PROGRAM} on the PATH",
            expected="the package virt-firmware",
            next_step=INSTALL,
        )
    wanted = {name: tuple(_checked(path) for path in paths) for name, paths in _paths(keys).items()}
    with tempfile.TemporaryDirectory(prefix="casemate-keys-") as work:
        command = [program, "--loglevel", "error", "--input", _place(work, "template", template)]
        for name, certificates in wanted.items():
            for index, der in enumerate(certificates):
                command += [_FLAGS[name], OWNER, _place(work, f"{name}{index}.der", der)]
        output = f"{work}/vars.fd"
        _run([*command, "--sb", "--output", output], work)
        try:
            store = files.read_bounded(output)
        except OSError as fault:
            raise HostError(f"{PROGRAM} wrote no variables", got=fault.strerror or "") from fault
    if not _is_what_was_asked_for(template, store, wanted):
        raise HostError(f"{PROGRAM} wrote something else than it was asked for", next_step="report it with its version")
    return store


def check_owner(keys: BootKeys, enrolled: Enrolled) -> None:
    """The certificates of the specification are still those that this VM got.

    Raises:
        RefusedError: control dev.secure-boot. InputError: a file is no certificate.
    """
    for name, paths in _paths(keys).items():
        wanted = tuple(sorted(certificate_entry(_read(path)) for path in paths))
        have = getattr(enrolled, name)
        if wanted != have:
            raise RefusedError(
                "dev.secure-boot",
                f"boot.keys.{name} is not what this VM was enrolled with",
                got=", ".join(wanted),
                expected=", ".join(have) or "no key",
                next_step="put the certificates back, or make the VM anew: keys are enrolled at its first start",
            )


def _paths(keys: BootKeys) -> dict[str, tuple[str, ...]]:
    return {"pk": (keys.pk,), "kek": keys.kek, "db": keys.db}


def _read(path: str) -> bytes:
    """What a PEM file holds, in DER."""
    descriptor = open_regular_file(path, what="certificate")
    with os.fdopen(descriptor, "rb") as file:
        text = file.read(_CERTIFICATE_MAX_BYTES + 1)
    found = _PEM.findall(text) if len(text) <= _CERTIFICATE_MAX_BYTES else []
    try:
        if len(found) != 1:
            raise ValueError(f"{len(found)} certificates in {len(text)} bytes")
        return base64.b64decode(b"".join(found[0].split()), validate=True)
    except ValueError as error:
        raise _no_certificate(path, str(error)) from None


def _checked(path: str) -> bytes:
    """The same, once it can be read as a certificate."""
    from cryptography import x509

    der = _read(path)
    try:
        x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise _no_certificate(path, str(error)) from None
    return der


def _no_certificate(path: str, got: str) -> InputError:
    return InputError(
        f"{path!r} is not a certificate for Secure Boot",
        got=got[:200],
        expected="one X.509 certificate in PEM",
        next_step=f"openssl x509 -in {path} -noout -text",
    )


def _place(work: str, name: str, data: bytes) -> str:
    path = f"{work}/{name}"
    with open(path, "xb") as file:
        file.write(data)
    return path


def _run(command: list[str], work: str) -> None:
    environment = {"LC_ALL": "C.UTF-8", "PATH": os.defpath, "HOME": work}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_S,
            check=False,
            cwd=work,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{PROGRAM} does not run", got=str(error)[:300]) from error
    if done.returncode != 0:
        said = done.stdout.decode("utf-8", "replace").strip().splitlines()
        raise HostError(f"{PROGRAM} failed", got=said[-1][:300] if said else f"status {done.returncode}")


def _is_what_was_asked_for(template: bytes, store: bytes, wanted: dict[str, tuple[bytes, ...]]) -> bool:
    try:
        before, after = parse_variables(template), parse_variables(store)
        note = note_of(after)
    except InputError:
        return False
    others = [{key: data for key, data in found.items() if key[1] not in _OWN} for found in (before, after)]
    return (
        len(store) == len(template)
        and others[0] == others[1]
        and state_of(after) == "on"
        and all(getattr(note, name) == tuple(sorted(map(certificate_entry, ders))) for name, ders in wanted.items())
    )
