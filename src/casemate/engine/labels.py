"""Labels of a VM's files and its AppArmor profile: found out, put on before the launch, taken off after the end.

    data/vms/<id>/labels.json    written before the first change: the profile that was loaded, and of each writable
                                 file its path, device, inode, earlier label and ours

SELinux: disks in mode persistent, UEFI variables and overlays get the VM's pair while it runs; bases that are only
read get ``casemate_content_t`` without categories and keep it, since other VMs may be reading them. The supervisor,
which has no right to do it, leaves run.json when labels.json is there: the next command restores (`aftermath.settle`).
A file that was replaced, or that somebody else labelled meanwhile, is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from casemate.engine import files
from casemate.engine.opening import Opened
from casemate.engine.paths import Paths
from casemate.engine.vmfiles import salvage_struct
from casemate.errors import HostError
from casemate.image.opening import identity_of, verify_unchanged
from casemate.jail.policy import BindFile, Wall
from casemate.plan import label
from casemate.plan.model import LaunchPlan, Mac

XATTR: Final = "security.selinux"
WRITABLE: Final = frozenset({"rw", "overlay", "vars"})
_MODULE_FILE: Final = Path(__file__).parent.parent / "data" / "casemate.cil"
_PARSERS: Final = ("/usr/sbin/apparmor_parser", "/sbin/apparmor_parser")
_APPARMOR: Final = "/sys/kernel/security/apparmor"
_PARSER_TIMEOUT_S: Final = 30.0
_TEXT_MAX: Final = 4096


class LabelledFile(msgspec.Struct, frozen=True):
    """A file that carries our label now; ``previous`` empty: it had none that we could read."""

    path: str
    dev: int
    ino: int
    previous: str
    ours: str


class Labels(msgspec.Struct, frozen=True):
    """labels.json."""

    profile: str = ""
    files: tuple[LabelledFile, ...] = ()


# ---- what this host has ---------------------------------------------------------------------------------------------


def detect_mac() -> Mac | None:
    """The LSM that labels processes on this host, and whether a VM can be labelled. None: there is none."""
    if os.path.exists("/sys/fs/selinux/enforce"):
        return _detect_selinux()
    if _text("/sys/module/apparmor/parameters/enabled") == "Y":
        return _detect_apparmor()
    return None


def _detect_selinux() -> Mac:
    context = _text("/proc/thread-self/attr/current")
    if context.count(":") < 3:
        return Mac("selinux", context, "the caller's own SELinux context cannot be read, or its policy has no levels")
    user, role = context.split(":")[:2]
    for domain in sorted(label.DOMAIN.values()):
        try:
            with open("/sys/fs/selinux/context", "r+b", buffering=0) as file:
                file.write(f"{user}:{role}:{domain}:s0:c0,c{label.CATEGORIES - 1}".encode())
        except OSError as fault:
            if fault.errno == errno.EINVAL:
                why = f"the policy has no {domain} for {user}:{role}: semodule -i {_MODULE_FILE}"
            else:
                why = f"the policy cannot be asked for {domain}: {fault.strerror}"
            return Mac("selinux", context, why)
    if _text("/sys/fs/selinux/enforce") != "1":
        return Mac("selinux", context, "SELinux is permissive, so labels keep nobody out: setenforce 1")
    return Mac("selinux", context)


def _detect_apparmor() -> Mac:
    context = _text("/proc/thread-self/attr/apparmor/current") or _text("/proc/thread-self/attr/current")
    if os.geteuid() == 0:
        if _parser() is None:
            return Mac("apparmor", context, "apparmor_parser is missing: apt-get install apparmor")
        if not os.path.isdir(_APPARMOR):
            return Mac("apparmor", context, "securityfs is not mounted on /sys/kernel/security")
    elif not glob.glob(f"{_APPARMOR}/policy/profiles/{label.STATIC_PROFILE}.*"):
        why = f"no profile {label.STATIC_PROFILE} is loaded; as root: apparmor_parser --replace {_profile_file()}"
        return Mac("apparmor", context, why)
    return Mac("apparmor", context)


def _profile_file() -> Path:
    return _MODULE_FILE.with_name(f"{label.STATIC_PROFILE}.apparmor")


def _parser() -> str | None:
    return next((path for path in _PARSERS if os.access(path, os.X_OK)), None)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_TEXT_MAX).strip("\0\n ")
    except OSError:
        return ""


@contextlib.contextmanager
def emulator_domain(mac: Mac | None) -> Iterator[None]:
    """QEMU that this thread starts meanwhile, to be asked what it can do, runs in the emulator's SELinux domain.

    The caller's own may not generate code (the boolean allow_execmem is off in the reference policy), and TCG does.
    """
    if mac is None or mac.module != "selinux" or not mac.ready:
        yield
        return
    user, role = mac.context.split(":")[:2]
    _set_exec(f"{user}:{role}:{label.DOMAIN['tcg']}:s0")
    try:
        yield
    finally:
        _set_exec("\n")  # the kernel takes an empty line for "none"


def _set_exec(context: str) -> None:
    descriptor = os.open("/proc/thread-self/attr/exec", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, context.encode())
    finally:
        os.close(descriptor)


# ---- before the launch ----------------------------------------------------------------------------------------------


def apply_labels(plan: LaunchPlan, opened: Opened, paths: Paths, *, foreign: bool = False) -> None:
    """Label the files of a VM, or load its profile. Nothing happens where the plan has no label.

    Args:
        foreign: the disks are another VM's and stay as they are (a proof).

    Raises:
        HostError: it cannot be done; what was changed is noted in labels.json for `restore_labels`.
    """
    if plan.wall.exec_label is None:
        return
    module, _, name = plan.wall.exec_label.partition(":")
    if module == "selinux":
        opened.verify_unchanged()
        _label_program(plan.wall)
        _label_files(plan, plan.wall.exec_label, opened, paths, foreign)
        _accept_new_ctime(opened)
    elif name != label.STATIC_PROFILE:
        files.write_json(f"{paths.vm_data(plan.vm_id)}/labels.json", Labels(profile=name))
        _load_profile(profile_of(plan, opened, name))


def label_scratch(wall: Wall, descriptor: int) -> None:
    """Label a nameless file that a probe may write, as an overlay is labelled.

    Raises:
        HostError: it cannot be done.
    """
    if wall.exec_label is not None and wall.exec_label.startswith("selinux:"):
        _set(descriptor, label.file_context(wall.exec_label, label.IMAGE_TYPE, categories=True))


def profile_of(plan: LaunchPlan, opened: Opened, name: str) -> str:
    """The text of the VM's AppArmor profile; an overlay without a name is named as the kernel names it."""
    readable, writable = list[str](), list[str]()
    for file in plan.files:
        path = _path_of(opened.by_role[file.role])
        (writable if file.access in WRITABLE or file.access == "device" else readable).append(path)
    return label.apparmor_profile(name, plan.wall.argv[0], plan.wall.root, readable, writable)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(" (deleted)")


def _load_profile(text: str) -> None:
    parser = _parser()
    if parser is None:
        raise HostError("apparmor_parser is missing", next_step="apt-get install apparmor")
    command = [parser, "--replace", "--skip-cache", "--quiet"]
    import subprocess

    try:
        done = subprocess.run(
            command, input=text.encode(), capture_output=True, timeout=_PARSER_TIMEOUT_S, check=False, env={}
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise HostError("the VM's AppArmor profile cannot be loaded", got=str(fault)) from fault
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip()[-500:]
        raise HostError("the VM's AppArmor profile cannot be loaded", got=words or f"status {done.returncode}")


def _label_program(wall: Wall) -> None:
    """Our own copy of the emulator carries its type; the distribution's file keeps the one that it has."""
    for entry in wall.root:
        if isinstance(entry, BindFile) and entry.target == wall.argv[0] and entry.source != entry.target:
            wanted = label.file_context(wall.exec_label or "", label.PROGRAM_TYPE, categories=False)
            if _get(entry.source).split(":")[2:] != wanted.split(":")[2:]:
                _set(entry.source, wanted)


def _label_files(plan: LaunchPlan, process: str, opened: Opened, paths: Paths, foreign: bool) -> None:
    ours = label.file_context(process, label.IMAGE_TYPE, categories=True)
    content = label.file_context(process, label.CONTENT_TYPE, categories=False)
    note = f"{paths.vm_data(plan.vm_id)}/labels.json"
    earlier = salvage_struct(note, Labels) or Labels()
    known = {(item.dev, item.ino): item for item in earlier.files}
    named, nameless = [], []
    for file in plan.files:
        descriptor = opened.by_role[file.role]
        if foreign and file.role.startswith("disk"):
            continue
        if file.access in {"overlay", "memory"}:
            nameless.append(descriptor)
        elif file.access in WRITABLE:
            named.append((descriptor, _noted(descriptor, ours, known)))
        elif file.role.startswith(("disk", "firmware-code")) and not _readable(_get(descriptor)):
            _set(descriptor, content)
    files.write_json(note, Labels(files=tuple(item for _, item in named)))
    for descriptor in (*(descriptor for descriptor, _ in named), *nameless):
        _set(descriptor, ours)


def _accept_new_ctime(opened: Opened) -> None:
    """A new label is a change of the inode, which the check before use would take for somebody else's.

    Raises:
        ImageError: something else changed too.
    """
    for role, (identity, path) in opened.identities.items():
        now = identity_of(opened.by_role[role])
        verify_unchanged(opened.by_role[role], identity._replace(ctime_ns=now.ctime_ns), path)
        opened.identities[role] = (now, path)


def _noted(descriptor: int, ours: str, known: dict[tuple[int, int], LabelledFile]) -> LabelledFile:
    status = os.fstat(descriptor)
    before = known.get((status.st_dev, status.st_ino))
    previous = before.previous if before is not None else _get(descriptor)
    return LabelledFile(_path_of(descriptor), status.st_dev, status.st_ino, previous, ours)


def _readable(context: str) -> bool:
    """Types without categories that the policy module lets every VM read."""
    parts = context.split(":")
    return len(parts) == 4 and parts[3] == "s0" and parts[2] in label.SHARED_TYPES


def _get(file: int | str) -> str:
    try:
        return os.getxattr(file, XATTR).decode("utf-8", "replace").rstrip("\0")
    except OSError:
        return ""


def _set(file: int | str, context: str) -> None:
    try:
        os.setxattr(file, XATTR, context.encode())
    except OSError as fault:
        name = file if isinstance(file, str) else _path_of(file)
        raise HostError(
            f"{name} cannot get the VM's SELinux label",
            got=f"{context}: {fault.strerror}",
            next_step="put it on a file system with labels, owned by the user who starts the VM",
        ) from fault


# ---- after the end --------------------------------------------------------------------------------------------------


def restore_labels(paths: Paths, vm_id: str) -> None:
    """Undo `apply_labels` after a VM has ended, however it did. The caller holds the VM's lock. Never raises.

    What cannot be restored is left as it is: the label keeps others out, and lets nobody in.
    """
    note = f"{paths.vm_data(vm_id)}/labels.json"
    found = salvage_struct(note, Labels)
    if found is None:
        return
    for item in found.files:
        _restore(item)
    if found.profile.startswith("casemate-") and found.profile != label.STATIC_PROFILE:
        try:
            with open(f"{_APPARMOR}/.remove", "wb", buffering=0) as file:
                file.write(found.profile.encode())
        except OSError:
            pass  # not loaded: a reboot has removed it
    files.unlink_if_there(note)


def _restore(item: LabelledFile) -> None:
    try:
        descriptor = os.open(item.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        status = os.fstat(descriptor)
        path = f"/proc/self/fd/{descriptor}"  # O_PATH descriptors take no xattr calls of their own
        if (status.st_dev, status.st_ino) == (item.dev, item.ino) and _get(path) == item.ours and item.previous:
            os.setxattr(path, XATTR, item.previous.encode())
    except OSError:
        return
    finally:
        os.close(descriptor)


# ---- read-back ------------------------------------------------------------------------------------------------------


def observe_unique(plan: LaunchPlan, pid: int, context: str, roles: dict[str, int]) -> tuple[bool | None, str]:
    """Does nobody else run with this VM's pair, and have its writable files exactly that pair?

    Args:
        context: the emulator's, as read from it.
        roles: role -> our descriptor of the same file.

    Returns:
        (answer, or None when it cannot be told; the evidence).
    """
    level = label.level_in(context)
    for file in plan.files:
        if file.access in WRITABLE and label.level_in(_get(roles[file.role])) != level:
            return False, f"{file.role} carries {_get(roles[file.role]) or 'no label'}"
    unread = 0
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == pid:
            continue
        try:
            with open(f"/proc/{name}/attr/current", "rb") as stream:
                other = stream.read(_TEXT_MAX).decode("utf-8", "replace").rstrip("\0\n")
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as fault:
            unread += fault.errno != errno.EINVAL
            continue
        if label.level_in(other) == level:
            return False, f"process {name} runs as {other}"
    if unread:
        return None, f"the labels of {unread} processes cannot be read"
    return True, f"attr/current of every process, {XATTR} of every writable file"
