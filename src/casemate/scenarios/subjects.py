"""From audits to the VMs of a risk analysis: each with what was found about its host, its emulator and its disks. Pure.

1. A host's findings hold for its VMs, and for no other host's.
2. A VM has the findings of the emulator that it runs. Where that is not known, each control stands as in the worst of
   the host's emulators; where it is known and was not audited, what depends on its build is unknown.
3. A VM has the findings of the images that it uses. What must hold of its disks (`sec.keys`, `img.…`) stands as in the
   worst of them, and is unknown while one was not audited. What the guest's own files say (`answers.py`) comes from
   the one disk with a system; two of them, or one behind a disk that nobody looked at, are ambiguous: unknown.
4. What is known against its emulator concerns a VM only where a part of it is reached (`dev.cve`). Where its own audit
   could not say that, the numbers that reach it are put beside those that are open in its emulators; without these
   numbers the verdict on all that is built in counts (`bin.cve`).
5. What is joined to a VM that is only declared is on paper: nobody saw it use these files.

What a VM's own findings know already is only made worse by an image, never better.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from casemate.controls.audit_model import DiskRef, FileRef, TargetKind
from casemate.controls.model import Verdict
from casemate.facts.cve_reach import outcome, shortened
from casemate.facts.fact import Stage
from casemate.scenarios.answers import ANSWERS, answered
from casemate.scenarios.formula import UNJUDGED, State, Value
from casemate.scenarios.reading import Audit, Audited
from casemate.scenarios.risk import Subject
from casemate.scenarios.verdicts import Verdicts, states_of

_ABOUT_VMS: Final = frozenset(
    {TargetKind.VM, TargetKind.PROCESS, TargetKind.DOMAIN, TargetKind.COMMAND_LINE, TargetKind.VMM_CONFIG}
)
_OF_DISKS: Final = ("img.", "sec.")
_OF_GUESTS: Final = ("guest.",)
_CVES: Final = "dev.cve"
_CVES_OF_BUILD: Final = "bin.cve"


class Image(msgspec.Struct, frozen=True):
    """An audited image, and the host and time of that audit."""

    host: str
    time: str
    target: Audited


class _Joined(msgspec.Struct, frozen=True):
    states: dict[str, State]
    evidence: dict[str, str]
    notes: tuple[str, ...]


_NOTHING: Final = _Joined({}, {}, ())


def images_of(audits: Iterable[Audit]) -> tuple[Image, ...]:
    """Every image of these audits, the latest audit first."""
    found = [
        Image(target.host or audit.host, audit.time, target)
        for audit in audits
        for target in audit.targets
        if target.kind is TargetKind.IMAGE and target.file is not None
    ]
    return tuple(sorted(found, key=lambda image: image.time, reverse=True))


def subjects_of(
    audit: Audit, images: Sequence[Image] | None = None, *, with_evidence: bool = False
) -> Iterator[Subject]:
    """Every VM of an audit with all that was found about it; a host alone, as one subject, where none was.

    Args:
        images: audited at other times; None takes those of this audit.
    """
    pool = images_of([audit]) if images is None else images
    by_host: dict[str, list[Audited]] = {}
    for target in audit.targets:
        if target.kind is not TargetKind.IMAGE:
            by_host.setdefault(target.host or audit.host, []).append(target)
    for host, targets in by_host.items():
        yield from _subjects_of_host(host, targets, pool, with_evidence=with_evidence)


def _subjects_of_host(
    host: str, targets: Sequence[Audited], pool: Sequence[Image], *, with_evidence: bool
) -> Iterator[Subject]:
    own = [finding for target in targets if target.kind is TargetKind.HOST for finding in _staged(target)]
    emulators = [target for target in targets if target.kind is TargetKind.EMULATOR]
    shared, seen = states_of(own), _evidence(own) if with_evidence else {}
    builds: dict[tuple[int, ...], tuple[dict[str, State], dict[str, str]]] = {}
    vms = [target for target in targets if target.kind in _ABOUT_VMS]
    for target in vms:
        chosen, note = _emulators_of(target, emulators)
        if chosen not in builds:
            found = [finding for number in chosen for finding in _staged(emulators[number])]
            builds[chosen] = states_of(found), _evidence(found) if with_evidence else {}
        build, build_seen = builds[chosen]
        joined = _images_of_vm(target, host, pool) if pool else _NOTHING
        states = shared | build | states_of(_staged(target))
        cves, cve_text = _cves_of(target, [emulators[number] for number in chosen], states)
        if cves != UNJUDGED:
            states[_CVES] = cves
        states |= {control: _worse(states.get(control), state) for control, state in joined.states.items()}
        evidence: dict[str, str] = {}
        if with_evidence:
            evidence = _together(seen | build_seen | _evidence(target.findings), joined.evidence)
            evidence |= {_CVES: cve_text} if cve_text else {}
        yield Subject(
            name=target.name,
            kind=target.kind.value,
            host=host,
            states=states,
            history=target.history,
            notes=(*target.notes, *note, *joined.notes),
            evidence=evidence,
        )
    if not vms and (own or emulators):
        found = [finding for target in emulators for finding in _staged(target)]
        yield Subject(
            name=host,
            kind=TargetKind.HOST.value,
            host=host,
            states=shared | states_of(found),
            notes=("no VM was audited: what depends on one is unknown",),
            evidence=seen | _evidence(found) if with_evidence else {},
        )


def _cves_of(vm: Audited, emulators: Sequence[Audited], states: Mapping[str, State]) -> tuple[State, str]:
    """(where `dev.cve` stands, what says so where the VM's own audit does not): step 4."""
    own = states.get(_CVES, UNJUDGED)
    if own.value is not Value.UNKNOWN or own.absent:
        return own, ""
    unfixed = [entry.unfixed for entry in emulators]
    if vm.undecided is None or not unfixed or any(entry is None for entry in unfixed):
        build = states.get(_CVES_OF_BUILD, UNJUDGED)
        told = f"as all that is built in: {_CVES_OF_BUILD} {_WORDS[build.value]}"
        return build, told if build.value is not Value.UNKNOWN else ""
    found = [outcome(vm.history, vm.undecided, each.open, each.unrecorded) for each in unfixed if each is not None]
    left = tuple(dict.fromkeys(number for numbers, _ in found for number in numbers))
    unclear = tuple(dict.fromkeys(number for _, numbers in found for number in numbers))
    if left:
        return State(Value.NO), f"fail: {shortened(left)} of its emulator reach a part that it has"
    if unclear:
        return (
            UNJUDGED,
            f"unknown: whether it has what {shortened(unclear)} of its emulator need, or whether they are fixed",
        )
    there = tuple(dict.fromkeys(name for each in unfixed if each is not None for name in each.open))
    text = f"pass: no part that it has is reached by what is open in its emulator ({shortened(there) or 'nothing'})"
    return State(Value.PAPER if vm.stage is Stage.DECLARED else Value.YES), text


def _worse(known: State | None, joined: State) -> State:
    """What the VM's own findings know is only made worse; what they do not know is taken over."""
    if known is None or known.value is Value.UNKNOWN:
        return joined
    return joined if joined.value is Value.NO else known


def _together(evidence: dict[str, str], joined: dict[str, str]) -> dict[str, str]:
    return evidence | {name: f"{evidence[name]}; {text}" if name in evidence else text for name, text in joined.items()}


def _emulators_of(vm: Audited, emulators: Sequence[Audited]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """(numbers of the emulators whose findings count, a note): step 2."""
    everything = tuple(range(len(emulators)))
    if len(emulators) < 2 and (vm.emulator is None or not emulators or emulators[0].file is None):
        return everything, ()
    if vm.emulator is None or any(entry.file is None for entry in emulators):
        return everything, (f"which of {len(emulators)} emulators it runs is not known: the worst of them counts",)
    same = tuple(n for n, entry in enumerate(emulators) if entry.file is not None and vm.emulator.is_same(entry.file))
    if same:
        return same, ()
    runs = vm.emulator.path or "a file that is not named"
    return (), (f"the emulator that it runs ({runs}) was not audited: what depends on its build is unknown",)


def _images_of_vm(vm: Audited, host: str, pool: Sequence[Image]) -> _Joined:
    """Step 3."""
    if vm.disks is None or not vm.disks:
        return _NOTHING
    found = [_of_disk(disk, host, pool) for disk in vm.disks]
    if not any(found):
        return _join_nothing(vm.disks, host, pool)
    notes = [f"{_name(disk)} was not audited" for disk, images in zip(vm.disks, found, strict=True) if not images]
    per_disk = [_states_of_images(images) for images in found]
    states = _of_all_disks(per_disk, complete=not notes)
    guest, why = _system_of(vm.disks, per_disk)
    notes += [why] if why else []
    evidence: dict[str, str] = {}
    for control, (state, by) in answered(guest).items():
        states[control] = _worse(states.get(control), state)
        said = ", ".join(f"{name} {_WORDS[guest.get(name, UNJUDGED).value]}" for name in by)
        evidence[control] = f"by the files of its image: {said}"
    states |= {name: state for name, state in guest.items() if name not in states}
    if why:
        # Nobody can tell which system it is: what an image says of a guest says nothing here.
        evidence |= {answer.control: f"unknown ({why})" for answer in ANSWERS}
    if vm.stage is Stage.DECLARED:  # 5.
        states = {name: _on_paper(state) for name, state in states.items()}
    for images in found:
        for name, text in _evidence([item for image in images for item in image.target.findings]).items():
            evidence.setdefault(name, text)
    return _Joined(states, evidence, tuple(notes[:4]))


_WORDS: Final = {Value.NO: "fails", Value.UNKNOWN: "is unknown", Value.PAPER: "is declared", Value.YES: "passes"}


def _on_paper(state: State) -> State:
    return State(min(state.value, Value.PAPER), state.absent)


def _name(disk: FileRef) -> str:
    return f"disk {disk.path}" if disk.path else "a disk without a file name"


def _of_disk(disk: DiskRef, host: str, pool: Sequence[Image]) -> list[Image]:
    """The audited images that are this disk, the latest audit first. A name or inode counts on one host only."""
    return [
        image
        for image in pool
        if image.target.file is not None
        and (image.host == host or (disk.sha256 and disk.sha256 == image.target.file.sha256))
        and disk.is_same(image.target.file)
    ]


def _join_nothing(disks: Sequence[DiskRef], host: str, pool: Sequence[Image]) -> _Joined:
    """No image is one of its disks; said where one has the name of a disk and is another file."""
    for disk in disks:
        for image in pool:
            file = image.target.file
            if file is not None and image.host == host and disk.path and disk.path == file.path:
                note = f"{_name(disk)} is another file by now than the one that was audited: its findings do not count"
                return _Joined({}, {}, (note,))
    return _NOTHING


def _states_of_images(images: Sequence[Image]) -> dict[str, State]:
    """Of one disk; a later audit replaces what an earlier one said of a control, unless it left it to a person."""
    states: dict[str, State] = {}
    for image in reversed(images):
        states |= states_of(item for item in _staged(image.target) if item.verdict is not Verdict.MANUAL)
    return states


def _of_all_disks(per_disk: Sequence[Mapping[str, State]], *, complete: bool) -> dict[str, State]:
    """What must hold of each disk: the worst of them."""
    names = {name for states in per_disk for name in states if name.startswith(_OF_DISKS)}
    worst = {}
    for name in names:
        found = min((states.get(name, UNJUDGED) for states in per_disk), key=lambda state: (state.value, state.absent))
        worst[name] = found if complete or found.value is Value.NO else UNJUDGED
    return worst


def _system_of(disks: Sequence[DiskRef], per_disk: Sequence[Mapping[str, State]]) -> tuple[Mapping[str, State], str]:
    """(what the files of its system say, why nobody can tell which system it is)."""
    systems = [n for n, states in enumerate(per_disk) if any(name.startswith(_OF_GUESTS) for name in states)]
    if not systems:
        return {}, ""
    if len(systems) > 1:
        names = ", ".join(_name(disks[number]) for number in systems)
        return {}, f"{names} each hold a system: which one it boots is not known, so what they say of the guest is not"
    before = [n for n in range(systems[0]) if not disks[n].removable]
    if before:
        first = _name(disks[before[0]])
        return {}, f"{first} comes before the disk whose system was audited: which one it boots is not known"
    return {name: state for name, state in per_disk[systems[0]].items() if not name.startswith(_OF_DISKS)}, ""


def _evidence(findings: Iterable[Verdicts]) -> dict[str, str]:
    """By control: the verdict, the reason where it is no pass, and what was read."""
    texts: dict[str, str] = {}
    for found in findings:
        why = "" if found.verdict is Verdict.PASS else f" ({found.why})"
        text = f"{found.verdict.value}{why}: {found.evidence}"
        texts[found.control] = f"{texts[found.control]}; {text}" if found.control in texts else text
    return texts


def _staged(target: Audited) -> Iterator[Verdicts]:
    """Findings of a declared document are declared, whatever each says of itself."""
    for finding in target.findings:
        if target.stage is Stage.DECLARED and finding.stage is not Stage.DECLARED:
            yield msgspec.structs.replace(finding, stage=Stage.DECLARED)
        else:
            yield finding
