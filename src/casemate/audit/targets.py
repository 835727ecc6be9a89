"""Targets by name: a VM of ours, or a path whose content tells what it is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from casemate.audit.capture_model import ARCHIVE_BYTES
from casemate.audit.documents import HEAD_BYTES, kind_of, report_document, report_image
from casemate.audit.judging import Setting
from casemate.audit.text import DOCUMENT_BYTES, open_regular, read_input
from casemate.controls.audit_model import TargetKind, TargetReport
from casemate.errors import InputError
from casemate.facts.root import read_all

_EXPECTED = (
    "a VM's name, libvirt domain XML, an emulator, a disk image, a QEMU command line, a VMM's configuration, "
    "a capture, or a directory tree"
)


class Named(msgspec.Struct, frozen=True):
    """One target as the user wrote it. A name of a VM wins over a file of the same name; ``./web`` is the file."""

    name: str

    def is_vm(self, vm_id: str, vm_name: str) -> bool:
        """Whether it means this VM: its name, its id, or a prefix of at least four digits of the id."""
        return self.name in (vm_name, vm_id) or (len(self.name) >= 4 and vm_id.startswith(self.name))

    def reports(self, setting: Setting) -> Iterator[TargetReport]:
        """Audit what lies at this path.

        Raises:
            InputError: nothing is there, or it cannot be audited.
        """
        if self.name == "-":
            data = read_input("-")
            yield from _by_content(kind_of(data[:HEAD_BYTES]), data, "standard input", setting)
            return
        path = Path(self.name)
        if path.is_dir():
            from casemate.audit.trees import report_tree

            yield from report_tree(path, setting)
            return
        try:
            descriptor = open_regular(self.name)
        except OSError as error:
            raise InputError(
                f"no such target: {self.name}",
                got=(error.strerror or str(error)).lower(),
                expected=_EXPECTED,
                next_step="casemate ps lists the VMs",
            ) from None
        try:
            yield from _file(descriptor, self.name, setting)
        finally:
            os.close(descriptor)


def _file(descriptor: int, name: str, setting: Setting) -> Iterator[TargetReport]:
    kind = kind_of(os.pread(descriptor, HEAD_BYTES, 0))
    if kind == "emulator":
        from casemate.audit.emulators import report_named_emulator

        yield report_named_emulator(name, setting)
        return
    if kind == "capture":
        from casemate.audit.captures import report_capture

        yield from report_capture(_all_of(descriptor, ARCHIVE_BYTES, name), name, setting)
        return
    if kind == "image":
        yield report_image(descriptor, name, setting)
    else:
        yield from _by_content(kind, _all_of(descriptor, DOCUMENT_BYTES, name), name, setting)


def _all_of(descriptor: int, limit_bytes: int, name: str) -> bytes:
    try:
        return read_all(descriptor, limit_bytes, name)
    except OSError as error:
        raise InputError(f"cannot read {name}", got=(error.strerror or str(error)).lower()) from None


def _by_content(kind: str, data: bytes, source: str, setting: Setting) -> Iterator[TargetReport]:
    if kind in (TargetKind.DOMAIN, TargetKind.VMM_CONFIG, TargetKind.COMMAND_LINE):
        yield report_document(TargetKind(kind), data, source, setting)
        return
    raise InputError(f"{source} is nothing that can be audited from a pipe", got=kind, expected=_EXPECTED)


def named_targets(names: Sequence[str]) -> tuple[Named, ...]:
    """The targets, each once, in the order given."""
    return tuple(Named(name) for name in dict.fromkeys(names))
