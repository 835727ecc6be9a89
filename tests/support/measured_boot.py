"""Real measured boots for tests: OVMF and a kernel under plain QEMU (TCG) with a swtpm of its own; the guest hands
out its event log and the registers that its TPM really holds.

Nothing of Casemate starts here: this is the oracle for what `casemate measure` computes.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from casemate.image.builtin import BuiltinGuest
from casemate.image.cpio import directory, regular, write_cpio

BANKS = ("sha1", "sha256", "sha384")
DEADLINE_S = 240.0
"""A boot takes 8 s on an idle machine; others may use it, too."""
OVMF = Path("/usr/share/OVMF")
CMDLINE = "console=ttyS0 reboot=t panic=-1 quiet loglevel=3 cryptomgr.notests"
_INIT = """#!/bin/sh
/bin/busybox --install -s /bin
dmesg -n 1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t securityfs sec /sys/kernel/security
{
  for bank in sha1 sha256 sha384; do
    n=0
    while [ $n -lt 24 ]; do
      echo "PCR $bank $n $(cat /sys/class/tpm/tpm0/pcr-$bank/$n 2>/dev/null)"
      n=$((n+1))
    done
  done
  echo "CMDLINE $(cat /proc/cmdline)"
  echo CASEMATE-LOG
  base64 /sys/kernel/security/tpm0/binary_bios_measurements 2>/dev/null
} > /tmp/report
sum=$(sha256sum < /tmp/report | cut -c1-64)
for n in 1 2 3; do
  echo "CASEMATE-BEGIN $sum"
  cat /tmp/report
  echo CASEMATE-END
done
poweroff -f
"""
"""A serial port drops characters when its reader is slow: said three times, with a digest."""


@dataclass(frozen=True)
class MeasuredBoot:
    """``pcrs``: by bank and number. ``log``: as the guest's kernel gives it; empty when it has none (a kernel that
    was not started through its EFI stub). ``cmdline``: that the kernel got."""

    pcrs: dict[str, dict[int, bytes]]
    log: bytes
    cmdline: str


def reporting_initrd(guest: BuiltinGuest) -> bytes:
    """The built-in guest's initrd with an init that reports and ends."""
    entries = [directory("sys"), directory("proc"), regular("init", _INIT.encode(), 0o755)]
    whole = guest.initrd.read_bytes()
    return whole + bytes(-len(whole) % 512) + write_cpio(entries)


def needs(*files: Path | str) -> None:
    """Skip, saying what is missing."""
    import shutil

    for program in ("swtpm", "qemu-system-x86_64"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    for file in files:
        if not Path(file).is_file():
            pytest.skip(f"{file} is not there")


def disk_arguments(disk: Path, *, secure: bool = False) -> list[str]:
    """A read-only disk that the firmware starts; ``secure``: with the variable store writable in SMM alone."""
    flash = ["-global", "driver=cfi.pflash01,property=secure,value=on"] if secure else []
    drive = ["-drive", f"if=none,id=disk,format=raw,readonly=on,file={disk}"]
    return [*flash, *drive, "-device", "virtio-blk-pci,drive=disk,bootindex=0"]


def boot(
    where: Path,
    arguments: Sequence[str],
    *,
    code: Path = OVMF / "OVMF_CODE_4M.fd",
    variables: Path = OVMF / "OVMF_VARS_4M.fd",
    machine: str = "q35",
) -> MeasuredBoot:
    """Boot once and read what the guest says. The variable store is a copy, left behind as ``vars.fd``.

    Raises:
        AssertionError: it did not report in time; the console is in the message.
    """
    state, socket, store = where / "tpm", where / "tpm.sock", where / "vars.fd"
    state.mkdir(exist_ok=True)
    store.write_bytes(variables.read_bytes())
    console = where / "console"
    console.unlink(missing_ok=True)
    swtpm = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={socket}"]
    )
    try:
        until = time.monotonic() + 10
        while not socket.exists() and time.monotonic() < until:
            time.sleep(0.02)
        command = [
            "qemu-system-x86_64",
            "-machine",
            f"{machine},accel=tcg",
            "-m",
            "512",
            "-nodefaults",
            "-display",
            "none",
        ]
        command += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"]
        command += ["-drive", f"if=pflash,unit=1,format=raw,file={store}"]
        command += ["-chardev", f"socket,id=tpm,path={socket}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
        command += ["-device", "tpm-crb,tpmdev=tpm0", "-serial", f"file:{console}", "-no-reboot", *arguments]
        emulator = subprocess.Popen(command, stderr=subprocess.PIPE)
        try:
            _, errors = emulator.communicate(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            emulator.kill()
            _, errors = emulator.communicate()
    finally:
        swtpm.terminate()
        swtpm.wait(10)
    text = console.read_text(errors="replace") if console.exists() else ""
    assert "CASEMATE-END" in text, f"no report: {errors!r}\n{text[-3000:]}"
    return read_console(text)


def read_console(text: str) -> MeasuredBoot:
    """What the guest of `reporting_initrd` said, out of its console.

    Raises:
        AssertionError: not one of its reports came through whole.
    """
    for part in text.replace("\r", "").split("CASEMATE-BEGIN ")[1:]:
        digest, _, body = part.partition("\n")
        report = body.partition("CASEMATE-END")[0]
        if hashlib.sha256(report.encode()).hexdigest() == digest.strip():
            return _read(report)
    raise AssertionError(f"no whole report:\n{text}")


def _read(report: str) -> MeasuredBoot:
    values, encoded = report.split("CASEMATE-LOG", 1)
    pcrs: dict[str, dict[int, bytes]] = {bank: {} for bank in BANKS}
    cmdline = ""
    for line in values.splitlines():
        words = line.split(" ")
        if words[0] == "PCR" and len(words) == 4:
            pcrs[words[1]][int(words[2])] = bytes.fromhex(words[3])
        elif words[0] == "CMDLINE":
            cmdline = line.removeprefix("CMDLINE ")
    return MeasuredBoot(pcrs, base64.b64decode("".join(encoded.split())), cmdline)
