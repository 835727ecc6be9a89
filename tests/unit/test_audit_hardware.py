"""Readers of the host's CPUs, memory and command line: every shape of what the kernel writes, and hostile trees."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import host_tree
from tests.support.host_tree import Content, Link
from tests.support.tree_hardware import PASSING

from casemate.facts.cpu import collect_cpu
from casemate.facts.cpu_info import CpuInfo, parse_cpuinfo
from casemate.facts.cpu_vulnerabilities import CLASSES, collect_vulnerabilities
from casemate.facts.fact import Facts, Known, Stage, Unknown
from casemate.facts.iommu import collect_iommu
from casemate.facts.kvm_module import collect_kvm_module
from casemate.facts.root import Root

VULNERABILITIES = "/sys/devices/system/cpu/vulnerabilities"
INTEL = CpuInfo("x86", "GenuineIntel", frozenset({"smep"}), frozenset())
GUEST = CpuInfo("x86", "GenuineIntel", frozenset({"hypervisor"}), frozenset())
AMD = CpuInfo("x86", "AuthenticAMD", frozenset(), frozenset())


def tree(base: Path, files: dict[str, Content]) -> Root:
    host_tree.write_tree(base, files)
    return host_tree.tree_root(base, files)


def value(facts: Facts, name: str) -> object:
    """The value of a fact; None when it is unknown."""
    fact = facts[name]
    return fact.value if isinstance(fact, Known) else None


def why(facts: Facts, name: str) -> str:
    fact = facts[name]
    assert isinstance(fact, Unknown), fact
    return fact.why


# The kernel's lines


@pytest.mark.parametrize(
    ("line", "clause", "expected"),
    [
        ("Mitigation: Retpolines; IBPB: conditional; STIBP: always-on; RSB filling", "ibpb", "conditional"),
        ("Mitigation: Retpolines, IBPB: conditional, IBRS_FW, STIBP: forced, RSB filling", "stibp", "forced"),
        ("Mitigation: Enhanced IBRS; IBPB: conditional; BHI: SW loop, KVM: SW loop", "bhi", "SW loop"),
        ("Mitigation: Enhanced IBRS; BHI: Vulnerable, KVM: SW loop", "bhi", "Vulnerable"),
        ("Mitigation: Retpolines; PBRSB-eIBRS: Not affected; BHI: Not affected", "pbrsb", "Not affected"),
        ("Mitigation: Retpolines; STIBP: disabled; RSB filling", "ibpb", "absent"),
        ("Mitigation: Retpolines; RSB filling", "stibp", "absent"),
        ("Not affected", "ibpb", "not affected"),
        ("Mitigation: Retpolines, IBPB: conditional", "bhi", None),
        ("Mitigation: Retpolines, IBPB: conditional", "pbrsb", None),
    ],
)
def test_clauses_of_spectre_v2(tmp_path: Path, line: str, clause: str, expected: str | None) -> None:
    root = tree(tmp_path, {f"{VULNERABILITIES}/spectre_v2": f"{line}\n"})
    assert value(collect_vulnerabilities(root, INTEL), f"cpu.spectre-v2-{clause}") == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Not affected", "not affected"),
        ("Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT vulnerable", "conditional cache flushes"),
        ("Mitigation: PTE Inversion; VMX: vulnerable", "vulnerable"),
        ("Mitigation: PTE Inversion; VMX: EPT disabled", "EPT disabled"),
        ("Mitigation: PTE Inversion", None),
        ("Unknown (XEN PV detected, hypervisor mitigation required)", None),
    ],
)
def test_what_kvm_does_against_l1tf(tmp_path: Path, line: str, expected: str | None) -> None:
    root = tree(tmp_path, {f"{VULNERABILITIES}/l1tf": f"{line}\n"})
    assert value(collect_vulnerabilities(root, INTEL), "cpu.l1tf-vmx") == expected


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_that_the_kernel_does_not_know_is_unknown(tmp_path: Path, kind: str) -> None:
    root = tree(tmp_path, {f"{VULNERABILITIES}/ghostwrite": "Not affected\n"})
    assert kind in why(collect_vulnerabilities(root, INTEL), f"cpu.vuln-{kind.replace('_', '-')}")


@pytest.mark.parametrize("line", ["Unknown: Dependent on hypervisor status", "Unknown: No mitigations", "", "\n"])
def test_what_the_kernel_calls_unknown_stays_so(tmp_path: Path, line: str) -> None:
    root = tree(tmp_path, {f"{VULNERABILITIES}/srbds": line, f"{VULNERABILITIES}/new": line})
    facts = collect_vulnerabilities(root, INTEL)
    assert "the kernel says" in why(facts, "cpu.vuln-srbds")
    assert "the kernel says" in why(facts, "cpu.vulnerable-others")


@pytest.mark.parametrize(("cpu", "known"), [(INTEL, True), (GUEST, False), (AMD, False), (Unknown("gone"), False)])
def test_current_microcode_is_known_on_bare_intel_only(tmp_path: Path, cpu: CpuInfo | Unknown, known: bool) -> None:
    root = tree(tmp_path, {f"{VULNERABILITIES}/old_microcode": "Not affected\n"})
    assert isinstance(collect_vulnerabilities(root, cpu)["cpu.vuln-old-microcode"], Known) is known
    root = tree(tmp_path, {f"{VULNERABILITIES}/old_microcode": "Vulnerable\n"})
    assert value(collect_vulnerabilities(root, cpu), "cpu.vuln-old-microcode") == "Vulnerable"


@pytest.mark.parametrize(("cpu", "known"), [(INTEL, True), (GUEST, False), (AMD, True)])
def test_vmscape_is_marked_on_bare_metal_only(tmp_path: Path, cpu: CpuInfo, known: bool) -> None:
    root = tree(tmp_path, {f"{VULNERABILITIES}/vmscape": "Not affected\n"})
    assert isinstance(collect_vulnerabilities(root, cpu)["cpu.vuln-vmscape"], Known) is known


def test_one_vulnerable_sibling_counts_more_than_one_unknown(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            f"{VULNERABILITIES}/mds": "Mitigation: Clear CPU buffers; SMT Host state unknown\n",
            f"{VULNERABILITIES}/l1tf": "Mitigation: PTE Inversion; VMX: cache flushes, SMT vulnerable\n",
        },
    )
    assert value(collect_vulnerabilities(root, INTEL), "cpu.smt-vulnerable") == ("l1tf",)


# /proc/cpuinfo and SMT


def test_cpuinfo_takes_the_first_processor() -> None:
    text = "processor : 0\nvendor_id : GenuineIntel\nflags : vmx nx\nbugs : l1tf\n\nprocessor : 1\nflags : svm\n"
    assert parse_cpuinfo(text) == CpuInfo("x86", "GenuineIntel", frozenset({"vmx", "nx"}), frozenset({"l1tf"}))
    assert parse_cpuinfo("processor : 0\nFeatures : fp asimd\n").architecture == "arm64"
    assert parse_cpuinfo("processor : 0\ncpu : POWER9\n").architecture == "other"


@pytest.mark.parametrize("text", ["", "nothing", "\0" * 40, "model name : x"])
def test_cpuinfo_without_a_processor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no processor"):
        parse_cpuinfo(text)


def test_cpuinfo_of_a_big_machine_is_read_as_far_as_needed(tmp_path: Path) -> None:
    one = "processor : 0\nvendor_id : GenuineIntel\nflags : nx smep smap rtm\n\n"
    facts = collect_cpu(tree(tmp_path, {"/proc/cpuinfo": one * 40_000}))
    assert value(facts, "cpu.tsx") is True
    assert value(facts, "cpu.missing-guards") == ()


@pytest.mark.parametrize(
    ("control", "active", "flags", "expected"),
    [
        ("on", "1", "nx", "on"),
        ("on", "0", "nx", "inactive"),
        ("notimplemented", "0", "nx", "inactive"),
        ("2", "1", "nx", "2"),
        ("off", "0", "nx", "off"),
        ("forceoff", "0", "nx", "forceoff"),
        ("notsupported", "0", "nx", "notsupported"),
        ("notsupported", "0", "nx hypervisor", None),
        ("on", "1", "nx hypervisor", "on"),
        ("on", "0", "nx hypervisor", None),
    ],
)
def test_smt(tmp_path: Path, control: str, active: str, flags: str, expected: str | None) -> None:
    smt = "/sys/devices/system/cpu/smt"
    files = {f"{smt}/control": control, f"{smt}/active": active, "/proc/cpuinfo": f"processor : 0\nflags : {flags}\n"}
    assert value(collect_cpu(tree(tmp_path, {**files})), "cpu.smt") == expected


def test_only_threads_online_make_the_cross_thread_fault_matter(tmp_path: Path) -> None:
    smt = "/sys/devices/system/cpu/smt"
    files: dict[str, Content] = {"/proc/cpuinfo": "processor : 0\nflags : nx\nbugs : smt_rsb\n"}
    assert value(collect_cpu(tree(tmp_path, files)), "cpu.smt-rsb-exposed") is None
    for control, exposed in (("on", True), ("off", False)):
        facts = collect_cpu(tree(tmp_path, files | {f"{smt}/control": control, f"{smt}/active": "1"}))
        assert value(facts, "cpu.smt-rsb-exposed") is exposed


# The command line


@pytest.mark.parametrize(
    ("cmdline", "off", "vectors"),
    [
        ("quiet", (), ()),
        ("mitigations=off", ("mitigations=off",), ()),
        ("mitigations=off mitigations=auto", (), ()),
        ("mitigations=auto,nosmt", (), ()),
        ("mitigations=auto,no_guest_host,no_guest_guest", (), ("no_guest_host", "no_guest_guest")),
        ("mitigations=auto;no_guest_guest", (), ("no_guest_guest",)),
        ("mitigations=auto,no_user_user", (), ()),
        ("nospectre_v2 nopti", ("nospectre_v2", "nopti"), ()),
        ("mds=off l1tf=flush", ("mds=off",), ()),
        ("spectre_v2=off spectre_v2=on", (), ()),
        ("kvm-intel.vmentry_l1d_flush=never", ("kvm_intel.vmentry_l1d_flush=never",), ()),
        ("kvm.nx_huge_pages=NEVER", ("kvm.nx_huge_pages=NEVER",), ()),
        ("quiet -- mitigations=off nospectre_v2", (), ()),
        ('init="/bin/sh mitigations=off"', (), ()),
    ],
)
def test_switches(tmp_path: Path, cmdline: str, off: tuple[str, ...], vectors: tuple[str, ...]) -> None:
    facts = collect_cpu(tree(tmp_path, {"/proc/cmdline": cmdline}))
    assert (value(facts, "cpu.off-switches"), value(facts, "cpu.guest-vectors-off")) == (off, vectors)


# Memory

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
MOUNTS = "22 1 253:3 / / rw - ext4 /dev/mapper/root rw\n30 22 8:1 / /data rw - ext4 /dev/sda1 rw\n"
DISK: dict[str, Content] = {"/sys/dev/block/8:1/size": "1\n", "/sys/class/block/sda1/dev": "8:1\n"}
CRYPT: dict[str, Content] = {"/sys/dev/block/253:0/dm/uuid": "CRYPT-LUKS2-x\n", "/sys/class/block/dm-0/dev": "253:0\n"}
# LVM on dm-crypt: the volume's own uuid says LVM, its slave is encrypted.
VOLUME: dict[str, Content] = {
    "/sys/dev/block/253:3/dm/uuid": "LVM-y\n",
    "/sys/dev/block/253:3/slaves/dm-0/dev": "253:0\n",
    "/sys/class/block/dm-3/dev": "253:3\n",
}
ZRAM: dict[str, Content] = {"/sys/class/block/zram0/dev": "252:0\n", "/sys/dev/block/252:0/backing_dev": "none\n"}


@pytest.mark.parametrize(
    ("swaps", "more", "expected"),
    [
        ("", {}, ()),
        ("/dev/sda1 partition 1 0 -2\n", DISK, ("/dev/sda1",)),
        ("/dev/sda1 partition 1 0 -2\n", DISK | {"/sys/dev/block/8:1/slaves": host_tree.Folder()}, ("/dev/sda1",)),
        ("/dev/dm-0 partition 1 0 -2\n", CRYPT, ()),
        ("/dev/mapper/swap partition 1 0 -2\n", CRYPT | {"/dev/mapper/swap": Link("../dm-0")}, ()),
        ("/dev/dm-3 partition 1 0 -2\n", CRYPT | VOLUME, ()),
        ("/swap\\040file file 1 0 -2\n", CRYPT | VOLUME | {"/proc/self/mountinfo": MOUNTS}, ()),
        ("/data/swap file 1 0 -2\n", DISK | {"/proc/self/mountinfo": MOUNTS}, ("/data/swap",)),
        ("/dev/zram0 partition 1 0 100\n", ZRAM, ()),
        ("/dev/zram0 partition 1 0 100\n", ZRAM | {"/sys/dev/block/252:0/backing_dev": "/dev/sda1\n"}, ("/dev/zram0",)),
        ("/dev/gone partition 1 0 -2\n", {}, None),
        ("garbage\n", {}, None),
    ],
)
def test_swap(tmp_path: Path, swaps: str, more: dict[str, Content], expected: tuple[str, ...] | None) -> None:
    facts = collect_cpu(tree(tmp_path, {"/proc/swaps": HEAD + swaps, **more}))
    assert value(facts, "cpu.swap-plain") == expected


def test_devices_that_stand_on_themselves_end_in_unknown(tmp_path: Path) -> None:
    ring: dict[str, Content] = {
        "/proc/swaps": HEAD + "/dev/dm-3 partition 1 0 -2\n",
        "/sys/class/block/dm-3/dev": "253:3\n",
        "/sys/dev/block/253:3/slaves/dm-3/dev": "253:3\n",
    }
    assert "too deep" in why(collect_cpu(tree(tmp_path, ring)), "cpu.swap-plain")


def test_no_ksm_in_the_kernel_is_proved_by_its_neighbours(tmp_path: Path) -> None:
    facts = collect_cpu(tree(tmp_path, {"/sys/kernel/mm/hugepages": host_tree.Folder()}))
    assert (value(facts, "cpu.ksm-run"), value(facts, "cpu.ksm-shared")) == ("0", 0)
    assert value(collect_cpu(tree(tmp_path / "empty", {"/x": ""})), "cpu.ksm-run") is None


def test_memory_modules(tmp_path: Path) -> None:
    edac = "/sys/devices/system/edac/mc"
    facts = collect_cpu(tree(tmp_path, {f"{edac}/mc0/rank0/dimm_edac_mode": "S4ECD4ED\n", f"{edac}/power/x": ""}))
    assert value(facts, "cpu.ecc") == ("S4ECD4ED",)
    assert value(collect_cpu(tree(tmp_path / "none", {f"{edac}/power/x": ""})), "cpu.ecc") is None


# Hostile trees

PATHS = tuple(path for path in PASSING if not path.startswith("/usr"))
BYTES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\0" * 64, b"\xff\xfe", b"Y" * 5000, b"-1\n", b"9" * 5000, b"Vulnerable; " * 300]),
)


def _collect(root: Root) -> Facts:
    return collect_cpu(root) | collect_iommu(root) | collect_kvm_module(root)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(PATHS), BYTES, min_size=1, max_size=8))
def test_whatever_stands_in_the_files_every_fact_is_known_or_unknown(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes]
) -> None:
    base = tmp_path_factory.mktemp("hostile")
    files = {**PASSING, **{path: host_tree.File(data) for path, data in contents.items()}}
    facts = _collect(tree(base, files))
    assert set(facts) == set(_collect(Root(base / "nowhere")))
    assert all(isinstance(fact, Known | Unknown) for fact in facts.values())
    assert all(fact.stage is Stage.OBSERVED for fact in facts.values() if isinstance(fact, Known))


@pytest.mark.parametrize("path", sorted({str(Path(path).parent) for path in PATHS} | set(PATHS)))
def test_loops_and_files_in_place_of_folders_cost_only_their_facts(tmp_path: Path, path: str) -> None:
    for content in (Link(Path(path).name), "a file"):
        base = tmp_path / ("loop" if isinstance(content, Link) else "file")
        files: dict[str, Content] = {p: c for p, c in PASSING.items() if p != path and not p.startswith(f"{path}/")}
        facts = _collect(tree(base, {**files, path: content}))
        assert len(facts) > 90


def test_an_empty_tree_proves_nothing(tmp_path: Path) -> None:
    facts = _collect(Root(tmp_path))
    assert {name for name, fact in facts.items() if isinstance(fact, Known)} == set()
