"""surface over live machines: a VM of ours through its supervisor, a bare QEMU through its command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.careless import QEMU, careless_qemu
from tests.support.cli_runner import Cli

from casemate import assess

pytestmark = [pytest.mark.boot, pytest.mark.skipif(not os.access(QEMU, os.X_OK), reason="QEMU is not installed")]


def test_our_vm_tells_where_its_devices_sit(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.ok("run", "-d", "--name", "seen", "builtin")
    try:
        document = cli.json("surface", "seen", "--json")
        pid = cli.json("inspect", "seen", "--json")["pid"]
        by_pid = cli.json("surface", "--pid", str(pid), "--json")
    finally:
        cli("kill", "seen")
    rows = {row["type"]: row for row in document["rows"]}
    if document["accel"] == "tcg":
        assert (document["exits"], document["unknown"]) == (None, [])
    assert document["stage"] == "observed"
    assert document["source"].startswith("QMP")
    assert rows["virtio-rng-device"]["bus"].startswith("virtio-mmio-bus")
    assert rows["isa-serial"]["bus"] == "isa.0"
    assert rows["virtio-mmio"]["count"] > 1
    assert {row["type"] for row in by_pid["rows"]} == set(rows)
    assert document["history"]["hardened"] == document["history"]["reached"]
    gone = cli("surface", "seen")
    assert "it does not run: this is its plan" in gone.stdout
    assert cli("rm", "seen").returncode == 0


def test_a_bare_qemu_is_read_from_its_command_line() -> None:
    with careless_qemu() as process:
        document = assess.surface(pid=process.pid)
    assert document["name"] == "careless"
    assert {"e1000", "isa-fdc", "piix3-ide", "netdev:user"} <= {row["type"] for row in document["rows"]}
    assert document["paths"] == ["e1000", "ide"]
    assert any("its command line" in note for note in document["notes"])
    assert document["history"]["hardened"] is None  # nothing to boot is stated
