"""The real built-in guest under a bare QEMU: what its init promises on the console. Walls are other tests' subject.

Machine: the microvm that Casemate plans under TCG (pit and pic off, so the kernel is told the host's TSC frequency).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from casemate.engine.paths import default_paths
from casemate.facts.tsc import tsc_khz
from casemate.image.builtin import READY_MARKER, BuiltinGuest, build_builtin, verify_builtin

pytestmark = pytest.mark.boot

_DEADLINE_S = 90.0
_MACHINE = "microvm,accel=tcg,pit=off,pic=off,rtc=on,isa-serial=on,acpi=on,usb=off,pcie=off"


@pytest.fixture(scope="module")
def guest() -> BuiltinGuest:
    """The guest in the caller's cache, built when missing."""
    return build_builtin(Path(default_paths().cache), print)


class Machine:
    """One bare emulator with its console in a file and a QMP socket."""

    def __init__(self, guest: BuiltinGuest, directory: Path, switch: str, extra: Sequence[str] = ()) -> None:
        self.console = directory / "console"
        self.events: list[tuple[str, object]] = []
        frequency = tsc_khz(directory / "tsc.json", "test")
        words = [guest.cmdline, f"casemate.test={switch}" if switch else "", f"tsc_early_khz={frequency}"]
        ours, theirs = socket.socketpair()
        fixed = "-nodefaults -no-user-config -cpu max -m 256 -display none -no-reboot -mon chardev=qmp,mode=control"
        rng = "-object rng-random,id=rng0,filename=/dev/urandom -device virtio-rng-device,rng=rng0"
        arguments = ["-machine", _MACHINE, "-kernel", str(guest.kernel), "-initrd", str(guest.initrd)]
        arguments += ["-append", " ".join(words), "-serial", f"file:{self.console}"]
        arguments += ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}", *fixed.split(), *rng.split(), *extra]
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", *arguments], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()
        ours.settimeout(_DEADLINE_S)
        self._qmp = ours
        self._lines = ours.makefile("r")
        self._lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str) -> None:
        """Send one QMP command; answers and events are read by ``wait``."""
        self._qmp.sendall(json.dumps({"execute": command}).encode() + b"\n")

    def press_until_it_ends(self) -> None:
        """Press the power button again and again: a guest that just came up may miss the first time."""
        end = time.monotonic() + _DEADLINE_S
        while self.process.poll() is None and time.monotonic() < end:
            self.execute("system_powerdown")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)

    def wait_for(self, text: str) -> None:
        """Wait until the console shows ``text``."""
        end = time.monotonic() + _DEADLINE_S
        while text not in self.text():
            assert time.monotonic() < end, f"no {text!r} on the console:\n{self.text()}"
            assert self.process.poll() is None, f"the emulator ended:\n{self.text()}"
            time.sleep(0.05)

    def text(self) -> str:
        """The console so far."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def wait(self) -> int:
        """Wait for the emulator's end; return its status and keep the events."""
        for line in self._lines:
            message = json.loads(line)
            if "event" in message:
                self.events.append((message["event"], message.get("data", {}).get("reason")))
        return self.process.wait(_DEADLINE_S)

    def close(self) -> None:
        """End the emulator if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._lines.close()
        self._qmp.close()


def _run(
    guest: BuiltinGuest, directory: Path, switch: str, extra: Sequence[str] = ()
) -> tuple[str, list[tuple[str, object]]]:
    machine = Machine(guest, directory, switch, extra)
    try:
        assert machine.wait() == 0, machine.text()
        return machine.text(), machine.events
    finally:
        machine.close()


def test_the_build_comes_from_packages_and_matches_its_digests(guest: BuiltinGuest) -> None:
    assert verify_builtin(guest)
    assert any(name.startswith("linux-image-") for name in guest.sources)
    assert "busybox-static" in guest.sources


def test_it_boots_and_powers_off(guest: BuiltinGuest, tmp_path: Path) -> None:
    console, events = _run(guest, tmp_path, "poweroff")
    assert READY_MARKER in console
    assert "did not load" not in console
    assert ("SHUTDOWN", "guest-shutdown") in events


def test_a_reboot_ends_the_emulator_as_a_reset(guest: BuiltinGuest, tmp_path: Path) -> None:
    _console, events = _run(guest, tmp_path, "reboot")
    assert ("SHUTDOWN", "guest-reset") in events


def test_a_panic_is_told_through_the_panic_device(guest: BuiltinGuest, tmp_path: Path) -> None:
    console, events = _run(guest, tmp_path, "panic", ["-device", "pvpanic"])
    assert "Kernel panic" in console
    assert ("GUEST_PANICKED", None) in events
    assert ("SHUTDOWN", "guest-panic") in events


def test_the_power_button_shuts_it_down(guest: BuiltinGuest, tmp_path: Path) -> None:
    machine = Machine(guest, tmp_path, "idle")
    try:
        machine.wait_for(READY_MARKER)
        machine.press_until_it_ends()
        assert machine.wait() == 0
        assert "casemate-guest: power button" in machine.text()
        assert ("SHUTDOWN", "guest-shutdown") in machine.events
    finally:
        machine.close()


def test_what_it_writes_is_on_the_disk(guest: BuiltinGuest, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(4 << 20))
    blank = hashlib.sha256(bytes(1 << 20)).hexdigest()
    disk = ["-blockdev", f"driver=file,filename={image},node-name=d", "-device", "virtio-blk-device,drive=d"]
    console, _events = _run(guest, tmp_path, "disk", disk)
    assert f"casemate-guest: disk before {blank}" in console
    written = hashlib.sha256(image.read_bytes()[: 1 << 20]).hexdigest()
    assert written != blank
    assert f"casemate-guest: disk after {written}" in console
    assert "casemate-guest: disk ok" in console


def test_a_read_only_disk_takes_no_write(guest: BuiltinGuest, tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(4 << 20))
    disk = [
        "-blockdev",
        f"driver=file,filename={image},node-name=d,read-only=on",
        "-device",
        "virtio-blk-device,drive=d",
    ]
    console, _events = _run(guest, tmp_path, "disk", disk)
    assert "casemate-guest: disk read-only" in console
    assert image.read_bytes() == bytes(4 << 20)
