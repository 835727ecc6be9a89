"""The host's resolver, for the guest's DNS."""

from __future__ import annotations

import socket
from typing import Final

from casemate.spec.network import is_loopback

RESOLV_CONF: Final = "/etc/resolv.conf"
SYSTEMD_UPSTREAM: Final = "/run/systemd/resolve/resolv.conf"
_MAX_BYTES: Final = 65536


def host_resolver(first: str = RESOLV_CONF, upstream: str = SYSTEMD_UPSTREAM, *, ipv6: bool = False) -> str | None:
    """The IPv4 address of the host's first resolver, None when there is none; with ``ipv6`` else its IPv6 address.

    A resolver on the host's loopback (systemd-resolved) is passed over for the upstream one that it names: versions of
    passt before 2024 cannot tell a guest of a resolver on loopback. One with a link-local address is none for a guest.
    """
    for family in (socket.AF_INET, socket.AF_INET6) if ipv6 else (socket.AF_INET,):
        found = _nameservers(first, family)
        if found and is_loopback(found[0]):
            found = [*_nameservers(upstream, family), *found]
        if found:
            return found[0]
    return None


def _nameservers(path: str, family: int) -> list[str]:
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES).decode("ascii", "replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                raw = socket.inet_pton(family, words[1])
            except (OSError, ValueError):
                continue  # of the other family, with the scope of a link-local one, or nonsense
            if family == socket.AF_INET or (raw[:2] < b"\xfe\x80" or raw[:2] > b"\xfe\xbf"):
                found.append(socket.inet_ntop(family, raw))
    return found
