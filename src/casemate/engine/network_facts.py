"""What the live network of a VM shows, as the facts that controls ask for (``net.*``)."""

from __future__ import annotations

import socket

from casemate.engine.network import Network
from casemate.facts.fact import Facts, Known, Stage, Unknown
from casemate.plan.model import LaunchPlan

_LISTEN, _UNCONNECTED = "0A", "07"
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
        if (port.protocol, port.address, port.host_port) in listening:
            text = f"{port.address}:{port.host_port}:{port.guest_port}"
            published.append(text)
            if not port.address.startswith("127."):
                wide.append(port.address)
    know("net.published", tuple(published), "/proc/net/tcp, /proc/net/udp")
    know("net.publish-wide", tuple(wide), "/proc/net/tcp, /proc/net/udp")
    return facts


def _listening() -> set[tuple[str, str, int]] | None:
    """(protocol, IPv4 address, port) of every listening TCP and unconnected UDP socket of this network namespace."""
    found = set()
    try:
        for protocol, state in (("tcp", _LISTEN), ("udp", _UNCONNECTED)):
            with open(f"/proc/net/{protocol}", encoding="ascii", errors="replace") as file:
                lines = file.read(_TABLE_MAX_BYTES).splitlines()[1:]
            for line in lines:
                words = line.split()
                if len(words) > 3 and words[3] == state:
                    address, _, port = words[1].partition(":")
                    # proc(5): the address as a number of the machine's byte order.
                    raw = int(address, 16).to_bytes(4, "little")
                    found.add((protocol, socket.inet_ntoa(raw), int(port, 16)))
    except (OSError, ValueError, OverflowError):
        return None
    return found
