"""The network of a machine, in the words of a specification: passt, or nothing."""

from __future__ import annotations

import re
from typing import Any, Final

from casemate.facts.machine import Backend, Machine
from casemate.harden.model import Notes, Reason

_FORWARD: Final = re.compile(r"(tcp|udp)?:([0-9.]*):([0-9]{1,5})-[0-9.]*:([0-9]{1,5})")
_BRIDGED: Final = ("tap", "bridge", "vde", "l2tpv3", "macvtap", "af-xdp", "netmap")
_WIDE: Final = "0.0.0.0"  # noqa: S104  compared with, never bound


def network(machine: Machine, notes: Notes) -> dict[str, Any]:
    """The ``[network]`` table."""
    nets = [backend for backend in machine.backends if backend.kind == "netdev" and backend.type != "hubport"]
    if not nets:
        return {"mode": "none"}
    if len(nets) > 1:
        notes.leave(
            "dev.surface",
            ", ".join(net.origin for net in nets[1:]),
            f"{len(nets) - 1} more network cards are not in the specification",
            Reason.DECIDE,
            "a VM of ours has one network; a router belongs on the host",
        )
    found: dict[str, Any] = {"mode": "user", "egress": "internet"}
    for net in nets:
        _backend(net, notes)
    user = [net for net in nets if net.type == "user"]
    if user and all(net.properties.get("restrict") in ("on", "yes", "y", "true") for net in user):
        found["egress"] = "none"
    published = _published(machine, notes)
    if published:
        found["publish"] = published
    return found


def _backend(net: Backend, notes: Notes) -> None:
    where = net.origin
    if net.properties.get("vhost") in ("on", "yes", "true") or net.type.startswith("vhost-"):
        notes.change(
            "kvm.no-vhost-net",
            where,
            "no vhost: the emulator handles the queues",
            "vhost-net handles the guest's queues in the host's kernel: an escape there ignores every confinement",
            "a part of the network throughput, some CPU time",
        )
    if net.type == "user":
        helpers = [name for name in ("smb", "tftp", "guestfwd") if net.properties.get(name)]
        notes.change(
            "dev.no-slirp",
            where,
            "slirp becomes passt" + (f"; {', '.join(helpers)} go" if helpers else ""),
            "slirp parses the guest's packets inside the emulator and has the worst history of all back ends",
            f"{', '.join(helpers)}" if helpers else "none",
        )
    elif net.type in _BRIDGED:
        notes.change(
            "dev.no-slirp",
            where,
            f"{net.type} becomes passt: no TAP and no bridge",
            "on a bridge a guest reaches its neighbours, forges addresses and needs a privileged TAP",
            "the guest has no address of its own on the bridge: publish the ports that must be reachable",
        )
    elif net.type not in ("passt", "stream"):
        notes.leave(
            "dev.surface",
            where,
            f"network back end {net.type[:20]} becomes passt",
            Reason.DECIDE,
            "see whether the guest still reaches what it needs",
        )


def _published(machine: Machine, notes: Notes) -> list[str]:
    """Ports as ``ADDRESS:HOST:GUEST/PROTOCOL``. The option's own text is read: it may hold many."""
    found: list[str] = []
    for option, argument in machine.options:
        if option not in ("-netdev", "-nic", "-net"):
            continue
        for text in re.findall(r'hostfwd(?:\.\d+\.str|":\s*\[?\{"str":\s*")?=?"?([^,"]+)', argument):
            match = _FORWARD.fullmatch(text)
            if match is None:
                notes.leave(
                    "net.publish-wide",
                    option,
                    f"forwarded port {text[:60]} is not taken over",
                    Reason.DECIDE,
                    "publish it in [network]",
                )
                continue
            protocol, address, host, guest = match.groups()
            wide = address in ("", _WIDE)
            if wide and notes.wants("net.publish-wide", option, f"port {host} stays open to the network"):
                notes.change(
                    "net.publish-wide",
                    option,
                    f"port {host} is published on 127.0.0.1, no longer on every address",
                    "a port on every address is open to the host's whole network",
                    "other machines reach the guest through ssh to the host, or say the address in publish",
                )
                address = "127.0.0.1"
            entry = f"{address or _WIDE}:{host}:{guest}/{protocol or 'tcp'}"
            if entry not in found:
                found.append(entry)
    return found
