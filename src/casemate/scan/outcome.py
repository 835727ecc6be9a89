"""What one scan came to: findings of blocks and of files put together, waivers applied. Pure."""

from __future__ import annotations

import datetime
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

import msgspec

from casemate.scan.model import SCHEMA, Finding, Hit, Level, Place
from casemate.scan.ruleset import RuleSet
from casemate.scan.waivers import Waivers

_ORDER: Final = {level: number for number, level in enumerate(Level)}


class Block(Protocol):
    """A hit in a block; `cell.rawscan.RawHit`."""

    @property
    def hit(self) -> Hit: ...
    @property
    def offset(self) -> int: ...
    @property
    def guest_offset(self) -> int: ...
    @property
    def views(self) -> tuple[str, ...]: ...


class Blocks(Protocol):
    """What the raw scan gives; `cell.rawscan.RawResult`."""

    @property
    def hits(self) -> Sequence[Block]: ...


class FileHit(msgspec.Struct, frozen=True):
    """A hit in a file: by a rule about its path (offset -1) or about its content."""

    path: str
    hit: Hit


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One scan.

    Attributes:
        seconds: of the raw scan.
        by_name: files were read by name, and rules by path tried.
        not_scanned: what of the image could not be looked at, and why: with any of it the scan has failed.
        notes: what a reader should know besides.
        path, identity, sha256: the file, as an audit names it (absolute, ``device:inode``; digest of a stored image).
        host, time: where and when it was scanned; RFC 3339, UTC.
    """

    image: str
    format: str
    size_bytes: int
    read_bytes: int
    seconds: float
    rules: int
    findings: tuple[Finding, ...]
    by_name: bool = False
    not_scanned: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    path: str = ""
    identity: str = ""
    sha256: str = ""
    host: str = ""
    time: str = ""
    schema: str = SCHEMA

    @property
    def failed(self) -> bool:
        """Something was found that no waiver covers, or something was not scanned. Unknown is never a pass."""
        return bool(self.not_scanned) or any(counts(finding) for finding in self.findings)

    @property
    def open_findings(self) -> tuple[Finding, ...]:
        """Those that make it fail."""
        return tuple(finding for finding in self.findings if counts(finding))


def counts(finding: Finding) -> bool:
    """Whether it makes a scan fail."""
    return not finding.waived and finding.severity is not Level.INFO


def merge(blocks: Blocks, files: Sequence[FileHit], rules: RuleSet) -> tuple[Finding, ...]:
    """One finding for each secret and rule, the worst first.

    A secret that a file has is named by that file; the same secret in blocks elsewhere raises ``more``. A secret that
    only blocks have is named by its first place.
    """
    known = rules.by_id()
    found: dict[tuple[str, str], Finding] = {}
    for entry in files:
        key = (entry.hit.rule, entry.hit.digest)
        if entry.hit.rule == "machine-id.block":
            continue  # files are judged by their names
        rule = known[entry.hit.rule]
        if key in found:
            found[key] = _again(found[key])
            continue
        found[key] = Finding(
            rule=rule.id,
            title=rule.title,
            severity=rule.severity,
            place=Place.FILE,
            path=entry.path,
            shown=entry.hit.shown,
            digest=entry.hit.digest,
            detail=entry.hit.detail,
            remedy=rule.remedy,
        )
    in_files = set(found)
    machine_ids = {digest for rule_id, digest in found if rule_id == "machine-id.file"}
    for block in blocks.hits:
        hit = block.hit
        if hit.rule == "machine-id.block" and hit.digest in machine_ids:
            continue  # the block of that very file
        key = (hit.rule, hit.digest)
        if key in in_files:
            in_files.discard(key)  # the file's own block: counted once
            found[key] = msgspec.structs.replace(
                found[key], offset=block.offset, guest_offset=block.guest_offset, compressed=block.offset < 0
            )
            continue
        if key in found:
            found[key] = _again(found[key])
            continue
        rule = known[hit.rule]
        place = Place.GUEST_DISK if "" in block.views else Place.SNAPSHOT if block.views else Place.UNREFERENCED
        found[key] = Finding(
            rule=rule.id,
            title=rule.title,
            severity=rule.severity,
            place=place,
            shown=hit.shown,
            digest=hit.digest,
            offset=block.offset,
            guest_offset=block.guest_offset,
            compressed=block.offset < 0,
            snapshot=", ".join(name for name in block.views if name) if place is Place.SNAPSHOT else "",
            detail=hit.detail,
            remedy=rule.remedy,
        )
    return tuple(sorted(found.values(), key=lambda f: (_ORDER[f.severity], f.rule, f.path, f.offset, f.guest_offset)))


def _again(finding: Finding) -> Finding:
    return msgspec.structs.replace(finding, more=finding.more + 1)


def apply_waivers(
    findings: Iterable[Finding], waivers: Waivers, today: datetime.date
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Findings with the reason of the waiver that covers them, and remarks on waivers that have no effect."""
    used: set[int] = set()
    done: list[Finding] = []
    for finding in findings:
        reason = ""
        for number, waiver in enumerate(waivers.allow):
            if waiver.expires < today or not fnmatch.fnmatchcase(finding.rule, waiver.rule):
                continue
            if not fnmatch.fnmatchcase(finding.path, waiver.path) or waiver.place not in ("*", finding.place.value):
                continue
            if waiver.digest and waiver.digest != finding.digest:
                continue
            reason = waiver.reason
            used.add(number)
            break
        if not reason and finding.rule == "key.authorized":
            declared = {key.fingerprint: key.reason for key in waivers.authorized_key}
            reason = next((why for print_, why in declared.items() if print_ in finding.detail), "")
        done.append(msgspec.structs.replace(finding, waived=reason) if reason else finding)
    stale = []
    for number, waiver in enumerate(waivers.allow):
        if waiver.expires < today:
            stale.append(f"the waiver of {waiver.rule} ended on {waiver.expires.isoformat()}")
        elif number not in used:
            stale.append(f"the waiver of {waiver.rule} covers nothing; remove it")
    return tuple(done), tuple(stale)
