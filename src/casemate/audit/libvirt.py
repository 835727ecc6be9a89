"""Every domain of a libvirt connection, asked through virsh: a deadline and a bound for each answer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

from casemate.audit.documents import report_document
from casemate.audit.judging import Setting
from casemate.audit.trees import domain_files
from casemate.controls.audit_model import TargetKind, TargetReport
from casemate.errors import HostError, InputError
from casemate.facts.program import ask_program
from casemate.facts.root import Root

_PROGRAMS: Final = ("/usr/bin/virsh", "/usr/local/bin/virsh")
_LIST_TIMEOUT_S: Final = 15.0
_XML_TIMEOUT_S: Final = 10.0
_XML_BYTES: Final = 4 << 20
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://?[^\s]*")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def report_libvirt(uri: str, root: Root, setting: Setting) -> Iterator[TargetReport]:
    """Audit the definition of each domain; without a daemon, those whose files can be read.

    Raises:
        InputError: the URI is none. HostError: neither virsh nor the files give an answer.
    """
    if not _URI.fullmatch(uri):
        raise InputError("not a libvirt URI", got=repr(uri)[:120], expected="qemu:///system, qemu:///session, …")
    why = "virsh is not installed"
    program = next((path for path in _PROGRAMS if os.access(path, os.X_OK)), None)
    if program is not None:
        domains = _list(program, uri)
        if not isinstance(domains, str):
            yield from (_dump(program, uri, uuid, setting) for uuid in domains)
            return
        why = domains
    files = domain_files(root) if uri in ("qemu:///system", "qemu:/system") else ()
    if not files:
        raise HostError(
            f"libvirt does not answer at {uri}",
            got=why,
            next_step="start its daemon, or name the XML files: casemate audit /etc/libvirt/qemu/*.xml",
        )
    for file in files:
        yield report_document(TargetKind.DOMAIN, root.read_bytes(file, _XML_BYTES), file, setting)


def _list(program: str, uri: str) -> tuple[str, ...] | str:
    """UUIDs of all domains, or why they cannot be had."""
    try:
        answer = ask_program(
            (program, "--connect", uri, "--readonly", "list", "--all", "--uuid"),
            timeout_s=_LIST_TIMEOUT_S,
            limit_bytes=1 << 20,
        )
    except (OSError, ValueError) as error:
        return str(error)
    if answer.status:
        return answer.error_text()
    words = answer.output.decode("ascii", "replace").split()
    return tuple(word for word in words if _UUID.fullmatch(word))


def _dump(program: str, uri: str, uuid: str, setting: Setting) -> TargetReport:
    try:
        answer = ask_program(
            (program, "--connect", uri, "--readonly", "dumpxml", uuid),
            timeout_s=_XML_TIMEOUT_S,
            limit_bytes=_XML_BYTES,
        )
    except (OSError, ValueError) as error:
        raise HostError(f"virsh gives no definition of {uuid}", got=str(error)) from None
    if answer.status:
        raise HostError(f"virsh gives no definition of {uuid}", got=answer.error_text())
    return report_document(TargetKind.DOMAIN, answer.output, f"{uri} {uuid}", setting)
