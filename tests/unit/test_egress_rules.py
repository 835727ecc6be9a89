"""The filter in front of the broker: what passes at full speed, what is asked, what is fatal."""

from __future__ import annotations

import itertools

import pytest

from casemate.bpf.evaluate import RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS, RET_USER_NOTIF, SeccompData, evaluate
from casemate.bpf.instruction import Program, decode
from casemate.bpf.syscalls import audit_arch, number_of
from casemate.jail.broker_rules import broker_profile
from casemate.jail.compile import compile_profile
from casemate.jail.egress import BROKERED, FORBIDDEN, REPLACED, with_broker
from casemate.jail.ranges import DATAGRAM, NOFILE, OWN, PUBLISHED, STREAM, TAP_FD
from casemate.jail.rules import Profile, Rule

ARCH = "x86_64"
BASE = Profile("base", (Rule("read", "test"), Rule("sendmsg", "too wide"), Rule("socket", "too wide")))
PROGRAM = decode(compile_profile(with_broker(BASE), ARCH))
RUBBISH = 0xDEAD_BEEF << 32
FASTOPEN = 0x2000_0000


def ask(name: str, *args: int) -> int:
    padded = (*args, *(0,) * (6 - len(args)))
    return evaluate(PROGRAM, SeccompData(number_of(name, ARCH), audit_arch(ARCH), 0, padded))


@pytest.mark.parametrize("name", sorted(BROKERED - {"fcntl", "getsockname"}))
def test_every_call_that_reaches_a_network_can_be_asked_about(name: str) -> None:
    first = PUBLISHED[0]
    assert ask(name, first, 1, 1, 1, 0x7F00, 16) == RET_USER_NOTIF


@pytest.mark.parametrize("span", [OWN, DATAGRAM])
def test_messages_to_datagram_sockets_are_asked(span: tuple[int, int]) -> None:
    for number in (span[0], span[0] + span[1] - 1):
        for high in (0, RUBBISH):
            wanted = RET_ALLOW if number == TAP_FD else RET_USER_NOTIF
            assert ask("sendmsg", number | high, 1, 0) == wanted


def test_rubbish_above_the_32_bits_does_not_change_the_range() -> None:
    """The kernel cuts the number to an int: 0xdeadbeef00000801 is descriptor 0x801."""
    assert ask("sendmsg", RUBBISH | STREAM[0], 1, 0) == RET_ALLOW
    assert ask("sendmsg", RUBBISH | DATAGRAM[0], 1, 0) == RET_USER_NOTIF
    assert ask("sendmsg", (STREAM[0] << 32) | DATAGRAM[0], 1, 0) == RET_USER_NOTIF
    assert ask("recvmsg", (STREAM[0] << 32) | PUBLISHED[0], 1, 0) == RET_USER_NOTIF


def test_tcp_data_passes_but_fast_open_is_asked() -> None:
    for number in (STREAM[0], STREAM[0] + STREAM[1] - 1):
        assert ask("sendmsg", number, 1, 0x4000) == RET_ALLOW
        assert ask("sendmsg", number, 1, FASTOPEN) == RET_USER_NOTIF
    assert ask("sendmsg", NOFILE, 1, 0) == RET_USER_NOTIF
    assert ask("sendto", STREAM[0], 1, 1, 0, 0, 0) == RET_ALLOW
    assert ask("sendto", STREAM[0], 1, 1, FASTOPEN, 0, 0) == RET_USER_NOTIF
    assert ask("sendto", STREAM[0], 1, 1, 0, 0x1000, 16) == RET_USER_NOTIF
    assert ask("sendto", STREAM[0], 1, 1, 0, 1 << 40, 16) == RET_USER_NOTIF


def test_receiving_is_asked_on_published_ports_only() -> None:
    for name in ("recvfrom", "recvmsg", "recvmmsg"):
        for span in (OWN, DATAGRAM, STREAM):
            assert ask(name, span[0]) == ask(name, span[0] + span[1] - 1) == RET_ALLOW
        assert ask(name, PUBLISHED[0]) == ask(name, PUBLISHED[0] + PUBLISHED[1] - 1) == RET_USER_NOTIF


def test_which_port_a_socket_has_is_asked_of_outgoing_udp_only() -> None:
    assert ask("getsockname", DATAGRAM[0]) == ask("getsockname", DATAGRAM[0] + DATAGRAM[1] - 1) == RET_USER_NOTIF
    assert ask("getsockname", RUBBISH | DATAGRAM[0]) == RET_USER_NOTIF
    for span in (OWN, PUBLISHED, STREAM):
        assert ask("getsockname", span[0]) == RET_ALLOW


def test_descriptors_do_not_move() -> None:
    """Only the broker puts a descriptor on a number of a range."""
    for name in ("dup", "dup2", "dup3", "clone", "clone3", "pidfd_getfd", "io_uring_setup", "socketpair"):
        assert ask(name, 3, STREAM[0]) == RET_KILL_PROCESS
    assert ask("fcntl", 3, 0, STREAM[0]) == RET_ERRNO | 1  # F_DUPFD
    assert ask("fcntl", DATAGRAM[0], 1030, STREAM[0]) == RET_USER_NOTIF  # F_DUPFD_CLOEXEC
    assert ask("fcntl", STREAM[0], 3) == RET_ALLOW  # F_GETFL


def test_sockets_stay_non_blocking() -> None:
    assert ask("fcntl", TAP_FD, 4, 0) == RET_ALLOW
    for span in (PUBLISHED, DATAGRAM, STREAM):
        assert ask("fcntl", span[0], 4, 0) == RET_ERRNO | 1
        assert ask("ioctl", span[0], 0x5421) == RET_KILL_PROCESS  # FIONBIO


@pytest.mark.parametrize(
    ("level", "option"),
    [(0, 4), (0, 15), (0, 19), (0, 25), (1, 25), (1, 26), (1, 36), (41, 57), (41, 26), (6, 30), (6, 23), (6, 31)],
    ids=["IP_OPTIONS", "IP_FREEBIND", "IP_TRANSPARENT", "IP_MSFILTER", "SO_BINDTODEVICE", "SO_ATTACH_FILTER",
         "SO_MARK", "IPV6_RTHDR", "IPV6_V6ONLY", "TCP_FASTOPEN_CONNECT", "TCP_FASTOPEN", "TCP_ULP"],
)  # fmt: skip
def test_options_that_change_a_destination_do_not_exist(level: int, option: int) -> None:
    assert ask("setsockopt", STREAM[0], level, option) == RET_ERRNO | 1


def test_ranges_are_disjoint_and_bounded() -> None:
    spans = sorted((OWN, PUBLISHED, DATAGRAM, STREAM))
    assert all(first + size <= after for (first, size), (after, _) in itertools.pairwise(spans))
    assert all(size & (size - 1) == 0 and first % size == 0 for first, size in spans)
    assert spans[-1][0] + spans[-1][1] == NOFILE


def test_the_profiles_own_rules_give_way() -> None:
    made = with_broker(BASE)
    assert not [rule for rule in made.rules if rule.reason == "too wide"]
    assert {rule.syscall for rule in made.rules} >= REPLACED
    assert made.name == "base+broker"


@pytest.mark.parametrize("name", sorted(FORBIDDEN))
def test_a_profile_that_goes_round_the_broker_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"round the broker: {name}$"):
        with_broker(Profile("bad", (*BASE.rules, Rule(name, "test"))))


def test_the_broker_itself_opens_nothing() -> None:
    own, own6 = (decode(compile_profile(broker_profile(100, 5, 6, ipv6=ipv6), ARCH)) for ipv6 in (False, True))

    def mine(name: str, *args: int, program: Program = own) -> int:
        padded = (*args, *(0,) * (6 - len(args)))
        return evaluate(program, SeccompData(number_of(name, ARCH), audit_arch(ARCH), 0, padded))

    for name in ("open", "openat", "openat2", "execve", "execveat", "clone", "clone3", "fork", "kill", "ptrace",
                 "unlink",
                 "mount", "setuid", "pidfd_open", "bpf", "chmod", "rename", "socketpair"):  # fmt: skip
        assert mine(name) == RET_KILL_PROCESS
    assert mine("process_vm_readv", 100) == RET_ALLOW
    assert mine("process_vm_readv", 101) == mine("process_vm_writev", 1) == RET_KILL_PROCESS
    assert mine("pidfd_getfd", 5) == RET_ALLOW
    assert mine("pidfd_getfd", 6) == RET_KILL_PROCESS
    assert mine("socket", 2) == RET_ALLOW
    assert mine("socket", 10) == mine("socket", 1) == mine("socket", 17) == RET_KILL_PROCESS
    assert mine("mmap", 0, 4096, 4) == mine("mmap", 0, 4096, 7) == RET_KILL_PROCESS
    assert mine("socket", 2, program=own6) == mine("socket", 10, program=own6) == RET_ALLOW
    assert mine("socket", 1, program=own6) == mine("socket", 17, program=own6) == RET_KILL_PROCESS
    assert mine("setsockopt", 9, 41, 26, program=own6) == RET_ALLOW
    assert mine("setsockopt", 9, 41, 26) == mine("setsockopt", 9, 41, 57, program=own6) == RET_KILL_PROCESS
