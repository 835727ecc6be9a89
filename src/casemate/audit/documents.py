"""Documents that describe machines: what kind a file is, told by its content, and its facts, as declared."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from casemate.audit.judging import Setting, controls_for, report_on
from casemate.audit.refs import disks_of, ref_of_open
from casemate.controls.audit_model import FileRef, Target, TargetKind, TargetReport
from casemate.controls.model import Subject
from casemate.errors import ImageError, InputError
from casemate.facts.fact import Facts, Known, Stage, Unknown
from casemate.facts.machine import Machine
from casemate.facts.machine_facts import machine_facts
from casemate.facts.qemu_argv import read_argv

HEAD_BYTES: Final = 1024
_TAR_MAGIC_AT: Final = 257
_IMAGE_CONTROLS: Final = frozenset({"img.format-explicit", "img.no-backing"})
_KATA: Final = re.compile(rb"^[ \t]*\[[ \t]*hypervisor[ \t]*\.", re.MULTILINE)
_OTHERS: Final = re.compile(rb"(^|[\s/])(cloud-hypervisor|firecracker|crosvm)[\s\0]")
_QEMU: Final = re.compile(rb"(^|[\s/])qemu-(system-[\w-]+|kvm)\b|(^|\s)-(machine|device|drive|netdev)\s")
READERS: Final = {
    TargetKind.DOMAIN: "casemate.facts.domain:read_domain",
    TargetKind.VMM_CONFIG: "casemate.facts.vmm_config:read_vmm_config",
}
"""Functions ``(data: bytes, source: str) -> Machine`` that read what is no command line."""


def kind_of(head: bytes) -> str:
    """``capture``, ``emulator``, ``domain``, ``vmm-config``, ``command-line`` or ``image``, by the first bytes."""
    if head[:2] == b"\x1f\x8b" or head[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return "capture"
    if head.startswith(b"\x7fELF"):
        return "emulator"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        return "domain"
    if text.startswith(b"{") or _KATA.search(text):
        return "vmm-config"
    if b"\0" not in head.rstrip(b"\0") and (_QEMU.search(text) or _OTHERS.search(text)):
        return "command-line"
    if _is_argv(head):
        return "command-line"
    return "image"


def _is_argv(head: bytes) -> bool:
    """A copy of /proc/PID/cmdline."""
    program = head.partition(b"\0")[0]
    return head.count(b"\0-") > 1 and (b"qemu" in program or _OTHERS.search(program + b"\0") is not None)


def read_machine(kind: TargetKind, data: bytes, source: str) -> Machine:
    """The machine that a document describes.

    Raises:
        InputError: it is not understood.
    """
    if kind is TargetKind.COMMAND_LINE:
        return read_command(split_command(data, source), source)
    place = READERS.get(kind, "")
    if not place:
        raise InputError(f"{source}: configurations of this kind cannot be read yet", got=kind.value)
    module, _, name = place.partition(":")
    reader: Any = getattr(importlib.import_module(module), name)
    machine = reader(data, source)
    if not isinstance(machine, Machine):
        raise RuntimeError(f"{place} gave no Machine")
    return machine


def read_command(words: Sequence[str], source: str, vmm: str = "") -> Machine:
    """The machine of a command line, read by the rules of the VMM that it starts.

    Args:
        vmm: which one that is, where the first word is not to be believed.

    Raises:
        InputError: empty, or larger than anything that a real VM has.
    """
    from casemate.facts.vmm_command import reader_of

    reader = reader_of(vmm or words[0]) if words else None
    return read_argv(words, source) if reader is None else reader(words, source)


def split_command(data: bytes, source: str) -> tuple[str, ...]:
    """A command line as words: shell text, or a copy of /proc/PID/cmdline.

    Raises:
        InputError: quotes that are not closed, or nothing at all.
    """
    text = data.decode("utf-8", "backslashreplace")
    if "\0" in text:
        words = tuple(text.removesuffix("\0").split("\0"))
    else:
        try:
            words = tuple(shlex.split(text.replace("\\\n", " "), comments=True))
        except ValueError as error:
            raise InputError(
                f"{source} is no command line", got=str(error).lower(), expected="words quoted as for sh"
            ) from None
    if not words:
        raise InputError(f"{source} is empty", expected="the command line of a VMM")
    return words


def report_machine(machine: Machine, target: Target, setting: Setting) -> TargetReport:
    """Judge what a document declares. Nothing in it passes a control that wants the live process."""
    facts = machine_facts(machine, Stage.DECLARED)
    notes = tuple(f"not understood: {part}" for part in machine.unreadable[:8])
    report = report_on(target, facts, (Subject.VM,), setting, stage=Stage.DECLARED, notes=notes)
    emulator = FileRef(path=machine.emulator) if machine.emulator.startswith("/") else None
    return msgspec.structs.replace(report, emulator=emulator, disks=disks_of(machine))


def report_document(kind: TargetKind, data: bytes, source: str, setting: Setting) -> TargetReport:
    """One document, from its bytes to its findings.

    Raises:
        InputError: it is not understood.
    """
    machine = read_machine(kind, data, source)
    return report_machine(machine, Target(kind, machine.name or source.rpartition("/")[2], source), setting)


def report_image(descriptor: int, name: str, setting: Setting) -> TargetReport:
    """The header of a disk image; its content is never looked at."""
    from casemate.image.headers import inspect_image

    facts: Facts
    try:
        header = inspect_image(descriptor, name, None, allow_encrypted=True)
    except ImageError as error:
        why = f"{error.what}{f' (got {error.got})' if error.got else ''}"
        facts = {"img.formats": Known((f"not accepted: {why}",), f"{name}: header"), "img.backing": Unknown(why)}
        if "backing" in why or "external" in why:
            facts["img.backing"] = Known((why,), f"{name}: header")
    else:
        facts = {
            "img.formats": Known((header.format,), f"{name}: header"),
            "img.backing": Known((), f"{name}: header, which refers to no other file"),
            "img.virtual-bytes": Known(header.virtual_size_bytes, f"{name}: header"),
        }
    controls = tuple(c for c in controls_for(Subject.VM, Subject.IMAGE) if _about_image(c.id, c.subject))
    report = report_on(
        Target(TargetKind.IMAGE, name.rpartition("/")[2], name),
        facts,
        (),
        setting,
        stage=Stage.OBSERVED,
        controls=controls,
    )
    return msgspec.structs.replace(report, file=ref_of_open(descriptor, name))


def _about_image(control_id: str, subject: Subject) -> bool:
    return subject is Subject.IMAGE or control_id in _IMAGE_CONTROLS
