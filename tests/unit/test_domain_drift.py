"""Definition against process: three real domains of libvirt 9.0 with their real arguments, and one change at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.elf_builder import put

from casemate.audit.definitions import DEFINED, RUNNING, definition_facts, manager_of
from casemate.facts.domain import read_domain
from casemate.facts.domain_compare import beyond, differences
from casemate.facts.fact import Known, Unknown
from casemate.facts.machine import Machine
from casemate.facts.qemu_argv import read_argv
from casemate.facts.root import Root

DATA = Path(__file__).parents[1] / "data" / "libvirt"
NAMES = ("install", "careless", "hardened")


def command(name: str) -> list[str]:
    return (DATA / f"{name}.argv").read_text().split("\n")


def running(name: str, change: tuple[str, str] = ("", "")) -> Machine:
    """The process; with ``change`` one word of its arguments replaced by another."""
    words = [word.replace(*change) if change[0] else word for word in command(name)]
    return read_argv(words, "argv")


def written(name: str, kind: str = "status", change: tuple[str, str] = ("", "")) -> Machine:
    text = (DATA / f"{name}.{kind}.xml").read_text()
    assert change[0] in text
    text = text.replace(*change) if change[0] else text
    return read_domain(text.encode(), f"{name}.xml")


@pytest.mark.parametrize("name", NAMES)
def test_what_libvirt_started_is_what_it_wrote_down(name: str) -> None:
    assert differences(written(name), running(name)) == ()
    assert manager_of(command(name)) == "libvirt"


def test_the_persistent_definition_is_the_running_one() -> None:
    assert differences(written("install", "defined"), running("install")) == ()


STICK = (
    "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/s.img'/>"
    "<target dev='sdz' bus='usb'/></disk>"
)

CHANGES = {
    "accelerator": (("<domain type='qemu'", "<domain type='kvm'"), "accelerator"),
    "memory": (("<memory unit='KiB'>262144", "<memory unit='KiB'>524288"), "memory in MiB: written 512, running 256"),
    "board": (("machine='pc-q35-7.2'", "machine='pc-q35-7.1'"), "board: written pc-q35-7.1, running pc-q35-7.2"),
    "vcpus": ((">1</vcpu>", ">2</vcpu>"), "virtual CPUs: written 2, running 1"),
    "kernel": (("<kernel>/srv/vm/vmlinuz", "<kernel>/srv/vm/other"), "kernel: written /srv/vm/other"),
    "disk": (("/srv/vm/install.img", "/srv/vm/another.img"), "disk not written down: /srv/vm/install.img"),
    "format": (("type='raw'", "type='qcow2'"), "disk not written down: /srv/vm/install.img (raw)"),
    "device": (("<devices>", f"<devices>{STICK}"), "device written down and not there: usb-storage"),
    "emulator": (("/usr/bin/qemu-system-x86_64<", "/opt/qemu<"), "emulator: written /opt/qemu"),
    "passed": (
        (
            "<devices>",
            "<devices><hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x3b' slot='0x00'"
            " function='0x1'/></source></hostdev>",
        ),
        "host device written down and not there: 0000:3b:00.1",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_change_of_the_definition_is_one_difference(name: str) -> None:
    change, said = CHANGES[name]
    found = differences(written("install", "defined", change), running("install"))
    assert found
    assert any(text.startswith(said) for text in found), found


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["-monitor", "tcp:127.0.0.1:4444,server"], "argument past libvirt: -monitor tcp:127"),
        (["-s"], "argument past libvirt: -s"),
        (["-drive", "file=/etc/shadow,format=raw,if=virtio"], "disk not written down: /etc/shadow"),
    ],
)
def test_what_the_process_has_more_is_said_even_beside_what_libvirt_believes(more: list[str], said: str) -> None:
    machine = read_argv([*command("install"), *more], "argv")
    found = beyond(written("install"), machine)
    assert any(text.startswith(said) for text in found), found


def test_what_was_taken_away_since_its_start_is_no_difference() -> None:
    machine = read_argv([*command("install"), "-drive", "file=/gone.img,format=raw,if=virtio"], "argv")
    assert beyond(written("install"), machine, held=["/srv/vm/install.img"]) == ()
    assert beyond(written("install"), machine, held=["/gone.img"]) == ("disk not written down: /gone.img",)
    unplugged = written("install", "status", ("<input type='tablet' bus='usb'", "<input type='mouse' bus='ps2'"))
    assert beyond(unplugged, running("install")) == ()
    assert beyond(written("install", "status", ("machine='pc-q35-7.2'", "machine='pc-q35-7.1'")), running("install"))


def test_a_base_below_a_snapshot_is_known() -> None:
    base = "<format type='raw'/><source file='/srv/vm/install.img'/><backingStore/>"
    below = f"<backingStore type='file'>{base}</backingStore>"
    text = (DATA / "install.status.xml").read_text()
    disk = text[text.index("<disk ") : text.index("</disk>")]
    changed = disk.replace("install.img", "overlay.qcow2").replace("type='raw'", "type='qcow2'")
    changed = changed.replace("<backingStore/>", below)
    assert beyond(read_domain(text.replace(disk, changed).encode(), "t"), running("install")) == ()


def facts(tree: Path, machine: Machine) -> Known | Unknown:
    found = definition_facts(machine, "libvirt", Root(tree))["vmm.domain-drift"]
    assert isinstance(found, (Known, Unknown))
    return found


def test_the_files_of_libvirt_are_found_and_compared(tmp_path: Path) -> None:
    machine = running("install")
    assert isinstance(facts(tmp_path, machine), Unknown)
    put(tmp_path, f"{RUNNING}/install.xml", (DATA / "install.status.xml").read_bytes())
    assert facts(tmp_path, machine) == Known((), f"argv, compared with {RUNNING}/install.xml")
    changed = (DATA / "install.defined.xml").read_text().replace("<devices>", f"<devices>{STICK}")
    put(tmp_path, f"{DEFINED}/install.xml", changed.encode())
    drift = facts(tmp_path, machine)
    assert isinstance(drift, Known)
    assert isinstance(drift.value, tuple)
    assert any("usb-storage" in text for text in drift.value)
    assert any("/s.img" in text for text in drift.value)


def test_what_was_plugged_in_later_differs_from_the_definition_and_not_from_the_process(tmp_path: Path) -> None:
    status = (DATA / "install.status.xml").read_text()
    put(tmp_path, f"{RUNNING}/install.xml", status.replace("<devices>", f"<devices>{STICK}").encode())
    assert facts(tmp_path, running("install")) == Known((), f"argv, compared with {RUNNING}/install.xml")
    put(tmp_path, f"{DEFINED}/install.xml", (DATA / "install.defined.xml").read_bytes())
    drift = facts(tmp_path, running("install"))
    assert isinstance(drift, Known)
    assert isinstance(drift.value, tuple)
    assert "disk not written down: /s.img (raw)" in drift.value


@pytest.mark.parametrize("content", [b"", b"<domain", b"<!DOCTYPE x><domain/>", b"<a/>", b"\xff\xfe"])
def test_a_definition_that_cannot_be_read_is_unknown(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, f"{DEFINED}/install.xml", content)
    assert isinstance(facts(tmp_path, running("install")), Unknown)


def test_another_domains_definition_is_not_compared(tmp_path: Path) -> None:
    uuid = running("install").uuid
    assert uuid
    text = (DATA / "install.defined.xml").read_text().replace(uuid, "00000000-0000-4000-8000-000000000000")
    put(tmp_path, f"{DEFINED}/install.xml", text.encode())
    assert isinstance(facts(tmp_path, running("install")), Unknown)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "..", "a" * 300])
def test_a_name_that_is_none_opens_nothing(tmp_path: Path, name: str) -> None:
    machine = running("install", ("guest=install", f"guest={name}"))
    put(tmp_path, f"{DEFINED}/..xml", b"<domain/>")
    assert isinstance(facts(tmp_path, machine), Unknown)


def test_a_vm_that_libvirt_did_not_start_has_no_definition(tmp_path: Path) -> None:
    found = definition_facts(running("install"), "none", Root(tmp_path))
    assert isinstance(found["vmm.domain-drift"], Unknown)
    assert manager_of(["qemu-system-x86_64", "-name", "install"]) == "none"
