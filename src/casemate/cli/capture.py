"""capture."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, Final

from casemate import assess
from casemate.cli import output
from casemate.cli.progress import progress_bar
from casemate.errors import ExitCode, InputError

if TYPE_CHECKING:
    from casemate.audit.capture_collect import Taken

SCHEMA: Final = "casemate.capture/1"


def capture(arguments: argparse.Namespace) -> int:
    """Collect, show, ask, write; exit 1 when the user says no."""
    if arguments.script:
        if arguments.output or arguments.json:
            raise InputError("--script prints a script and takes neither a file nor --json")
        print(assess.capture_script(), end="")
        return ExitCode.DONE
    asks = not (arguments.list or arguments.yes)
    if not arguments.output and not arguments.list:
        raise InputError("there is no file to write to", expected="OUT.tar", next_step="casemate capture --list")
    if arguments.output and arguments.list:
        raise InputError(
            "--list writes nothing", got=arguments.output, next_step=f"casemate capture {arguments.output}"
        )
    if asks and (arguments.json or not sys.stdin.isatty()):
        raise InputError(
            "nobody can be asked whether to write it",
            next_step=f"look at casemate capture --list, then: casemate capture --yes {arguments.output}",
        )
    with progress_bar() as progress:
        taken = assess.collect_capture(progress=progress)
    if arguments.list:
        return _show(taken, as_json=arguments.json)
    if asks:
        _show(taken, as_json=False)
        if not _agreed(arguments.output):
            output.note("nothing was written")
            return ExitCode.FINDINGS
    size = assess.write_capture(taken, arguments.output)
    if arguments.json:
        output.print_json({**_document(taken), "output": arguments.output, "size_bytes": size})
    else:
        unread = len(taken.manifest.unread)
        print(
            f"{output.plain(arguments.output)}: {len(taken.files)} files of {output.plain(taken.manifest.host)},"
            f" {size} bytes" + (f"; {unread} could not be read, and stay unknown" if unread else "")
        )
    return ExitCode.DONE


def _agreed(path: str) -> bool:
    sys.stderr.write(f"Write this to {output.plain(path)}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _show(taken: Taken, *, as_json: bool) -> int:
    if as_json:
        output.print_json(_document(taken))
        return ExitCode.DONE
    manifest = taken.manifest
    for path in sorted((*taken.files, *taken.links)):
        if path in taken.links:
            print(f"     link  {output.plain(path)} -> {output.plain(taken.links[path])}")
        else:
            without = manifest.filtered.get(path)
            print(f"{len(taken.files[path]):9}  {output.plain(path)}{f'  (without {without})' if without else ''}")
    for name, answer in sorted(manifest.answers.items()):
        print("\n".join(f"{name:>9}  {output.plain(line)}" for line in answer.splitlines()))
    for path, why in sorted(manifest.unread.items()):
        print(f" not read  {output.plain(path)}  ({why})")
    names = sum(map(len, manifest.names.values()))
    total = sum(map(len, taken.files.values()))
    print(
        f"{len(taken.files)} files with {total} bytes, {len(taken.links)} links, {names} names in"
        f" {len(manifest.names)} directories, type, mode and owner of {len(manifest.status)} paths,"
        f" {len(manifest.unread)} not read"
    )
    return ExitCode.DONE


def _document(taken: Taken) -> dict[str, Any]:
    manifest = taken.manifest
    return {
        "schema": SCHEMA,
        "host": manifest.host,
        "time": manifest.time,
        "tool": manifest.tool,
        "uid": manifest.uid,
        "files": [
            {"path": path, "size_bytes": len(data), "without": manifest.filtered.get(path, "")}
            for path, data in sorted(taken.files.items())
        ],
        "links": [{"path": path, "target": target} for path, target in sorted(taken.links.items())],
        "names": {path: list(names) for path, names in sorted(manifest.names.items())},
        "status": [entry.path for entry in manifest.status],
        "unread": [{"path": path, "why": why} for path, why in sorted(manifest.unread.items())],
        "answers": manifest.answers,
    }
