"""One image for the scan: its blocks, then its files, and what both say together."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from casemate.cell.cell import open_cell
from casemate.cell.rawscan import RawResult, raw_scan
from casemate.cell.rawscan_files import scan_files
from casemate.engine.imagestore import OpenedImage
from casemate.engine.paths import Paths
from casemate.engine.policy_file import read_policy
from casemate.errors import CasemateError
from casemate.image.model import ImageHeader
from casemate.scan.engine import Engine
from casemate.scan.model import Hit
from casemate.scan.outcome import FileHit, Outcome, apply_waivers, merge
from casemate.scan.redact import Redactor
from casemate.scan.ruleset import RuleSet
from casemate.scan.waivers import Waivers

_NOT_SEEN: Final = "not seen: what is packed or encrypted inside files (gz, xz, zst, zip, squashfs, container layers)"


@dataclass(frozen=True, slots=True)
class Files:
    """Findings in files by name. ``not_scanned`` is not empty when they are no pass; ``read``: the cell started."""

    hits: tuple[FileHit, ...] = ()
    not_scanned: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    read: bool = False


NO_FILES: Final = Files(notes=("files were not read by name (--no-files): rules by path were not tried",))


@dataclass(frozen=True, slots=True)
class Blocks:
    """``seconds``: what the scan of them took."""

    raw: RawResult
    seconds: float


@dataclass(frozen=True, slots=True)
class ImageScanner:
    """An open image and what it is searched with. ``jobs``: processes; 0: one for each CPU."""

    opened: OpenedImage
    rules: RuleSet
    engine: Engine
    redactor: Redactor
    paths: Paths
    jobs: int
    progress: Callable[[str, int, int], None]

    def scan_blocks(self) -> Blocks:
        """Every block, in walls.

        Raises:
            HostError, VmError: no wall, or a scanner died.
        """
        started = time.monotonic()
        raw = self._jailed(
            self.opened.fd, self.opened.name, self.opened.header, lambda done, of: self.progress("blocks", done, of)
        )
        return Blocks(raw, time.monotonic() - started)

    def scan_files(self, keys: Sequence[bytes]) -> Files:
        """Files by name, through the throwaway VM. One that does not start is no pass: rules by path were not tried."""

        def jailed(fd: int, header: ImageHeader) -> list[Hit]:
            return [raw.hit for raw in self._jailed(fd, "files", header, lambda done, of: None).hits]

        opened = self.opened
        self.progress("files", 0, 1)
        try:
            with open_cell(opened.fd, opened.header, name=opened.name, keys=keys, paths=self.paths) as cell:
                found = scan_files(cell, self.rules.paths, self.redactor, jailed)
        except CasemateError as fault:
            what = f"files were not read by name: {fault.what}" + (f" ({fault.got})" if fault.got else "")
            return Files(not_scanned=(what.splitlines()[0],))
        self.progress("files", 1, 1)
        looked = f"{found.files} files looked at by name, {found.read_files} of them read"
        return Files(found.hits, found.not_scanned, (*found.notes, _NOT_SEEN, looked), read=True)

    def outcome(self, blocks: Blocks, files: Files, waivers: Waivers) -> Outcome:
        """Both together, with what is waived today."""
        raw, rules = blocks.raw, self.rules
        covered, stale = apply_waivers(
            merge(raw, files.hits, rules), waivers, datetime.datetime.now(datetime.UTC).date()
        )
        return Outcome(
            image=self.opened.name,
            format=self.opened.header.format,
            size_bytes=raw.size_bytes,
            read_bytes=raw.read_bytes,
            seconds=round(blocks.seconds, 3),
            rules=len(rules.rules) + len(rules.paths),
            findings=covered,
            by_name=files.read and not any("not read by name" in text for text in files.not_scanned),
            not_scanned=(*raw.notes, *files.not_scanned),
            notes=(*files.notes, *stale, *(f"rule not taken: {text}" for text in rules.not_taken)),
        )

    def _jailed(self, fd: int, name: str, header: ImageHeader, progress: Callable[[int, int], None]) -> RawResult:
        names = [rule.id for rule in self.rules.rules]
        reserved = read_policy(None).identity.uids()
        return raw_scan(fd, name, header, self.engine, names, self.paths, reserved, jobs=self.jobs, progress=progress)
