"""The host's operating system: what else runs here, what crashes leave behind, what is recorded (``os.*``)."""

from __future__ import annotations

import re
from typing import Final

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.os_images import image_facts
from casemate.facts.os_network import network_facts
from casemate.facts.root import Root
from casemate.facts.updates import collect_updates

_BIN: Final = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/usr/libexec")
# Programs by which a kind of software is recognised, whatever package brought it.
_SOFTWARE: Final[dict[str, tuple[str, ...]]] = {
    "desktop": ("Xorg", "Xwayland", "gdm3", "gdm", "sddm", "lightdm", "gnome-shell", "plasmashell", "xfce4-session"),
    "containers": ("dockerd", "containerd", "podman", "crio", "kubelet", "lxd", "incusd"),
    "compilers": ("gcc", "cc", "clang", "rustc", "go", "tcc", "as"),
    "mail": ("postfix", "exim4", "exim", "sendmail", "opensmtpd", "dovecot"),
}
_PATTERN: Final = "/proc/sys/kernel/core_pattern"
_COREDUMP_CONF: Final = "/etc/systemd/coredump.conf"
_BOOLEANS: Final = "/sys/fs/selinux/booleans"
_SVIRT: Final = (
    "virt_use_nfs",
    "virt_use_samba",
    "virt_use_fusefs",
    "virt_use_usb",
    "virt_use_comm",
    "virt_use_xserver",
    "virt_use_execmem",
    "virt_use_rawip",
    "virt_use_sanlock",
    "staff_use_svirt",
    "unprivuser_use_svirt",
)
_AUDIT_RULES: Final = "/etc/audit/rules.d"
_AUDIT_FILE: Final = "/etc/audit/audit.rules"
_WATCHED: Final = {"kvm device": "/dev/kvm", "libvirt configuration": "/etc/libvirt", "emulator": "qemu"}
_WANTS: Final = ("/etc/systemd/system/multi-user.target.wants", "/etc/systemd/system/sysinit.target.wants")


def collect_os(root: Root) -> Facts:
    """Every ``os.*``, ``updates.*`` and network fact of the host; reads files, starts nothing."""
    facts = image_facts(root) | network_facts(root) | collect_updates(root)
    facts |= {f"os.{kind}": _programs(root, names) for kind, names in _SOFTWARE.items()}
    facts["os.core-handler"] = _core_handler(root)
    facts["os.selinux"] = _selinux(root)
    facts["os.svirt-booleans"] = _svirt_booleans(root)
    facts["os.audit-daemon"] = _audit_daemon(root)
    facts["os.audit-missing"] = _audit_missing(root)
    return facts


def _programs(root: Root, names: tuple[str, ...]) -> Fact:
    """Paths of those programs that are there; a tree without /usr/bin says nothing."""
    found: list[str] = []
    try:
        if not root.exists(_BIN[0]):
            return Unknown(f"{_BIN[0]} does not exist here, so a missing program says nothing")
        for directory in _BIN:
            found += [f"{directory}/{name}" for name in root.present(directory, names)]
    except OSError as error:
        return Unknown(f"{error.filename or _BIN[0]}: {error.strerror or error}")
    return Known(tuple(found), ", ".join(_BIN))


def _core_handler(root: Root) -> Fact:
    """What becomes of a crashed process's memory: ``none``, ``systemd-none`` (recorded, not kept), ``systemd``,
    ``program PATH`` or ``file PATTERN``."""
    try:
        pattern = root.read_text(_PATTERN, 4096).strip()
    except OSError as error:
        return Unknown(f"{_PATTERN}: {error.strerror or error}")
    if pattern in ("", "|/bin/false", "|/usr/bin/false", "|/bin/true", "|/usr/bin/true", "/dev/null"):
        return Known("none", _PATTERN)
    if not pattern.startswith("|"):
        return Known(f"file {pattern}", _PATTERN)
    program = pattern[1:].split(" ")[0]
    if program.rpartition("/")[2] != "systemd-coredump":
        return Known(f"program {program}", _PATTERN)
    return _systemd_coredump(root)


def _systemd_coredump(root: Root) -> Fact:
    paths = [_COREDUMP_CONF]
    texts: list[str] = []
    try:
        paths += [f"{_COREDUMP_CONF}.d/{name}" for name in root.list_dir(f"{_COREDUMP_CONF}.d")]
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return Unknown(f"{_COREDUMP_CONF}.d: {error.strerror or error}")
    for path in paths:
        try:
            texts.append(root.read_text(path, 1 << 16))
        except FileNotFoundError:
            continue
        except OSError as error:
            return Unknown(f"{path}: {error.strerror or error}")
    storage = re.findall(r"^\s*Storage\s*=\s*(\w+)\s*$", "\n".join(texts), re.MULTILINE)
    is_none = bool(storage) and storage[-1] == "none"
    return Known("systemd-none" if is_none else "systemd", f"{_PATTERN}, {_COREDUMP_CONF}: Storage")


def _selinux(root: Root) -> Fact:
    """Whether SELinux is active: its file system is mounted."""
    try:
        if not root.exists("/sys/fs"):
            return Unknown("there is no /sys/fs here, so a missing SELinux says nothing")
        return Known(root.exists("/sys/fs/selinux/enforce"), "/sys/fs/selinux/enforce")
    except OSError as error:
        return Unknown(f"/sys/fs/selinux: {error.strerror or error}")


def _svirt_booleans(root: Root) -> Fact:
    """Booleans of SELinux's policy that give VMs more, and that are on."""
    found: list[str] = []
    try:
        names = set(root.list_dir(_BOOLEANS))
        for name in _SVIRT:
            if name in names and root.read_text(f"{_BOOLEANS}/{name}", 64).split()[:1] != ["0"]:
                found.append(name)
    except OSError as error:
        return Unknown(f"{error.filename or _BOOLEANS}: {error.strerror or error}")
    if not any(name.startswith("virt_") for name in names):
        return Unknown(f"{_BOOLEANS}: this policy has no virt_* booleans")
    return Known(tuple(found), _BOOLEANS)


def _audit_daemon(root: Root) -> Fact:
    """``enabled``, ``installed`` (and not started at boot) or ``absent``."""
    try:
        if not root.exists("/usr/sbin") and not root.exists("/sbin"):
            return Unknown("/usr/sbin does not exist here, so a missing program says nothing")
        if not root.exists("/usr/sbin/auditd") and not root.exists("/sbin/auditd"):
            return Known("absent", "/usr/sbin/auditd does not exist")
        for directory in _WANTS:
            if "auditd.service" in (root.list_dir(directory) if root.exists(directory) else ()):
                return Known("enabled", f"{directory}/auditd.service")
    except OSError as error:
        return Unknown(f"{error.filename or '/usr/sbin/auditd'}: {error.strerror or error}")
    return Known("installed", ", ".join(_WANTS))


def _audit_missing(root: Root) -> Fact:
    """Which of the kvm device, libvirt's configuration and the emulator no audit rule names."""
    texts: list[str] = []
    try:
        if not root.exists("/etc"):
            return Unknown("there is no /etc here, so missing rules say nothing")
        names = root.list_dir(_AUDIT_RULES) if root.exists(_AUDIT_RULES) else ()
        texts = [root.read_text(f"{_AUDIT_RULES}/{name}") for name in names if name.endswith(".rules")]
        if root.exists(_AUDIT_FILE):
            texts.append(root.read_text(_AUDIT_FILE))
    except OSError as error:
        return Unknown(f"{error.filename or _AUDIT_RULES}: {error.strerror or error}")
    rules = [line for line in "\n".join(texts).split("\n") if line.strip().startswith(("-a", "-w"))]
    missing = tuple(what for what, word in _WATCHED.items() if not any(word in rule for rule in rules))
    return Known(missing, f"{_AUDIT_RULES}, {_AUDIT_FILE}")
