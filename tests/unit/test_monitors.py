"""Who can command a running VM: sockets that only root and the VM itself can open, and those that others can."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from tests.unit.elf_builder import put
from tests.unit.test_audit_process import HOST, THREAD, VM, changed

from casemate.audit import monitors
from casemate.audit.live import LiveHost, LiveVm
from casemate.audit.monitors import ROOT_ONLY, monitor_facts
from casemate.audit.relations import Crowd
from casemate.facts.fact import Facts, Known, Unknown
from casemate.facts.process import Descriptor
from casemate.facts.process_find import FoundProcess
from casemate.facts.root import Root

FOUND = FoundProcess(7, 100, "qemu", False, "/usr/bin/qemu-system-x86_64", "qemu", 1)
STATED: Facts = {"qmp.transport": Known("fd-server", "argv: monitors")}
TABLE = "Num\n0: 2 0 00010000 1 1 4711 /run/monitor.sock\n"


def vm(pid: int = 7, name: str = "web", uid: int = 9, label: str = "") -> LiveVm:
    thread = msgspec.structs.replace(THREAD, uids=(uid,) * 4, gids=(uid,) * 4)
    held = (Descriptor(26, "socket:[4711]", 0, None),)
    read = changed(pid=pid, threads=(thread,), descriptors=held, label=label)
    return LiveVm(msgspec.structs.replace(FOUND, pid=pid), name, "qemu", read)


def judged(
    tree: Path,
    one: LiveVm,
    who: set[str] | Exception,
    monkeypatch: pytest.MonkeyPatch,
    *,
    others: tuple[LiveVm, ...] = (),
    ways: tuple[str, ...] = ("fd-server:26",),
) -> Known | Unknown | None:
    put(tree, "/proc/7/net/unix", TABLE.encode())

    def answer(root: Root, path: str) -> frozenset[str]:
        assert path == "/run/monitor.sock"
        if isinstance(who, Exception):
            raise who
        return frozenset(who)

    monkeypatch.setattr(monitors, "who_can_connect", answer)
    host = LiveHost(HOST, (one, *others), Crowd({7: one.read}, {7: one.name}), ())
    return monitor_facts(one, host, Root(tree), STATED, ways).get("qmp.transport")


def test_root_alone_is_the_managers_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fact = judged(tmp_path, vm(), {"uid:0", "gid:0"}, monkeypatch)
    assert isinstance(fact, Known)
    assert fact.value == ROOT_ONLY
    assert "/run/monitor.sock" in fact.source


@pytest.mark.parametrize("way", ["fd-server:26", "unix:/run/monitor.sock,server=on"])
def test_the_vms_own_uid_is_fine_when_nothing_else_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    uid = os.geteuid() + 1  # no entry of this tree's /proc belongs to it
    fact = judged(tmp_path, vm(uid=uid), {"uid:0", f"uid:{uid}", f"gid:{uid}"}, monkeypatch, ways=(way,))
    assert isinstance(fact, Known)
    assert fact.value == ROOT_ONLY


def test_another_vm_of_that_uid_can_open_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fact = judged(tmp_path, vm(), {"uid:0", "uid:9"}, monkeypatch, others=(vm(8, "mail"),))
    assert isinstance(fact, Known)
    assert fact.value == "fd-server"
    assert "mail with the same uid 9" in fact.source


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("libvirt-8f3b (enforce)", ROOT_ONLY),
        ("libvirt-8f3b (complain)", "fd-server"),
        ("system_u:system_r:svirt_t:s0:c1,c2", ROOT_ONLY),
        ("system_u:system_r:svirt_t:s0", "fd-server"),
        ("unconfined", "fd-server"),
    ],
)
def test_a_label_of_its_own_keeps_the_others_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str, value: str
) -> None:
    fact = judged(tmp_path, vm(label=label), {"uid:0", "uid:9"}, monkeypatch, others=(vm(8, "mail"),))
    assert isinstance(fact, Known)
    assert fact.value == value


@pytest.mark.skipif(os.geteuid() == 0, reason="root's own processes do not count")
def test_any_other_process_of_that_uid_can_open_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.geteuid()
    put(tmp_path, "/proc/99/stat", b"")
    fact = judged(tmp_path, vm(uid=uid), {"uid:0", f"uid:{uid}"}, monkeypatch)
    assert isinstance(fact, Known)
    assert f"1 other processes of uid {uid}" in fact.source


@pytest.mark.parametrize("who", [{"everybody", "uid:9"}, {"uid:0", "gid:44"}, {"uid:1000"}])
def test_strangers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: set[str]) -> None:
    fact = judged(tmp_path, vm(), who, monkeypatch)
    assert isinstance(fact, Known)
    assert fact.value == "fd-server"
    assert sorted(who - {"uid:0", "uid:9"})[0] in fact.source


@pytest.mark.parametrize("ways", [("fd-server:99",), ("fd-server:x",)])
def test_a_socket_that_cannot_be_seen_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: tuple[str, ...]
) -> None:
    assert isinstance(judged(tmp_path, vm(), {"uid:0"}, monkeypatch, ways=ways), Unknown)
    assert isinstance(judged(tmp_path, vm(), PermissionError(13, "Permission denied"), monkeypatch), Unknown)


@pytest.mark.parametrize("transport", ["tcp", "inherited-descriptor", "none", "stdio"])
def test_what_is_no_socket_is_left_as_it_is(tmp_path: Path, transport: str) -> None:
    host = LiveHost(HOST, (), Crowd({}, {}), ())
    stated: Facts = {"qmp.transport": Known(transport, "argv")}
    assert monitor_facts(vm(), host, Root(tmp_path), stated, ("tcp:1:2",)) == {}
    assert VM.process.pid == 7
