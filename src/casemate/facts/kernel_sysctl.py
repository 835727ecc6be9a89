"""Sysctls of the running kernel, each as the text the kernel shows.

``absent`` is said only where the sysctl tree itself is there and readable: the kernel then does not have this switch.
``no-ipv6``: a sysctl of IPv6 on a kernel without IPv6.
"""

from __future__ import annotations

from typing import Final

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.kernel_names_data import SYSCTL_ROOT, SYSCTLS
from casemate.facts.root import Root

ABSENT: Final = "absent"
NO_IPV6: Final = "no-ipv6"
_MAX_BYTES: Final = 4096


def sysctl_path(name: str) -> str:
    """``kernel.kptr_restrict`` as a file."""
    return f"{SYSCTL_ROOT}/{name.replace('.', '/')}"


def read_sysctl(root: Root, name: str) -> Fact:
    """One sysctl by its dotted name, with blanks trimmed."""
    path = sysctl_path(name)
    try:
        return Known(root.read_text(path, _MAX_BYTES).strip(), path)
    except (FileNotFoundError, NotADirectoryError):
        return _missing(root, name, path)
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")


def _missing(root: Root, name: str, path: str) -> Fact:
    """Why there is no such file: not in this kernel, or nobody can say."""
    try:
        if not root.exists(f"{SYSCTL_ROOT}/kernel/osrelease"):
            return Unknown(f"{path}: no {SYSCTL_ROOT}/kernel here, so a missing file says nothing")
        if name.startswith("net.ipv6.") and not root.exists(f"{SYSCTL_ROOT}/net/ipv6"):
            return Known(NO_IPV6, f"{SYSCTL_ROOT}/net/ipv6 does not exist")
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")
    return Known(ABSENT, f"{path} does not exist")


def collect_sysctls(root: Root) -> Facts:
    """``sysctl.NAME`` for every sysctl that the catalogue asks for."""
    return {f"sysctl.{name}": read_sysctl(root, name) for name in SYSCTLS}
