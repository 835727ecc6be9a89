"""Configurations and command lines of other VMMs: recognised by content, read whole, careless and hostile ones seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tools import vmm_table

from casemate.audit.documents import kind_of, read_command, read_machine
from casemate.controls.audit_model import TargetKind
from casemate.controls.catalogue.all import controls_about
from casemate.controls.judge import judge
from casemate.controls.model import Subject, Verdict
from casemate.errors import InputError
from casemate.facts.fact import Known, Stage, Unknown
from casemate.facts.machine import Machine
from casemate.facts.machine_facts import machine_facts
from casemate.facts.vmm_config import read_vmm_config
from casemate.facts.vmm_kata import HARMLESS

DATA = Path(__file__).parents[1] / "data" / "vmm"
FILES = sorted(path.name for path in DATA.iterdir())

CARELESS: dict[str, set[str]] = {
    "firecracker-careless.json": {
        *("dev.no-share", "dev.no-secret-args", "dev.platform-off", "net.mmds", "vmm.no-debug", "ent.virtio-rng"),
    },
    "firecracker-careless.cmd": {"vmm.own-sandbox", "vmm.qmp"},
    "cloud-hypervisor-careless.json": {
        *("cpu.ksm", "iommu.no-hostdev", "kvm.nested-off", "kvm.no-vhost-other", "kvm.no-hyperv-xen", "dev.no-share"),
        *("dev.no-secret-args", "dev.platform-off", "mem.no-shared-backend", "img.format-explicit", "ent.virtio-rng"),
    },
    "cloud-hypervisor-careless.cmd": {
        *(
            "vmm.own-sandbox",
            "vmm.qmp",
            "vmm.no-debug",
            "cpu.ksm",
            "iommu.no-hostdev",
            "dev.no-share",
            "kvm.nested-off",
        ),
        *("mem.no-shared-backend", "img.format-explicit"),
    },
    "crosvm-careless.cmd": {
        *("vmm.own-sandbox", "vmm.qmp", "vmm.no-debug", "kvm.irqchip-split", "kvm.no-pit", "kvm.no-vhost-net"),
        *("dev.no-display", "dev.no-share", "dev.no-usb", "iommu.no-hostdev", "img.format-explicit"),
        "dev.no-secret-args",
    },
    "kata-careless.toml": {
        *(
            "vmm.own-sandbox",
            "vmm.annotations",
            "mem.template",
            "vmm.no-debug",
            "dev.machine",
            "dev.no-share",
            "cpu.ksm",
        ),
        *("kvm.no-vhost-net", "ent.virtio-rng", "img.ram-files", "mem.no-shared-backend", "dev.no-secret-args"),
    },
}
"""Controls that each careless fixture has to fail, among others."""


def load(name: str) -> Machine:
    data = (DATA / name).read_bytes()
    return read_machine(TargetKind(kind_of(data[:1024])), data, name)


def failed(machine: Machine) -> set[str]:
    facts = machine_facts(machine, Stage.OBSERVED)
    found = judge(controls_about(Subject.VM), facts, stage=Stage.OBSERVED)
    return {finding.control_id for finding in found if finding.verdict is Verdict.FAIL}


@pytest.mark.parametrize("name", FILES)
def test_every_fixture_is_recognised_and_read_whole(name: str) -> None:
    machine = load(name)
    kind = name.split(".")[0].removesuffix("-careless")
    form = "kata" if kind.startswith("kata") else f"{kind}-command" if name.endswith(".cmd") else kind
    assert machine.form == form
    expected = ("its devices stand in /srv/web.json: audit that file",) if name.startswith("firecracker") else ()
    assert machine.unreadable == (expected if name.endswith(".cmd") else ())


@pytest.mark.parametrize("name", CARELESS)
def test_careless_ones_fail_what_they_are_careless_about(name: str) -> None:
    assert CARELESS[name] - failed(load(name)) == set()


@pytest.mark.parametrize("name", CARELESS)
def test_careful_ones_do_not(name: str) -> None:
    careful = load(name.replace("-careless", ""))
    by_design = {"kvm.irqchip-split", "kvm.no-pit", "kvm.nested-off", "vmm.qmp", "cpu.ksm", "dev.platform-off"}
    # crosvm looks at the image to tell its format; KVM's board of q35 has what it has.
    by_design |= {"img.format-explicit"} if careful.vmm == "crosvm" else set()
    assert failed(careful) & CARELESS[name] <= by_design


def test_a_fixture_for_every_kind_is_there() -> None:
    assert {load(name).form for name in FILES} == {
        *("firecracker", "firecracker-command", "cloud-hypervisor", "cloud-hypervisor-command", "crosvm-command"),
        "kata",
    }


def test_the_comparison_in_the_document_is_the_one_that_the_fixtures_give() -> None:
    text = vmm_table.DOCUMENT.read_text()
    assert vmm_table.table() in text, "run tools/vmm_table.py"


def test_the_same_vm_as_file_and_as_command_line_is_the_same_machine() -> None:
    file, command = load("cloud-hypervisor.json"), load("cloud-hypervisor.cmd")
    assert {d.type for d in file.devices} - {"serial"} == {d.type for d in command.devices} - {"serial"}
    assert (file.memory_mib, file.vcpus, file.kernel, file.cmdline) == (512, 2, "/srv/vmlinux", command.cmdline)
    assert [disk.read_only for disk in command.disks] == [False, True]


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"new-device": {}}, "dev.types"),
        ({"drives": [{"drive_id": "a", "is_root_device": True, "shared": True}]}, "dev.types"),
        ({"drives": "all"}, "img.formats"),
        ({"drives": [1]}, "img.formats"),
        ({"vsock": {"guest_cid": 3, "uds_path": 7}}, "dev.types"),
    ],
)
def test_what_the_reader_does_not_know_is_never_absent(change: dict[str, object], fact: str) -> None:
    tree = {**json.loads((DATA / "firecracker.json").read_text()), **change}
    machine = read_vmm_config(json.dumps(tree).encode(), "x.json")
    assert machine.unreadable
    assert isinstance(machine_facts(machine, Stage.DECLARED)[fact], Unknown)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["firecracker", "--unheard", "x"], "--unheard"),
        (["cloud-hypervisor", "--kernel", "k", "--unheard"], "--unheard"),
        (["cloud-hypervisor", "k", "--kernel"], "before any option"),
        (["crosvm", "run", "--unheard", "x", "k"], "--unheard"),
        (["crosvm", "device", "block"], "not `crosvm run`"),
        (["crosvm", "run", "--cfg", "f.json", "k"], "more is said there"),
    ],
)
def test_unknown_options_make_lists_unknown(words: list[str], part: str) -> None:
    machine = read_command(words, "argv")
    assert any(part in text for text in machine.unreadable)
    assert isinstance(machine_facts(machine, Stage.OBSERVED)["dev.types"], Unknown)


@pytest.mark.parametrize("word", ["path", ".*", "kernel|path", "(a+)+$", "virtio_fs_extra_args", "DEFAULT_VCPUS"])
def test_annotations_that_may_do_harm(word: str) -> None:
    text = (DATA / "kata.toml").read_text()
    changed = text.replace('"default_memory"]', f'"default_memory", {json.dumps(word)}]')
    fact = machine_facts(read_vmm_config(changed.encode(), "k"), Stage.DECLARED)["vmm.annotations"]
    assert isinstance(fact, Known)
    assert fact.value == (word,)
    assert word not in HARMLESS


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{}",
        b"[]",
        b'{"a": 1}',
        b'{"payload": ' + b"[" * 100_000,
        b'{"boot-source": ' * 50_000,
        b'{"boot-source": "\xff"}',
        b"[hypervisor.qemu]\npath = ",
        b"[hypervisor]\nqemu = 1\n",
        b"[hypervisor.qemu]\n[hypervisor.clh]\n",
        b"[hypervisor.qemu]\nx = " + b"[" * 100_000,
        b"[hypervisor.qemu]\nkernel = '" + b"a" * (2 << 20) + b"'",
        b"\xff\xfe",
    ],
)
def test_hostile_documents_are_errors(data: bytes) -> None:
    with pytest.raises(InputError):
        read_vmm_config(data, "x")


def test_a_table_nested_without_end_is_no_machine() -> None:
    machine = read_vmm_config(b"[hypervisor." + b"a." * 20_000 + b"b]\n", "x")
    assert any("hypervisor.a" in part for part in machine.unreadable)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
KEYS = st.sampled_from(
    """boot-source drives machine-config network-interfaces vsock balloon entropy mmds-config payload cpus memory disks
    net rng fs devices vdpa console serial platform pmem""".split()  # noqa: SIM905
)


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_json_is_read_or_refused(tree: dict[str, object]) -> None:
    try:
        machine = read_vmm_config(json.dumps(tree).encode(), "x.json")
    except InputError:
        return
    machine_facts(machine, Stage.DECLARED)


@given(st.sampled_from(["firecracker", "cloud-hypervisor", "crosvm"]), st.lists(st.text(max_size=20), max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_command_line_is_read(program: str, words: list[str]) -> None:
    machine_facts(read_command([program, "run", *words], "argv"), Stage.OBSERVED)
