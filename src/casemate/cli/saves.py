"""save: a running VM's state to a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from casemate import provisions
from casemate.cli import output
from casemate.errors import ExitCode


def key_of(arguments: argparse.Namespace) -> provisions.StateKey:
    """The flags of `args_save.add_key`, and age's of either direction."""
    return provisions.StateKey(
        file=arguments.key_file,
        descriptor=arguments.key_fd,
        recipients=getattr(arguments, "age_recipient", ()),
        identity=getattr(arguments, "age_identity", None),
    )


def save(arguments: argparse.Namespace) -> int:
    """Write the state; the VM ends unless it is left running."""
    with _progress(f"saving {arguments.vm}") as report:
        found = provisions.save(
            arguments.vm,
            arguments.file,
            key=key_of(arguments),
            leave_running=arguments.leave_running,
            report=report,
        )
    if not found["prepared"]:
        output.warn(
            "the guest does not listen on its clone port: until its kernel reseeds, clones draw the same numbers"
        )
    if arguments.json:
        output.print_json(found)
    else:
        print(arguments.file)
    return ExitCode.DONE


@contextmanager
def _progress(text: str) -> Iterator[Callable[[int], None]]:
    """Bytes so far, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(output.plain(text), total=None)
        yield lambda done: progress.update(task, completed=done)
