"""Network facts of a described machine."""

from __future__ import annotations

from typing import Final

from casemate.facts.machine import Backend, Machine
from casemate.facts.machine_sayer import Sayer
from casemate.facts.qemu_argv_text import is_on

_NET_WORST: Final = ("user", "bridge", "tap", "vde", "l2tpv3", "socket", "dgram", "stream", "af-xdp", "netmap")


def network_facts(sayer: Sayer, machine: Machine) -> None:
    """``net.*``: what kind of network, what it publishes, whether a bridge keeps guests apart."""
    nets = [backend for backend in machine.backends if backend.kind == "netdev" and backend.type != "hubport"]
    kinds = {_net_kind(backend) for backend in nets}
    rank = {kind: number for number, kind in enumerate(_NET_WORST)}
    worst = min(kinds, key=lambda kind: (rank.get(kind, len(rank)), kind), default="none")
    sayer.say("net.backend", worst, "network back-ends")
    sayer.say("net.backends", tuple(sorted(kinds)), "network back-ends")
    published = tuple(sorted(rule for backend in nets for rule in _published(backend)))
    sayer.say("net.published", published, "hostfwd and portForward")
    wide = tuple(rule for rule in published if not rule.startswith(("127.", "[::1]", "::1")))
    sayer.say("net.publish-wide", wide, "hostfwd and portForward")
    if not nets:
        sayer.say("net.egress", "none", "no network")
        sayer.say("net.host-loopback", False, "no network")
    else:
        sayer.say("net.egress", "any", "nothing in the description limits it")
        if worst == "passt":
            sayer.miss("net.host-loopback", "how passt was started decides (--no-map-gw), not the description")
        elif "user" in kinds:
            limited = all(is_on(b.properties.get("restrict")) for b in nets if b.type == "user")
            sayer.say("net.host-loopback", not limited, "slirp reaches the host's loopback through its gateway address")
        else:
            sayer.say("net.host-loopback", False, "a TAP or socket has no way to the loopback")
    bridged = [b for b in nets if _net_kind(b) in ("tap", "bridge")]
    sayer.say("net.bridged", len(bridged), "network back-ends")
    if machine.form == "libvirt":
        open_cards = tuple(b.id for b in bridged if "filter" not in b.properties)
        sayer.say("net.unfiltered", open_cards, "interface/filterref")
        alone = tuple(b.id for b in bridged if not (is_on(b.properties.get("isolated")) or b.properties.get("vlan")))
        sayer.say("net.not-isolated", alone, "interface/port and interface/vlan")
    else:
        why = "the bridge's own filters decide; a command line does not show them"
        for name in ("net.unfiltered", "net.not-isolated"):
            if bridged:
                sayer.miss(name, why)
            else:
                sayer.say(name, (), "no bridged network")


def _net_kind(backend: Backend) -> str:
    if backend.properties.get("passt"):
        return "passt"
    if backend.type == "stream" and not backend.path and backend.properties.get("addr.type") == "fd":
        return "passt" if not is_on(backend.properties.get("server")) else "stream"
    return backend.type


def _published(backend: Backend) -> list[str]:
    found = []
    for name, value in backend.properties.items():
        if name == "hostfwd" or name.startswith("hostfwd."):
            _, _, rest = value.removeprefix("str=").partition(":")
            address, _, _ = rest.partition("-")
            host, _, port = address.rpartition(":")
            found.append(f"{host or '0.0.0.0'}:{port}")  # noqa: S104  a name for what slirp does
    return found
