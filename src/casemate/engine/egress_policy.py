"""Where a guest may send: the decision, without any I/O. Standard library only: it runs in the broker.

An address is judged in these steps; the first that speaks decides:

1. The host's resolver, at its exact address and port 53: allowed where the policy gives DNS.
2. ``none``: refused.
3. Blocks that no guest ever reaches (loopback, link-local and metadata of clouds, multicast, IPv4 in disguise); also
   when a translator (NAT64, 6to4, Teredo, SIIT) would make such an IPv4 address of it.
4. ``list``: outside of every listed block: refused. ``internet``: inside a block that is not public: refused.
5. What the kernel's routing table says: this host's own addresses and broadcasts are refused, unless ``list`` names the
   very address (a /32 or /128). ``internet``: so are its neighbours by IPv6, whose addresses are public ones.

Peers of a published UDP port are no part of this: the broker lets the guest answer who wrote to it.
"""

from __future__ import annotations

import socket
from typing import Final, NamedTuple

from casemate.sys.rtnetlink import RTN_ON_LINK, RTN_UNICAST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DNS_PORT: Final = 53


class Endpoint(NamedTuple):
    """``family`` AF_INET or AF_INET6, ``address`` 4 or 16 bytes, ``port`` (an echo identifier for ping)."""

    family: int
    address: bytes
    port: int

    @property
    def text(self) -> str:
        """As people write it."""
        shown = socket.inet_ntop(self.family, self.address)
        return f"[{shown}]:{self.port}" if self.family == socket.AF_INET6 else f"{shown}:{self.port}"


class Block(NamedTuple):
    """A CIDR block: family, first address as a number, prefix length in bits, what it is."""

    family: int
    first: int
    prefix: int
    what: str

    def holds(self, family: int, address: bytes) -> bool:
        """Whether ``address`` lies in the block."""
        shift = len(address) * 8 - self.prefix
        return family == self.family and int.from_bytes(address, "big") >> shift == self.first >> shift


def block(text: str, what: str = "listed") -> Block:
    """Read ``ADDRESS/PREFIX``; ValueError or OSError when it is none, or has bits behind its prefix."""
    address, _, prefix = text.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = socket.inet_pton(family, address)
    bits = int(prefix)
    number = int.from_bytes(raw, "big")
    if not 0 <= bits <= len(raw) * 8 or number & ((1 << (len(raw) * 8 - bits)) - 1):
        raise ValueError(f"{text}: not a CIDR block")
    return Block(int(family), number, bits, what)


NEVER: Final = (
    ("0.0.0.0/8", "this network"),
    ("127.0.0.0/8", "the host's loopback"),
    ("169.254.0.0/16", "link-local, where clouds keep their metadata"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved, broadcast"),
    ("::/96", "the host's loopback, IPv4 in disguise"),
    ("::ffff:0:0/96", "IPv4 in disguise"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
    ("fd00:ec2::254/128", "metadata of Amazon's cloud"),
    ("fd20:ce::254/128", "metadata of Google's cloud"),
    ("fd00:c1::a9fe:a9fe/128", "metadata of Oracle's cloud"),
)
"""Refused under every policy."""

TRANSLATED: Final = (
    ("64:ff9b::/96", 12, 0),
    ("64:ff9b:1::/48", 12, 0),
    ("::ffff:0:0:0/96", 12, 0),
    ("2002::/16", 2, 0),
    ("2001::/32", 12, 0xFFFF_FFFF),
)
"""Blocks whose addresses hold an IPv4 address: where it starts, and what it is combined with by exclusive or.

NAT64 (RFC 6052, RFC 8215 with its usual /96), SIIT (RFC 2765), 6to4 (RFC 3056), Teredo (RFC 4380).
"""

NOT_PUBLIC: Final = (
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared by a carrier's customers"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "protocol assignments"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "6to4 relays"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmarks"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("::/3", "not global unicast"),
    ("2001::/23", "protocol assignments, Teredo"),
    ("2001:db8::/32", "documentation"),
    ("2002::/16", "6to4: IPv4 in disguise"),
    ("3fff::/20", "documentation"),
    ("4000::/2", "not global unicast"),
    ("8000::/1", "not global unicast, private, link-local"),
)
"""Refused under ``internet`` as well; from IANA's special-purpose registries (RFC 6890), for IPv6 all but 2000::/3."""


class Published(NamedTuple):
    """A port of the host that leads to the guest."""

    protocol: str
    address: str
    port: int

    @property
    def endpoint(self) -> Endpoint:
        """Where it is bound."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        return Endpoint(int(family), socket.inet_pton(family, self.address), self.port)


class Policy:
    """The policy of one VM.

    Args:
        mode: ``none``, ``internet`` or ``list``; anything else is a ValueError.
        allow: CIDR blocks for ``list``.
        resolver: address of the host's resolver, None where the guest gets no DNS.
        published: (protocol, address, port) of each published port.
        gateway: the guest's gateway, as which passt shows the host's loopback in answers.
        gateway6: the same by IPv6; empty for a guest without IPv6, for which no IPv6 socket is made.
    """

    def __init__(
        self,
        mode: str,
        allow: tuple[str, ...] = (),
        resolver: str | None = None,
        published: tuple[Published, ...] = (),
        gateway: str = "0.0.0.0",  # noqa: S104 - an address to compare with, not to bind
        gateway6: str = "",
    ) -> None:
        if mode not in {"none", "internet", "list"}:
            raise ValueError(f"egress policy {mode!r}: expected none, internet or list")
        if mode == "list" and not allow:
            raise ValueError("egress policy list with an empty list")
        self.mode = mode
        self.allow = allow
        self.resolver = resolver
        self.published = published
        self.gateway = socket.inet_pton(socket.AF_INET, gateway)
        self.gateway6 = socket.inet_pton(socket.AF_INET6, gateway6) if gateway6 else b""
        self._allowed = tuple(block(text) for text in allow)
        self._never = tuple(block(text, what) for text, what in NEVER)
        self._translated = tuple((block(text), at, mask) for text, at, mask in TRANSLATED)
        self._not_public = tuple(block(text, what) for text, what in NOT_PUBLIC)
        self._resolver = Published("udp", resolver, DNS_PORT).endpoint if resolver is not None else None
        self._bound = {(item.protocol, item.endpoint) for item in published}

    def to_data(self) -> dict[str, Any]:
        """As JSON data; `from_data` reads it back."""
        return {
            "mode": self.mode,
            "allow": list(self.allow),
            "resolver": self.resolver,
            "published": [list(item) for item in self.published],
            "gateway": socket.inet_ntop(socket.AF_INET, self.gateway),
            "gateway6": socket.inet_ntop(socket.AF_INET6, self.gateway6) if self.gateway6 else "",
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Policy:
        """The policy that `to_data` wrote."""
        published = tuple(Published(*item) for item in data["published"])
        gateways = (data["gateway"], data["gateway6"])
        return cls(data["mode"], tuple(data["allow"]), data["resolver"], published, *gateways)

    def is_published(self, protocol: str, endpoint: Endpoint) -> bool:
        """Whether the host's port is one of the published ones, at exactly its address."""
        return (protocol, endpoint) in self._bound

    def refusal(self, protocol: str, to: Endpoint, route_kind: Callable[[int, bytes], int]) -> str:
        """Why the guest may not send to ``to``, empty when it may; the steps stand in the module's docstring.

        Args:
            protocol: ``tcp``, ``udp`` or ``icmp``.
            to: the destination.
            route_kind: asks the routing table for an RTN_* type or `RTN_ON_LINK`; its OSError (no route) is passed on.
        """
        if self._resolver is not None and to == self._resolver and protocol in {"tcp", "udp"}:  # 1
            return ""
        if self.mode == "none":  # 2
            return "egress is none"
        why = self._never_reached(to.family, to.address) or self._never_translated(to)  # 3
        if why:
            return why
        exact = False
        if self.mode == "list":  # 4
            holding = [item for item in self._allowed if item.holds(to.family, to.address)]
            if not holding:
                return "not listed"
            exact = any(item.prefix == len(to.address) * 8 for item in holding)
        else:
            for item in self._not_public:
                if item.holds(to.family, to.address):
                    return item.what
        kind = RTN_UNICAST if exact else route_kind(to.family, to.address)  # 5
        if kind == RTN_ON_LINK:
            return "a neighbour of this host" if self.mode == "internet" else ""
        return "" if kind == RTN_UNICAST else "an address of this host"

    def _never_reached(self, family: int, address: bytes) -> str:
        return next((item.what for item in self._never if item.holds(family, address)), "")

    def _never_translated(self, to: Endpoint) -> str:
        for item, at, mask in self._translated:
            if item.holds(to.family, to.address):
                inner = int.from_bytes(to.address[at : at + 4], "big") ^ mask
                why = self._never_reached(socket.AF_INET, inner.to_bytes(4, "big"))
                if why:
                    return f"IPv4 in disguise: {why}"
        return ""
