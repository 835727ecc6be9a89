"""What is joined to a VM: its host's findings and no other's, the emulator that it runs, the images that it uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from casemate import assess, reports, risks, scans
from casemate.controls.audit_model import DiskRef, FileRef, TargetKind, Unfixed
from casemate.controls.catalogue.all import all_controls
from casemate.controls.model import Verdict
from casemate.errors import InputError
from casemate.facts.fact import Stage
from casemate.scenarios.answers import ANSWERS, answered
from casemate.scenarios.formula import UNJUDGED, State, Value
from casemate.scenarios.reading import Audit, Audited
from casemate.scenarios.risk import Subject
from casemate.scenarios.scan_reading import PASSWORDS
from casemate.scenarios.subjects import images_of, subjects_of
from casemate.scenarios.verdicts import Verdicts

NO, UNKNOWN, PAPER, YES = (State(value) for value in Value)
QEMU = FileRef(path="/usr/bin/qemu-system-x86_64", identity="1:10", sha256="a" * 64)
ROOT_DISK = DiskRef(path="/var/lib/images/web.qcow2", identity="1:20")
GOOD_GUEST = {name: Verdict.PASS for answer in ANSWERS for name in answer.by}


def found(findings: dict[str, Verdict]) -> tuple[Verdicts, ...]:
    return tuple(Verdicts(name, verdict) for name, verdict in findings.items())


def vm(name: str = "web", *, stage: Stage = Stage.OBSERVED, **more: object) -> Audited:
    kind = TargetKind.VM if stage is Stage.OBSERVED else TargetKind.DOMAIN
    return Audited(kind, name, stage, found({"dev.kvm": Verdict.PASS}), **more)  # type: ignore[arg-type]


def emulator(name: str, file: FileRef | None, verdict: Verdict) -> Audited:
    return Audited(TargetKind.EMULATOR, name, Stage.OBSERVED, found({"bin.pie": verdict}), file=file)


def image(file: FileRef, findings: dict[str, Verdict], *, host: str = "") -> Audited:
    return Audited(TargetKind.IMAGE, file.path, Stage.OBSERVED, found(findings), host=host, file=file)


def subjects(*targets: Audited, others: tuple[Audit, ...] = ()) -> list[Subject]:
    audit = Audit("x", "h", "2026-11-02", "c", targets)
    return list(subjects_of(audit, images_of([audit, *others]), with_evidence=True))


def joined(disks: tuple[DiskRef, ...], *images: Audited, stage: Stage = Stage.OBSERVED) -> Subject:
    (subject,) = subjects(vm(disks=disks, stage=stage), *images)
    return subject


# ---- hosts -------------------------------------------------------------------------------------------------


def test_a_host_speaks_for_its_own_vms_only() -> None:
    """Two captured hosts in one report: what is open on one is not on the other."""
    good = Audited(TargetKind.HOST, "a", Stage.OBSERVED, found({"os.mac": Verdict.PASS}), host="a")
    bad = Audited(TargetKind.HOST, "b", Stage.OBSERVED, found({"os.mac": Verdict.FAIL}), host="b")
    lone = Audited(TargetKind.HOST, "c", Stage.OBSERVED, found({"os.mac": Verdict.FAIL}), host="c")
    one, two, three = subjects(good, bad, lone, vm("x", host="a"), vm("y", host="b"))
    assert (one.host, one.states["os.mac"]) == ("a", YES)
    assert (two.host, two.states["os.mac"]) == ("b", NO)
    assert (three.kind, three.host) == ("host", "c")


def test_two_trees_in_one_audit_stay_apart(tmp_path: Path) -> None:
    """End to end: the hosts of two directory trees, one with a libvirt domain."""
    domain = (Path(__file__).parents[1] / "data/domains/nova.xml").read_bytes()
    for name, swaps in (("a", ""), ("b", "/dev/sda2 partition 1000 0 -2\n")):
        place = tmp_path / name
        (place / "proc/sys/kernel").mkdir(parents=True)
        (place / "proc/sys/kernel/hostname").write_text(f"host-{name}\n")
        (place / "proc/swaps").write_text(f"Filename Type Size Used Priority\n{swaps}")
        (place / "etc/libvirt/qemu").mkdir(parents=True)
        (place / "etc/libvirt/qemu/nova.xml").write_bytes(domain)
    report = risks.analyse([str(tmp_path / "a"), str(tmp_path / "b")], with_evidence=True)
    assert sorted(item.host for item in report.vms) == ["host-a", "host-b"]
    swap = {item.host: item.evidence["cpu.swap"].split(":")[0].split(" ")[0] for item in report.vms}
    assert swap == {"host-a": "pass", "host-b": "unknown"}, "whether that swap is encrypted, nobody can tell"


# ---- emulators -----------------------------------------------------------------------------------------------


def test_a_vm_has_the_emulator_that_it_runs() -> None:
    other = FileRef(path="/opt/bin/qemu-system-x86_64", identity="1:11")
    both = (emulator("good", QEMU, Verdict.PASS), emulator("bad", other, Verdict.FAIL))
    mine, its = subjects(vm(emulator=QEMU), vm("db", emulator=other), *both)
    assert (mine.states["bin.pie"], its.states["bin.pie"]) == (YES, NO)
    assert mine.notes == its.notes == ()


def test_which_emulator_is_not_known() -> None:
    """No name for the VM's, or none for one of the audited: the worst. One that was not audited: unknown, not worst."""
    other = FileRef(path="/opt/bin/qemu-system-x86_64", identity="1:11")
    good, bad = emulator("good", QEMU, Verdict.PASS), emulator("bad", other, Verdict.FAIL)
    (subject,) = subjects(vm(), good, bad)
    assert subject.states["bin.pie"] == NO
    assert "the worst of them counts" in subject.notes[0]
    (subject,) = subjects(vm(emulator=QEMU), good, emulator("old report", None, Verdict.FAIL))
    assert subject.states["bin.pie"] == NO
    for targets in ((good,), (good, bad)):
        (subject,) = subjects(vm(emulator=FileRef(path="/usr/bin/kvm", identity="1:99")), *targets)
        assert subject.states.get("bin.pie", UNJUDGED) == UNKNOWN
        assert "/usr/bin/kvm" in subject.notes[0]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (QEMU, QEMU, True),
        (FileRef(path="/a"), FileRef(path="/a"), True),
        (FileRef(path="/a", identity="1:2"), FileRef(path="/a", identity="1:3"), False),  # replaced since
        (FileRef(path="/a", identity="1:2"), FileRef(path="/b", identity="1:2"), False),  # the inode was used again
        (FileRef(identity="1:2"), FileRef(path="/b", identity="1:2"), True),
        (FileRef(sha256="a" * 64), QEMU, True),
        (FileRef(path=QEMU.path, sha256="b" * 64), QEMU, False),
        (FileRef(), FileRef(), False),
        (FileRef(path="/a"), FileRef(identity="1:2"), False),
    ],
)
def test_same_file(one: FileRef, other: FileRef, same: bool) -> None:
    assert one.is_same(other) is other.is_same(one) is same


LSI = "CVE-2024-6519"


@pytest.mark.parametrize(
    ("has", "may", "left", "observed", "declared"),
    [
        ((), (), Unfixed(open=(LSI,)), YES, PAPER),
        ((LSI,), (), Unfixed(open=(LSI,)), NO, NO),
        ((), (LSI,), Unfixed(open=(LSI,)), UNKNOWN, UNKNOWN),
        ((LSI,), (), Unfixed(unrecorded=(LSI,)), UNKNOWN, UNKNOWN),
        ((LSI,), (), Unfixed(), YES, PAPER),
        ((), None, Unfixed(open=(LSI,)), NO, NO),  # an older audit: all that is built in counts
        ((), (), None, NO, NO),
    ],
)
def test_a_known_bug_counts_where_the_vm_has_the_part(
    has: tuple[str, ...], may: tuple[str, ...] | None, left: Unfixed | None, observed: State, declared: State
) -> None:
    build = found({"bin.cve": Verdict.FAIL})
    qemu = Audited(TargetKind.EMULATOR, "qemu", Stage.OBSERVED, build, file=QEMU, unfixed=left)
    for stage, expected in ((Stage.OBSERVED, observed), (Stage.DECLARED, declared)):
        (subject,) = subjects(vm(stage=stage, emulator=QEMU, history=has, undecided=may), qemu)
        assert subject.states.get("dev.cve", UNJUDGED) == expected
        assert subject.states["bin.cve"] == NO
        by_build = may is None or left is None
        assert by_build is subject.evidence["dev.cve"].startswith("as all that is built in: bin.cve fails")


def test_of_several_emulators_the_worst_counts_and_its_own_audit_comes_first() -> None:
    one = Audited(TargetKind.EMULATOR, "new", Stage.OBSERVED, (), file=QEMU, unfixed=Unfixed())
    two = Audited(TargetKind.EMULATOR, "old", Stage.OBSERVED, (), unfixed=Unfixed(open=(LSI,)))
    (subject,) = subjects(vm(history=(LSI,), undecided=()), one, two)
    assert subject.states["dev.cve"] == NO
    assert LSI in subject.evidence["dev.cve"]
    judged = Audited(
        TargetKind.VM, "web", Stage.OBSERVED, found({"dev.cve": Verdict.PASS}), history=(LSI,), undecided=()
    )
    (subject,) = subjects(judged, one, two)
    assert subject.states["dev.cve"] == YES


# ---- images ----------------------------------------------------------------------------------------------------


def test_the_files_of_its_disk_answer_for_the_guest() -> None:
    subject = joined((ROOT_DISK,), image(ROOT_DISK, GOOD_GUEST))
    assert subject.states["guest.updates"] == subject.states["guest.root"] == subject.states["ent.no-haveged"] == YES
    assert subject.states["guest.lockdown"] == PAPER, "what lies on the disk is not what the kernel does"
    assert subject.states["guest.kernel"] == UNKNOWN, "its sysctls are not all of it"
    assert "guest.security-updates passes" in subject.evidence["guest.updates"]
    assert subject.notes == ()


def test_one_failure_in_the_image_is_one_in_the_guest() -> None:
    for answer in ANSWERS:
        for name in answer.by:
            subject = joined((ROOT_DISK,), image(ROOT_DISK, GOOD_GUEST | {name: Verdict.FAIL}))
            assert subject.states[answer.control] == NO, name
            subject = joined((ROOT_DISK,), image(ROOT_DISK, GOOD_GUEST | {name: Verdict.UNKNOWN}))
            assert subject.states[answer.control] == UNKNOWN, name


def test_a_declared_disk_answers_on_paper() -> None:
    subject = joined((ROOT_DISK,), image(ROOT_DISK, GOOD_GUEST), stage=Stage.DECLARED)
    assert subject.states["guest.updates"] == PAPER
    subject = joined(
        (ROOT_DISK,), image(ROOT_DISK, GOOD_GUEST | {"guest.one-root": Verdict.FAIL}), stage=Stage.DECLARED
    )
    assert subject.states["guest.root"] == NO


def test_another_file_or_another_host_answers_nothing() -> None:
    replaced = DiskRef(path=ROOT_DISK.path, identity="1:21")
    subject = joined((ROOT_DISK,), image(replaced, GOOD_GUEST))
    assert "guest.updates" not in subject.states
    assert "is another file by now" in subject.notes[0]
    assert "guest.updates" not in joined((ROOT_DISK,), image(ROOT_DISK, GOOD_GUEST, host="other")).states
    stored = DiskRef(path="/store/x", sha256="c" * 64)
    far = FileRef(path="/elsewhere/x", sha256="c" * 64)
    assert joined((stored,), image(far, GOOD_GUEST, host="other")).states["guest.updates"] == YES, "a digest is one"


def test_ambiguous_is_unknown_with_the_reason() -> None:
    second = DiskRef(path="/var/lib/images/old.qcow2", identity="1:30")
    two_systems = joined((ROOT_DISK, second), image(ROOT_DISK, GOOD_GUEST), image(second, GOOD_GUEST))
    behind = joined((second, ROOT_DISK), image(ROOT_DISK, GOOD_GUEST))
    for subject, said in ((two_systems, "each hold a system"), (behind, "comes before the disk")):
        assert subject.states.get("guest.updates", UNJUDGED) == UNKNOWN
        assert any(said in note for note in subject.notes)
        assert said in subject.evidence["guest.updates"]
    cd = DiskRef(path="/iso/tools.iso", removable=True)
    assert joined((cd, ROOT_DISK), image(ROOT_DISK, GOOD_GUEST)).states["guest.updates"] == YES


def test_what_must_hold_of_every_disk() -> None:
    """Secrets in one disk are secrets; none found in one of two disks says nothing about the other."""
    data = DiskRef(path="/var/lib/images/data.qcow2", identity="1:40")
    clean, dirty = {"sec.keys": Verdict.PASS}, {"sec.keys": Verdict.FAIL}
    assert joined((ROOT_DISK, data), image(ROOT_DISK, clean), image(data, clean)).states["sec.keys"] == YES
    assert joined((ROOT_DISK, data), image(ROOT_DISK, clean), image(data, dirty)).states["sec.keys"] == NO
    assert joined((ROOT_DISK, data), image(ROOT_DISK, dirty)).states["sec.keys"] == NO
    half = joined((ROOT_DISK, data), image(ROOT_DISK, clean))
    assert half.states["sec.keys"] == UNKNOWN
    assert half.notes == ("disk /var/lib/images/data.qcow2 was not audited",)


def scan(folder: Path, name: str, **more: Any) -> str:
    """A scan's JSON in a file."""
    document = {
        "schema": "casemate.scan/1",
        "image": "web.qcow2",
        "findings": [],
        "by_name": True,
        "not_scanned": [],
        "path": ROOT_DISK.path,
        "identity": ROOT_DISK.identity,
        "sha256": "",
        "host": "h",
        "time": "2026-11-02T00:00:00Z",
    }
    (folder / name).write_text(json.dumps(document | more))
    return str(folder / name)


def test_a_scan_answers_for_secrets(tmp_path: Path) -> None:
    """Nothing found anywhere passes, whatever is found fails, half a scan passes nothing; a note is no secret."""
    password, key = {"rule": "hash.password", "severity": "high"}, {"rule": "host-key.ssh", "severity": "critical"}
    note = {"rule": "token.old", "severity": "info"}
    cases: tuple[tuple[dict[str, Any], State, State], ...] = (
        ({}, YES, YES),
        ({"findings": [note]}, YES, YES),
        ({"findings": [password]}, NO, YES),
        ({"findings": [{"rule": "account.no-password", "severity": "critical"}]}, NO, YES),
        ({"findings": [{"rule": "cloud-init.user-data", "severity": "high"}]}, NO, NO),
        ({"findings": [key]}, YES, NO),
        ({"findings": [key | {"waived": "made anew"}]}, YES, NO),
        ({"by_name": False}, UNKNOWN, UNKNOWN),
        ({"not_scanned": ["a snapshot"], "findings": [password]}, NO, UNKNOWN),
    )
    for number, (more, passwords, keys) in enumerate(cases):
        audit = risks.load_audit(scan(tmp_path, f"{number}.json", **more))
        (subject,) = subjects(vm(disks=(ROOT_DISK,)), others=(audit,))
        assert (subject.states["sec.passwords"], subject.states["sec.keys"]) == (passwords, keys), more
    header = Audit("later", "h", "2026-11-09", "c", (image(ROOT_DISK, {"sec.keys": Verdict.MANUAL}),))
    (subject,) = subjects(vm(disks=(ROOT_DISK,)), others=(risks.load_audit(str(tmp_path / "0.json")), header))
    assert subject.states["sec.keys"] == YES, "what a later audit leaves to a person replaces nothing"
    assert "host-key.ssh" in risks.load_audit(str(tmp_path / "5.json")).targets[0].findings[1].evidence
    rules = scans.rule_set(None)
    assert {rule.id for rule in rules.rules} | {rule.id for rule in rules.paths} >= PASSWORDS


def test_scans_that_say_too_little_are_refused(tmp_path: Path) -> None:
    wrong: tuple[dict[str, Any], ...] = ({"path": ""}, {"time": ""}, {"findings": 3}, {"by_name": None})
    for more in wrong:
        with pytest.raises(InputError):
            risks.load_audit(scan(tmp_path, "bad.json", **more))
    report = risks.analyse([scan(tmp_path, "alone.json")])
    assert (report.vms, len(report.notes)) == ((), 1)


def test_an_image_makes_nothing_better_that_the_vm_knows_to_be_bad() -> None:
    own = found({"img.no-backing": Verdict.FAIL, "img.format-explicit": Verdict.PASS})
    web = Audited(TargetKind.VM, "web", Stage.OBSERVED, own, disks=(ROOT_DISK,))
    passes = image(ROOT_DISK, {"img.no-backing": Verdict.PASS, "img.format-explicit": Verdict.FAIL})
    (subject,) = subjects(web, passes)
    assert (subject.states["img.no-backing"], subject.states["img.format-explicit"]) == (NO, NO)


def test_the_later_audit_of_an_image_counts() -> None:
    old = Audit("old", "h", "2026-11-01", "c", (image(ROOT_DISK, GOOD_GUEST | {"guest.one-root": Verdict.FAIL}),))
    new = Audit("new", "h", "2026-11-03", "c", (image(ROOT_DISK, GOOD_GUEST),))
    for others in ((old, new), (new, old)):
        (subject,) = subjects(vm(disks=(ROOT_DISK,)), others=others)
        assert subject.states["guest.root"] == YES


def test_answers_name_controls_that_exist() -> None:
    known = {control.id for control in all_controls()}
    assert {name for answer in ANSWERS for name in (answer.control, *answer.by)} <= known
    assert answered({}) == {}


def test_end_to_end_by_the_path_that_a_domain_names(tmp_path: Path) -> None:
    """A domain and the audit of its image, as two reports: the header's verdicts count, on paper."""
    disk = tmp_path / "web.img"
    disk.write_bytes(bytes(1 << 20))
    domain = tmp_path / "web.xml"
    domain.write_text(
        "<domain type='kvm'><name>web</name><memory unit='MiB'>64</memory><os><type>hvm</type></os><devices>"
        f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{disk}'/>"
        "<target dev='vda' bus='virtio'/></disk></devices></domain>"
    )
    report = reports.printable(assess.audit([str(domain), str(disk)]))
    place = tmp_path / "audit.json"
    place.write_text(reports.render(report, "json"))
    written = {item["name"]: item for item in json.loads(place.read_text())["targets"]}
    assert written["web"]["disks"][0]["path"] == written["web.img"]["file"]["path"] == str(disk)
    audit = risks.load_audit(str(place))
    (subject,) = subjects_of(audit, with_evidence=True)
    assert subject.name == "web"
    assert "web.img" in subject.evidence["img.no-backing"]
    assert subject.states.get("sec.keys", UNJUDGED) == UNKNOWN
