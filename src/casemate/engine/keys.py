"""The host's signing key on disk: made at first use, refused when others could have read it, never shown.

The data directory (0700, made by the engine) holds one file::

    record-key.pem      0600, PKCS #8, Ed25519, unencrypted

Creation leaves either a complete key or none: the bytes go into a new file (O_EXCL, 0600), are synced, and get their
name by link(2), which unlike rename(2) fails when another process was first; then that one's key is read. A crash in
between leaves a file ``.record-key.*`` that nobody reads.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate.errors import HostError
from casemate.evidence.record import public_key_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_NAME: Final = "record-key.pem"
KEY_MAX_BYTES: Final = 4096
_NEW_KEY = "remove it, and the next launch makes a new key; records signed with the old one keep their old public key"


@dataclass(frozen=True, slots=True)
class HostKey:
    """The host's key. ``private`` signs launch records and attestation results, and is not part of any text."""

    private: Ed25519PrivateKey = field(repr=False)
    public: bytes

    def public_text(self) -> str:
        """The public key as an OpenSSH line, for people and for ``casemate verify-record``."""
        return public_key_text(self.public)


def load_or_create_key(data_dir: Path) -> HostKey:
    """The host's key, made now if there is none yet.

    Raises:
        HostError: the directory or the file is not private to the caller, cannot be written, or holds no Ed25519 key.
    """
    directory = _open_private_directory(data_dir)
    try:
        pem = _read_key_file(directory, data_dir)
        if pem is None:
            _create_key_file(directory, data_dir)
            pem = _read_key_file(directory, data_dir)
        if pem is None:
            raise HostError(f"{data_dir / KEY_NAME}: vanished while it was made", next_step="run the command again")
        return _parse(pem, data_dir / KEY_NAME)
    finally:
        os.close(directory)


def _open_private_directory(path: Path) -> int:
    """Descriptor of the data directory, which must be the user's and writable by nobody else. Close it after use."""
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"data directory {path}: {error.strerror}", next_step=f"mkdir -p -m 0700 {path}") from None
    try:
        _refuse_foreign(os.fstat(directory), str(path), forbidden=0o022, wanted="0700", next_step=f"chmod 0700 {path}")
    except HostError:
        os.close(directory)
        raise
    return directory


def _read_key_file(directory: int, data_dir: Path) -> bytes | None:
    path = data_dir / KEY_NAME
    try:
        # O_NONBLOCK: a FIFO of this name must not hang the launch; it is refused as not regular.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(KEY_NAME, flags, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"signing key {path}: {error.strerror}", next_step=_NEW_KEY) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise HostError(f"signing key {path}", got="not a regular file", next_step=_NEW_KEY)
        _refuse_foreign(status, f"signing key {path}", forbidden=0o177, wanted="0600", next_step=_NEW_KEY)
        return os.read(descriptor, KEY_MAX_BYTES + 1)
    finally:
        os.close(descriptor)


def _refuse_foreign(status: os.stat_result, what: str, *, forbidden: int, wanted: str, next_step: str) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & forbidden:
        raise HostError(
            what,
            got=f"mode {mode:04o}, uid {status.st_uid}",
            expected=f"mode {wanted}, uid {os.geteuid()}",
            next_step=next_step,
        )


def _create_key_file(directory: int, data_dir: Path) -> None:
    temporary = f".record-key.{secrets.token_hex(8)}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o600)  # whatever the umask
                file.write(_generate_pem())
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, KEY_NAME, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except FileExistsError:
            pass  # another process was first: its key is the host's key
        finally:
            os.unlink(temporary, dir_fd=directory)
        os.fsync(directory)
    except OSError as error:
        raise HostError(
            f"cannot make a signing key in {data_dir}: {error.strerror}",
            next_step=f"make {data_dir} writable and see that its file system is not full",
        ) from None


def _generate_pem() -> bytes:
    # Imported here: it takes tens of milliseconds, and only a host's first launch makes a key.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _parse(pem: bytes, path: Path) -> HostKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None) if len(pem) <= KEY_MAX_BYTES else None
    except (ValueError, TypeError):
        key = None  # the library's message could quote the file
    if not isinstance(key, Ed25519PrivateKey):
        raise HostError(f"signing key {path}", got="no Ed25519 key in PEM form", next_step=_NEW_KEY)
    return HostKey(private=key, public=key.public_key().public_bytes_raw())
