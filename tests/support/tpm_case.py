"""A VM's TPM by itself: started in its wall by a process of its own, as a launch does it, and looked at."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from tests.support.hosts import EMULATOR, HOST

from casemate.engine import swtpm, tpm_state
from casemate.engine import tpm_commands as tpm
from casemate.engine.opening import Opened
from casemate.engine.paths import Paths
from casemate.engine.tpm_facts import observe_tpm
from casemate.jail.policy import Identity, IdentityMode
from casemate.plan.build import Request, build_plan
from casemate.plan.model import CgroupBase, LaunchPlan
from casemate.spec.model import Spec
from casemate.sys.landlock import landlock_abi

SWTPM = "/usr/bin/swtpm"
VM_ID = "0123456789abcdef"
_PASSWORD = struct.pack(">IIHBH", 9, 0x4000_0009, 0, 0, 0)
NV_INDEX = 0x0150_0001


def identity(number: int = 0) -> Identity:
    if os.geteuid() == 0:
        return Identity(1_900_060_100 + number, 1_900_060_100 + number, IdentityMode.ROOT)
    return Identity(os.getuid(), os.getgid(), IdentityMode.CALLER, keep_groups=True)


def paths_in(folder: Path) -> Paths:
    paths = Paths(str(folder / "run"), str(folder / "data"), str(folder / "cache"))
    for path in (
        f"{paths.runtime}/ids",
        paths.vm_runtime(VM_ID),
        paths.vm_data(VM_ID),
        f"{paths.cache}/filters",
        f"{paths.cache}/emulators",
    ):
        os.makedirs(path, mode=0o700, exist_ok=True)
    return paths


def plan_with(number: int = 0, *, keeps_state: bool = True, document: dict[str, Any] | None = None) -> LaunchPlan:
    host = msgspec.structs.replace(HOST, landlock_abi=landlock_abi(), cgroup=CgroupBase(0, why_none="a test"))
    spec = msgspec.convert({"boot": {"kernel": "/k"}, "tpm": {"enabled": True}, **(document or {})}, Spec)
    who = identity(number)
    request = Request(VM_ID, "vm", identity(99), {"kernel": 1}, tpm_identity=who, keeps_state=keeps_state)
    return build_plan(spec, host, EMULATOR, request)


class Running:
    """A started TPM; its control channel is ours instead of an emulator's."""

    def __init__(self, plan: LaunchPlan, paths: Paths) -> None:
        self.opened = Opened()
        home = tpm_state.prepare(plan, paths, self.opened)
        self.log, log_write = os.pipe()
        sources = {**self.opened.by_role, "log": log_write, "null": os.open("/dev/null", os.O_RDONLY)}
        self.roles = sources
        self.plan = plan
        self.tpm = swtpm.start_tpm(plan, home, sources, self.log, paths.cache)
        self.control = socket.socket(fileno=os.dup(self.tpm.qemu_socket_fd))
        self.data: socket.socket | None = None

    def boot(self) -> None:
        """What QEMU and a guest's kernel do: a data channel, CMD_INIT, TPM2_Startup."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self.control, [tpm.control(tpm.CMD_SET_DATAFD)], [theirs.fileno()])
            assert tpm.control_result(self.control.recv(64)) == 0
        self.control.sendall(tpm.control(tpm.CMD_INIT, flags=0))
        assert tpm.control_result(self.control.recv(64)) == 0
        self.data = ours
        self.ask(tpm.startup(), "TPM2_Startup")

    def ask(self, command: bytes, what: str = "a command") -> bytes:
        assert self.data is not None
        while True:
            self.data.sendall(command)
            answer = self.data.recv(4096)
            if not tpm.is_retry(answer):
                return tpm.response(answer, what)

    def read_pcr(self, number: int) -> bytes:
        bits = bytearray(3)
        bits[number // 8] = 1 << number % 8
        body = struct.pack(">IHB", 1, tpm.SHA256, 3) + bits
        return self.ask(struct.pack(">HII", 0x8001, 10 + len(body), 0x17E) + body, "PCR_Read")[-32:]

    def extend(self, number: int) -> None:
        body = struct.pack(">I", number) + _PASSWORD + struct.pack(">IH", 1, tpm.SHA256) + b"x" * 32
        self.ask(struct.pack(">HII", 0x8002, 10 + len(body), 0x182) + body, "PCR_Extend")

    def public(self, handle: int) -> bytes:
        body = self.ask(struct.pack(">HIII", 0x8001, 14, 0x173, handle), "ReadPublic")
        return body[2 : 2 + int.from_bytes(body[:2], "big")]

    def define_nv(self, text: bytes) -> None:
        public = struct.pack(">IHIHH", NV_INDEX, tpm.SHA256, 0x0006_0006, 0, len(text))
        body = struct.pack(">I", 0x4000_0001) + _PASSWORD + struct.pack(">HH", 0, len(public)) + public
        self.ask(struct.pack(">HII", 0x8002, 10 + len(body), 0x12A) + body, "NV_DefineSpace")
        body = struct.pack(">II", 0x4000_0001, NV_INDEX) + _PASSWORD + struct.pack(">H", len(text)) + text + b"\0\0"
        self.ask(struct.pack(">HII", 0x8002, 10 + len(body), 0x137) + body, "NV_Write")

    def read_nv(self, size: int) -> bytes:
        body = struct.pack(">II", 0x4000_0001, NV_INDEX) + _PASSWORD + struct.pack(">HH", size, 0)
        answer = self.ask(struct.pack(">HII", 0x8002, 10 + len(body), 0x14E) + body, "NV_Read")
        return answer[6 : 6 + size]

    def stolen(self) -> bytes:
        """What whoever holds the control channel gets when it asks for the whole state, decrypted."""
        request = struct.pack(">IIII", 12, 1, 1, 0)  # CMD_GET_STATEBLOB, PTM_STATE_FLAG_DECRYPTED, permanent
        self.control.sendall(request)
        self.control.settimeout(5)
        answer = self.control.recv(1 << 16)
        result, _, total, length = struct.unpack(">IIII", answer[:16])
        assert (result, total) == (0, length), answer[:16].hex()
        return answer[16 : 16 + length]

    def observed(self) -> dict[str, object]:
        facts = observe_tpm(self.plan, self.tpm, self.roles)
        return {name: getattr(fact, "value", f"unknown: {getattr(fact, 'why', '')}") for name, fact in facts.items()}

    def end(self) -> None:
        self.tpm.stop()


def in_child(scenario: Callable[[], Any]) -> Any:
    """What ``scenario`` gives, run in a forked, single-threaded process, as a launch is. Its errors are raised here."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_end)
            os.setsid()
            said = {"value": scenario()}
        except BaseException as fault:
            step = getattr(fault, "next_step", "")
            said = {"error": [type(fault).__name__, str(fault), step], "trace": traceback.format_exc()}
        os.write(write_end, json.dumps(said).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not data:
        raise ChildKilledError(os.waitstatus_to_exitcode(status))
    answer = json.loads(data)
    if "error" in answer:
        raise ScenarioError(*answer["error"], answer["trace"])
    return answer["value"]


class ChildKilledError(Exception):
    """The process ended without a word; the argument is its exit code, negative for a signal."""


class ScenarioError(Exception):
    """(type, text, next step, traceback) of what a scenario raised."""


def die() -> None:
    """As `kill -9` of the supervisor-to-be."""
    os.kill(os.getpid(), signal.SIGKILL)
