"""What `casemate harden` reads: a libvirt domain, a Xen xl.cfg, a QEMU command line; told by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from casemate.audit.documents import HEAD_BYTES, kind_of, split_command
from casemate.audit.text import read_input
from casemate.controls.audit_model import TargetKind
from casemate.errors import InputError
from casemate.facts.qemu_argv import read_argv
from casemate.facts.xen_text import looks_like_xl
from casemate.harden.context import parse_version
from casemate.harden.model import Hardened

_EXPECTED = "a libvirt domain, a Xen xl.cfg, or a QEMU command line"


def harden_document(name: str, keep: Sequence[str], libvirt: str, io_limit_mib_s: int | None) -> Hardened:
    """Harden what a file, or standard input for ``-``, holds.

    Raises:
        InputError: not readable, or nothing of these.
    """
    from casemate.harden.reading import MAX_DOCUMENT_BYTES

    version = parse_version(libvirt)
    data = read_input(name, MAX_DOCUMENT_BYTES)
    source = "standard input" if name == "-" else name
    kind = kind_of(data[:HEAD_BYTES])
    if kind == TargetKind.DOMAIN:
        from casemate.harden.domain import harden_domain

        return harden_domain(data, source, keep=keep, libvirt=version, io_limit_mib_s=io_limit_mib_s)
    text = data.decode("utf-8", "backslashreplace")
    if "\0" not in text and looks_like_xl(text):
        from casemate.facts.xen_config import read_xl
        from casemate.harden.machine import harden_machine

        machine = read_xl(data, source)
        done = harden_machine(machine, keep=keep, before=text, base_dir=Path.cwd(), io_limit_mib_s=io_limit_mib_s)
        return done.hardened
    if kind == TargetKind.COMMAND_LINE:
        return harden_argv(split_command(data, source), keep, io_limit_mib_s, source)
    raise InputError(
        f"{source} cannot be hardened",
        got={"image": "neither XML nor a configuration that is known"}.get(kind, kind),
        expected=_EXPECTED,
        next_step="casemate audit judges other things, and says how to mend them",
    )


def harden_argv(
    command: Sequence[str], keep: Sequence[str], io_limit_mib_s: int | None, source: str = "command line"
) -> Hardened:
    """The specification that a QEMU command line becomes.

    Raises:
        InputError: it describes no machine that a specification can.
    """
    from casemate.harden.machine import harden_machine

    program = command[0].rpartition("/")[2] if command else ""
    if not program.startswith(("-", "qemu", "kvm")):
        raise InputError(f"{source} cannot be hardened", got=f"the program {program[:40]!r}", expected=_EXPECTED)
    machine = read_argv(command, source)
    before = " ".join(command) + "\n"
    done = harden_machine(machine, keep=keep, before=before, base_dir=Path.cwd(), io_limit_mib_s=io_limit_mib_s)
    return done.hardened
