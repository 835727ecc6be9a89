"""The broker's process once passt runs: a minimal interpreter with one allowlist and nothing to open.

``python -I -S -B -c "... main(FD)"``: FD holds JSON; `network._exec` writes it. Standard library only. It ends when
passt ends; when it is killed, passt dies with it (PDEATHSIG), and when its own parent is killed it dies too.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import select
import signal

from casemate.engine.egress import Broker
from casemate.engine.egress_policy import Policy
from casemate.sys import caps
from casemate.sys.libc import libc
from casemate.sys.process import PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, prctl, set_process_name
from casemate.sys.rtnetlink import RouteTable
from casemate.sys.seccomp import seccomp_set_mode_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOG_MAX_BYTES = 65536


class Log:
    """Lines to a pipe that may be full or gone; a bounded number of bytes in all."""

    def __init__(self, descriptor: int, room: int = LOG_MAX_BYTES) -> None:
        self._descriptor = descriptor
        self._room = room
        self._poller = select.poll()
        if descriptor >= 0:
            self._poller.register(descriptor, select.POLLOUT)

    def line(self, text: str) -> None:
        """One line, printable; dropped when it does not fit or nobody reads."""
        raw = "".join(c if c.isprintable() else "?" for c in text).encode()[:512] + b"\n"
        if self._descriptor < 0 or len(raw) > self._room or not self._poller.poll(0):
            return
        try:
            self._room -= os.write(self._descriptor, raw)
        except OSError:
            self._room = 0


def main(handover: int) -> None:
    """Confine, then answer until passt ends."""
    with open(handover, "rb") as file:
        config = json.load(file)
    log = Log(config["log"])
    policy = Policy.from_data(config["policy"])
    routes = RouteTable(config["netlink"])
    broker = Broker(config["listener"], config["pidfd"], policy, routes, log.line, config["machine"])
    broker.released = True
    _confine(config)
    os.write(config["word"], json.dumps({"confined": True, "policy": policy.to_data()}).encode())
    os.close(config["word"])
    _serve(broker, config["pidfd"], config["errors"], log)
    for why, count in broker.destinations.refused.items():
        log.line(f"egress refused in all: {count} times: {why}")
    os._exit(0)


def _confine(config: dict[str, Any]) -> None:
    """As root: file and socket identity of the VM, no capability. Always: no_new_privs and the allowlist.

    The real and effective ids stay: the owner of passt's user namespace may read its arguments, nobody else may.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    set_process_name("casemate-net")
    if config["ids"] is not None:
        uid, gid = config["ids"]
        os.setgroups([])
        # SAFETY: no pointers. Sockets made from here on belong to the VM's uid, as the host's firewall sees it.
        libc.setfsgid(ctypes.c_uint(gid))
        libc.setfsuid(ctypes.c_uint(uid))
        if libc.setfsuid(ctypes.c_uint(0xFFFF_FFFF)) != uid:
            raise OSError("setfsuid")
        caps.clear_ambient_set()
        caps.drop_bounding_set()
        caps.lock_securebits()
        caps.capset()
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of ids clears it
    if os.getppid() != config["parent"]:
        os._exit(1)
    seccomp_set_mode_filter(base64.b64decode(config["program"]))


def _serve(broker: Broker, pidfd: int, errors: int, log: Log) -> None:
    """Answer until passt is gone; pass on what it says."""
    poller = select.poll()
    for descriptor in (broker.fileno(), pidfd, errors):
        poller.register(descriptor, select.POLLIN)
    while True:
        for descriptor, _ in poller.poll():
            if descriptor == errors:
                data = os.read(errors, 4096)
                if not data:
                    poller.unregister(errors)
                for line in data.decode("utf-8", "replace").splitlines():
                    if line.strip() and "to syslog" not in line:
                        log.line(f"passt: {line}")
            elif descriptor == pidfd:
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
                return
            elif not broker.handle_ready():
                poller.unregister(descriptor)  # nobody has the filter any more; its end follows
