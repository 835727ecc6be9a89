"""The public API of risk: from audits to open attack paths, the cheapest fixes, and what remains.

Everything below is imported on use, as in ``app.py``. Types are those of ``scenarios/risk_model.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from casemate.errors import InputError

if TYPE_CHECKING:
    from casemate.controls.audit_model import Report
    from casemate.scenarios.context import Context
    from casemate.scenarios.difference import Difference
    from casemate.scenarios.formula import State
    from casemate.scenarios.placements import Comparison
    from casemate.scenarios.reading import Audit
    from casemate.scenarios.risk import Settings, Subject
    from casemate.scenarios.risk_model import RiskReport, VmRisk
    from casemate.scenarios.subjects import Image

__all__ = [
    "WhatIf",
    "analyse",
    "analyse_stream",
    "compare_placements",
    "difference_of",
    "init_context",
    "line_of",
    "lines_of_files",
    "load_audit",
    "load_context",
]

AUDIT_MAX_BYTES = 512 << 20
HEAD_BYTES = 4096
_worker: tuple[Context | None, Settings] | None = None
_OPEN, _QUIET = "!", " "
CONTEXT_MAX_BYTES = 1 << 20


class WhatIf:
    """Statements in place of findings: what would be if.

    Args:
        assume: control ids to "pass" or "fail".
        without: layers of the catalogue whose controls all count as failed.
        fix_all_below: controls that do not hold and cost at most so many points count as passed.

    Raises:
        InputError: ``fix_all_below`` is no cost.
    """

    def __init__(
        self,
        *,
        assume: Mapping[str, str] | None = None,
        without: Sequence[str] = (),
        fix_all_below: float | None = None,
    ) -> None:
        if fix_all_below is not None and not 0 <= fix_all_below < float("inf"):
            raise InputError("--fix-all-below is a cost in points", got=f"{fix_all_below:g}", expected="0 or more")
        self.assume = dict(assume or {})
        self.without = tuple(without)
        self.fix_all_below = fix_all_below

    def texts(self) -> tuple[str, ...]:
        """Each statement in words."""
        texts = [f"{control} is assumed to {verdict}" for control, verdict in sorted(self.assume.items())]
        texts += [f"without the layer {layer}" for layer in self.without]
        if self.fix_all_below is not None:
            texts.append(f"everything that costs at most {self.fix_all_below:g} points is assumed fixed")
        return tuple(texts)


def analyse(
    targets: Sequence[str] = (),
    *,
    pids: Sequence[int] = (),
    context: Context | None = None,
    what_if: WhatIf | None = None,
    with_evidence: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> RiskReport:
    """Audit what is named (or this host and every VM that runs), or read audits made earlier, and analyse all VMs.

    Args:
        targets: files written by ``casemate audit --json`` or ``--jsonl``, ``casemate image audit --json`` or
            ``casemate image scan --json``; anything else is a target of an audit, made now, together with this host
            where what is named runs here.
        pids: running emulators by process id.
        context: the owner's statements; None takes the defaults.
        with_evidence: keep what was read for each control, for pages that show it.

    Raises:
        InputError: a file is no audit or was made with another catalogue; a target does not exist; a what-if names a
            control or layer that does not exist.
    """
    from casemate.scenarios.subjects import images_of

    audits = list(_audits(targets, progress, pids))
    settings = _settings(context)
    images = images_of(audits)
    found = (_analysed(audit, settings, what_if, images, with_evidence=with_evidence) for audit in audits)
    vms = tuple(vm for some in found for vm in some)
    return _report(audits, vms, settings.context, what_if)


def analyse_stream(
    files: Sequence[str], *, context: Context | None = None, what_if: WhatIf | None = None, jobs: int | None = None
) -> Iterator[VmRisk]:
    """One VM after the other out of many audits, in order; little of one file is kept when the next begins.

    Args:
        files: reports of audits, captures, or whatever else `analyse` takes, each judged by itself: what one file says
            of an image is not joined to a VM of another.
        jobs: processes that work on files; None takes one per core.

    Raises:
        InputError: as `analyse`, at the file it happens in.
    """
    import msgspec

    from casemate.scenarios.risk_model import VmRisk

    if _processes(files, jobs) == 1:
        settings = _settings(context)
        for name in files:
            for audit in _audits([name], _silent):
                yield from _analysed(audit, settings, what_if)
        return
    decoder = msgspec.json.Decoder(VmRisk)
    for line, _ in lines_of_files(files, context=context, what_if=what_if, jobs=jobs):
        yield decoder.decode(line)


def lines_of_files(
    files: Sequence[str], *, context: Context | None = None, what_if: WhatIf | None = None, jobs: int | None = None
) -> Iterator[tuple[str, bool]]:
    """As `analyse_stream`, each VM as its line of JSON (`line_of`), and whether a path of it is open.

    The lines are written by the processes that work on the files, so that nobody has to read them again.
    """
    from functools import partial

    from casemate.sys.parallel import ordered_map

    if _processes(files, jobs) == 1:
        for vm in analyse_stream(files, context=context, what_if=what_if, jobs=1):
            yield line_of(vm), bool(vm.counts["open"])
        return
    work = partial(_lines_of_file, context, what_if)
    for lines in ordered_map(work, files, _processes(files, jobs)):
        for line in lines:
            yield line[1:], line[0] == _OPEN


def _processes(files: Sequence[str], jobs: int | None) -> int:
    from casemate.sys.parallel import default_jobs

    return max(1, min(jobs or default_jobs(), len(files)))


def _lines_of_file(context: Context | None, what_if: WhatIf | None, name: str) -> list[str]:
    """All VMs of one file, each a line behind a letter that says whether a path is open: what a worker hands back."""
    global _worker
    if _worker is None or _worker[0] != context:
        _worker = context, _settings(context)
    settings = _worker[1]
    found = (vm for audit in _audits([name], _silent) for vm in _analysed(audit, settings, what_if))
    return [(_OPEN if vm.counts["open"] else _QUIET) + line_of(vm) for vm in found]


def _silent(done: int, of: int, what: str) -> None:
    """Progress that nobody watches."""


def load_audit(name: str) -> Audit:
    """An audit that was written as JSON or JSONL, or a scan of an image.

    Raises:
        InputError: it cannot be read, is none, or was judged by another version of the catalogue.
    """
    from casemate.audit.run import catalogue_version
    from casemate.audit.text import read_input
    from casemate.scenarios.reading import parse_audit
    from casemate.scenarios.scan_reading import is_scan, parse_scan

    data, ours = read_input(name, AUDIT_MAX_BYTES), catalogue_version()
    if is_scan(data[:HEAD_BYTES]):
        return parse_scan(data, name, ours)
    audit = parse_audit(data, name)
    if audit.catalogue != ours:
        raise InputError(
            f"{name} was judged by another version of the catalogue",
            got=audit.catalogue[:64],
            expected=ours,
            next_step="audit again with this version (captures keep the facts: casemate audit CAPTURE.tar --json)",
        )
    return audit


def load_context(name: str) -> Context:
    """The owner's statements.

    Raises:
        InputError, SpecError: it cannot be read, or has faults (all of them together).
    """
    from casemate.audit.text import read_input
    from casemate.controls.catalogue.all import all_controls
    from casemate.scenarios.context import parse_context
    from casemate.scenarios.data import graph

    text = read_input(name, CONTEXT_MAX_BYTES).decode("utf-8", "backslashreplace")
    return parse_context(text, name, graph(), frozenset(control.id for control in all_controls()))


def init_context(path: Path | str, *, replace: bool = False) -> None:
    """Write a context file with the defaults and a comment on each, to be changed by its owner.

    Raises:
        InputError: the file exists and may not be replaced, or cannot be written.
    """
    from casemate.scenarios.context_file import default_text

    try:
        with open(path, "w" if replace else "x", encoding="utf-8") as stream:
            stream.write(default_text())
    except FileExistsError:
        raise InputError(f"{path} exists", next_step="--force replaces it") from None
    except OSError as error:
        raise InputError(f"cannot write {path}", got=(error.strerror or str(error)).lower()) from None


def compare_placements(
    targets: Sequence[str] = (),
    *,
    pids: Sequence[int] = (),
    services: int = 3,
    what_if: WhatIf | None = None,
    progress: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> Comparison:
    """The same services on separate machines, on one system, in one VM, in one VM each, judged by one VM's controls.

    Args:
        targets: as in `analyse`; the first VM found gives the controls.
        services: how many, 2 to 10,000.

    Raises:
        InputError: as `analyse`; the number is out of range; nothing was found to judge by.
    """
    from casemate.facts.cve_table import table
    from casemate.scenarios.data import graph
    from casemate.scenarios.placements import compare
    from casemate.scenarios.subjects import images_of, subjects_of

    if not 2 <= services <= 10_000:
        raise InputError("number of services", got=str(services), expected="2 to 10000")
    audits = list(_audits(targets, progress, pids))
    images = images_of(audits)
    for audit in audits:
        for subject in subjects_of(audit, images):
            return compare(
                graph(),
                subject.states if what_if is None else _assumed(subject, _settings(None), what_if),
                subject.history,
                table(),
                services=services,
                evidence=f"{subject.kind} {subject.name} on {subject.host}",
                audited=audit.time,
                assumed=() if what_if is None else what_if.texts(),
            )
    raise InputError("nothing was audited", next_step="name a VM, a libvirt domain or an audit")


def difference_of(was: RiskReport, now: RiskReport) -> Difference:
    """What changed between two analyses, of two dates or two hosts."""
    from casemate.scenarios.difference import difference

    return difference(was, now)


def line_of(vm: VmRisk) -> str:
    """One VM as a line of JSON, schema ``casemate.risk-vm/1``."""
    import msgspec

    return msgspec.json.encode({"schema": "casemate.risk-vm/1", **msgspec.to_builtins(vm)}).decode()


def _audits(
    targets: Sequence[str], progress: Callable[[int, int, str], None], pids: Sequence[int] = ()
) -> Iterator[Audit]:
    from casemate.scenarios.reading import audit_of

    files = [name for name in targets if _is_audit(name)]
    others = [name for name in targets if name not in files]
    for index, name in enumerate(files):
        progress(index, len(files), name)
        yield load_audit(name)
    if others or pids or not files:
        yield audit_of(_audit_now(others, pids, progress), ", ".join(others) or "this host")


def _is_audit(name: str) -> bool:
    import os

    from casemate.scenarios.reading import is_audit
    from casemate.scenarios.scan_reading import is_scan

    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return False  # the name of a VM, or nothing: the audit says which
    try:
        head = os.pread(descriptor, HEAD_BYTES, 0)
        return is_audit(head) or is_scan(head)
    except OSError:
        return False  # a pipe or a directory
    finally:
        os.close(descriptor)


def _audit_now(targets: Sequence[str], pids: Sequence[int], progress: Callable[[int, int, str], None]) -> Report:
    import datetime

    from casemate.audit.judging import Setting
    from casemate.audit.run import Request, audit_targets
    from casemate.controls.profiles import DEFAULT, named

    setting = Setting(named(DEFAULT), datetime.datetime.now(datetime.UTC).date())
    return audit_targets(Request(targets=tuple(targets), pids=tuple(pids), with_host=True), setting, progress=progress)


def _settings(context: Context | None) -> Settings:
    import datetime

    from casemate.controls.catalogue.all import all_controls
    from casemate.scenarios.context import Context
    from casemate.scenarios.costs import cost_of
    from casemate.scenarios.risk import Settings
    from casemate.scenarios.weigh import weigher

    said = Context() if context is None else context
    costs = {control.id: cost_of(control) for control in all_controls()} | said.costs
    return Settings(weigher(), said, costs.__getitem__, datetime.datetime.now(datetime.UTC).date())


def _analysed(
    audit: Audit,
    settings: Settings,
    what_if: WhatIf | None,
    images: Sequence[Image] | None = None,
    *,
    with_evidence: bool = False,
) -> Iterator[VmRisk]:
    import msgspec

    from casemate.scenarios.risk import risk_of
    from casemate.scenarios.subjects import subjects_of

    for subject in subjects_of(audit, images, with_evidence=with_evidence):
        states = subject.states if what_if is None else _assumed(subject, settings, what_if)
        yield risk_of(msgspec.structs.replace(subject, states=states), settings)


def _assumed(subject: Subject, settings: Settings, what_if: WhatIf) -> dict[str, State]:
    """The states with what is assumed in place of what was found; the narrowest statement wins."""
    from casemate.controls.catalogue.all import all_controls
    from casemate.controls.layers import Layer, layer_of
    from casemate.scenarios.formula import UNJUDGED, State, Value, fulfilled

    ids = [control.id for control in all_controls()]
    _refuse_unknown("control", what_if.assume, ids)
    _refuse_unknown("layer", what_if.without, [layer.value for layer in Layer])
    states = dict(subject.states)
    if what_if.fix_all_below is not None:
        open_ = [control for control in ids if states.get(control, UNJUDGED).value is not Value.YES]
        states = fulfilled(states, [c for c in open_ if settings.cost(c) <= what_if.fix_all_below])
    states |= {control: State(Value.NO) for control in ids if layer_of(control).value in what_if.without}
    for control, verdict in what_if.assume.items():
        states[control] = State(Value.YES if verdict == "pass" else Value.NO)
    return states


def _refuse_unknown(what: str, names: Iterable[str], known: Sequence[str]) -> None:
    import difflib

    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            few = ", ".join(known) if len(known) <= 20 else ""
            expected = f"did you mean {close[0]}?" if close else few
            raise InputError(f"there is no {what} {name!r}", expected=expected, next_step="casemate controls")


def _report(audits: Sequence[Audit], vms: tuple[VmRisk, ...], context: Context, what_if: WhatIf | None) -> RiskReport:
    import datetime

    from casemate.audit.run import catalogue_version
    from casemate.installed import installed_version
    from casemate.scenarios.context import NO_FILE
    from casemate.scenarios.risk_model import RiskReport

    return RiskReport(
        tool_version=installed_version(),
        catalogue=catalogue_version(),
        time=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        audited=min((audit.time for audit in audits), default=""),
        context=context.origin or NO_FILE,
        assumed=() if what_if is None else what_if.texts(),
        vms=vms,
        notes=() if vms else ("there is no VM and no host here: name the audit of one beside those of its images",),
    )
