"""The part of `systemd_guest.py` that root does: a VM by hand, as a unit of the system, with a TPM."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.systemd_guest_base import (
    MIB,
    TPM,
    UNIFIED,
    alive,
    casemate,
    cgroups_of_vms,
    check,
    hog_disk,
    inspect,
    joined,
    limits,
    network,
    reachable,
    read,
    run,
    say,
    verdicts,
    wait_until,
    write_spec,
)

DISK = """read_mib_s = 4
write_mib_s = 2
[[disk]]
path = "/srv/data.raw"
format = "raw"
mode = "persistent"
"""


def traffic(directory: str) -> None:
    """io.max of the device that /srv lies on, for whoever is in the VM's cgroup."""
    number = os.stat("/srv").st_dev
    wanted = f"{os.major(number)}:{os.minor(number)} rbps={4 * MIB} wbps={2 * MIB} riops=max wiops=max"
    check("root-io-read", read(directory, "io.max") == wanted, read(directory, "io.max"))
    began = time.monotonic()
    status = joined(directory, hog_disk)
    took_s = time.monotonic() - began
    check("root-io-enforced", status == 0 and took_s > 3, f"8 MiB at 2 MiB/s: {took_s:.1f} s, status {status}")


def root_vm() -> None:
    with open("/srv/data.raw", "wb") as file:
        file.truncate(16 * MIB)
    done = run("su", "-l", "root", "-c", f"casemate run -d {write_spec('/srv/a.toml', 'a', DISK)}")
    if not check("root-starts", done.returncode == 0, done.stderr):
        return
    document = inspect("a")
    say(
        "root: ",
        document.get("warnings"),
        {k: v for k, v in verdicts(document).items() if v not in {"pass", "not-applicable"}},
    )
    directories = document["cgroups"]
    time.sleep(15)
    sessions = run("loginctl", "--no-legend", "list-sessions").stdout
    check("root-survives-logout", alive(document["pid"]), sessions)
    traffic((directories or ["/nonexistent"])[0])
    limits("root", document)
    casemate("wait", "a")
    ended = inspect("a")
    check("root-end-told", "memory" in json.dumps(ended.get("exit")), ended.get("exit"))
    removed = casemate("rm", "a")
    gone = not any(Path(place).exists() for place in directories)
    check("root-cgroup-removed", removed.returncode == 0 and directories and gone, removed.stderr)


def unit_story() -> None:
    """A unit of the system: started, read, killed, restarted, stopped."""
    name = "casemate-web"
    made = casemate("create", write_spec("/srv/web.toml", "web", network(8080) + TPM))
    text = casemate("unit", "web")
    Path(f"/etc/systemd/system/{name}.service").write_text(text.stdout, encoding="utf-8")
    verified = run("systemd-analyze", "verify", f"/etc/systemd/system/{name}.service")
    check("unit-made", made.returncode == text.returncode == verified.returncode == 0, made.stderr + verified.stderr)
    run("systemctl", "daemon-reload")
    run("systemctl", "enable", name)
    started = run("systemctl", "start", name)
    journal = run("journalctl", "-u", name, "-o", "cat", "--no-pager").stdout
    if not check("unit-starts", started.returncode == 0, journal):
        return
    document = inspect("web")
    pid, status = document["pid"], run("systemctl", "status", name, "--no-pager", "-l").stdout
    say(
        "unit wall:",
        {k: v for k, v in verdicts(document).items() if v not in {"pass", "not-applicable"}},
        document["cgroups"],
    )
    check("unit-status", "active (running)" in status and str(pid) in status, status)
    check("unit-journal", "Started" in journal and "casemate" in journal.lower(), journal)
    check("unit-read-back", verdicts(document).get("proc.cgroup") == "pass" and document["state"] == "running")
    owner = run("systemctl", "show", "-P", "ControlGroup", name).stdout.strip()
    check("unit-network", reachable(8080), sorted(item["name"] for item in document["helpers"]))
    check("unit-owns-vm", read(f"/proc/{pid}", "cgroup").startswith(f"0::{owner}/"), read(f"/proc/{pid}", "cgroup"))
    run("systemctl", "kill", "--kill-whom=main", "-s", "KILL", name)
    check("unit-dies-with-main", wait_until(lambda: not alive(pid), 60))
    again = wait_until(lambda: run("systemctl", "is-active", name).stdout == "active\n", 300)
    second = inspect("web")["pid"]
    check("unit-restarts-after-failure", again and alive(second) and second != pid, f"{pid} then {second}")
    done = run("systemctl", "restart", name)
    third = inspect("web")["pid"]
    check("unit-restart", done.returncode == 0 and alive(third) and not alive(second), f"{second} then {third}")
    done = run("systemctl", "stop", name)
    result = run("systemctl", "show", "-P", "Result", name).stdout.strip()
    check("unit-stop", done.returncode == 0 and not alive(third) and result == "success", f"{result} {done.stderr}")
    left = [place for place in cgroups_of_vms() if "user.slice" not in place]
    check("unit-no-cgroup-left", not left and not Path(f"{UNIFIED}{owner}").exists(), left)
    check("unit-exit-read", inspect("web")["state"] == "exited", casemate("ps", "-a").stdout)


def filtered_start() -> None:
    """A unit that loads a system call filter: the read-back would be blind, and the VM is refused."""
    spec = write_spec("/srv/f.toml", "filtered")
    options = ("--wait", "--pipe", "--quiet", "-p", "RestrictRealtime=yes")
    done = run("systemd-run", *options, "casemate", "run", "-d", spec)
    check("filtered-refused", done.returncode in {3, 4, 5} and "casemate: error" in done.stderr, done.stderr)
    check("filtered-nothing-left", not run("pgrep", "-f", "guest=casemate-").stdout and not cgroups_of_vms())


def tpm_story() -> None:
    """A VM with a TPM: swtpm is confined by its wall; its label is that of whoever started the VM."""
    done = casemate("run", "-d", write_spec("/srv/tpm.toml", "tpm", TPM))
    if not check("tpm-starts", done.returncode == 0, done.stderr):
        return
    document = inspect("tpm")
    helper = next((item["pid"] for item in document["helpers"]), 0)
    labels = [read(f"/proc/{pid}", "attr/current") for pid in (document["pid"], helper)]
    check("tpm-labels", labels == [f"casemate-{document['id']} (enforce)", "unconfined"], labels)
    said = {name: verdict for name, verdict in verdicts(document).items() if name.startswith("tpm.")}
    check("tpm-read-back", said and set(said.values()) <= {"pass", "not-applicable"}, said)
    where = [read(f"/proc/{pid}", "cgroup") for pid in (document["pid"], helper)]
    check("tpm-same-cgroup", where[0] == where[1], where)
    casemate("rm", "--force", "tpm")
    check("tpm-gone", not alive(helper) and not cgroups_of_vms(), cgroups_of_vms())


STORIES: dict[str, Callable[[], None]] = {
    "root": root_vm,
    "unit": unit_story,
    "filtered": filtered_start,
    "tpm": tpm_story,
}
