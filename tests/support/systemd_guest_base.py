"""What the scripts inside the guest of `systemd_image.py` share: commands, verdicts, and limits tried for real."""

from __future__ import annotations

import json
import mmap
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BASE = "/opt/casemate"
USER = "ada"
UNIFIED = Path("/sys/fs/cgroup")
MIB = 1 << 20
LIMITS = {"memory_mib": 64, "overhead_mib": 256, "cpu_percent": 100, "pids": 80}
Answer = subprocess.CompletedProcess[str]


def say(*words: object) -> None:
    print("sysd:", *words, flush=True)


def check(name: str, holds: object, detail: object = "") -> bool:
    say("PASS" if holds else "FAIL", name, "|", str(detail).replace("\n", " / ")[-1500:])
    return bool(holds)


def run(*command: str, timeout_s: float = 600) -> Answer:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def casemate(*words: str) -> Answer:
    return run("casemate", *words)


def as_user(script: str) -> Answer:
    """In a login session of its own, which ends with it."""
    return run("su", "-l", USER, "-c", script)


def inspect(name: str, ask: Callable[..., Answer] = casemate) -> dict[str, Any]:
    done = ask("inspect", name, "--json") if ask is casemate else ask(f"casemate inspect {name} --json")
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        say("inspect", name, done.returncode, done.stderr[-500:])
        return {"cgroups": [], "wall": [], "pid": 0, "state": "", "reason": ""}
    return found


def verdicts(document: dict[str, Any]) -> dict[str, str]:
    return {entry["control"]: entry["verdict"] for entry in document["wall"]}


def cgroups_of_vms() -> list[str]:
    """Every directory below the unified hierarchy that is named after a VM's id, or by us."""
    found = [place for place, _, _ in os.walk(UNIFIED) if re.fullmatch(r"[0-9a-f]{16}", os.path.basename(place))]
    return [*found, *(place for place, _, _ in os.walk(UNIFIED) if os.path.basename(place) == "casemate-supervisor")]


def wait_until(holds: Callable[[], object], deadline_s: float = 120) -> bool:
    end = time.monotonic() + deadline_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


def alive(pid: object) -> bool:
    return bool(pid) and Path(f"/proc/{pid}").exists()


TPM = "[tpm]\nenabled = true\n"


def network(port: int) -> str:
    """A network through passt, with a port of the guest published."""
    return f'[network]\nmode = "user"\negress = "none"\npublish = ["{port}:80"]\n'


def reachable(port: int) -> bool:
    """Whether somebody takes connections at the published port; the guest has no network driver and says nothing."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=20).close()
    except OSError:
        return False
    return True


def write_spec(path: str, name: str, more: str = "") -> str:
    text = f"""name = "{name}"
[machine]
memory_mib = {LIMITS["memory_mib"]}
vcpus = 1
accel = "tcg"
[boot]
kernel = "/srv/tiny.elf"
[limits]
cpu_percent = {LIMITS["cpu_percent"]}
overhead_mib = {LIMITS["overhead_mib"]}
pids = {LIMITS["pids"]}
{more}"""
    Path(path).write_text(text, encoding="ascii")
    os.chmod(path, 0o644)
    return path


# ---- limits, tried by processes of ours in the VM's own cgroup -----------------------------------------------------


def read(directory: str, name: str) -> str:
    try:
        return (Path(directory) / name).read_text(encoding="ascii").strip()
    except OSError as fault:
        return str(fault)


def counted(directory: str, file: str, key: str) -> int:
    return int(dict(line.split() for line in read(directory, file).splitlines() if len(line.split()) == 2).get(key, -1))


def joined(directory: str, action: Callable[[], int]) -> int:
    """The exit status of a child that enters the cgroup and does ``action``; negative: the signal that killed it."""
    child = os.fork()
    if child == 0:
        (Path(directory) / "cgroup.procs").write_text("0", encoding="ascii")
        os._exit(action())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def hog_time() -> int:
    end = time.monotonic() + 4
    other = os.fork()
    while time.monotonic() < end:
        pass
    if other == 0:
        os._exit(0)
    os.wait()
    return 0


def hog_pids() -> int:
    count = 0
    children = []
    try:
        while count < 500:
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            children.append(child)
            count += 1
    except OSError:
        pass
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return min(count, 255)


def hog_memory() -> int:
    kept = []
    for _ in range(1024):
        block = mmap.mmap(-1, MIB)
        block.write(b"\1" * MIB)
        kept.append(block)
    return 0


def hog_disk() -> int:
    block = mmap.mmap(-1, MIB)
    file = os.open("/srv/hog", os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
    for index in range(8):
        os.pwrite(file, block, index * MIB)
    return 0


def limits(prefix: str, document: dict[str, Any]) -> None:
    """Read back, in force before the first instruction, enforced; ends the VM by its own memory limit."""
    directory = (document["cgroups"] or ["/nonexistent"])[0]
    pid = document["pid"]
    names = ("memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "pids.max")
    found = {name: read(directory, name) for name in names}
    memory = (LIMITS["memory_mib"] + LIMITS["overhead_mib"]) * MIB
    right = found["pids.max"] == str(LIMITS["pids"]) and found["cpu.max"] == "100000 100000"
    right = right and found["memory.oom.group"] == "1" and found["memory.max"].isdigit()
    check(f"{prefix}-limits-read", right and memory <= int(found["memory.max"]) <= memory + 16 * MIB, found)
    where = read(f"/proc/{pid}", "cgroup")
    check(f"{prefix}-in-cgroup", directory.startswith("/sys/fs/cgroup/") and f"0::{directory[14:]}" == where, where)
    # A process that was moved in later has used time that its cgroup was not charged for.
    stat = read(f"/proc/{pid}", "stat").rpartition(")")[2].split()
    used_us = (int(stat[11]) + int(stat[12])) * 1_000_000 // os.sysconf("SC_CLK_TCK") if len(stat) > 12 else -1
    charged_us = counted(directory, "cpu.stat", "usage_usec")
    check(
        f"{prefix}-born-there", 0 < used_us <= charged_us + 20_000, f"used {used_us} charged {charged_us} microseconds"
    )
    said = verdicts(document)
    check(f"{prefix}-read-back", said.get("proc.cgroup") == "pass", said.get("proc.cgroup"))
    if not Path(directory).is_dir():
        return
    before = counted(directory, "cpu.stat", "nr_throttled")
    joined(directory, hog_time)
    after = counted(directory, "cpu.stat", "nr_throttled")
    check(f"{prefix}-cpu-enforced", after > before, f"throttled {before} then {after} times")
    running = int(read(directory, "pids.current"))
    got = joined(directory, hog_pids)
    check(f"{prefix}-pids-enforced", 0 < got < LIMITS["pids"], f"{got} more children beside {running} tasks")
    ended = joined(directory, hog_memory)
    check(f"{prefix}-memory-enforced", ended == -signal.SIGKILL, f"status {ended}")
    check(f"{prefix}-dies-of-memory", wait_until(lambda: not alive(pid), 30))
