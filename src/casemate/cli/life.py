"""stop, kill, rm, pause, unpause, wait: one action on each of several VMs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from casemate import app
from casemate.cli import output
from casemate.errors import CasemateError, ExitCode, InputError, VmTimeoutError

ALIVE = frozenset({"starting", "running", "paused", "stopping", "elsewhere"})
ANY = frozenset({*ALIVE, "created", "exited", "damaged"})


def named(arguments: argparse.Namespace, states: frozenset[str]) -> list[str]:
    """The VMs that the command is about: those named, or with --all those in one of ``states``."""
    if arguments.all and arguments.vms:
        raise InputError("--all and names exclude each other")
    if arguments.all:
        return [row["id"] for row in app.list_vms() if row["state"] in states]
    if not arguments.vms:
        raise InputError(
            f"{arguments.command} needs a VM", expected="names, ids or --all", next_step="casemate ps -a lists them"
        )
    return list(arguments.vms)


def each(names: list[str], action: Callable[[str], str]) -> int:
    """Do ``action`` for every VM and print what it returns; go on after an error, and report the first one's code."""
    code = ExitCode.DONE
    for name in names:
        try:
            print(action(name), flush=True)
        except CasemateError as error:
            output.print_error(error)
            code = code or error.exit_code
    return code


def _echo(action: Callable[[str], None]) -> Callable[[str], str]:
    """podman and docker print back the name that was given."""

    def act(name: str) -> str:
        action(name)
        return name

    return act


def stop(arguments: argparse.Namespace) -> int:
    """Power button, then kill."""
    return each(named(arguments, ALIVE), _echo(lambda name: app.stop(name, grace_s=arguments.time)))


def kill(arguments: argparse.Namespace) -> int:
    """Kill at once."""
    return each(named(arguments, ALIVE), _echo(app.kill))


def remove(arguments: argparse.Namespace) -> int:
    """Delete."""
    states = ANY if arguments.force else ANY - ALIVE
    return each(named(arguments, states), _echo(lambda name: app.remove(name, force=arguments.force)))


def pause(arguments: argparse.Namespace) -> int:
    """Stop the vCPUs."""
    return each(named(arguments, frozenset({"running"})), _echo(app.pause))


def unpause(arguments: argparse.Namespace) -> int:
    """Let the vCPUs run."""
    return each(named(arguments, frozenset({"paused"})), _echo(app.unpause))


def wait(arguments: argparse.Namespace) -> int:
    """Print each VM's exit code when it has ended."""
    end_s = None if arguments.timeout_s is None else time.monotonic() + arguments.timeout_s
    names = named(arguments, ALIVE)
    watches = {}
    try:
        for name in names:  # all before the first wait: the end of none is missed
            watches[name] = app.watch_end(name)

        def code_of(name: str) -> str:
            left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
            ended = watches[name].wait(left_s)
            if ended is None:
                raise VmTimeoutError(
                    f"{name} still runs", got=f"{arguments.timeout_s:g} s passed", next_step=f"casemate stop {name}"
                )
            return str(ended.code)

        return each(names, code_of)
    finally:
        for watch in watches.values():
            watch.close()
