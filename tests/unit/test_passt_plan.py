"""passt's arguments and wall for a specification; the resolver and the routing table that the policy asks."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.hosts import HOST, ROOT_IDENTITY, plan_of
from tests.support.ipv6 import has_ipv6

from casemate.engine.network import check_ipv6, make_policy
from casemate.engine.resolver import host_resolver
from casemate.errors import HostError
from casemate.jail.egress import with_broker
from casemate.jail.policy import CopyFile, Directory
from casemate.jail.profiles import passt_profile
from casemate.jail.ranges import NOFILE
from casemate.jail.steps import RestrictSelf, describe, inner_steps
from casemate.plan.model import HelperPlan, LaunchPlan
from casemate.plan.passt import DNS6, GATEWAY, GATEWAY6, GUEST, GUEST6, passt_wall, plan_passt
from casemate.spec.model import Egress, Network, NetworkMode, Publish, Spec
from casemate.sys.rtnetlink import RTN_LOCAL, RTN_ON_LINK, RTN_UNICAST, RouteTable, _route_kind


def planned(egress: str = "internet", *publish: Publish, allow: tuple[str, ...] = ()) -> tuple[LaunchPlan, HelperPlan]:
    network = Network(mode=NetworkMode.USER, egress=Egress(egress), allow=allow, publish=publish)
    plan = plan_of(Spec(network=network))
    return plan, plan.helpers[0]


def pairs(helper: HelperPlan) -> set[tuple[str, str]]:
    return set(itertools.pairwise(helper.argv))


def test_the_arguments_are_all_explicit() -> None:
    _, helper = planned(
        "internet", Publish(host_port=2222, guest_port=22), Publish(host_port=53, guest_port=53, protocol="udp")
    )
    assert helper.argv == (
        "/usr/bin/passt", "--foreground", "--one-off", "--fd", "3", "-4", "-i", "lo",
        "-a", "10.211.0.2", "-n", "24", "-g", "10.211.0.1", "-M", "02:ca:5e:00:00:01", "--no-map-gw", "-S", "none",
        "--dns-forward", "10.211.0.1", "-t", "127.0.0.1/2222:22", "-u", "127.0.0.1/53:53",
    )  # fmt: skip


@pytest.mark.parametrize("egress", list(Egress))
def test_the_host_is_never_mapped_and_nothing_is_published_unasked(egress: Egress) -> None:
    _, helper = planned(egress.value, allow=("192.0.2.0/24",) if egress is Egress.LIST else ())
    assert "--no-map-gw" in helper.argv
    assert {("-t", "none"), ("-u", "none")} <= pairs(helper)
    assert ("-D" in helper.argv) == (egress is Egress.NONE)
    assert helper.egress is not None
    assert (helper.egress.mode, helper.egress.gateway) == (egress.value, GATEWAY)


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(1, 65535), st.sampled_from(["tcp", "udp"])), max_size=20))
def test_exactly_the_published_ports(ports: list[tuple[int, int, str]]) -> None:
    publish = tuple(Publish(host_port=host, guest_port=guest, protocol=protocol) for host, guest, protocol in ports)
    helper = plan_passt(Spec(network=Network(mode=NetworkMode.USER, publish=publish)), "/usr/bin/passt")
    wanted = {({"tcp": "-t", "udp": "-u"}[protocol], f"127.0.0.1/{host}:{guest}") for host, guest, protocol in ports}
    found = {pair for pair in pairs(helper) if pair[0] in {"-t", "-u"} and pair[1] != "none"}
    assert found == wanted
    assert helper.egress is not None
    assert set(helper.egress.published) == {(protocol, "127.0.0.1", host) for host, _, protocol in ports}


@pytest.mark.parametrize("egress", [Egress.NONE, Egress.INTERNET])
def test_a_guest_with_ipv6_gets_both(egress: Egress) -> None:
    publish = (Publish(host_port=8080, guest_port=80, address="::1"), Publish(host_port=22, guest_port=22))
    network = Network(mode=NetworkMode.USER, egress=egress, ipv6=True, publish=publish)
    plan = plan_of(Spec(network=network))
    helper = plan.helpers[0]
    assert not {"-4", "-6"} & set(helper.argv)
    assert {("-a", GUEST), ("-a", GUEST6), ("-g", GATEWAY), ("-g", GATEWAY6)} <= pairs(helper)
    assert {("-t", "::1/8080:80"), ("-t", "127.0.0.1/22:22")} <= pairs(helper)
    assert (("--dns-forward", DNS6) in pairs(helper)) == (egress is Egress.INTERNET)
    assert "--no-icmp" not in helper.argv, "versions of 2023 answer no router solicitation with it"
    assert helper.egress is not None
    assert helper.egress.gateway6 == GATEWAY6
    text = "\n".join(helper.wall)
    assert f"{GATEWAY6} on a loopback that is down" in text
    assert "[::1]:8080/tcp" in text
    wall = passt_wall(helper, plan.wall, {}, ROOT_IDENTITY)
    assert wall.link_local == GATEWAY6
    assert f"{GATEWAY6} on the loopback device" in "\n".join(describe(wall))
    assert not plan.wall.link_local, "the emulator's namespace stays empty"


def test_the_guests_address_is_the_one_that_it_makes_itself() -> None:
    """RFC 4291, appendix A: the hardware address with ff:fe in its middle and the universal bit turned."""
    mac = next(word for word in plan_of(Spec(network=Network(mode=NetworkMode.USER))).wall.argv if "mac=" in word)
    raw = bytes.fromhex(mac.partition("mac=")[2][:17].replace(":", ""))
    own = bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    assert socket.inet_pton(socket.AF_INET6, GUEST6)[8:] == own
    assert socket.inet_pton(socket.AF_INET6, DNS6)[:8] == socket.inet_pton(socket.AF_INET6, GUEST6)[:8]


def test_a_kernel_without_ipv6_is_said(tmp_path: Path) -> None:
    check_ipv6(str(tmp_path))
    with pytest.raises(HostError, match="this kernel has none") as caught:
        check_ipv6(str(tmp_path / "if_inet6"))
    assert "network.ipv6 = false" in caught.value.next_step


def test_a_vm_without_a_network_has_no_passt() -> None:
    assert plan_of(Spec()).helpers == ()
    with pytest.raises(RuntimeError):
        plan_passt(Spec(), "/usr/bin/passt")


def test_the_plan_says_how_passt_is_confined() -> None:
    _, helper = planned("list", Publish(host_port=80, guest_port=80), allow=("192.0.2.0/24",))
    text = "\n".join(helper.wall)
    for word in (
        "network namespace stays empty",
        "passt itself",
        "asked of the broker",
        "192.0.2.0/24",
        "127.0.0.1:80/tcp",
    ):
        assert word in text


def test_the_wall_is_the_vms_but_for_its_root() -> None:
    plan, helper = planned()
    wall = passt_wall(helper, plan.wall, {"/usr/bin/passt": "/usr/bin/passt"}, ROOT_IDENTITY)
    assert wall.identity == plan.run_as == ROOT_IDENTITY
    assert wall.cgroup == plan.wall.cgroup
    assert wall.without == ()
    assert wall.environment == ()
    limits = {limit.name: limit.value for limit in wall.rlimits}
    assert (limits["core"], limits["fsize"], limits["nofile"]) == (0, 0, NOFILE)
    assert [item.number for item in wall.descriptors] == [0, 1, 2, 3]
    copied = {entry.target for entry in wall.root if isinstance(entry, CopyFile)}
    assert copied == {"/etc/resolv.conf", "/proc/self/uid_map"}
    assert [entry.target for entry in wall.root if isinstance(entry, Directory)] == ["/tmp"]
    assert "new root" in "\n".join(describe(wall))


@pytest.mark.parametrize(("abi", "restricted"), [(0, False), (1, False), (3, False), (4, True), (6, True)])
def test_landlock_takes_the_network_but_not_the_mounts(abi: int, restricted: bool) -> None:
    plan, helper = planned()
    wall = passt_wall(helper, msgspec.structs.replace(plan.wall, landlock_abi=abi), {}, ROOT_IDENTITY)
    steps = inner_steps(wall)
    assert bool(steps) == restricted
    assert all(isinstance(step, RestrictSelf) and not step.files for step in steps)


def test_passts_profile_leaves_no_way_round_the_broker() -> None:
    """`with_broker` refuses a profile with such a call: this pins the real one."""
    names = {rule.syscall for rule in with_broker(passt_profile()).rules}
    assert not names & {"dup", "dup2", "dup3", "clone", "clone3", "io_uring_setup", "socketpair", "pidfd_getfd"}


def test_without_passt_the_package_is_named() -> None:
    with pytest.raises(HostError, match="apt-get install passt"):
        plan_of(Spec(network=Network(mode=NetworkMode.USER)), msgspec.structs.replace(HOST, passt=None))


@pytest.mark.parametrize(
    ("egress", "allow", "resolver", "given"),
    [
        ("internet", (), "10.0.0.53", "10.0.0.53"),
        ("internet", (), None, None),
        ("none", (), "10.0.0.53", None),
        ("list", ("192.0.2.0/24",), "10.0.0.53", None),
        ("list", ("10.0.0.0/24",), "10.0.0.53", "10.0.0.53"),
        ("list", ("10.0.0.0/24",), "127.0.0.53", None),
        ("internet", (), "127.0.0.53", "127.0.0.53"),
    ],
)
def test_dns_is_given_where_the_policy_has_it(
    egress: str, allow: tuple[str, ...], resolver: str | None, given: str | None
) -> None:
    _, helper = planned(egress, allow=allow)
    assert helper.egress is not None
    assert make_policy(helper.egress, resolver).resolver == given


def test_the_first_resolver_that_a_guest_can_use(tmp_path: Path) -> None:
    first, upstream = tmp_path / "resolv.conf", tmp_path / "upstream"
    first.write_text(
        "# comment\nsearch example.org\nnameserver fe80::1%eth0\n nameserver 192.0.2.53 \nnameserver 192.0.2.54\n"
    )
    assert host_resolver(str(first), str(upstream)) == "192.0.2.53"
    first.write_text("nameserver 127.0.0.53\noptions edns0\n")
    assert host_resolver(str(first), str(upstream)) == "127.0.0.53"
    upstream.write_text("nameserver 198.51.100.1\n")
    assert host_resolver(str(first), str(upstream)) == "198.51.100.1"
    first.write_text("nameserver\nnameserver 1.2.3\nnameserver 0x7f.1\n")
    assert host_resolver(str(first), str(upstream)) is None
    assert host_resolver(str(tmp_path / "none"), str(upstream)) is None


def test_a_guest_with_ipv6_may_ask_a_resolver_that_has_only_that(tmp_path: Path) -> None:
    first, upstream = tmp_path / "resolv.conf", tmp_path / "upstream"
    first.write_text("nameserver fe80::1%eth0\nnameserver fe80::2\nnameserver 2001:DB8::0:53\n")
    assert host_resolver(str(first), str(upstream)) is None
    assert host_resolver(str(first), str(upstream), ipv6=True) == "2001:db8::53"
    upstream.write_text("nameserver fd00::53\n")
    first.write_text("nameserver ::1\n")
    assert host_resolver(str(first), str(upstream), ipv6=True) == "fd00::53"
    first.write_text("nameserver ::1\nnameserver 192.0.2.53\n")
    assert host_resolver(str(first), str(upstream), ipv6=True) == "192.0.2.53"


@given(st.binary(max_size=300))
def test_any_resolv_conf_gives_an_address_or_none(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = tmp_path_factory.mktemp("resolv") / "resolv.conf"
    path.write_bytes(b"nameserver " + text)
    found = host_resolver(str(path), "/nonexistent")
    assert found is None or socket.inet_ntoa(socket.inet_aton(found)) == found


def test_the_routing_table_knows_its_own_host() -> None:
    table = RouteTable()
    assert table.kind(socket.AF_INET, socket.inet_aton("127.0.0.1")) == RTN_LOCAL
    assert table.kind(socket.AF_INET, socket.inet_aton("127.5.5.5")) == RTN_LOCAL
    if has_ipv6():
        assert table.kind(socket.AF_INET6, bytes(15) + b"\1") == RTN_LOCAL
    try:
        other = table.kind(socket.AF_INET, socket.inet_aton("8.8.8.8"))
    except OSError as fault:
        other = -(fault.errno or 0)
    assert other in {RTN_UNICAST, -errno.ENETUNREACH}
    again = RouteTable(os.dup(table.socket.fileno()))
    assert again.kind(socket.AF_INET, socket.inet_aton("127.0.0.1")) == RTN_LOCAL


@given(st.integers(0, 65535), st.binary(max_size=64))
def test_any_netlink_answer_is_a_kind_or_an_error(kind: int, body: bytes) -> None:
    try:
        found = _route_kind(kind, body)
    except OSError:
        return
    assert kind == 24
    assert found == body[7] or (found, body[0], body[7]) == (RTN_ON_LINK, socket.AF_INET6, RTN_UNICAST)


@pytest.mark.parametrize(
    ("family", "prefix", "attributes", "kind"),
    [
        (10, 64, [], RTN_ON_LINK),
        (10, 48, [], RTN_ON_LINK),
        (10, 128, [1, 4], RTN_ON_LINK),
        (10, 64, [1, 5], RTN_UNICAST),
        (10, 64, [18], RTN_UNICAST),
        (10, 64, [0x8009], RTN_UNICAST),
        (10, 0, [], RTN_UNICAST),
        (10, 3, [4], RTN_UNICAST),
        (2, 24, [], RTN_UNICAST),
    ],
)
def test_a_neighbour_is_behind_no_router(family: int, prefix: int, attributes: list[int], kind: int) -> None:
    """A short prefix without a gateway is a tunnel that leads everywhere."""
    body = struct.pack("=BBBBBBBBI", family, prefix, 0, 0, 254, 0, 0, RTN_UNICAST, 0)
    body += b"".join(struct.pack("=HHI", 8, number, 0) for number in attributes)
    assert _route_kind(24, body) == kind


def test_a_netlink_error_is_passed_on() -> None:
    with pytest.raises(OSError, match="unreachable"):
        _route_kind(2, struct.pack("=i", -errno.ENETUNREACH) + bytes(16))
    with pytest.raises(OSError, match="Input/output"):
        _route_kind(2, struct.pack("=i", 0) + bytes(16))


def test_the_guest_and_its_gateway_share_a_network() -> None:
    assert socket.inet_aton(GUEST)[:3] == socket.inet_aton(GATEWAY)[:3]
