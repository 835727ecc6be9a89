"""Addresses, blocks and published ports of a specification, in their canonical forms. No name is ever looked up."""

from __future__ import annotations

import re
from typing import Final

from casemate.spec.text import show

_PUBLISH = re.compile(
    r"(?:(?:\[(?P<v6>[^\[\]]*)\]|(?P<v4>[^:\[\]/]*)):)?(?P<host>[0-9]{1,5}):(?P<guest>[0-9]{1,5})(?:/(?P<protocol>[a-z]+))?"
)
PUBLISH_FORM = '[ADDR:]HOST:GUEST[/tcp|udp], for example "2222:22" or "[::1]:8080:80/tcp"'

_NEVER_ALLOWED = (
    ("0.0.0.0/8", "this network"),
    ("127.0.0.0/8", "the host's loopback"),
    ("169.254.0.0/16", "link-local and cloud metadata"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
    ("::/127", "the host's loopback"),
    ("::ffff:0:0/96", "IPv4 in disguise"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
)
"""Blocks a guest is never given: see RFC 6890 for what they are. Private blocks may be listed by name."""

METADATA: Final = ("fd00:ec2::254/128", "fd20:ce::254/128", "fd00:c1::a9fe:a9fe/128")
"""Metadata services of AWS, Google, Oracle: not to be listed. A private block around one may; the broker refuses it."""


def canonical_address(text: str) -> str:
    """An address a host port can be bound to, compressed. Raises ``ValueError`` with a message for the user."""
    import ipaddress

    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{show(text)} is not an IP address; names are not looked up") from None
    if address.is_multicast or "%" in text:
        raise ValueError(f"{show(text)} cannot be bound; expected a plain host address")
    if address.version == 6 and (address.is_link_local or address.ipv4_mapped is not None):
        what = "a link-local address needs an interface" if address.is_link_local else "this is IPv4 in disguise"
        raise ValueError(f"{show(text)} cannot be bound: {what}; expected a plain host address")
    return address.compressed


def is_ipv6(canonical: str) -> bool:
    """Whether a canonical address or block is of IPv6."""
    return ":" in canonical


def is_loopback(canonical: str) -> bool:
    """Whether a canonical address is one that only this host reaches."""
    return canonical.startswith("127.") or canonical == "::1"


def bracketed(canonical: str) -> str:
    """An address as it stands before a colon and a port."""
    return f"[{canonical}]" if is_ipv6(canonical) else canonical


def canonical_cidr(text: str) -> str:
    """A block for ``network.allow`` with its prefix length. Raises ``ValueError`` with a message for the user."""
    import ipaddress

    if "%" in text:
        raise ValueError(f"{show(text)} has a scope; expected a plain block")
    try:
        block = ipaddress.ip_network(text)
    except ValueError:
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f'{show(text)} is not a CIDR block; expected for example "192.0.2.0/24"') from None
        raise ValueError(f'{show(text)} has bits set after its prefix; did you mean "{meant}"?') from None
    return block.compressed


def forbidden_part(cidr: str) -> str | None:
    """Why a canonical block may not be listed, or None."""
    import ipaddress

    block = ipaddress.ip_network(cidr)
    if block.prefixlen == 0:
        return 'everything; say egress = "internet" for all public addresses'
    if cidr in METADATA:
        return f"{cidr} (cloud metadata)"
    for text, what in _NEVER_ALLOWED:
        never = ipaddress.ip_network(text)
        if never.version == block.version and never.overlaps(block):
            return f"{text} ({what})"
    return None


def split_publish(text: str) -> dict[str, object]:
    """``[ADDR:]HOST:GUEST[/tcp|udp]`` as the table it stands for. Raises ``ValueError`` with a message for the user.

    Ranges and addresses are left to the checks that the table gets.
    """
    match = _PUBLISH.fullmatch(text)
    if match is None:
        if re.fullmatch(r"[0-9]{1,5}", text):
            raise ValueError(f'{show(text)} names one port; name both, for example "{text}:{text}"')
        raise ValueError(f"{show(text)} is not of the form {PUBLISH_FORM}")
    table: dict[str, object] = {"host_port": int(match["host"]), "guest_port": int(match["guest"])}
    address = match["v6"] if match["v6"] is not None else match["v4"]
    if address is not None:
        if (":" in address) != (match["v6"] is not None):
            raise ValueError(f"{show(text)}: IPv6 addresses, and only those, stand in brackets")
        table["address"] = address
    if match["protocol"] is not None:
        table["protocol"] = match["protocol"]
    return table


def format_publish(address: str, host_port: int, guest_port: int, protocol: str) -> str:
    """The string form of a published port; ``split_publish`` reads it back."""
    return f"{bracketed(address)}:{host_port}:{guest_port}/{protocol}"
