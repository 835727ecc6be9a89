"""What `rpm -qa` says, in one fixed form: for databases that only rpm reads, and for captures of other hosts.

The first line counts what is installed, ``all N``; then one line for each package, ``NAME EPOCH:VERSION-RELEASE ARCH``
(no epoch where there is none). A capture keeps the count and the packages that run VMs: ``all N kept MARK``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final

from casemate.facts.fact import Unknown
from casemate.facts.root import Root
from casemate.facts.rpm_packages import DATABASE, MAX_PACKAGES, Package, has_rpm, installed_packages
from casemate.facts.updates import STATUS

NAME: Final = "rpm"
"""Of the answer in a capture."""
PROGRAM: Final = "/usr/bin/rpm"
QUERY: Final = r"%{NAME} %|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE} %{ARCH}\n"
FAMILIES: Final[dict[str, str]] = {
    "kernel": r"kernel|kernel-core|kernel-modules(-core|-extra)?|kernel-(rt|64k|uek)(-core|-modules(-core)?)?",
    "qemu": r"qemu|qemu-(kvm|system|img|common|guest-agent)[a-z0-9-]*",
    "libvirt": r"libvirt[a-z-]*",
    "firmware": r"edk2-(ovmf|aarch64)|seabios(-bin)?|seavgabios-bin|ipxe-roms(-qemu)?",
    "helpers": r"swtpm[a-z-]*|libtpms|passt|libslirp|virtiofsd|spice-server|virglrenderer",
    "microcode": r"microcode_ctl|amd-ucode-firmware|linux-firmware",
}
KEPT: Final = "|".join(FAMILIES.values())
"""Names of packages that stay in a capture: a POSIX extended regular expression."""
DEADLINE_S: Final = 60
_OUTPUT_BYTES: Final = 16 << 20
_KEPT: Final = re.compile(KEPT)
_COUNT: Final = re.compile(r"all ([0-9]{1,7})(?: kept ([0-9a-f]{12}))?")
MARK: Final = hashlib.sha256(KEPT.encode()).hexdigest()[:12]
"""Tells which packages stayed in an answer: what another version did not keep was not absent."""


def host_packages(root: Root, folder: str) -> tuple[Package, ...] | Unknown:
    """The packages of a host: as they were told when it was captured, out of rpm's database, or, where that is of a
    format that only rpm reads or is being written to, as this host's own rpm tells them.

    Args:
        folder: of rpm's database.
    """
    said = root.answer(NAME)
    if said is not None:
        return read_answer(said)
    found = installed_packages(root, folder)
    if isinstance(found, Unknown) and root.is_live:
        asked = ask_rpm()
        return asked if not isinstance(asked, Unknown) else Unknown(f"{found.why}; {asked.why}")
    # A database without a package proves nothing about a host that runs.
    return found if isinstance(found, Unknown) or found else Unknown(f"{folder}/{DATABASE}: not one package is in it")


def read_answer(text: str) -> tuple[Package, ...] | Unknown:
    """The packages of an answer; those that stayed in it."""
    head, *rows = text.rstrip("\n").split("\n")
    count = _COUNT.fullmatch(head)
    if count is None:
        return Unknown(f"rpm -qa: an answer that begins with {head[:40]!r}")
    if count[2] not in (None, MARK):
        return Unknown("rpm -qa: captured by a version that kept other packages")
    if count[1] == "0":
        return Unknown("rpm -qa: not one package is in its database")
    if not len(rows) <= int(count[1]) <= MAX_PACKAGES:
        return Unknown(f"rpm -qa: {len(rows)} packages of {count[1]}, at most {MAX_PACKAGES}")
    try:
        return tuple(_package(row) for row in rows)
    except ValueError as error:
        return Unknown(f"rpm -qa: {error}")


def _package(row: str) -> Package:
    words = row.split(" ")
    if len(words) != 3 or not words[0]:
        raise ValueError(f"no package: {row[:80]!r}")
    return Package.of_evr(words[0], words[1], "" if words[2] == "(none)" else words[2])


def kept_answer(packages: Iterable[Package]) -> str:
    """The answer as a capture keeps it."""
    every = tuple(packages)
    rows = sorted(f"{item.name} {item.evr} {item.arch or '(none)'}" for item in every if _KEPT.fullmatch(item.name))
    return "\n".join((f"all {len(every)} kept {MARK}", *rows))


def answer_of(root: Root) -> str | None:
    """The answer that a capture of this host keeps; None where packages are kept otherwise, or cannot be told."""
    try:
        folder = "" if root.exists(STATUS) else has_rpm(root)
    except OSError:
        return None
    found = host_packages(root, folder) if folder else None
    return kept_answer(found) if isinstance(found, tuple) else None


def ask_rpm() -> tuple[Package, ...] | Unknown:
    """Ask this host's own rpm."""
    from casemate.facts.program import ask_program

    try:
        answer = ask_program((PROGRAM, "-qa", "--qf", QUERY), timeout_s=DEADLINE_S, limit_bytes=_OUTPUT_BYTES)
    except FileNotFoundError:
        return Unknown(f"{PROGRAM}: does not exist")
    except (OSError, ValueError) as error:
        return Unknown(f"{PROGRAM}: {error}")
    if answer.status:
        return Unknown(f"{PROGRAM} -qa: exit status {answer.status}: {answer.error_text(200)}")
    rows = answer.output.decode("utf-8", "backslashreplace")
    return read_answer(f"all {rows.count(chr(10))}\n{rows}")
