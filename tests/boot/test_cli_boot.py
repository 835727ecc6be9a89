"""The whole life of real guests through the command line."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.cli_runner import Cli

from casemate.image.builtin import CMDLINE, READY_MARKER

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU"),
]
BOOT_S = 90.0


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    made = Cli(tmp_path)
    yield made
    made.clean()


def until(condition: Callable[[], bool], what: str, deadline_s: float = BOOT_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def run_ready(cli: Cli, name: str, *flags: str) -> str:
    """Start a guest, wait until it says that it is ready; its id."""
    vm_id = cli.ok("run", "-d", "--name", name, *flags, "builtin").strip()
    until(lambda: READY_MARKER in cli.ok("logs", name), f"{name} is ready")
    return vm_id


def state_of(cli: Cli, name: str) -> str:
    return str(cli.json("inspect", name, "--json")["state"])


def test_life_of_a_detached_vm(cli: Cli) -> None:
    done = cli("run", "-d", "--name", "web", "builtin")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[0-9a-f]{16}\n", done.stdout), "the id alone"
    assert all(line.startswith("casemate: ") for line in done.stderr.splitlines())
    vm_id = done.stdout.strip()

    document = cli.json("inspect", "web", "--json")
    assert (document["id"], document["state"]) == (vm_id, "running")
    assert document["uid"] == os.stat(f"/proc/{document['pid']}").st_uid or document["uid"] != 0
    assert b"qemu-system" in Path(f"/proc/{document['pid']}/cmdline").read_bytes()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", document["started_at"])
    controls = [entry["control"] for entry in document["wall"]]
    assert len(controls) == len(set(controls)) > 40
    assert {"control", "title", "verdict", "severity", "evidence", "expected", "why"} <= set(document["wall"][0])
    verdicts = {entry["control"]: entry["verdict"] for entry in document["wall"]}
    for control in ("proc.uid", "proc.caps", "proc.seccomp-on", "proc.ns", "proc.root", "proc.drift"):
        assert verdicts[control] == "pass", control
    assert f"pid {document['pid']}" in cli.ok("inspect", "web")

    assert "the name web is taken" in cli.fails(2, "run", "-d", "--name", "web", "builtin")
    assert "web is running" in cli.fails(2, "rm", "web")
    assert "web already runs" in cli.fails(2, "start", "web")
    until(lambda: READY_MARKER in cli.ok("logs", "web"), "the guest is ready")
    assert cli.ok("logs", "--tail", "1", "web").count("\n") <= 1

    assert cli.ok("pause", "web") == "web\n"
    assert state_of(cli, "web") == "paused"
    (row,) = cli.json("ps", "--json", "--filter", "state=paused")["vms"]
    assert row["pid"] == document["pid"]
    (sample,) = cli.json("stats", "--json")["vms"]
    assert sample["cpu_percent"] is not None
    assert sample["cpu_percent"] < 50, "a paused guest computes nothing"
    cli.ok("unpause", "web")
    until(lambda: state_of(cli, "web") == "running", "it runs again")
    (sample,) = cli.json("stats", "web", "--json")["vms"]
    assert sample["memory_bytes"] > 16 << 20
    assert sample["cpu_s"] > 0

    assert cli.ok("stop", vm_id[:8]) == f"{vm_id[:8]}\n"
    document = cli.json("inspect", "web", "--json")
    assert (document["state"], document["pid"]) == ("exited", None)
    assert (document["exit"]["reason"], document["exit"]["code"]) == ("stopped", 0)
    assert "power button" in cli.ok("logs", "web"), "the guest heard it"
    assert "exited (stopped)" in cli.ok("ps", "-a")
    assert cli.ok("ps", "-q") == ""
    events = [json.loads(line) for line in cli.ok("events", "--json").splitlines()]
    names = [event["event"] for event in events]
    assert names[0] == "start"
    assert names[-1] == "exit"
    assert {"pause", "unpause", "stop-requested"} <= set(names)
    assert {event["vm"] for event in events} == {"web"}
    assert cli.ok("wait", "web") == "0\n"

    assert cli.ok("start", "web") == "web\n"
    assert state_of(cli, "web") == "running"
    assert cli.ok("kill", "web") == "web\n"
    assert cli.json("inspect", "web", "--json")["exit"]["reason"] == "killed"
    assert cli.ok("wait", "web") == "5\n"

    document = cli.json("verify-record", "--json")
    assert document["ok"]
    assert [record["name"] for record in document["records"]] == ["web", "web"]
    _records_that_were_touched(cli)

    cli.ok("rm", "web")
    assert cli.json("ps", "-a", "--json")["vms"] == []
    assert list((cli.runtime / "vms").iterdir()) == list((cli.data / "vms").iterdir()) == []


def _records_that_were_touched(cli: Cli) -> None:
    """A changed record, a missing one, and one cut off at the end are seen."""
    first, second = sorted((cli.data / "records").glob("0*.json"))
    kept = first.read_bytes(), second.read_bytes()
    first.write_bytes(kept[0].replace(b'"name":"web"', b'"name":"wob"'))
    done = cli("verify-record")
    assert done.returncode == 1
    assert "a signature that this key did not make" in done.stdout
    first.unlink()
    assert "missing or out of order" in cli("verify-record").stdout
    first.write_bytes(kept[0])
    second.unlink()
    assert "cut off" in cli("verify-record").stdout
    second.write_bytes(kept[1])
    key = cli.ok("key", "show").strip()
    assert cli("verify-record", "--key", key, str(first)).returncode == 0
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIODRZVPuhzjCwbR8tVBrbzO48l+8dZuZGt2coE8HRqtb"
    assert cli("verify-record", "--key", other, str(first)).returncode == 1


def test_restart_and_stop_without_grace(cli: Cli) -> None:
    run_ready(cli, "again")
    before = cli.json("inspect", "again", "--json")["started_at"]
    assert cli.ok("restart", "--time", "20", "again") == "again\n"
    document = cli.json("inspect", "again", "--json")
    assert document["state"] == "running"
    assert document["started_at"] > before
    cli.ok("stop", "--time", "0", "again")
    assert state_of(cli, "again") == "exited"
    cli.ok("start", "again")
    cli.ok("rm", "--force", "again")
    assert cli.json("ps", "-a", "--json")["vms"] == []


def test_a_vm_that_removes_itself_still_tells_its_code(cli: Cli) -> None:
    cli.ok("run", "-d", "--rm", "--name", "brief", "builtin", "--cmdline", f"{CMDLINE} casemate.test=panic")
    waiting = cli.open("wait", "brief")
    output, errors = waiting.communicate(timeout=BOOT_S)
    assert (waiting.returncode, output) == (0, b"5\n"), errors
    assert cli.json("ps", "-a", "--json")["vms"] == []
    assert list((cli.data / "vms").iterdir()) == []


@pytest.mark.parametrize(
    ("test", "flags", "code", "reason"),
    [
        ("poweroff", [], 0, ""),
        ("panic", [], 5, "guest kernel panic"),
        ("loop", ["--timeout-s", "8"], 6, "time-out"),
    ],
)
def test_foreground_shows_the_console_and_exits_with_the_guests_end(
    cli: Cli, test: str, flags: list[str], code: int, reason: str
) -> None:
    cmdline = f"{CMDLINE} casemate.test={test}"
    done = cli("run", "--rm", "--name", "front", *flags, "builtin", "--cmdline", cmdline, timeout_s=BOOT_S)
    assert done.returncode == code, done.stderr
    assert done.stdout.count(READY_MARKER) == 1, "nothing lost, nothing doubled"
    assert reason in done.stderr
    assert cli.json("ps", "-a", "--json")["vms"] == []


def test_foreground_with_json_says_how_it_ended(cli: Cli) -> None:
    words = ["run", "--json", "--name", "front", "builtin", "--cmdline", f"{CMDLINE} casemate.test=poweroff"]
    document = cli.json(*words)
    assert document["schema"] == "casemate.run/1"
    assert (document["name"], document["exit"]["code"]) == ("front", 0)
    assert READY_MARKER in cli.ok("logs", "front")


def read_until(stream: Any, wanted: bytes) -> bytes:
    seen = b""
    end = time.monotonic() + BOOT_S
    while wanted not in seen:
        assert time.monotonic() < end, seen
        if select.select([stream], [], [], 0.2)[0]:
            piece = os.read(stream.fileno() if hasattr(stream, "fileno") else stream, 65536)
            assert piece, seen
            seen += piece
    return seen


def test_input_from_a_pipe_reaches_the_guest(cli: Cli) -> None:
    running = cli.open("run", "--rm", "builtin", stdin=subprocess.PIPE)
    assert running.stdin is not None
    read_until(running.stdout, b":/# ")
    running.stdin.write(b"echo $((6*7))-is-the-answer\n")
    running.stdin.flush()
    read_until(running.stdout, b"42-is-the-answer")
    running.stdin.write(b"poweroff\n")
    running.stdin.close()
    running.stdin = None
    _, errors = running.communicate(timeout=BOOT_S)
    assert running.returncode == 0, errors


def test_ctrl_c_without_a_terminal_stops_the_guest(cli: Cli) -> None:
    running = cli.open("run", "--name", "front", "builtin", start_new_session=True)
    read_until(running.stdout, READY_MARKER.encode())
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=BOOT_S)
    assert running.returncode == 0, errors
    assert b"stopping the VM" in errors
    assert cli.json("inspect", "front", "--json")["exit"]["reason"] == "stopped"


def test_a_second_ctrl_c_kills(cli: Cli) -> None:
    """A guest whose first program is a bare shell: nobody in it hears the power button."""
    words = ["run", "--name", "front", "builtin", "--cmdline", f"{CMDLINE} rdinit=/bin/sh"]
    running = cli.open(*words, stdin=subprocess.PIPE, start_new_session=True)
    read_until(running.stdout, b"# ")
    running.send_signal(signal.SIGINT)
    read_until(running.stderr, b"stopping the VM")
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=BOOT_S)
    ended = cli.json("inspect", "front", "--json")["exit"]
    assert running.returncode == ended["code"]
    assert ended["reason"] in {"stopped", "killed"}, "the first wish counts"


def test_a_reader_that_goes_away_stops_the_guest(cli: Cli) -> None:
    words = ["run", "--name", "front", "builtin", "--cmdline", f"{CMDLINE} casemate.test=logflood"]
    running = cli.open(*words)
    assert running.stdout is not None
    read_until(running.stdout, READY_MARKER.encode())
    running.stdout.close()
    running.stdout = None
    _, errors = running.communicate(timeout=BOOT_S)
    assert b"Traceback" not in errors
    until(lambda: state_of(cli, "front") == "exited", "the VM has ended")


def test_console_on_a_terminal_is_left_and_taken_again(cli: Cli) -> None:
    import pty

    run_ready(cli, "desk")
    leader, follower = pty.openpty()
    try:
        for number in (1, 2):
            attached = cli.open("console", "desk", stdin=follower, stdout=follower, stderr=follower)
            read_until(leader, b"Ctrl-] leaves")
            os.write(leader, f"echo round-$(({number}+0))\r".encode())
            read_until(leader, f"\nround-{number}".encode())
            os.write(leader, b"\x1d")
            assert attached.wait(timeout=30) == 0
            assert state_of(cli, "desk") == "running"
    finally:
        os.close(leader)
        os.close(follower)


def test_run_on_a_terminal_leaves_the_guest_running(cli: Cli) -> None:
    import pty

    leader, follower = pty.openpty()
    try:
        running = cli.open("run", "--name", "desk", "builtin", stdin=follower, stdout=follower, stderr=follower)
        read_until(leader, b":/# ")
        os.write(leader, b"\x1d")
        assert running.wait(timeout=30) == 0
        read_until(leader, b"casemate console desk")
        assert state_of(cli, "desk") == "running"
    finally:
        os.close(leader)
        os.close(follower)


@pytest.mark.parametrize("delay_s", [0.1, 0.25, 0.4, 0.6])
def test_ctrl_c_during_a_detached_start_leaves_all_or_nothing(cli: Cli, delay_s: float) -> None:
    """Whenever it strikes: either the id was printed and the VM runs, or there is no VM."""
    starting = cli.open("run", "-d", "--name", "hasty", "builtin", start_new_session=True)
    time.sleep(delay_s)
    starting.send_signal(signal.SIGINT)
    output, errors = starting.communicate(timeout=BOOT_S)
    rows = cli.json("ps", "-a", "--json")["vms"]
    if starting.returncode == 0:
        assert [(row["id"], row["state"]) for row in rows] == [(output.decode().strip(), "running")]
    else:
        assert starting.returncode in {130, -signal.SIGINT, 1}, errors  # 1: before our first line ran
        assert (output, rows) == (b"", [])


def test_logs_follow_until_the_end(cli: Cli) -> None:
    words = ["run", "-d", "--name", "talker", "builtin", "--cmdline", f"{CMDLINE} casemate.test=poweroff"]
    cli.ok(*words)
    followed = cli.ok("logs", "-f", "talker", timeout_s=BOOT_S)
    assert READY_MARKER in followed
    assert followed == cli.ok("logs", "talker")
    assert state_of(cli, "talker") == "exited"


def test_start_in_the_foreground_for_systemd(cli: Cli, tmp_path: Path) -> None:
    cli.ok("create", "--name", "service", "builtin")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        path = f"/tmp/casemate-test-{os.getpid()}.notify"
        notify.bind(path)
        notify.settimeout(BOOT_S)
        try:
            service = cli.open("start", "--foreground", "service", env={"NOTIFY_SOCKET": path})
            assert notify.recv(100) == b"READY=1\n"
        finally:
            os.unlink(path)
    assert state_of(cli, "service") == "running"
    until(lambda: READY_MARKER in cli.ok("logs", "service"), "the guest hears the power button")
    service.send_signal(signal.SIGTERM)
    output, _ = service.communicate(timeout=BOOT_S)
    assert (service.returncode, output) == (0, b"")
    assert cli.json("inspect", "service", "--json")["exit"]["reason"] == "stopped"


def test_two_commands_that_stop_and_wait_at_once_agree(cli: Cli) -> None:
    run_ready(cli, "busy")
    others = [cli.open(*words, "busy") for words in (["stop"], ["stop"], ["wait"], ["stop", "-t", "5"])]
    for other in others:
        output, errors = other.communicate(timeout=BOOT_S)
        assert other.returncode == 0, (output, errors)
    assert state_of(cli, "busy") == "exited"
