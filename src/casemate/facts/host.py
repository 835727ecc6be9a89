"""What this host can do for a confined emulator, and which package would mend what it cannot.

Two ways in: ``launch_facts`` reads a few small files and asks the kernel a few questions (no process is started);
``collect_host`` adds what needs a child or a program's answer: user namespaces really tried, versions of helpers.
"""

from __future__ import annotations

import os
import pwd
import stat as stat_module
import struct
from typing import Final

import msgspec

from casemate.errors import HostError
from casemate.facts.cgroup import CgroupLayout, CgroupRights, cgroup_layout, cgroup_rights
from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.firmware import uefi_firmwares
from casemate.facts.process import core_cookie
from casemate.facts.program import ask_program
from casemate.facts.qemu import find_qemu
from casemate.facts.root import Root
from casemate.facts.subid import SubidRange, read_subids
from casemate.facts.userns import try_user_namespace
from casemate.sys.landlock import landlock_abi
from casemate.sys.libc import syscall

_NR_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
_SECCOMP_GET_ACTION_AVAIL: Final = 2
_SECCOMP_RET_USER_NOTIF: Final = 0x7FC0_0000
_CAP_SETUID: Final = 7
_CAP_SETGID: Final = 6
_BIN_DIRS: Final = ("/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin")
_TIMEOUT_S: Final = 5.0


class Missing(msgspec.Struct, frozen=True):
    """A part that is not there, what it is for, and how to get it."""

    name: str
    why: str
    package_debian: str
    package_fedora: str

    @property
    def command(self) -> str:
        """What to type, for both families."""
        return f"apt install {self.package_debian} (Debian, Ubuntu) or dnf install {self.package_fedora} (Fedora)"


class HostFacts(msgspec.Struct, frozen=True):
    """The host. ``facts`` holds every single value under its observable name (``host.landlock-abi``).

    ``cgroup`` is None when /proc could not be understood (then ``facts["host.cgroup-mode"]`` says why);
    ``cgroup_rights`` is keyed by controller; ``subuids`` and ``subgids`` are the caller's own ranges.
    """

    facts: Facts
    cgroup: CgroupLayout | None
    cgroup_rights: dict[str, CgroupRights]
    subuids: tuple[SubidRange, ...]
    subgids: tuple[SubidRange, ...]
    missing: tuple[Missing, ...]


_PARTS: Final = {
    "passt": Missing("passt", "networks of VMs (network.mode = user)", "passt", "passt"),
    "swtpm": Missing("swtpm", "TPM of VMs", "swtpm", "swtpm"),
    "newuidmap": Missing("newuidmap", "a uid of its own for each VM without root", "uidmap", "shadow-utils"),
    "newgidmap": Missing("newgidmap", "a gid of its own for each VM without root", "uidmap", "shadow-utils"),
    "qemu": Missing("qemu", "runs the VMs", "qemu-system-x86", "qemu-system-x86-core"),
    "ovmf": Missing("ovmf", "UEFI for disk images (boot.firmware = uefi)", "ovmf", "edk2-ovmf"),
}


def launch_facts(root: Root, uid: int, state_dirs: tuple[str, ...] = ()) -> HostFacts:
    """The cheap part, for every launch: reads small files and asks the running kernel; starts no process.

    Args:
        root: the tree; with a captured one, questions to the kernel become Unknown.
        uid: whose subordinate ids and rights are meant.
        state_dirs: directories whose free space matters; the nearest parent that exists is measured.
    """
    facts: Facts = {}
    facts["host.kernel"] = root.fact("/proc/sys/kernel/osrelease", str.strip)
    facts["host.arch"] = Known(os.uname().machine, "uname") if root.is_live else Unknown("a captured tree")
    facts["host.uid"] = Known(uid, "geteuid" if root.is_live else "given")
    facts["host.userns-max"] = root.fact("/proc/sys/user/max_user_namespaces", int)
    facts["host.userns-clone"] = _optional(root, "/proc/sys/kernel/unprivileged_userns_clone")
    facts["host.userns-apparmor"] = _optional(root, "/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    facts["host.lsm"] = root.fact("/sys/kernel/security/lsm", lambda text: tuple(text.strip().split(",")))
    facts["host.selinux-enforce"] = root.fact("/sys/fs/selinux/enforce", int)
    facts["host.apparmor"] = root.fact("/sys/module/apparmor/parameters/enabled", str.strip)
    facts["host.mem-available-kib"] = root.fact("/proc/meminfo", _mem_available, "MemAvailable")
    facts["host.cpus"] = root.fact("/sys/devices/system/cpu/online", str.strip)
    facts |= _kernel_answers(root.is_live)
    facts |= _dev_kvm(root)
    for directory in state_dirs:
        facts[f"host.free-bytes.{directory}"] = _free_bytes(root, directory)
    name = _user_name(uid) if root.is_live else None
    layout, rights = _cgroups(root, facts)
    subuids, subgids = (_subids(root, path, uid, name, facts) for path in ("/etc/subuid", "/etc/subgid"))
    missing = _helpers(root, uid, facts)
    return HostFacts(facts, layout, rights, subuids, subgids, missing)


def collect_host(root: Root, uid: int, state_dirs: tuple[str, ...] = ()) -> HostFacts:
    """Everything, for ``doctor``: the cheap part, a user namespace really made, firmware, versions of the helpers."""
    found = launch_facts(root, uid, state_dirs)
    facts = dict(found.facts)
    missing = list(found.missing)
    facts["host.userns"] = try_user_namespace(root)
    for name in ("passt", "swtpm"):
        where = facts[f"host.{name}"]
        facts[f"host.{name}-version"] = _version(where) if root.is_live else Unknown("a captured tree")
    try:
        facts["host.qemu"] = Known(find_qemu(root), "file")
    except HostError as error:
        facts["host.qemu"] = Unknown(error.what)
        missing.append(_PARTS["qemu"])
    pairs = uefi_firmwares(root)
    if pairs:
        facts["host.uefi"] = Known(tuple(pair.code for pair in pairs), pairs[0].described_by)
    else:
        facts["host.uefi"] = Unknown("no UEFI firmware found")
        missing.append(_PARTS["ovmf"])
    return msgspec.structs.replace(found, facts=facts, missing=tuple(missing))


def _optional(root: Root, path: str) -> Fact:
    """A sysctl that only some distributions have."""
    return root.fact(path, int)


def _mem_available(text: str) -> int:
    for line in text.split("\n"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1])
    raise ValueError("no MemAvailable")


def _kernel_answers(is_live: bool) -> Facts:
    names = ("host.landlock-abi", "host.seccomp-user-notif", "host.core-sched")
    if not is_live:
        return {name: Unknown("a captured tree cannot answer") for name in names}
    return {
        "host.landlock-abi": _landlock(),
        "host.seccomp-user-notif": _seccomp_notif(),
        "host.core-sched": Known(core_cookie(0) is not None, "prctl PR_SCHED_CORE_GET"),
    }


def _landlock() -> Fact:
    try:
        return Known(landlock_abi(), "landlock_create_ruleset")
    except OSError as error:
        return Unknown(f"landlock_create_ruleset: {error.strerror}")


def _seccomp_notif() -> Fact:
    number = _NR_SECCOMP.get(os.uname().machine)
    if number is None:
        return Unknown(f"no system call number for {os.uname().machine}")
    import ctypes

    action = ctypes.create_string_buffer(struct.pack("=I", _SECCOMP_RET_USER_NOTIF), 4)
    try:
        # SAFETY: the kernel reads 4 bytes from the buffer.
        syscall(number, _SECCOMP_GET_ACTION_AVAIL, 0, action)
    except OSError as error:
        return Known(False, f"seccomp SECCOMP_GET_ACTION_AVAIL: {error.strerror}")
    return Known(True, "seccomp SECCOMP_GET_ACTION_AVAIL")


def _dev_kvm(root: Root) -> Facts:
    names = ("host.dev-kvm-mode", "host.dev-kvm-owner", "host.dev-kvm-usable")
    try:
        status = root.stat("/dev/kvm")
    except OSError as error:
        return {name: Unknown(f"/dev/kvm: {error.strerror}") for name in names}
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK, effective_ids=True)
    return {
        "host.dev-kvm-mode": Known(f"{stat_module.S_IMODE(status.st_mode):04o}", "/dev/kvm"),
        "host.dev-kvm-owner": Known(f"{status.st_uid}:{status.st_gid}", "/dev/kvm"),
        "host.dev-kvm-usable": Known(usable, "access /dev/kvm") if root.is_live else Unknown("a captured tree"),
    }


def _free_bytes(root: Root, directory: str) -> Fact:
    path = directory
    while True:
        try:
            return Known(root.free_bytes(path), f"statvfs {path}")
        except (FileNotFoundError, NotADirectoryError):
            if path in ("", "/"):
                return Unknown(f"{directory}: no such directory")
            path = path.rpartition("/")[0] or "/"
        except OSError as error:
            return Unknown(f"{path}: {error.strerror}")


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _cgroups(root: Root, facts: Facts) -> tuple[CgroupLayout | None, dict[str, CgroupRights]]:
    try:
        layout = cgroup_layout(root)
    except (OSError, ValueError) as error:
        facts["host.cgroup-mode"] = facts["host.cgroup-controllers"] = Unknown(f"/proc/self/cgroup: {error}")
        return None, {}
    rights = {name: cgroup_rights(root, place) for name, place in layout.controllers.items()}
    facts["host.cgroup-mode"] = Known(layout.mode, "/proc/self/mountinfo")
    facts["host.cgroup-controllers"] = Known(tuple(sorted(layout.controllers)), "/proc/self/cgroup")
    usable = tuple(sorted(name for name, right in rights.items() if right.create and right.move and right.delegate))
    live = root.is_live
    facts["host.cgroup-writable"] = Known(usable, "access") if live else Unknown("a captured tree")
    return layout, rights


def _subids(root: Root, path: str, uid: int, name: str | None, facts: Facts) -> tuple[SubidRange, ...]:
    key = f"host.{path.rpartition('/')[2]}"
    try:
        ranges = read_subids(root, path, uid, name)
    except OSError as error:
        facts[key] = Unknown(f"{path}: {error.strerror}")
        return ()
    facts[key] = Known(tuple(f"{item.first}+{item.count}" for item in ranges), path)
    return ranges


def _helpers(root: Root, uid: int, facts: Facts) -> tuple[Missing, ...]:
    missing: list[Missing] = []
    for name in ("passt", "swtpm", "newuidmap", "newgidmap"):
        path = next((f"{d}/{name}" for d in _BIN_DIRS if _is_executable(root, f"{d}/{name}")), None)
        key = f"host.{name}"
        if path is None:
            facts[key] = Unknown(f"{name} is not installed")
            # Root writes the maps itself.
            if uid != 0 or not name.startswith("new"):
                missing.append(_PARTS[name])
        elif name.startswith("new") and not _may_set_ids(root, path, _CAP_SETUID if name[3] == "u" else _CAP_SETGID):
            facts[key] = Unknown(f"{path} has neither the setuid bit nor the file capability it needs")
        else:
            facts[key] = Known(path, "file")
    return tuple(missing)


def _is_executable(root: Root, path: str) -> bool:
    try:
        mode = root.stat(path).st_mode
    except OSError:
        return False
    return stat_module.S_ISREG(mode) and bool(mode & 0o111)


def _may_set_ids(root: Root, path: str, capability: int) -> bool:
    """Whether a helper runs as root or with ``capability`` (Debian: setuid, Fedora: file capabilities)."""
    status = root.stat(path)
    if status.st_uid == 0 and status.st_mode & stat_module.S_ISUID:
        return True
    try:
        raw = os.getxattr(root.host_path(path), "security.capability")
    except OSError:
        return False
    # struct vfs_cap_data, revisions 2 and 3: u32 magic and flags (bit 0: effective), u32 permitted low word, …
    if len(raw) < 8:
        return False
    magic, permitted = struct.unpack_from("<II", raw)
    return bool(magic & 1) and bool(permitted & (1 << capability))


def _version(where: Fact) -> Fact:
    if isinstance(where, Unknown):
        return where
    path = str(where.value)
    try:
        answer = ask_program((path, "--version"), timeout_s=_TIMEOUT_S, limit_bytes=1 << 16)
    except (OSError, ValueError) as error:
        return Unknown(f"{path} --version: {error}")
    lines = (answer.output or answer.errors).decode("utf-8", "backslashreplace").strip().split("\n")
    return Known(lines[0][:200], f"{path} --version") if lines[0] else Unknown(f"{path} --version: no answer")
