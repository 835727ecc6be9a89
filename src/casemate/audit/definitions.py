"""The definition of a running libvirt domain beside its process: facts ``vmm.manager`` and ``vmm.domain-drift``.

libvirt keeps what was defined in /etc/libvirt/qemu/NAME.xml and what it believes to run in /run/libvirt/qemu/NAME.xml,
devices plugged in later included. Both are root's: to anybody else the difference is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

from casemate.errors import InputError
from casemate.facts.domain_compare import beyond, differences
from casemate.facts.fact import Facts, Known, Unknown
from casemate.facts.machine import Machine
from casemate.facts.root import Root

DEFINED: Final = "/etc/libvirt/qemu"
RUNNING: Final = "/run/libvirt/qemu"
_XML_BYTES: Final = 4 << 20
_OF_LIBVIRT: Final = re.compile(r"\bid=charmonitor\b|\"id\":\s*\"charmonitor\"|\bmasterKey0\b")
_PLAIN_NAME: Final = re.compile(r"[^/\0]{1,200}")


def manager_of(command: Sequence[str]) -> str:
    """``libvirt`` when the command line is one that libvirt writes, else ``none``."""
    return "libvirt" if any(_OF_LIBVIRT.search(word) for word in command) else "none"


def definition_facts(machine: Machine, manager: str, root: Root, held: Collection[str] | None = None) -> Facts:
    """Compare one live machine, as its command line describes it, with what libvirt has written down.

    Args:
        manager: ``libvirt``; any other one has no definitions here.
        held: paths that the process has open; None when nobody could look.
    """
    facts: Facts = {"vmm.manager": Known(manager, f"{machine.source}: what its arguments are called")}
    if manager != "libvirt":
        return facts | {"vmm.domain-drift": Unknown("it is no domain of libvirt")}
    name = machine.name
    if not _PLAIN_NAME.fullmatch(name) or name in (".", ".."):
        return facts | {"vmm.domain-drift": Unknown("its name is none that libvirt would have taken")}
    defined, why_not_defined = _read(root, f"{DEFINED}/{name}.xml", machine)
    believed, why_not_believed = _read(root, f"{RUNNING}/{name}.xml", machine)
    if defined is None and believed is None:
        return facts | {"vmm.domain-drift": Unknown(f"{why_not_defined}; {why_not_believed}")}
    found: list[str] = []
    sources = []
    if believed is not None:
        # What libvirt plugged in later is in its file and not among the arguments.
        found += [f"{text} (libvirt knows nothing of it)" for text in beyond(believed, machine, held)]
        sources.append(f"{RUNNING}/{name}.xml")
    if defined is not None:
        found += differences(defined, machine if believed is None else believed)
        sources.append(f"{DEFINED}/{name}.xml")
    unclear = [part for m in (defined, believed) if m is not None for part in m.unreadable]
    if not found and (unclear or machine.unreadable):
        why = (*unclear, *machine.unreadable)[0]
        return facts | {"vmm.domain-drift": Unknown(f"a part could not be read and may differ: {why}")}
    compared = f"{machine.source}, compared with {' and '.join(sources)}"
    return facts | {"vmm.domain-drift": Known(tuple(dict.fromkeys(found)), compared)}


def _read(root: Root, path: str, live: Machine) -> tuple[Machine | None, str]:
    from casemate.facts.domain import read_domain

    try:
        found = read_domain(root.read_bytes(path, _XML_BYTES), path)
    except OSError as error:
        return None, f"{path}: {(error.strerror or str(error)).lower()}"
    except InputError as error:
        return None, f"{path}: {error.what}"
    if found.uuid and live.uuid and found.uuid != live.uuid:
        return None, f"{path}: another domain's definition ({found.uuid})"
    return found, ""
