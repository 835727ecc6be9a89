"""The host's resolver, for the guest's DNS."""

from __future__ import annotations

import socket
from typing import Final

RESOLV_CONF: Final = "/etc/resolv.conf"
SYSTEMD_UPSTREAM: Final = "/run/systemd/resolve/resolv.conf"
_MAX_BYTES: Final = 65536


def host_resolver(first: str = RESOLV_CONF, upstream: str = SYSTEMD_UPSTREAM) -> str | None:
    """The IPv4 address of the host's first resolver, None when there is none.

    A resolver on the host's loopback (systemd-resolved) is passed over for the upstream one that it names: versions of
    passt before 2024 cannot tell a guest of a resolver on loopback.
    """
    found = _nameservers(first)
    if found and found[0].startswith("127."):
        found = [*_nameservers(upstream), *found]
    return found[0] if found else None


def _nameservers(path: str) -> list[str]:
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
                found.append(socket.inet_ntoa(socket.inet_pton(socket.AF_INET, words[1])))
            except (OSError, ValueError):
                continue  # IPv6, or nonsense
    return found
