"""The login for a registry: from where podman and docker keep theirs, from their helpers, or what the user names.

Asked only when a registry wants one. Files in the order of containers-auth.json(5): ``--authfile`` and no other, else
$REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json, $XDG_CONFIG_HOME/containers/auth.json, $DOCKER_CONFIG or
~/.docker/config.json. A file names programs that we run, so it must be the caller's or root's, and nobody else's to
write; one that a password is taken from nobody else's to read. A password comes from a file, a descriptor or a helper:
never from an argument or the environment.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final

import msgspec

from casemate.engine.secret_sources import ask_program, read_secret
from casemate.errors import HostError, InputError
from casemate.facts.root import read_all
from casemate.image.oci_login import (
    MAX_FILE_BYTES,
    MAX_SECRET_BYTES,
    Helper,
    Login,
    checked_login,
    find_login,
    read_answer,
)
from casemate.image.opening import open_regular_file
from casemate.provision.credentials import wipe
from casemate.spec.model import Secret

_ANSWER_MAX_BYTES: Final = 64 * 1024
_NOT_FOUND: Final = b"credentials not found"
"""What helpers print, on standard output, for a server that they know nothing of."""
_KEEP: Final = ("AWS_", "AZURE_", "GOOGLE_", "CLOUDSDK_", "DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "WAYLAND_DISPLAY")
"""Beginnings of variables that helpers of clouds and desktops read; they are the user's, and not ours."""


class LoginChoice(msgspec.Struct, frozen=True):
    """What the user said: ``authfile``, or ``user`` with the source of a ``password``. Nothing: the usual places."""

    authfile: str | None = None
    user: str | None = None
    password: Secret | None = None


def find_registry_login(choice: LoginChoice, host: str, name: str) -> Login | None:
    """The login for ``host``/``name``; None where nobody has one.

    Raises:
        InputError: a file that is open to others, makes no sense, or was named and is not there. HostError: a helper
            is missing or failed.
    """
    if choice.user is not None and choice.password is not None:
        return _given(choice.user, choice.password)
    if choice.authfile is not None:
        return _of_file(choice.authfile, host, name)
    for path in _usual_places():
        if os.path.lexists(path):
            found = _of_file(path, host, name)
            if found is not None:
                return found
    return None


def _given(user: str, password: Secret) -> Login:
    value = read_secret("registry password", password, MAX_SECRET_BYTES)
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise InputError("registry password", got="bytes that are no UTF-8 text") from None
    finally:
        wipe(value)
    return checked_login(user, text.removesuffix("\n").removesuffix("\r"), "the command line")


def _usual_places() -> Iterator[str]:
    environment = os.environ
    home = environment.get("HOME", "")
    named = environment.get("REGISTRY_AUTH_FILE")
    if named:
        yield os.path.abspath(named)
        return
    if environment.get("XDG_RUNTIME_DIR"):
        yield f"{environment['XDG_RUNTIME_DIR']}/containers/auth.json"
    config = environment.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    if config:
        yield f"{config}/containers/auth.json"
    docker = environment.get("DOCKER_CONFIG") or (f"{home}/.docker" if home else "")
    if docker:
        yield f"{docker}/config.json"


def _of_file(path: str, host: str, name: str) -> Login | None:
    data, mode = _read(path)
    found = find_login(data, host, name, path)
    if isinstance(found, Helper):
        return _ask(found)
    if found is not None and mode & 0o077:
        raise InputError(
            f"{path!r} has a password in it and is open to others",
            got=f"mode {mode:04o}",
            expected="0600",
            next_step=f"chmod 600 {path}, and change the password if others may have read it",
        )
    return found


def _read(path: str) -> tuple[bytes, int]:
    """Content and mode."""
    descriptor = open_regular_file(path, what="file of logins")
    try:
        status = os.fstat(descriptor)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid not in {0, os.geteuid()} or mode & 0o022:
            raise InputError(
                f"{path!r} can be changed by others, and names programs that would run",
                got=f"owner {status.st_uid}, mode {mode:04o}",
                expected="yours, mode 0600",
                next_step="name one of yours: --authfile FILE",
            )
        return read_all(descriptor, MAX_FILE_BYTES, path), mode
    except OSError as error:
        raise InputError(f"{path!r} is no file of logins", got=error.strerror or str(error)) from None
    finally:
        os.close(descriptor)


def _ask(helper: Helper) -> Login | None:
    program = f"docker-credential-{helper.name}"
    path = _find(program)
    server = helper.server.encode()
    value, status = ask_program([path, "get"], program, _ANSWER_MAX_BYTES, server, lambda name: name.startswith(_KEEP))
    try:
        if status == 0:
            return read_answer(bytes(value), helper)
        if _NOT_FOUND in value:
            if helper.optional:
                return None
            raise InputError(f"{program} knows no login for {helper.server[:80]}", next_step=f"podman login {server!a}")
        raise HostError(
            f"{program} failed", got=f"status {status}", next_step="its own words stand above, if it had any"
        )
    finally:
        wipe(value)


def _find(program: str) -> str:
    """In the directories that the caller's shell would look in, except those that are not absolute."""
    for folder in os.environ.get("PATH", "/usr/bin:/bin").split(":"):
        path = f"{folder}/{program}"
        if folder.startswith("/") and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise HostError(
        f"{program} is missing", next_step="install the helper that the file of logins names, or name another"
    )
