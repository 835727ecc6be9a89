"""Who may write to the guest, and whom it may answer: real UDP sockets on loopback."""

from __future__ import annotations

import errno
import select
import socket

import pytest
from tests.support.ipv6 import needs_ipv6

from casemate.engine.egress_datagrams import (
    PEER_TTL_S,
    PEERS_MAX,
    REPORTS_MAX,
    SOURCES_MAX,
    Destinations,
    endpoint_of,
    protocol_name,
    source_filter,
)
from casemate.engine.egress_policy import Endpoint, Policy, Published
from casemate.sys.sockfilter import attach_filter


def udp() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    made.setblocking(False)
    return made


def where(sock: socket.socket) -> Endpoint:
    return endpoint_of(socket.AF_INET, sock.getsockname())


def arrives(sock: socket.socket) -> bytes | None:
    """What is there; loopback delivers before sendto returns."""
    return sock.recv(100) if select.select([sock], [], [], 0.2)[0] else None


def test_only_listed_senders_get_in() -> None:
    with udp() as mine, udp() as friend, udp() as stranger:
        attach_filter(mine.fileno(), source_filter([]))
        friend.sendto(b"early", mine.getsockname())
        assert arrives(mine) is None
        attach_filter(mine.fileno(), source_filter([Endpoint(2, b"\x08\x08\x08\x08", 53), where(friend)]))
        stranger.sendto(b"no", mine.getsockname())
        assert arrives(mine) is None
        friend.sendto(b"yes", mine.getsockname())
        assert arrives(mine) == b"yes"


def test_the_same_port_of_another_address_is_a_stranger() -> None:
    with udp() as mine, udp() as friend:
        other = Endpoint(2, socket.inet_aton("127.0.0.2"), where(friend).port)
        attach_filter(mine.fileno(), source_filter([other]))
        friend.sendto(b"no", mine.getsockname())
        assert arrives(mine) is None


def udp6() -> socket.socket:
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.bind(("::1", 0))
    made.setblocking(False)
    return made


def where6(sock: socket.socket) -> Endpoint:
    return endpoint_of(socket.AF_INET6, sock.getsockname())


@needs_ipv6
def test_by_ipv6_only_listed_senders_get_in() -> None:
    """Each of the four words of an address counts; as many senders as are remembered fit."""
    with udp6() as mine, udp6() as friend, udp6() as stranger:
        listed = where6(friend)
        raw = bytearray(listed.address)
        for word in range(4):
            changed = raw.copy()
            changed[word * 4] ^= 1
            attach_filter(mine.fileno(), source_filter([Endpoint(10, bytes(changed), listed.port)]))
            friend.sendto(b"no", mine.getsockname())
            assert arrives(mine) is None
        others = [Endpoint(10, bytes(15) + bytes([number]), 53) for number in range(2, SOURCES_MAX + 1)]
        attach_filter(mine.fileno(), source_filter([*others, listed]))
        stranger.sendto(b"no", mine.getsockname())
        friend.sendto(b"yes", mine.getsockname())
        assert arrives(mine) == b"yes"
        assert arrives(mine) is None


@needs_ipv6
def test_a_datagram_of_the_other_family_is_a_strangers() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as mine, udp() as four:
        mine.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        mine.bind(("::", 0))
        address = ("127.0.0.1", mine.getsockname()[1])
        four.sendto(b"works", address)
        assert arrives(mine) == b"works"
        # What the filter would read of an IPv4 header where an IPv6 one has its sender, whatever it is.
        attach_filter(mine.fileno(), source_filter([Endpoint(10, bytes(16), where(four).port)]))
        four.sendto(b"no", address)
        assert arrives(mine) is None


@needs_ipv6
def test_a_published_ipv6_port_answers_who_wrote_by_way_of_the_gateway() -> None:
    with udp6() as mine, udp6() as client:
        published = Published("udp", "::1", where6(mine).port)
        desk = destinations(Policy("none", published=(published,), gateway="10.211.0.1", gateway6="fe80::1"))
        gateway = Endpoint(10, socket.inet_pton(socket.AF_INET6, "fe80::1"), where6(client).port)
        for early in (gateway, where6(client)):
            with pytest.raises(PermissionError):
                desk.agree(mine, "udp", early)
        desk.note_peer(where6(mine), where6(client))
        assert desk.agree(mine, "udp", gateway) == desk.agree(mine, "udp", where6(client)) == where6(client)
        with pytest.raises(PermissionError):
            desk.agree(mine, "udp", gateway._replace(port=gateway.port ^ 1))


@needs_ipv6
def test_the_other_family_is_refused_and_no_name_is_looked_up() -> None:
    desk = destinations(Policy("internet", gateway6="fe80::1"))
    with udp() as four, udp6() as six:
        for sock, to in ((four, Endpoint(10, b"\x26" + bytes(15), 1)), (six, Endpoint(2, b"\x08\x08\x08\x08", 1))):
            with pytest.raises(OSError) as caught:
                desk.agree(sock, "tcp", to)
            assert caught.value.errno == errno.EAFNOSUPPORT


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "name"),
    [
        (2, 1, 6, "tcp"), (10, 1, 0, "tcp"), (2, 2, 17, "udp"), (10, 2, 0, "udp"), (2, 2, 1, "icmp"),
        (10, 2, 58, "icmp"),
        (2, 2, 58, None), (10, 2, 1, None), (10, 3, 58, None), (1, 2, 0, None), (16, 3, 0, None), (10, 1, 262, None),
    ],
)  # fmt: skip
def test_the_kinds_of_socket(family: int, kind: int, protocol: int, name: str | None) -> None:
    assert protocol_name(family, kind, protocol) == name


def destinations(policy: Policy, lines: list[str] | None = None) -> Destinations:
    return Destinations(policy, lambda _family, _address: 1, (lines if lines is not None else []).append)


def test_writing_to_someone_lets_him_answer_and_nobody_else() -> None:
    with udp() as mine, udp() as friend, udp() as stranger:
        desk = destinations(Policy("internet", resolver="127.0.0.1"))
        desk.policy._resolver = where(friend)  # the only exception on loopback, here with the friend's port
        desk.close_to_strangers(mine)
        assert desk.agree(mine, "udp", where(friend)) == where(friend)
        stranger.sendto(b"no", mine.getsockname())
        friend.sendto(b"yes", mine.getsockname())
        assert arrives(mine) == b"yes"
        assert arrives(mine) is None


def test_a_published_port_answers_who_wrote_and_nobody_else() -> None:
    with udp() as mine, udp() as client:
        published = Published("udp", "127.0.0.1", where(mine).port)
        desk = destinations(Policy("none", published=(published,), gateway="10.211.0.1"))
        with pytest.raises(PermissionError):
            desk.agree(mine, "udp", where(client))
        desk.note_peer(where(mine), where(client))
        assert desk.agree(mine, "udp", where(client)) == where(client)
        assert desk.agree(mine, "udp", Endpoint(2, socket.inet_aton("10.211.0.1"), where(client).port)) == where(client)
        for wrong in (where(client).port ^ 1, 22):
            with pytest.raises(PermissionError):
                desk.agree(mine, "udp", Endpoint(2, socket.inet_aton("127.0.0.1"), wrong))
        with pytest.raises(PermissionError):
            desk.agree(mine, "udp", Endpoint(2, socket.inet_aton("10.211.0.1"), where(client).port ^ 1))
        with pytest.raises(PermissionError):
            desk.agree(mine, "tcp", where(client))


def test_another_socket_does_not_inherit_the_right_to_answer() -> None:
    with udp() as mine, udp() as other, udp() as client:
        desk = destinations(Policy("none", published=(Published("udp", "127.0.0.1", where(mine).port),)))
        desk.note_peer(where(mine), where(client))
        with pytest.raises(PermissionError):
            desk.agree(other, "udp", where(client))


def test_the_right_to_answer_ends() -> None:
    now = [1000.0]
    with udp() as mine, udp() as client:
        policy = Policy("none", published=(Published("udp", "127.0.0.1", where(mine).port),))
        lines: list[str] = []
        desk = Destinations(policy, lambda _family, _address: 1, lines.append, lambda: now[0])
        desk.note_peer(where(mine), where(client))
        now[0] += PEER_TTL_S - 1
        assert desk.agree(mine, "udp", where(client))  # and so it is young again
        now[0] += PEER_TTL_S - 1
        assert desk.agree(mine, "udp", where(client))
        now[0] += PEER_TTL_S + 1
        with pytest.raises(PermissionError):
            desk.agree(mine, "udp", where(client))


def test_what_is_remembered_is_bounded() -> None:
    lines: list[str] = []
    desk = destinations(Policy("none"), lines)
    local = Endpoint(2, b"\x7f\0\0\1", 1)
    for port in range(PEERS_MAX + 50):
        desk.note_peer(local, Endpoint(2, b"\x7f\0\0\1", port))
    assert len(desk._peers) == PEERS_MAX
    assert (local, Endpoint(2, b"\x7f\0\0\1", PEERS_MAX + 49)) in desk._peers
    with udp() as mine:
        for port in range(100):
            with pytest.raises(OSError) as caught:
                desk.agree(mine, "tcp", Endpoint(2, b"\x08\x08\x08\x08", port))
            assert caught.value.errno == errno.EACCES
    assert len(lines) == REPORTS_MAX
    assert lines[0] == "egress refused: tcp 8.8.8.8:0: egress is none"
    assert desk.refused == {"egress is none": 100}
