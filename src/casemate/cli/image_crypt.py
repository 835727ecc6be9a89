"""image encrypt, image rekey."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from casemate import provisions
from casemate.cli import output
from casemate.errors import ExitCode


def encrypt(arguments: argparse.Namespace) -> int:
    """Write a raw disk encrypted."""
    with _progress(f"encrypting {arguments.source}") as report:
        key = _key(arguments, "")
        found = provisions.encrypt_image(
            arguments.source, arguments.target, key, image_format=arguments.format, report=report
        )
    if arguments.json:
        output.print_json(found)
    else:
        print(arguments.target)
    return ExitCode.DONE


def rekey(arguments: argparse.Namespace) -> int:
    """Change the key."""
    found = provisions.rekey_image(arguments.file, _key(arguments, ""), _key(arguments, "new_"))
    if arguments.json:
        output.print_json(found)
    else:
        print(arguments.file)
    return ExitCode.DONE


def check_luks(arguments: argparse.Namespace) -> int:
    """Judge a LUKS2 header; exit 1 when it must not be opened."""
    found = provisions.check_luks2(
        arguments.file,
        offset_bytes=arguments.offset,
        digest=arguments.expect_digest,
        keyslots=arguments.keyslots,
        tokens=arguments.tokens,
        flags=arguments.flag,
    )
    if arguments.json:
        output.print_json(found)
    else:
        print(f"{arguments.file}: {'accepted' if found['accepted'] else 'refused'}")
        for fault in found["faults"]:
            print(output.plain(f"  {fault['message']} [{fault['code']}]"))
        print(
            output.plain(
                f"  uuid {found['uuid']}\n  digest {found['digest']} of {found['header_bytes']} bytes", keep_lines=True
            )
        )
    return ExitCode.DONE if found["accepted"] else ExitCode.FINDINGS


def _key(arguments: argparse.Namespace, prefix: str) -> provisions.DiskKey:
    def given(name: str) -> object:
        return getattr(arguments, f"{prefix}key_{name}")

    file, descriptor, creds, name = given("file"), given("fd"), given("creds"), given("name")
    return provisions.DiskKey(
        file=file if isinstance(file, str) else None,
        descriptor=descriptor if isinstance(descriptor, int) else None,
        systemd_creds=creds if isinstance(creds, str) else None,
        name=str(name),
    )


@contextmanager
def _progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, of: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(output.plain(text), total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)
