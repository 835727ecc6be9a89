"""The audit of a guest from its files: one minimal change to a good guest per control makes it fail, and it alone."""

from __future__ import annotations

import calendar
import datetime
import json
import os
import re
from pathlib import Path

import pytest
from tests.unit.test_updates_rpm import NOW as RPM_NOW
from tests.unit.test_updates_rpm import host as rpm_host

from casemate.cell import guest_tree
from casemate.cell.guest_audit import facts_of, findings_of
from casemate.controls.catalogue.guest_image_audit import CONTROLS
from casemate.controls.model import Verdict
from casemate.facts.fact import Known, Unknown
from casemate.facts.guest_accounts import sshd_facts
from casemate.facts.guest_packages import collect_packages, installed_packages
from casemate.facts.guest_system import SYSCTLS
from casemate.facts.guest_wanted_data import WANTED
from casemate.facts.root import Root
from casemate.scan.sbom import build, purl

NOW = datetime.datetime.now(datetime.UTC)
STATUS = """Package: bash
Status: install ok installed
Version: 5.2.15-2+b2
Architecture: amd64
Maintainer: Some One <some@example.org>

Package: openssl
Status: install ok installed
Version: 3.0.11-1
Architecture: amd64
Source: openssl (3.0.11)

Package: gone
Status: deinstall ok config-files
Version: 1
"""
LISTS = "var/lib/apt/lists/security.example.org_dists_bookworm-security_"
GOOD: dict[str, str | None] = {
    "etc/os-release": 'ID=debian\nVERSION_CODENAME=bookworm\nPRETTY_NAME="Debian GNU/Linux 12"\n',
    "etc/passwd": "root:x:0:0::/root:/bin/bash\nana:x:1000:1000::/home/ana:/bin/bash\n",
    "etc/shadow": "root:!:1::::::\nana:$y$j9T$abc$def:1::::::\n",
    "etc/ssh/sshd_config": "Include /etc/ssh/sshd_config.d/*.conf\nPermitRootLogin yes\nPasswordAuthentication yes\n",
    "etc/ssh/sshd_config.d/10.conf": "PermitRootLogin no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n",
    "usr/sbin/sshd": "x",
    "usr/bin/sudo": "x",
    "etc/sudoers": "root ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n",
    "etc/sysctl.d/50.conf": "".join(f"{name} = {values[0]}\n" for name, values in SYSCTLS.items()),
    "boot/grub/grub.cfg": "linux /vmlinuz root=/dev/vda1 ro lockdown=integrity quiet\n",
    "usr/lib/shim/shimx64.efi.signed": "x",
    "usr/bin/unattended-upgrade": "x",
    "etc/apt/apt.conf.d/20auto": 'APT::Periodic::Unattended-Upgrade "1";\n',
    "usr/bin/cloud-init": "x",
    "etc/cloud/cloud.cfg.d/90.cfg": "datasource_list: [ NoCloud, None ]\n",
    "etc/machine-id": "",
    "var/lib/dpkg/status": STATUS,
    f"{LISTS}InRelease": "Codename: bookworm-security\nSuite: oldstable-security\nLabel: Debian-Security\n"
    f"Date: {NOW:%a, %d %b %Y %H:%M:%S} UTC\n",
    f"{LISTS}main_binary-amd64_Packages": "Package: openssl\nVersion: 3.0.11-1\nArchitecture: amd64\n",
}
BREAKING: dict[str, dict[str, str | None]] = {
    "guest.security-updates": {f"{LISTS}main_binary-amd64_Packages": "Package: openssl\nVersion: 3.0.11-1+deb12u2\n"},
    "guest.auto-updates": {"etc/apt/apt.conf.d/20auto": 'APT::Periodic::Unattended-Upgrade "0";\n'},
    "guest.root-locked": {"etc/shadow": "root:$y$j9T$abc$def:1::::::\nana:$y$j9T$abc$def:1::::::\n"},
    "guest.no-empty-password": {"etc/shadow": "root:!:1::::::\nana::1::::::\n"},
    "guest.one-root": {"etc/passwd": "root:x:0:0::/root:/bin/bash\ntoor:x:0:0::/root:/bin/bash\n"},
    "guest.sshd-root": {
        "etc/ssh/sshd_config.d/10.conf": "PermitRootLogin yes\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\n"
    },
    "guest.sshd-keys-only": {
        "etc/ssh/sshd_config.d/10.conf": "PermitRootLogin no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nMatch User ana\n  PasswordAuthentication yes\n"
    },
    "guest.sudo-password": {"etc/sudoers.d/90-cloud": "ana ALL=(ALL) NOPASSWD: ALL\n"},
    "guest.sysctls": {"etc/sysctl.d/99.conf": "kernel.kptr_restrict=0\n"},
    "guest.no-entropy-daemon": {"usr/sbin/haveged": "x"},
    "guest.no-agent": {"usr/sbin/qemu-ga": "x"},
    "guest.lockdown-ready": {"boot/grub/grub.cfg": "linux /vmlinuz root=/dev/vda1 ro quiet\n"},
    "guest.secure-boot-ready": {"usr/lib/shim/shimx64.efi.signed": None},
    "guest.cloud-init-source": {"etc/cloud/cloud.cfg.d/90.cfg": "datasource_list: [Ec2, NoCloud]\n"},
    "guest.own-identity": {"etc/ssh/ssh_host_rsa_key": "x"},
}

CATALOGUE_CASES = tuple(BREAKING)
"""For the test that every control of the catalogue has a case."""


def guest(directory: Path, change: dict[str, str | None] | None = None) -> Root:
    for name, text in {**GOOD, **(change or {})}.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text)
    return Root(directory)


def verdicts(root: Root) -> dict[str, Verdict]:
    return {finding.control_id: finding.verdict for finding in findings_of(facts_of(root))}


def test_a_good_guest_passes(tmp_path: Path) -> None:
    assert set(verdicts(guest(tmp_path)).values()) == {Verdict.PASS}


def test_every_control_has_its_breaking_change() -> None:
    assert set(BREAKING) == {control.id for control in CONTROLS}


@pytest.mark.parametrize("control", sorted(BREAKING))
def test_one_change_breaks_one_control(tmp_path: Path, control: str) -> None:
    found = verdicts(guest(tmp_path, BREAKING[control]))
    assert {name for name, verdict in found.items() if verdict is not Verdict.PASS} == {control}
    assert found[control] is Verdict.FAIL


def test_an_empty_guest_passes_nothing_it_cannot_know(tmp_path: Path) -> None:
    found = verdicts(Root(tmp_path))
    for control in ("guest.security-updates", "guest.root-locked", "guest.no-empty-password", "guest.lockdown-ready"):
        assert found[control] is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("files", "root_login", "passwords"),
    [
        ({"sshd_config": ""}, "prohibit-password", "yes"),
        (
            {"sshd_config": "PermitRootLogin=no\npasswordauthentication no\nKbdInteractiveAuthentication no\n"},
            "no",
            "no",
        ),
        ({"sshd_config": "PermitRootLogin no\nPermitRootLogin yes\n"}, "no", "yes"),
        ({"sshd_config": "Match Address 10.0.0.0/8\nPermitRootLogin yes\n"}, "yes", "yes"),
        ({"sshd_config": "Match all\nPermitRootLogin no\n"}, "no", "yes"),
        ({"sshd_config": "Include x/*\nPermitRootLogin no\n", "x/a": "Match User b\n"}, "no", "yes"),
        ({"sshd_config": "PermitRootLogin without-password\n"}, "prohibit-password", "yes"),
        ({"sshd_config": "# PermitRootLogin no\nPermitRootLogin yes # really\n"}, "yes", "yes"),
    ],
)
def test_sshd_as_sshd_reads_it(tmp_path: Path, files: dict[str, str], root_login: str, passwords: str) -> None:
    (tmp_path / "usr/sbin").mkdir(parents=True)
    (tmp_path / "usr/sbin/sshd").touch()
    for name, text in files.items():
        path = tmp_path / "etc/ssh" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    facts = sshd_facts(Root(tmp_path))
    assert isinstance(facts["guest.sshd-root"], Known)
    assert facts["guest.sshd-root"].value == root_login
    assert isinstance(facts["guest.sshd-passwords"], Known)
    assert facts["guest.sshd-passwords"].value == passwords


def test_sshd_that_includes_itself_is_unknown(tmp_path: Path) -> None:
    root = guest(tmp_path, {"etc/ssh/sshd_config": "Include /etc/ssh/sshd_config\n"})
    assert isinstance(sshd_facts(root)["guest.sshd-root"], Unknown)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({f"{LISTS}InRelease": GOOD[f"{LISTS}InRelease"].replace(f"{NOW:%Y}", "2019")}, "days old"),  # type: ignore[union-attr]
        ({"etc/os-release": "ID=debian\nVERSION_CODENAME=trixie\n"}, "trixie"),
        ({f"{LISTS}main_binary-amd64_Packages": None}, ""),
        ({"var/lib/dpkg/status": "garbage"}, "no installed package"),
    ],
)
def test_updates_are_unknown_rather_than_none(tmp_path: Path, change: dict[str, str | None], word: str) -> None:
    root = guest(tmp_path, change)
    if None in change.values():
        (tmp_path / f"{LISTS}main_binary-amd64_Packages").unlink(missing_ok=True)
    found = collect_packages(root)["guest.security-updates"]
    assert isinstance(found, Unknown)
    assert word in found.why


def test_other_package_managers(tmp_path: Path) -> None:
    (tmp_path / "var/lib/rpm").mkdir(parents=True)
    found = installed_packages(Root(tmp_path))
    assert isinstance(found, Unknown)
    assert "rpm" in found.why
    apk = tmp_path / "lib/apk/db/installed"
    apk.parent.mkdir(parents=True)
    apk.write_text("P:musl\nV:1.2.4-r2\nA:x86_64\n\nP:busybox\nV:1.36-r5\n\n")
    packages = installed_packages(Root(tmp_path))
    assert not isinstance(packages, Unknown)
    assert [package.name for package in packages] == ["busybox", "musl"]


def test_packages_of_rpm(tmp_path: Path) -> None:
    root = rpm_host(tmp_path)
    packages = installed_packages(root)
    assert not isinstance(packages, Unknown)
    assert [package.name for package in packages][:2] == ["bash", "kernel-core"]
    assert "gpg-pubkey" not in {package.name for package in packages}
    facts = collect_packages(root, now_s=RPM_NOW)
    found = facts["guest.security-updates"]
    assert isinstance(found, Known)
    assert found.value == (
        "bash 5.1.8-9.el9 -> 9-9",
        "kernel-core 5.14.0-570.12.1.el9_6 -> 5.14.0-570.99.1.el9_6",
        "qemu-kvm 17:9.1.0-15.el9 -> 17:9.1.0-15.el9_6.2",
    )
    assert facts["guest.packages"] == Known(7, "rpmdb.sqlite")
    emulator = next(package for package in packages if package.name == "qemu-kvm")
    assert purl(emulator, "rhel") == "pkg:rpm/rhel/qemu-kvm@9.1.0-15.el9?arch=x86_64&epoch=17"
    wanted = re.compile("|".join(guest_tree._expression(pattern) for pattern in WANTED))
    read = [f"/{path.relative_to(tmp_path)}" for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in read if not wanted.fullmatch(path)] == ["/proc/sys/kernel/osrelease"]
    caches = rpm_host(tmp_path / "other", made=RPM_NOW - 90 * 86_400)
    old = collect_packages(root, caches, now_s=RPM_NOW)["guest.security-updates"]
    assert isinstance(old, Unknown)
    assert "90 days old" in old.why


def test_bills_of_materials(tmp_path: Path) -> None:
    packages = installed_packages(guest(tmp_path))
    assert not isinstance(packages, Unknown)
    assert [package.name for package in packages] == ["bash", "openssl"]
    when = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    cyclonedx = build("cyclonedx", packages, "image", "ab" * 32, "debian", "1.0", when)
    assert cyclonedx["bomFormat"] == "CycloneDX"
    assert cyclonedx["components"][0]["purl"] == "pkg:deb/debian/bash@5.2.15-2%2Bb2?arch=amd64"
    assert cyclonedx["dependencies"][0]["dependsOn"] == [item["bom-ref"] for item in cyclonedx["components"]]
    spdx = build("spdx", packages, "image", "", "debian", "1.0", when)
    ids = {item["SPDXID"] for item in spdx["packages"]} | {"SPDXRef-DOCUMENT"}
    assert all(r["spdxElementId"] in ids and r["relatedSpdxElement"] in ids for r in spdx["relationships"])
    assert len(spdx["relationships"]) == 3
    for document in (cyclonedx, spdx):
        assert json.loads(json.dumps(document)) == document
    assert build("spdx", packages, "image", "", "debian", "1.0", when) == spdx
    assert calendar.timegm(when.timetuple()) > 0


def test_hostile_files_make_unknown_facts(tmp_path: Path) -> None:
    """Random bytes in every file that is read: facts, never an exception."""
    for seed in range(40):
        directory = tmp_path / str(seed)
        root = guest(directory)
        for name in list(GOOD)[seed % 3 :: 3]:
            (directory / name).write_bytes(os.urandom(300) + b"\n:::\n=\n[\n" + os.urandom(50))
        assert findings_of(facts_of(root))
