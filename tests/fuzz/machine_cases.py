"""What the fuzzers of machine descriptions share: seeds, one input judged whole, and a mutation of a seed.

Whatever the bytes, a reader gives a machine or raises InputError; every fact of it is of a known kind, and every
control comes to a verdict. What a reader says it did not understand must not turn into a pass.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

from casemate.audit.documents import read_machine
from casemate.controls.audit_model import TargetKind
from casemate.controls.catalogue.all import controls_about
from casemate.controls.judge import judge
from casemate.controls.model import Subject, Verdict
from casemate.errors import InputError
from casemate.facts.fact import Known, Stage, Unknown
from casemate.facts.machine_facts import machine_facts

TESTS = Path(__file__).parents[1]
CORPUS = Path(__file__).parent / "corpus"
LISTS = ("dev.no-floppy", "dev.no-legacy-nic", "iommu.no-hostdev", "img.no-remote")
"""Controls that pass on the absence of something: they may not while a part of the description was not understood."""


@cache
def seeds(kind: str) -> tuple[bytes, ...]:
    """Real documents of one kind."""
    vmm, domains, libvirt = TESTS / "data" / "vmm", TESTS / "data" / "domains", TESTS / "data" / "libvirt"
    if kind == "domain":
        files = [*sorted(domains.glob("*.xml")), *sorted(libvirt.glob("*.xml"))]
    elif kind == "vmm-config":
        files = [*sorted(vmm.glob("*.json")), *sorted(vmm.glob("*.toml"))]
    else:
        files = sorted(vmm.glob("*.cmd"))
        argv = [path.read_bytes().replace(b"\n", b"\0") for path in sorted(libvirt.glob("*.argv"))]
        return (*(path.read_bytes() for path in files), *argv)
    return tuple(path.read_bytes() for path in files)


def one_input(kind: str, data: bytes) -> None:
    """Read, turn into facts, judge."""
    try:
        machine = read_machine(TargetKind(kind), data, "fuzz")
    except InputError:
        return
    for stage in (Stage.DECLARED, Stage.OBSERVED):
        facts = machine_facts(machine, stage)
        for name, fact in facts.items():
            if isinstance(fact, Unknown):
                continue
            if not isinstance(fact, Known) or not isinstance(fact.value, (str, int, float, bool, tuple)):
                raise AssertionError(f"{name} is of no known kind")
            if isinstance(fact.value, tuple) and not all(isinstance(item, str) for item in fact.value):
                raise AssertionError(f"{name} holds something else than text")
        verdicts = {f.control_id: f.verdict for f in judge(controls_about(Subject.VM), facts, stage=stage)}
        if machine.unreadable and any(verdicts[name] is Verdict.PASS for name in LISTS):
            raise AssertionError("a list passed although a part of it was not read")


def mutated(kind: str, choices: bytes) -> bytes:
    """A seed with pieces replaced, repeated and cut as ``choices`` says: the first byte chooses, then four for each."""
    if not choices:
        return b""
    found = seeds(kind)
    image = bytearray(found[choices[0] % len(found)])
    for start in range(1, len(choices) - 3, 4):
        position, length, value = struct.unpack_from("<HBB", choices, start)
        at = position % max(len(image), 1)
        if value % 3 == 0:
            image[at : at + 1] = bytes([length])
        elif value % 3 == 1:
            image[at : at + length] = b""
        elif len(image) < 1 << 16:
            image[at:at] = image[at : at + length] * (value % 7)
    return bytes(image)


def fuzz(kind: str) -> None:
    """Hand over to libFuzzer; the first directory named gets what it finds, the kept corpus is read too."""
    import sys

    import atheris

    def both(data: bytes) -> None:
        one_input(kind, data)
        one_input(kind, mutated(kind, data))

    atheris.instrument_all()
    atheris.Setup([*sys.argv, str(CORPUS / kind)], both)
    atheris.Fuzz()
