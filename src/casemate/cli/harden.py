"""harden: the face of `casemate.assess.harden`."""

from __future__ import annotations

import argparse
import sys

from casemate.cli import output
from casemate.errors import ExitCode, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from casemate.harden.model import Hardened

SCHEMA = "casemate.harden/1"


def harden(arguments: argparse.Namespace) -> int:
    """Harden one document and say what happened."""
    from casemate import assess

    words = arguments.document
    is_file = len(words) == 1 and not _is_program(words[0])
    name = words[0] if is_file else "command line"
    done = assess.harden(
        words[0] if is_file else words,
        keep=arguments.keep,
        libvirt=arguments.libvirt,
        io_limit_mib_s=arguments.io_limit,
    )
    if arguments.diff and done.kind != "domain":
        raise InputError(
            "--diff compares two forms of one document", got="a specification that was made", next_step="leave it out"
        )
    if arguments.json:
        output.print_json(_json(name, done))
    elif arguments.diff:
        sys.stdout.writelines(_diff(name, done))
        _summary(done)
    elif arguments.in_place:
        backup = assess.replace_hardened(name, done)
        _summary(done)
        output.note(f"{name} replaced, the old one is {backup}" if backup else f"{name}: nothing to change")
    elif arguments.output:
        assess.write_hardened(arguments.output, done)
        _summary(done)
    else:
        print(done.after, end="")
        _summary(done)
    return ExitCode.FINDINGS if any(left.reason == "decide" for left in done.left) else ExitCode.DONE


def _is_program(word: str) -> bool:
    return word.rpartition("/")[2].startswith(("qemu-system-", "qemu-kvm"))


def _json(name: str, done: Hardened) -> dict[str, object]:
    import msgspec

    return {
        "schema": SCHEMA,
        "source": name,
        "kind": done.kind,
        "changes": msgspec.to_builtins(done.changes),
        "left": msgspec.to_builtins(done.left),
        "claims": list(done.claims),
        "document": done.after,
    }


def _diff(name: str, done: Hardened) -> list[str]:
    import difflib

    before, after = done.before.splitlines(keepends=True), done.after.splitlines(keepends=True)
    lines = difflib.unified_diff(before, after, name, f"{name} (hardened)")
    return [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines]


def _summary(done: Hardened) -> None:
    """Changes and what is left, on standard error."""
    for change in done.changes:
        _line(f"{change.control}: {change.what}  [{change.where}]")
        _line(f"    why: {change.why}")
        if change.cost != "none":
            _line(f"    cost: {change.cost}")
    words = {
        "decide": "left, for you to decide",
        "limit": f"left, {'libvirt' if done.kind == 'domain' else 'a specification'} cannot say it",
        "kept": "kept",
    }
    for left in done.left:
        _line(f"{words[left.reason.value]}: {left.control}: {left.what}  [{left.where}]")
        if left.next_step:
            _line(f"    next: {left.next_step}")
    changes = len(done.changes)
    _line(f"casemate: {changes} change{'' if changes == 1 else 's'}, {len(done.left)} left")


def _line(text: str) -> None:
    from contextlib import suppress

    with suppress(OSError):
        print(output.plain(text), file=sys.stderr)
