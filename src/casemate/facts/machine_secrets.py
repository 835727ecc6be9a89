"""Secrets in clear text where every local user can read them: in arguments and in kernel command lines.

What is found is named, never repeated.
"""

from __future__ import annotations

import re
from typing import Final

_SECRET: Final = re.compile(
    r"(?<![a-z])(pass(?:word|wd|phrase)|secret|token|api[-_]?key|private[-_]?key|credential)s?(?![-_](?:secret|file|id))"
    r"[\"']?\s*[=:]\s*[\"']?(?!on\b|off\b|yes\b|no\b|true\b|false\b|/|\"|'|,|\$|$)[^\s,\"']",
    re.IGNORECASE,
)
_URL_LOGIN: Final = re.compile(r"[a-z][a-z0-9+]{1,12}://[^/\s,:@\"]+:[^/\s,@\"]+@", re.IGNORECASE)
_CREDENTIAL: Final = re.compile(r"io\.systemd\.credential(?:\.binary)?:([A-Za-z0-9_.-]{1,60})=", re.ASCII)
_IGNITION: Final = re.compile(
    r"name=(opt/(?:com\.coreos/config|io\.systemd\.credentials/[^,]{1,60}|[^,]{0,40}(?:cloud|userdata|user-data|seed)"
    r"[^,]{0,40})),string=",
    re.IGNORECASE,
)
_QUIET: Final = frozenset({"-device", "-netdev", "-m", "-smp", "-cpu", "-machine", "-M", "-name", "-uuid", "-object"})
"""Options whose text names secrets only by reference; -object has a reader of its own. Skipped for speed."""


def secrets_in(option: str, argument: str) -> list[str]:
    """Names of the secrets that this argument carries in clear: ``-append: password``."""
    if option in _QUIET or not argument:
        return []
    found = [f"{option}: {match[1].lower()}" for match in _SECRET.finditer(argument)]
    if "://" in argument and _URL_LOGIN.search(argument):
        found.append(f"{option}: login in an address")
    if option == "-smbios":
        found += [f"{option}: {match[1]}" for match in _CREDENTIAL.finditer(argument)]
    elif option == "-fw_cfg":
        found += [f"{option}: {match[1]}" for match in _IGNITION.finditer(argument)]
    return found[:16]
