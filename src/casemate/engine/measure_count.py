"""Counts what the emulator's trace says: bytes in, numbers out. Pure; who writes the lines is not trusted.

QEMU's ``log`` trace backend writes one line per event to standard error (trace-events, scripts/tracetool)::

    123@1700000000.000001:memory_region_ops_write cpu 0 mr 0x5.. addr 0xfebc3818 value 0x7 size 4 name 'e1000-mmio'
    virtio_queue_notify vdev 0x55d0c0de n 1 vq 0x55d0c0ff
    virtio_notify vdev 0x55d0c0de vq 0x55d0c0ff
    ioapic_set_irq vector: 11 level: 1

Lines that are none of these are only counted.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

EVENTS: Final = (
    "memory_region_ops_read",
    "memory_region_ops_write",
    "virtio_queue_notify",
    "virtio_notify",
    "ioapic_set_irq",
)
"""Trace events that are switched on, by QEMU's names (7.2 to 10)."""

LINE_MAX_BYTES: Final = 4096
_NAMES_MAX: Final = 256
_LINE: Final = re.compile(rb"(?:\d+@\d+\.\d+:)?(\w+) (.*)")
_REGION: Final = re.compile(rb"name '([ -~]{1,80})'$")
_LEVEL: Final = re.compile(rb"vector: (\d{1,3}) level: 1$")

_REGIONS: Final[dict[str, re.Pattern[str]]] = {
    "e1000": re.compile(r"e1000-(mmio|io)"),
    "virtio-net": re.compile(r"virtio-pci-[\w-]+-virtio-net|virtio-pci|msix-(table|pba)"),
    "ide": re.compile(r"ide|(piix-)?bmdma"),
    "virtio-blk": re.compile(r"virtio-pci-[\w-]+-virtio-blk|virtio-pci|msix-(table|pba)"),
}
"""Memory regions of each device: registers that a driver touches. Serial port, timers and interrupt controllers have
names of their own, and so the console and the clock of the guest do not count."""

BOARD_LINES: Final = frozenset({0, 1, 2, 4, 8, 9, 12})
"""Interrupt lines of timer, keyboard, serial console, clock, ACPI and mouse."""


class TraceCounter:
    """Sums of one stretch of trace. ``regions``: accesses by (``read`` or ``write``, name of the memory region)."""

    def __init__(self) -> None:
        self.regions: Counter[tuple[str, str]] = Counter()
        self.notifications = 0
        self.virtio_interrupts = 0
        self.lines: Counter[int] = Counter()
        self.other = 0
        self._pending = b""

    def feed(self, data: bytes) -> None:
        """Take bytes as they come; a line that is too long counts as another one."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._pending) > LINE_MAX_BYTES:
            self.other += 1
            self._pending = b""

    def _line(self, line: bytes) -> None:
        match = _LINE.match(line)
        name = match[1] if match is not None else b""
        rest = match[2] if match is not None else b""
        if name in (b"memory_region_ops_read", b"memory_region_ops_write"):
            region = _REGION.search(rest)
            key = (name.rpartition(b"_")[2].decode(), region[1].decode() if region is not None else "")
            if key in self.regions or len(self.regions) < _NAMES_MAX:
                self.regions[key] += 1
        elif name == b"virtio_queue_notify":
            self.notifications += 1
        elif name == b"virtio_notify":
            self.virtio_interrupts += 1
        elif name == b"ioapic_set_irq":
            level = _LEVEL.search(rest)
            if level is not None and int(level[1]) < 256:
                self.lines[int(level[1])] += 1
        else:
            self.other += 1

    def accesses(self, device: str) -> dict[str, int]:
        """Accesses to the registers of one device, by ``read NAME`` and ``write NAME``."""
        pattern = _REGIONS[device]
        return {f"{way} {name}": n for (way, name), n in sorted(self.regions.items()) if pattern.fullmatch(name)}

    def interrupts(self, device: str) -> int:
        """Interrupts of one device: messages of virtio, rising edges of a line for the others."""
        if device.startswith("virtio"):
            return self.virtio_interrupts
        return sum(count for line, count in self.lines.items() if line not in BOARD_LINES)
