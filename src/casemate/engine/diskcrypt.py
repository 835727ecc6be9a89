"""Encrypted disks as files: make one, change its key. The key is text, because the emulator takes it as text."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import Any

from casemate.engine import files
from casemate.engine.provisioning import checked_key
from casemate.engine.secret_sources import read_secret
from casemate.errors import HostError, InputError
from casemate.image.headers import inspect_image
from casemate.image.luks import LuksHeader, inspect_luks
from casemate.image.luks_keys import encrypt_disk
from casemate.image.luks_keys import rekey as change_key
from casemate.image.opening import open_image
from casemate.image.qcow2_luks import encrypt_to_qcow2, inspect_qcow2_luks
from casemate.plan.provisioning import DISK_KEY_MAX_BYTES
from casemate.provision.credentials import wipe
from casemate.spec.model import Secret

ENCRYPT_SCHEMA = "casemate.image-encrypt/1"
REKEY_SCHEMA = "casemate.image-rekey/1"
QCOW2_MAGIC = b"QFI\xfb"
KEY_MIN_BYTES = 20
"""A passphrase of this length at least: the derivation makes guessing slow, not a short word long."""


def encrypt(
    source: str,
    target: str,
    key: Secret,
    key_name: str,
    report: Callable[[int, int], None],
    image_format: str = "raw",
) -> dict[str, Any]:
    """See `provisions.encrypt_image`. Paths are absolute."""
    write = {"raw": encrypt_disk, "qcow2": encrypt_to_qcow2}[image_format]
    plain = open_image(source)
    temporary = f"{target}.{os.urandom(6).hex()}.tmp"
    secret = bytearray()
    try:
        size = inspect_image(plain, source, "raw").virtual_size_bytes
        if os.path.lexists(target):
            raise InputError(f"{target!r} is there already", next_step="choose another name, or remove it")
        secret = _key(key, key_name)
        out = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            write(plain, out, secret, lambda done: report(done, size))
            os.fsync(out)
            os.link(temporary, target)  # unlike a rename it never replaces what came there meanwhile
        finally:
            os.close(out)
    except OSError as fault:
        raise HostError(f"cannot write {target!r}", got=fault.strerror or str(fault)) from None
    finally:
        wipe(secret)
        os.close(plain)
        files.unlink_if_there(temporary)
    cipher = "aes-xts-plain64"
    return {"schema": ENCRYPT_SCHEMA, "file": target, "format": image_format, "bytes": size, "cipher": cipher}


def rekey(path: str, old: Secret, old_name: str, new: Secret, new_name: str) -> dict[str, Any]:
    """See `provisions.rekey_image`."""
    descriptor = open_image(path, writable=True)
    first, second = bytearray(), bytearray()
    try:
        header, at = _header(descriptor, path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"disk {path!r} is in use by a VM", next_step="casemate ps shows which") from None
        first = read_secret(old_name, old, DISK_KEY_MAX_BYTES)
        second = _key(new, new_name)
        if first == second:
            raise InputError(f"disk {path!r}", got="a new key that is the old one")
        gone = change_key(descriptor, header, first, second, path, at=at)
    except OSError as fault:
        raise HostError(f"cannot write {path!r}", got=fault.strerror or str(fault)) from None
    finally:
        wipe(first)
        wipe(second)
        os.close(descriptor)
    return {"schema": REKEY_SCHEMA, "file": path, "removed_keys": gone}


def _header(descriptor: int, path: str) -> tuple[LuksHeader, int]:
    """The LUKS header and where it begins: in a qcow2 image that is not the start of the file."""
    if os.pread(descriptor, 4, 0) == QCOW2_MAGIC:
        header, at, _ = inspect_qcow2_luks(descriptor, path)
        return header, at
    return inspect_luks(descriptor, path)[0], 0


def _key(source: Secret, name: str) -> bytearray:
    value = checked_key(name, read_secret(name, source, DISK_KEY_MAX_BYTES))
    if len(value) < KEY_MIN_BYTES:
        wipe(value)
        raise InputError(
            f"secret {name}",
            got=f"{len(value)} bytes",
            expected=f"{KEY_MIN_BYTES} or more",
            next_step="head -c 32 /dev/urandom | base64 -w0 >FILE; chmod 600 FILE",
        )
    return value
