"""The network of a VM, attacked from inside: real passt, real broker, a guest that speaks frames.

The namespaces are ours: "host" with a public and a private address, and "peer", which owns every address that the guest
tries to reach. They need root and ``ip`` (package iproute2); the tests at the end need neither.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.frames import GATEWAY, GATEWAY_MAC, GUEST, GUEST6, Guest, packed
from tests.support.ipv6 import has_ipv6, needs_ipv6
from tests.support.network_case import free_port, gone, plan, start

from casemate.engine.network import check_kernel, observe_walls
from casemate.engine.network_facts import observe_network
from casemate.errors import HostError, RefusedError
from casemate.facts.fact import Known
from casemate.plan.passt import DNS6
from casemate.spec.model import Publish

pytestmark = [
    pytest.mark.wall,
    pytest.mark.skipif(not os.access("/usr/bin/passt", os.X_OK), reason="passt is not installed"),
]
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and ip (package iproute2)"
)

HOST_PUBLIC, HOST_PRIVATE = "11.0.0.1", "10.9.0.1"
PUBLIC, OTHER_PUBLIC, PRIVATE, METADATA, SHARED = "11.0.0.2", "12.0.0.2", "10.9.0.2", "169.254.169.254", "100.64.0.9"
RESOLVER = "10.9.0.53"
# By IPv6 a neighbour on the host's own network has a public address.
HOST6, NEIGHBOUR6, PUBLIC6, RESOLVER6 = "2a00:1::1", "2a00:1::2", "2a00:2::2", "fd00:9::53"
PRIVATE6, METADATA6, SITE6, LINK6 = "fd00:9::2", "fd00:ec2::254", "fec0::2", "fe80::2"
NAT64_PUBLIC, NAT64_METADATA, TO4_PRIVATE = "64:ff9b::c00:2", "64:ff9b::a9fe:a9fe", "2002:a09:2::1"
TEREDO, MAPPED, COMPATIBLE, DOCUMENTATION, GROUP6 = (
    "2001:0:c00:2::5301:0",
    f"::ffff:{PRIVATE}",
    "::b00:2",
    "2001:db8::2",
    "ff0e::7",
)
BEHIND6 = (
    PUBLIC6,
    RESOLVER6,
    PRIVATE6,
    METADATA6,
    SITE6,
    LINK6,
    NAT64_PUBLIC,
    NAT64_METADATA,
    TO4_PRIVATE,
    TEREDO,
    DOCUMENTATION,
)
PEER = """
import socket, threading
def tcp(port):
    if socket.has_dualstack_ipv6():
        server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        server = socket.create_server(("0.0.0.0", port))
    while True:
        connection, _ = server.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()
def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)
def udp(port):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.IPPROTO_IP, 8, 1)
    server.bind(("0.0.0.0", port))
    while True:
        data, control, _, peer = server.recvmsg(65535, 64)
        info = bytes(4) + control[0][2][4:8] + bytes(4)
        server.sendmsg([data], [(socket.IPPROTO_IP, 8, info)], 0, peer)
def udp6(port):
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    server.bind(("::", port))
    while True:
        data, control, _, peer = server.recvmsg(65535, 64)
        server.sendmsg([data], [control[0]], 0, peer)
for port in (7, 53):
    for serve in (tcp, udp, udp6):
        threading.Thread(target=serve, args=(port,), daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@pytest.fixture(scope="module")
def world() -> Iterator[str]:
    """The name of the "host" namespace; everything else is behind its default route."""
    host, peer = f"cm{os.getpid()}h", f"cm{os.getpid()}p"
    server = None
    try:
        ip("netns", "add", host)
        ip("netns", "add", peer)
        ip("-n", host, "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", peer)
        for address in (f"{HOST_PUBLIC}/24", f"{HOST_PRIVATE}/24"):
            ip("-n", host, "address", "add", address, "dev", "v0")
        for address in (
            f"{PUBLIC}/24",
            f"{PRIVATE}/24",
            *(f"{a}/32" for a in (OTHER_PUBLIC, METADATA, SHARED, RESOLVER)),
        ):
            ip("-n", peer, "address", "add", address, "dev", "v1")
        if has_ipv6():
            ip("-n", host, "address", "add", f"{HOST6}/64", "dev", "v0", "nodad")
            for address in (f"{NEIGHBOUR6}/64", *(f"{a}/128" for a in BEHIND6)):
                ip("-n", peer, "address", "add", address, "dev", "v1", "nodad")
        for name, device in ((host, "v0"), (host, "lo"), (peer, "v1"), (peer, "lo")):
            ip("-n", name, "link", "set", device, "up")
        ip("-n", host, "route", "add", "default", "via", PUBLIC)
        if has_ipv6():
            ip("-n", host, "route", "add", "default", "via", NEIGHBOUR6)
        ip("netns", "exec", host, "sh", "-c", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range")
        server = subprocess.Popen(["ip", "netns", "exec", peer, sys.executable, "-c", PEER], stdout=subprocess.PIPE)
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield host
    finally:
        if server is not None:
            server.kill()
            server.wait()
        for name in (host, peer):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


REACH = [
    ["tcp", PUBLIC, 7],
    ["tcp", OTHER_PUBLIC, 7],
    ["tcp", PRIVATE, 7],
    ["tcp", METADATA, 7],
    ["tcp", SHARED, 7],
    ["udp", PUBLIC, 7],
    ["udp", OTHER_PUBLIC, 7],
    ["udp", PRIVATE, 7],
    ["udp", METADATA, 7],
    ["udp", SHARED, 7],
    ["icmp", PUBLIC, 0],
    ["icmp", PRIVATE, 0],
    ["udp", RESOLVER, 53],
    ["udp", GATEWAY, 53],
    ["tcp", RESOLVER, 53],
    ["udp", RESOLVER, 7],
    ["tcp", RESOLVER, 7],
]
PUBLISHED = {
    "tcp in": "to guest",
    "tcp out": "to client",
    "udp in": "question",
    "udp out": "answer",
    "bystander heard": False,
}
EXPECTED: dict[str, dict[str, Any]] = {
    "none": {"reached": set(), "dns": None},
    "internet": {"reached": {0, 1, 5, 6, 10, 12, 13, 14}, "dns": RESOLVER},
    "list": {"reached": {0, 2, 5, 7, 10, 11}, "dns": None},
}


REACH6 = [
    ["tcp", PUBLIC6, 7],
    ["udp", PUBLIC6, 7],
    ["icmp", PUBLIC6, 0],
    ["tcp", PUBLIC, 7],
    ["tcp", NEIGHBOUR6, 7],
    ["udp", NEIGHBOUR6, 7],
    ["tcp", PRIVATE6, 7],
    ["udp", PRIVATE6, 7],
    ["tcp", METADATA6, 7],
    ["udp", METADATA6, 7],
    ["tcp", NAT64_PUBLIC, 7],
    ["tcp", NAT64_METADATA, 7],
    ["udp", RESOLVER6, 53],
    ["udp", DNS6, 53],
    ["tcp", RESOLVER6, 53],
    ["udp", RESOLVER6, 7],
    *(["tcp", address, 7] for address in (SITE6, TO4_PRIVATE, TEREDO, COMPATIBLE, DOCUMENTATION)),
    ["udp", MAPPED, 7],
    ["udp", LINK6, 7],
    ["udp", GROUP6, 7],
]
EXPECTED6: dict[str, dict[str, Any]] = {
    "none": {"reached": set(), "dns": None},
    "internet": {"reached": {0, 1, 2, 3, 12, 13, 14}, "dns": RESOLVER6},
    "list": {"reached": {4, 5, 6, 7, 10, 12, 13, 14, 15}, "dns": RESOLVER6},
}


def run_case(world: str, tmp_path: Path, user: str, **wanted: Any) -> dict[str, Any]:
    """Run `network_case` in the world as root or as an ordinary user."""
    cache = tmp_path / user
    cache.mkdir(mode=0o700)
    command = ["ip", "netns", "exec", world]
    if user == "rootless":
        os.chown(cache, 4242, 4242)
        for directory in (tmp_path, *tmp_path.parents[:2]):
            directory.chmod(0o755)
        command += ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups"]
    command += [sys.executable, "-m", "tests.support.network_case", json.dumps({**wanted, "cache": str(cache)})]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(  # noqa: PLW1510 - its last words are in the message
        [*command, HOST_PUBLIC, HOST_PRIVATE, HOST6],
        capture_output=True,
        timeout=120,
        cwd=root,
        env=environment,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@needs_namespaces
@pytest.mark.parametrize("user", ["root", "rootless"])
@pytest.mark.parametrize("egress", ["none", "internet", "list"])
def test_the_guest_reaches_exactly_what_the_policy_says(world: str, egress: str, user: str, tmp_path: Path) -> None:
    allow = [f"{PUBLIC}/32", "10.9.0.0/29"] if egress == "list" else []
    end = "kill broker" if egress == "none" else "unplug"
    said = run_case(world, tmp_path, user, egress=egress, allow=allow, resolver=RESOLVER, reach=REACH, end=end)

    reached = {index for index, answer in enumerate(said["reach"]) if answer.startswith("reached")}
    assert reached == EXPECTED[egress]["reached"], said["reach"]
    assert "reset" in said["reach"][3], "a refused TCP connection is told so"
    assert said["resolver"] == EXPECTED[egress]["dns"]
    assert said["host heard"] == []

    assert said["published"] == PUBLISHED
    assert said["dhcp"][0] == GUEST
    assert said["dhcp"][1]["3"] == socket.inet_aton(GATEWAY).hex()
    dns = EXPECTED[egress]["dns"]
    assert said["dhcp"][1].get("6") == (socket.inet_aton(str(dns)).hex() if dns else None)

    assert said["children of passt"] == []
    assert said["both end"], "passt or its broker outlived the end of the link"
    for name, filters in (("passt", "2"), ("broker", "1")):
        status = said["status"][name]
        assert (status["Seccomp"], status["Seccomp_filters"], status["NoNewPrivs"]) == ("2", filters, "1")
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapAmb"], 16) == 0
    if user == "root":
        assert said["status"]["passt"]["Uid"].split() == [str(1_900_060_011)] * 4
        assert said["status"]["broker"]["Uid"].split()[3] == str(1_900_060_011), "sockets belong to the VM's uid"
        assert said["status"]["passt"]["Groups"] == said["status"]["broker"]["Groups"] == ""
    refusals = [line for line in said["log"] if line.startswith("egress refused: tcp")]
    assert any(f"{METADATA}:7" in line for line in refusals), said["log"]


@needs_namespaces
@needs_ipv6
@pytest.mark.parametrize(
    ("egress", "user"), [("none", "root"), ("internet", "root"), ("internet", "rootless"), ("list", "rootless")]
)
def test_by_ipv6_the_guest_reaches_exactly_what_the_policy_says(
    world: str, egress: str, user: str, tmp_path: Path
) -> None:
    """Private ranges may be listed, and a translator's; what no guest ever reaches stays refused within them.

    The host's own address is listed as well, and heard: so the test would hear what it must not.
    """
    allow = [f"{NEIGHBOUR6}/128", f"{HOST6}/128", "fd00::/8", "64:ff9b::/96"] if egress == "list" else []
    said = run_case(world, tmp_path, user, egress=egress, allow=allow, resolver=RESOLVER6, reach=REACH6, ipv6=True)

    reached = {index for index, answer in enumerate(said["reach"]) if answer.startswith("reached")}
    assert reached == EXPECTED6[egress]["reached"], said["reach"]
    assert "reset" in said["reach"][8], "a refused TCP connection is told so"
    assert set(said["host heard"]) == ({f"tcp {HOST6}", f"udp {HOST6}"} if egress == "list" else set())
    assert said["published"] == PUBLISHED
    assert said["both end"]
    assert said["dhcp"][0] == GUEST, "IPv4 is there as well"

    told, dns = said["ipv6"], EXPECTED6[egress]["dns"]
    assert told["mac"] == GATEWAY_MAC.hex()
    assert told["router"]["3"][32:48] == packed(GUEST6)[:8].hex(), "the prefix"
    assert packed(GUEST6).hex() in told["lease"]["3"]
    # RDNSS (RFC 8106) and DHCPv6's option 23
    assert told["router"].get("25", "")[16:] == told["lease"].get("23", "") == (packed(dns).hex() if dns else "")
    refusals = [line for line in said["log"] if line.startswith("egress refused: tcp")]
    assert any(f"[{METADATA6}]:7: " in line for line in refusals), said["log"]


# ---- without namespaces ---------------------------------------------------------------------------------------------


def test_a_taken_port_is_said_before_anything_runs(tmp_path: Path) -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen(1)
        udp.bind(("127.0.0.1", 0))
        one, two = tcp.getsockname()[1], udp.getsockname()[1]
        planned = plan(
            "none",
            publish=(
                Publish(host_port=one, guest_port=1),
                Publish(host_port=two, guest_port=2, protocol="udp"),
            ),
        )
        with pytest.raises(HostError) as caught:
            start(planned, str(tmp_path))
    assert f"127.0.0.1:{one}/tcp: Address already in use; 127.0.0.1:{two}/udp: Address already in use" in str(
        caught.value
    )
    assert "ss -lntup" in caught.value.next_step


def test_an_address_that_is_not_this_hosts_is_said(tmp_path: Path) -> None:
    port = free_port(socket.SOCK_STREAM)
    with pytest.raises(HostError, match="Cannot assign requested address"):
        start(plan("none", publish=(Publish(host_port=port, guest_port=1, address="198.51.100.7"),)), str(tmp_path))


def test_a_port_taken_between_check_and_bind_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casemate.engine.network.check_ports", lambda _published: None)
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen(1)
        port = tcp.getsockname()[1]
        with pytest.raises(HostError, match=f"127.0.0.1:{port}/tcp: Address already in use"):
            start(plan("none", publish=(Publish(host_port=port, guest_port=1),)), str(tmp_path))


def test_a_program_that_is_not_passt_is_an_error_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.network_case.PASST", "/bin/false")
    with pytest.raises(HostError, match="passt did not start") as caught:
        start(plan("none"), str(tmp_path))
    assert "exit status 1" in str(caught.value)


def test_the_gateway_is_not_the_host(tmp_path: Path) -> None:
    """The attack of the design: by default passt maps its gateway to the host's loopback."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        server.settimeout(0.3)
        net = start(plan("internet"), str(tmp_path))
        guest = Guest(socket.socket(fileno=os.dup(net.qemu_socket_fd)))
        try:
            for address in (GATEWAY, "127.0.0.1"):
                assert guest.connect(address, server.getsockname()[1], wait_s=1.0).state != "open"
            with pytest.raises(TimeoutError):
                server.accept()
        finally:
            guest.close()
            net.stop()


@pytest.mark.parametrize("victim", ["launcher", "broker", "passt"])
def test_nobody_survives_a_kill(victim: str, tmp_path: Path) -> None:
    """kill -9 of any of the three ends the network: PDEATHSIG reaches passt through its own namespaces."""
    words, theirs = socket.socketpair()
    launcher = os.fork()
    if launcher == 0:
        words.close()
        net = start(plan("internet"), str(tmp_path))
        net.confirm()
        theirs.sendall(f"{net.pid} {net.broker_pid}\n".encode())
        while True:
            time.sleep(60)
    theirs.close()
    passt, broker = (int(word) for word in words.recv(100).split())
    pidfds = [os.pidfd_open(passt), os.pidfd_open(broker)]
    assert observe_walls(passt, broker) == []
    os.kill({"launcher": launcher, "broker": broker, "passt": passt}[victim], signal.SIGKILL)
    assert gone(*pidfds)
    if victim != "launcher":
        os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    for pidfd in pidfds:
        os.close(pidfd)
    words.close()


def test_an_unconfined_process_is_seen() -> None:
    faults = observe_walls(os.getpid(), os.getpid())
    assert "passt has no seccomp filter, or not all of them" in faults
    assert "passt is in the host's network namespace" in faults
    assert any("cannot be looked at" in fault for fault in observe_walls(2**22 - 3, os.getpid()))


@pytest.mark.parametrize("release", ["5.13.19", "4.19.0-26-amd64", "unknown", ""])
def test_a_kernel_that_cannot_enforce_is_refused(release: str) -> None:
    with pytest.raises(RefusedError, match=r"net\.egress") as caught:
        check_kernel(release)
    assert caught.value.control == "net.egress"


@pytest.mark.parametrize("release", ["5.14.0", "6.1.0-35-amd64", "6.18.44-fc-v657"])
def test_newer_kernels_are_taken(release: str) -> None:
    check_kernel(release)


def test_the_live_network_is_what_the_plan_declares(tmp_path: Path) -> None:
    ports: tuple[Publish, ...] = (
        Publish(host_port=free_port(socket.SOCK_STREAM), guest_port=80),
        Publish(host_port=free_port(socket.SOCK_DGRAM), guest_port=81, protocol="udp", address="0.0.0.0"),
    )
    if has_ipv6():
        ports += (
            Publish(host_port=free_port(socket.SOCK_STREAM, "::1"), guest_port=82, address="::1"),
            Publish(host_port=free_port(socket.SOCK_DGRAM, "::1"), guest_port=83, protocol="udp", address="::"),
        )
    planned = plan("internet", publish=ports, ipv6=has_ipv6())
    net = start(planned, str(tmp_path))
    try:
        observed = observe_network(planned, net)
    finally:
        net.stop()
    declared = {name: fact for name, fact in planned.declared.items() if name.startswith("net.")}
    assert declared.keys() == observed.keys()
    for name, fact in declared.items():
        seen = observed[name]
        assert isinstance(fact, Known)
        assert isinstance(seen, Known)
        assert seen.value == fact.value, name
    with pytest.raises(ProcessLookupError):
        os.kill(net.pid, 0)


def test_a_network_whose_broker_died_is_refused(tmp_path: Path) -> None:
    planned = plan("internet")
    net = start(planned, str(tmp_path))
    try:
        os.kill(net.broker_pid, signal.SIGKILL)
        assert gone(net.pidfd, net.broker_pidfd)
        with pytest.raises(RefusedError, match=r"net\.egress"):
            net.confirm()
    finally:
        net.stop()


def test_the_link_carries_no_descriptors(tmp_path: Path) -> None:
    """A passt that is taken over cannot hand a socket of the host to QEMU, nor QEMU anything to it."""
    net = start(plan("none"), str(tmp_path))
    try:
        with socket.socket(fileno=os.dup(net.qemu_socket_fd)) as link:
            try:
                refuses = link.getsockopt(socket.SOL_SOCKET, 83) == 0
            except OSError:
                pytest.skip("SO_PASSRIGHTS came with Linux 6.16")
            assert refuses
            with pytest.raises(PermissionError):
                socket.send_fds(link, [b"\0\0\0\1x"], [0])
    finally:
        net.stop()
