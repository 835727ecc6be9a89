"""One VM's network, used and attacked by a guest that speaks frames; prints what happened as JSON.

Run as a program of its own so that it can be another user and in another network namespace::

    python -m tests.support.network_case '{"egress": "internet", ...}'

Keys: ``egress``, ``allow``, ``ipv6``, ``resolver``, ``reach`` ([protocol, address, port] to try), ``cache`` (a
directory). Other arguments are addresses of the host.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import msgspec
from tests.support.frames import GATEWAY, GATEWAY6, Guest, echo_request, guest_for
from tests.support.hosts import HOST, plan_of

from casemate.engine import network
from casemate.jail.policy import Identity, IdentityMode
from casemate.plan.model import CgroupBase, LaunchPlan
from casemate.spec.model import Egress, Network, NetworkMode, Publish, Spec
from casemate.sys.landlock import landlock_abi

ROOT_UID = 1_900_060_011
QUIET_S = 0.7
PING = 77
"""The first echo identifier."""
PASST = os.environ.get("CASEMATE_TEST_PASST", "/usr/bin/passt")


def identity() -> Identity:
    if os.geteuid() == 0:
        return Identity(ROOT_UID, ROOT_UID, IdentityMode.ROOT)
    return Identity(os.getuid(), os.getgid(), IdentityMode.CALLER, keep_groups=True)


def plan(
    egress: str, allow: tuple[str, ...] = (), publish: tuple[Publish, ...] = (), *, ipv6: bool = False
) -> LaunchPlan:
    """A launch plan of which only the network is started."""
    host = msgspec.structs.replace(
        HOST, passt=PASST, landlock_abi=landlock_abi(), cgroup=CgroupBase(0, why_none="a test"), rootless=False
    )
    wanted = Network(mode=NetworkMode.USER, egress=Egress(egress), allow=allow, publish=publish, ipv6=ipv6)
    return plan_of(Spec(network=wanted), host, identity=identity())


def start(planned: LaunchPlan, cache: str, log: int = -1, resolver: str | None = None) -> network.Network:
    """Start the planned network; ``resolver`` stands for the host's /etc/resolv.conf."""
    with mock.patch.object(network, "host_resolver", return_value=resolver):
        who = planned.run_as
        return network.start_network(planned, who.uid, who.gid, planned.cgroup.directories, log, cache)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def free_port(kind: int, address: str = "127.0.0.1") -> int:
    with socket.socket(family_of(address), kind) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
    return port


def attempts(guest: Guest, wanted: list[tuple[str, str, int]]) -> list[str]:
    """What became of each (protocol, address, port): ``reached``, ``reset`` or ``silent``."""
    answers = datagrams(guest, [item for item in wanted if item[0] != "tcp"])
    return [stream(guest, *item[1:]) if item[0] == "tcp" else next(answers) for item in wanted]


def stream(guest: Guest, address: str, port: int) -> str:
    connection = guest.connect(address, port)
    if connection.state != "open":
        return connection.state
    connection.send(b"echo")
    return "reached" if connection.receive(4) == b"echo" else "open but mute"


def datagrams(guest: Guest, wanted: list[tuple[str, str, int]]) -> Iterator[str]:
    """Everything is sent before anything is waited for."""
    found: dict[int, str] = {}
    sent: dict[int, int] = {}
    for index, (protocol, address, port) in enumerate(wanted):
        if protocol == "udp":
            sent[guest.send_udp(address, port, b"echo")] = index
        else:
            guest.send_ip(echo_request(guest_for(address), address, PING + index))
    end = time.monotonic() + QUIET_S
    while (packet := guest.next_packet(end - time.monotonic())) is not None:
        if packet.protocol == 17 and packet.port in sent:
            found[sent[packet.port]] = f"reached {packet.source}:{packet.data.decode()}"
        elif (packet.protocol, packet.data[:1]) in {(1, b"\0"), (58, b"\x81")}:
            index = int.from_bytes(packet.data[4:6], "big") - PING
            if packet.source == wanted[index][1]:
                found[index] = "reached"
    return iter([found.get(index, "silent") for index in range(len(wanted))])


def attack_host(guest: Guest, *, ipv6: bool) -> list[str]:
    """Servers on every address of the host; at which of them anything of the guest arrived."""
    heard = []
    everywhere = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    family = family_of(everywhere)
    with socket.socket(family) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
        for server in (tcp, udp):
            if family == socket.AF_INET6:  # of both families
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            server.bind((everywhere, 0))
        tcp.listen(64)
        ours = ["127.0.0.1", "127.1.2.3", GATEWAY, "0.0.0.0", *sys.argv[2:]]
        if ipv6:
            ours += ["::1", "::", GATEWAY6, "::127.0.0.1", "64:ff9b::127.0.0.1", "2002:7f00:1::"]
        for address in ours:
            if ipv6 or ":" not in address:
                guest.open(
                    address, tcp.getsockname()[1]
                )  # not to ::ffff:127.0.0.1: passt of 2025 aborts at TCP to such
                guest.send_udp(address, udp.getsockname()[1], address.encode())
        while ready := select.select([tcp, udp], [], [], QUIET_S)[0]:
            if tcp in ready:
                with tcp.accept()[0] as connection:
                    heard.append(f"tcp {connection.getsockname()[0]}")
            if udp in ready:
                heard.append(f"udp {udp.recv(100).decode()}")
    return heard


def publish(guest: Guest, host: str, tcp_port: int, udp_port: int) -> dict[str, Any]:
    """Both published ports, there and back; and whether UDP lets the guest write to others."""
    said: dict[str, Any] = {}
    with socket.create_connection((host, tcp_port), 3) as client:
        connection = guest.serve_one(80)
        assert connection is not None, "nobody reached the guest's port 80"
        client.sendall(b"to guest")
        said["tcp in"] = connection.receive(8).decode()
        connection.send(b"to client")
        client.settimeout(3)
        said["tcp out"] = client.recv(100).decode()
    with socket.socket(family_of(host), socket.SOCK_DGRAM) as client:
        client.connect((host, udp_port))
        client.settimeout(QUIET_S)
        client.send(b"question")
        packet = guest.receive_udp(81, 3)
        assert packet is not None, "nobody reached the guest's port 81"
        said["udp in"] = packet.data.decode()
        guest.send_udp(packet.source, packet.source_port, b"answer", 81, packet.destination)
        said["udp out"] = client.recv(100).decode()
        with socket.socket(family_of(host), socket.SOCK_DGRAM) as bystander:
            bystander.bind((host, 0))
            for address in (packet.source, host):
                guest.send_udp(address, bystander.getsockname()[1], b"attack", 81, packet.destination)
            said["bystander heard"] = bool(select.select([bystander], [], [], QUIET_S)[0])
    return said


def configuration(guest: Guest) -> dict[str, Any]:
    """What the guest is told by IPv6: router advertisement, DHCPv6, the gateway's hardware address."""
    router, lease, mac = guest.router_advertisement(), guest.dhcpv6_solicit(), guest.neighbour(GATEWAY6)
    assert router is not None, "no router answers"
    assert lease is not None, "no DHCPv6 server answers"
    assert mac is not None, "the gateway does not answer"
    return {
        "router": {str(kind): value.hex() for kind, value in router.items()},
        "lease": {str(code): value.hex() for code, value in lease.items()},
        "mac": mac.hex(),
    }


def lines_of(log: int) -> list[str]:
    os.set_blocking(log, False)
    try:
        return os.read(log, 65536).decode().splitlines()
    except BlockingIOError:
        return []


def gone(*pidfds: int) -> bool:
    """Whether all end within 5 s."""
    end = time.monotonic() + 5
    for pidfd in pidfds:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(max(0.0, end - time.monotonic()) * 1000):
            return False
    return True


def main() -> None:
    wanted = json.loads(sys.argv[1])
    ipv6 = wanted.get("ipv6", False)
    host = "::1" if ipv6 else "127.0.0.1"
    tcp_port, udp_port = free_port(socket.SOCK_STREAM, host), free_port(socket.SOCK_DGRAM, host)
    ports = (
        Publish(host_port=tcp_port, guest_port=80, address=host),
        Publish(host_port=udp_port, guest_port=81, protocol="udp", address=host),
    )
    planned = plan(wanted["egress"], tuple(wanted.get("allow", ())), ports, ipv6=ipv6)
    log, log_write = os.pipe2(os.O_CLOEXEC)
    net = start(planned, wanted["cache"], log_write, wanted.get("resolver"))
    said: dict[str, Any] = {"resolver": net.resolver}
    try:
        net.confirm()
        said["passt uid"] = os.stat(f"/proc/{net.pid}").st_uid
        said["status"] = {name: network._status(pid) for name, pid in (("passt", net.pid), ("broker", net.broker_pid))}
        with open(f"/proc/{net.pid}/task/{net.pid}/children", encoding="ascii") as file:
            said["children of passt"] = file.read().split()
        guest = Guest(socket.socket(fileno=os.dup(net.qemu_socket_fd)))
        offer = guest.dhcp_discover()
        assert offer is not None, "no DHCP server answers"
        said["dhcp"] = [offer[0], {str(code): value.hex() for code, value in offer[1].items()}]
        if ipv6:
            said["ipv6"] = configuration(guest)
        said["reach"] = attempts(guest, [tuple(item) for item in wanted.get("reach", ())])
        said["host heard"] = attack_host(guest, ipv6=ipv6)
        said["published"] = publish(guest, host, tcp_port, udp_port)
        if wanted.get("end") == "kill broker":
            os.kill(net.broker_pid, signal.SIGKILL)
        else:
            net.unlink()
            guest.close()
        said["both end"] = gone(net.pidfd, net.broker_pidfd)
        said["log"] = lines_of(log)
    finally:
        net.stop()
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main()
