"""Reading the host's policy file: opened once, checked through the descriptor, bounded.

``/etc/casemate/policy.toml`` counts when root owns it and nobody else can write it. ``--policy FILE`` may also be the
caller's own. No file at the default place is the closed default: nothing may be waived.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Final

from casemate.controls.policy import HostPolicy, parse_policy
from casemate.errors import InputError

DEFAULT_POLICY_PATH: Final = Path("/etc/casemate/policy.toml")
POLICY_MAX_BYTES: Final = 65_536


def read_policy(explicit: Path | None = None, *, default: Path = DEFAULT_POLICY_PATH) -> HostPolicy:
    """The policy in force.

    Args:
        explicit: the file given with ``--policy``; it must exist and be root's or the caller's.
        default: where the host's own policy lies; it must be root's, and may be missing.

    Raises:
        InputError: the file is missing (explicit only), not a regular file, not from a trusted owner, writable by
            others, too large or not UTF-8.
        SpecError: its content is faulty.
    """
    if explicit is not None:
        text = _read_trusted(explicit, owners={0, os.geteuid()})
        if text is None:
            raise InputError(
                f"policy {explicit}: there is no such file", next_step="check the path given with --policy"
            )
        return parse_policy(text, str(explicit))
    text = _read_trusted(default, owners={0})
    return HostPolicy() if text is None else parse_policy(text, str(default))


def _read_trusted(path: Path, *, owners: Collection[int]) -> str | None:
    """The file's text; None when there is no such file."""
    try:
        # O_NONBLOCK: a FIFO must not hang the command; it is refused as not regular.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"policy {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        status = os.fstat(descriptor)
        _refuse_untrusted(path, status, owners)
        data = b""
        while len(data) <= POLICY_MAX_BYTES and (chunk := os.read(descriptor, POLICY_MAX_BYTES + 1 - len(data))):
            data += chunk
    finally:
        os.close(descriptor)
    if len(data) > POLICY_MAX_BYTES:
        raise InputError(f"policy {path}", got="a larger file", expected=f"at most {POLICY_MAX_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"policy {path}", got=f"no UTF-8 at byte {error.start}", expected="UTF-8 text") from None


def _refuse_untrusted(path: Path, status: os.stat_result, owners: Collection[int]) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"policy {path}", got="not a regular file", expected="a TOML file")
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in owners or mode & 0o022:
        names = " or ".join("root" if uid == 0 else f"uid {uid}" for uid in sorted(owners))
        raise InputError(
            f"policy {path}",
            got=f"owner uid {status.st_uid}, mode {mode:04o}",
            expected=f"owner {names}, and writable by the owner only: who writes it decides what may be waived",
            next_step=f"chown root:root {path} && chmod 0644 {path}",
        )
