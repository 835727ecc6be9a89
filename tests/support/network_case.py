"""One VM's network, used and attacked by a guest that speaks frames; prints what happened as JSON.

Run as a program of its own so that it can be another user and in another network namespace::

    python -m tests.support.network_case '{"egress": "internet", ...}'

Keys: ``egress``, ``allow``, ``resolver``, ``reach`` ([protocol, address, port] to try), ``cache`` (a directory).
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any
from unittest import mock

import msgspec
from tests.support.frames import GATEWAY, GUEST, Guest, echo_request
from tests.support.hosts import HOST, plan_of

from casemate.engine import network
from casemate.jail.policy import Identity, IdentityMode
from casemate.plan.model import CgroupBase, LaunchPlan
from casemate.spec.model import Egress, Network, NetworkMode, Publish, Spec
from casemate.sys.landlock import landlock_abi

ROOT_UID = 1_900_060_011
QUIET_S = 0.7
PASST = os.environ.get("CASEMATE_TEST_PASST", "/usr/bin/passt")


def identity() -> Identity:
    if os.geteuid() == 0:
        return Identity(ROOT_UID, ROOT_UID, IdentityMode.ROOT)
    return Identity(os.getuid(), os.getgid(), IdentityMode.CALLER, keep_groups=True)


def plan(egress: str, allow: tuple[str, ...] = (), publish: tuple[Publish, ...] = ()) -> LaunchPlan:
    """A launch plan of which only the network is started."""
    host = msgspec.structs.replace(
        HOST, passt=PASST, landlock_abi=landlock_abi(), cgroup=CgroupBase(0, why_none="a test"), rootless=False
    )
    wanted = Network(mode=NetworkMode.USER, egress=Egress(egress), allow=allow, publish=publish)
    return plan_of(Spec(network=wanted), host, identity=identity())


def start(planned: LaunchPlan, cache: str, log: int = -1, resolver: str | None = None) -> network.Network:
    """Start the planned network; ``resolver`` stands for the host's /etc/resolv.conf."""
    with mock.patch.object(network, "host_resolver", return_value=resolver):
        who = planned.run_as
        return network.start_network(planned, who.uid, who.gid, planned.cgroup.directories, log, cache)


def free_port(kind: int) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def attempt(guest: Guest, protocol: str, address: str, port: int) -> str:
    """``reached``, ``reset`` or ``silent``."""
    if protocol == "tcp":
        connection = guest.connect(address, port)
        if connection.state != "open":
            return connection.state
        connection.send(b"echo")
        return "reached" if connection.receive(4) == b"echo" else "open but mute"
    if protocol == "udp":
        own = guest.send_udp(address, port, b"echo")
        answer = guest.receive_udp(own, QUIET_S)
        return "silent" if answer is None else f"reached {answer.source}:{answer.data.decode()}"
    guest.send_ip(echo_request(GUEST, address, 77))
    end = time.monotonic() + QUIET_S
    while (packet := guest.next_packet(end - time.monotonic())) is not None:
        if packet.protocol == 1 and packet.data[:1] == b"\0":
            return "reached"
    return "silent"


def attack_host(guest: Guest) -> dict[str, bool]:
    """Servers on every address of the host; which of them heard anything from the guest."""
    heard = {}
    own = sys.argv[2:] or []
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.bind(("0.0.0.0", 0))
        tcp.listen(16)
        udp.bind(("0.0.0.0", 0))
        for address in ("127.0.0.1", "127.1.2.3", GATEWAY, "0.0.0.0", *own):
            guest.connect(address, tcp.getsockname()[1], wait_s=QUIET_S)
            guest.send_udp(address, udp.getsockname()[1], b"attack")
            heard[address] = bool(select.select([tcp, udp], [], [], 0.3)[0])
    return heard


def publish(guest: Guest, tcp_port: int, udp_port: int) -> dict[str, Any]:
    """Both published ports, there and back; and whether UDP lets the guest write to others."""
    said: dict[str, Any] = {}
    with socket.create_connection(("127.0.0.1", tcp_port), 3) as client:
        connection = guest.serve_one(80)
        assert connection is not None, "nobody reached the guest's port 80"
        client.sendall(b"to guest")
        said["tcp in"] = connection.receive(8).decode()
        connection.send(b"to client")
        client.settimeout(3)
        said["tcp out"] = client.recv(100).decode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", udp_port))
        client.settimeout(QUIET_S)
        client.send(b"question")
        packet = guest.receive_udp(81, 3)
        assert packet is not None, "nobody reached the guest's port 81"
        said["udp in"] = packet.data.decode()
        guest.send_udp(packet.source, packet.source_port, b"answer", 81)
        said["udp out"] = client.recv(100).decode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bystander:
            bystander.bind(("127.0.0.1", 0))
            for address in (packet.source, "127.0.0.1"):
                guest.send_udp(address, bystander.getsockname()[1], b"attack", 81)
            said["bystander heard"] = bool(select.select([bystander], [], [], QUIET_S)[0])
    return said


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
    tcp_port, udp_port = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_DGRAM)
    ports = (
        Publish(host_port=tcp_port, guest_port=80),
        Publish(host_port=udp_port, guest_port=81, protocol="udp"),
    )
    planned = plan(wanted["egress"], tuple(wanted.get("allow", ())), ports)
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
        said["reach"] = [attempt(guest, *item) for item in wanted.get("reach", ())]
        said["host heard"] = attack_host(guest)
        said["published"] = publish(guest, tcp_port, udp_port)
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
