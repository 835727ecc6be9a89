"""The emulator's description, with a fake QEMU that really runs; firmware and modules on fake trees."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest
from tests.unit import fake_qemu
from tests.unit.elf_builder import put

from casemate.errors import HostError
from casemate.facts import qemu
from casemate.facts.firmware import Wanted, choose_uefi, firmware_files, uefi_firmwares
from casemate.facts.program import ask_program
from casemate.facts.qemu import Emulator, check_emulator, describe_emulator, find_qemu, modules_for
from casemate.facts.root import Root


class TestFind:
    def test_usual_place_through_a_symlink(self, tmp_path: Path) -> None:
        put(tmp_path, "/usr/bin/real-qemu", b"x").chmod(0o755)
        (tmp_path / "usr/bin/qemu-system-x86_64").symlink_to("real-qemu")
        assert find_qemu(Root(tmp_path)) == "/usr/bin/real-qemu"

    def test_none_names_the_packages(self, tmp_path: Path) -> None:
        with pytest.raises(HostError) as caught:
            find_qemu(Root(tmp_path))
        assert "apt install qemu-system-x86" in caught.value.next_step
        assert "dnf install" in caught.value.next_step

    def test_explicit_must_exist(self, tmp_path: Path) -> None:
        put(tmp_path, "/usr/bin/qemu-system-x86_64", b"x").chmod(0o755)
        with pytest.raises(HostError, match="emulator /opt/qemu"):
            find_qemu(Root(tmp_path), "/opt/qemu")

    @pytest.mark.parametrize("mode", [0o644, 0o757])
    def test_must_be_executable_and_ours(self, tmp_path: Path, mode: int) -> None:
        put(tmp_path, "/usr/bin/qemu-system-x86_64", b"x").chmod(mode)
        with pytest.raises(HostError):
            find_qemu(Root(tmp_path))


class TestDescribe:
    def test_answers_become_facts(self, tmp_path: Path) -> None:
        path = fake_qemu.write(tmp_path / "q", insecure_types=True)
        found = describe_emulator(str(path), tmp_path / "cache")
        assert found.version == (9, 9, 1)
        assert found.version_text == "9.9.1 (Fake 1)"
        assert found.machine_types == ("microvm", "pc-q35-9.9", "q35")
        assert found.accelerators == ("kvm", "tcg")
        assert found.data_dirs == ("/usr/share/qemu", str(tmp_path / "q/data"))
        assert (found.netdev_stream, found.sandbox, found.kvm_device_property) == (True, True, True)
        assert found.insecure_types_policy
        assert found.module_dir is None
        assert len(found.sha256) == 64

    def test_asked_in_a_clean_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QEMU_MODULE_DIR", "/tmp/evil")
        monkeypatch.setenv("LD_PRELOAD", "")
        describe_emulator(str(fake_qemu.write(tmp_path / "q")), tmp_path / "cache")
        lines = fake_qemu.runs(tmp_path / "q")
        assert lines
        assert not [line for line in lines if "QEMU_MODULE_DIR" in line or "LD_PRELOAD" in line]

    def test_warm_cache_starts_nothing(self, tmp_path: Path) -> None:
        path = str(fake_qemu.write(tmp_path / "q"))
        first = describe_emulator(path, tmp_path / "cache")
        count = len(fake_qemu.runs(tmp_path / "q"))
        assert describe_emulator(path, tmp_path / "cache") == first
        assert len(fake_qemu.runs(tmp_path / "q")) == count

    @pytest.mark.parametrize("what", ["binary", "data"])
    def test_change_asks_again(self, tmp_path: Path, what: str) -> None:
        path = fake_qemu.write(tmp_path / "q")
        describe_emulator(str(path), tmp_path / "cache")
        count = len(fake_qemu.runs(tmp_path / "q"))
        os.utime(path if what == "binary" else tmp_path / "q/data", ns=(1, 1))
        describe_emulator(str(path), tmp_path / "cache")
        assert len(fake_qemu.runs(tmp_path / "q")) == 2 * count

    def test_without_tcg_module_there_is_kvm_only(self, tmp_path: Path) -> None:
        found = describe_emulator(str(fake_qemu.write(tmp_path / "q", "no-tcg")), tmp_path / "cache")
        assert found.accelerators == ("kvm",)
        assert not found.insecure_types_policy
        with pytest.raises(HostError, match="cannot use accelerator tcg"):
            modules_for(found, "tcg")

    @pytest.mark.parametrize(
        ("mode", "text"),
        [
            ("hang", "did not answer within 1 s"),
            ("flood", "wrote more than"),
            ("garbage", "not JSON"),
            ("error", "refused a question"),
            ("mute", "2 of 7 answers"),
        ],
    )
    def test_bad_answers_are_host_errors(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, text: str
    ) -> None:
        monkeypatch.setattr(qemu, "_TIMEOUT_S", 1.0)
        path = fake_qemu.write(tmp_path / "q", mode)
        with pytest.raises(HostError) as caught:
            describe_emulator(str(path), tmp_path / "cache")
        assert text in caught.value.got
        assert not (tmp_path / "cache").exists()

    def test_captured_tree_is_not_run(self, tmp_path: Path) -> None:
        put(tmp_path, "/usr/bin/qemu-system-x86_64", b"x").chmod(0o755)
        with pytest.raises(HostError, match="/usr/bin/qemu"):
            describe_emulator("/usr/bin/qemu-system-x86_64", tmp_path / "cache", Root(tmp_path))


def ends(pid: str) -> bool:
    """Whether a process is gone, or a zombie that waits for its parent, within ten seconds."""
    for _attempt in range(1000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False


class TestPrograms:
    def test_what_a_program_leaves_behind_ends_with_it(self, tmp_path: Path) -> None:
        script = f"sleep 300 & echo $! > {tmp_path}/pid"
        with pytest.raises(TimeoutError, match=r"did not answer within 0\.3 s"):
            ask_program(("/bin/sh", "-c", script), timeout_s=0.3, limit_bytes=100)
        assert ends((tmp_path / "pid").read_text().strip())

    def test_a_child_that_closed_its_output_ends_too(self, tmp_path: Path) -> None:
        script = f"sleep 300 >/dev/null 2>&1 & echo $! > {tmp_path}/pid; exit 4"
        assert ask_program(("/bin/sh", "-c", script), timeout_s=20, limit_bytes=100).status == 4
        assert ends((tmp_path / "pid").read_text().strip())

    def test_output_errors_and_status(self) -> None:
        answer = ask_program(
            ("/bin/sh", "-c", "cat; echo bad >&2; exit 3"), questions=b"in", timeout_s=20, limit_bytes=100
        )
        assert (answer.status, answer.output, answer.errors) == (3, b"in", b"bad\n")

    def test_input_is_empty_by_default(self) -> None:
        assert ask_program(("/bin/cat",), timeout_s=20, limit_bytes=10).output == b""

    def test_limit_holds(self) -> None:
        with pytest.raises(ValueError, match="wrote more than 10 bytes"):
            ask_program(("/bin/sh", "-c", "echo 12345; echo 123456 >&2"), timeout_s=20, limit_bytes=10)


@pytest.fixture
def emulator() -> Emulator:
    return msgspec.convert(
        {
            "path": "/usr/bin/qemu-system-x86_64",
            "stamp": [1, 2, 3, 4],
            "sha256": "0" * 64,
            "version": [7, 2, 22],
            "version_text": "7.2.22",
            "machine_types": ["microvm", "q35"],
            "device_types": [],
            "accelerators": ["kvm", "tcg"],
            "module_dir": "/usr/lib/qemu",
            "modules": ["accel-tcg-i386.so", "accel-tcg-x86_64.so", "hw-display-virtio-gpu-pci.so", "ui-gtk.so"],
            "data_dirs": ["/usr/share/qemu", "/usr/share/seabios"],
            "kvm_device_property": False,
            "insecure_types_policy": False,
            "netdev_stream": True,
            "sandbox": True,
        },
        Emulator,
    )


def test_modules_follow_accelerator_and_devices(emulator: Emulator) -> None:
    plain = ("virtio-blk-pci", "virtio-net-device", "virtio-rng-pci", "virtconsole")
    assert modules_for(emulator, "kvm", plain) == ()
    assert modules_for(emulator, "tcg", plain) == ("/usr/lib/qemu/accel-tcg-x86_64.so",)
    assert modules_for(emulator, "kvm", ("virtio-gpu-pci",)) == ("/usr/lib/qemu/hw-display-virtio-gpu-pci.so",)


def test_too_old_and_missing_machine_type(emulator: Emulator) -> None:
    check_emulator(emulator, "microvm")
    with pytest.raises(HostError, match="too old"):
        check_emulator(msgspec.structs.replace(emulator, version=(7, 1, 9)), "microvm")
    with pytest.raises(HostError, match="no machine type q36"):
        check_emulator(emulator, "q36")


class TestFirmware:
    DIRS = ("/usr/share/qemu", "/usr/share/seabios")

    def test_first_data_directory_wins_and_links_are_followed(self, tmp_path: Path) -> None:
        put(tmp_path, "/usr/share/qemu/qboot.rom", b"q")
        (tmp_path / "usr/share/qemu/bios-microvm.bin").symlink_to("qboot.rom")
        put(tmp_path, "/usr/share/seabios/bios-microvm.bin", b"s")
        put(tmp_path, "/usr/share/qemu/linuxboot_dma.bin", b"l")
        found = firmware_files(self.DIRS, "microvm", "kernel", Root(tmp_path))
        assert [(item.target, item.source) for item in found] == [
            ("/usr/share/qemu/bios-microvm.bin", "/usr/share/qemu/qboot.rom"),
            ("/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/linuxboot_dma.bin"),
        ]

    def test_missing_bios_names_its_package(self, tmp_path: Path) -> None:
        with pytest.raises(HostError) as caught:
            firmware_files(self.DIRS, "q35", "bios", Root(tmp_path))
        assert "apt install seabios" in caught.value.next_step

    def test_uefi_needs_nothing_by_name(self, tmp_path: Path) -> None:
        assert firmware_files(self.DIRS, "q35", "uefi", Root(tmp_path)) == ()

    def test_microvm_has_no_uefi(self, tmp_path: Path) -> None:
        with pytest.raises(HostError, match="microvm cannot boot by uefi"):
            firmware_files(self.DIRS, "microvm", "uefi", Root(tmp_path))

    def descriptor(self, code: str, features: list[str], machine: str = "pc-q35-*", arch: str = "x86_64") -> bytes:
        flash = {
            "device": "flash",
            "executable": {"filename": code, "format": "raw"},
            "nvram-template": {"filename": "/fw/VARS.fd", "format": "raw"},
        }
        targets = [{"architecture": arch, "machines": [machine]}]
        document = {"interface-types": ["uefi"], "mapping": flash, "targets": targets, "features": features}
        return msgspec.json.encode(document)

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        for name in ("A", "B", "C", "D", "VARS"):
            put(tmp_path, f"/fw/{name}.fd", b"")
        share = "/usr/share/qemu/firmware"
        secure = ["secure-boot", "enrolled-keys", "requires-smm"]
        put(tmp_path, f"{share}/40-secure.json", self.descriptor("/fw/A.fd", secure))
        put(tmp_path, f"{share}/30-unguarded.json", self.descriptor("/fw/C.fd", ["secure-boot", "enrolled-keys"]))
        put(tmp_path, f"{share}/45-setup.json", self.descriptor("/fw/D.fd", ["secure-boot", "requires-smm"]))
        put(tmp_path, f"{share}/50-plain.json", self.descriptor("/fw/B.fd", []))
        put(tmp_path, f"{share}/10-other.json", self.descriptor("/fw/C.fd", [], arch="aarch64"))
        put(tmp_path, f"{share}/11-pc.json", self.descriptor("/fw/C.fd", [], machine="pc-i440fx-*"))
        put(tmp_path, f"{share}/12-gone.json", self.descriptor("/fw/gone.fd", []))
        put(tmp_path, f"{share}/13-relative.json", self.descriptor("fw/C.fd", []))
        put(tmp_path, f"{share}/14-broken.json", b"{")
        put(tmp_path, f"{share}/15-types.json", b'{"interface-types":["uefi"],"mapping":3,"targets":[]}')
        return tmp_path

    def test_descriptors_are_filtered_and_ordered(self, tree: Path) -> None:
        found = [item.code for item in uefi_firmwares(Root(tree))]
        assert found == ["/fw/C.fd", "/fw/A.fd", "/fw/D.fd", "/fw/B.fd"]
        assert choose_uefi(Root(tree)).code == "/fw/B.fd"

    def test_secure_boot_wants_guarded_variables_with_keys_or_without(self, tree: Path) -> None:
        assert choose_uefi(Root(tree), Wanted.ENROLLED).code == "/fw/A.fd"
        assert choose_uefi(Root(tree), Wanted.SETUP).code == "/fw/D.fd"
        for name in ("40-secure", "45-setup"):
            put(tree, f"/etc/qemu/firmware/{name}.json", b"")
        for wanted in (Wanted.ENROLLED, Wanted.SETUP):
            with pytest.raises(HostError, match="Secure Boot") as error:
                choose_uefi(Root(tree), wanted)
            assert "requires SMM" in error.value.expected
            assert "ovmf" in error.value.next_step

    def test_etc_replaces_and_hides(self, tree: Path) -> None:
        put(tree, "/etc/qemu/firmware/50-plain.json", b"")
        put(tree, "/etc/qemu/firmware/40-secure.json", self.descriptor("/fw/C.fd", []))
        found = uefi_firmwares(Root(tree))
        assert ("/fw/C.fd", "/etc/qemu/firmware/40-secure.json") in [(item.code, item.described_by) for item in found]
        assert "/fw/B.fd" not in [item.code for item in found]

    def test_known_place_without_descriptor(self, tmp_path: Path) -> None:
        put(tmp_path, "/usr/share/OVMF/OVMF_CODE_4M.fd", b"")
        with pytest.raises(HostError, match="no UEFI firmware"):
            choose_uefi(Root(tmp_path))
        put(tmp_path, "/usr/share/OVMF/OVMF_VARS_4M.fd", b"")
        assert choose_uefi(Root(tmp_path)).variables == "/usr/share/OVMF/OVMF_VARS_4M.fd"
        with pytest.raises(HostError, match="Secure Boot"):
            choose_uefi(Root(tmp_path), Wanted.ENROLLED)
