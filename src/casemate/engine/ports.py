"""Published ports, before anything runs: can they be had?"""

from __future__ import annotations

import errno
import os
import socket

from casemate.errors import HostError
from casemate.spec.network import bracketed, is_ipv6

Port = tuple[str, str, int]
"""Protocol (``tcp`` or ``udp``), host address, host port."""


def check_ports(published: tuple[Port, ...]) -> None:
    """Every published port can be bound now; an early, clear answer (the bind for passt decides for good).

    Raises:
        HostError: all ports that cannot be had, each with its reason.
    """
    faults, held = [], []
    try:
        for protocol, address, port in published:
            kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
            try:
                probe = socket.socket(socket.AF_INET6 if is_ipv6(address) else socket.AF_INET, kind)
                held.append(probe)  # until all are tried: two entries for one port must not both pass
                if is_ipv6(address):
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if protocol == "tcp":
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
                if protocol == "tcp":
                    probe.listen(1)  # with SO_REUSEADDR only listening tells that another one listens
            except OSError as fault:
                faults.append(f"{bracketed(address)}:{port}/{protocol}: {fault.strerror}")
    finally:
        for probe in held:
            probe.close()
    if faults:
        raise ports_error(faults)


def ports_error(faults: list[str]) -> HostError:
    """The error for ports that cannot be bound."""
    text = "; ".join(faults)
    if os.strerror(errno.EADDRINUSE) in text:
        step = "ss -lntup shows who has it; or publish another port"
    elif os.strerror(errno.EACCES) in text:
        step = "an ordinary user publishes ports from 1024 on (sysctl net.ipv4.ip_unprivileged_port_start)"
    else:
        step = "publish on an address of this host (ip address)"
    return HostError("published ports cannot be bound", got=text, next_step=step)
