"""The public API of scans: what a stranger would learn from an image, and whether it may be published.

Functions return the types of `scan.model` and `scan.outcome` and raise `CasemateError`. Everything below is imported
on use. No secret leaves the scanner: findings are redacted, digests are keyed with a key of the scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casemate.cell.cell import Cell
    from casemate.controls.audit_model import FileRef, TargetReport
    from casemate.facts.root import Root
    from casemate.image.opening import FileIdentity
    from casemate.scan.model import Finding
    from casemate.scan.outcome import Outcome
    from casemate.scan.ruleset import RuleSet

__all__ = [
    "RULES_MAX_BYTES",
    "audit_image",
    "bill_of_materials",
    "may_publish",
    "place_of",
    "publish",
    "read_key",
    "rule_set",
    "scan_image",
    "to_sarif",
]

RULES_MAX_BYTES = 4 << 20

Progress = Callable[[str, int, int], None]
"""(what is being done, done, of)."""


def rule_set(rule_file: str | None = None) -> RuleSet:
    """Our rules, and those of a file (ours or gitleaks').

    Raises:
        InputError: the file cannot be read or has a fault.
    """
    from casemate.scan.rulefile import read_rules
    from casemate.scan.ruleset import builtin, with_rules

    base = builtin()
    if rule_file is None:
        return base
    more, left = read_rules(_read_small(rule_file, "rule file"), rule_file)
    return with_rules(base, more, left)


def scan_image(
    reference: str,
    *,
    image_format: str | None = None,
    rule_file: str | None = None,
    waiver_file: str | None = None,
    key: bytes | None = None,
    plain: bool = False,
    jobs: int = 0,
    live: bool = True,
    keys: Sequence[bytes] = (),
    progress: Progress = lambda what, done, of: None,
    expected: FileIdentity | None = None,
) -> Outcome:
    """Scan an image of the store, or a raw or qcow2 file.

    Args:
        reference: name, digest, or file.
        image_format: ``raw`` or ``qcow2``; told by content when None.
        rule_file: more rules, ours or gitleaks'.
        waiver_file: findings that are accepted, and why.
        key: for the digests of findings, at least 16 bytes; random when None.
        plain: without hyperscan.
        jobs: number of processes; 0: one for each CPU.
        live: also read the files, through the throwaway VM.
        keys: passphrases or key files of encrypted volumes, whose files are then read; their blocks stay ciphertext.
        expected: the very file that it must be.

    Raises:
        InputError, ImageError: the image or a file is refused. HostError: no wall, no engine. VmError: a scanner died.
    """
    import datetime
    import os

    import msgspec

    from casemate.audit.refs import ref_of_image
    from casemate.audit.run import host_name
    from casemate.cell.rawscan_engine import build_engine
    from casemate.cell.rawscan_image import NO_FILES, ImageScanner
    from casemate.engine.imagestore import open_reference
    from casemate.engine.paths import default_paths, prepare
    from casemate.facts.root import Root
    from casemate.image.opening import verify_unchanged
    from casemate.scan import weak
    from casemate.scan.redact import Redactor
    from casemate.scan.waivers import NO_WAIVERS, read_waivers

    rules = rule_set(rule_file)
    waivers = read_waivers(_read_small(waiver_file, "waiver file"), waiver_file) if waiver_file else NO_WAIVERS
    redactor = Redactor(key)
    weak.prepare()
    paths = default_paths()
    prepare(paths)
    rules, engine = build_engine(rules, redactor, f"{paths.cache}/scan", plain=plain)
    opened = open_reference(reference, declared=image_format)
    try:
        if expected is not None:
            verify_unchanged(opened.fd, expected, opened.name)
        scanner = ImageScanner(opened, rules, engine, redactor, paths, jobs, progress)
        blocks = scanner.scan_blocks()
        files = scanner.scan_files(keys) if live else NO_FILES
        file = ref_of_image(opened)
    finally:
        os.close(opened.fd)
    return msgspec.structs.replace(
        scanner.outcome(blocks, files, waivers),
        path=file.path,
        identity=file.identity,
        sha256=file.sha256,
        host=host_name(Root()),
        time=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def may_publish(outcome: Outcome) -> None:
    """The gate of ``image publish``: nothing found that no waiver names, and everything was scanned.

    Raises:
        RefusedError: by control ``sec.keys``; says what stands in the way.
    """
    from casemate.errors import RefusedError

    if not outcome.failed and outcome.by_name:
        return
    open_ones = outcome.open_findings
    ids = ", ".join(dict.fromkeys(finding.rule for finding in open_ones))
    if open_ones:
        got = f"{len(open_ones)} findings ({ids})"
    elif outcome.not_scanned:
        got = f"not scanned: {outcome.not_scanned[0]}"
    else:
        got = "rules by path were not tried (--no-files)"
    raise RefusedError(
        "sec.keys",
        f"{outcome.image} may not be published",
        got=got,
        expected="an image without secrets of anybody",
        next_step="casemate image scan IMAGE shows them; remove them, or waive each by name: --allow-file waivers.toml",
    )


def audit_image(
    reference: str,
    *,
    image_format: str | None = None,
    keys: Sequence[bytes] = (),
    security_lists: str | None = None,
    profile: str | None = None,
    waiver_file: str | None = None,
) -> TargetReport:
    """Judge the guest of an image by its files: updates, accounts, sshd, sudo, kernel settings, identity.

    Args:
        keys: passphrases or key files of encrypted volumes.
        security_lists: a directory with ``var/lib/apt/lists`` below it, for images that carry none.
        profile, waiver_file: as for `assess.audit`.

    Raises:
        InputError, ImageError: the image is refused, or has no system. HostError, VmError: the cell did not start.
    """
    import datetime

    import msgspec

    from casemate.audit.judging import Setting, report_on
    from casemate.audit.text import read_document
    from casemate.cell.guest_audit import guest_facts
    from casemate.controls.audit_model import Target, TargetKind
    from casemate.controls.catalogue.guest_image_audit import CONTROLS
    from casemate.controls.profiles import DEFAULT, named
    from casemate.controls.waivers import parse_waivers
    from casemate.facts.fact import Known, Stage

    waivers = parse_waivers(read_document(waiver_file), waiver_file) if waiver_file else ()
    setting = Setting(named(profile or DEFAULT), datetime.datetime.now(datetime.UTC).date(), waivers)
    lists = _lists(security_lists)
    with _open_cell(reference, image_format, keys) as (cell, file):
        facts, _root = guest_facts(cell, reference, lists)
    system = facts["guest.os"]
    notes = (f"guest: {system.value}",) if isinstance(system, Known) else ()
    target = Target(TargetKind.IMAGE, reference.rpartition("/")[2], reference)
    report = report_on(target, facts, (), setting, stage=Stage.OBSERVED, notes=notes, controls=CONTROLS)
    return msgspec.structs.replace(report, file=file)


def build_debian(
    output: str,
    *,
    suite: str = "bookworm",
    size_mib: int = 2048,
    include: Sequence[str] = (),
    report: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda what, done, of: None,
) -> tuple[Outcome, TargetReport]:
    """Build a hardened Debian disk, then scan and audit it like anybody's; the file stays whatever they say.

    Args:
        output: a file that does not exist yet (raw, sparse).
        suite, size_mib, include: see `cell.debian_build.build_debian`.

    Raises:
        InputError, HostError, VmError: as there.
    """
    import shutil
    import tempfile

    from casemate.cell.debian_build import build_debian as build

    place = Path(output).absolute()
    work = tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent)
    try:
        built = build(str(place), work, suite=suite, size_mib=size_mib, include=include, report=report)
        report("scan and audit of what was built")
        outcome = scan_image(str(place), image_format="raw", progress=progress)
        findings = audit_image(str(place), image_format="raw", security_lists=built.lists)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return outcome, findings


def bill_of_materials(
    reference: str, kind: str, version: str, *, image_format: str | None = None, keys: Sequence[bytes] = ()
) -> dict[str, Any]:
    """The packages of an image as ``cyclonedx`` (1.5) or ``spdx`` (2.3).

    Raises:
        ImageError: no system in it, or its packages cannot be listed. Others as `audit_image`.
    """
    import datetime
    import re

    from casemate.cell.guest_tree import guest_root
    from casemate.engine.imagestore import default_store, look_up
    from casemate.errors import ImageError
    from casemate.facts.fact import Unknown
    from casemate.facts.guest_packages import installed_packages
    from casemate.scan.sbom import build

    now = datetime.datetime.now(datetime.UTC)
    with _open_cell(reference, image_format, keys) as (cell, _file):
        root = guest_root(cell, reference, now.timestamp())
    packages = installed_packages(root)
    if isinstance(packages, Unknown):
        raise ImageError(f"the packages of {reference} cannot be listed", got=packages.why)
    stored = look_up(default_store(), reference, Path.cwd())
    digest = stored.digest.removeprefix("sha256:") if stored is not None else ""
    text = root.read_text("/etc/os-release") if root.exists("/etc/os-release") else ""
    found = re.search(r"^ID=[\"']?([a-z0-9._-]+)", text, re.MULTILINE)
    name = stored.label if stored is not None else reference.rpartition("/")[2]
    return build(kind, packages, name, digest, found[1] if found else "", version, now)


@contextmanager
def _open_cell(reference: str, image_format: str | None, keys: Sequence[bytes]) -> Iterator[tuple[Cell, FileRef]]:
    import os

    from casemate.audit.refs import ref_of_image
    from casemate.cell.cell import open_cell
    from casemate.engine.imagestore import open_reference

    opened = open_reference(reference, declared=image_format)
    try:
        with open_cell(opened.fd, opened.header, name=opened.name, keys=keys) as cell:
            yield cell, ref_of_image(opened)
    finally:
        os.close(opened.fd)


def _lists(directory: str | None) -> Root | None:
    if directory is None:
        return None
    from casemate.errors import InputError
    from casemate.facts.root import Root
    from casemate.facts.updates import LISTS

    root = Root(Path(directory).resolve())
    try:
        there = root.exists(LISTS)
    except OSError:
        there = False
    if not there:
        raise InputError(
            f"{directory} holds no lists of packages",
            expected=f"a directory with {LISTS.lstrip('/')} below it",
            next_step="--security-lists / takes this host's own, if it is the same distribution and apt update ran",
        )
    return root


def publish(
    reference: str,
    directory: str,
    *,
    name: str | None = None,
    image_format: str | None = None,
    rule_file: str | None = None,
    waiver_file: str | None = None,
    progress: Progress = lambda what, done, of: None,
) -> tuple[Outcome, str, str]:
    """Scan an image and, if `may_publish` lets it, put it into a directory with its line in ``SHA256SUMS``.

    Args:
        directory: exists; a web server's, for example. `image repo` keeps signed ones.
        name: of the file there; the image's own when None.

    Returns:
        the outcome, path of the published file, its SHA-256.

    Raises:
        RefusedError: something was found that no waiver names. ImageError: the image changed meanwhile.
        InputError: the directory has another file of that name. Others as `scan_image`.
    """
    import os

    from casemate.cell.publish import publish_file
    from casemate.engine.imagestore import open_reference
    from casemate.image.opening import identity_of, verify_unchanged

    opened = open_reference(reference, declared=image_format)
    try:
        identity = identity_of(opened.fd)
        outcome = scan_image(
            reference,
            image_format=image_format,
            rule_file=rule_file,
            waiver_file=waiver_file,
            progress=progress,
            expected=identity,
        )
        may_publish(outcome)
        path, digest = publish_file(
            opened.fd,
            directory,
            name or (opened.stored.label if opened.stored else Path(opened.path).name),
            lambda done, of: progress("copy", done, of),
            lambda: verify_unchanged(opened.fd, identity, opened.name),
        )
    finally:
        os.close(opened.fd)
    return outcome, path, digest


def to_sarif(outcome: Outcome, version: str) -> str:
    """The outcome for code scanning (SARIF 2.1.0)."""
    from casemate.scan.sarif import outcome_to_sarif

    return outcome_to_sarif(outcome, rule_set(), version)


def place_of(finding: Finding) -> str:
    """Where a finding lies, in words."""
    from casemate.scan.sarif import where

    return where(finding)


def read_key(name: str) -> bytes:
    """A key for digests, from a file.

    Raises:
        InputError: it cannot be read.
    """
    return _read_small(name, "key file")


def _read_small(name: str, what: str) -> bytes:
    from casemate.audit.text import read_input

    return read_input(name, RULES_MAX_BYTES)
