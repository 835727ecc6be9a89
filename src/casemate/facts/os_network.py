"""Interfaces, bridges and listeners of the host: the networks and the administration interfaces there are."""

from __future__ import annotations

import socket
import struct
from typing import Final

from casemate.facts.fact import Facts, Known, Unknown
from casemate.facts.root import Root

_NET: Final = "/sys/class/net"
_TCP: Final = "/proc/net/tcp"
_TCP6: Final = "/proc/net/tcp6"
_MAX_BYTES: Final = 16 << 20
_LISTEN: Final = "0A"
# Ports as libvirt and QEMU take them unless told otherwise (qemu.conf, libvirtd.conf, QEMU's -s).
_PORTS: Final[dict[str, tuple[int, ...]]] = {
    "libvirt": (16509, 16514),
    "consoles": (*range(5900, 6000), *range(5700, 5800)),
    "migration": tuple(range(49152, 49216)),
    "debug": (1234,),
}
_ADMIN: Final = {22: "ssh", 9090: "cockpit", 8006: "proxmox", 8443: "api", 6080: "novnc", 5000: "api", 10000: "webmin"}


def network_facts(root: Root) -> Facts:
    """``host.interfaces``, ``host.bridges``, ``host.taps``, ``host.listeners`` and what of these is for whom
    (``host.admin-listeners``, ``host.listen-libvirt``, ``-consoles``, ``-migration``, ``-debug``)."""
    facts = _interfaces(root)
    listeners = _listeners(root)
    if isinstance(listeners, Unknown):
        names = ("listeners", "admin-listeners", *(f"listen-{what}" for what in _PORTS))
        return facts | {f"host.{name}": listeners for name in names}
    source = f"{_TCP}, {_TCP6}"
    wide = [(address, port) for address, port in listeners if not _is_loopback(address)]
    facts["host.listeners"] = Known(tuple(_show(a, p) for a, p in listeners), source)
    admin = tuple(f"{_ADMIN[port]} {_show(address, port)}" for address, port in wide if port in _ADMIN)
    facts["host.admin-listeners"] = Known(admin, source)
    for name, ports in _PORTS.items():
        facts[f"host.listen-{name}"] = Known(tuple(_show(a, p) for a, p in wide if p in ports), source)
    return facts


def _interfaces(root: Root) -> Facts:
    names = ("host.interfaces", "host.bridges", "host.taps")
    try:
        found = root.list_dir(_NET)
        bridges = tuple(name for name in found if root.exists(f"{_NET}/{name}/bridge"))
        taps = tuple(name for name in found if root.exists(f"{_NET}/{name}/tun_flags"))
    except OSError as error:
        return dict.fromkeys(names, Unknown(f"{error.filename or _NET}: {error.strerror or error}"))
    return {name: Known(value, _NET) for name, value in zip(names, (found, bridges, taps), strict=True)}


def _listeners(root: Root) -> list[tuple[str, int]] | Unknown:
    """Listening TCP sockets of this network namespace, each once."""
    found: dict[tuple[str, int], None] = {}
    for path in (_TCP, _TCP6):
        try:
            text = root.read_text(path, _MAX_BYTES)
            found |= dict.fromkeys(parse_listeners(text))
        except FileNotFoundError:
            # A kernel without IPv6 has no tcp6; without the first file nothing is known.
            if path == _TCP:
                return Unknown(f"{path}: does not exist")
        except OSError as error:
            return Unknown(f"{path}: {error.strerror or error}")
        except ValueError as error:
            return Unknown(f"{path}: not understood ({error})")
    return list(found)


def parse_listeners(text: str) -> list[tuple[str, int]]:
    """(address, port) of each listening socket in /proc/net/tcp or tcp6 (Documentation/networking/proc_net_tcp).

    Raises:
        ValueError: a line of another shape.
    """
    lines = [line for line in text.split("\n") if line]
    if not lines or "local_address" not in lines[0]:
        raise ValueError("no heading")
    found: list[tuple[str, int]] = []
    for line in lines[1:]:
        words = line.split()
        if len(words) < 4 or ":" not in words[1]:
            raise ValueError(f"line {line[:60]!r}")
        if words[3] == _LISTEN:
            address, _, port = words[1].partition(":")
            found.append((_address(address), int(port, 16)))
    return found


def _address(text: str) -> str:
    """Each 32-bit word is printed as a number of the host's byte order, which is little-endian on x86-64 and arm64."""
    if len(text) not in (8, 32):
        raise ValueError(f"address {text[:60]!r}")
    words = (int(text[start : start + 8], 16) for start in range(0, len(text), 8))
    packed = b"".join(struct.pack("<I", word) for word in words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _is_loopback(address: str) -> bool:
    return address.startswith(("127.", "::ffff:127.")) or address == "::1"


def _show(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
