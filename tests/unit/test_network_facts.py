"""The kernel's tables of sockets, as the read-back of published ports takes them."""

from __future__ import annotations

import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.engine.network_facts import _listening, packed, parse_table

TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000
   1: B80D0120000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000
   2: 00000000000000000000000001000000:0050 00000000000000000000000001000000:C350 01 00000000:00000000 00:00000000
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the table above is of a little-endian machine")
def test_listening_sockets_of_ipv6() -> None:
    assert parse_table(TCP6, "tcp", "0A") == {("tcp", packed("::1"), 8080), ("tcp", packed("2001:db8::1"), 22)}


@given(st.text(max_size=200))
def test_any_table_gives_sockets_or_an_error(text: str) -> None:
    try:
        found = parse_table("head\n" + text, "udp", "07")
    except (ValueError, OverflowError):
        return
    assert all(protocol == "udp" for protocol, _, _ in found)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_live_listener_is_found_at_its_address(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as server:
        try:
            server.bind((address, 0))
        except OSError:
            pytest.skip(f"this host has no {address}")
        port = server.getsockname()[1]
        wanted = ("tcp", packed(address), port)
        assert wanted not in (_listening() or set())
        server.listen(1)
        assert wanted in (_listening() or set())
