"""The public API, second half: what looks at machines that exist, ours or not. ``app.py`` starts and stops VMs.

Functions return plain data or report types of ``controls/audit_model.py`` and raise `CasemateError`. Everything below
is imported on use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casemate.audit.capture_collect import Taken
    from casemate.audit.judging import Setting
    from casemate.audit.run import Request
    from casemate.controls.audit_model import Report, TargetReport
    from casemate.controls.recipe import Recipe
    from casemate.facts.fact import Facts
    from casemate.harden.model import Hardened

__all__ = [
    "audit",
    "audit_stream",
    "capture_script",
    "collect_capture",
    "detect",
    "drawn_pictures",
    "emulator_recipe",
    "harden",
    "replace_hardened",
    "surface",
    "write_capture",
    "write_hardened",
    "write_pictures",
]


def audit(
    targets: Sequence[str] = (),
    *,
    pid: Sequence[int] = (),
    libvirt: str | None = None,
    command_line: Sequence[str] = (),
    root: Path | str | None = None,
    profile: str | None = None,
    waivers: Path | str | None = None,
    jobs: int | None = None,
    khc: Path | str | None = None,
    progress: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> Report:
    """Judge what exists against the catalogue; with nothing named: this host, its emulators and every VM that runs.

    Args:
        targets: names or ids of VMs of ours, and paths: libvirt domain XML, a directory of libvirt configuration,
            a disk image, an emulator's binary, a VMM's command line or configuration, a capture. What a path is, its
            content tells. ``-`` reads a document from standard input.
        pid: running emulators by process id.
        libvirt: connection URI; every domain that it has.
        command_line: a QEMU command, program first.
        root: a directory in place of this host's file tree.
        profile: name of the profile that weighs the findings; None takes the default.
        waivers: a waiver file.
        jobs: how many processes judge files at once; None takes one per core.
        khc: a result of kernel-hardening-checker (``-m json``) about this host or the one of ``root``; ``-`` reads it
            from standard input.
        progress: told (done, how many as far as known, what comes next).

    Raises:
        InputError: what was named is not there or cannot be audited (with several targets such a one stands in
            ``faults`` of the report); the profile does not exist; the waiver file has faults (SpecError).
    """
    from casemate.audit.run import audit_targets

    request, setting = _prepare(targets, pid, libvirt, command_line, root, profile, waivers, jobs, khc)
    return audit_targets(request, setting, progress=progress)


def audit_stream(
    targets: Sequence[str] = (),
    *,
    pid: Sequence[int] = (),
    libvirt: str | None = None,
    command_line: Sequence[str] = (),
    root: Path | str | None = None,
    profile: str | None = None,
    waivers: Path | str | None = None,
    jobs: int | None = None,
    khc: Path | str | None = None,
    progress: Callable[[int, int, str], None] = lambda done, of, what: None,
    fault: Callable[[str], None] = lambda text: None,
) -> Iterator[TargetReport]:
    """As `audit`, one target after the other, in the order given: memory does not grow with their number.

    Args:
        jobs: how many processes judge files at once; None takes one per core.
        fault: told each target that could not be audited at all, and why.
    """
    from casemate.audit.run import audit_stream as stream

    request, setting = _prepare(targets, pid, libvirt, command_line, root, profile, waivers, jobs, khc)
    yield from stream(request, setting, progress=progress, fault=fault)


def _prepare(
    targets: Sequence[str],
    pid: Sequence[int],
    libvirt: str | None,
    command_line: Sequence[str],
    root: Path | str | None,
    profile: str | None,
    waivers: Path | str | None,
    jobs: int | None,
    khc: Path | str | None,
) -> tuple[Request, Setting]:
    import datetime

    from casemate.audit.judging import Setting
    from casemate.audit.run import Request
    from casemate.controls.profiles import DEFAULT, named
    from casemate.controls.waivers import AuditWaiver, parse_waivers
    from casemate.errors import InputError
    from casemate.sys.parallel import default_jobs

    parsed: tuple[AuditWaiver, ...] = ()
    if waivers is not None:
        from casemate.audit.text import read_document

        parsed = parse_waivers(read_document(str(waivers)), str(waivers))
    setting = Setting(named(profile or DEFAULT), datetime.datetime.now(datetime.UTC).date(), parsed)
    request = Request(
        targets=tuple(targets),
        pids=tuple(pid),
        libvirt=libvirt,
        command_line=tuple(command_line),
        root=None if root is None else str(root),
        jobs=default_jobs() if jobs is None else jobs,
        imported={} if khc is None else _imported(str(khc)),
    )
    if khc is not None and not request.is_whole_host:
        raise InputError("--khc is about a host, and something else was named", next_step="leave the targets out")
    return request, setting


def _imported(name: str) -> Facts:
    """What kernel-hardening-checker said.

    Raises:
        InputError: it cannot be read, or is no result of that tool.
    """
    from casemate.audit.text import read_document
    from casemate.errors import InputError
    from casemate.facts.fact import Unknown
    from casemate.facts.kernel_khc import MAX_BYTES, import_khc

    source = "standard input" if name == "-" else name
    facts = import_khc(read_document(name, MAX_BYTES), source)
    for fact in facts.values():
        if isinstance(fact, Unknown):
            raise InputError(fact.why, next_step="kernel-hardening-checker -a -m json > FILE writes one")
    return facts


def harden(
    document: str | Sequence[str],
    *,
    keep: Sequence[str] = (),
    libvirt: str = "8.0",
    io_limit_mib_s: int | None = None,
) -> Hardened:
    """The hardened form of a machine, with every change, its reason and its cost.

    Args:
        document: path of a libvirt domain (the hardened domain comes back), of a Xen ``xl.cfg`` or of a file with a
            QEMU command line (a specification of ours comes back); ``-`` is standard input. Or a whole command line,
            as a sequence.
        keep: ids of controls whose changes are not made.
        libvirt: oldest version that has to understand a hardened domain, ``MAJOR.MINOR``.
        io_limit_mib_s: limit disk traffic that has no limit yet: of each disk of a domain, of the whole VM otherwise.

    Raises:
        InputError: not readable, nothing that can be hardened, an unknown id or version.
    """
    from casemate.audit.harden_targets import harden_argv, harden_document

    if isinstance(document, str):
        return harden_document(document, keep, libvirt, io_limit_mib_s)
    return harden_argv(tuple(document), keep, io_limit_mib_s)


def write_hardened(path: str, hardened: Hardened) -> None:
    """Write the hardened document to ``path``, all at once; readable by its owner only when it is new.

    Raises:
        OSError: it cannot be written.
    """
    from casemate.engine.files import write_atomic

    place = Path(path).resolve()
    mode = place.stat().st_mode & 0o777 if place.exists() else 0o600
    write_atomic(str(place), hardened.after.encode(), mode)


def replace_hardened(path: str, hardened: Hardened) -> str:
    """Replace the document that was hardened; the old one stays as ``.orig``, or as ``.bak`` when that exists.

    Returns:
        the name of the backup; empty when nothing was to be changed.

    Raises:
        InputError: standard input, another kind of document, or a file that has changed since it was read. OSError: it
            cannot be written.
    """
    import os

    from casemate.audit.text import read_input
    from casemate.engine.files import write_atomic
    from casemate.errors import InputError

    if path == "-" or hardened.kind != "domain":
        raise InputError("--in-place needs a libvirt domain in a file", next_step="-o FILE")
    if hardened.before == hardened.after:
        return ""
    place = Path(path).resolve()
    status = place.stat()
    before = hardened.before.encode()
    if read_input(str(place)) != before:
        raise InputError(f"{path} has changed since it was read", next_step="run it again")
    backup = Path(f"{place}.orig")
    if backup.is_symlink() or backup.exists():
        backup = Path(f"{place}.bak")
    for name, data in ((backup, before), (place, hardened.after.encode())):
        write_atomic(str(name), data, status.st_mode & 0o777)
        made = name.stat()
        if (made.st_uid, made.st_gid) != (status.st_uid, status.st_gid):
            os.chown(name, status.st_uid, status.st_gid)
    return str(backup)


def surface(
    target: Sequence[str] = (),
    *,
    pid: int | None = None,
    measure: bool = False,
    accel: str = "auto",
    report: Callable[[str], None] = lambda step: None,
    progress: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> dict[str, Any]:
    """The device model of one machine, sorted by risk: the document of ``casemate surface --json``.

    Args:
        target: a VM of ours by name or id, ``builtin``, the path of a specification, a libvirt domain or a file with
            a command line; or a whole QEMU command line.
        pid: a running QEMU in place of a target.
        measure: boot a guest with four devices and count the work per packet and block; then nothing has to be named.
        accel: of that guest: ``kvm``, ``tcg``, or ``auto``, KVM where it executes guests.
        report: told one line per long step. progress: told (done, how many, what comes next) while it counts.

    Raises:
        InputError: nothing named, not there, or nothing that describes a machine. HostError, VmError: the measuring
            guest could not be had, or failed.
    """
    from casemate.facts.cve_table import table
    from casemate.surface.build import measuring_document, surface_document

    document = measuring_document()
    if target or pid is not None or not measure:
        from casemate.audit.surface_targets import look_at

        document = surface_document(look_at(target, pid, report), table())
    if measure:
        from casemate.engine.measure import measure as count
        from casemate.engine.paths import default_paths, prepare
        from casemate.engine.policy_file import read_policy
        from casemate.spec.model import AccelChoice

        paths = default_paths()
        prepare(paths)
        document["measured"] = count(paths, read_policy(None), AccelChoice(accel), report=report, progress=progress)
        if not document["rows"]:
            document["accel"] = document["measured"]["accel"]
    return document


def drawn_pictures(document: dict[str, Any], width: int = 80) -> list[str]:
    """The data paths of a surface document, drawn as lines for a terminal of ``width`` columns."""
    from casemate.surface.pictures import document_text

    return document_text(document, width)


def write_pictures(path: str, document: dict[str, Any]) -> None:
    """Write the data paths of a surface document to ``path``, as one SVG.

    Raises:
        InputError: the machine has none that is known. OSError: it cannot be written.
    """
    from casemate.engine.files import write_atomic
    from casemate.errors import InputError
    from casemate.surface.pictures import document_svg

    svg = document_svg(document)
    if not svg:
        raise InputError(
            "there is nothing to draw",
            got="no network card and no disk whose path is known",
            expected="e1000 or its like, virtio-net, vhost-net, IDE or virtio-blk",
        )
    write_atomic(str(Path(path).resolve()), svg.encode(), 0o644)


def detect(root: str | None = None, *, expect: str | None = None) -> dict[str, Any]:
    """Whether this system, or a captured file tree, is virtualised: the document of ``casemate detect --json``.

    Args:
        root: directory of a captured tree; None looks at this system and its processor.
        expect: ``none``, or the name that the owner expects; ``expected.holds`` then says whether it is so.

    Raises:
        InputError: no such directory.
    """
    from casemate.facts.detect_view import detect_document

    return detect_document(root, expect)


def emulator_recipe(*, tcg: bool = False) -> Recipe:
    """The build recipe of a QEMU with only our devices, and what it changes, as measured.

    Args:
        tcg: keep TCG, for hosts without KVM.
    """
    from casemate.controls.recipe import build_recipe

    return build_recipe(tcg=tcg)


def collect_capture(*, progress: Callable[[int, int, str], None] = lambda done, of, what: None) -> Taken:
    """What ``casemate audit`` needs to judge this host elsewhere, in memory: bounded, filtered, without secrets.

    Raises:
        HostError: it is larger than a capture may be, or there is no /proc.
    """
    from casemate.audit.capture_collect import collect_capture as collect
    from casemate.audit.run import host_name
    from casemate.facts.root import Root
    from casemate.installed import installed_version

    return collect(Root(), host_name(Root()), f"casemate {installed_version()}", progress=progress)


def write_capture(taken: Taken, path: str) -> int:
    """Write a capture as an archive (packed when the name ends in .gz or .tgz), all at once; returns its size in bytes.

    Raises:
        InputError: it cannot be written.
    """
    from casemate.audit.capture_write import write_capture as write

    return write(taken, path)


def capture_script() -> str:
    """A shell script that makes the same capture on a host without Python."""
    from casemate.audit.capture_script import script
    from casemate.installed import installed_version

    return script(f"casemate {installed_version()}")
