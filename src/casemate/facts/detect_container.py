"""Whether a process lives in a container: namespaces prove it, markers name it. Works on a captured tree.

A marker alone proves little: a virtual machine whose root was made from a container image still holds
``/.dockerenv``. Where all namespaces are the kernel's initial ones, a marker is reported as a leftover.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from casemate.facts.detect_data import CGROUP_CONTAINERS, INITIAL_NAMESPACES
from casemate.facts.detect_files import read, shown
from casemate.facts.detect_model import About, Indicator, Strength
from casemate.facts.root import Root

_LINK: Final = re.compile(r"[a-z_]+:\[([0-9]{1,20})\]$")
_MARKERS: Final = (("/.dockerenv", "docker"), ("/run/.containerenv", "podman"), ("/.flatpak-info", "flatpak"))


def look_at_container(root: Root) -> tuple[list[Indicator], list[str]]:
    """Indicators about containers, and what could not be read."""
    unread: list[str] = []
    found = [*_namespaces(root, unread), *_markers(root, unread), *_kernels(root)]
    return found, unread


def namespaces_are_initial(indicators: list[Indicator]) -> bool | None:
    """Whether the namespaces are the kernel's first ones; None when that is not known."""
    lines = [item for item in indicators if item.source.startswith("/proc/self/ns/")]
    return None if not lines else all("initial" in item.value for item in lines)


def _namespaces(root: Root, unread: list[str]) -> Iterator[Indicator]:
    own: list[str] = []
    initial: list[str] = []
    for name, number in INITIAL_NAMESPACES.items():
        try:
            match = _LINK.match(root.readlink(f"/proc/self/ns/{name}"))
        except OSError as fault:
            unread.append(f"/proc/self/ns/{name}: {fault.strerror or fault}")
            continue
        if match is not None:
            (initial if int(match[1]) == number else own).append(name)
    if own:
        strength = Strength.PROOF if {"pid", "user", "uts"} & set(own) else Strength.STRONG
        yield Indicator(
            about=About.CONTAINER,
            strength=strength,
            says="",
            value=f"namespaces of its own: {', '.join(own)}",
            source=f"/proc/self/ns/{own[0]}",
        )
    elif initial:
        yield Indicator(
            about=About.CONTAINER,
            strength=Strength.WEAK,
            says="none",
            value=f"the kernel's initial namespaces: {', '.join(initial)}",
            source="/proc/self/ns/*",
        )


def _markers(root: Root, unread: list[str]) -> Iterator[Indicator]:
    def marks(says: str, strength: Strength, value: str, source: str) -> Indicator:
        return Indicator(about=About.CONTAINER, strength=strength, says=says, value=shown(value), source=source)

    for path, name in _MARKERS:
        try:
            if root.exists(path):
                yield marks(name, Strength.STRONG, f"{path} is there", path)
        except OSError as fault:
            unread.append(f"{path}: {fault.strerror or fault}")
    for path in ("/run/systemd/container", "/run/host/container-manager"):
        text = (read(root, path, unread) or "").strip()
        if text:
            yield marks(shown(text), Strength.STRONG, text, path)
    environment = read(root, "/proc/1/environ", unread) or ""
    for word in environment.split("\0"):
        if word.startswith("container=") and len(word) > 10:
            yield marks(shown(word[10:]), Strength.STRONG, word, "/proc/1/environ")
    groups = read(root, "/proc/1/cgroup", unread) or ""
    for words, name in CGROUP_CONTAINERS:
        line = next((line for line in groups.splitlines() if words in line), "")
        if line:
            yield marks(name, Strength.STRONG, line, "/proc/1/cgroup")
            break
    if read(root, "/proc/vz/version") is None and read(root, "/proc/user_beancounters") is not None:
        yield marks("openvz", Strength.STRONG, "user_beancounters without vz", "/proc/user_beancounters")


def _kernels(root: Root) -> Iterator[Indicator]:
    """Kernels that are no Linux of their own: gVisor, WSL."""
    text = read(root, "/proc/version") or ""
    for words, name in (("gVisor", "gvisor"), ("microsoft-standard-WSL", "wsl"), ("Microsoft@Microsoft.com", "wsl")):
        if words in text:
            yield Indicator(
                about=About.CONTAINER, strength=Strength.PROOF, says=name, value=shown(text), source="/proc/version"
            )
            return
