"""The public API: what the command line does, as functions. The only place that wires layers together.

VMs belong to the calling user (root's are root's). A ``reference`` is a VM's name, its id, or a unique prefix of the
id. Functions return plain data, the same documents that ``--json`` prints (docs/json.md), and raise `CasemateError`.
Everything below is imported on use: a command pays only for what it needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casemate.engine.attendance import Follow, Started
    from casemate.engine.control import Attachment, EndWatch
    from casemate.engine.paths import Paths
    from casemate.engine.state import Definition
    from casemate.spec.model import Spec

__all__ = [
    "Overrides",
    "attach",
    "create",
    "doctor",
    "events",
    "inspect",
    "kill",
    "list_vms",
    "load_target",
    "logs",
    "pause",
    "plan",
    "prove",
    "remove",
    "restart",
    "run",
    "show_key",
    "spec_schema",
    "start",
    "stats",
    "stop",
    "unit",
    "unpause",
    "verify_records",
    "watch_end",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What the command line lays over a specification; None and empty mean "as the specification says".

    The words are those of the specification; ``memory_mib`` is MiB or a size with a unit, ``disks`` are
    ``PATH[:OPTION[,OPTION]]``, ``publish`` are ``[ADDR:]HOST:GUEST[/tcp|udp]``. Relative paths start from the working
    directory.
    """

    name: str | None = None
    machine_type: str | None = None
    memory_mib: int | str | None = None
    vcpus: int | None = None
    accel: str | None = None
    kernel: str | None = None
    initrd: str | None = None
    cmdline: str | None = None
    firmware: str | None = None
    net: str | None = None
    egress: str | None = None
    ipv6: bool | None = None
    allow: Sequence[str] = ()
    publish: Sequence[str] = ()
    disks: Sequence[str] = ()
    saveable: bool | None = None


def load_target(
    target: str | None, overrides: Overrides | None = None, *, report: Callable[[str], None] = lambda _: None
) -> Spec:
    """The specification of ``builtin``, of a TOML file, or of a disk image (told by content).

    Args:
        target: None when ``overrides.kernel`` says what to boot.
        report: told one line per long step (building the built-in guest).

    Raises:
        InputError: with all faults and the next step. HostError: the built-in guest cannot be built.
    """
    from casemate.engine import target as targets

    flags = asdict(overrides or Overrides())
    return targets.load_target(target, flags, paths=_paths(), base_dir=Path.cwd(), report=report)


def plan(spec: Spec, *, policy_file: str | None = None) -> dict[str, Any]:
    """Everything about one launch of ``spec``, with nothing started and nothing left behind.

    Returns:
        the document of ``casemate plan --json``; ``refused_by`` names the launch controls that would stop it.

    Raises:
        CasemateError: the launch would fail with the same error.
    """
    from casemate.engine import dryrun

    return dryrun.plan_launch(spec, _paths(), policy_file)


def create(
    spec: Spec, *, timeout_s: float | None = None, remove_on_exit: bool = False, policy_file: str | None = None
) -> str:
    """Define a VM without starting it; the launch is planned first, so that what cannot start is not defined.

    Args:
        timeout_s: every run is killed after this long (exit code 6).
        remove_on_exit: delete the VM when its run ends.
        policy_file: host policy for its launches, in place of /etc/casemate/policy.toml.

    Returns:
        its id.

    Raises:
        InputError: the name is taken. RefusedError: a control would refuse it. Errors of `plan`.
    """
    from casemate.engine import dryrun

    paths = _paths()
    dryrun.check_launch(spec, paths, policy_file)
    return _define(paths, spec, timeout_s, remove_on_exit, policy_file).id


def run(
    spec: Spec,
    *,
    timeout_s: float | None = None,
    remove_on_exit: bool = False,
    policy_file: str | None = None,
    follow: Follow | None = None,
) -> Started:
    """Define and start a VM; returns when the guest has been released. Arguments as in `create`, and of `start`.

    Raises:
        CasemateError: why it did not start; then it is not defined either.
    """
    paths = _paths()
    definition = _define(paths, spec, timeout_s, remove_on_exit, policy_file)
    try:
        return _start(paths, definition, follow=follow)
    except Exception:  # an interrupt is none: then it stays defined, for it may be running
        from casemate.engine import ending

        ending.forget(paths, definition)
        raise


def start(reference: str, *, policy_file: str | None = None, follow: Follow | None = None) -> Started:
    """Start a defined VM; returns when the guest has been released.

    Args:
        follow: the result's ``watch`` learns the end of the run, its ``console`` ("console") carries all that the guest
            prints: even of a guest that powers off at once, in a VM that removes itself.

    Raises:
        InputError: no such VM, or it runs already. CasemateError: why it did not start.
    """
    paths, definition = _find(reference)
    return _start(paths, definition, policy_file, follow)


def restart(reference: str, *, grace_s: float = 10.0) -> Started:
    """Stop it if it runs, then start it."""
    stop(reference, grace_s=grace_s)
    return start(reference)


def stop(reference: str, *, grace_s: float = 10.0, wait: bool = True) -> None:
    """Press the power button and kill the VM if it still runs after ``grace_s``. A VM that does not run is left alone.

    Raises:
        InputError: no such VM. VmError: its supervisor does not answer.
    """
    from casemate.engine import ending

    ending.end_run(*_find(reference), "stop", wait=wait, grace_s=grace_s)


def kill(reference: str, *, wait: bool = True) -> None:
    """Kill the emulator now; the run ends with code 5.

    Raises:
        InputError: no such VM, or it is not running.
    """
    from casemate.engine import control, ending

    paths, definition = _find(reference)
    if not ending.is_alive(paths, definition):
        raise control.not_running(paths, definition)
    ending.end_run(paths, definition, "kill", wait=wait)


def remove(reference: str, *, force: bool = False) -> None:
    """Delete a VM with its logs and UEFI variables. Disk images and launch records stay.

    Args:
        force: kill it first if it runs.

    Raises:
        InputError: no such VM, or it runs and ``force`` is False.
    """
    from casemate.engine import ending

    ending.remove(*_find(reference), force=force)


def pause(reference: str) -> None:
    """Stop the vCPUs; the VM keeps its memory. Raises InputError if it is not running."""
    _request(reference, "pause")


def unpause(reference: str) -> None:
    """Let the vCPUs of a paused VM run. Raises InputError if it is not running."""
    _request(reference, "unpause")


def watch_end(reference: str) -> EndWatch:
    """A watch on the VM's present run: ``wait()`` gives how it ended (reason, code), ``close()`` ends the watch.

    Made while a VM runs, it also learns the end of one that deletes itself.
    """
    from casemate.engine.control import EndWatch

    return EndWatch(*_find(reference))


def list_vms() -> list[dict[str, Any]]:
    """All VMs of this user, oldest first: the rows of ``casemate ps --json``."""
    from casemate.engine import rows, state

    paths = _paths()
    return [rows.vm_row(state.look(paths, definition)) for definition in state.definitions(paths)]


def inspect(reference: str) -> dict[str, Any]:
    """Everything about one VM: the document of ``casemate inspect --json``."""
    from casemate.engine import rows, state

    paths, definition = _find(reference)
    return rows.inspect_view(paths, state.look(paths, definition))


def logs(
    reference: str, *, emulator: bool = False, tail_lines: int | None = None, follow: bool = False
) -> Iterator[bytes]:
    """The console's log, or the emulator's own messages, in pieces. Bytes of the guest's choosing: hostile.

    Args:
        follow: go on until the VM ends.
    """
    return _log(reference, "emulator.log" if emulator else "console.log", tail_lines, follow)


def events(reference: str, *, tail_lines: int | None = None, follow: bool = False) -> Iterator[bytes]:
    """The VM's events as lines of JSON, in pieces of whole or partial lines."""
    return _log(reference, "events.jsonl", tail_lines, follow)


def attach(reference: str) -> Attachment:
    """Connect to the console of a running VM."""
    from casemate.engine import control

    return control.attach(*_find(reference))


def stats(reference: str, *, interval_s: float = 0.5) -> dict[str, Any]:
    """What a running VM uses of CPU, memory, processes and disks: one entry of ``casemate stats --json``."""
    from casemate.engine import state, usage

    paths, definition = _find(reference)
    return usage.vm_usage(paths, state.look(paths, definition), interval_s)


def unit(reference: str) -> str:
    """A systemd unit that starts and stops the VM."""
    from casemate.engine.unit import systemd_unit

    paths, definition = _find(reference)
    return systemd_unit(definition, paths, rootless=os.geteuid() != 0)


def doctor() -> dict[str, Any]:
    """What this host can do, and how to mend what it cannot: the document of ``casemate doctor --json``."""
    from casemate.engine.doctor import diagnose

    return diagnose(_paths())


def prove(
    target: str,
    *,
    without: str | None = None,
    quick: bool = False,
    policy_file: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Put a hostile probe into the wall of a defined VM, or of what `load_target` takes, and list what it reached.

    A name of a VM wins over a file of the same name. A running VM is not touched: its wall is built a second time.

    Args:
        without: leave this one layer of the wall out, to see what the others stop.
        quick: leave out what takes long.
        report: told the progress.

    Returns:
        the document of ``casemate prove --json``; ``ok`` is False when something undeclared was reached.
    """
    from casemate.engine import proving

    return proving.prove_target(
        target, lambda: load_target(target, report=report), _paths(), without, quick, policy_file, report
    )


def show_key() -> str:
    """The public key that this host signs launch records with, as an OpenSSH line; made at first use."""
    from casemate.engine.keys import load_or_create_key

    return load_or_create_key(Path(_paths().data)).public_text()


def verify_records(files: Sequence[str] = (), *, key: str | None = None) -> dict[str, Any]:
    """Verify launch records: the given files and those of the VMs named, or, without any, this host's whole chain.

    Args:
        key: an OpenSSH public key line, or the path of a file that holds one; None takes this host's own key.

    Returns:
        the document of ``casemate verify-record --json``; ``ok`` is False when a record does not hold.
    """
    from casemate.engine import verification

    return verification.verify(_paths(), files, key)


def spec_schema() -> dict[str, Any]:
    """The JSON Schema of specifications."""
    from casemate.spec import schema

    return schema.spec_schema()


def _paths() -> Paths:
    from casemate.engine.paths import default_paths, prepare

    paths = default_paths()
    prepare(paths)
    return paths


def _find(reference: str) -> tuple[Paths, Definition]:
    from casemate.engine import state

    paths = _paths()
    return paths, state.resolve(paths, reference)


def _define(
    paths: Paths, spec: Spec, timeout_s: float | None, remove_on_exit: bool, policy_file: str | None
) -> Definition:
    from casemate.engine import state

    policy = str(Path.cwd() / policy_file) if policy_file else None
    return state.create(paths, spec, timeout_s=timeout_s, remove_on_exit=remove_on_exit, policy_file=policy)


def _start(
    paths: Paths, definition: Definition, policy_file: str | None = None, follow: Follow | None = None
) -> Started:
    from casemate.engine import attendance
    from casemate.engine.policy_file import read_policy

    chosen = policy_file or definition.policy_file
    return attendance.start(paths, definition, read_policy(Path(chosen) if chosen else None), follow=follow)


def _request(reference: str, verb: str) -> None:
    from casemate.engine import control

    control.request(*_find(reference), verb)


def _log(reference: str, name: str, tail_lines: int | None, follow: bool) -> Iterator[bytes]:
    from casemate.engine.ending import is_alive
    from casemate.engine.follow import read_ring

    paths, definition = _find(reference)
    path = f"{paths.vm_data(definition.id)}/{name}"
    over = (lambda: not is_alive(paths, definition)) if follow else None
    return read_ring(path, tail_lines, over)
