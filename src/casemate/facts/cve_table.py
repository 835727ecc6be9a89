"""The history of vulnerabilities by component, as data: which ones reach a machine, and what a device weighs.

The table is `data/cves.toml`; a newer one may lie in `/etc/casemate/cves.toml` (root's, writable by nobody else), so
that weights and rows can be refreshed without a release and without a network.

What has to be there for a component to be reached is a list of regular expressions over QOM type names. Where there is
no type (a network back end, an accelerator) a *mark* stands for it; ``marks_of`` makes them from facts:

    netdev:user  accel:kvm  accel:tcg  vhost:net  cpu:nested  display:vnc  format:vmdk  format:iscsi  host:cpu
    vmm:libvirt
"""

from __future__ import annotations

import functools
import os
import re
import stat as stat_module
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec

from casemate.errors import InputError
from casemate.facts.fact import Facts, Known
from casemate.facts.root import Root

TABLE_PATH: Final = "/etc/casemate/cves.toml"
_SHIPPED: Final = Path(__file__).parents[1] / "data" / "cves.toml"
_LIMIT_BYTES: Final = 4 << 20
_FORMAT: Final = 1
# Types of a tree come from a hostile process; remembering each for ever would be a leak.
_REMEMBERED_TYPES: Final = 4096
_URL: Final = re.compile(r": ([a-z][a-z0-9+.-]*)://")
_BY_CURL: Final = ("http", "https", "ftp", "ftps")

Side = Literal["emulator", "kernel", "vmm"]
Reach = Literal["guest-root", "guest-user", "network", "client", "host-user", "image"]


class _CveRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    id: str
    impact: str
    fixed_in: tuple[str, ...]
    source: str
    since: str = ""
    checked: str = ""
    product: str = ""
    reached_by: Reach | None = None
    name: str = ""
    note: str = ""
    score: float | None = None
    public_exploit: bool = False
    types: tuple[str, ...] | None = None


class _ComponentRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    id: str
    title: str
    side: Side
    product: str
    reached_by: Reach
    types: tuple[str, ...]
    cves: tuple[_CveRow, ...]


class Weights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Weight of one vulnerability by its worst impact, the extra of a public exploit, and that of a device without
    any entry: it is code too."""

    R: int
    P: int
    L: int
    D: int
    unsaid: int
    public_exploit: int
    unlisted_device: int


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    date: str
    weights: Weights
    component: tuple[_ComponentRow, ...]


class Cve(msgspec.Struct, frozen=True, kw_only=True):
    """One vulnerability.

    ``component``, ``side`` (emulator: QEMU's process; kernel: the host's; vmm), ``types`` (patterns of what has to be
    there), ``reached_by`` (who has to act), ``impact`` (letters R code on the host, P privilege, L leak, D denial of
    service; empty: nobody says), ``fixed_in`` (first releases of ``product`` that are known to hold the fix; empty:
    none known), ``checked`` (where that was looked up; empty: nobody did), ``since`` (first
    release that has it; empty: not known).
    """

    id: str
    component: str
    title: str
    side: Side
    product: str
    types: tuple[str, ...]
    reached_by: Reach
    impact: str
    fixed_in: tuple[str, ...]
    since: str
    name: str
    note: str
    score: float | None
    public_exploit: bool
    source: str
    weight: int
    checked: str = ""

    @property
    def year(self) -> int:
        """The year in its number."""
        return int(self.id.split("-")[1])


class CveTable:
    """The table, ready to be asked. ``date``: ISO date of its content; ``source``: the file."""

    def __init__(self, document: _Document, source: str) -> None:
        self.date = document.date
        self.source = source
        self.weights = document.weights
        self.cves: tuple[Cve, ...] = tuple(
            _cve(row, component, document.weights) for component in document.component for row in component.cves
        )
        self._patterns = tuple(re.compile("|".join(f"(?:{pattern})" for pattern in cve.types)) for cve in self.cves)
        self._devices = tuple(re.compile(pattern) for component in document.component for pattern in component.types)
        # The host's own code is not the device's: a weight is what the emulator's side of this device has brought.
        self._of = functools.lru_cache(maxsize=_REMEMBERED_TYPES)(self._numbers_of)

    def _numbers_of(self, qom_type: str) -> tuple[int, ...]:
        return tuple(number for number, pattern in enumerate(self._patterns) if pattern.fullmatch(qom_type))

    def reaching(self, types: Iterable[str]) -> tuple[Cve, ...]:
        """The vulnerabilities that would have reached a machine with these types and marks; each once, table order."""
        numbers = sorted({number for name in set(types) for number in self._of(name)})
        return tuple(self.cves[number] for number in numbers)

    def device_weight(self, qom_type: str) -> int:
        """What the history of this type (or mark) weighs; never 0, because code without an entry is code too."""
        return sum(self.cves[number].weight for number in self._of(qom_type)) or self.weights.unlisted_device

    def is_listed(self, qom_type: str) -> bool:
        """Whether some component of the table covers this type or mark."""
        return any(pattern.fullmatch(qom_type) for pattern in self._devices)


def _cve(row: _CveRow, component: _ComponentRow, weights: Weights) -> Cve:
    worst = next((getattr(weights, letter) for letter in "RPLD" if letter in row.impact), weights.unsaid)
    return Cve(
        id=row.id,
        component=component.id,
        title=component.title,
        side=component.side,
        product=row.product or component.product,
        types=component.types if row.types is None else row.types,
        reached_by=row.reached_by or component.reached_by,
        impact=row.impact,
        fixed_in=row.fixed_in,
        since=row.since,
        name=row.name,
        note=row.note,
        score=row.score,
        public_exploit=row.public_exploit,
        source=row.source,
        weight=worst + (weights.public_exploit if row.public_exploit else 0),
        checked=row.checked,
    )


def parse_table(text: str, source: str) -> CveTable:
    """The table in a TOML text.

    Raises:
        InputError: it is not TOML of this form, an id is not a CVE number or stands twice, a pattern is no expression.
    """
    try:
        document = msgspec.toml.decode(text, type=_Document)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InputError(
            f"table of vulnerabilities {source}", got=str(error), expected="the form of cves.toml"
        ) from error
    faults = [] if document.format == _FORMAT else [f"format {document.format}, and we read {_FORMAT}"]
    seen: set[str] = set()
    for component in document.component:
        for row in component.cves:
            if not re.fullmatch(r"CVE-\d{4}-\d{4,7}", row.id) or row.id in seen:
                faults.append(f"{row.id!r}: no CVE number, or there twice")
            if not set(row.impact) <= set("RPLD"):
                faults.append(f"{row.id}: impact {row.impact!r}")
            faults += [
                f"{row.id}: release {text!r}" for text in (*row.fixed_in, row.since) if text and not _numbers(text)
            ]
            seen.add(row.id)
        for pattern in (*component.types, *(name for row in component.cves for name in row.types or ())):
            try:
                re.compile(pattern)
            except re.error as error:
                faults.append(f"{component.id}: pattern {pattern!r}: {error}")
    if faults:
        raise InputError(
            f"table of vulnerabilities {source}", got="; ".join(faults[:5]), expected="the form of cves.toml"
        )
    return CveTable(document, source)


def load_table(root: Root | None = None) -> CveTable:
    """The host's own table if there is one, else the shipped one.

    Raises:
        InputError: the host's table is faulty, or somebody other than root could have written it.
    """
    tree = root or Root()
    try:
        descriptor = tree.open_regular(TABLE_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return _shipped()
    except OSError as error:
        raise InputError(f"table of vulnerabilities {TABLE_PATH}", got=error.strerror or str(error)) from error
    with open(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if tree.is_live and (status.st_uid != 0 or status.st_mode & (stat_module.S_IWGRP | stat_module.S_IWOTH)):
            raise InputError(
                f"table of vulnerabilities {TABLE_PATH}",
                got=f"owner {status.st_uid}, mode {status.st_mode & 0o7777:04o}",
                expected="root's, writable by nobody else",
            )
        content = stream.read(_LIMIT_BYTES + 1)
    if len(content) > _LIMIT_BYTES:
        raise InputError(f"table of vulnerabilities {TABLE_PATH}", got=f"more than {_LIMIT_BYTES} bytes")
    return parse_table(content.decode("utf-8", "backslashreplace"), TABLE_PATH)


@functools.cache
def _shipped() -> CveTable:
    return parse_table(_SHIPPED.read_text(encoding="utf-8"), _SHIPPED.name)


@functools.cache
def table() -> CveTable:
    """The table of this host, read once."""
    return load_table()


@functools.lru_cache(maxsize=4096)
def device_weight(qom_type: str) -> int:
    """What the history of this QOM type (or mark) weighs in this host's table."""
    return table().device_weight(qom_type)


def reaching(types: Iterable[str]) -> tuple[Cve, ...]:
    """The vulnerabilities of this host's table that would have reached a machine with these types and marks."""
    return table().reaching(types)


def marks_of(facts: Facts) -> tuple[str, ...]:
    """Types and marks that a machine's facts stand for; what is unknown adds nothing: the result is a lower bound."""
    marks = list(_texts(facts, "dev.types"))
    accel, backend, display = (_text(facts, name) for name in ("dev.accel", "net.backend", "dev.display"))
    if accel:
        marks.append(f"accel:{accel}")
    if backend:
        marks.append(f"netdev:{backend}")
    if display:
        marks.append(f"display:{display.partition(',')[0]}")
    # A handle's text ends in the device's name: "/dev/vhost-net", "11 -> /dev/vhost-vsock".
    marks += [
        f"vhost:{kind}" for text in _texts(facts, "vhost.descriptors") for kind in re.findall(r"vhost-(\w+)", text)
    ]
    marks += [f"netdev:{text}" for text in _texts(facts, "net.backends")]
    marks += [f"display:{text}" for text in _texts(facts, "dev.displays")]
    marks += [f"format:{text.rpartition('=')[2]}" for text in _texts(facts, "img.formats")]
    marks += [f"format:{driver}" for driver in _drivers(facts)]
    if _texts(facts, "cpu.nested-flags"):
        marks.append("cpu:nested")
    return tuple(dict.fromkeys((*marks, "host:cpu")))


def _drivers(facts: Facts) -> list[str]:
    """Block drivers of what is no file: QEMU's name for the protocol of a remote image or of one below an image."""
    found = [text.rpartition(": ")[2] for text in _texts(facts, "img.remote")]
    below = (_URL.search(text) for text in _texts(facts, "img.backing"))
    found += [match[1] for match in below if match]
    return [*found, *("curl" for name in found if name in _BY_CURL)]


def is_fixed(cve: Cve, version: tuple[int, ...]) -> bool | None:
    """Whether an upstream release has no such fault (any more); None when the table does not say.

    A release holds the fix when it is as new as the newest one listed, or belongs to the branch (first two numbers) of
    a listed one and is as new as that. What a distribution patched on top is not known here.
    """
    if cve.since and version < _numbers(cve.since):
        return True
    if not cve.fixed_in:
        return None
    fixes = [_numbers(text) for text in cve.fixed_in]
    return version >= max(fixes) or any(version[:2] == fix[:2] and version >= fix for fix in fixes)


def _numbers(text: str) -> tuple[int, ...]:
    """``7.2.11`` as numbers; empty for anything else."""
    return tuple(map(int, text.split("."))) if re.fullmatch(r"\d{1,6}(\.\d{1,6}){0,4}", text) else ()


def _text(facts: Facts, name: str) -> str:
    fact = facts.get(name)
    return fact.value if isinstance(fact, Known) and isinstance(fact.value, str) else ""


def _texts(facts: Facts, name: str) -> tuple[str, ...]:
    fact = facts.get(name)
    return fact.value if isinstance(fact, Known) and isinstance(fact.value, tuple) else ()
