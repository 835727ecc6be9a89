"""The public API of saved states and encrypted disks: save a running VM and go on from it; encrypt, change a key.

Functions return plain data, the same documents that ``--json`` prints, and raise `CasemateError`. Everything below is
imported on use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casemate.engine.attendance import Follow, Started
    from casemate.engine.sealing import Sealing
    from casemate.spec.model import Secret

__all__ = ["DiskKey", "StateKey", "check_luks2", "encrypt_image", "rekey_image", "run_from", "save"]

SAVE_SCHEMA = "casemate.save/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateKey:
    """What a saved state is sealed with. One of: ``file`` or ``descriptor`` with 32 random bytes or more; age's
    ``recipients`` to write, its ``identity`` file to read. Nothing: a plain file."""

    file: str | None = None
    descriptor: int | None = None
    recipients: Sequence[str] = ()
    identity: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskKey:
    """Where the key of an encrypted disk comes from, as in ``[secrets]``: one of a ``file`` of mode 0600, an open
    ``descriptor``, a file for ``systemd_creds`` (under the name that it has inside, ``name``)."""

    file: str | None = None
    descriptor: int | None = None
    systemd_creds: str | None = None
    name: str = "disk-key"


def encrypt_image(
    source: str,
    target: str,
    key: DiskKey,
    *,
    image_format: str = "raw",
    report: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Write the raw disk ``source`` encrypted (LUKS1) into the new file ``target``, mode 0600; the source stays.

    Args:
        image_format: ``raw``: a LUKS file as large as the disk; ``qcow2``: LUKS inside, without what is zero.
        report: told bytes done, and of how many.

    Returns:
        the document of ``casemate image encrypt --json``.

    Raises:
        InputError, ImageError: no raw disk, a key that is none, or a target that exists.
    """
    from casemate.engine import diskcrypt
    from casemate.errors import InputError

    if image_format not in {"raw", "qcow2"}:
        raise InputError("an encrypted image", got=f"format {image_format[:40]!r}", expected="raw or qcow2")
    paths = str(Path.cwd() / source), str(Path.cwd() / target)
    return diskcrypt.encrypt(*paths, _source(key), key.name, report, image_format)


def rekey_image(path: str, old: DiskKey, new: DiskKey) -> dict[str, Any]:
    """Change the key of an encrypted disk that no VM uses; every other key of it goes too.

    Returns:
        the document of ``casemate image rekey --json``.

    Raises:
        InputError, ImageError: no such disk, in use, or the old key does not open it; then nothing has changed.
    """
    from casemate.engine import diskcrypt

    return diskcrypt.rekey(str(Path.cwd() / path), _source(old), old.name, _source(new), new.name)


def check_luks2(
    path: str,
    *,
    offset_bytes: int = 0,
    digest: str = "",
    keyslots: int = 1,
    tokens: int = 0,
    flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Whether the LUKS2 volume in a file may be opened with the header that it has.

    Args:
        offset_bytes: where the volume begins.
        digest: SHA-256 of the header that is expected; empty: any that is sound.

    Returns:
        the document of ``casemate image check-luks --json``.

    Raises:
        ImageError: it is no LUKS2 volume, or its header cannot be read.
    """
    import msgspec

    from casemate.image.luks2 import read_luks2
    from casemate.image.luks2_judge import Luks2Wanted, judge_luks2
    from casemate.image.opening import open_regular_file

    descriptor = open_regular_file(str(Path.cwd() / path), what="LUKS2 volume")
    try:
        header, size = read_luks2(descriptor, path, offset_bytes)
    finally:
        os.close(descriptor)
    faults = judge_luks2(header, size, Luks2Wanted(keyslots, tokens, digest, "", tuple(flags)))
    return {
        "schema": "casemate.luks2/1",
        "name": path,
        "accepted": not faults,
        "faults": msgspec.to_builtins(faults),
        "uuid": header.first.uuid,
        "digest": header.digest,
        "header_bytes": 2 * header.first.size_bytes,
    }


def save(
    reference: str,
    target: str,
    *,
    key: StateKey | None = None,
    leave_running: bool = False,
    report: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Save a running VM's state to the new file ``target``, mode 0600; the VM ends, unless ``leave_running``.

    Args:
        report: told the number of bytes so far.

    Returns:
        the document of ``casemate save --json``.

    Raises:
        InputError: the VM cannot be saved as it is. VmError, HostError: it went wrong; then the VM goes on.
    """
    from casemate.engine import save as engine
    from casemate.engine import state

    paths = _paths()
    definition = state.resolve(paths, reference)
    found = engine.save(
        paths,
        definition,
        str(Path.cwd() / target),
        sealing=_sealing(key),
        leave_running=leave_running,
        report=report,
    )
    return {"schema": SAVE_SCHEMA, "id": definition.id, "name": definition.name, "file": target, **found}


def run_from(
    source: str,
    *,
    key: StateKey | None = None,
    name: str | None = None,
    timeout_s: float | None = None,
    remove_on_exit: bool = False,
    policy_file: str | None = None,
    follow: Follow | None = None,
) -> Started:
    """Define a new VM that goes on from the saved state ``source``, and start it.

    Args:
        name: of the new VM; without it the saved one's, when it is free, else a made-up one.
        follow: as in `app.start`.

    Returns:
        the VM; one more warning when the guest was not prepared for a clone.

    Raises:
        InputError: the file is damaged, sealed otherwise, or belongs to another machine. RefusedError: a disk changed.
        CasemateError: why it did not start; then it is not defined either.
    """
    import msgspec

    from casemate.engine import attendance, ending, restore, state
    from casemate.engine.policy_file import read_policy

    paths = _paths()
    saved = restore.open_state(str(Path.cwd() / source), _sealing(key))
    taken = saved.spec.name is not None and state.find_by_name(paths, saved.spec.name) is not None
    wanted = name or (None if taken else saved.spec.name)
    policy = str(Path.cwd() / policy_file) if policy_file else None
    definition = state.create(
        paths,
        msgspec.structs.replace(saved.spec, name=wanted),
        timeout_s=timeout_s,
        remove_on_exit=remove_on_exit,
        policy_file=policy,
    )
    try:
        rules = read_policy(Path(policy) if policy else None)
        started = attendance.start(paths, definition, rules, saved, follow)
    except Exception:  # an interrupt is none: then it stays defined, for it may be running
        ending.forget(paths, definition)
        raise
    if saved.manifest.guest_prepared:
        return started
    text = "the guest did not prepare for this: until its kernel reseeds, clones draw the same random numbers"
    return msgspec.structs.replace(started, warnings=(*started.warnings, f"{text} [ent.vmgenid]"))


def _source(key: DiskKey) -> Secret:
    from casemate.errors import InputError
    from casemate.spec.model import Secret

    given = [value for value in (key.file, key.descriptor, key.systemd_creds) if value is not None]
    if len(given) != 1:
        raise InputError("the key of a disk", got=f"{len(given)} sources", expected="one")
    file = str(Path.cwd() / key.file) if key.file is not None else None
    creds = str(Path.cwd() / key.systemd_creds) if key.systemd_creds is not None else None
    return Secret(file=file, descriptor=key.descriptor, systemd_creds=creds)


def _sealing(key: StateKey | None) -> Sealing:
    from casemate.engine.sealing import Sealing
    from casemate.errors import InputError
    from casemate.spec.model import Secret

    given = key or StateKey()
    kinds = [given.file is not None, given.descriptor is not None, bool(given.recipients), given.identity is not None]
    if sum(kinds) > 1:
        raise InputError("a saved state has one kind of key", got=f"{sum(kinds)} kinds")
    source = None
    if given.file is not None:
        source = Secret(file=str(Path.cwd() / given.file))
    elif given.descriptor is not None:
        source = Secret(descriptor=given.descriptor)
    identity = str(Path.cwd() / given.identity) if given.identity is not None else None
    return Sealing(source, tuple(given.recipients), identity)


def _paths() -> Any:
    from casemate.engine.paths import default_paths, prepare

    paths = default_paths()
    prepare(paths)
    return paths
