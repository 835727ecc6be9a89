"""The public API of credential activation: does a TPM that a maker vouches for have this attestation key?

Two steps with a guest between them. `write_challenge` judges the endorsement key's certificate and seals a secret to
its TPM; the guest runs ``tpm2_activatecredential``; `verify_answer` judges what comes back.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from casemate.errors import InputError

if TYPE_CHECKING:
    from casemate.evidence.policy import Policy
    from casemate.evidence.verdict import Verified
    from casemate.evidence.verify import Inputs

__all__ = ["verify_answer", "write_challenge"]

FILE_MAX_BYTES = 1 << 20


def write_challenge(
    attestation_key: str,
    certificate: str,
    inputs: Inputs,
    policy: Policy,
    *,
    blob: str,
    asked: str,
    area: str | None = None,
) -> Verified:
    """Judge an endorsement key; write a challenge for its TPM only when nothing speaks against it.

    Args:
        attestation_key: file with its public area (``tpm2_createak -u``).
        certificate: file with the endorsement key's certificate first.
        blob: file to write, for ``tpm2_activatecredential -i``; nothing in it is secret.
        asked: file to write, mode 0600, for `verify_answer`; it has a digest of the secret, and whose keys they are.
        area: file with the endorsement key's public area, or None.

    Raises:
        InputError: something cannot be read; a file to write is there already, or cannot be written.
    """
    import msgspec

    from casemate.engine.files import unlink_if_there
    from casemate.evidence.challenge import challenge
    from casemate.evidence.x509 import parse_many

    certificates = parse_many(_read(certificate))
    if not certificates:
        raise InputError(f"{certificate} has no certificate", expected="the endorsement key's, PEM or DER")
    made = challenge(_read(attestation_key), certificates, None if area is None else _read(area), inputs, policy)
    if made.blob is not None and made.asked is not None:
        _write_new(asked, msgspec.json.format(msgspec.json.encode(made.asked)) + b"\n")
        try:
            _write_new(blob, made.blob)
        except BaseException:
            unlink_if_there(asked)
            raise
    return made.verdict


def verify_answer(answer: str, asked: str) -> Verified:
    """Whether a file holds what only the challenged TPM could take out of the challenge.

    Raises:
        InputError: a file cannot be read, or the challenge is none.
    """
    from casemate.evidence.challenge import judge_answer, parse_asked

    return judge_answer(parse_asked(_read(asked), asked), _read(answer))


def _read(name: str) -> bytes:
    from casemate.audit.text import read_input

    return read_input(name, FILE_MAX_BYTES)


def _write_new(path: str, data: bytes) -> None:
    """A new file, mode 0600: no older challenge is lost, no link followed."""
    from casemate.engine.files import unlink_if_there

    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise InputError(f"{path} is there already", next_step="name a new file, or remove that one") from None
    except OSError as error:
        raise InputError(f"cannot write {path}", got=str(error.strerror)) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        unlink_if_there(path)
        raise InputError(f"cannot write {path}", got=str(error.strerror)) from None
