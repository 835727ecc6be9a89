"""``casemate prove`` for people and for scripts, on the built-in guest."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli_runner import Cli

pytestmark = [
    pytest.mark.wall,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU"),
]
MANUAL = (Path(__file__).parents[2] / "docs/json.md").read_text()


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    made = Cli(tmp_path)
    yield made
    made.clean()


def test_a_proof_of_a_defined_vm(cli: Cli) -> None:
    cli.ok("create", "--name", "web", "builtin")
    document = cli.json("prove", "web", "--quick", "--json")
    assert document["ok"] is True
    assert (document["schema"], document["vm"], document["unexpected"]) == ("casemate.prove/1", "web", [])
    assert document["counts"]["tried"] > 100
    assert sum(group["tried"] for group in document["groups"]) == document["counts"]["tried"]
    section = re.search(r"^## casemate.prove/1$(.*?)(?=^## )", MANUAL, re.MULTILINE | re.DOTALL)
    assert section
    assert set(document) - {"schema"} <= set(re.findall(r"`([a-z_]+)`", section[1]))
    assert cli.json("inspect", "web", "--json")["state"] == "created", "the VM is not touched"


def test_a_proof_with_a_layer_left_out_says_so_loudly_and_fails(cli: Cli) -> None:
    done = cli("prove", "builtin", "--quick", "--without", "seccomp")
    assert done.returncode in {0, 1}, done.stderr
    assert done.stdout.startswith("EXPERIMENT: layer seccomp was left out")
    assert re.search(r"^verdict: (pass|fail)$", done.stdout, re.MULTILINE)
    assert (done.returncode == 1) == ("verdict: fail" in done.stdout)


def test_unknown_targets(cli: Cli) -> None:
    assert "cannot read 'nobody'" in cli.fails(2, "prove", "nobody")
    assert json.loads(cli.ok("ps", "-a", "--json"))["vms"] == []
