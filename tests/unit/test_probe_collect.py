"""The parent's side of the probe: lines are hostile, the log is bounded, what is lowered is said."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.engine import prove_bait
from casemate.engine.prove_bait import HostBait, bounded, cgroup_counters
from casemate.engine.prove_collect import LOG_MAX_BYTES, _Log, _Reader
from casemate.engine.startup import LOG_KEEP_BYTES
from casemate.errors import VmError
from casemate.jail.policy import CgroupPlan
from casemate.jail.probe.model import Attempt, Group, Record
from casemate.jail.probe.prover import LINE_MAX_BYTES, Line

ATTEMPTS = tuple(
    Attempt(id=f"files.{name}", group=Group.FILES, what=name, code="crash", skip="left out" if name == "b" else "")
    for name in ("a", "b", "c")
)


def line(**values: object) -> bytes:
    return msgspec.json.encode(Line(**values)) + b"\n"  # type: ignore[arg-type]


def record(name: str) -> bytes:
    return line(record=Record(id=f"files.{name}", stage=2))


class TestReader:
    def test_records_arrive_in_order_in_any_pieces(self) -> None:
        reader = _Reader(ATTEMPTS)
        whole = record("a") + record("c") + line(end=2)
        for at in range(0, len(whole), 7):
            reader.feed(whole[at : at + 7])
        assert list(reader.records) == ["files.a", "files.c"]
        assert reader.ended

    @pytest.mark.parametrize(
        ("data", "says"),
        [
            (record("c"), "out of order"),
            (record("b"), "out of order"),
            (line(end=0), "out of order"),
            (record("a") + record("a"), "out of order"),
            (line(), "out of order"),
            (b"{}\n", "out of order"),
            (b"nonsense\n", "makes no sense"),
            (b'{"record":{"id":1}}\n', "makes no sense"),
            (line(error="it broke"), "failed inside the wall"),
            (b"x" * (LINE_MAX_BYTES + 1), "without end"),
        ],
    )
    def test_anything_else_ends_the_proof(self, data: bytes, says: str) -> None:
        with pytest.raises(VmError, match=says):
            _Reader(ATTEMPTS).feed(data)

    @given(st.lists(st.binary(max_size=64), max_size=20))
    def test_hostile_bytes_give_a_domain_error_or_nothing(self, pieces: list[bytes]) -> None:
        reader = _Reader(ATTEMPTS)
        try:
            for piece in pieces:
                reader.feed(piece)
        except VmError:
            return
        assert not reader.ended


def test_a_flooded_log_stays_within_its_bound(tmp_path: Path) -> None:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    log = _Log(str(tmp_path), read_end)
    try:
        written = most = 0
        while written < 4 * LOG_MAX_BYTES:
            written += os.write(write_end, b"flood\n" * 5000)
            assert log.read()
            most = max(most, log.kept_bytes())
        assert most <= LOG_MAX_BYTES + LOG_KEEP_BYTES
        assert most > LOG_KEEP_BYTES
        os.close(write_end)
        while log.read():
            pass
    finally:
        log.close()
        os.close(read_end)


class TestBait:
    def test_nothing_is_touched_until_something_is(self, tmp_path: Path) -> None:
        with HostBait(str(tmp_path)) as bait:
            assert bait.touched() == ()
            assert os.path.exists(f"/proc/{bait.victim}")
            with socket.create_connection(("127.0.0.1", bait.tcp_port)):
                assert bait.touched() == ("tcp-loopback",)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"\0{bait.abstract}")
                assert bait.touched() == ("tcp-loopback", "abstract")
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(bait.socket_path)
                assert "unix-bait" in bait.touched()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", ("127.0.0.1", bait.udp_port))
                assert "udp-loopback" in bait.touched()

    def test_it_is_gone_afterwards(self, tmp_path: Path) -> None:
        with HostBait(str(tmp_path)) as bait:
            victim = bait.victim
        assert list(tmp_path.iterdir()) == []
        assert not os.path.exists(f"/proc/{victim}")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", bait.tcp_port), timeout=5)


class TestBounds:
    def cgroup(self, mib: int) -> CgroupPlan:
        return CgroupPlan(
            directories=("/cg/memory/x",),
            writes=(("/cg/memory/x/memory.limit_in_bytes", str(mib << 20)), ("/cg/pids/x/pids.max", "32")),
            limits=(f"memory.max={mib << 20}", "pids.max=32"),
            controllers=("memory", "pids"),
        )

    def plan(self, mib: int) -> object:
        from tests.unit.test_probe_judge import make_wall

        wall = msgspec.structs.replace(make_wall(), cgroup=self.cgroup(mib))

        class Plan(msgspec.Struct, frozen=True):
            wall: object

        return Plan(wall)

    def test_a_small_limit_is_tried_as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prove_bait, "available_mib", lambda: 16_000)
        plan = self.plan(500)
        assert bounded(plan) == (plan, ())  # type: ignore[arg-type]

    @pytest.mark.parametrize(("limit", "available"), [(64_000, 128_000), (900, 1_000)])
    def test_a_limit_that_would_hurt_the_host_is_lowered_and_said(
        self, monkeypatch: pytest.MonkeyPatch, limit: int, available: int
    ) -> None:
        monkeypatch.setattr(prove_bait, "available_mib", lambda: available)
        lowered, notes = bounded(self.plan(limit))  # type: ignore[arg-type]
        written = dict(lowered.wall.cgroup.writes)
        assert int(written["/cg/memory/x/memory.limit_in_bytes"]) < limit << 20
        assert written["/cg/pids/x/pids.max"] == "32"
        assert lowered.wall.cgroup.limits[0] == f"memory.max={written['/cg/memory/x/memory.limit_in_bytes']}"
        assert str(limit) in notes[0]

    def test_counters_of_both_versions(self, tmp_path: Path) -> None:
        for name, file, text in (
            ("v1-memory", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ("v1-pids", "pids.events", "max 5\n"),
            ("v2", "memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"),
        ):
            (tmp_path / name).mkdir()
            (tmp_path / name / file).write_text(text)
        everything = CgroupPlan(
            directories=tuple(str(tmp_path / name) for name in ("v1-memory", "v1-pids", "v2", "none"))
        )
        assert cgroup_counters(everything) == (3, 5)
