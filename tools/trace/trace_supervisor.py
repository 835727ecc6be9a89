"""Trace the supervisor: Casemate's own, with a fake emulator, from the moment it has loaded its filter.

    python tools/trace/trace_supervisor.py --work DIR --out tests/data/traces [--confirm]

The filter that it loads while traced allows everything; with --confirm it is the compiled profile.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from strace_summary import PATH_CALLS, Summary, parse_log, relevant_args, to_json

from casemate.bpf.instruction import RET_K, Instruction, encode
from casemate.jail.compile import compile_profile
from casemate.jail.profiles import supervisor_profile

SOURCE = Path(__file__).resolve().parents[2] / "src"
ALLOW_EVERYTHING = encode((Instruction(RET_K, 0, 0, 0x7FFF0000),))


class Control:
    """A client of the control socket."""

    def __init__(self, runtime: Path) -> None:
        end = time.monotonic() + 20
        while True:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self.socket.connect(str(runtime / "control.sock"))
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        self.socket.settimeout(15)

    def ask(self, **request: object) -> bytes:
        """One request, one answer."""
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        return self.socket.recv(65536)


def drive_stop(runtime: Path, _pid: int) -> None:
    """Every request, a console client, a bad client, then stop."""
    for request in ("status", "pause", "unpause", "stats", "nonsense"):
        print(request, Control(runtime).ask(do=request)[:100])
    attached = Control(runtime)
    attached.ask(do="attach")
    attached.socket.sendall(b"typed\n")
    bad = Control(runtime)
    bad.socket.sendall(b"]" * 10000)
    with contextlib.suppress(OSError):
        bad.socket.recv(10)
    crowd = [Control(runtime) for _ in range(20)]
    time.sleep(1.5)
    for client in (*crowd, attached):
        client.socket.close()
    time.sleep(1)
    print(Control(runtime).ask(do="status"))
    waiting = Control(runtime)
    waiting.ask(do="wait")
    print(Control(runtime).ask(do="stop", grace_s=3))
    waiting.socket.recv(10)


def drive_kill(runtime: Path, _pid: int) -> None:
    """Kill."""
    time.sleep(0.5)
    Control(runtime).ask(do="kill")


def drive_sigterm(runtime: Path, pid: int) -> None:
    """SIGTERM: the guest is asked, does not answer, is killed."""
    Control(runtime).ask(do="status")
    os.kill(pid, signal.SIGTERM)


def drive_nothing(_runtime: Path, _pid: int) -> None:
    """It ends by itself."""


Run = tuple[str, str, Callable[[Path, int], None], dict[str, object]]
"""Name, behaviour of the fake emulator, what the driver does, changes to the configuration."""

RUNS: tuple[Run, ...] = (
    ("stop", "flood", drive_stop, {}),
    ("remove", "quiet", drive_kill, {"remove_on_exit": True}),
    ("sigterm", "stubborn", drive_sigterm, {}),
    ("panic", "panic", drive_nothing, {}),
    ("garbage", "garbage", drive_nothing, {}),
    ("abort", "abort", drive_nothing, {}),
    ("time-out", "stubborn", drive_nothing, {"timeout_s": 2}),
)


def run_one(run: Run, work: Path, program: bytes) -> Path:
    """One life of a supervisor; returns strace's log."""
    name, behaviour, drive, extra = run
    base = work / f"supervisor-{name}"
    shutil.rmtree(base, ignore_errors=True)
    runtime, data, cgroup = base / "vms/one", base / "data/vms/one", base / "cgroup/one"
    for directory in (runtime, data, cgroup):
        directory.mkdir(parents=True)
    for path in (runtime / "lock", data / "run.json", data / "definition.json"):
        path.write_text("{}")
    if name == "time-out":
        (cgroup / "busy").write_text("so that rmdir fails, as while processes are dying")
    state = {"health": [], "cgroups": [str(cgroup)], "started_at": "now", "uid": 0, "accel": "tcg", "phase": "running"}
    config = {
        "runtime": str(runtime), "data": str(data), "accel": "tcg", "console_log_max_bytes": 16384, "timeout_s": None,
        "runtime_check_s": 0.2,
        "stop_grace_s": 1.0, "remove_on_exit": False, "state": state, "early_log": "",
        "writable": [str(runtime), str(data)], "lock_fds": [],
        "seccomp_program": base64.b64encode(program).decode(), "behaviour": behaviour,
    } | extra  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    log = work / f"supervisor-{name}.log"
    strace = ["strace", "-f", "-qq", "-ttt", "-X", "raw", "-s", "200", "-e", "signal=none", "-o", str(log)]
    strace += ["-e", "raw=!" + ",".join(PATH_CALLS)]
    launcher = str(Path(__file__).with_name("supervisor_launcher.py"))
    process = subprocess.Popen([*strace, sys.executable, launcher, str(SOURCE), str(base / "config.json")])
    time.sleep(1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    drive(runtime, int(children[0]) if children else 0)
    try:
        status = process.wait(60)
    except subprocess.TimeoutExpired:
        os.kill(int(children[0]), signal.SIGKILL)
        raise
    leftovers = [str(path) for path in base.rglob("*") if path.name != "config.json"]
    print(f"{name}: status {status}, left: {' '.join(leftovers)}")
    if status:
        raise RuntimeError(f"{name}: status {status}")
    return log


def main() -> int:
    """Trace all runs into one summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--confirm", action="store_true", help="under the compiled profile; writes nothing")
    options = parser.parse_args()
    program = compile_profile(supervisor_profile(), platform.machine()) if options.confirm else ALLOW_EVERYTHING
    summary = Summary()
    for run in RUNS:
        log = run_one(run, options.work, program)
        confined = 0
        for call in parse_log(log.read_text(errors="replace")):
            if call.pid == confined:
                summary.always.setdefault(call.name, set()).add(relevant_args(call))
                summary.notes.setdefault(call.name, set()).add(" ".join(call.args)[:60] + " = " + call.result[:30])
            elif call.name == "seccomp" and not confined:
                confined = call.pid
    if options.confirm:
        return 0
    version = platform.python_version()
    about: dict[str, object] = {"name": "supervisor", "program": "supervisor", "version": version}
    about["about"] = ", ".join(name for name, *_ in RUNS)
    (options.out / "supervisor.json").write_text(to_json(summary, **about))
    notes = "".join(f"{call}: {note}\n" for call in sorted(summary.notes) for note in sorted(summary.notes[call])[:12])
    (options.work / "supervisor.notes").write_text(notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
