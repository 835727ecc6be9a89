"""Runs as root inside the guest of `mac_image.py`: starts VMs under the guest's LSM and prints one line per promise.

``mac: PASS name | detail`` or ``mac: FAIL name | detail``; ``mac: done`` comes last. The test on the host reads them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

BASE = "/opt/casemate"
IMAGES = {"a": "/srv/images/a disk.raw", "b": "/srv/images/b.raw"}
SELINUX = Path("/sys/fs/selinux/enforce").exists()
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": f"{BASE}/src:{BASE}/site", "HOME": "/root"}
# Emulation inside emulation on a busy host is slow by a factor of hundreds: the deadlines are for machines.
PATIENT = """
import casemate.engine.launch, casemate.engine.prove_collect, casemate.facts.qemu, casemate.jail.spawn
casemate.engine.launch.STARTUP_DEADLINE_S = casemate.facts.qemu._TIMEOUT_S = 200.0
casemate.engine.prove_collect.DEADLINE_S = 400.0
casemate.jail.spawn.spawn.__kwdefaults__["deadline_s"] = 200.0
from casemate.cli.main import main
main()
"""


def say(*words: object) -> None:
    print("mac:", *words, flush=True)


def check(name: str, holds: bool, detail: object = "") -> None:
    say("PASS" if holds else "FAIL", name, "|", detail)


def casemate(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = ("-c", PATIENT) if arguments[0] in {"run", "start", "prove"} else ("-m", "casemate.cli.main")
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=500, check=False)


def label_of(pid: object) -> str:
    return Path(f"/proc/{pid}/attr/current").read_text(encoding="ascii").strip("\0\n")


def file_label(path: str) -> str:
    try:
        return os.getxattr(path, "security.selinux").decode().rstrip("\0")
    except OSError:
        return ""


def under(label: str, attempt: Callable[[str, int], object]) -> dict[str, str]:
    """What a process that takes ``label`` gets from each image, which it had open before."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        found = {}
        attribute = os.open(f"/proc/thread-self/attr/{'' if SELINUX else 'apparmor/'}current", os.O_WRONLY)
        opened = {name: os.open(path, os.O_RDWR) for name, path in IMAGES.items()}
        os.write(attribute, (label if SELINUX else f"changeprofile {label.split()[0]}").encode())
        for name, path in IMAGES.items():
            try:
                attempt(path, opened[name])
                found[name] = "allowed"
            except OSError as fault:
                found[name] = fault.strerror or ""
        os.write(write_end, json.dumps(found).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    answers: dict[str, str] = json.loads(data or b"{}")
    return answers


def labels(wanted: dict[str, dict[str, object]]) -> None:
    processes = {name: label_of(document["pid"]) for name, document in wanted.items()}
    check("labels-differ", processes["a"] != processes["b"], processes)
    judged = {name: {e["control"]: e["verdict"] for e in document["wall"]} for name, document in wanted.items()}  # type: ignore[attr-defined]
    check(
        "read-back", all(found["proc.mac-label"] == "pass" for found in judged.values()), judged["a"]["proc.mac-label"]
    )
    if SELINUX:
        files = {name: file_label(path) for name, path in IMAGES.items()}
        levels = {name: label.split(":", 3)[3] for name, label in processes.items()}
        pairs = all("," in levels[name] and files[name].split(":", 3)[3] == levels[name] for name in IMAGES)
        check("same-pair", pairs, files)
        check("unique", all(found["proc.mcs-unique"] == "pass" for found in judged.values()))
        # Descriptors that were opened before: nothing but the categories can tell the two apart.
        answers = under(processes["a"], lambda _path, descriptor: os.pread(descriptor, 512, 0))
    else:
        check("enforced", all(label.endswith("(enforce)") for label in processes.values()), processes)
        answers = under(processes["a"], lambda path, _descriptor: os.open(path, os.O_RDWR))
    check("own-image", answers.get("a") == "allowed", answers)
    check("other-image-refused", answers.get("b") == "Permission denied", answers)


def tpm(before: str) -> None:
    """A VM with a TPM, whose firmware speaks to it: swtpm keeps the label of whoever started the VM."""
    spec = Path("/srv/tpm.toml")
    spec.write_text(
        'name = "tpm"\n[machine]\ntype = "q35"\nmemory_mib = 64\nvcpus = 1\naccel = "tcg"\n'
        f'[boot]\nfirmware = "bios"\n[tpm]\nenabled = true\n'
        f'[[disk]]\npath = "{BASE}/bios.img"\nformat = "raw"\nmode = "read-only"\n',
        encoding="ascii",
    )
    done = casemate("run", "-d", str(spec))
    check("tpm-starts", done.returncode == 0, done.stderr[-1000:])
    document = json.loads(casemate("inspect", "tpm", "--json").stdout)
    helper = next(item["pid"] for item in document["helpers"])
    deadline = time.monotonic() + 300
    while "bios-guest: up" not in (console := casemate("logs", "tpm").stdout) and time.monotonic() < deadline:
        time.sleep(1)
    check("tpm-boots", "bios-guest: up" in console, console[-500:])
    judged = {entry["control"]: entry["verdict"] for entry in document["wall"] if entry["control"].startswith("tpm.")}
    check("tpm-read-back", bool(judged) and set(judged.values()) == {"pass"}, judged)
    found = label_of(helper)
    check("tpm-label", found == before and found != label_of(document["pid"]), found)
    log = subprocess.run(["/bin/dmesg"], capture_output=True, text=True, check=False).stdout
    denied = [line for line in log.splitlines() if "swtpm" in line and "denied" in line.lower()]
    check("tpm-nothing-denied", not denied, denied[:3])
    casemate("rm", "--force", "tpm")


def prove() -> None:
    done = casemate("prove", "--quick", "--json", "a")
    try:
        document = json.loads(done.stdout)
    except ValueError:
        check("prove", False, done.stderr[-1000:])
        return
    check("prove", done.returncode == 0 and not document["unexpected"], document["unexpected"])
    check("prove-names-lsm", ("selinux" if SELINUX else "apparmor") in document["lsm"], document["notes"])


def ends(wanted: dict[str, dict[str, object]], before: dict[str, str]) -> None:
    emulator = wanted["a"]["pid"]
    supervisor = int(Path(f"/proc/{emulator}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[1])
    os.kill(supervisor, 9)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{emulator}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    check("dies-with-supervisor", not Path(f"/proc/{emulator}").exists())
    casemate("kill", "b")
    casemate("wait", "b")
    casemate("ps", "-a")
    after = {name: file_label(path) for name, path in IMAGES.items()}
    check("labels-restored", after == before, after)
    if not SELINUX:
        with open("/sys/kernel/security/apparmor/profiles", encoding="ascii") as file:
            left = [line for line in file if "casemate" in line]
        check("profiles-removed", not left, left)


def refused() -> None:
    """An LSM that cannot label refuses the launch."""
    if SELINUX:
        Path("/sys/fs/selinux/enforce").write_text("0", encoding="ascii")
    else:
        Path("/sbin/apparmor_parser").rename("/sbin/apparmor_parser.away")
    done = casemate("start", "b")
    check("refused-without-label", done.returncode == 4 and "proc.mac-label" in done.stderr, done.stderr[-300:])


def main() -> None:
    say(
        "own label",
        label_of("self"),
        "| security modules",
        Path("/sys/kernel/security/lsm").read_text(encoding="ascii"),
    )
    os.makedirs("/var/cache/casemate", mode=0o700, exist_ok=True)
    subprocess.run(["/bin/cp", "-r", f"{BASE}/cache/guest", "/var/cache/casemate/"], check=True)
    os.makedirs("/srv/images", exist_ok=True)
    for path in IMAGES.values():
        with open(path, "wb") as file:
            file.truncate(16 << 20)
    before = {name: file_label(path) for name, path in IMAGES.items()}
    wanted = {}
    for name, path in IMAGES.items():
        disk = f"{path}:raw,persistent"
        done = casemate("run", "-d", "--name", name, "--memory-mib", "96", "--accel", "tcg", "--disk", disk, "builtin")
        check(f"starts-{name}", done.returncode == 0, done.stderr[-1000:])
        wanted[name] = json.loads(casemate("inspect", name, "--json").stdout)
    labels(wanted)
    tpm(label_of("self"))
    prove()
    ends(wanted, before)
    refused()


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        check("script", False)
    log = subprocess.run(["/bin/dmesg"], capture_output=True, text=True, check=False).stdout
    for line in [line for line in log.splitlines() if "denied" in line or "DENIED" in line][-40:]:
        say("kernel:", line)
    say("done")
