"""Secure Boot as people and programs are told of it: doctor, inspect, and machines that others described."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.tpm_case import plan_with
from tests.unit.elf_builder import put

from casemate.cli.listing import _boot
from casemate.engine import devicetree, doctor
from casemate.engine.paths import Paths
from casemate.engine.rows import _boot_view
from casemate.facts.fact import Known, Stage, Unknown
from casemate.facts.machine_facts import machine_facts
from casemate.facts.qemu_argv import read_argv
from casemate.facts.root import Root
from casemate.spec.model import Boot, BootKeys, Firmware

KEYS = BootKeys(pk="/pk", kek=("/kek",), db=("/db",))
QEMU = "qemu-system-x86_64 -M q35,accel=kvm"
CODE = "-drive if=pflash,format=raw,file=/usr/share/OVMF/OVMF_CODE_4M.ms.fd"
OPEN = ("the flash takes writes from any code",)
GUARD = "-global driver=cfi.pflash01,property=secure,value=on"


def descriptor(code: str, features: list[str]) -> bytes:
    """QEMU's docs/interop/firmware.json, as far as it is read."""
    flash = {
        "executable": {"filename": code, "format": "raw"},
        "nvram-template": {"filename": "/fw/VARS.fd", "format": "raw"},
    }
    targets = [{"architecture": "x86_64", "machines": ["pc-q35-*"]}]
    document = {"interface-types": ["uefi"], "mapping": {"device": "flash", **flash}, "targets": targets}
    return msgspec.json.encode({**document, "features": features})


@pytest.mark.parametrize(
    ("line", "firmware", "smm", "open_ways"),
    [
        (f"{QEMU},smm=on {GUARD} {CODE}", "uefi-secure", True, ()),
        # QEMU ends a driver's name at the first dot of this form (qemu_global_option): it is another driver's property.
        (f"{QEMU} -global cfi.pflash01.secure=on {CODE}", "uefi-secure", True, OPEN),
        (f"{QEMU} {CODE}", "uefi-secure", True, OPEN),
        (f"{QEMU} {GUARD.replace('=on', '=off')} {CODE}", "uefi-secure", True, OPEN),
        (f"{QEMU},smm=off {GUARD} {CODE}", "uefi-secure", False, ("system management mode is off",)),
        (f"{QEMU},smm=off {CODE.replace('.ms', '')}", "uefi", False, None),
        (QEMU, "bios", True, None),
        ("qemu-system-aarch64 -M virt", "bios", False, None),
    ],
)
def test_machines_that_others_described(line: str, firmware: str, smm: bool, open_ways: tuple[str, ...] | None) -> None:
    facts = machine_facts(read_argv(shlex.split(line), "t"), Stage.DECLARED)

    def value(name: str) -> Any:
        fact = facts.get(name)
        return fact.value if isinstance(fact, Known) else fact

    assert (value("vm.firmware"), value("dev.smm"), value("dev.boot-variables")) == (firmware, smm, open_ways)
    assert isinstance(facts.get("dev.secure-boot"), Unknown) is (firmware == "uefi-secure")


@pytest.mark.parametrize(
    ("boot", "observed", "line"),
    [
        (Boot(kernel="/k"), {"vm.firmware": "kernel", "dev.smm": False}, "kernel"),
        (Boot(firmware=Firmware.UEFI), {"vm.firmware": "uefi", "dev.smm": False}, "uefi"),
        (Boot(firmware=Firmware.UEFI_SECURE), {}, "uefi-secure, keys of the distribution"),
        (
            Boot(firmware=Firmware.UEFI_SECURE, keys=KEYS),
            {"vm.firmware": "uefi-secure", "dev.smm": True, "dev.secure-boot": "on"},
            "uefi-secure, keys of its own, observed: Secure Boot on, system management mode on",
        ),
    ],
)
def test_inspect_says_what_was_asked_for_and_what_was_seen(boot: Boot, observed: dict[str, Any], line: str) -> None:
    view = _boot_view(boot, {name: {"value": value} for name, value in observed.items()})
    assert _boot(view) == line
    assert view["observed"]["secure_boot"] == observed.get("dev.secure-boot")


class TestDoctor:
    @staticmethod
    def checks(
        tree: Path, monkeypatch: pytest.MonkeyPatch, *, smm: int, program: str | None
    ) -> dict[str, doctor.Check]:
        class Report:
            def extension(self, name: str) -> int:
                assert name == "X86_SMM"
                return smm

        monkeypatch.setattr(doctor, "cached_probe", lambda path: Report())
        monkeypatch.setattr(doctor, "find_program", lambda: program)
        return {check.id: check for check in doctor._secure_boot(Root(tree), Paths("/r", "/d", "/c"))}

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        for name in ("A", "B", "VARS"):
            put(tmp_path, f"/fw/{name}.fd", b"")
        secure = ["secure-boot", "requires-smm"]
        share = "/usr/share/qemu/firmware"
        put(tmp_path, f"{share}/40.json", descriptor("/fw/A.fd", [*secure, "enrolled-keys"]))
        put(tmp_path, f"{share}/50.json", descriptor("/fw/B.fd", secure))
        return tmp_path

    def test_everything_is_there(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.checks(tree, monkeypatch, smm=1, program="/bin/virt-fw-vars")
        assert {name: check.status for name, check in found.items()} == {"secure-boot": "ok", "secure-boot-keys": "ok"}
        assert found["secure-boot-keys"].found == "/fw/B.fd, /bin/virt-fw-vars"

    def test_what_is_missing_is_named_with_its_package(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.checks(tree, monkeypatch, smm=1, program=None)
        assert (found["secure-boot"].status, found["secure-boot-keys"].status) == ("ok", "missing")
        assert "python3-virt-firmware" in found["secure-boot-keys"].next_step
        put(tree, "/etc/qemu/firmware/40.json", b"")
        found = self.checks(tree, monkeypatch, smm=1, program="/bin/virt-fw-vars")
        assert (found["secure-boot"].status, found["secure-boot-keys"].status) == ("missing", "ok")
        assert "ovmf" in found["secure-boot"].next_step

    def test_a_kvm_without_system_management_mode(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.checks(tree, monkeypatch, smm=0, program="/bin/virt-fw-vars")
        assert {check.status for check in found.values()} == {"limited"}
        assert "under TCG only" in found["secure-boot"].why


class TestReadBack:
    """`devicetree._firmware`, with an emulator whose answers are made up."""

    FLASHES = ("system.flash0", "system.flash1")

    @staticmethod
    def facts(smm: object, *, guarded: object = True, flashes: tuple[str, ...] = FLASHES) -> dict[str, Any]:
        plan = plan_with()
        plan = msgspec.structs.replace(
            plan, spec=msgspec.structs.replace(plan.spec, boot=Boot(firmware=Firmware.UEFI_SECURE))
        )
        found: dict[str, Any] = {}

        def ask(name: str, path: str, **_: str) -> object:
            if name == "qom-list":
                return [{"name": flash} for flash in flashes]
            return smm if path == "/machine" else guarded

        types = {"cfi.pflash01"} if flashes else set()
        devicetree._firmware(lambda name, value, _: found.update({name: value}), ask, plan, types)
        return found

    def test_guarded(self) -> None:
        assert self.facts("on") == {"dev.smm": True, "dev.boot-variables": (), "vm.firmware": "uefi-secure"}

    @pytest.mark.parametrize("answer", ["off", "auto", None, True, 1, ""])
    def test_a_mode_that_is_not_known_to_be_on_guards_nothing(self, answer: object) -> None:
        found = self.facts(answer)
        assert found["dev.boot-variables"] == ("system management mode is off",)
        assert found["dev.smm"] is (answer != "off")

    @pytest.mark.parametrize("answer", [False, None, "true", 1])
    def test_each_flash_that_is_not_known_to_be_guarded_is_named(self, answer: object) -> None:
        opened = self.facts("on", guarded=answer)["dev.boot-variables"]
        assert opened == tuple(f"{name} takes writes from any code" for name in self.FLASHES)

    def test_no_flash(self) -> None:
        found = self.facts("on", flashes=())
        assert found["dev.boot-variables"] == ("there is no flash",)
        assert found["vm.firmware"] != "uefi-secure"
