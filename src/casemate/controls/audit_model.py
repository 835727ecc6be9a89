"""What an audit says: targets, their findings, one report. Types only; `audit/` fills them, `report/` shows them."""

from __future__ import annotations

import enum

import msgspec

from casemate.controls.model import Finding
from casemate.facts.fact import Stage

SCHEMA_VERSION = 1


class TargetKind(enum.StrEnum):
    """What was audited; docs/json.md has one line for each."""

    HOST = "host"
    EMULATOR = "emulator"
    VM = "vm"
    PROCESS = "process"
    DOMAIN = "domain"
    COMMAND_LINE = "command-line"
    VMM_CONFIG = "vmm-config"
    IMAGE = "image"


class Target(msgspec.Struct, frozen=True):
    """One thing audited. ``origin``: how it was found or named (``/proc/812``, ``vm.xml``, ``capture host7.tar``).
    ``host``: the host it belongs to, when it is not this one."""

    kind: TargetKind
    name: str
    origin: str
    host: str = ""


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """A file, by which what was found about it is joined to the VM that uses it. ``path``: absolute, without symbolic
    links where they could be followed. ``identity``: ``device:inode`` on its host when it was looked at. ``sha256``: of
    its bytes, where they cannot change (an image of the store, an emulator). What is not known is empty."""

    path: str = ""
    identity: str = ""
    sha256: str = ""

    def is_same(self, other: FileRef) -> bool:
        """Whether both are one file of one host, as far as can be told: everything that both know agrees, and that is
        something. An inode number alone proves nothing, since a file that is gone leaves it to the next one."""
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        pairs = ((self.path, other.path), (self.identity, other.identity))
        known = [mine == its for mine, its in pairs if mine and its]
        return bool(known) and all(known)


class DiskRef(FileRef, frozen=True, kw_only=True):
    """A disk of a VM. ``removable``: a CD or floppy, which holds no system."""

    removable: bool = False


class Unfixed(msgspec.Struct, frozen=True, kw_only=True):
    """Of the table's vulnerabilities of an emulator's own code, whatever devices they need: those that this version and
    its package do not fix (``open``), and those whose fix nobody recorded (``unrecorded``)."""

    open: tuple[str, ...] = ()
    unrecorded: tuple[str, ...] = ()


class TargetReport(msgspec.Struct, frozen=True, kw_only=True):
    """The findings of one target. ``stage``: whether declared or observed facts were judged. ``notes``: what could not
    be looked at as a whole and why (a process that ended meanwhile). ``history``: of a VM, the numbers of all
    vulnerabilities of the table that would have reached its devices, whether fixed by now or not. ``undecided``: of a
    VM of QEMU, those of QEMU's code of which nobody can tell whether they would; None where that was not worked out.
    ``unfixed``: of an emulator; None where its version is not known.

    ``file``: of an emulator or image, what it is. ``emulator``, ``disks``: of a VM, what it runs and the images that it
    uses, in its order; None where that is not known.
    """

    target: Target
    stage: Stage
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    undecided: tuple[str, ...] | None = None
    unfixed: Unfixed | None = None
    file: FileRef | None = None
    emulator: FileRef | None = None
    disks: tuple[DiskRef, ...] | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One audit. ``time``: RFC 3339, UTC. ``catalogue``: version of the catalogue (a digest over all controls).
    ``profile``: name of the profile in force. ``faults``: targets that could not be audited at all."""

    tool_version: str
    catalogue: str
    host: str
    time: str
    profile: str
    targets: tuple[TargetReport, ...]
    faults: tuple[str, ...] = ()
    schema: int = SCHEMA_VERSION
