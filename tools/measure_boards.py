"""Measure what each board of an installed QEMU brings along unasked, and print it as a table of data.

    python tools/measure_boards.py [/usr/bin/qemu-system-x86_64] > src/casemate/facts/machine_boards_data.py
    python tools/measure_boards.py /usr/bin/qemu-system-aarch64 virt > src/casemate/facts/machine_boards_arm_data.py

QEMU is started paused (``-S``), asked over QMP for everything below /machine, and stopped again. A device belongs to
the board when it is there with ``-nodefaults``, to the defaults when it is there only without. Each on/off property of
the machine is then turned over on its own, and what appears or disappears is noted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BOARDS = ("pc", "q35", "microvm", "isapc", "none")
SWITCHES = (
    *("acpi", "graphics", "hpet", "i8042", "ioapic2", "isa-serial", "pcie", "pic", "pit", "rtc", "sata", "smbus"),
    *("usb", "vmport", "fd-bootchk", "its", "secure", "virtualization", "ras", "mte", "highmem"),
)
_DEADLINE_S = 20


class Guest:
    """One paused QEMU, spoken to over its standard input and output."""

    def __init__(self, program: str, *arguments: str) -> None:
        # A kernel that is never run keeps microvm from looking for a firmware of its own.
        self._process = subprocess.Popen(
            [program, "-S", "-display", "none", "-qmp", "stdio", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            self._read()
            self.ask("qmp_capabilities")
        except EOFError:
            fault = self._process.stderr.read().decode() if self._process.stderr else ""
            self.close()
            raise SystemExit(f"{' '.join(arguments)}: {fault}") from None

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EOFError
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, command: str, **arguments: str | bool) -> Any:
        """One QMP command; events in between are skipped."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._process.stdin.flush()
        while True:
            answer = self._read()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                return None

    def close(self) -> None:
        self._process.kill()
        self._process.wait(_DEADLINE_S)

    def devices(self) -> set[str]:
        """QOM types of all devices, at any depth."""
        kinds = {item["name"] for item in self.ask("qom-list-types", implements="device", abstract=True)}
        kinds |= {item["name"] for item in self.ask("qom-list-types", implements="device")}
        found: set[str] = set()
        paths = ["/machine"]
        for path in paths:
            for child in self.ask("qom-list", path=path) or ():
                if child["type"].startswith("child<"):
                    kind = child["type"][6:-1]
                    paths.append(f"{path}/{child['name']}")
                    if kind in kinds and not kind.endswith(("-cpu", "-x86_64-cpu")):
                        found.add(kind)
        return found


def measure(program: str, *arguments: str) -> set[str]:
    """Device types of one command line."""
    guest = Guest(program, *arguments)
    try:
        return guest.devices()
    finally:
        guest.close()


def _properties(program: str, board: str) -> set[str]:
    answer = subprocess.run([program, "-M", f"{board},help"], capture_output=True, text=True, check=False).stdout
    return {line.split("=")[0].strip() for line in answer.splitlines()[1:] if "=" in line}


def _accelerators(program: str) -> tuple[str, ...]:
    guest = Guest(program, "-M", "none", "-accel", "kvm", "-accel", "tcg")
    try:
        kvm = guest.ask("query-kvm")
    finally:
        guest.close()
    return ("tcg", "kvm") if kvm and kvm["enabled"] else ("tcg",)


def _show(values: set[str] | list[str]) -> str:
    return "(" + "".join(f'"{value}", ' for value in sorted(values)).rstrip() + ")"


def main() -> None:
    """Print the module."""
    program = sys.argv[1] if len(sys.argv) > 1 else "qemu-system-x86_64"
    boards = tuple(sys.argv[2:]) or BOARDS
    version = subprocess.run([program, "-version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version ([0-9.]+)", version)
    lines = [
        '"""What each board brings along unasked. Written by tools/measure_boards.py; do not edit.',
        "",
        f"Measured on QEMU {found[1] if found else '?'} by asking paused machines for everything below /machine.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "from typing import Final",
        "",
    ]
    board_rows, default_rows, switch_rows, chip_rows = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        kernel = Path(folder, "kernel")
        kernel.write_bytes(b"\0" * 4096)
        for board in boards:
            base = ["-accel", "tcg", "-M"]
            bare = measure(program, "-nodefaults", *base, board)
            board_rows.append((board, bare))
            default_rows.append((board, measure(program, *base, board) - bare))
            for name in sorted(_properties(program, board) & set(SWITCHES)):
                for value in ("on", "off"):
                    try:
                        there = measure(program, "-nodefaults", *base, f"{board},{name}={value}")
                    except SystemExit:
                        continue  # some want another CPU than the board's own
                    if there != bare:
                        switch_rows.append((board, name, value, there - bare, bare - there))
            for accel in _accelerators(program)[1:]:
                for chip in ("on", "split", "off"):
                    try:
                        there = measure(program, "-nodefaults", "-accel", f"{accel},kernel-irqchip={chip}", "-M", board)
                    except (SystemExit, BrokenPipeError):
                        continue  # off does not start on every host
                    chip_rows.append((board, chip, there - bare, bare - there))
    lines.append("BOARDS: Final[dict[str, tuple[str, ...]]] = {")
    lines += [f'    "{board}": {_show(types)},' for board, types in board_rows]
    lines += ["}", '"""Board: devices that are there with -nodefaults, under TCG."""', ""]
    lines.append("DEFAULTS: Final[dict[str, tuple[str, ...]]] = {")
    lines += [f'    "{board}": {_show(types)},' for board, types in default_rows]
    lines += ["}", '"""Board: devices that come on top without -nodefaults."""', ""]
    lines.append("SWITCHES: Final[dict[tuple[str, str, str], tuple[tuple[str, ...], tuple[str, ...]]]] = {")
    lines += [f'    ("{b}", "{n}", "{v}"): ({_show(more)}, {_show(less)}),' for b, n, v, more, less in switch_rows]
    lines += ["}", '"""Board, option of -machine, value: devices that appear, devices that disappear."""', ""]
    lines.append("IRQCHIPS: Final[dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]] = {")
    lines += [f'    ("{b}", "{v}"): ({_show(more)}, {_show(less)}),' for b, v, more, less in chip_rows]
    lines += ["}", '"""Board, kernel-irqchip under KVM: what appears and disappears, compared with TCG."""']
    print("\n".join(lines))


if __name__ == "__main__":
    main()
