"""Which key a saved state is sealed with: a key of the user's, or a random one that age wraps for its recipients."""

from __future__ import annotations

import base64
import os

import msgspec

from casemate.engine.secret_sources import age_program, read_secret, run_program
from casemate.engine.statefile import Header, StateReader, derive_key
from casemate.errors import HostError, InputError
from casemate.provision.credentials import wipe
from casemate.spec.model import Secret

KEY_MIN_BYTES, KEY_MAX_BYTES = 32, 4096
_WRAPPED_MAX_BYTES = 32 * 1024


class Sealing(msgspec.Struct, frozen=True):
    """What the user gave. ``key``: a source of key bytes. ``recipients``: of age, to write. ``identity``: to read."""

    key: Secret | None = None
    recipients: tuple[str, ...] = ()
    identity: str | None = None

    @property
    def is_none(self) -> bool:
        """Whether nothing was given."""
        return self.key is None and not self.recipients and self.identity is None


def wrap(sealing: Sealing) -> tuple[Header, bytes | None]:
    """The header and the key of a new file.

    Raises:
        InputError, HostError: the key cannot be had, or age refuses a recipient.
    """
    if sealing.key is not None:
        salt = os.urandom(32)
        return Header("key", base64.b64encode(salt).decode()), _user_key(sealing.key, salt)
    if sealing.recipients:
        key = os.urandom(32)
        command = [age_program("saved state"), "--encrypt"]
        for recipient in sealing.recipients:
            if not recipient.startswith(("age1", "ssh-")) or not recipient.isprintable():
                raise InputError("an age recipient", got=repr(recipient[:60]), expected="age1… or an ssh public key")
            command += ["--recipient", recipient]
        wrapped = run_program(command, "saved state", _WRAPPED_MAX_BYTES, key)
        return Header("age", wrapped=base64.b64encode(wrapped).decode()), key
    return Header("none"), None


def unwrap(reader: StateReader, sealing: Sealing, path: str) -> bytes | None:
    """The key of a file.

    Raises:
        InputError: the file wants another kind of key than was given; a file without one where a key was given.
        HostError: age cannot open it.
    """
    given = "key" if sealing.key is not None else "age" if sealing.identity is not None else "none"
    wanted = reader.header.sealing
    if given != wanted:
        options = {"key": "--key-file or --key-fd", "age": "--age-identity", "none": "no key"}
        raise InputError(f"saved state {path!r}", got=f"sealed with {wanted}", expected=options[wanted])
    if sealing.key is not None:
        return _user_key(sealing.key, reader.salt())
    if sealing.identity is None:
        return None
    command = [age_program("saved state"), "--decrypt", "--identity", sealing.identity]
    key = run_program(command, "saved state", KEY_MAX_BYTES, reader.wrapped())
    if len(key) != 32:
        raise HostError("saved state: age gave no key", got=f"{len(key)} bytes")
    return bytes(key)


def _user_key(source: Secret, salt: bytes) -> bytes:
    secret = read_secret("state key", source, KEY_MAX_BYTES)
    try:
        if len(secret) < KEY_MIN_BYTES:
            raise InputError(
                "state key",
                got=f"{len(secret)} bytes",
                expected=f"a key of {KEY_MIN_BYTES} bytes or more, not a password",
                next_step="head -c 32 /dev/urandom >FILE; chmod 600 FILE",
            )
        return derive_key(secret, salt)
    finally:
        wipe(secret)
