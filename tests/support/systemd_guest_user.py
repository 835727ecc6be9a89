"""The part of `systemd_guest.py` that an ordinary user does: in login sessions, with and without a delegated cgroup."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.systemd_guest_base import (
    BASE,
    TPM,
    UNIFIED,
    USER,
    alive,
    as_user,
    cgroups_of_vms,
    check,
    inspect,
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

DELEGATED = "systemd-run --user --scope --quiet -p Delegate=yes"
UNIT = "casemate-uweb.service"
GONE_S = 90


def vm_cgroups() -> list[str]:
    return [place for place in cgroups_of_vms() if "user.slice" in place]


def prepare() -> None:
    run("apparmor_parser", "--replace", f"{BASE}/src/casemate/data/casemate-emulator.apparmor")


def with_delegation() -> None:
    prepare()
    spec = write_spec("/srv/u1.toml", "u1")
    done = as_user(
        "loginctl --no-pager show-session $XDG_SESSION_ID -p Type -p Class -p Scope;"
        f" {DELEGATED} casemate run -d {spec}"
    )
    if not check("user-starts", done.returncode == 0, done.stdout + done.stderr):
        return
    document = inspect("u1", as_user)
    say(
        "user wall:",
        {k: v for k, v in verdicts(document).items() if v not in {"pass", "not-applicable"}},
        document["cgroups"],
    )
    check(
        "user-mac",
        verdicts(document).get("proc.mac-label") in {"pass", "not-applicable"},
        read(f"/proc/{document['pid']}", "attr/current"),
    )
    limits("user", document)
    as_user("casemate wait u1")
    removed = as_user("casemate rm u1")
    check("user-cgroup-removed", removed.returncode == 0 and wait_until(lambda: not vm_cgroups(), 20), vm_cgroups())


def without_delegation() -> None:
    prepare()
    spec = write_spec("/srv/u2.toml", "u2")
    done = as_user(
        f"casemate run -d {spec}; casemate inspect u2 --json; casemate doctor | grep -i -A2 cgroup;"
        " casemate rm --force u2"
    )
    check("plain-starts", done.returncode == 0 and "rlimits only" in done.stderr, done.stderr)
    wall = done.stdout
    at = wall.find('"proc.cgroup"')
    check("plain-fails-openly", at > 0 and '"verdict": "pass"' not in wall[at : at + 200], wall[at : at + 600])
    check("plain-doctor", "delegate" in wall[-600:], wall[-600:])
    check("plain-nothing-left", not vm_cgroups(), vm_cgroups())


def user_unit() -> None:
    """A unit of the user's own manager: it outlives the login that started it, for as long as somebody lingers."""
    prepare()
    spec = write_spec("/srv/uweb.toml", "uweb", network(8081) + TPM)
    run("loginctl", "enable-linger", USER)
    made = as_user(
        f"mkdir -p ~/.config/systemd/user && casemate create {spec}"
        f" && casemate unit uweb > ~/.config/systemd/user/{UNIT}"
        f" && systemctl --user daemon-reload && systemctl --user start {UNIT}; echo status $?;"
        f" systemctl --user status {UNIT} --no-pager -l; journalctl --user -u {UNIT} --no-pager -o cat"
    )
    if not check(
        "user-unit-starts", "status 0\n" in made.stdout and "active (running)" in made.stdout, made.stdout + made.stderr
    ):
        return
    document = inspect("uweb", as_user)
    pid = document["pid"]
    check("user-unit-status", str(pid) in made.stdout, made.stdout)
    check("user-unit-read-back", verdicts(document).get("proc.cgroup") == "pass", document["cgroups"])
    check("user-unit-network", reachable(8081), sorted(item["name"] for item in document["helpers"]))
    time.sleep(15)  # logind waits ten seconds before it ends a user's manager that nobody needs
    sessions = run("loginctl", "--no-legend", "list-sessions").stdout
    check("user-unit-survives-logout", alive(pid) and USER not in sessions, sessions)
    done = as_user(f"systemctl --user restart {UNIT}; echo status $?")
    second = inspect("uweb", as_user)["pid"]
    check(
        "user-unit-restart",
        "status 0" in done.stdout and alive(second) and second != pid,
        f"{pid} then {second} {done.stderr}",
    )
    done = as_user(f"systemctl --user stop {UNIT}; echo status $?; systemctl --user show -P Result {UNIT}")
    check("user-unit-stop", "status 0\nsuccess" in done.stdout and not alive(second), done.stdout + done.stderr)
    check("user-unit-no-cgroup-left", wait_until(lambda: not vm_cgroups(), 20), vm_cgroups())
    as_user(f"systemctl --user start {UNIT}")
    third = inspect("uweb", as_user)["pid"]
    run("loginctl", "disable-linger", USER)
    check("user-unit-ends-with-manager", alive(third) and wait_until(lambda: not alive(third), GONE_S), third)
    check(
        "user-manager-no-cgroup-left",
        wait_until(lambda: not list(UNIFIED.glob("user.slice/user-1000.slice/*")), 60),
        vm_cgroups(),
    )
    check("user-unit-after-logout", inspect("uweb", as_user)["state"] == "exited", as_user("casemate ps -a").stdout)
    as_user("casemate rm uweb")


def detached_logout() -> None:
    """``run -d`` without a unit and without lingering: XDG_RUNTIME_DIR goes with the last session."""
    prepare()
    run("loginctl", "disable-linger", USER)
    spec = write_spec("/srv/u3.toml", "u3")
    done = as_user(f"{DELEGATED} casemate run -d {spec}; casemate inspect u3 --json | grep -m1 '\"pid\"'")
    pid = "".join(letter for letter in done.stdout.partition('"pid"')[2] if letter.isdigit())
    uid = os.stat(f"/home/{USER}").st_uid
    gone = wait_until(lambda: not Path(f"/run/user/{uid}").exists(), GONE_S)
    ended = wait_until(lambda: not alive(pid), 60)
    check(
        "logout-ends-detached",
        pid and gone and ended,
        f"pid {pid}, runtime directory gone: {gone}, ended: {ended} {done.stderr}",
    )
    shown = as_user("casemate ps -a")
    check("logout-told", "exited" in shown.stdout, shown.stdout + shown.stderr)
    check(
        "logout-nothing-left",
        not vm_cgroups() and not run("pgrep", "-u", USER, "-f", "casemate|qemu").stdout,
        vm_cgroups(),
    )
    as_user("casemate rm u3")


STORIES: dict[str, Callable[[], None]] = {
    "user": with_delegation,
    "plain": without_delegation,
    "user-unit": user_unit,
    "logout": detached_logout,
}
