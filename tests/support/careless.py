"""A bare QEMU as nobody should start one: root, default board, user network, a monitor on a TCP port."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

QEMU = "/usr/bin/qemu-system-x86_64"
DEADLINE_S = 20.0

FAILS = frozenset(
    """proc.caps proc.no-new-privs proc.seccomp-on proc.seccomp-strength proc.seccomp-arch proc.qemu-sandbox proc.ns
    proc.root proc.mounts proc.session dev.machine dev.nodefaults dev.no-floppy dev.no-legacy-nic dev.no-legacy-disk
    dev.no-slirp dev.kvm dev.platform-off vmm.qmp ent.virtio-rng mem.no-dump cpu.ksm""".split()  # noqa: SIM905
)
"""Controls that such a VM must fail, whoever started it; as root also those of `ROOT_FAILS`."""
ROOT_FAILS = frozenset({"proc.uid", "proc.gid"})


@contextmanager
def careless_qemu() -> Iterator[subprocess.Popen[bytes]]:
    """Run one, paused, until the block ends."""
    argv = [QEMU, "-name", "careless", "-M", "pc", "-accel", "tcg", "-m", "32", "-S", "-vga", "std", "-display", "none"]
    argv += ["-net", "nic,model=e1000", "-net", "user", "-monitor", "tcp:127.0.0.1:0,server,nowait"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + DEADLINE_S
        while not _listens(process.pid):
            assert process.poll() is None, "QEMU ended at once"
            assert time.monotonic() < end, "QEMU opened no monitor"
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


def _listens(pid: int) -> bool:
    """It has executed QEMU and opened sockets: its devices are there by then."""
    try:
        if not os.readlink(f"/proc/{pid}/exe").endswith("qemu-system-x86_64"):
            return False
        links = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    return any(link.startswith("socket:") for link in links)
