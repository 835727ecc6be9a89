"""Who may write to the guest, and whom it may answer: real UDP sockets on loopback."""

from __future__ import annotations

import errno
import select
import socket

import pytest

from casemate.engine.egress_datagrams import (
    PEER_TTL_S,
    PEERS_MAX,
    REPORTS_MAX,
    Destinations,
    endpoint_of,
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
