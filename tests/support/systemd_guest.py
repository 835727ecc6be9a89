"""Runs as root inside the guest of `systemd_image.py`, at its first boot, after an orderly reboot of that
guest, and after a hard one.

One line per promise: ``sysd: PASS name | detail`` or ``sysd: FAIL name | detail``; ``sysd: done`` comes last, at the
last boot. The test on the host reads them. The VMs that it starts run a kernel of forty instructions.
"""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.support import systemd_guest_root, systemd_guest_user, systemd_guest_verity
from tests.support.systemd_guest_base import (
    BASE,
    casemate,
    cgroups_of_vms,
    check,
    inspect,
    run,
    say,
    wait_until,
    write_spec,
)

MARK = Path("/root/went-down")
# Emulation inside emulation on a busy host is slow by a factor of hundreds: the deadlines are for machines.
WRAPPER = f"""#!/usr/bin/python3
import sys
sys.path[:0] = ["{BASE}/src", "{BASE}/site"]
if sys.argv[1:2] and sys.argv[1] in ("run", "start", "prove"):
    import casemate.engine.launch, casemate.engine.start, casemate.engine.prove_collect, casemate.engine.swtpm
    import casemate.facts.qemu, casemate.jail.spawn
    casemate.engine.launch.STARTUP_DEADLINE_S = casemate.facts.qemu._TIMEOUT_S = 200.0
    casemate.engine.swtpm.DEADLINE_S = 200.0
    casemate.engine.start.LAUNCH_DEADLINE_S = 500.0
    casemate.engine.prove_collect.DEADLINE_S = 400.0
    casemate.jail.spawn.spawn.__kwdefaults__["deadline_s"] = 200.0
from casemate.cli.main import main
main()
"""


def reboot(hard: bool) -> None:
    """The next boot goes on. Hard: without a word to any process, as after a power cut that spared the disks."""
    MARK.write_text("hard" if hard else "orderly", encoding="ascii")
    os.sync()
    run("systemctl", "reboot", *(("--force", "--force") if hard else ()))
    time.sleep(600)


def before_reboots() -> None:
    done = casemate("run", "-d", write_spec("/srv/c.toml", "c"))
    check("before-reboot", done.returncode == 0, done.stderr)
    run("systemctl", "start", "casemate-web")


def told(name: str, words: str) -> None:
    """What this host says of the VM that ran when it went down, and that it starts again."""
    shown = casemate("ps", "-a")
    row = next((line for line in shown.stdout.splitlines() if re.search(r"\bc\b", line)), "")
    check(f"{name}-told", words in row, shown.stdout)
    done = casemate("start", "c")
    check(f"{name}-start", done.returncode == 0 and inspect("c")["state"] == "running", done.stderr)


def after_orderly_reboot() -> None:
    web = wait_until(lambda: run("systemctl", "is-active", "casemate-web").stdout == "active\n", 400)
    check("unit-starts-at-boot", web, run("journalctl", "-b", "-u", "casemate-web", "-o", "cat", "--no-pager").stdout)
    told("reboot", "exited (stopped)")  # at an orderly end systemd asks every process to stop


def after_hard_reboot() -> None:
    told("reset", "exited (host rebooted)")
    casemate("rm", "--force", "c")
    run("systemctl", "disable", "--now", "casemate-web")
    check("reset-no-cgroup-left", not cgroups_of_vms(), cgroups_of_vms())


def set_up() -> None:
    Path("/usr/bin/casemate").write_text(WRAPPER, encoding="ascii")
    os.chmod("/usr/bin/casemate", 0o755)
    sys.path[:0] = [f"{BASE}/src", f"{BASE}/site"]
    run("cp", f"{BASE}/tiny.elf", f"{BASE}/bios.img", "/srv/")
    mounted = run("mountpoint", "/var/lib/casemate")  # by /etc/fstab: an ext4 with fs-verity
    os.chmod("/var/lib/casemate", 0o700)
    run("rmdir", "/var/lib/casemate/lost+found")
    say("set up:", mounted.stdout, os.listdir("/var/lib/casemate"), run("uptime").stdout)


def story(name: str, tell: Callable[[], None]) -> None:
    began = time.monotonic()
    try:
        tell()
    except BaseException:
        check(f"{name}-story", False, traceback.format_exc())
    say(name, f"took {time.monotonic() - began:.0f} s")


def main() -> None:
    set_up()
    wanted = Path(f"{BASE}/stories").read_text().split()
    stories = {**systemd_guest_root.STORIES, **systemd_guest_verity.STORIES, **systemd_guest_user.STORIES}
    before = MARK.read_text(encoding="ascii") if MARK.exists() else ""
    if not before:
        for name, tell in stories.items():
            if name in wanted:
                story(name, tell)
        if "reboot" in wanted:
            story("before-reboots", before_reboots)
            reboot(hard=False)
    elif before == "orderly":
        story("after-orderly-reboot", after_orderly_reboot)
        reboot(hard=True)
    else:
        story("after-hard-reboot", after_hard_reboot)
    log = run("dmesg").stdout
    for line in [line for line in log.splitlines() if "DENIED" in line or "verity" in line.lower()][-40:]:
        say("kernel:", line)
    say("done")
    run("systemctl", "poweroff")


if __name__ == "__main__":
    main()
