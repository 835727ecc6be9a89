"""detect: trees of known machines, the judgement, the processor's answers, and two other programs' opinions."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.cli.main import main
from casemate.facts.detect import cpu_indicators, detect, judge, matches
from casemate.facts.detect_cpu import ask_cpu, decode_answers, summarise
from casemate.facts.detect_model import About, Indicator, Strength, Trap, Verdict
from casemate.facts.root import Root

METAL = {"proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx\n"}
GUEST = {"proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu hypervisor\n"}
CLOCK = "sys/devices/system/clocksource/clocksource0/available_clocksource"
NATIVE = Trap(samples=2000, empty_ticks=40, low_ticks=140, median_ticks=150, high_ticks=170)
TRAPPED = Trap(samples=2000, empty_ticks=40, low_ticks=2100, median_ticks=2200, high_ticks=2400)


def tree(base: Path, files: Mapping[str, str | bytes]) -> Root:
    for name, content in files.items():
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Root(base)


def acpi(oem: str) -> bytes:
    return b"FACP" + (36).to_bytes(4, "little") + b"\x01\x00" + oem.ljust(6).encode() + bytes(20)


@pytest.mark.parametrize(
    ("files", "hypervisor", "platform"),
    [
        (GUEST | {CLOCK: "kvm-clock tsc\n", "sys/class/dmi/id/sys_vendor": "QEMU\n"}, "kvm", "qemu"),
        (GUEST | {"sys/class/dmi/id/sys_vendor": "QEMU\n"}, "qemu", "qemu"),
        (GUEST | {"sys/class/dmi/id/product_name": "VMware Virtual Platform\n"}, "vmware", ""),
        (GUEST | {"sys/class/dmi/id/sys_vendor": "innotek GmbH\n"}, "oracle", ""),
        (GUEST | {"sys/class/dmi/id/product_name": "Virtual Machine\n"}, "microsoft", ""),
        (GUEST | {"sys/hypervisor/type": "xen\n"}, "xen", ""),
        (GUEST | {"sys/firmware/acpi/tables/FACP": acpi("FIRECK"), CLOCK: "tsc kvm-clock"}, "kvm", "firecracker"),
        (GUEST | {"sys/bus/pci/devices/0000:00:03.0/vendor": "0x15ad\n"}, "vmware", ""),
        (GUEST | {"sys/firmware/qemu_fw_cfg/rev": "1"}, "qemu", "qemu"),
    ],
)
def test_known_machines(tmp_path: Path, files: dict[str, str | bytes], hypervisor: str, platform: str) -> None:
    found = detect(tree(tmp_path, files))
    assert found.verdict is Verdict.VIRTUALISED
    assert (found.hypervisor, found.platform) == (hypervisor, platform)
    assert matches(found, hypervisor)
    assert not matches(found, "none")


def test_bare_metal_is_no_trace_and_an_empty_tree_is_unknown(tmp_path: Path) -> None:
    metal = detect(tree(tmp_path / "metal", METAL))
    assert (metal.verdict, metal.hypervisor) == (Verdict.NO_TRACE, "none")
    assert matches(metal, "none")
    assert metal.limits, "no answer without saying what it cannot say"
    (tmp_path / "empty").mkdir()
    empty = detect(Root(tmp_path / "empty"))
    assert (empty.verdict, empty.hypervisor) == (Verdict.UNKNOWN, "unknown")
    assert not matches(empty, "none")


def test_a_cloud_vendor_alone_is_only_a_suspicion(tmp_path: Path) -> None:
    found = detect(tree(tmp_path, METAL | {"sys/class/dmi/id/sys_vendor": "Amazon EC2\n"}))
    assert found.verdict is Verdict.SUSPECTED
    assert not matches(found, "none")
    assert not matches(found, "amazon")


def test_a_marker_counts_only_with_namespaces_of_its_own(tmp_path: Path) -> None:
    root = tree(tmp_path, METAL | {".dockerenv": ""})
    names = tmp_path / "proc/self/ns"
    names.mkdir(parents=True)
    (names / "pid").symlink_to("pid:[4026531836]")
    left = detect(root)
    assert left.container == ""
    assert "left over" in left.notes[0]
    (names / "pid").unlink()
    (names / "pid").symlink_to("pid:[4026532999]")
    assert detect(root).container == "docker"
    (tmp_path / ".dockerenv").unlink()
    assert detect(root).container == "unknown"


def test_what_does_not_fit_together_is_said() -> None:
    def sign(says: str, source: str = "x") -> Indicator:
        return Indicator(about=About.HYPERVISOR, strength=Strength.STRONG, says=says, value="v", source=source)

    bit = Indicator(about=About.HYPERVISOR, strength=Strength.PROOF, says="", value="bit", source="CPUID 1: ECX bit 31")
    assert "hides" in judge([], trap=TRAPPED).contradictions[0]
    assert "hidden" in judge([sign("kvm")], trap=NATIVE).contradictions[0]
    assert "clock" in judge([bit], trap=NATIVE).contradictions[0]
    assert "several" in judge([bit, sign("kvm"), sign("xen")], trap=TRAPPED).contradictions[0]
    assert judge([bit, sign("kvm")], trap=TRAPPED).contradictions == ()
    assert judge([], trap=NATIVE).contradictions == ()


def registers(text: str) -> list[int]:
    data = text.encode().ljust(12, b"\0")
    return [int.from_bytes(data[at : at + 4], "little") for at in (0, 4, 8)]


def test_hyperv_beside_kvm_is_kvm_and_a_garbage_leaf_without_the_bit_is_nothing() -> None:
    series = {"empty": [[40] * 200], "cpuid": [[2500] * 200]}
    leaves = [
        [0, 13, *registers("GenuineIntel")],
        [1, 0, 0, 1 << 31, 0],
        [0x40000000, 0x40000001, *registers("Microsoft Hv")],
        [0x40000100, 0x40000101, *registers("KVMKVMKVM")],
        [0x40000101, 0x3, 0, 0, 0],
    ]
    answers = decode_answers({"leaves": leaves, **series})
    assert judge(cpu_indicators(answers), trap=answers.trap).hypervisor == "kvm"
    bare = decode_answers({"leaves": [leaves[0], [1, 0, 0, 0, 0], [0x40000000, 7, 1, 2, 3]], **series})
    assert bare.signatures == ()
    assert [item.source for item in cpu_indicators(bare)] == ["RDTSC around CPUID, 200 times"]


@given(st.lists(st.integers(0, 2**63), max_size=300), st.lists(st.integers(0, 2**63), max_size=300))
def test_percentiles_are_in_order(empty: list[int], cpuid: list[int]) -> None:
    found = summarise(empty, cpuid)
    if found is not None:
        assert found.low_ticks <= found.median_ticks <= found.high_ticks
    else:
        assert min(len(empty), len(cpuid)) < 100


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "proc/cpuinfo",
                CLOCK,
                "sys/hypervisor/type",
                "proc/1/cgroup",
                "proc/stat",
                "sys/firmware/acpi/tables/FACP",
                "sys/class/dmi/id/sys_vendor",
            ]
        ),
        st.binary(),
    )
)
def test_hostile_trees_never_crash(files: dict[str, bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as base:
        found = detect(tree(Path(base), dict(files)))
    assert all(len(item.value) <= 200 and item.value.isprintable() for item in found.indicators)


def test_the_processor_answers_here() -> None:
    answers = ask_cpu(samples=200)
    assert not isinstance(answers, str), answers
    assert answers.vendor
    assert answers.trap is not None


@pytest.mark.parametrize("program", ["systemd-detect-virt", "virt-what"])
def test_others_say_the_same(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    command = [program, "--vm"] if program == "systemd-detect-virt" else [program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if program == "virt-what" and done.returncode:
        pytest.skip(f"virt-what needs root: {done.stderr.strip()[:80]}")
    found = detect(Root())
    theirs = set(done.stdout.split()) - {"docker", "podman", "lxc", "kvm-qemu"}
    if theirs <= {"none"}:
        assert found.hypervisor == "none"
    else:
        assert theirs & {found.hypervisor, found.platform}, (theirs, found.layers)


def test_the_command_compares_with_what_is_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path, METAL)
    assert main(["detect", "--root", str(tmp_path), "--expect", "none"]) == 0
    assert "as expected" in capsys.readouterr().out
    assert main(["detect", "--root", str(tmp_path), "--expect", "kvm", "--json"]) == 1
    assert '"holds": false' in capsys.readouterr().out
    assert main(["detect", "--root", str(tmp_path / "nothing")]) == 2
