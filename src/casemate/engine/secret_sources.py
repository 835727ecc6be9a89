"""Ask a secret's source for its value: bounded, with a deadline, into memory that can be wiped.

The value is a bytearray that the caller wipes (`provision.credentials.wipe`); on the way here no immutable copy of it
is made. Programs get the encrypted file on standard input and answer on a pipe: nothing but a program's own name,
options and the path of an identity file is ever in an argument vector. What a program says on standard error is the
user's to read and goes where ours goes; it is never kept.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import time
from collections.abc import Callable

from casemate.errors import HostError, InputError
from casemate.image.opening import open_regular_file
from casemate.provision.credentials import wipe
from casemate.spec.model import Secret

DEADLINE_S = 30.0
_PIECE_BYTES = 16384
_CREDS = ("/usr/bin/systemd-creds", "/bin/systemd-creds")
_AGE = ("/usr/bin/age", "/usr/local/bin/age")
_KEPT = ("HOME", "USER", "LOGNAME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "GNUPGHOME", "PASSWORD_STORE_DIR")


def read_secret(name: str, secret: Secret, max_bytes: int) -> bytearray:
    """The value, exactly as the source gives it: a final newline belongs to it.

    Raises:
        InputError: the source has none, too much, or is open to others. HostError: a program is missing or failed.
    """
    what = f"secret {name}"
    if secret.file is not None:
        value = _of_file(secret.file, what, max_bytes)
    elif secret.descriptor is not None:
        value = _of_descriptor(secret.descriptor, what, max_bytes)
    elif secret.systemd_creds is not None:
        program = _find(_CREDS, what, "apt-get install systemd")
        command = [program, "decrypt", f"--name={name}", "-", "-"]
        value = _of_file_and_program(command, what, max_bytes, secret.systemd_creds)
    elif secret.age is not None and secret.identity is not None:
        program = age_program(what)
        os.close(_open_private(secret.identity, what))
        command = [program, "--decrypt", "--identity", secret.identity]
        value = _of_file_and_program(command, what, max_bytes, secret.age)
    elif secret.command:
        value = _of_program(list(secret.command), what, max_bytes, None)
    else:
        raise RuntimeError(f"{what} has no source: parse_spec did not see it")
    if not value:
        raise InputError(what, got="nothing: the source is empty", expected=f"1 to {max_bytes} bytes")
    return value


def _open_private(path: str, what: str) -> int:
    """A file of the caller's, or root's, that nobody else can read or write."""
    descriptor = open_regular_file(path, what=f"file of {what}")
    status = os.fstat(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid in {0, os.geteuid()} and not mode & 0o077:
        return descriptor
    os.close(descriptor)
    raise InputError(
        f"{what}: {path!r} is open to others",
        got=f"owner {status.st_uid}, mode {mode:04o}",
        expected="yours, mode 0600 or 0400",
        next_step=f"chmod 600 {path}, and change the secret if others may have read it",
    )


def _of_file(path: str, what: str, max_bytes: int) -> bytearray:
    descriptor = _open_private(path, what)
    try:
        return _read(descriptor, what, max_bytes)
    finally:
        os.close(descriptor)


def _of_descriptor(number: int, what: str, max_bytes: int) -> bytearray:
    try:
        os.fstat(number)
    except OSError:
        raise InputError(
            f"{what}: descriptor {number} is not open",
            expected="what the calling process hands over",
            next_step=f"casemate start VM {number}<FILE",
        ) from None
    try:
        return _read(number, what, max_bytes)
    except OSError as fault:
        raise InputError(f"{what}: descriptor {number} cannot be read", got=fault.strerror or str(fault)) from None


def _read(descriptor: int, what: str, max_bytes: int, end: float | None = None) -> bytearray:
    """Everything until end of file."""
    end = time.monotonic() + DEADLINE_S if end is None else end
    value, piece = bytearray(), bytearray(_PIECE_BYTES)
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    try:
        while True:
            if not poller.poll(max(0.0, end - time.monotonic()) * 1000):
                raise InputError(f"{what}: its source did not answer in time", expected=f"{DEADLINE_S:.0f} s at most")
            count = os.readv(descriptor, [piece])
            if count == 0:
                return value
            value += memoryview(piece)[:count]
            if len(value) > max_bytes:
                raise InputError(what, got=f"more than {max_bytes} bytes", expected="a secret, not a file")
    except BaseException:
        wipe(value)
        raise
    finally:
        wipe(piece)


def age_program(what: str) -> str:
    """The path of age.

    Raises:
        HostError: naming its package.
    """
    return _find(_AGE, what, "apt-get install age")


def run_program(command: list[str], what: str, max_bytes: int, given: bytes) -> bytearray:
    """Standard output of ``command`` with ``given`` on its standard input; bounds and errors as for a source."""
    descriptor = os.memfd_create("casemate-input", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, given)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return _of_program(command, what, max_bytes, descriptor)
    finally:
        os.close(descriptor)


def ask_program(
    command: list[str], what: str, max_bytes: int, given: bytes, keep: Callable[[str], bool]
) -> tuple[bytearray, int]:
    """As `run_program`, but a status other than 0 is an answer too.

    Args:
        keep: which of our environment variables it gets, beside the usual ones.

    Returns:
        standard output and status.
    """
    descriptor = os.memfd_create("casemate-input", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, given)
        os.lseek(descriptor, 0, os.SEEK_SET)
        kept = {name: value for name, value in os.environ.items() if keep(name)}
        return _answer_of(command, what, max_bytes, descriptor, {**_environment(), **kept})
    finally:
        os.close(descriptor)


def _find(places: tuple[str, ...], what: str, next_step: str) -> str:
    for place in places:
        if os.access(place, os.X_OK):
            return place
    raise HostError(f"{what}: {os.path.basename(places[0])} is missing", next_step=next_step)


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **kept}


def _of_file_and_program(command: list[str], what: str, max_bytes: int, file: str) -> bytearray:
    stdin = open_regular_file(file, what=f"file of {what}")
    try:
        return _of_program(command, what, max_bytes, stdin)
    finally:
        os.close(stdin)


def _of_program(command: list[str], what: str, max_bytes: int, stdin: int | None) -> bytearray:
    """Standard output of ``command``, which must succeed."""
    value, status = _answer_of(command, what, max_bytes, stdin, _environment())
    if status != 0:
        wipe(value)
        program = os.path.basename(command[0])
        raise HostError(f"{what}: {program} failed", got=f"status {status}", next_step="its own words stand above")
    return value


def _answer_of(
    command: list[str], what: str, max_bytes: int, stdin: int | None, environment: dict[str, str]
) -> tuple[bytearray, int]:
    """Output and status of ``command`` in a session of its own; the whole session dies at the deadline."""
    import subprocess

    end = time.monotonic() + DEADLINE_S
    program = os.path.basename(command[0])
    try:
        given = subprocess.DEVNULL if stdin is None else stdin
        child = subprocess.Popen(
            command, stdin=given, stdout=subprocess.PIPE, env=environment, start_new_session=True, cwd="/"
        )
    except OSError as fault:
        raise HostError(f"{what}: {program} cannot be run", got=fault.strerror or str(fault)) from None
    assert child.stdout is not None
    value = bytearray()
    try:
        value = _read(child.stdout.fileno(), what, max_bytes, end)
        status = child.wait(timeout=max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        wipe(value)
        raise InputError(f"{what}: {program} does not end", expected=f"{DEADLINE_S:.0f} s at most") from None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.stdout.close()
        child.wait()
    return value, status
