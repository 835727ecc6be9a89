"""The real supervisor program, confined as in real life, over a fake emulator: how runs end, and hostile company."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.supervised import Supervised, read_line, until

Make = Callable[..., Supervised]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Start supervisors; all are gone afterwards."""
    made: list[Supervised] = []

    def one(mode: str = "normal", **config: Any) -> Supervised:
        found = Supervised(tmp_path / str(len(made)), mode, **config)
        made.append(found)
        return found

    yield one
    for item in made:
        item.end()


def check_clean(vm: Supervised) -> None:
    """The supervisor left exit.json and logs, and nothing else."""
    assert not vm.runtime.exists()
    assert not (vm.data / "run.json").exists()
    assert vm.words() == ""
    assert not Path(f"/proc/{vm.emulator_pid}").exists()


# ---- ends -----------------------------------------------------------------------------------------------------------


def test_stop_presses_the_button(make: Make) -> None:
    vm = make()
    assert vm.ask("stop") == {"ok": True}
    end = vm.wait_exit()
    assert (end["reason"], end["code"], end["detail"]) == ("stopped", 0, "")
    check_clean(vm)
    assert [event["event"] for event in vm.events()] == ["start", "stop-requested", "powerdown", "shutdown", "exit"]


@pytest.mark.parametrize("mode", ["stubborn", "mute", "deaf", "absent", "error", "wrong-ids"])
def test_stop_kills_what_does_not_obey(make: Make, mode: str) -> None:
    vm = make(mode)
    vm.ask("stop", grace_s=0.2)
    end = vm.wait_exit()
    assert (end["reason"], end["code"]) == ("stopped", 0)
    # The fake that forges replies still powers off: forged replies changed nothing.
    assert end["detail"] == ("" if mode == "wrong-ids" else "killed after the grace period")
    check_clean(vm)


def test_the_button_is_pressed_again_until_the_guest_listens(make: Make) -> None:
    vm = make("stubborn")
    vm.ask("stop", grace_s=2.5)
    vm.wait_exit()
    assert [event["event"] for event in vm.events()].count("powerdown") >= 2


def test_stop_wakes_a_paused_guest_first(make: Make) -> None:
    vm = make()
    vm.ask("pause")
    vm.ask("stop")
    assert vm.wait_exit()["detail"] == ""
    names = [event["event"] for event in vm.events()]
    assert names.index("unpause") < names.index("powerdown")


@pytest.mark.parametrize(
    ("name", "command", "said"),
    [
        ("swtpm", "exit 0", ""),  # as QEMU tells it to when it ends itself
        ("swtpm", "exit 1", "swtpm died (it ended): the VM has no TPM until it is restarted"),
        ("swtpm", "kill -9 $$", "swtpm died (signal 9): the VM has no TPM until it is restarted"),
        ("passt", "exit 0", "passt died (it ended): the VM has no network until it is restarted"),
    ],
)
def test_the_death_of_a_helper_is_said(make: Make, name: str, command: str, said: str) -> None:
    vm = make(helpers={name: command})
    if said:
        until(lambda: json.loads((vm.runtime / "state.json").read_text())["health"] == [said])
    assert vm.ask("stop") == {"ok": True}
    assert vm.wait_exit()["code"] == 0
    assert ("helper-died" in [event["event"] for event in vm.events()]) is bool(said)


def test_kill(make: Make) -> None:
    vm = make("absent")
    assert vm.ask("kill") == {"ok": True}
    end = vm.wait_exit()
    assert (end["reason"], end["code"]) == ("killed", 5)
    check_clean(vm)


def test_time_out(make: Make) -> None:
    vm = make("absent", timeout_s=0.3)
    end = vm.wait_exit()
    assert (end["reason"], end["code"], end["detail"]) == ("time-out", 6, "--timeout-s 0.3 ran out")
    check_clean(vm)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_supervisor_stops_the_guest_cleanly(make: Make, number: int) -> None:
    vm = make()
    vm.ask("status")
    os.kill(vm.pid, number)
    assert vm.wait_exit()["reason"] == "stopped"
    check_clean(vm)


@pytest.mark.parametrize(
    ("orders", "reason", "code", "detail"),
    [
        (['event {"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}}', "exit 0"], "guest powered off", 0, ""),
        (['event {"event": "SHUTDOWN", "data": {"reason": "host-signal"}}', "exit 0"], "emulator ended", 5, "signal"),
        (['event {"event": "SHUTDOWN", "data": {"reason": "guest-panic"}}', "exit 0"], "guest kernel panic", 5, ""),
        (['event {"event": "SHUTDOWN", "data": {"reason": ["x"]}}', "exit 0"], "emulator ended", 5, "no word"),
        (["exit 0"], "emulator ended", 5, "no word"),
        (["exit 3"], "emulator failed", 5, "exit status 3"),
        ([f"signal {signal.SIGSEGV:d}"], "emulator killed", 5, "SIGSEGV: it crashed or aborted"),
        ([f"signal {signal.SIGABRT:d}"], "emulator killed", 5, "SIGABRT: it crashed or aborted"),
        ([f"signal {signal.SIGSYS:d}"], "emulator killed", 5, "SIGSYS: its seccomp allowlist"),
        ([f"signal {signal.SIGKILL:d}"], "emulator killed", 5, "SIGKILL: from outside"),
        (['event {"event": "GUEST_PANICKED", "data": {"action": "poweroff"}}', "exit 0"], "guest kernel panic", 5, ""),
        (["print Kernel panic - not syncing: x", 'event {"event": "RESET"}'], "guest kernel panic", 5, "console"),
        (
            [
                "print [1.0] Kernel panic - not syncing: an old log",
                'event {"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}}',
                "exit 0",
            ],
            "guest powered off",
            0,
            "",
        ),
    ],
)
def test_how_it_ended(make: Make, orders: list[str], reason: str, code: int, detail: str) -> None:
    vm = make()
    with vm.attach() as console:
        console.sendall("".join(f"!{order}\n" for order in orders).encode())
        end = vm.wait_exit()
    assert (end["reason"], end["code"]) == (reason, code)
    assert detail in end["detail"]
    check_clean(vm)


def test_a_reset_without_a_panic_goes_on(make: Make) -> None:
    vm = make()
    vm.order('event {"event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}')
    until(lambda: any(event["event"] == "reset" for event in vm.events()))
    assert vm.ask("status")["phase"] == "running"


def test_a_panic_that_does_not_end_the_machine_is_ended(make: Make) -> None:
    vm = make()
    vm.order('event {"event": "GUEST_PANICKED", "data": {"action": "pause"}}')
    end = vm.wait_exit()
    assert (end["reason"], end["code"]) == ("guest kernel panic", 5)


def test_a_run_that_deletes_itself_leaves_nothing(make: Make) -> None:
    vm = make(remove_on_exit=True)
    (vm.data / "definition.json").write_text("{}")
    with vm.connect() as watcher:
        watcher.sendall(b'{"do": "wait"}\n')
        assert read_line(watcher) == {"ok": True}
        vm.ask("stop")
        told = read_line(watcher)
    assert told["exited"].pop("finished_at").endswith("Z")
    assert told == {"exited": {"reason": "stopped", "code": 0, "detail": ""}}
    _, status = os.waitpid(vm.pid, 0)
    vm.pid = -1
    assert status == 0
    assert not vm.data.exists()
    assert not vm.runtime.exists()


def test_waiters_are_told_after_the_clean_up(make: Make) -> None:
    vm = make()
    with vm.connect() as watcher:
        watcher.sendall(b'{"do": "wait"}\n')
        read_line(watcher)
        vm.ask("kill")
        told = read_line(watcher)
        assert not vm.runtime.exists()
        assert (vm.data / "exit.json").exists()
        assert watcher.recv(1) == b""
    assert told["exited"]["code"] == 5


def test_a_supervisor_that_fails_says_so_and_takes_the_emulator_along(make: Make) -> None:
    vm = make(stop_grace_s="soon")
    vm.ask("status")
    os.kill(vm.pid, signal.SIGTERM)
    end = vm.wait_exit()
    assert (end["reason"], end["code"]) == ("supervisor failed", 5)
    assert "TypeError" in end["detail"]
    check_clean(vm)


def test_a_runtime_directory_that_is_taken_away_ends_the_vm(make: Make) -> None:
    vm = make(runtime_check_s=0.2)
    vm.ask("status")
    shutil.rmtree(vm.runtime)
    end = vm.wait_exit()
    assert (end["reason"], end["code"]) == ("runtime directory removed", 5)
    check_clean(vm)


# ---- a hostile emulator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["endless-line", "drip", "deep", "not-json", "not-object"])
def test_an_emulator_that_breaks_qmp_is_killed(make: Make, mode: str) -> None:
    vm = make(mode)
    end = vm.wait_exit()
    assert (end["reason"], end["code"]) == ("emulator failed", 5)
    assert "it broke the QMP protocol" in end["detail"]
    assert len(end["detail"]) < 500
    check_clean(vm)


def test_a_reply_beyond_all_bounds_ends_it(make: Make) -> None:
    vm = make("huge-reply")
    with vm.connect() as client:
        client.sendall(b'{"do": "stats"}\n')
        assert "QMP protocol" in vm.wait_exit()["detail"]
        assert client.recv(100) == b""


def test_forged_and_unasked_replies_are_ignored(make: Make) -> None:
    vm = make("wrong-ids")
    assert vm.ask("stats")["result"][0]["device"] == "disk0"
    assert vm.ask("pause") == {"ok": True, "result": {}}


def test_an_emulator_that_never_answers_holds_up_nobody_else(make: Make) -> None:
    vm = make("mute")
    with vm.connect() as client:
        client.sendall(b'{"do": "stats"}\n{"do": "status"}\n')
        assert vm.ask("status")["phase"] == "running"
        assert read_line(client) == {"error": "query-blockstats: the emulator did not answer in time"}
        assert read_line(client)["phase"] == "running"  # the second request had waited


def test_a_refused_command_is_an_error(make: Make) -> None:
    assert make("error").ask("pause") == {"error": "stop: not today"}


def test_an_emulator_that_does_not_read_costs_no_memory(make: Make) -> None:
    vm = make("absent")
    vm.ask("status")
    before = vm.rss_kib()
    clients = [vm.connect() for _ in range(12)]
    for _ in range(3):
        for client in clients:
            client.sendall(b'{"do": "stats"}\n' * 200)
    assert vm.ask("status")["phase"] == "running"
    assert vm.rss_kib() - before < 4096
    for client in clients:
        client.close()


@pytest.mark.parametrize("mode", ["event-flood", "stop-flood"])
def test_floods_of_events_are_counted_not_written(make: Make, mode: str) -> None:
    vm = make(mode)
    # With the next event that the budget allows, or a second later when the guest has fallen silent.
    until(lambda: any(event["event"] == "events-suppressed" for event in vm.events()))
    assert vm.ask("kill") == {"ok": True}
    vm.wait_exit()
    events = vm.events()
    assert len(events) < 200  # 30,000 and 60,000 were sent
    assert sum(event.get("count", 0) for event in events) + len(events) > 1000
    check_clean(vm)


def test_the_phase_is_right_after_a_flood(make: Make) -> None:
    vm = make("stop-flood")
    until(lambda: vm.phase() == "running" and vm.ask("status")["phase"] == "running")
    vm.ask("pause")
    until(lambda: vm.phase() == "paused")  # not at once: the guest has spent the budget


def test_event_names_from_the_emulator_cannot_pass_for_ours(make: Make) -> None:
    vm = make()
    vm.order('event {"event": "exit", "data": {"reason": "guest-shutdown"}}')
    vm.order('event {"event": "EXIT", "data": {"reason": "guest-shutdown"}}')
    vm.order("event " + json.dumps({"event": "N" * 5000, "data": {"reason": "R" * 5000}}))
    until(lambda: len(vm.events()) == 4)
    assert [event["event"] for event in vm.events()] == ["start", *["unknown-qmp-event"] * 3]
    assert max(len(json.dumps(event)) for event in vm.events()) < 300


def test_the_emulators_log_is_bounded(make: Make) -> None:
    vm = make()
    with vm.attach() as console:
        console.sendall(b"!log-flood 3\n!print done\n")
        while b"done" not in console.recv(4096):
            pass
    vm.ask("kill")
    vm.wait_exit()
    sizes = [path.stat().st_size for path in vm.data.glob("emulator.log*")]
    assert 0 < sum(sizes) <= 256 * 1024


# ---- a hostile guest ------------------------------------------------------------------------------------------------


def test_a_guest_that_writes_for_ever_fills_neither_disk_nor_memory(make: Make) -> None:
    vm = make()
    vm.order("flood 1")
    before = vm.rss_kib()
    with vm.attach() as console:
        console.sendall(b"!flood 16\n!print done\n")
        while not console.recv(1 << 20).endswith(b"done\n"):
            pass
    assert vm.rss_kib() - before < 2048
    sizes = [path.stat().st_size for path in vm.data.glob("console.log*")]
    assert 32768 <= sum(sizes) <= 65536
    assert (vm.data / "console.log").read_bytes().endswith(b"done\n")


def test_a_slow_reader_gets_every_byte_and_slows_the_guest_down(make: Make) -> None:
    vm = make()
    slow = vm.attach()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.sendall(b"!flood 3\n!print done\n")
    before = vm.rss_kib()
    seen = 0
    while not (data := slow.recv(48 * 1024)).endswith(b"done\n"):
        assert data, "dropped"
        seen += len(data)
        time.sleep(0.01)
    assert seen + len(data) == 3 * (1 << 20) + 5
    assert vm.rss_kib() - before < 2048
    slow.close()


def test_the_last_words_reach_a_slow_reader(make: Make) -> None:
    vm = make()
    slow = vm.attach()
    slow.sendall(b"!flood 1\n!print last words\n!exit 0\n")
    data = b""
    while not data.endswith(b"last words\n"):
        piece = slow.recv(65536)
        assert piece, data[-100:]
        data = (data + piece)[-100:]
        time.sleep(0.005)
    assert slow.recv(10) == b""
    slow.close()


def test_a_reader_that_sleeps_is_dropped_and_nobody_waits_for_it(make: Make) -> None:
    vm = make()
    sleeper = vm.attach()
    awake = vm.attach()
    awake.sendall(b"!flood 8\n!print done\n")
    seen = 0
    while True:
        data = awake.recv(1 << 20)
        assert data, "the reader that kept up was dropped"
        seen += len(data)
        if data.endswith(b"done\n"):
            break
    assert seen == 8 * (1 << 20) + 5
    with pytest.raises(ConnectionError, match="closed"):
        drain(sleeper)
    assert vm.ask("status")["phase"] == "running"


def drain(connection: socket.socket) -> None:
    """Read until the other side has closed, which raises; far less than everything arrives."""
    total = 0
    while data := connection.recv(1 << 20):
        total += len(data)
    assert total < 2 * (1 << 20)
    raise ConnectionError("closed")


def test_a_guest_that_does_not_read_costs_no_memory_and_no_other_client(make: Make) -> None:
    vm = make("absent")
    vm.ask("status")
    before = vm.rss_kib()
    typist = vm.attach()
    typist.settimeout(0.5)
    with pytest.raises(TimeoutError):
        typist.sendall(b"x" * (8 << 20))
    assert vm.ask("status")["phase"] == "running"
    assert vm.rss_kib() - before < 2048


def test_what_was_printed_last_is_in_the_log(make: Make) -> None:
    vm = make()
    with vm.attach() as console:
        console.sendall(b"!flood 1\n!print famous last words\n!exit 0\n")
        vm.wait_exit()
    assert (vm.data / "console.log").read_bytes().endswith(b"famous last words\n")


def test_early_messages_of_the_emulator_are_kept(make: Make) -> None:
    vm = make(early_log="warning: before the supervisor\n")
    vm.order("say after it")
    until(lambda: (vm.data / "emulator.log").read_text() == "warning: before the supervisor\nafter it\n")


def test_the_end_of_a_guest_that_was_quicker_than_the_hand_over_is_known(make: Make) -> None:
    vm = make(early_qmp='{"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}}\n{"event": "POW')
    vm.order("exit 0")
    ended = vm.wait_exit()
    assert (ended["reason"], ended["code"]) == ("guest powered off", 0)


# ---- hostile clients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_line",
    [
        b"\n",
        b"garbage\n",
        b"\xff\xfe\x00\n",
        b"[]\n",
        b"42\n",
        b"{}\n",
        b'{"do": 1}\n',
        b'{"do": ["stop"]}\n',
        b'{"do": "no-such"}\n',
        b'{"do": "__class__"}\n',
        b'{"do": "stop", "grace_s": "now"}\n',
        b'{"do": "stop", "grace_s": NaN}\n',
        b'{"do": "stop", "grace_s": 1e999}\n',
        b'{"do": "stop", "grace_s": -1}\n',
        b'{"do": "stop", "grace_s": true}\n',
        b'{"do": "stop", "grace_s": [1]}\n',
        b'{"do":' * 500 + b"1" + b"}" * 500 + b"\n",
        b"[" * 4000 + b"\n",
    ],
)
def test_a_bad_request_gets_an_error_and_changes_nothing(make: Make, request_line: bytes) -> None:
    vm = make()
    with vm.connect() as client:
        client.sendall(request_line + b'{"do": "status"}\n')
        assert list(read_line(client)) == ["error"]
        assert read_line(client)["phase"] == "running"


def test_a_grace_of_a_hundred_years_is_cut(make: Make) -> None:
    vm = make("stubborn")
    assert vm.ask("stop", grace_s=3e9) == {"ok": True}
    assert vm.ask("status")["phase"] == "stopping"
    vm.ask("stop", grace_s=0)
    assert vm.wait_exit()["reason"] == "stopped"


def test_an_endless_request_is_refused(make: Make) -> None:
    vm = make()
    vm.ask("status")
    before = vm.rss_kib()
    with vm.connect() as client:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            client.sendall(b"A" * (64 << 20))
        assert vm.ask("status")["phase"] == "running"
    assert vm.rss_kib() - before < 1024


def test_half_a_request_keeps_nobody_waiting(make: Make) -> None:
    vm = make()
    with vm.connect() as client:
        client.sendall(b'{"do": "sta')
        assert vm.ask("status")["phase"] == "running"
        client.sendall(b'tus"}\n')
        assert read_line(client)["phase"] == "running"


def test_requests_sent_together_are_answered_in_order(make: Make) -> None:
    vm = make()
    with vm.connect() as client:
        client.sendall(b'{"do": "pause"}\n{"do": "status"}\n{"do": "unpause"}\n{"do": "nonsense"}\n{"do": "status"}\n')
        answers = [read_line(client) for _ in range(5)]
    assert [answer.get("phase", answer.get("result", "error")) for answer in answers] == [
        {},
        "paused",
        {},
        "error",
        "running",
    ]


def test_idle_connections_cannot_keep_stop_out(make: Make) -> None:
    vm = make()
    idle = [vm.connect() for _ in range(60)]
    assert vm.ask("status")["phase"] == "running"
    vm.ask("stop")
    assert vm.wait_exit()["reason"] == "stopped"
    for connection in idle:
        connection.close()


def test_busy_connections_are_limited_and_told(make: Make) -> None:
    vm = make()
    consoles = [vm.attach() for _ in range(16)]
    with vm.connect() as late:
        assert read_line(late) == {"error": "too many connections to this VM"}
    consoles.pop().close()
    until(lambda: answers(vm))
    for console in consoles:
        console.close()


def answers(vm: Supervised) -> bool:
    """Whether a new connection is served."""
    try:
        return vm.ask("status").get("phase") == "running"
    except OSError:
        return False


def test_clients_that_come_and_go_leak_nothing(make: Make) -> None:
    vm = make()
    vm.ask("status")
    before = len(os.listdir(f"/proc/{vm.pid}/fd"))
    for _ in range(300):
        vm.connect().close()
    vm.ask("status")
    until(lambda: len(os.listdir(f"/proc/{vm.pid}/fd")) <= before)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second uid to come from")
def test_another_uid_is_turned_away(make: Make) -> None:
    vm = make()
    vm.ask("status")
    os.chmod(vm.runtime / "control.sock", 0o666)
    directory = os.open(vm.runtime, os.O_PATH)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresuid(65534, 65534, 65534)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(f"/proc/self/fd/{directory}/control.sock")
            connection.sendall(b'{"do": "kill"}\n')
            os.write(write_end, connection.recv(100) or b"closed")
        except OSError as fault:
            os.write(write_end, b"closed" if isinstance(fault, (BrokenPipeError, ConnectionError)) else b"other")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(directory)
    os.close(write_end)
    said = os.read(read_end, 100)
    os.close(read_end)
    assert said == b"closed"
    assert vm.ask("status")["phase"] == "running"


# ---- the port to a key broker ----------------------------------------------------------------------------------------


def borrowed(vm: Supervised) -> socket.socket:
    """The host's end, as `casemate serve-keys --vm` gets it."""
    with vm.connect() as connection:
        connection.sendall(b'{"do": "keys"}\n')
        line, descriptors, _, _ = socket.recv_fds(connection, 4096, 4)
        assert json.loads(line) == {"ok": True}
        (descriptor,) = descriptors
        return socket.socket(fileno=descriptor)


def test_the_key_port_is_lent_and_outlives_who_borrows_it(make: Make) -> None:
    """By the real supervisor, behind its own filter."""
    guest, host = socket.socketpair()
    host.set_inheritable(True)
    vm = make(keys_fd=host.fileno())
    host.close()
    guest.settimeout(30)
    for word in (b"one", b"two"):
        with borrowed(vm) as port:
            port.sendall(word)
            assert guest.recv(10) == word
    vm.ask("kill")
    vm.wait_exit()
    assert guest.recv(1) == b"", "it ends with the VM"
    guest.close()


def test_a_vm_without_a_key_port_says_so(make: Make) -> None:
    assert "no port to a key broker" in make().ask("keys")["error"]
