"""Trace swtpm as `engine/swtpm.py` starts it: a TPM is made, stopped, opened again, used like a guest does, ended.

    python tools/trace/trace_swtpm.py --work DIR --out tests/data/traces [--root DIR --prefix newer-]

``--root``: an unpacked newer swtpm with its libraries. The boundary between the phases is when the launch closes the
listener: after the control command that ends the making. Needs root (chroot) and strace.
"""

from __future__ import annotations

import argparse
import array
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from qemu_session import USER_ID
from strace_summary import PATH_CALLS, Summary, summarise, to_json

from casemate.engine import tpm_commands as tpm
from casemate.engine.tpm_furnish import furnish
from casemate.facts.closure import needed_closure
from casemate.facts.root import Root
from casemate.jail.policy import Identity, IdentityMode
from casemate.plan.swtpm import CONTROL_FD, EXPORT_KEY_FD, KEY_FD, PROGRAM, STATE, plan_swtpm

ENTER = """
import ctypes, os, sys
libc, (root, uid, *words) = ctypes.CDLL(None, use_errno=True), sys.argv[1:]
os.chroot(root); os.chdir("/")
os.setgroups([]); os.setresgid(int(uid), int(uid), int(uid)); os.setresuid(int(uid), int(uid), int(uid))
libc.prctl(38, 1, 0, 0, 0)
os.execve(words[0], words, {"LC_ALL": "C.UTF-8"})
"""
SHUTDOWN = 3
PASSWORD = struct.pack(">IIHBH", 9, 0x4000_0009, 0, 0, 0)
GUEST = (
    struct.pack(">HIIH", 0x8001, 12, 0x144, 0),  # Startup
    struct.pack(">HIIB", 0x8001, 11, 0x143, 1),  # SelfTest(full)
    struct.pack(">HIIH", 0x8001, 12, 0x17B, 32),  # GetRandom
    # PCR_Extend of 16, PCR_Read
    struct.pack(">HIII", 0x8002, 65, 0x182, 16) + PASSWORD + struct.pack(">IH", 1, 0x000B) + b"x" * 32,
    bytes.fromhex("8001000000140000017e00000001000b03000001"),
    # NV_DefineSpace of 8 bytes at 0x01500001 (AUTHREAD, AUTHWRITE, OWNERREAD, OWNERWRITE), NV_Write, NV_Read
    struct.pack(">HIII", 0x8002, 45, 0x12A, 0x4000_0001)
    + PASSWORD
    + struct.pack(">HHIHIHH", 0, 14, 0x0150_0001, 0x000B, 0x0006_0006, 0, 8),
    struct.pack(">HIIII", 0x8002, 43, 0x137, 0x4000_0001, 0x0150_0001) + PASSWORD + struct.pack(">H", 8) + b"traces-1"
    + struct.pack(">H", 0),
    struct.pack(">HIIII", 0x8002, 35, 0x14E, 0x4000_0001, 0x0150_0001) + PASSWORD + struct.pack(">HH", 8, 0),
    # Quote by the attestation key over PCR 16; Shutdown
    struct.pack(">HIII", 0x8002, 45, 0x158, tpm.AK_HANDLE) + PASSWORD + b"\0\x04nonc" + b"\0\x10"
    + struct.pack(">IHB", 1, 0x000B, 3) + bytes((0, 0, 1)),
    struct.pack(">HIIH", 0x8001, 12, 0x145, 0),
)  # fmt: skip


class Link:
    """The control channel of one swtpm."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control

    def init(self) -> int:
        """CMD_INIT."""
        return self.ask(tpm.control(tpm.CMD_INIT, flags=0))

    def ask(self, command: bytes) -> int:
        """One command, its result."""
        self.control.sendall(command)
        return tpm.control_result(self.control.recv(4096))

    def data(self) -> socket.socket:
        """A new data channel."""
        ours, theirs = socket.socketpair()
        with theirs:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
            self.control.sendmsg([tpm.control(tpm.CMD_SET_DATAFD)], ancillary)
            result = tpm.control_result(self.control.recv(4096))
        if result != 0:
            raise RuntimeError(f"CMD_SET_DATAFD: {result:#x}")
        return ours


def build(root: Path, source: Path) -> None:
    """A root with swtpm and its libraries only."""
    shutil.rmtree(root, ignore_errors=True)
    view = Root(source)
    program = "/usr/bin/swtpm"
    places = {PROGRAM: program, **{item.target: item.source for item in needed_closure(program, view)}}
    for target, origin in places.items():
        path = root / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(
            os.path.realpath(source / origin.lstrip("/")) if source == Path("/") else _below(source, origin), path
        )
    (root / STATE.lstrip("/")).mkdir(mode=0o700)
    os.chown(root / STATE.lstrip("/"), USER_ID, USER_ID)


def _below(source: Path, path: str) -> Path:
    """``path`` inside ``source``, with the links of that tree followed inside it."""
    found = source / path.lstrip("/")
    for _ in range(8):
        if not found.is_symlink():
            return found
        target = Path(os.readlink(found))
        found = source / str(target).lstrip("/") if target.is_absolute() else found.parent / target
    raise RuntimeError(path)


def run(work: Path, log: Path) -> float:
    """One life of swtpm; the boundary between the phases."""
    helper = plan_swtpm("/usr/bin/swtpm", Identity(USER_ID, USER_ID, IdentityMode.ROOT), keeps_state=True)
    ours, theirs = socket.socketpair()
    key = os.memfd_create("key")
    os.write(key, bytes(range(32)))
    os.lseek(key, 0, os.SEEK_SET)
    other = os.memfd_create("export-key")
    os.write(other, bytes(range(32)))
    os.lseek(other, 0, os.SEEK_SET)

    def place() -> None:
        high = os.dup(theirs.fileno()), os.dup(key), os.dup(other)
        for number, copy in zip((CONTROL_FD, KEY_FD, EXPORT_KEY_FD), high, strict=True):
            os.dup2(copy, number)

    command = [
        *("strace", "-f", "-qq", "-ttt", "-X", "raw", "-e", "signal=none", "-e", f"raw=!{','.join(PATH_CALLS)}"),
        *("-o", str(log), sys.executable, "-c", ENTER, str(work / "root"), str(USER_ID), *helper.argv),
    ]
    environment = {"PATH": os.environ["PATH"]}
    child = subprocess.Popen(command, close_fds=False, preexec_fn=place, env=environment)  # noqa: PLW1509
    theirs.close()
    os.close(key)
    os.close(other)
    link = Link(ours)
    try:
        return _live(link, work)
    finally:
        ours.sendall(tpm.control(SHUTDOWN))
        child.wait(30)


def _live(link: Link, work: Path) -> float:
    """What the launch does with it, then what a guest does; the time between the two."""
    if not (work / "root" / STATE.lstrip("/") / "tpm2-00.permall").exists():
        with link.data() as data:
            if link.init() != 0:
                raise RuntimeError("CMD_INIT")
            furnish(lambda command, what: tpm.response(_exchange(data, command), what), link.init)
    elif link.init() != 0:
        raise RuntimeError("CMD_INIT of a TPM that is there")
    link.ask(tpm.control(tpm.CMD_STOP))
    time.sleep(0.2)
    boundary = time.time()
    with link.data() as data:
        link.init()
        for command in GUEST:
            answer = _exchange(data, command)
            # The second life finds its NV index defined.
            if int.from_bytes(answer[6:10], "big") not in (0, 0x14C):
                raise RuntimeError(f"{command.hex()}: {answer.hex()}")
    return boundary


def _exchange(data: socket.socket, command: bytes) -> bytes:
    data.sendall(command)
    answer = data.recv(4096)
    while len(answer) < int.from_bytes(answer[2:6], "big"):
        answer += data.recv(4096)
    return answer


def main() -> int:
    """Trace two lives, write one summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("/"), help="an unpacked newer swtpm")
    parser.add_argument("--prefix", default="", help="put before the summary's name, e.g. newer-")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    build(options.work / "root", options.root)
    whole = Summary()
    for life in ("first", "second"):
        log = options.work / f"{life}.log"
        boundary = run(options.work, log)
        one = summarise(log.read_text(errors="replace"), boundary, "swtpm")
        for mine, its in ((whole.startup, one.startup), (whole.always, one.always)):
            for call, variants in its.items():
                mine.setdefault(call, set()).update(variants)
    version = subprocess.run(
        ["chroot", options.work / "root", PROGRAM, "--version"], capture_output=True, text=True, check=True
    ).stdout
    about: dict[str, object] = {"name": f"{options.prefix}swtpm", "program": "swtpm"}
    about["version"] = version.split("version ")[1].split(",")[0]
    about["about"] = "a TPM made, used, ended, opened again"
    (options.out / f"{options.prefix}swtpm.json").write_text(to_json(whole, **about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
