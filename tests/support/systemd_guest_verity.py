"""The part of `systemd_guest.py` about fs-verity: a sealed image of the store, a byte changed on the device below."""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
from collections.abc import Callable
from pathlib import Path

from tests.support.systemd_guest_base import (
    alive,
    casemate,
    check,
    inspect,
    say,
    wait_until,
    write_spec,
)


def verity_story() -> None:
    from casemate.sys.fsverity import fs_ioc_measure_verity

    added = casemate("image", "add", "/srv/bios.img", "--name", "sealed", "--format", "raw")
    digest = added.stdout.split()[-1] if added.stdout.split() else ""
    place = next(Path("/var/lib/casemate/images/images").glob("*/image"), Path("/nonexistent"))
    kept = json.loads((place.parent / "about.json").read_text()) if place.exists() else {}
    with place.open("rb") as file:
        measured = fs_ioc_measure_verity(file.fileno())
    noted = kept.get("verity_digest", "")
    check(
        "verity-enabled",
        added.returncode == 0 and measured.startswith("sha256:") and measured == noted,
        [digest, measured, added.stderr],
    )
    try:
        os.chmod(place, 0o600)
        writable = os.open(place, os.O_RDWR)
        os.close(writable)
        check("verity-immutable", False, "opened for writing")
    except OSError as fault:
        check("verity-immutable", fault.errno == 1, fault)
    os.chmod(place, 0o400)
    unsigned = casemate("run", "-d", "--name", "unsigned", "--disk", "image:sealed", "builtin")
    say("unsigned:", unsigned.returncode, unsigned.stderr[-300:])
    signed = casemate("image", "sign", "sealed")
    more = '[[disk]]\nimage = "sealed"\nmode = "read-only"\n'
    spec = write_spec("/srv/sealed.toml", "sealed", more)
    text = (
        Path(spec)
        .read_text()
        .replace('kernel = "/srv/tiny.elf"', 'firmware = "bios"')
        .replace('accel = "tcg"', 'accel = "tcg"\ntype = "q35"')
    )
    Path(spec).write_text(text)
    done = casemate("run", "-d", spec)
    if not check("verity-runs", signed.returncode == done.returncode == 0, signed.stderr + done.stderr):
        return
    entries = {entry["control"]: entry for entry in inspect("sealed")["wall"]}
    told = [entries.get(name, {}) for name in ("img.hash", "img.enforced")]
    check("verity-told", all(entry.get("verdict") == "pass" for entry in told) and "verity" in json.dumps(told), told)
    up = wait_until(lambda: "bios-guest: up" in casemate("logs", "sealed").stdout, 240)
    check("verity-boots", up, casemate("logs", "sealed").stdout)
    casemate("kill", "sealed")
    casemate("rm", "sealed")
    corrupt(place)
    try:
        with place.open("rb") as file:
            file.read(4096)
        check("verity-read-error", False, "the changed byte was read")
    except OSError as fault:
        check("verity-read-error", fault.errno == 5, fault)
    done = casemate("run", "-d", spec)
    if done.returncode == 0:
        wait_until(lambda: not alive(inspect("sealed")["pid"]), 90)
        log = casemate("logs", "sealed").stdout
        check("verity-changed-not-run", "bios-guest: up" not in log, log)
        casemate("rm", "--force", "sealed")
    else:
        check("verity-changed-not-run", "Traceback" not in done.stderr, done.stderr)
    verified = casemate("image", "verify", "sealed")
    check(
        "verity-verify-told",
        verified.returncode == 1 and "Traceback" not in verified.stderr,
        [verified.returncode, verified.stdout, verified.stderr],
    )
    other = casemate("image", "rm", "--force", "sealed")
    say("image rm:", other.returncode, other.stderr[-300:])


def corrupt(place: Path) -> None:
    """Change one byte of the file's first block on the device below its file system, behind the kernel's back."""
    with place.open("rb") as file:
        block = ctypes.c_int(0)
        fcntl.ioctl(file.fileno(), 1, block)  # FIBMAP
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    device = os.open("/dev/vdc", os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    os.preadv(device, [page], block.value * 4096)
    page[600] ^= 1
    os.pwritev(device, [page], block.value * 4096)
    os.close(device)
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")


STORIES: dict[str, Callable[[], None]] = {"verity": verity_story}
