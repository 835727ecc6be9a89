"""What reaches a QEMU from outside, as its command line says it: monitors, character devices, displays, gdb."""

from __future__ import annotations

from collections.abc import Mapping

from casemate.facts.qemu_argv_draft import Draft
from casemate.facts.qemu_argv_text import Properties, is_on, parse_option

_SILENT = ("none", "null")


def transport(text: str) -> str:
    """A character device in the old spelling (``unix:/run/m,server``) as one word for its way in: ``unix:/run/m``,
    ``tcp:host:port``, ``stdio``, ``pty``, ``vc``, ``file:…``, ``chardev:ID``; empty for one that leads nowhere."""
    text = text.removeprefix("mon:")
    word = text.split(",", 1)[0]
    if word in _SILENT:
        return ""
    if word.startswith(("tcp:", "telnet:", "websocket:", "udp:", "unix:", "pipe:", "file:", "chardev:", "fdset:")):
        return word
    if word.startswith("/"):
        return f"tty:{word}"
    return word.split(":", 1)[0]


def chardev_transport(driver: str, properties: Mapping[str, str]) -> str:
    """The same for a -chardev. ``fd``: an inherited connection; ``fd-server:N``: an inherited listening socket, to
    which somebody else made a name."""
    if driver == "socket":
        listens = is_on(properties.get("server"))
        if properties.get("fd"):
            return f"fd-server:{properties['fd']}" if listens else "fd"
        if properties.get("path"):
            return f"unix:{properties['path']}"
        kind = "telnet" if is_on(properties.get("telnet")) else "tcp"
        return f"{kind}:{properties.get('host', '')}:{properties.get('port', '')}"
    if driver in _SILENT:
        return ""
    path = properties.get("path", "")
    return f"{driver}:{path}" if path else driver


def read_vnc(draft: Draft, text: str, origin: str) -> None:
    """``-vnc`` and ``-display vnc=``."""
    properties = parse_option(text, "vnc")
    address = properties.get("vnc", "")
    if address == "none":
        return
    draft.words["vnc"] = "on"
    path = address.removeprefix("unix:") if address.startswith("unix:") else ""
    shown = {"listen": "" if path else listen_address(address), **properties}
    if path:
        shown["path"] = path
    draft.backend("display", "vnc", shown, origin)


def listen_address(address: str) -> str:
    """The interface of ``host:display``; QEMU listens on every one of them when no host is said."""
    host = address.rpartition(":")[0]
    return host.strip("[]") or "0.0.0.0"  # noqa: S104  a name for what QEMU does, not a socket of ours


def read_spice(draft: Draft, text: str, origin: str) -> None:
    """``-spice``."""
    properties = parse_option(text)
    draft.words["spice"] = "on"
    if properties.get("password"):
        properties["password"] = "(set)"  # noqa: S105  the secret itself is not kept
    unix = is_on(properties.get("unix"))
    shown: Properties = {"listen": "" if unix else properties.get("addr") or "0.0.0.0", **properties}  # noqa: S104
    if unix:
        shown["path"] = properties.get("addr", "")
    draft.backend("display", "spice", shown, origin)


def read_display(draft: Draft, text: str, origin: str) -> None:
    """``-display``."""
    if text.startswith("vnc="):
        read_vnc(draft, text[4:], origin)
        return
    properties = parse_option(text, "type")
    draft.words["display"] = properties.get("type", "")
    if properties.get("type") == "dbus":
        draft.backend("display", "dbus", properties, origin)


def finish_monitors(draft: Draft, *, defaults: bool) -> tuple[str, ...]:
    """Every monitor's way in, with chardevs looked up."""
    chardevs = {p.get("id", ""): (driver, p) for kind, driver, p, _ in draft.backends if kind == "chardev"}
    found = []
    for stated in draft.monitors:
        way = stated
        if way.startswith("chardev:"):
            name = way.partition(":")[2]
            if name not in chardevs:
                draft.miss(f"monitor: chardev {name} is not there")
                found.append("unknown")
                continue
            way = chardev_transport(*chardevs[name])
        if way:
            found.append(way)
    if defaults and "monitor" not in draft.taken:
        # Reachable from the window, VNC or the terminal, whatever shows the guest.
        found.append("stdio" if "-nographic" in draft.flags else "vc")
    return tuple(found)


def finish_display(draft: Draft) -> str:
    """What shows the guest: ``none``, ``vnc``, ``spice``, a window's name, or ``default`` when nothing is said and QEMU
    opens whatever it was built with."""
    for name in ("vnc", "spice"):
        if name in draft.words:
            return name
    stated = draft.words.get("display", "")
    if stated:
        return stated
    return "none" if "-nographic" in draft.flags else "default"
