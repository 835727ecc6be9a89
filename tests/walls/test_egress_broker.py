"""A hostile passt against the broker: a child of ours loads the filter and tries to get round it by every way we know.

What it tries to reach is a UDP and a TCP server on the host's loopback, which no policy allows. The child says what the
kernel answered; the servers say whether anything arrived.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import gc
import json
import mmap
import os
import random
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Never

import pytest
from tests.support.ipv6 import needs_ipv6

from casemate.bpf.syscalls import numbers
from casemate.engine.egress import Broker
from casemate.engine.egress_policy import Policy, Published
from casemate.jail.compile import compile_profile
from casemate.jail.egress import FORBIDDEN, REPLACED, with_broker
from casemate.jail.ranges import DATAGRAM, NOFILE, PUBLISHED, STREAM
from casemate.jail.rules import Profile, Rule
from casemate.sys.libc import libc
from casemate.sys.process import PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, pidfd_getfd, prctl
from casemate.sys.rtnetlink import RouteTable
from casemate.sys.seccomp import SECCOMP_FILTER_FLAG_NEW_LISTENER, seccomp_set_mode_filter

pytestmark = pytest.mark.wall
MACHINE = os.uname().machine


def permissive() -> Profile:
    """Everything but what the broker stands before: the ranges alone must hold, not a narrow passt profile."""
    names = set(numbers(MACHINE)) - REPLACED - FORBIDDEN
    return Profile("hostile", tuple(Rule(name, "hostile passt") for name in sorted(names)))


PROGRAM = compile_profile(with_broker(permissive()), MACHINE)
Attack = Callable[[dict[str, int]], Any]


@dataclass
class Targets:
    """Servers on loopback that no guest may reach; `reached` says whether anything arrived."""

    tcp: socket.socket
    udp: socket.socket

    def reached(self) -> bool:
        return bool(select.select([self.tcp, self.udp], [], [], 0.2)[0])


@pytest.fixture
def targets() -> Iterator[Targets]:
    with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen(8)
        udp.bind(("127.0.0.1", 0))
        yield Targets(tcp, udp)


def free_port(kind: int) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def run(attack: Attack, targets: Targets, policy: Policy, *, released: bool = True) -> tuple[Any, Broker]:
    """Run ``attack`` in a child under the filter, answer it, give what it returned."""
    ports = {"tcp": targets.tcp.getsockname()[1], "udp": targets.udp.getsockname()[1]}
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _hostile(attack, ports, write_end, theirs)
    pidfd = os.pidfd_open(pid)
    os.close(write_end)
    try:
        listener = _take(pidfd, int(ours.recv(16)))
        ours.send(b"x")
        theirs.close()
        broker = Broker(listener, pidfd, policy, RouteTable(), lambda _line: None, MACHINE)
        broker.released = released
        _answer(broker, pidfd)
        with os.fdopen(read_end, "rb") as file:
            said = file.read(65536)
        os.close(listener)
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        ours.close()
    return (json.loads(said) if said else None), broker


def _take(pidfd: int, number: int) -> int:
    """The listener, once the child has loaded its filter."""
    end = time.monotonic() + 10
    while True:
        try:
            return pidfd_getfd(pidfd, number)
        except OSError as fault:
            if fault.errno != errno.EBADF or time.monotonic() > end:
                raise
            time.sleep(0.001)


def _answer(broker: Broker, pidfd: int) -> None:
    end = time.monotonic() + 20
    poller = select.poll()
    poller.register(broker.fileno(), select.POLLIN)
    poller.register(pidfd, select.POLLIN)
    while time.monotonic() < end:
        for descriptor, _ in poller.poll(1000):
            if descriptor == pidfd or not broker.handle_ready():
                return
    pytest.fail("the attack did not end")


def _hostile(attack: Attack, ports: dict[str, int], write_end: int, word: socket.socket) -> Never:
    result: Any = "?"
    try:
        import resource

        gc.disable()  # it would close what earlier tests dropped, and the listener would get another number
        resource.setrlimit(resource.RLIMIT_NOFILE, (NOFILE, NOFILE))
        prctl(PR_SET_PDEATHSIG, 9)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        expected = os.dup(0)
        os.close(expected)
        word.send(str(expected).encode())  # before the filter: afterwards sending is asked about
        assert seccomp_set_mode_filter(PROGRAM, SECCOMP_FILTER_FLAG_NEW_LISTENER) == expected
        os.read(word.fileno(), 1)
        os.close(expected)  # exec would: with a copy of its own the child would wait for itself
        result = attack(ports)
    except BaseException as fault:
        result = f"{type(fault).__name__}: {fault}"
    os.write(write_end, json.dumps(result).encode())
    os._exit(0)


def wait_readable(sock: socket.socket) -> None:
    """Up to 5 s; poll, because the numbers are beyond what select takes."""
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)
    poller.poll(5000)


def outcome(call: Callable[[], Any]) -> Any:
    """The errno's name, or what the call gave."""
    try:
        return call()
    except OSError as fault:
        return errno.errorcode.get(fault.errno or 0, str(fault))


def made(family: int, kind: int, protocol: int) -> int:
    """The number of a new socket."""
    return socket.socket(family, kind, protocol).detach()


NOTHING = Policy("none")
INTERNET = Policy("internet")
EVERY_POLICY = (NOTHING, INTERNET, Policy("list", ("8.8.8.0/24",)), Policy("internet", resolver="127.0.0.1"))
LOOPBACK = "127.0.0.1"


def every_way_out(ports: dict[str, int]) -> dict[str, Any]:
    """Each way to name a destination, TCP and UDP."""
    stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tcp, udp = (LOOPBACK, ports["tcp"]), (LOOPBACK, ports["udp"])
    return {
        "connect tcp": outcome(lambda: stream.connect(tcp)),
        "fast open sendto": outcome(lambda: stream.sendto(b"x", 0x20000000, tcp)),
        "fast open sendmsg": outcome(lambda: stream.sendmsg([b"x"], [], 0x20000000, tcp)),
        "sendmsg tcp": outcome(lambda: stream.sendmsg([b"x"], [], socket.MSG_NOSIGNAL, tcp)),
        "sendto udp": outcome(lambda: datagram.sendto(b"x", udp)),
        "sendmsg udp": outcome(lambda: datagram.sendmsg([b"x"], [], 0, udp)),
        "connect udp": outcome(lambda: datagram.connect(udp)),
        "send udp": outcome(lambda: datagram.send(b"x")),
        "write udp": outcome(lambda: os.write(datagram.fileno(), b"x")),
        "ranges": [stream.fileno() & ~(STREAM[1] - 1), datagram.fileno() & ~(DATAGRAM[1] - 1)],
    }


@pytest.mark.parametrize("policy", EVERY_POLICY, ids=["none", "internet", "list", "dns"])
def test_no_way_out(policy: Policy, targets: Targets) -> None:
    said, _ = run(every_way_out, targets, policy)
    assert said["ranges"] == [STREAM[0], DATAGRAM[0]]
    for way in ("connect tcp", "sendto udp", "sendmsg udp", "connect udp"):
        assert said[way] == "EACCES", way
    for way in ("fast open sendto", "fast open sendmsg"):
        assert said[way] in {"EACCES", "EINVAL"}, way
    assert said["sendmsg tcp"] in {"EPIPE", "ENOTCONN"}
    assert said["send udp"] == said["write udp"] == "EDESTADDRREQ"
    assert not targets.reached()


INTERNET6 = Policy("internet", gateway6="fe80::1")


@pytest.fixture
def targets6() -> Iterator[Targets]:
    """Servers on every address of the host, of both families."""
    with socket.socket(socket.AF_INET6) as tcp, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp:
        for server in (tcp, udp):
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            server.bind(("::", 0))
        tcp.listen(8)
        yield Targets(tcp, udp)


def every_way_out_by_ipv6(ports: dict[str, int]) -> dict[str, Any]:
    stream = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    datagram = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    said: dict[str, Any] = {}
    for address in ("::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "fe80::1", "64:ff9b::7f00:1", "ff02::1"):
        said[address] = [
            outcome(functools.partial(stream.connect, (address, ports["tcp"]))),
            outcome(functools.partial(datagram.sendto, b"x", (address, ports["udp"]))),
            outcome(functools.partial(datagram.connect, (address, ports["udp"]))),
        ]
    other = struct.pack("=H", 2) + struct.pack("!H4s8x", ports["tcp"], b"\x7f\0\0\1")
    six = struct.pack("=H", 10) + struct.pack("!HI16sI", ports["tcp"], 0, bytes(15) + b"\1", 0)
    four = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    for sock, name in ((stream, other), (four, six)):
        for call in (libc.connect, libc.bind):
            done = call(sock.fileno(), name, len(name))
            said.setdefault("mixed", []).append("done" if done >= 0 else errno.errorcode[ctypes.get_errno()])
    said["dual"] = outcome(lambda: datagram.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0))
    said["only"] = [sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) for sock in (stream, datagram)]
    return said


@needs_ipv6
@pytest.mark.parametrize("policy", [Policy("none", gateway6="fe80::1"), INTERNET6], ids=["none", "internet"])
def test_no_way_out_by_ipv6(policy: Policy, targets6: Targets) -> None:
    said, _ = run(every_way_out_by_ipv6, targets6, policy)
    assert said.pop("mixed") == ["EAFNOSUPPORT"] * 4
    assert said.pop("dual") == "EPERM"
    assert said.pop("only") == [1, 1]
    assert len(said) == 7
    assert all(answers == ["EACCES"] * 3 for answers in said.values()), said
    assert not targets6.reached()


@needs_ipv6
def test_a_socket_says_the_port_that_was_asked_for(targets: Targets) -> None:
    """passt of 2025 gives a UDP flow up whose socket has another port; the host's port is the kernel's choice."""
    wanted = free_port(socket.SOCK_DGRAM)

    def attack(_ports: dict[str, int]) -> Any:
        said = []
        for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.bind((anywhere, wanted))
            with open(f"/proc/net/udp{'6' if family == socket.AF_INET6 else ''}", encoding="ascii") as file:
                taken = any(line.split()[1].endswith(f":{wanted:04X}") for line in file.readlines()[1:])
            said.append([sock.getsockname()[:2], taken])
        return said

    said, _ = run(attack, targets, INTERNET6)
    assert said == [[["0.0.0.0", wanted], False], [["::", wanted], False]]


def _sendmmsg(number: int, ports: list[int]) -> Any:
    """sendmmsg with one datagram per port on loopback; how many went, or the errno."""
    data = ctypes.create_string_buffer(b"x", 1)
    iov = ctypes.create_string_buffer(struct.pack("=2Q", ctypes.addressof(data), 1))
    names = [ctypes.create_string_buffer(struct.pack("=H", 2) + struct.pack("!H4s8x", p, b"\x7f\0\0\1")) for p in ports]
    heads = b"".join(
        struct.pack("=QI4xQQQQi4xI4x", ctypes.addressof(name), 16, ctypes.addressof(iov), 1, 0, 0, 0, 0)
        for name in names
    )
    vector = ctypes.create_string_buffer(heads)
    libc.syscall.restype = ctypes.c_long
    done = libc.syscall(ctypes.c_long(307), ctypes.c_long(number), vector, ctypes.c_long(len(ports)), ctypes.c_long(0))
    return done if done >= 0 else errno.errorcode[ctypes.get_errno()]


@pytest.mark.skipif(MACHINE != "x86_64", reason="the call's number is x86-64's")
def test_a_batch_is_judged_message_by_message(targets: Targets) -> None:
    """The allowed ones before the first forbidden one go, and no more."""

    def attack(ports: dict[str, int]) -> Any:
        number = socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()
        udp = ports["udp"]
        rubbish = number | (STREAM[0] << 32)
        return [
            _sendmmsg(number, [udp]),
            _sendmmsg(number, [53, 53, udp]),
            _sendmmsg(rubbish, [udp]),
            _sendmmsg(number, []),
        ]

    said, _ = run(attack, targets, Policy("internet", resolver=LOOPBACK))
    assert said == ["EACCES", 2, "EACCES", 0]
    assert not targets.reached()


@pytest.mark.parametrize("way", ["sendto", "connect udp", "connect tcp"])
def test_an_address_that_changes_during_the_call_gains_nothing(way: str, targets: Targets) -> None:
    """TOCTOU: another process turns the port in shared memory between an allowed and a forbidden one."""

    def attack(ports: dict[str, int]) -> Any:
        answers: dict[str, int] = {}
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if way == "connect tcp" else socket.SOCK_DGRAM)
            if way == "sendto":
                done = libc.sendto(sock.fileno(), b"x", 1, 0, ctypes.c_void_p(where), 16)
            else:
                done = libc.connect(sock.fileno(), ctypes.c_void_p(where), 16)
            key = "done" if done >= 0 else errno.errorcode[ctypes.get_errno()]
            answers[key] = answers.get(key, 0) + 1
            if way == "connect udp" and done == 0 and sock.getpeername()[1] != 53:
                answers["got out"] = 1
            sock.close()
        return answers

    shared = mmap.mmap(-1, 4096)
    where = ctypes.addressof(ctypes.c_char.from_buffer(shared))
    server = targets.tcp if way == "connect tcp" else targets.udp
    shared[:16] = struct.pack("=H", 2) + struct.pack("!H4s8x", 53, b"\x7f\0\0\1")
    allowed, forbidden = struct.pack("!H", 53), struct.pack("!H", server.getsockname()[1])
    flipper = os.fork()
    if flipper == 0:
        prctl(PR_SET_PDEATHSIG, 9)
        while True:
            shared[2:4] = forbidden
            shared[2:4] = allowed
    try:
        said, _ = run(attack, targets, Policy("internet", resolver=LOOPBACK))
    finally:
        os.kill(flipper, signal.SIGKILL)
        os.waitpid(flipper, 0)
    assert said.get("EACCES"), "the forbidden port was never seen: the attack did not work"
    assert said.keys() & {"done", "ECONNREFUSED", "EINPROGRESS"}, "the allowed port was never seen: it did not work"
    assert "got out" not in said
    assert not targets.reached()


def test_only_three_kinds_of_socket_exist(targets: Targets) -> None:
    kinds = [
        (socket.AF_INET6, socket.SOCK_STREAM, 0),
        (socket.AF_INET6, socket.SOCK_DGRAM, 0),
        (socket.AF_INET, socket.SOCK_RAW, 1),
        (socket.AF_INET, socket.SOCK_STREAM, 262),
        (socket.AF_INET, socket.SOCK_SEQPACKET, 132),
        (socket.AF_INET, socket.SOCK_DGRAM, 136),
        (socket.AF_PACKET, socket.SOCK_RAW, 3),
        (socket.AF_VSOCK, socket.SOCK_STREAM, 0),
        (38, socket.SOCK_SEQPACKET, 0),
    ]
    said, _ = run(lambda _ports: [outcome(functools.partial(made, *kind)) for kind in kinds], targets, INTERNET)
    assert said == ["EAFNOSUPPORT"] * len(kinds)


def test_start_up_calls_end_with_start_up(targets: Targets) -> None:
    def attack(_ports: dict[str, int]) -> Any:
        return [outcome(functools.partial(made, *kind)) for kind in ((1, 1, 0), (1, 2, 0), (16, 3, 0))]

    assert run(attack, targets, INTERNET)[0] == ["EPERM"] * 3
    early = run(attack, targets, INTERNET, released=False)[0]
    assert all(isinstance(number, int) for number in early)


def test_ports_of_the_host_are_not_the_guests_to_take(targets: Targets) -> None:
    published = free_port(socket.SOCK_STREAM)
    other = free_port(socket.SOCK_STREAM)
    wanted_udp = free_port(socket.SOCK_DGRAM)

    def attack(_ports: dict[str, int]) -> Any:
        good, unbound, wrong, anywhere = (socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(4))
        datagram, fixed = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        return [
            outcome(lambda: good.bind((LOOPBACK, published))),
            outcome(lambda: good.listen(5)),
            outcome(lambda: unbound.listen(5)),
            outcome(lambda: wrong.bind((LOOPBACK, other))),
            outcome(lambda: anywhere.bind(("0.0.0.0", published))),
            outcome(lambda: datagram.bind(("0.0.0.0", wanted_udp))),
            outcome(lambda: fixed.bind((LOOPBACK, wanted_udp))),
        ]

    said, _ = run(attack, targets, Policy("none", published=(Published("tcp", LOOPBACK, published),)))
    assert said == [None, None, "EACCES", "EACCES", "EACCES", None, "EACCES"]


def test_an_accepted_connection_is_a_tcp_socket_in_its_range(targets: Targets) -> None:
    port = free_port(socket.SOCK_STREAM)
    ready, says_ready = os.pipe()

    def attack(ports: dict[str, int]) -> Any:
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        server.bind((LOOPBACK, port))
        server.listen(1)
        first = outcome(server.accept)
        os.write(says_ready, b"x")
        wait_readable(server)
        connection, peer = server.accept()
        forbidden = outcome(lambda: connection.sendmsg([b"y"], [], 0, (LOOPBACK, ports["tcp"])))
        return [first, connection.fileno() >= STREAM[0], peer[0], connection.send(b"hello"), forbidden]

    client = os.fork()
    if client == 0:
        prctl(PR_SET_PDEATHSIG, 9)
        os.read(ready, 1)
        with socket.create_connection((LOOPBACK, port)) as connection:
            data = b""
            while len(data) < 6 and (more := connection.recv(100)):
                data += more
        os._exit(0 if data == b"yhello" else 1)
    said, _ = run(attack, targets, Policy("none", published=(Published("tcp", LOOPBACK, port),)))
    _, status = os.waitpid(client, 0)
    os.close(ready)
    os.close(says_ready)
    # TCP ignores the address of sendmsg: the byte goes to the peer that it has.
    assert said == ["EAGAIN", True, LOOPBACK, 5, 1]
    assert status == 0
    assert not targets.reached()


def test_the_answer_to_a_published_udp_port_goes_to_who_asked(targets: Targets) -> None:
    port = free_port(socket.SOCK_DGRAM)

    def attack(ports: dict[str, int]) -> Any:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((LOOPBACK, port))
        before = outcome(lambda: server.sendto(b"x", (LOOPBACK, ports["udp"])))
        wait_readable(server)
        data, peer = server.recvfrom(100)
        copy = socket.socket(fileno=libc.fcntl(server.fileno(), 1030, 0))
        return [
            PUBLISHED[0] <= server.fileno() < PUBLISHED[0] + PUBLISHED[1],
            PUBLISHED[0] <= copy.fileno() < PUBLISHED[0] + PUBLISHED[1],
            before,
            data.decode(),
            outcome(lambda: copy.sendto(b"answer", peer)),
            outcome(lambda: server.sendto(b"x", (LOOPBACK, ports["udp"]))),
            outcome(lambda: server.recvfrom(100)),
        ]

    client = os.fork()
    if client == 0:
        prctl(PR_SET_PDEATHSIG, 9)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
            mine.connect((LOOPBACK, port))
            mine.settimeout(0.1)
            for _ in range(100):
                try:
                    mine.send(b"question")
                    if mine.recv(100) == b"answer":
                        os._exit(0)
                except OSError:
                    time.sleep(0.02)
        os._exit(1)
    policy = Policy("none", published=(Published("udp", LOOPBACK, port),))
    said, _ = run(attack, targets, policy, released=False)
    _, status = os.waitpid(client, 0)
    assert said[:6] == [True, True, "EACCES", "question", 6, "EACCES"]
    assert status == 0
    assert not targets.reached()


@pytest.mark.parametrize("seed", range(4))
def test_nonsense_neither_stops_the_broker_nor_gets_out(seed: int, targets: Targets) -> None:
    """Random numbers for every argument of every brokered call."""
    table = numbers(MACHINE)
    names = ["socket", "bind", "connect", "listen", "accept", "accept4", "sendto", "sendmsg", "sendmmsg", "recvfrom",
             "recvmsg", "recvmmsg", "getsockname"]  # fmt: skip

    def attack(ports: dict[str, int]) -> Any:
        rng = random.Random(seed)
        kept = [socket.socket(socket.AF_INET, kind) for kind in (1, 2, 2)]
        # What lies in memory is a valid address of the forbidden server, over and over.
        name = struct.pack("=H", 2) + struct.pack("!H4s8x", ports["udp"], b"\x7f\0\0\1")
        room = ctypes.create_string_buffer(name * 64)
        interesting = [
            0,
            1,
            8,
            16,
            28,
            56,
            64,
            1024,
            1 << 31,
            (1 << 32) - 1,
            1 << 40,
            (1 << 64) - 1,
            ctypes.addressof(room),
        ]
        interesting += [sock.fileno() for sock in kept] * 3 + [sock.fileno() | (7 << 32) for sock in kept]
        libc.syscall.restype = ctypes.c_long
        for _ in range(400):
            # Low numbers are the test's own descriptors, on which the child would wait by itself.
            first = rng.choice([2, *(value for value in interesting if value & 0xFFFF_FFFF >= PUBLISHED[0])])
            others = [rng.choice(interesting) + rng.choice((0, 0, 0, 16)) for _ in range(5)]
            arguments = [ctypes.c_ulong(value & (1 << 64) - 1) for value in (first, *others)]
            libc.syscall(ctypes.c_long(table[rng.choice(names)]), *arguments)
        return outcome(lambda: kept[0].connect((LOOPBACK, ports["tcp"])))

    said, _ = run(attack, targets, INTERNET)
    assert said in {"EACCES", "EBADF"}
    assert not targets.reached()


@pytest.mark.parametrize("name", ["dup2", "dup3", "clone3", "socketpair", "pidfd_getfd"])
def test_calls_that_move_descriptors_are_fatal(name: str, targets: Targets) -> None:
    number = numbers(MACHINE)[name]

    def attack(_ports: dict[str, int]) -> Any:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        libc.syscall(ctypes.c_long(number), ctypes.c_long(sock.fileno()), ctypes.c_long(STREAM[0]), 0, 0)
        return "alive"

    assert run(attack, targets, INTERNET)[0] is None


def test_without_the_broker_nothing_works(targets: Targets) -> None:
    """Fails closed: when the listener is gone the filter answers ENOSYS."""

    def attack(ports: dict[str, int]) -> Any:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        os.write(says_ready, b"x")
        os.read(go_read, 1)
        return outcome(lambda: sock.connect((LOOPBACK, ports["tcp"])))

    ready, says_ready = os.pipe()
    go_read, go = os.pipe()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _hostile(attack, {"tcp": targets.tcp.getsockname()[1], "udp": 1}, write_end, theirs)
    pidfd = os.pidfd_open(pid)
    try:
        listener = _take(pidfd, int(ours.recv(16)))
        ours.send(b"x")
        broker = Broker(listener, pidfd, INTERNET, RouteTable(), lambda _line: None, MACHINE)
        while not select.select([ready], [], [], 0.01)[0]:
            broker.handle_ready()
        os.close(listener)
        os.write(go, b"x")
        os.close(write_end)
        with os.fdopen(read_end, "rb") as file:
            assert json.loads(file.read(100)) == "ENOSYS"
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        for descriptor in (pidfd, ready, says_ready, go_read, go):
            os.close(descriptor)
    assert not targets.reached()
