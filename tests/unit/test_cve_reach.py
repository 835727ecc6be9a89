"""Which open vulnerabilities of QEMU reach one machine: what is there, what may be, and what nobody can tell."""

from __future__ import annotations

import pytest

from casemate.facts.cve_reach import family_of, is_about_qemu, machine_cve_facts, outcome, undecided_of
from casemate.facts.cve_table import load_table, marks_of, parse_table
from casemate.facts.domain import read_domain
from casemate.facts.fact import Facts, Known, Stage, Unknown
from casemate.facts.machine_facts import machine_facts
from casemate.facts.qemu_argv import read_argv
from casemate.facts.root import Root

TABLE = load_table(Root("/nonexistent"))
QUIET = "qemu-system-x86_64 -M microvm,accel=kvm -nodefaults -no-user-config -display none -m 64 -kernel /k"
LSI, VMDK, ISCSI, FLOPPY, VNC = "CVE-2024-6519", "CVE-2026-2243", "CVE-2016-5126", "CVE-2015-3456", "CVE-2016-9603"


def facts_of(more: str = "", *, base: str = QUIET) -> Facts:
    return machine_facts(read_argv(f"{base} {more}".split(), "test"), Stage.OBSERVED)


def domain_facts(devices: str) -> Facts:
    head = "<domain type='kvm'><name>a</name><memory>1048576</memory><os><type machine='q35'>hvm</type></os>"
    text = f"{head}<devices>{devices}</devices></domain>"
    return machine_facts(read_domain(text.encode(), "test"), Stage.DECLARED)


def history(facts: Facts) -> set[str]:
    return {cve.id for cve in TABLE.reaching(marks_of(facts))}


def maybe(facts: Facts) -> set[str]:
    found = undecided_of(facts, TABLE)
    assert found is not None
    return set(found)


def test_a_machine_that_is_known_as_a_whole_leaves_nothing_undecided() -> None:
    facts = facts_of("-drive if=none,id=d,file=/a.raw,format=raw -device virtio-blk-device,drive=d")
    assert maybe(facts) == set()
    assert not {LSI, VMDK, ISCSI, FLOPPY} & history(facts)


@pytest.mark.parametrize(
    ("more", "number"),
    [
        ("-device lsi", LSI),
        ("-device floppy", FLOPPY),
        ("-drive if=virtio,file=/a.vmdk,format=vmdk", VMDK),
        ("-drive if=virtio,file=iscsi://h/t/0,format=raw", ISCSI),
        ("-blockdev driver=iscsi,node-name=a,portal=h,target=t,transport=tcp", ISCSI),
        ("-netdev socket,id=a,listen=:99 -netdev user,id=b", "CVE-2007-5730"),
        ("-vnc :1 -device VGA", next(cve.id for cve in TABLE.cves if cve.component == "vnc")),
    ],
)
def test_one_part_more_is_reached(more: str, number: str) -> None:
    assert number not in history(facts_of())
    assert number in history(facts_of(more))


def test_iscsi_of_a_domain_counts() -> None:
    source = "<source protocol='iscsi' name='t/0'><host name='h'/></source>"
    target = "<target dev='vda' bus='virtio'/>"
    disk = f"<disk type='network'>{source}{target}</disk>"
    passed = f"<hostdev mode='subsystem' type='scsi'>{source}</hostdev>"
    for devices in (disk, passed):
        assert ISCSI in history(domain_facts(devices)), devices
    chain = f"<backingStore type='network'><format type='raw'/>{source}</backingStore>"
    below = f"<disk type='file'><driver type='qcow2'/><source file='/a'/>{chain}{target}</disk>"
    assert ISCSI in maybe(domain_facts(below))
    assert ISCSI not in history(domain_facts(disk.replace("iscsi", "nbd")))


@pytest.mark.parametrize(
    ("more", "component"),
    [
        ("-readconfig /x", "lsi53c895a"),
        ("-drive if=virtio,file=/a.img", "image-formats"),  # the format is guessed
        ("-drive if=virtio,file=/a.img,format=qcow2", "image-formats"),  # the header may name a file below it
    ],
)
def test_what_nobody_can_tell_is_undecided(more: str, component: str) -> None:
    rows = {cve.id for cve in TABLE.cves if cve.component == component}
    facts = facts_of(more)
    assert rows <= maybe(facts) | history(facts)
    assert rows & maybe(facts)
    assert not rows & maybe(facts_of())


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("dev.types", "floppy"),
        ("dev.accel", "tcg"),
        ("net.backends", "net-socket"),
        ("dev.displays", "vnc"),
        ("img.formats", "iscsi"),
        ("img.remote", "iscsi"),
        ("img.backing", "iscsi"),
    ],
)
def test_a_fact_that_is_missing_or_unknown_leaves_its_rows_undecided(name: str, component: str) -> None:
    rows = {cve.id for cve in TABLE.cves if cve.component == component and is_about_qemu(cve)}
    whole = facts_of()
    assert not rows & maybe(whole)
    for facts in (whole | {name: Unknown("closed")}, {key: fact for key, fact in whole.items() if key != name}):
        assert rows <= maybe(facts)


def test_a_display_that_is_not_named_is_whatever_qemu_has() -> None:
    facts = facts_of(base=QUIET.replace("-display none ", ""))
    assert isinstance(facts["dev.displays"], Unknown)


def test_every_row_about_qemu_asks_for_what_is_looked_at() -> None:
    """A mark of a new family would be undecided for ever: this says so when the table gets one."""
    families = {family_of(pattern) for cve in TABLE.cves if is_about_qemu(cve) for pattern in cve.types}
    assert families == {"type", "format", "netdev", "display", "accel"}


def test_a_mark_of_a_family_that_nobody_knows_is_undecided() -> None:
    table = parse_table(
        """format = 1
date = "2026-01-01"
weights = { R = 10, P = 6, L = 4, D = 1, unsaid = 3, public_exploit = 5, unlisted_device = 1 }
[[component]]
id = "a"
title = "A"
side = "emulator"
product = "qemu"
reached_by = "guest-root"
types = ["(format|audio):x"]
cves = [ { id = "CVE-2020-0001", impact = "R", fixed_in = [], source = "test" } ]
""",
        "test",
    )
    assert undecided_of(facts_of(), table) == ("CVE-2020-0001",)


def test_what_kata_adds_to_a_pod_stands_in_no_file() -> None:
    rows = {cve.id for cve in TABLE.cves if is_about_qemu(cve) and not cve.types[0].startswith("accel")}
    facts = facts_of() | {"vm.form": Known("kata", "test")}
    assert rows <= maybe(facts) | history(facts)


def test_another_vmm_has_no_rows() -> None:
    assert undecided_of({"vm.vmm": Known("firecracker", "test")}, TABLE) is None


@pytest.mark.parametrize(
    ("has", "may", "unfixed", "unrecorded", "expected"),
    [
        ((), (), ("a",), ("b",), ((), ())),
        (("a",), (), ("a",), (), (("a",), ())),
        ((), ("a",), ("a",), (), ((), ("a",))),
        (("a",), ("a",), ("a",), (), (("a",), ())),
        (("b",), (), ("a",), ("b",), ((), ("b",))),
        ((), ("b",), ("a",), ("b",), ((), ("b",))),
        (("a", "b"), ("c",), ("a", "c"), ("b",), (("a",), ("c", "b"))),
        (("a",), ("b",), (), (), ((), ())),
    ],
)
def test_outcome(
    has: tuple[str, ...], may: tuple[str, ...], unfixed: tuple[str, ...], unrecorded: tuple[str, ...], expected: object
) -> None:
    assert outcome(has, may, unfixed, unrecorded) == expected


def test_unclear_is_unknown_and_never_known() -> None:
    facts = machine_cve_facts(((), ("CVE-2020-0001",)), "x")
    assert facts["dev.cves-open"] == Known((), "x", Stage.OBSERVED)
    assert isinstance(facts["dev.cves-unclear"], Unknown)
    assert all(isinstance(fact, Unknown) for fact in machine_cve_facts("gone", "x").values())
    assert machine_cve_facts(((), ()), "x")["dev.cves-unclear"] == Known((), "x", Stage.OBSERVED)
