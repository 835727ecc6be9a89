"""A directory that stands for a host: a captured root, or only a tree of libvirt's configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from casemate.audit.documents import report_document
from casemate.audit.emulators import report_emulators
from casemate.audit.host import collect_host_facts
from casemate.audit.judging import Setting, controls_for, report_on
from casemate.audit.run import host_name
from casemate.controls.audit_model import Target, TargetKind, TargetReport
from casemate.controls.model import Subject
from casemate.errors import InputError
from casemate.facts.fact import Stage
from casemate.facts.libvirt_config import CONFIG, collect_configuration
from casemate.facts.root import PartRoot, Root

DOMAIN_FOLDERS = ("/etc/libvirt/qemu", "/run/libvirt/qemu", "/qemu", "/")
_XML_BYTES = 4 << 20
_DOMAINS_MAX = 10_000


def report_tree(path: Path, setting: Setting, host: str = "") -> Iterator[TargetReport]:
    """Audit what a directory holds.

    Raises:
        InputError: it holds neither a host's files nor domains.
    """
    yield from report_root(Root(path), str(path), setting, host)


def report_root(root: Root, origin: str, setting: Setting, host: str = "") -> Iterator[TargetReport]:
    """The host of a tree, if there is one in it, and the libvirt domains that it defines; of a copy of ``/etc/libvirt``
    what libvirt's own settings decide."""
    is_host = any(_there(root, folder) for folder in ("/proc", "/sys", "/etc/os-release", "/etc/libvirt"))
    if is_host:
        facts, notes = collect_host_facts(root)
        name = host or host_name(root)
        host = name  # a tree is a host of its own: what is found in it says nothing about this one
        target = Target(TargetKind.HOST, name, origin, host)
        yield report_on(target, facts, (Subject.HOST,), setting, stage=Stage.OBSERVED, notes=notes)
        for report in report_emulators(root, setting):
            yield msgspec.structs.replace(report, target=msgspec.structs.replace(report.target, host=host))
    found = not is_host and _there(root, "/qemu.conf")
    if found:
        yield _report_configuration(root, origin, setting, host)
    for file in domain_files(root):
        found = True
        yield report_domain(root, origin, file, setting, host)
    if not is_host and not found:
        raise InputError(
            f"{origin} holds nothing to audit",
            expected="a host's files (proc, sys, etc below it), /etc/libvirt or libvirt domains (*.xml)",
        )


def report_domain(root: Root, origin: str, file: str, setting: Setting, host: str) -> TargetReport:
    """One libvirt domain that a tree defines.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        data = root.read_bytes(file, _XML_BYTES)
    except OSError as error:
        raise InputError(f"cannot read {origin}{file}", got=(error.strerror or str(error)).lower()) from None
    report = report_document(TargetKind.DOMAIN, data, f"{origin}{file}", setting)
    return msgspec.structs.replace(report, target=msgspec.structs.replace(report.target, host=host))


def _report_configuration(root: Root, origin: str, setting: Setting, host: str) -> TargetReport:
    """The controls that libvirt's settings decide, without the rest of a host, of which nothing is here."""
    facts = collect_configuration(PartRoot(root.base, CONFIG), is_copy=str(root.base.resolve()) != CONFIG)
    about = tuple(
        control
        for control in controls_for(Subject.HOST)
        if control.checks and all(check.fact.startswith("libvirt.") for check in control.checks)
    )
    target = Target(TargetKind.HOST, host or root.base.resolve().name, origin, host)
    notes = ("only libvirt's configuration is here: nothing else of its host was judged",)
    return report_on(target, facts, (Subject.HOST,), setting, stage=Stage.OBSERVED, notes=notes, controls=about)


def domain_files(root: Root) -> tuple[str, ...]:
    """Domain definitions of libvirt in a tree, by their usual places."""
    found: list[str] = []
    for folder in DOMAIN_FOLDERS:
        try:
            names = root.list_dir(folder, _DOMAINS_MAX)
        except OSError:
            continue
        found += [f"{folder.rstrip('/')}/{name}" for name in names if name.endswith(".xml")]
        if found:
            break
    return tuple(found)


def _there(root: Root, path: str) -> bool:
    try:
        return root.exists(path)
    except OSError:
        return False
