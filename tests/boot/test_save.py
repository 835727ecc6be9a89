"""Saved states of a real VM: it goes on where it was, clones draw different random numbers, and nothing else passes."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli_runner import Cli
from tests.support.guest_shell import GuestShell

pytestmark = pytest.mark.boot

NUMBER = rb"@@ ([0-9a-f]{32}) @@"
DRAW = "while :; do echo @@ $(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' ') @@; sleep 0.3; done &\n"


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    found = Cli(tmp_path)
    yield found
    found.clean()


def boot(cli: Cli, name: str, *more: str | Path) -> None:
    """The built-in guest with a loop that draws random numbers."""
    cli.ok("run", "-d", "--name", name, "--saveable", "--memory-mib", "128", *more, "builtin")
    with GuestShell(cli, name) as shell:
        shell.expect(rb"a shell follows", 60)
        shell.expect(rb"# ", 20)
        shell.type(DRAW)
        shell.expect(NUMBER, 20)


def numbers(cli: Cli, name: str, state: Path, *more: str) -> tuple[list[bytes], str]:
    """The first numbers that a VM draws which goes on from ``state``, and what its console said."""
    cli.ok("run", "-d", "--name", name, "--from", state, *more)
    with GuestShell(cli, name) as shell:
        shell.expect(NUMBER, 30)
        shell.expect(NUMBER, 30)
    said = cli.ok("logs", name)
    return re.findall(NUMBER, said.encode()), said


def write_disk(cli: Cli, name: str, word: str) -> None:
    """Onto the disk, past the guest's memory."""
    with GuestShell(cli, name) as shell:
        shell.type(f"printf {word} | dd of=/dev/vda conv=notrunc 2>/dev/null; sync; echo wri''tten\n")
        shell.expect(rb"written", 20)


def read_disk(cli: Cli, name: str) -> tuple[bytes, bytes]:
    """The first bytes of the disk, and eight of what lies further on; not from the guest's memory."""
    with GuestShell(cli, name) as shell:
        shell.type("echo 3 >/proc/sys/vm/drop_caches; echo [=$(head -c 6 /dev/vda)=]; ")
        shell.type("echo {=$(tail -c 8 /dev/vda)=}\n")
        first = shell.expect(rb"\[=([^$]{6})=\]", 20)[1]
        return first, shell.expect(rb"\{=([^$]{8})=\}", 20)[1]


def test_clones_of_one_state_draw_different_numbers(cli: Cli, tmp_path: Path) -> None:
    """And each goes on over what the origin had written to its disk, and over nobody else's."""
    base = tmp_path / "base.raw"
    base.write_bytes(bytes((1 << 20) - 8) + b"of-base.")
    before_all = base.read_bytes()
    boot(cli, "origin", "--disk", f"{base}:raw")
    write_disk(cli, "origin", "ORIGIN")
    state = tmp_path / "origin.state"
    saved = cli("save", "--json", "origin", state)
    assert saved.returncode == 0
    assert "does not listen" not in saved.stderr
    assert json.loads(saved.stdout)["overlay_bytes"] >= 4 * 65536
    assert state.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []
    ended = cli.json("inspect", "--json", "origin")["exit"]
    assert (ended["reason"], ended["code"]) == ("saved", 0)
    before = re.findall(NUMBER, cli.ok("logs", "origin").encode())

    first, said = numbers(cli, "one", state)
    second, _ = numbers(cli, "two", state)
    assert said.index("clone: random numbers start anew") < said.index("@@"), "before anything else runs"
    assert "Linux version" not in said, "it did not boot"
    assert not set(first) & set(second)
    assert not set(before) & (set(first) | set(second))
    wall = cli.json("inspect", "--json", "one")["wall"]
    assert not [entry for entry in wall if entry["verdict"] == "fail" and entry["gate"] == "launch"]
    # The clone is as good as any: it can be saved again, under a key, and left running.
    (tmp_path / "key").write_bytes(os.urandom(32))
    (tmp_path / "key").chmod(0o600)
    assert read_disk(cli, "one") == (b"ORIGIN", b"of-base.")
    write_disk(cli, "one", "CLONE1")
    assert read_disk(cli, "two") == (b"ORIGIN", b"of-base."), "a clone writes to a disk of its own"
    again = tmp_path / "again.state"
    saved = cli("save", "--leave-running", "--key-file", tmp_path / "key", "one", again)
    assert saved.returncode == 0
    assert "does not listen" not in saved.stderr
    assert cli.json("inspect", "--json", "one")["state"] == "running"
    assert "sealed with key" in cli.fails(2, "run", "-d", "--from", again)
    assert b"CLONE1" not in again.read_bytes()
    write_disk(cli, "one", "LATER1")
    third, _ = numbers(cli, "three", again, "--key-file", str(tmp_path / "key"))
    assert read_disk(cli, "three") == (b"CLONE1", b"of-base.")
    assert read_disk(cli, "one") == (b"LATER1", b"of-base.")
    assert base.read_bytes() == before_all
    with GuestShell(cli, "one") as shell:
        shell.expect(NUMBER, 20)
    went_on = re.findall(NUMBER, cli.ok("logs", "one").encode())
    assert not set(third) & set(went_on), "the VM that goes on is no clone of its clone either"


def test_without_the_reseed_they_draw_the_same(cli: Cli, tmp_path: Path) -> None:
    """The test above has teeth: the kernel's generator is in the state, and by itself goes on from there.

    Debian's cloud kernel has no vmgenid driver, and a microvm no such device: this is what both would leave.
    """
    boot(cli, "origin")
    with GuestShell(cli, "origin") as shell:
        shell.type("mv /sbin/reseed /tmp/reseed; echo do''ne\n")
        shell.expect(rb"done", 20)
    # The kernel reseeds by itself every few seconds of its own time: on a busy host a save may just miss the moment.
    for attempt in range(6):
        with GuestShell(cli, "origin") as shell:
            shell.type("/tmp/reseed; echo do''ne\n")
            shell.expect(rb"done", 20)
        state = tmp_path / f"{attempt}.state"
        cli.ok("save", "--leave-running", "origin", state)
        first, said = numbers(cli, f"one-{attempt}", state)
        second, _ = numbers(cli, f"two-{attempt}", state)
        assert "/sbin/reseed: not found" in said
        if first[0] == second[0]:
            return
        cli.ok("rm", "--force", f"one-{attempt}", f"two-{attempt}")
    pytest.fail("six times the first numbers differed: something else reseeds, and the test above proves nothing")


def test_what_does_not_belong_together_is_refused(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "data.raw"
    data.write_bytes(bytes(1 << 20))
    boot(cli, "origin", "--disk", f"{data}:raw,persistent")
    state = tmp_path / "origin.state"
    assert "would write on to a disk" in cli.fails(2, "save", "--leave-running", "origin", state)
    state.write_bytes(b"")
    assert "is there already" in cli.fails(2, "save", "origin", state)
    state.unlink()
    assert "cannot write" in cli.fails(2, "save", "origin", tmp_path / "missing" / "state")
    cli.ok("save", "origin", state)
    assert "is not running" in cli.fails(2, "save", "origin", tmp_path / "other")

    whole = state.read_bytes()
    at = secrets.randbelow(len(whole) - 200) + 100
    state.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert "saved state" in cli.fails(2, "run", "-d", "--from", state)
    state.write_bytes(whole[:-1])
    assert "saved state" in cli.fails(2, "run", "-d", "--from", state)
    state.write_bytes(whole)
    state.chmod(0o600)
    assert "brings its own specification" in cli.fails(2, "run", "-d", "--from", state, "--vcpus", "2")
    with data.open("r+b") as file:
        file.write(b"changed")
    said = cli.fails(4, "run", "-d", "--from", state)
    assert "img.hash" in said
    assert "disk0" in said
    with data.open("r+b") as file:
        file.write(bytes(7))
    first, _ = numbers(cli, "again", state)
    assert first
    assert [row["name"] for row in cli.json("ps", "-a", "--json")["vms"]] == ["origin", "again"], "no leftovers"


def test_a_guest_that_does_not_listen_is_saved_and_said_so(cli: Cli, tmp_path: Path) -> None:
    if shutil.which("age") is None:
        pytest.skip("age is not installed")
    subprocess.run(["age-keygen", "-o", tmp_path / "key"], check=True, capture_output=True)
    recipient = next(word for word in (tmp_path / "key").read_text().split() if word.startswith("age1"))
    cli.ok("run", "-d", "--name", "early", "--saveable", "builtin")
    cli.ok("pause", "early")
    state = tmp_path / "early.state"
    done = cli("save", "--age-recipient", recipient, "early", state)
    assert done.returncode == 0, done.stderr
    assert "does not listen" in done.stderr
    assert b"console=ttyS0" not in state.read_bytes()
    done = cli("run", "-d", "--name", "late", "--from", state, "--age-identity", tmp_path / "key")
    assert done.returncode == 0, done.stderr
    assert "[ent.vmgenid]" in done.stderr
    with GuestShell(cli, "late") as shell:
        shell.expect(rb"a shell follows", 60)
