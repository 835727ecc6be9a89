"""Which device io.max has to name, and whether what it says is what was asked for."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from casemate.engine.readback import _has_io_limit
from casemate.facts.block_device import whole_device
from casemate.facts.root import Root

DISK = "/srv/disk.raw"


class Host(Root):
    """A tree whose disk lies on the device ``number``."""

    def __init__(self, base: Path, number: int) -> None:
        super().__init__(base)
        self._number = number
        sda = base / "sys/devices/pci0/block/sda"
        (sda / "sda1").mkdir(parents=True)
        (sda / "dev").write_text("8:0\n")
        (sda / "sda1/partition").write_text("1\n")
        links = base / "sys/dev/block"
        links.mkdir(parents=True)
        (links / "8:0").symlink_to("../../devices/pci0/block/sda")
        (links / "8:1").symlink_to("../../devices/pci0/block/sda/sda1")

    def stat(self, path: str | Path, *, follow: bool = True) -> os.stat_result:
        if path == DISK:
            return cast("os.stat_result", SimpleNamespace(st_dev=self._number))
        return super().stat(path, follow=follow)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (os.makedev(8, 0), "8:0"),
        (os.makedev(8, 1), "8:0"),  # io.max refuses a partition
        (os.makedev(0, 45), None),  # tmpfs, btrfs, NFS
        (os.makedev(254, 0), None),  # nothing that the kernel knows
    ],
)
def test_the_whole_device_below_a_file(tmp_path: Path, number: int, expected: str | None) -> None:
    assert whole_device(Host(tmp_path, number), DISK) == expected


def test_a_device_that_makes_no_sense(tmp_path: Path) -> None:
    host = Host(tmp_path, os.makedev(8, 1))
    (tmp_path / "sys/devices/pci0/block/sda/dev").write_text("8:0 rbps=max\n")
    with pytest.raises(ValueError, match="the device of a partition"):
        whole_device(host, DISK)


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        ("8:0 rbps=1048576 wbps=max riops=max wiops=max", True),
        ("254:0 rbps=5 wbps=max riops=max wiops=max\n8:0 rbps=1048576 wbps=max riops=max wiops=max", True),
        ("8:0 rbps=10485760 wbps=max riops=max wiops=max", False),
        ("18:0 rbps=1048576 wbps=max riops=max wiops=max", False),
        ("", False),
    ],
)
def test_the_limit_is_read_back(found: str, holds: bool) -> None:
    assert _has_io_limit(found, "8:0 rbps=1048576") is holds
