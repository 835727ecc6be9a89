"""The recipe of the hardened Debian disk: what it writes satisfies the controls that judge it.

Building one needs an archive and minutes; ``casemate image build --debian`` scans and audits what it built each time.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from casemate.cell import debian_build
from casemate.cell.guest_audit import facts_of, findings_of
from casemate.controls.model import Verdict
from casemate.errors import HostError, InputError
from casemate.facts.root import Root


def tree(directory: Path) -> Root:
    """What the recipe writes, beside the programs of its packages."""
    for name, text in debian_build._FILES.items():
        path = directory / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("usr/sbin/sshd", "usr/bin/sudo", "usr/bin/cloud-init", "usr/bin/unattended-upgrade"):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    shim = directory / "usr/lib/shim/shimx64.efi.signed"
    shim.parent.mkdir(parents=True)
    shim.touch()
    (directory / "etc/ssh/sshd_config").write_text(
        "Include /etc/ssh/sshd_config.d/*.conf\nPasswordAuthentication yes\n"
    )
    (directory / "etc/cloud/cloud.cfg").write_text("datasource_list: [ Ec2, NoCloud ]\n")
    (directory / "etc/passwd").write_text("root:x:0:0::/root:/bin/bash\n")
    (directory / "etc/shadow").write_text("root:!*:1::::::\n")
    (directory / "etc/sudoers").write_text("root ALL=(ALL:ALL) ALL\n")
    (directory / "etc/machine-id").touch()
    return Root(directory)


def test_what_it_writes_satisfies_every_control_that_files_decide(tmp_path: Path) -> None:
    verdicts = {finding.control_id: finding.verdict for finding in findings_of(facts_of(tree(tmp_path)))}
    assert verdicts.pop("guest.security-updates") is Verdict.UNKNOWN, "no packages in this tree"
    assert set(verdicts.values()) == {Verdict.PASS}, verdicts


def test_grub_and_the_kernel_get_the_same_command_line() -> None:
    said = debian_build._FILES["/etc/kernel/cmdline"].strip()
    assert said in debian_build._GRUB
    assert "lockdown=integrity" in said


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"suite": "sid"}, "no recipe"),
        ({"size_mib": 10}, "size"),
        ({"include": ("a;rm -rf /",)}, "no name of a package"),
        ({"include": ("--hook=x",)}, "no name of a package"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(
    tmp_path: Path, options: dict[str, object], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian_build, "_run", lambda *_, **__: pytest.fail("ran"))
    with pytest.raises(InputError, match=word):
        debian_build.build_debian(str(tmp_path / "x.img"), str(tmp_path), **options)  # type: ignore[arg-type]


def test_an_output_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x.img").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        debian_build.build_debian(str(tmp_path / "x.img"), str(tmp_path))
    assert (tmp_path / "x.img").read_text() == "mine"


def test_missing_programs_are_named_with_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian_build, "_PATH", str(tmp_path))
    with pytest.raises(HostError) as caught:
        debian_build.build_debian(str(tmp_path / "x.img"), str(tmp_path))
    assert "mmdebstrap" in caught.value.next_step
    assert "mtools" in caught.value.next_step


def test_the_hooks_are_shell_that_does_what_it_says(tmp_path: Path) -> None:
    """Files with quotes and dollars arrive as they are; the configuration is valid shell."""
    files = {"/etc/a b/c": 'it\'s $HOME `x` \\n "q"\n'}
    subprocess.run(["/bin/sh", "-c", debian_build._write_files(files), "sh", str(tmp_path)], check=True)
    assert (tmp_path / "etc/a b/c").read_text() == files["/etc/a b/c"]
    for script in (debian_build._configure(), debian_build._fill(100)):
        subprocess.run(["/bin/sh", "-n", "-c", script], check=True)


@pytest.mark.skipif(
    any(shutil.which(tool, path=debian_build._PATH) is None for tool in ("sfdisk", "mkfs.vfat", "mcopy")),
    reason="needs sfdisk, mkfs.vfat and mcopy",
)
def test_the_disk_has_its_boot_loader_and_its_root(tmp_path: Path) -> None:
    for name in ("shim.efi", "mm.efi", "grub.efi"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "root.img").write_bytes(bytes(8 << 20) + b"root file system")
    debian_build._esp(tmp_path)
    debian_build._disk(tmp_path, tmp_path / "disk.img", 80, 14)
    disk = (tmp_path / "disk.img").read_bytes()
    assert len(disk) == 80 << 20
    assert disk[512:520] == b"EFI PART"
    assert disk.find(b"root file system") == (65 + 8) << 20
    listed = subprocess.run(
        ["mdir", "-b", "-/", "-i", f"{tmp_path}/disk.img@@1M", "::/"], capture_output=True, text=True, check=True
    ).stdout.upper()
    assert "EFI/BOOT/BOOTX64.EFI" in listed
    assert "EFI/DEBIAN/GRUB.CFG" in listed
