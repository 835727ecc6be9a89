"""Trace Dissect's Python while it reads an image under `reader/dissect_reader`, in a root without /proc, /sys and /etc.

    python tools/trace/trace_reader.py --work DIR --out tests/data/traces IMAGE[:FORMAT]...

As in `cell/other.py`; ``target-fs`` must be on the PATH. The boundary between the phases is the last of the calls that
ld.so and glibc make once. Needs root (chroot) and strace; the machine's network is not touched.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from qemu_session import USER_ID
from strace_summary import PATH_CALLS, Summary, parse_log, summarise, to_json

from casemate.cell import other
from casemate.cell.session import Session
from casemate.errors import CasemateError
from casemate.jail.policy import BindFile, Identity, IdentityMode

ONCE = frozenset({"access", "set_tid_address", "set_robust_list", "rseq", "arch_prctl"})
ENTER = """
import ctypes, os, sys
libc, (root, uid, *words) = ctypes.CDLL(None, use_errno=True), sys.argv[1:]
os.chroot(root); os.chdir("/")
os.setgroups([]); os.setresgid(int(uid), int(uid), int(uid)); os.setresuid(int(uid), int(uid), int(uid))
libc.prctl(38, 1, 0, 0, 0)
os.execve(words[0], words, {"LC_ALL": "C.UTF-8"})
"""


def trace(work: Path, image: Path, image_format: str) -> tuple[Summary, str]:
    """One reading of everything that can be read; the summary and the interpreter's name."""
    python, site = other.find_dissect()
    modules = other._list_modules(python, site)
    who = Identity(USER_ID, USER_ID, IdentityMode.ROOT)
    wall = other.reader_wall(who, modules, image_format, site)
    root = work / "root"
    shutil.rmtree(root, ignore_errors=True)
    for entry in wall.root:
        if isinstance(entry, BindFile):
            target = root / entry.target.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(entry.source, target)
    (root / "dev").mkdir()
    for name, minor in (("null", 3), ("urandom", 9)):
        os.mknod(root / "dev" / name, 0o20666, os.makedev(1, minor))
    log = work / "strace.log"
    ours, theirs = socket.socketpair()
    disk = os.open(image, os.O_RDONLY)

    def place() -> None:
        high = os.dup(theirs.fileno()), os.dup(disk)
        os.dup2(high[1], 3)
        os.dup2(high[0], 4)

    command = [
        *("strace", "-f", "-qq", "-ttt", "-X", "raw", "-e", "signal=none", "-e", f"raw=!{','.join(PATH_CALLS)}"),
        *("-e", "inject=socket:error=ENOSYS", "-e", "inject=epoll_create1:error=ENOSYS", "-o", str(log)),
        *(sys.executable, "-c", ENTER, str(root), str(USER_ID), *wall.argv),
    ]
    environment = {"PATH": os.environ["PATH"]}
    child = subprocess.Popen(command, close_fds=False, preexec_fn=place, env=environment)  # noqa: PLW1509
    theirs.close()
    os.close(disk)
    session = Session(ours, silence_max_s=120)
    session.wait_for_hello()
    volumes = other.OtherVolumes(session)
    for volume in volumes.all():
        if not volume.readable:
            continue
        for path in (b"/etc/content", b"/etc/os-release", b"/missing"):
            try:
                b"".join(session.read(volume.name, path, 0, 1 << 20))
            except CasemateError as error:
                print(volume.name, error.what)
        print(volume.name, sum(1 for _ in session.walk(volume.name, b"/", 1 << 20, 1 << 20)))
    ours.close()
    child.wait(60)
    text = log.read_text(errors="replace")
    name = Path(wall.argv[0]).name
    begin = next(call.time for call in parse_log(text) if call.name == "execve" and name in call.args[0])
    boundary = max(call.time for call in parse_log(text) if call.name in ONCE and call.time >= begin) + 1e-6
    return summarise(text, boundary, name), name


def main() -> int:
    """Trace all, write one summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("images", nargs="+", metavar="IMAGE[:FORMAT]")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    whole, name = Summary(), ""
    for word in options.images:
        path, _, image_format = word.partition(":")
        one, name = trace(options.work, Path(path), image_format or "raw")
        for mine, its in ((whole.startup, one.startup), (whole.always, one.always)):
            for call, variants in its.items():
                mine.setdefault(call, set()).update(variants)
    about: dict[str, object] = {"name": "reader", "program": "reader", "version": name}
    about["about"] = "dissect.target: ext, xfs, btrfs, fat, exfat and ntfs in raw and qcow2, walked and read"
    (options.out / "reader.json").write_text(to_json(whole, **about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
