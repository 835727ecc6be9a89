"""The mandatory access control label of one VM: which domain or profile it runs in, and what its files carry.

SELinux: domain ``casemate_t`` (``casemate_tcg_t`` where QEMU generates code) with a pair of categories that belongs to
this VM, and the same pair on every file that it may write. AppArmor: a profile of its own that lists its files by path;
an ordinary user, who cannot load profiles, gets the one that the administrator loaded.

Pure: text only. `engine/labels.py` finds out what the host has and puts labels on files.
Source: SELinux Notebook, "Multi-Level and Multi-Category Security"; apparmor.d(5).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isqrt
from pathlib import PurePosixPath
from typing import Final

from casemate.errors import CasemateError
from casemate.jail.policy import BindFile, CopyFile, Device, Identity, IdentityMode, OneShot, RootEntry
from casemate.plan.model import Host

CATEGORIES: Final = 1024
PAIRS: Final = CATEGORIES * (CATEGORIES - 1) // 2
DOMAIN: Final = {"kvm": "casemate_t", "tcg": "casemate_tcg_t"}
IMAGE_TYPE: Final = "casemate_image_t"
CONTENT_TYPE: Final = "casemate_content_t"
SHARED_TYPES: Final = frozenset({CONTENT_TYPE, "virt_content_t", "usr_t"})
"""Types of files that every VM may read; they keep their label."""
PROGRAM_TYPE: Final = "casemate_exec_t"
STATIC_PROFILE: Final = "casemate-emulator"


def category_pair(number: int) -> tuple[int, int]:
    """Two distinct categories, lower first: another pair for each of `PAIRS` successive numbers.

    Args:
        number: the VM's uid, which a lock holds for as long as the VM lives.
    """
    index = number % PAIRS
    high = (1 + isqrt(1 + 8 * index)) // 2
    return index - high * (high - 1) // 2, high


def level_of(number: int) -> str:
    """The MCS level of a VM, e.g. ``s0:c17,c801``."""
    low, high = category_pair(number)
    return f"s0:c{low},c{high}"


def process_label(host: Host, identity: Identity, vm_id: str, accel: str) -> str | None:
    """``selinux:CONTEXT`` or ``apparmor:PROFILE``, as `jail.policy.Wall.exec_label` wants it; None without an LSM.

    User and role stay the caller's: a process may not change them without exec (policy constraint on dyntransition).
    """
    mac = host.mac
    if mac is None or not mac.ready:
        return None
    if mac.module == "selinux":
        user, role = mac.context.split(":")[:2]
        return f"selinux:{user}:{role}:{DOMAIN[accel]}:{level_of(identity.uid)}"
    return f"apparmor:{profile_name(identity, vm_id)}"


def observed_form(label: str) -> str:
    """What attr/current shows of a process that has the label of `process_label`."""
    module, _, name = label.partition(":")
    return name if module == "selinux" else f"{name} (enforce)"


def profile_name(identity: Identity, vm_id: str) -> str:
    """Root loads a profile for each VM; others find one that is loaded."""
    return f"casemate-{vm_id}" if identity.mode is IdentityMode.ROOT else STATIC_PROFILE


def file_context(process: str, kind: str, *, categories: bool) -> str:
    """The context of a file that belongs to the VM with label ``process``; ``kind`` is its type.

    The SELinux user is the one of the process, which is the caller's: only a few domains may change it.
    """
    user = process.split(":")[1]
    return f"{user}:object_r:{kind}:{level_in(process) if categories else 's0'}"


def level_in(context: str) -> str:
    """The level of a context, or of a ``selinux:`` label: the last two parts."""
    return ":".join(context.split(":")[-2:])


def apparmor_profile(
    name: str, program: str, root: Iterable[RootEntry], readable: Iterable[str], writable: Iterable[str]
) -> str:
    """The profile of one VM, for apparmor_parser(8).

    Args:
        program: the one file of the root that may be executed; ``ix``, since the child that becomes it has the profile.
        root: what the emulator's root holds; those are the paths inside it.
        readable, writable: absolute host paths of the files that it inherits. A path of the host means the same file
            when it is inherited: AppArmor names it by the mount that it was opened through (``attach_disconnected``
            puts such a name below ``/``).

    Raises:
        CasemateError: a path that no profile can name.
    """
    root = tuple(root)
    lines = [f"{_quoted(folder)} r," for folder in _folders(root)]
    for entry in root:
        match entry:
            case BindFile(target=target):
                lines.append(f"{_quoted(target)} {'mrix' if target == program else 'mr'},")
            case CopyFile(target=target) | OneShot(target=target):
                lines.append(f"{_quoted(target)} r,")
            case Device(name=device):
                lines.append(f'"/dev/{device}" {"r" if device == "urandom" else "rw"},')
            case _:
                continue
    lines += [f"{_quoted(path)} r," for path in readable]
    lines += [f"{_quoted(path)} rwk," for path in writable]
    return _profile(name, sorted(set(lines)))


def _folders(root: Iterable[RootEntry]) -> set[str]:
    """The directories of an emulator's root, with the slash at the end by which AppArmor knows one."""
    found = {"/"}
    for entry in root:
        path = PurePosixPath("/dev/x" if isinstance(entry, Device) else entry.target)
        found |= {f"{parent}/" for parent in path.parents if str(parent) != "/"}
    return found


def static_profile() -> str:
    """The profile for VMs of ordinary users: no capability, mount, ptrace or program, but any file by descriptor."""
    return _profile(
        STATIC_PROFILE,
        [
            "/** rwk,",
            "/usr/** mr,",
            "/lib{,64}/** mr,",
            "/usr/bin/qemu-system-* mrix,",
            "deny /proc/** w,",
            "deny /sys/** w,",
        ],
    )


def _profile(name: str, files: Iterable[str]) -> str:
    rules = [
        "network unix stream,",
        "network unix seqpacket,",
        "network unix dgram,",
        "network netlink raw,",  # `casemate prove` lists interfaces; an emulator's filter has no socket()
        "signal (receive) peer=unconfined,",
        f"signal (send, receive) peer={name},",
        "ptrace (readby, tracedby) peer=unconfined,",
        *files,
    ]
    body = "".join(f"  {rule}\n" for rule in rules)
    # attach_disconnected: descriptors come from outside the emulator's root.
    return f"abi <abi/3.0>,\n\nprofile {name} flags=(attach_disconnected) {{\n{body}}}\n"


def _quoted(path: str) -> str:
    """A path as an AppArmor pattern that matches exactly itself.

    Raises:
        CasemateError: a control character, which the parser cannot read back safely.
    """
    if not path.startswith("/") or any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise CasemateError("no AppArmor profile can name this file", got=repr(path), next_step="rename it")
    escaped = "".join(f"\\{c}" if c in '\\"?*[]{}' else c for c in path)
    return f'"{escaped}"'
