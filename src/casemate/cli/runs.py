"""run, create, start, restart, console: commands after which a guest runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from casemate import app
from casemate.cli import life, output
from casemate.errors import CasemateError, ExitCode, InputError

if TYPE_CHECKING:
    from casemate.cli.console import Interrupts
    from casemate.engine.attendance import Follow, Started
    from casemate.engine.control import Attachment, EndWatch
    from casemate.engine.state import Exit
    from casemate.spec.model import Spec

Begin = Callable[[], "Started"]
RUN_SCHEMA = "casemate.run/1"
CREATE_SCHEMA = "casemate.create/1"
INTERRUPTED = 130
POLL_S = 0.5


def overrides(arguments: argparse.Namespace) -> app.Overrides:
    """The flags of `parser._overrides`."""
    return app.Overrides(
        name=arguments.name,
        machine_type=arguments.machine,
        memory_mib=arguments.memory_mib,
        vcpus=arguments.vcpus,
        accel=arguments.accel,
        kernel=arguments.kernel,
        initrd=arguments.initrd,
        cmdline=arguments.cmdline,
        firmware=arguments.firmware,
        net=arguments.net,
        egress=arguments.egress,
        ipv6=arguments.ipv6,
        allow=arguments.allow,
        publish=arguments.publish,
        disks=arguments.disk,
        saveable=arguments.saveable,
    )


def load(arguments: argparse.Namespace) -> Spec:
    """The specification that the arguments describe; says so while the built-in guest is built."""
    with output.working("the guest named builtin") as report:
        return app.load_target(arguments.target, overrides(arguments), report=report)


def run(arguments: argparse.Namespace) -> int:
    """Define and start; detached or with the console attached."""
    from casemate.cli.console import Interrupts

    follow: Follow | None = "end" if arguments.json else "console"
    if arguments.detach:
        follow = None
    begin = (_from_spec if arguments.from_file is None else _from_state)(arguments, follow)
    with Interrupts() as interrupts:
        started = begin()
        _warn(started.warnings)
        if not arguments.detach:
            return _foreground(started, interrupts, json=arguments.json)
        if interrupts.take():
            with contextlib.suppress(InputError):  # it has ended and removed itself
                app.remove(started.id, force=True)
            return INTERRUPTED
    if arguments.json:
        words = {"id": started.id, "name": started.name, "warnings": list(started.warnings)}
        output.print_json({"schema": RUN_SCHEMA, **words})
    else:
        print(started.id)
    return ExitCode.DONE


def _from_spec(arguments: argparse.Namespace, follow: Follow | None) -> Begin:
    spec = load(arguments)
    return lambda: app.run(
        spec,
        timeout_s=arguments.timeout_s,
        remove_on_exit=arguments.rm,
        policy_file=arguments.policy,
        follow=follow,
    )


def _from_state(arguments: argparse.Namespace, follow: Follow | None) -> Begin:
    """`run --from`: the specification is in the file; of the flags that would change it only ``--name`` is left."""
    from casemate import provisions
    from casemate.cli.saves import key_of

    others = _given(overrides(arguments))
    if arguments.target is not None:
        others.insert(0, arguments.target)
    if others:
        raise InputError(
            "a saved state brings its own specification", got=" ".join(others), expected="--from FILE, --name, --rm, -d"
        )
    return lambda: provisions.run_from(
        arguments.from_file,
        key=key_of(arguments),
        name=arguments.name,
        timeout_s=arguments.timeout_s,
        remove_on_exit=arguments.rm,
        policy_file=arguments.policy,
        follow=follow,
    )


def _given(flags: app.Overrides) -> list[str]:
    """Flags, other than ``--name``, that were given."""
    import dataclasses

    return [
        f"--{field.name.replace('_', '-')}"
        for field in dataclasses.fields(flags)
        if field.name != "name" and getattr(flags, field.name)
    ]


def create(arguments: argparse.Namespace) -> int:
    """Define only."""
    spec = load(arguments)
    vm_id = app.create(spec, timeout_s=arguments.timeout_s, remove_on_exit=arguments.rm, policy_file=arguments.policy)
    if arguments.json:
        output.print_json({"schema": CREATE_SCHEMA, "id": vm_id, "name": app.inspect(vm_id)["name"]})
    else:
        print(vm_id)
    return ExitCode.DONE


def start(arguments: argparse.Namespace) -> int:
    """Start a defined VM."""
    from casemate.cli.console import Interrupts

    follow: Follow | None = "end" if arguments.foreground else None
    if arguments.attach:
        follow = "console"
    with Interrupts() as interrupts:
        started = app.start(arguments.vm, policy_file=arguments.policy, follow=follow)
        _warn(started.warnings)
        if follow is not None:
            _tell_systemd()
            return _foreground(started, interrupts, json=False)
        if interrupts.take():
            with contextlib.suppress(InputError):
                app.stop(started.id, grace_s=0)
            return INTERRUPTED
    print(arguments.vm)
    return ExitCode.DONE


def restart(arguments: argparse.Namespace) -> int:
    """Stop and start."""

    def again(name: str) -> str:
        _warn(app.restart(name, grace_s=arguments.time).warnings)
        return name

    return life.each(life.named(arguments, life.ALIVE), again)


def console(arguments: argparse.Namespace) -> int:
    """Attach to a running VM's console."""
    from casemate.cli.console import Interrupts, Outcome, session

    document = app.inspect(arguments.vm)
    came: list[int] = []

    def leave(number: int) -> bool:
        came.append(number)
        return True

    with Interrupts() as interrupts:
        interrupts.stay()
        attachment = app.attach(document["id"])
        if os.isatty(0):
            output.note(f"console of {document['name']}; Ctrl-] leaves")
        outcome = session(attachment, interrupts, leave)
    if os.isatty(0):
        output.note(f"left the console of {document['name']}" if outcome is Outcome.LEFT else "the console ended")
    return INTERRUPTED if signal.SIGINT in came else ExitCode.DONE


def _foreground(started: Started, interrupts: Interrupts, *, json: bool) -> int:
    """Stay with a running VM until it ends; its exit code."""
    from casemate.cli.console import Outcome

    name, watch = started.name, started.watch
    assert watch is not None
    interrupts.stay()
    stopper = _Stopper(started.id, interrupts.had_terminal)
    try:
        if started.console is not None and _show_console(started.console, interrupts, stopper) is Outcome.LEFT:
            output.note(f"left {name}, which goes on: casemate console {name}, casemate stop {name}")
            return ExitCode.DONE
        ended = _wait(watch, interrupts, stopper)
    finally:
        watch.close()
    if json:
        how = {"reason": ended.reason, "code": ended.code, "detail": ended.detail, "finished_at": ended.finished_at}
        output.print_json({"schema": RUN_SCHEMA, "id": started.id, "name": name, "exit": how})
    elif ended.code != ExitCode.DONE:
        output.note(f"{name}: {ended.reason}" + (f": {ended.detail}" if ended.detail else ""))
    return ended.code


def _show_console(attachment: Attachment, interrupts: Interrupts, stopper: _Stopper) -> object:
    from casemate.cli.console import Outcome, session

    if os.isatty(0):
        output.note("console attached; Ctrl-] leaves it")
    try:
        return session(attachment, interrupts, stopper)
    except BrokenPipeError:
        output.silence_stdout()
        stopper(signal.SIGTERM)
        return Outcome.ENDED


def _wait(watch: EndWatch, interrupts: Interrupts, stopper: _Stopper) -> Exit:
    while True:
        ended = watch.wait(POLL_S)
        if ended is not None:
            return ended
        for number in interrupts.take():
            stopper(number)


class _Stopper:
    """Signals of a foreground VM: the first stops it, the second kills it; a lost terminal only leaves it."""

    def __init__(self, vm_id: str, had_terminal: bool) -> None:
        self._vm_id = vm_id
        self._had_terminal = had_terminal
        self._asked = False

    def __call__(self, number: int) -> bool:
        """Act on one signal; True means leave the console."""
        if number == signal.SIGHUP and self._had_terminal:
            return True
        try:
            if self._asked:
                app.kill(self._vm_id, wait=False)
            else:
                output.note("stopping the VM; once more kills it")
                app.stop(self._vm_id, wait=False)
        except CasemateError:
            pass  # it has just ended
        self._asked = True
        return False


def _warn(warnings: Iterable[str]) -> None:
    for text in warnings:
        output.warn(text)


def _tell_systemd() -> None:
    """sd_notify(3) with READY=1, when systemd waits for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # The VM runs by now: that systemd cannot be told must not look like a start that failed.
    with (
        contextlib.suppress(OSError, ValueError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify,
    ):
        notify.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        notify.sendall(b"READY=1\n")
