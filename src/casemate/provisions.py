"""The public API of saved states: write a running VM's state to a file, and go on from one.

Functions return plain data, the same documents that ``--json`` prints, and raise `CasemateError`. Everything below is
imported on use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casemate.engine.sealing import Sealing

__all__ = ["StateKey", "run_from", "save"]

SAVE_SCHEMA = "casemate.save/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateKey:
    """What a saved state is sealed with. One of: ``file`` or ``descriptor`` with 32 random bytes or more; age's
    ``recipients`` to write, its ``identity`` file to read. Nothing: a plain file."""

    file: str | None = None
    descriptor: int | None = None
    recipients: Sequence[str] = ()
    identity: str | None = None


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
) -> tuple[str, tuple[str, ...]]:
    """Define a new VM that goes on from the saved state ``source``, and start it.

    Args:
        name: of the new VM; without it the saved one's, when it is free, else a made-up one.

    Returns:
        its id, and the warnings of its plan; one more when the guest was not prepared for a clone.

    Raises:
        InputError: the file is damaged, sealed otherwise, or belongs to another machine. RefusedError: a disk changed.
        CasemateError: why it did not start; then it is not defined either.
    """
    import msgspec

    from casemate.engine import ending, restore, state
    from casemate.engine import start as engine
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
        plan = engine.start(paths, definition, read_policy(Path(policy) if policy else None), saved)
    except Exception:  # an interrupt is none: then it stays defined, for it may be running
        ending.forget(paths, definition)
        raise
    warnings = plan.warnings
    if not saved.manifest.guest_prepared:
        text = "the guest did not prepare for this: until its kernel reseeds, clones draw the same random numbers"
        warnings = (*warnings, f"{text} [ent.vmgenid]")
    return definition.id, warnings


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
