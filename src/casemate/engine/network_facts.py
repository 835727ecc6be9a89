"""What the live network of a VM shows, as the facts that controls ask for (``net.*``)."""

from __future__ import annotations

import os
import socket
import sys

from casemate.engine.network import Network
from casemate.facts.fact import Facts, Known, Stage, Unknown
from casemate.plan.model import LaunchPlan
from casemate.spec.network import bracketed, is_ipv6, is_loopback

_LISTEN, _UNCONNECTED = "0A", "07"
_TABLES = (("tcp", _LISTEN), ("udp", _UNCONNECTED), ("tcp6", _LISTEN), ("udp6", _UNCONNECTED))
_TABLE_MAX_BYTES = 16 << 20


def observe_network(plan: LaunchPlan, network: Network) -> Facts:
    """Read both helpers back, ask the confined broker for its policy, look for the published ports.

    Raises:
        RefusedError: a helper is not confined as planned (control net.egress).
    """
    policy = network.confirm()
    with open(f"/proc/{network.pid}/cmdline", "rb") as file:
        arguments = file.read(65536).split(b"\0")
    facts: Facts = {}

    def know(name: str, value: str | bool | tuple[str, ...], source: str) -> None:
        facts[name] = Known(value, source, Stage.OBSERVED)

    live = f"/proc/{network.pid}"
    is_passt = arguments[0].rsplit(b"/", 1)[-1].startswith(b"passt")
    know("net.backend", "passt" if is_passt else "unknown", f"{live}/cmdline; {live}/ns/net is not the host's")
    # The broker refuses 127.0.0.0/8 under every policy; without this option passt would turn the gateway into it.
    know("net.host-loopback", b"--no-map-gw" not in arguments, f"{live}/cmdline: --no-map-gw; policy of the broker")
    know("net.egress", policy.mode, "said by the confined broker")
    listening = _listening()
    if listening is None:
        facts["net.published"] = facts["net.publish-wide"] = Unknown("/proc/net/tcp and udp cannot be read")
        return facts
    published, wide = [], []
    for port in plan.spec.network.publish:
        if (port.protocol, packed(port.address), port.host_port) in listening:
            published.append(f"{bracketed(port.address)}:{port.host_port}:{port.guest_port}")
            if not is_loopback(port.address):
                wide.append(port.address)
    tables = ", ".join(f"/proc/net/{table}" for table, _ in _TABLES)
    know("net.published", tuple(published), tables)
    know("net.publish-wide", tuple(wide), tables)
    return facts


def packed(address: str) -> bytes:
    """The bytes of an address."""
    return socket.inet_pton(socket.AF_INET6 if is_ipv6(address) else socket.AF_INET, address)


def _listening() -> set[tuple[str, bytes, int]] | None:
    """(protocol, address, port) of every listening TCP and unconnected UDP socket of this network namespace."""
    found: set[tuple[str, bytes, int]] = set()
    try:
        for table, state in _TABLES:
            with open(f"/proc/net/{table}", encoding="ascii", errors="replace") as file:
                found |= parse_table(file.read(_TABLE_MAX_BYTES), table[:3], state)
    except FileNotFoundError:
        return found if not os.path.exists("/proc/net/if_inet6") else None  # the last tables are those of IPv6
    except (OSError, ValueError, OverflowError):
        return None
    return found


def parse_table(text: str, protocol: str, state: str) -> set[tuple[str, bytes, int]]:
    """The sockets of one table in a state; ValueError for anything that is no such table. See proc(5)."""
    found = set()
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) > 3 and words[3] == state:
            address, _, port = words[1].partition(":")
            # An address is one number, or four, of the machine's byte order.
            numbers = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
            found.add((protocol, b"".join(number.to_bytes(4, sys.byteorder) for number in numbers), int(port, 16)))
    return found
