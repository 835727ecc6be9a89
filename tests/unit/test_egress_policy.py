"""Where a guest may send: every refused block, the exceptions, and what can never be allowed."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from casemate.engine.egress_policy import NEVER, NOT_PUBLIC, TRANSLATED, Endpoint, Policy, Published, block
from casemate.spec import network as spec_network
from casemate.sys import rtnetlink

UNICAST, LOCAL, BROADCAST = 1, 2, 3


def to(address: str, port: int = 80) -> Endpoint:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return Endpoint(int(family), socket.inet_pton(family, address), port)


def remote(_family: int, _address: bytes) -> int:
    return UNICAST


def own(_family: int, _address: bytes) -> int:
    return LOCAL


def no_route(_family: int, _address: bytes) -> int:
    raise OSError(101, "Network is unreachable")


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.9.9.9",
        "169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.168.0.1",
        "198.18.0.1", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::ffff:8.8.8.8", "::ffff:127.0.0.1", "::8.8.8.8", "64:ff9b::808:808", "fc00::1", "fd00::1",
        "fe80::1", "fec0::1", "ff02::1", "2001:db8::1", "2002:808:808::1", "2001::1", "100::1",
    ],
)  # fmt: skip
def test_internet_refuses_what_is_not_public(address: str) -> None:
    assert Policy("internet").refusal("tcp", to(address), remote)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.0.0.1", "172.15.0.1", "172.32.0.1", "100.63.0.1", "2606:4700::1"])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
def test_internet_allows_public_addresses(address: str, protocol: str) -> None:
    assert Policy("internet").refusal(protocol, to(address), remote) == ""


@pytest.mark.parametrize("mode", ["internet", "list"])
@pytest.mark.parametrize("kind", [LOCAL, BROADCAST, 0, 5])
def test_addresses_of_the_host_are_refused(mode: str, kind: int) -> None:
    policy = Policy(mode, ("8.8.8.0/24",) if mode == "list" else ())
    assert policy.refusal("tcp", to("8.8.8.8"), lambda _f, _a: kind) == "an address of this host"


def test_the_host_is_reached_only_when_its_very_address_is_listed() -> None:
    assert Policy("list", ("192.168.1.0/24",)).refusal("tcp", to("192.168.1.5"), own)
    assert Policy("list", ("192.168.1.5/32",)).refusal("tcp", to("192.168.1.5"), own) == ""
    assert Policy("list", ("192.168.1.0/24", "192.168.1.5/32")).refusal("tcp", to("192.168.1.5"), own) == ""


@pytest.mark.parametrize("mode", ["internet", "list"])
def test_no_answer_of_the_routing_table_is_no_permission(mode: str) -> None:
    policy = Policy(mode, ("8.8.8.0/24",) if mode == "list" else ())
    with pytest.raises(OSError, match="unreachable"):
        policy.refusal("tcp", to("8.8.8.8"), no_route)


@pytest.mark.parametrize(("mode", "expected"), [("internet", "a neighbour of this host"), ("list", "")])
def test_a_neighbour_by_ipv6_has_a_public_address_and_is_none_of_the_internet(mode: str, expected: str) -> None:
    policy = Policy(mode, ("2606:4700::/32",) if mode == "list" else ())
    assert policy.refusal("tcp", to("2606:4700::1"), lambda _f, _a: rtnetlink.RTN_ON_LINK) == expected


@pytest.mark.parametrize(
    ("address", "inner"),
    [
        ("64:ff9b::127.0.0.1", "the host's loopback"),
        ("64:ff9b::169.254.169.254", "link-local, where clouds keep their metadata"),
        ("64:ff9b:1:2:3:4:127.0.0.1", "the host's loopback"),
        ("::ffff:0:127.0.0.1", "the host's loopback"),
        ("2002:7f00:1::5", "the host's loopback"),
        ("2002:a9fe:a9fe::", "link-local, where clouds keep their metadata"),
        ("2001:0:1:2:3:4:80ff:fffe", "the host's loopback"),
        ("2001:0:1:2:3:4:5601:5601", "link-local, where clouds keep their metadata"),
        ("64:ff9b::224.0.0.1", "multicast"),
    ],
)
def test_no_list_opens_what_a_translator_would_make_of_an_address(address: str, inner: str) -> None:
    """The whole of IPv6 listed, block by block as the specification would take it."""
    everything = tuple(f"{first:x}::/4" for first in range(0, 0x10000, 0x1000))
    assert Policy("list", everything).refusal("tcp", to(address), remote) == f"IPv4 in disguise: {inner}"


def test_a_list_may_open_a_translator() -> None:
    policy = Policy("list", ("64:ff9b::/96",))
    assert policy.refusal("tcp", to("64:ff9b::10.0.0.1"), remote) == ""
    assert Policy("internet").refusal("tcp", to("64:ff9b::8.8.8.8"), remote)


@pytest.mark.parametrize("address", ["fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe"])
def test_a_private_block_that_is_listed_leaves_the_metadata_out(address: str) -> None:
    policy = Policy("list", ("fd00::/8",))
    assert "metadata" in policy.refusal("tcp", to(address), remote)
    assert policy.refusal("tcp", to("fd00:ec2::253"), remote) == ""
    assert spec_network.forbidden_part(f"{address}/128") == f"{address}/128 (cloud metadata)"
    assert spec_network.forbidden_part("fd00::/8") is None


def test_none_reaches_nothing_and_asks_nobody() -> None:
    assert Policy("none").refusal("tcp", to("8.8.8.8"), no_route) == "egress is none"


def test_list_is_exact() -> None:
    policy = Policy("list", ("10.1.0.0/16", "2001:db8::/32"))
    assert policy.refusal("tcp", to("10.1.255.255"), remote) == ""
    assert policy.refusal("tcp", to("2001:db8::1"), remote) == ""
    assert policy.refusal("tcp", to("10.2.0.0"), remote) == "not listed"
    assert policy.refusal("tcp", to("8.8.8.8"), remote) == "not listed"
    assert policy.refusal("tcp", to("2001:db9::1"), remote) == "not listed"


@pytest.mark.parametrize(("text", "what"), NEVER)
def test_a_list_never_opens_these(text: str, what: str) -> None:
    """The specification refuses them already; the broker does not count on that."""
    inside = to(str(ipaddress.ip_network(text)[0]))
    assert Policy("list", (text,)).refusal("tcp", inside, remote) == what


def test_the_resolver_is_one_address_and_one_port() -> None:
    policy = Policy("internet", resolver="10.0.0.53")
    assert policy.refusal("udp", to("10.0.0.53", 53), no_route) == ""
    assert policy.refusal("tcp", to("10.0.0.53", 53), no_route) == ""
    assert policy.refusal("icmp", to("10.0.0.53", 53), no_route)
    assert policy.refusal("udp", to("10.0.0.53", 54), remote)
    assert policy.refusal("udp", to("10.0.0.54", 53), remote)
    assert Policy("internet").refusal("udp", to("10.0.0.53", 53), remote)


@pytest.mark.parametrize("mode", ["", "all", "Internet"])
def test_unknown_modes_do_not_exist(mode: str) -> None:
    with pytest.raises(ValueError, match="expected none, internet or list"):
        Policy(mode)


def test_an_empty_list_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="empty list"):
        Policy("list")


@pytest.mark.parametrize("text", ["8.8.8.8", "8.8.8.8/33", "8.8.8.8/-1", "8.8.8.8/24", "x/8", "::/129", "fe80::1/64"])
def test_blocks_are_read_strictly(text: str) -> None:
    with pytest.raises((ValueError, OSError)):
        block(text)


def test_published_ports_are_known_by_their_exact_address() -> None:
    policy = Policy("none", published=(Published("udp", "127.0.0.1", 5353),))
    assert policy.is_published("udp", to("127.0.0.1", 5353))
    for protocol, address, port in (("tcp", "127.0.0.1", 5353), ("udp", "0.0.0.0", 5353), ("udp", "127.0.0.1", 53)):
        assert not policy.is_published(protocol, to(address, port))


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


@given(addresses)
@example("::ffff:10.0.0.1")
@example("2002:7f00:1::")
def test_internet_never_allows_what_python_calls_private(address: str) -> None:
    """An independent list: the standard library's reading of IANA's registries."""
    if Policy("internet").refusal("tcp", to(address), remote) == "":
        known = ipaddress.ip_address(address)
        assert known.is_global
        assert not known.is_multicast


@given(addresses, addresses, st.integers(0, 128))
def test_a_list_allows_exactly_its_blocks(address: str, base: str, prefix: int) -> None:
    bits = 32 if "." in base else 128
    network = ipaddress.ip_network((base, min(prefix, bits)), strict=False)
    allowed = Policy("list", (str(network),)).refusal("tcp", to(address), remote) == ""
    known = ipaddress.ip_address(address)
    never = any(known in ipaddress.ip_network(text) for text, _ in NEVER)
    translated = any(known in ipaddress.ip_network(text) for text, _, _ in TRANSLATED)
    assert not allowed or (known in network and not never)
    assert allowed or translated or known not in network or never  # what is translated has tests of its own


@given(
    st.sampled_from(["none", "internet", "list"]),
    st.lists(st.sampled_from(["8.8.8.0/24", "fd00::/8"]), min_size=1),
    st.sampled_from(["", "fe80::1"]),
)
def test_a_policy_survives_its_hand_over(mode: str, allow: list[str], gateway6: str) -> None:
    policy = Policy(mode, tuple(allow), "10.0.0.53", (Published("tcp", "::1", 80),), "10.211.0.1", gateway6)
    assert Policy.from_data(policy.to_data()).to_data() == policy.to_data()


def test_the_broker_refuses_at_least_what_the_specification_refuses() -> None:
    mine = [ipaddress.ip_network(text) for text, _ in NEVER]
    for text in (*(text for text, _ in spec_network._NEVER_ALLOWED), *spec_network.METADATA):
        theirs = ipaddress.ip_network(text)
        assert any(theirs.version == item.version and theirs.subnet_of(item) for item in mine), text  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "_what"), [*NEVER, *NOT_PUBLIC])
def test_every_block_of_the_tables_is_one(text: str, _what: str) -> None:
    assert str(ipaddress.ip_network(text)) == text


def test_policy_and_routing_table_mean_the_same_kinds() -> None:
    assert UNICAST == rtnetlink.RTN_UNICAST
