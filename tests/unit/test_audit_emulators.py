"""Emulator binaries as targets: found, told apart, judged; packages and the bridge helper; hostile files."""

from __future__ import annotations

import datetime
import hashlib
import os
from pathlib import Path

import pytest
from tests.unit.elf_builder import Elf, put

from casemate import assess
from casemate.audit.emulators import find_emulators, report_emulator, report_emulators
from casemate.audit.judging import Setting
from casemate.audit.targets import Named
from casemate.audit.trees import report_tree
from casemate.controls.model import Finding, Verdict
from casemate.controls.profiles import DEFAULT, named
from casemate.errors import InputError
from casemate.facts import emulator_cache
from casemate.facts.cve_table import TABLE_PATH
from casemate.facts.elf_hardening import Hardening, read_hardening
from casemate.facts.emulator import _cve_facts, vmm_of
from casemate.facts.emulator_cache import Look
from casemate.facts.emulator_package import INFO, allowed_bridges, bridge_facts, package_facts
from casemate.facts.fact import Facts, Known, Unknown
from casemate.facts.root import Root

SETTING = Setting(named(DEFAULT), datetime.date(2026, 1, 1))
QEMU = "/usr/bin/qemu-system-x86_64"
BINARY = Elf(needed=("libc.so.6",), interpreter="/lib/ld.so").build()


def value(facts: Facts, name: str) -> object:
    fact = facts[name]
    assert isinstance(fact, Known), fact
    return fact.value


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    put(tmp_path, QEMU, BINARY)
    (tmp_path / "etc/os-release").parent.mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text("ID=debian\n")
    return tmp_path


def verdicts(path: Path, name: str) -> dict[str, Verdict]:
    report = report_emulator(name, SETTING, Root(path), run=False)
    return {finding.control_id: finding.verdict for finding in report.findings}


@pytest.mark.parametrize(
    ("name", "vmm"),
    [
        ("qemu-system-x86_64", "qemu"),
        ("qemu-kvm", "qemu"),
        ("kvm", "qemu"),
        ("firecracker-v1.7.0-x86_64", "unknown"),
        ("firecracker-v1.7.0", "firecracker"),
        ("cloud-hypervisor", "cloud-hypervisor"),
        ("crosvm", "crosvm"),
        ("ls", "unknown"),
    ],
)
def test_which_vmm_a_name_stands_for(name: str, vmm: str) -> None:
    assert vmm_of(name) == vmm


def test_every_emulator_of_a_tree_is_found_once_under_its_real_name(tree: Path) -> None:
    put(tree, "/usr/bin/firecracker", BINARY)
    put(tree, "/usr/bin/qemu-system-arm", b"#!/bin/sh\nexec false\n")
    put(tree, "/usr/bin/qemu-img", BINARY)
    (tree / "usr/bin/kvm").symlink_to("qemu-system-x86_64")
    (tree / "usr/bin/qemu-kvm").symlink_to("/nowhere")
    (tree / "usr/bin/qemu-system-loop").symlink_to("qemu-system-loop")
    assert list(find_emulators(Root(tree))) == ["/usr/bin/firecracker", QEMU]
    targets = [report.target for report in report_emulators(Root(tree), SETTING)]
    assert [(t.kind.value, t.name) for t in targets] == [
        ("emulator", "firecracker"),
        ("emulator", "qemu-system-x86_64"),
    ]


def test_a_captured_host_is_judged_with_its_emulators(tree: Path) -> None:
    kinds = [report.target.kind.value for report in report_tree(tree, SETTING)]
    assert kinds == ["host", "emulator"]


def test_what_is_only_qemus_does_not_apply_to_others(tree: Path) -> None:
    put(tree, "/usr/bin/firecracker", BINARY)
    found = verdicts(tree, "/usr/bin/firecracker")
    for name in ("bin.no-tcg", "bin.modules", "bin.device-types", "bin.cve", "bin.version", "bin.libraries"):
        assert found[name] is Verdict.NOT_APPLICABLE, name
    assert verdicts(tree, QEMU)["bin.no-tcg"] is Verdict.UNKNOWN


HOSTILE = {
    "empty": b"\x7fELF",
    "head": BINARY[:40],
    "half": BINARY[: len(BINARY) // 2],
    "ones": b"\x7fELF\x02\x01\x01" + b"\xff" * 4096,
    "zeros": b"\x7fELF\x02\x01\x01" + bytes(4096),
    "32": b"\x7fELF\x01\x02\x01" + b"\x7f" * 300,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_unknown_with_a_reason(tmp_path: Path, name: str) -> None:
    put(tmp_path, QEMU, HOSTILE[name])
    report = report_emulator(QEMU, SETTING, Root(tmp_path), run=False)
    found = {f.control_id: f for f in report.findings}
    for control in ("bin.pie", "bin.relro", "bin.canary", "bin.cve"):
        assert found[control].verdict is not Verdict.PASS, control
    assert all(f.why for f in report.findings)


def test_a_file_named_by_the_user_is_recognised_by_its_content(tmp_path: Path) -> None:
    strange = tmp_path / "strange"
    strange.write_bytes(BINARY[:64])
    (report,) = Named(str(strange)).reports(SETTING)
    assert (report.target.kind.value, report.target.name) == ("emulator", "strange")
    assert report.notes == ("its name is that of no VMM known here",)
    assert Verdict.PASS not in {f.verdict for f in report.findings if f.control_id in ("bin.pie", "bin.cve")}


NO_RELEASE = """\
format = 1
date = "2026-01-01"
weights = { R = 10, P = 6, L = 4, D = 1, unsaid = 3, public_exploit = 5, unlisted_device = 1 }
[[component]]
id = "lsi53c895a"
title = "LSI 53C895A"
side = "emulator"
product = "qemu"
reached_by = "guest-root"
types = ["lsi53c895a"]
cves = [ { id = "CVE-2020-0001", impact = "R", fixed_in = [], source = "test" } ]
"""


def test_a_missing_fix_is_unknown_and_an_open_one_fails(tmp_path: Path) -> None:
    version: Facts = {
        "bin.version-number": Known(990_000, "test"),
        "bin.device-types": Known(("lsi53c895a",), "test"),
    }
    put(tmp_path, TABLE_PATH, NO_RELEASE.encode())
    facts = _cve_facts(Root(tmp_path), version)
    assert value(facts, "bin.cves-open") == ()
    assert isinstance(facts["bin.cves-unclear"], Unknown)
    shipped = _cve_facts(Root("/nonexistent"), version)
    assert (value(shipped, "bin.cves-open"), value(shipped, "bin.cves-unclear")) == ((), ())
    old = _cve_facts(Root("/nonexistent"), version | {"bin.version-number": Known(10_000, "test")})
    assert "CVE-2024-6519" in str(value(old, "bin.cves-open"))


def dpkg(tree: Path, content: bytes, name: str = "qemu-system-x86", path: str = QEMU) -> None:
    put(tree, f"{INFO}/aaa.list", b"/.\n/usr\n/usr/bin/qemu-system\n")
    put(tree, f"{INFO}/{name}.list", f"/.\n/usr\n/usr/bin\n{path}\n".encode())
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    put(tree, f"{INFO}/{name}.md5sums", f"{digest}  {path[1:]}\n".encode())


def packaged(tree: Path, path: str) -> Facts:
    """The facts of its package, with the file's own digest."""
    return package_facts(
        Root(tree), path, lambda: hashlib.md5((tree / path[1:]).read_bytes(), usedforsecurity=False).hexdigest()
    )


def test_a_look_is_kept_while_the_file_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked out once; anew for any change, even one whose times were set back; never kept of a file just written."""
    monkeypatch.setattr(emulator_cache, "_QUIET_NS", -1)
    binary, cache = tmp_path / "qemu-system-x86_64", tmp_path / "cache"
    content = Path("/bin/true").read_bytes()
    binary.write_bytes(content)
    worked: list[str] = []

    def counted(descriptor: int) -> Hardening:
        worked.append("elf")
        return read_hardening(descriptor)

    monkeypatch.setattr(emulator_cache, "read_hardening", counted)

    def look() -> tuple[str, Hardening]:
        descriptor = os.open(binary, os.O_RDONLY)
        try:
            found = Look(descriptor, str(binary), cache)
            answer = found.md5(), found.hardening()
            found.keep()
            return answer
        finally:
            os.close(descriptor)

    first = look()
    assert first[0] == hashlib.md5(content, usedforsecurity=False).hexdigest()
    assert (look(), len(worked)) == (first, 1)
    before = binary.stat()
    changed = content[:-1] + bytes([content[-1] ^ 1])
    binary.write_bytes(changed)
    os.utime(binary, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert binary.stat().st_mtime_ns == before.st_mtime_ns
    assert look()[0] == hashlib.md5(changed, usedforsecurity=False).hexdigest()
    assert len(worked) == 2
    (kept,) = cache.rglob("look-*.json")
    kept.write_bytes(b"{")
    assert look()[0] == hashlib.md5(changed, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(emulator_cache, "_QUIET_NS", 10**12)
    kept.unlink()
    look()
    assert not kept.exists()


def test_the_package_and_its_digest(tree: Path) -> None:
    assert isinstance(packaged(tree, QEMU)["bin.package"], Unknown)
    dpkg(tree, BINARY)
    facts = packaged(tree, QEMU)
    assert (value(facts, "bin.package"), value(facts, "bin.digest")) == ("qemu-system-x86", "as packaged")
    assert verdicts(tree, QEMU)["bin.provenance"] is Verdict.PASS
    put(tree, QEMU, BINARY + b"\0")
    assert value(packaged(tree, QEMU), "bin.digest") == "changed"
    assert verdicts(tree, QEMU)["bin.provenance"] is Verdict.FAIL


def test_a_file_of_no_package_fails_and_a_diverted_one_is_unknown(tree: Path) -> None:
    dpkg(tree, BINARY)
    put(tree, "/usr/local/bin/qemu-system-x86_64", BINARY)
    facts = packaged(tree, "/usr/local/bin/qemu-system-x86_64")
    assert value(facts, "bin.package") == "none"
    assert verdicts(tree, "/usr/local/bin/qemu-system-x86_64")["bin.provenance"] is Verdict.FAIL
    put(tree, "/var/lib/dpkg/diversions", f"{QEMU}\n{QEMU}.real\nother\n".encode())
    assert isinstance(packaged(tree, QEMU)["bin.digest"], Unknown)
    assert verdicts(tree, QEMU)["bin.provenance"] is Verdict.UNKNOWN


@pytest.mark.parametrize("sums", [b"", b"zz  usr/bin/qemu-system-x86_64\n", b"\xff\xfe", b"abc"])
def test_a_database_without_a_digest_is_unknown(tree: Path, sums: bytes) -> None:
    dpkg(tree, BINARY)
    put(tree, f"{INFO}/qemu-system-x86.md5sums", sums)
    assert isinstance(packaged(tree, QEMU)["bin.digest"], Unknown)


def test_a_package_from_before_the_merge_of_usr(tree: Path) -> None:
    dpkg(tree, BINARY, path="/bin/qemu-system-x86_64")
    assert value(packaged(tree, QEMU), "bin.digest") == "as packaged"


HELPER = "/usr/lib/qemu/qemu-bridge-helper"
ACL = "/etc/qemu/bridge.conf"


def helper(tree: Path, mode: int, acl: str | None, acl_mode: int = 0o644) -> tuple[str, ...] | None:
    put(tree, HELPER, BINARY)
    (tree / HELPER[1:]).chmod(mode)
    if acl is not None:
        put(tree, ACL, acl.encode())
        (tree / ACL[1:]).chmod(acl_mode)
    fact = bridge_facts(Root(tree))["bin.bridge-open"]
    assert isinstance(fact, (Known, Unknown))
    return fact.value if isinstance(fact, Known) and isinstance(fact.value, tuple) else None


@pytest.mark.parametrize(
    ("mode", "acl", "acl_mode", "bridges"),
    [
        (0o755, "allow all\n", 0o644, ()),
        (0o4755, None, 0o644, ()),
        (0o4755, "allow all\n", 0o644, ("all",)),
        (0o4755, "# allow br9\nallow br0 # here\n\nallow br1\n", 0o644, ("br0", "br1")),
        (0o4755, "deny all\nallow br0\n", 0o644, ()),
        (0o4755, "allow br0\ndeny all\n", 0o644, ("br0",)),
        (0o4755, "deny br0\nallow br0\nallow br1\n", 0o644, ("br1",)),
        (0o4755, "allow br0\n", 0o640, ()),
        (0o4750, "allow br0\n", 0o644, ()),
        (0o4755, "nonsense\nallow\n", 0o644, ()),
    ],
)
def test_who_may_use_the_bridge_helper(
    tmp_path: Path, mode: int, acl: str | None, acl_mode: int, bridges: tuple[str, ...]
) -> None:
    assert helper(tmp_path, mode, acl, acl_mode) == bridges


def test_included_lists_count_when_everybody_can_read_them(tmp_path: Path) -> None:
    put(tmp_path, "/etc/qemu/alice.conf", b"allow br7\n")
    assert helper(tmp_path, 0o4755, "include /etc/qemu/alice.conf\n") == ("br7",)
    (tmp_path / "etc/qemu/alice.conf").chmod(0o640)
    assert helper(tmp_path, 0o4755, "include /etc/qemu/alice.conf\n") == ()


def test_lists_that_include_each_other_end(tmp_path: Path) -> None:
    assert helper(tmp_path, 0o4755, f"include {ACL}\nallow br0\n") is None
    with pytest.raises(OSError, match="without end"):
        allowed_bridges(Root(tmp_path), ACL)


def test_a_list_that_includes_many_is_bounded(tmp_path: Path) -> None:
    for number in range(6):
        put(tmp_path, f"/etc/qemu/{number}.conf", f"include /etc/qemu/{number + 1}.conf\n".encode() * 1000)
    assert helper(tmp_path, 0o4755, "include /etc/qemu/0.conf\nallow br0\n") is None


# ---- --root: a tree in place of this host's ----------------------------------------------------------------------


def test_a_tree_without_processes_is_judged_with_its_domains(tmp_path: Path) -> None:
    domain = (Path(__file__).resolve().parents[1] / "data/domains/nova.xml").read_bytes()
    put(tmp_path, "/etc/os-release", b"ID=debian\n")
    put(tmp_path, "/etc/libvirt/qemu/a.xml", b"<domain")
    put(tmp_path, "/etc/libvirt/qemu/b.xml", domain)
    report = assess.audit(root=tmp_path)
    assert [entry.target.kind.value for entry in report.targets] == ["host", "domain"]
    assert any("processes of this tree cannot be read" in note for note in report.targets[0].notes)
    assert {entry.target.host for entry in report.targets[1:]} == {tmp_path.name}
    assert len(report.faults) == 1
    assert "a.xml: not well-formed" in report.faults[0]


def test_a_tree_in_which_proc_leads_in_circles_is_no_error_of_this_host(tmp_path: Path) -> None:
    (tmp_path / "proc").symlink_to("proc")
    (tmp_path / "etc").symlink_to("/")
    (report,) = assess.audit(root=tmp_path).targets
    assert any("too many levels" in note for note in report.notes)


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_tree_that_is_no_directory_is_wrong_use(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="is no directory"):
        assess.audit(root=tmp_path / name)


# ---- --khc: what kernel-hardening-checker said of the host ---------------------------------------------------------

KHC = (
    '[{"option_name": "CONFIG_BUG", "type": "kconfig", "desired_val": "y", "check_result": "OK"},'
    ' {"option_name": "CONFIG_KFENCE", "type": "kconfig", "desired_val": "y", "check_result": "FAIL: \\"n\\""}]'
)


def khc_finding(tmp_path: Path, khc: Path | None = None) -> Finding:
    put(tmp_path, "/t/etc/os-release", b"ID=debian\n")
    host = assess.audit(root=tmp_path / "t", khc=khc).targets[0]
    return next(finding for finding in host.findings if finding.control_id == "hk.khc-report")


def test_a_result_of_kernel_hardening_checker_is_judged_with_the_host(tmp_path: Path) -> None:
    file = tmp_path / "khc.json"
    file.write_text(KHC)
    found = khc_finding(tmp_path, khc=file)
    assert found.verdict is Verdict.FAIL
    assert "CONFIG_KFENCE wants y" in found.evidence
    assert str(file) in found.evidence
    file.write_text(KHC.replace("FAIL", "OK"))
    assert khc_finding(tmp_path, khc=file).verdict is Verdict.PASS
    assert khc_finding(tmp_path).verdict is Verdict.NOT_APPLICABLE


@pytest.mark.parametrize("text", ["", "[]", "{}", '[{"option_name": "A"}]', "no JSON"])
def test_what_is_no_result_of_it_is_wrong_use(tmp_path: Path, text: str) -> None:
    (tmp_path / "khc.json").write_text(text)
    with pytest.raises(InputError, match="not a JSON result of kernel-hardening-checker"):
        assess.audit(khc=tmp_path / "khc.json")


def test_it_is_about_a_host_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "khc.json").write_text(KHC)
    with pytest.raises(InputError, match="about a host"):
        assess.audit(["vm.xml"], khc=tmp_path / "khc.json")
