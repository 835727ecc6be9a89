"""The running kernel's command line as parameters, read the way the kernel reads it.

Parameters are separated by blanks outside double quotes; ``-`` and ``_`` in a name are the same to the kernel; whatever
follows ``--`` belongs to init (Documentation/admin-guide/kernel-parameters).
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from casemate.facts.fact import Fact, Known, Unknown
from casemate.facts.root import Root

CMDLINE: Final = "/proc/cmdline"
MAX_CMDLINE_BYTES: Final = 1 << 16

_WORD: Final = re.compile(r'(?:[^\s"]|"[^"]*(?:"|\Z))+')

# Words that take a protection of the kernel away again, whatever it was built with. What switches off mitigations of
# CPU vulnerabilities is judged by cpu.no-off-switch.
_WEAKENING: Final[dict[str, tuple[str, ...]]] = {
    "nokaslr": ("",),
    "nosmep": ("",),
    "nosmap": ("",),
    "norandmaps": ("",),
    "no_hash_pointers": ("",),
    "hash_pointers": ("never",),
    "iomem": ("relaxed",),
    "selinux": ("0",),
    "enforcing": ("0",),
    "apparmor": ("0",),
    "init_on_alloc": ("0", "off", "n", "no"),
    "hardened_usercopy": ("0", "off", "n", "no"),
    "randomize_kstack_offset": ("0", "off", "n", "no"),
    "slab_merge": ("",),
    "slub_merge": ("",),
    "rodata": ("0", "off", "n", "no"),
    "debugfs": ("on",),
    "vsyscall": ("emulate",),
    "ibt": ("off",),
    "module.sig_enforce": ("0", "off", "n", "no"),
    "unsafe_follow_pfn": ("1",),
    "noexec": ("off",),
}


class Cmdline(msgspec.Struct, frozen=True):
    """``words``: (name with underscores, value or empty) in order."""

    words: tuple[tuple[str, str], ...]

    def last(self, *names: str) -> str | None:
        """The value of the last parameter with one of these names; empty for a bare word; None when not given."""
        return next((value for name, value in reversed(self.words) if name in names), None)

    def switch(self, *names: str) -> bool | None:
        """The last of these parameters as the kernel reads a boolean; None when not given or not a boolean."""
        value = self.last(*names)
        if value is None:
            return None
        if value.lower() in ("", "1", "on", "y", "yes", "t", "true"):
            return True
        return False if value.lower() in ("0", "off", "n", "no", "f", "false") else None

    def weakening(self) -> tuple[str, ...]:
        """The words that take a protection away, as they stand there."""
        found = (f"{n}={v}" if v else n for n, v in self.words if v.lower() in _WEAKENING.get(n, ()))
        return tuple(dict.fromkeys(found))


def parse_cmdline(text: str) -> Cmdline:
    """The parameters of the kernel; those of init are left out."""
    words: list[tuple[str, str]] = []
    for word in _WORD.findall(text):
        bare = word.replace('"', "")
        if bare == "--":
            break
        name, _, value = bare.partition("=")
        words.append((name.replace("-", "_"), value))
    return Cmdline(tuple(words))


def read_cmdline(root: Root) -> Cmdline | Unknown:
    """The running kernel's parameters, or why they are not known."""
    try:
        return parse_cmdline(root.read_text(CMDLINE, MAX_CMDLINE_BYTES))
    except OSError as error:
        return Unknown(f"{CMDLINE}: {error.strerror or error}")


def weakening_fact(cmdline: Cmdline | Unknown) -> Fact:
    """``kernel.weakening``: the words that take a protection away."""
    return cmdline if isinstance(cmdline, Unknown) else Known(cmdline.weakening(), CMDLINE)
