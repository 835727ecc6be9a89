"""Readers of KVM's modules, of the IOMMU, of modprobe's configuration, and what a kernel's version shows."""

from __future__ import annotations

import contextlib
import importlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import host_tree
from tests.support.host_tree import Content, File, Lines, Link, Node
from tests.support.tree_hardware import GROUPS, KVM, KVM_AMD, KVM_INTEL, NIC, PASSING, PCI

from casemate.controls.catalogue import all as catalogue
from casemate.controls.catalogue.later import LATER
from casemate.facts.cpu_info import CpuInfo
from casemate.facts.fact import Facts, Known, Unknown
from casemate.facts.iommu import collect_iommu
from casemate.facts.kernel_cve_data import ROWS
from casemate.facts.kernel_version import (
    KernelVersion,
    cve_fact,
    lacks_fix,
    marks,
    open_cves,
    parse_release,
    parse_version,
    read_version,
)
from casemate.facts.kvm_module import collect_kvm_module, parse_acl
from casemate.facts.modprobe import loadable, parse_modprobe, read_modprobe
from casemate.facts.root import Root

X86 = frozenset({"x86", "intel", "amd"})
RELEASE = "/proc/sys/kernel/osrelease"


def tree(base: Path, files: dict[str, Content]) -> Root:
    host_tree.write_tree(base, files)
    return host_tree.tree_root(base, files)


def changed(base: Path, change: dict[str, Content]) -> Root:
    """The good host's hardware with some paths replaced or taken away."""
    files = {p: c for p, c in PASSING.items() if not any(p == q or p.startswith(f"{q}/") for q in change)}
    return tree(base, {**files, **{p: c for p, c in change.items() if c is not None}})


def value(facts: Facts, name: str) -> object:
    fact = facts[name]
    return fact.value if isinstance(fact, Known) else None


# Versions


@pytest.mark.parametrize(
    ("release", "based_on", "expected"),
    [
        ("6.12.101", "", ((6, 12, 101), True)),
        ("6.12", "", ((6, 12, 0), True)),
        ("6.1.0-18-amd64", "6.1.76", ((6, 1, 76), False)),
        ("6.1.0-18-amd64", "", ((6, 1, 0), False)),
        ("6.8.0-45-generic", "6.8.12", ((6, 8, 12), False)),
        # A version that contradicts the release is not that kernel's.
        ("6.1.0-18-amd64", "6.12.3", ((6, 1, 0), False)),
        ("5.14.0-503.el9.x86_64", "", ((5, 14, 0), False)),
        ("7.2.0-rc3", "", ((7, 1, 0), False)),
        ("7.0.0-rc1", "", ((6, 0, 0), False)),
        ("6.18.44-fc-v657", "", ((6, 18, 44), False)),
        ("6.12.101+", "", ((6, 12, 101), False)),
    ],
)
def test_release_names(release: str, based_on: str, expected: tuple[tuple[int, int, int], bool]) -> None:
    version = parse_release(release, based_on)
    assert (version.base, version.is_plain) == expected


@pytest.mark.parametrize("release", ["", "linux", "6", "6.", "v6.1", "6.1\n", "99999.1"])
def test_other_names_are_refused(release: str) -> None:
    with pytest.raises(ValueError, match="does not begin with a version"):
        parse_release(release)


@given(st.text(max_size=60))
def test_any_release_is_read_or_refused(release: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_release(release).release == release


def test_debian_and_ubuntu_say_what_they_are_based_on(tmp_path: Path) -> None:
    debian = "Linux version 6.1.0-18-amd64 (debian-kernel@lists.debian.org) #1 SMP Debian 6.1.76-1 (2024-02-01)\n"
    found = read_version(tree(tmp_path / "d", {RELEASE: "6.1.0-18-amd64\n", "/proc/version": debian}))
    assert isinstance(found, KernelVersion)
    assert found.base == (6, 1, 76)
    ubuntu: dict[str, Content] = {
        RELEASE: "6.8.0-45-generic\n",
        "/proc/version_signature": "Ubuntu 6.8.0-45.45-generic 6.8.12\n",
    }
    found = read_version(tree(tmp_path / "u", ubuntu))
    assert isinstance(found, KernelVersion)
    assert found.base == (6, 8, 12)
    assert isinstance(read_version(tree(tmp_path / "x", {RELEASE: "weird\n"})), Unknown)
    assert isinstance(read_version(Root(tmp_path / "nothing")), Unknown)


@pytest.mark.parametrize(
    ("version", "lacks"),
    [
        ("6.12.94", True),
        ("6.12.95", False),
        ("6.12.101", False),
        # No fix was made for a series: every version of it is open.
        ("6.13.20", True),
        ("7.1.2", True),
        ("7.1.3", False),
        ("7.2", False),
        ("8.0.1", False),
    ],
)
def test_a_fix_is_in_from_the_fixed_version_of_its_series(version: str, lacks: bool) -> None:
    assert lacks_fix(parse_version(version), "7.2", "6.12.95 6.18.38 7.1.3") is lacks


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_row_of_the_table_is_well_formed(row: tuple[str, str, str, str, str, str]) -> None:
    identity, component, whose, since, fixed, stable = row
    assert identity.startswith("CVE-")
    assert component in ("kvm", "vhost", "vfio", "sysret")
    assert whose in ("", "x86", "intel", "amd", "arm64")
    first = parse_version(fixed)
    assert not since or parse_version(since) < first
    series = [parse_version(version) for version in stable.split()]
    assert series == sorted(series)
    assert len({version[:2] for version in series}) == len(series)
    assert all(version < first for version in series)
    for version in series:
        assert not lacks_fix(version, fixed, stable)
        assert version[2] == 0 or lacks_fix((version[0], version[1], version[2] - 1), fixed, stable)


def test_the_table_has_the_pair_of_2026_and_each_id_once_a_component() -> None:
    keys = [(row[0], row[1]) for row in ROWS]
    assert len(keys) == len(set(keys)) >= 60
    plain = KernelVersion("6.1.200", (6, 1, 200), is_plain=True)
    # Its record lists no fix for 6.1, whatever the patch level.
    assert open_cves("kvm", plain, X86)[-1] == "CVE-2026-64561"
    fixed = KernelVersion("6.18.42", (6, 18, 42), is_plain=True)
    assert open_cves("kvm", fixed, X86) == ()


def test_what_concerns_another_vendor_does_not_count() -> None:
    old = KernelVersion("5.13.1", (5, 13, 1), is_plain=True)
    intel, amd = open_cves("kvm", old, frozenset({"x86", "intel"})), open_cves("kvm", old, frozenset({"x86", "amd"}))
    assert "CVE-2021-3653" in amd
    assert "CVE-2021-3653" not in intel
    assert "CVE-2022-2196" in intel
    assert "CVE-2022-2196" not in amd
    assert open_cves("kvm", old, frozenset({"arm64"})) == ("CVE-2024-26598",), "its own, and none of x86"


def test_not_there_yet_holds_for_plain_kernels_only() -> None:
    base = (5, 4, 400)
    assert "CVE-2026-64561" not in open_cves("kvm", KernelVersion("5.4.400", base, is_plain=True), X86)
    assert "CVE-2026-64561" in open_cves("kvm", KernelVersion("5.4.400-el", base, is_plain=False), X86)


def test_marks_of_a_cpu() -> None:
    def cpu(vendor: str, architecture: str = "x86") -> CpuInfo:
        return CpuInfo(architecture, vendor, frozenset(), frozenset())

    assert marks(cpu("GenuineIntel")) == {"x86", "intel"}
    assert marks(cpu("AuthenticAMD")) == marks(cpu("HygonGenuine")) == {"x86", "amd"}
    assert marks(cpu("Strange")) == {"x86", "intel", "amd"}
    assert marks(cpu("", "arm64")) == {"arm64"}
    assert marks(Unknown("gone")) == {"x86", "intel", "amd", "arm64"}


def test_an_old_vendor_kernel_is_unknown_and_names_what_it_may_lack(tmp_path: Path) -> None:
    root = Root(tmp_path)
    vendor = KernelVersion("6.1.0-18-amd64", (6, 1, 76), is_plain=False)
    fact = cve_fact(root, "kvm", vendor, Unknown(""))
    assert isinstance(fact, Unknown)
    assert "CVE-2026-53359" in fact.why
    assert "6.1.76" in fact.why
    assert cve_fact(root, "kvm", Unknown("gone"), Unknown("")) == Unknown("gone")


@pytest.mark.parametrize(
    ("files", "known"),
    [
        ({"/sys/kernel/x": ""}, True),
        ({"/sys/kernel/livepatch": host_tree.Folder()}, True),
        ({"/sys/kernel/livepatch/kpatch_1/enabled": "1\n"}, False),
        ({"/x": ""}, False),
    ],
)
def test_a_live_patch_may_have_the_fix(tmp_path: Path, files: dict[str, Content], known: bool) -> None:
    fact = cve_fact(tree(tmp_path, files), "kvm", KernelVersion("6.12.1", (6, 12, 1), is_plain=True), Unknown(""))
    assert isinstance(fact, Known) is known


# modprobe


def test_modprobe_configuration() -> None:
    found = parse_modprobe(
        "# blacklist a\nblacklist vhost-net\ninstall vhost_scsi /bin/false\ninstall kvm /sbin/modprobe -i kvm\n"
        "install vhost_vsock /usr/bin/true\noptions kvm-intel nested=0 \\\n  ept=1\noptions vfio noiommu\n\nblacklist\n"
    )
    assert found.blocked == {"vhost_net", "vhost_scsi", "vhost_vsock"}
    assert found.option("kvm_intel", "nested") == "0"
    assert found.option("kvm_intel", "ept") == "1"
    assert found.option("vfio", "noiommu") == "Y"
    assert found.option("kvm_amd", "nested") is None


@given(st.text(max_size=200))
def test_any_modprobe_configuration_is_read(text: str) -> None:
    assert all(module.strip() for module in parse_modprobe(text).blocked)


def test_earlier_folders_hide_files_and_the_command_line_comes_last(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "/etc/modprobe.d/kvm.conf": "options kvm_intel nested=0\n",
            "/usr/lib/modprobe.d/kvm.conf": "options kvm_intel nested=1\nblacklist vhost_net\n",
            "/usr/lib/modprobe.d/README": "blacklist vhost_scsi\n",
            "/proc/cmdline": "kvm-intel.nested=Y module_blacklist=vhost_vdpa,vhost-vsock modprobe.blacklist=kvm",
        },
    )
    found = read_modprobe(root)
    assert not isinstance(found, Unknown)
    assert found.blocked == {"vhost_vdpa", "vhost_vsock", "kvm"}
    assert found.option("kvm_intel", "nested") == "Y"


BASE = "/lib/modules/6.12.110"
DEP = "kernel/drivers/vhost/vhost_net.ko.zst: kernel/x.ko\nkernel/drivers/vhost/vhost-scsi.ko:\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/modules": "", f"{BASE}/modules.dep": DEP, f"{BASE}/modules.builtin": ""}, ("vhost_net", "vhost_scsi")),
        (
            {
                "/proc/modules": "",
                f"{BASE}/modules.dep": "",
                f"{BASE}/modules.builtin": DEP.replace(": kernel/x.ko", ""),
            },
            ("vhost_net (built in)", "vhost_scsi (built in)"),
        ),
        (
            {
                "/proc/modules": "",
                f"{BASE}/modules.dep": DEP,
                f"{BASE}/modules.builtin": "",
                "/proc/sys/kernel/modules_disabled": "1\n",
            },
            (),
        ),
        # No /proc/modules: a kernel that cannot load modules.
        ({}, ()),
        ({"/proc/modules": ""}, None),
        ({"/proc/modules": "", f"{BASE}/modules.dep": DEP}, None),
    ],
)
def test_loadable(tmp_path: Path, files: dict[str, Content], expected: tuple[str, ...] | None) -> None:
    root = tree(tmp_path, {RELEASE: "6.12.110\n", **files})
    found = loadable(root, ("vhost_net", "vhost_scsi"), read_modprobe(root))
    assert found == expected if expected is not None else isinstance(found, Unknown)


def test_a_release_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    root = tree(tmp_path, {RELEASE: "../../etc\n", "/proc/modules": "", "/etc/modules.dep": DEP})
    found = loadable(root, ("vhost_net",), read_modprobe(root))
    assert isinstance(found, Unknown)
    assert "no name of a folder" in found.why


# KVM


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Y", "Y"), ("N", "N"), ("1", "Y"), ("0", "N"), ("never", "N"), ("2", "Y"), ("", None), ("²", None), ("x", None)],
)
def test_switches_of_a_module(tmp_path: Path, text: str, expected: str | None) -> None:
    facts = collect_kvm_module(changed(tmp_path, {f"{KVM}/ignore_msrs": text}))
    assert value(facts, "kvm.ignore-msrs") == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ()),
        ({f"{KVM_INTEL}/nested": "1\n"}, ("kvm_intel=1",)),
        ({f"{KVM_AMD}/nested": "1\n"}, ("kvm_amd=1",)),
        ({f"{KVM_AMD}/nested": "0\n"}, ()),
        ({f"{KVM_AMD}/npt": "1\n"}, None),
        ({f"{KVM_INTEL}/nested": None}, None),
        # A vendor module from outside the kernel's source that shows no parameter of the name.
        ({"/sys/module/kvm_intel": None, "/sys/module/kvm_pvm/refcnt": "1\n"}, None),
        ({"/sys/module/kvm_intel": None}, None),
    ],
)
def test_nesting(tmp_path: Path, change: dict[str, Content], expected: tuple[str, ...] | None) -> None:
    assert value(collect_kvm_module(changed(tmp_path, change)), "kvm.nested-modules") == expected


@pytest.mark.parametrize(("cmdline", "expected"), [("quiet", ()), ("kvm-arm.mode=nested", ("kvm-arm.mode=nested",))])
def test_nesting_on_arm_is_a_word_of_the_command_line(tmp_path: Path, cmdline: str, expected: tuple[str, ...]) -> None:
    change: dict[str, Content] = {
        "/sys/module/kvm_intel": None,
        "/proc/cpuinfo": "processor : 0\nFeatures : fp\n",
        "/proc/cmdline": cmdline,
    }
    assert value(collect_kvm_module(changed(tmp_path, change)), "kvm.nested-modules") == expected


def test_npt_counts_as_ept(tmp_path: Path) -> None:
    change: dict[str, Content] = {"/sys/module/kvm_intel": None, f"{KVM_AMD}/npt": "1\n"}
    assert value(collect_kvm_module(changed(tmp_path, change)), "kvm.two-dim-paging") == "Y"


@pytest.mark.parametrize(
    ("node", "rows", "expected"),
    [
        (Node(0o660, 0, 104), "kvm:x:104:\n", "root:kvm 0660"),
        (Node(0o666, 0, 108), "kvm:x:104:\n", "root:108 0666"),
        (Node(0o600, 0, 0), "", "root:root 0600"),
        (Node(0o660, 7, 104), "bad name:x:104:\n:x:104:\n", "7:104 0660"),
    ],
)
def test_the_device(tmp_path: Path, node: Node, rows: str, expected: str) -> None:
    files: dict[str, Content] = {"/dev/kvm": node, "/etc/group": Lines(rows), "/etc/passwd": Lines()}
    assert value(collect_kvm_module(changed(tmp_path, files)), "host.kvm-device") == expected


def test_access_control_lists() -> None:
    entries = [(0x01, 6, 0xFFFFFFFF), (0x02, 6, 1000), (0x04, 6, 0), (0x08, 4, 27), (0x02, 0, 1001), (0x10, 6, 0)]
    raw = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    assert parse_acl(raw) == ("user 1000 rw", "group 27 r")
    for broken in (b"", raw[:-1], struct.pack("<I", 1), b"\x02\0\0\0\0"):
        with pytest.raises(ValueError, match="bytes"):
            parse_acl(broken)


@given(st.binary(max_size=64))
def test_any_access_control_list_is_read_or_refused(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert all(entry.startswith(("user", "group")) for entry in parse_acl(raw))


def test_drivers_built_into_a_kernel_without_modules_are_in_its_configuration(tmp_path: Path) -> None:
    config = "".join(f"CONFIG_FILLER_{n}=y\n" for n in range(600)) + "CONFIG_KVM=y\nCONFIG_VHOST_NET=y\n"
    root = tree(tmp_path, {RELEASE: "6.12.110\n", "/proc/config.gz": config, "/sys/module/kvm/x": ""})
    facts = collect_kvm_module(root)
    assert value(facts, "kvm.vhost-loadable") == ("vhost_net (built in)",)
    assert value(facts, "kvm.loadable") == ("kvm (built in)",)
    assert value(facts, "kvm.vhost-possible") is True


# IOMMU


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        ({"/proc/cmdline": "intel_iommu=on,off"}, "iommu.off-switches", ("intel_iommu=off",)),
        ({"/proc/cmdline": "intremap=nosid iommu=force"}, "iommu.off-switches", ("intremap=nosid",)),
        ({"/proc/cmdline": "iommu=pt"}, "iommu.passthrough-words", ("iommu=pt",)),
        ({"/proc/cmdline": "iommu.passthrough=on"}, "iommu.passthrough-words", ("iommu.passthrough=1",)),
        ({"/proc/cmdline": "iommu.passthrough=1 iommu.passthrough=0"}, "iommu.passthrough-words", ()),
        ({"/proc/cmdline": "pci=disable_acs_redir=00:1f.0"}, "iommu.acs-overrides", ("pci=disable_acs_redir=00:1f.0",)),
        ({"/proc/cmdline": "efi=disable_early_pci_dma,nosoftreserve"}, "iommu.early-dma-off", True),
        ({"/proc/cmdline": "efi=no_disable_early_pci_dma"}, "iommu.early-dma-off", False),
        ({"/proc/cmdline": "quiet"}, "iommu.early-dma-off", None),
        ({"/sys/kernel": None}, "iommu.groups", None),
        ({GROUPS: None}, "iommu.groups", 0),
        ({f"{GROUPS}/0/type": None, f"{GROUPS}/0/x": ""}, "iommu.group-types", None),
        ({f"{PCI}/{NIC}/reset_method": None, f"{PCI}/{NIC}/reset": ""}, "iommu.no-reset", None),
        ({f"{PCI}/{NIC}/iommu_group": None}, "iommu.groups-shared", None),
        ({f"{PCI}/{NIC}/class": "0x010802\n", f"{PCI}/{NIC}/physfn": None}, "iommu.physical-nics", ()),
        ({"/dev/vfio": None, "/dev/iommu": Node(0o666)}, "iommu.nodes-open", ("/dev/iommu 0666",)),
        ({"/dev/vfio": None}, "iommu.nodes-open", ()),
    ],
)
def test_iommu(tmp_path: Path, change: dict[str, Content], name: str, expected: object) -> None:
    assert value(collect_iommu(changed(tmp_path, change)), name) == expected


@pytest.mark.parametrize("driver", ["vfio-pci", "pcieport", "pci-stub"])
def test_bridges_and_stubs_may_share_a_group(tmp_path: Path, driver: str) -> None:
    other = "0000:3b:02.7"
    change: dict[str, Content] = {
        f"{GROUPS}/7/devices/{other}": Link(f"../../../../bus/pci/devices/{other}"),
        f"{PCI}/{other}/driver": Link(f"../../drivers/{driver}"),
    }
    assert value(collect_iommu(changed(tmp_path, change)), "iommu.groups-shared") == ()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", "absent"),
        ("options vfio_iommu_type1 allow_unsafe_interrupts=1\n", "Y"),
        ("options vfio_iommu_type1 allow_unsafe_interrupts\n", "Y"),
        ("options vfio-iommu-type1 allow_unsafe_interrupts=0\n", "N"),
    ],
)
def test_a_module_that_is_not_loaded_has_the_options_it_would_get(tmp_path: Path, said: str, expected: str) -> None:
    change: dict[str, Content] = {"/sys/module/vfio_iommu_type1": None, "/etc/modprobe.d/vfio.conf": File(said)}
    assert value(collect_iommu(changed(tmp_path, change)), "iommu.unsafe-interrupts") == expected


# The catalogue


def test_nothing_about_hardware_is_left_for_later() -> None:
    assert not [name for names in LATER.values() for name in names if name.startswith(("cpu.", "iommu.", "kvm."))]


@pytest.mark.parametrize(
    "module", ["hardware_audit", "vulnerabilities_audit", "iommu_audit", "kvm_audit", "kvm_host_audit"]
)
def test_each_module_is_in_the_catalogue_and_each_control_tells_all(module: str) -> None:
    assert module in catalogue.AUDIT_MODULES
    for control in importlib.import_module(f"casemate.controls.catalogue.{module}").CONTROLS:
        assert control.remedies.host, control.id
        assert control.question.endswith("?"), control.id
        assert control.sources, control.id
        assert control.cuts, control.id
