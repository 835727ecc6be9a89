"""How a guest is set up, from its files: kernel settings at boot, lockdown, Secure Boot, entropy daemons, the agent,
automatic updates, where cloud-init takes its data from, and whether its identity is made at first boot."""

from __future__ import annotations

import re
from typing import Final

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.root import Root

ENTROPY_DAEMONS: Final = {
    "/usr/sbin/haveged": "haveged",
    "/usr/bin/pollinate": "pollinate",
    "/usr/sbin/rngd": "rngd",
    "/usr/sbin/jitterentropy-rngd": "jitterentropy-rngd",
}
AGENTS: Final = {
    "/usr/sbin/qemu-ga": "qemu-guest-agent",
    "/usr/bin/qemu-ga": "qemu-guest-agent",
    "/usr/bin/vmtoolsd": "open-vm-tools",
    "/usr/bin/spice-vdagentd": "spice-vdagent",
    "/usr/sbin/spice-vdagentd": "spice-vdagent",
}
# (name, values that are good enough): kernel documentation, admin-guide/sysctl; ANSSI-BP-028 R9, R12 to R14.
SYSCTLS: Final[dict[str, tuple[str, ...]]] = {
    "kernel.kptr_restrict": ("1", "2"),
    "kernel.dmesg_restrict": ("1",),
    "kernel.unprivileged_bpf_disabled": ("1", "2"),
    "kernel.yama.ptrace_scope": ("1", "2", "3"),
    "kernel.sysrq": ("0", "4", "16", "20", "176"),
    "kernel.kexec_load_disabled": ("1",),
    "net.core.bpf_jit_harden": ("2",),
    "fs.protected_symlinks": ("1",),
    "fs.protected_hardlinks": ("1",),
    "fs.protected_fifos": ("1", "2"),
    "fs.protected_regular": ("1", "2"),
    "fs.suid_dumpable": ("0",),
}
_SYSCTL_DIRS: Final = (
    "/etc/sysctl.d",
    "/run/sysctl.d",
    "/usr/local/lib/sysctl.d",
    "/usr/lib/sysctl.d",
    "/lib/sysctl.d",
)
_SYSCTL_LINE: Final = re.compile(r"\s*-?\s*([a-zA-Z0-9_./*-]+)\s*=\s*(.*?)\s*")
_CLOUD: Final = re.compile(r"^\s*datasource_list\s*:\s*\[([^\]]*)\]", re.MULTILINE)


def collect_system(root: Root) -> Facts:
    """All facts of this module."""
    return {
        "guest.os": _os(root),
        "guest.sysctl-weak": _weak_sysctls(root),
        "guest.cmdline": _cmdline(root),
        "guest.lockdown": _lockdown(root),
        "guest.secure-boot": _secure_boot(root),
        "guest.entropy-daemons": _present(root, ENTROPY_DAEMONS),
        "guest.agents": _present(root, AGENTS),
        "guest.auto-updates": _auto_updates(root),
        "guest.cloud-init": _cloud_init(root),
        "guest.identity": _identity(root),
    }


def _os(root: Root) -> Fact:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            text = root.read_text(path, 1 << 16)
        except FileNotFoundError:
            continue
        except OSError as error:
            return Unknown(f"{path}: {error.strerror or error}")
        fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        return Known(fields.get("PRETTY_NAME", fields.get("ID", "unnamed")).strip("\"'")[:128], path)
    return Unknown("/etc/os-release: does not exist")


def _present(root: Root, programs: dict[str, str]) -> Fact:
    """Names of the programs that are there."""
    found: list[str] = []
    for path, name in programs.items():
        try:
            if root.exists(path) and name not in found:
                found.append(name)
        except OSError as error:
            return Unknown(f"{path}: {error.strerror or error}")
    return Known(tuple(found), ", ".join(programs))


def _weak_sysctls(root: Root) -> Fact:
    """``NAME=VALUE`` for each setting that is not good enough; ``NAME unset`` when nothing sets it.

    systemd-sysctl: of files with one name the first directory's counts, files in the order of their names, later
    values win; /etc/sysctl.conf comes as 99-sysctl.conf where the distribution links it.
    """
    files: dict[str, str] = {}
    try:
        for folder in _SYSCTL_DIRS:
            if not root.exists(folder):
                continue
            for name in root.list_dir(folder):
                if name.endswith(".conf"):
                    files.setdefault(name, f"{folder}/{name}")
        if root.exists("/etc/sysctl.conf"):
            files.setdefault("99-sysctl.conf", "/etc/sysctl.conf")
        values: dict[str, str] = {}
        for name in sorted(files):
            try:
                text = root.read_text(files[name])
            except FileNotFoundError:
                continue  # a link to /dev/null switches the file off
            for line in text.splitlines():
                found = _SYSCTL_LINE.fullmatch(line) if not line.lstrip().startswith(("#", ";")) else None
                if found is not None:
                    values[found[1].replace("/", ".")] = found[2]
    except OSError as error:
        return Unknown(f"{error.filename or 'sysctl.d'}: {error.strerror or error}")
    weak = tuple(
        f"{name}={values[name]}" if name in values else f"{name} unset"
        for name, good in SYSCTLS.items()
        if values.get(name) not in good
    )
    return Known(weak, f"{len(files)} files of sysctl.d")


def _cmdline(root: Root) -> Fact:
    """The kernel's command line, from the boot loader's configuration."""
    for folder in ("/boot/loader/entries", "/boot/efi/loader/entries"):
        try:
            names = [name for name in root.list_dir(folder) if name.endswith(".conf")]
            for name in sorted(names):
                for line in root.read_text(f"{folder}/{name}").splitlines():
                    if line.startswith("options "):
                        return Known(line[8:].strip()[:1024], f"{folder}/{name}")
        except OSError:
            continue
    for path, pattern in (
        ("/etc/kernel/cmdline", r"(.+)"),
        ("/boot/grub/grub.cfg", r"^\s*linux(?:16|efi)?\s+\S+\s+(.*)$"),
        ("/boot/grub2/grub.cfg", r"^\s*linux(?:16|efi)?\s+\S+\s+(.*)$"),
        ("/boot/efi/EFI/debian/grub.cfg", r"^\s*linux(?:16|efi)?\s+\S+\s+(.*)$"),
        ("/etc/default/grub", r"^GRUB_CMDLINE_LINUX(?:_DEFAULT)?=[\"']?([^\"'\n]*)"),
    ):
        try:
            found = re.findall(pattern, root.read_text(path, 4 << 20), re.MULTILINE)
        except OSError:
            continue
        if found:
            return Known(" ".join(found if path.endswith("/grub") else found[:1]).strip()[:1024], path)
    return Unknown("no configuration of a boot loader: the kernel and its command line are given from outside")


def _lockdown(root: Root) -> Fact:
    """``integrity``, ``confidentiality`` or ``none``: the command line, or a kernel that forces it."""
    line = _cmdline(root)
    if isinstance(line, Known):
        found = re.findall(r"(?:^|\s)lockdown=(\w+)", str(line.value))
        if found:
            return Known(found[-1], line.source)
    forced = _kernel_option(root, r"CONFIG_LOCK_DOWN_KERNEL_FORCE_(INTEGRITY|CONFIDENTIALITY)=y")
    if isinstance(forced, Known) and forced.value:
        return Known(str(forced.value).lower(), forced.source)
    if isinstance(line, Unknown):
        return line
    return Known("none", line.source)


def _kernel_option(root: Root, pattern: str) -> Fact:
    """The first group of a match in the newest kernel's configuration; empty when there is none."""
    try:
        names = sorted(name for name in root.list_dir("/boot") if name.startswith("config-"))
        if not names:
            return Unknown("/boot/config-*: none")
        path = f"/boot/{names[-1]}"
        found = re.search(pattern, root.read_text(path, 4 << 20))
    except OSError as error:
        return Unknown(f"/boot: {error.strerror or error}")
    return Known(found[1] if found else "", path)


def _secure_boot(root: Root) -> Fact:
    """``ready``: a shim or a signed boot loader is installed; ``no boot loader``: the kernel comes from outside."""
    signed = (
        *("/usr/lib/shim/shimx64.efi.signed", "/usr/lib/shim/shimaa64.efi.signed", "/boot/efi/EFI/debian/shimx64.efi"),
        *("/boot/efi/EFI/fedora/shimx64.efi", "/boot/efi/EFI/ubuntu/shimx64.efi"),
        *("/usr/lib/systemd/boot/efi/systemd-bootx64.efi.signed", "/usr/share/efi/x86_64/shim.efi"),
    )
    loaders = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/boot/loader", "/boot/efi/EFI", "/boot/efi/loader")
    try:
        if any(root.exists(path) for path in signed):
            return Known("ready", "a signed boot loader")
        if any(root.exists(path) for path in loaders):
            return Known("not ready", "a boot loader, and no shim or signed one")
    except OSError as error:
        return Unknown(f"{error.filename}: {error.strerror or error}")
    return Known("no boot loader", "/boot")


def _auto_updates(root: Root) -> Fact:
    """Whether security updates are installed without a person."""
    try:
        if root.exists("/usr/bin/unattended-upgrade"):
            on = False
            for name in root.list_dir("/etc/apt/apt.conf.d"):
                text = root.read_text(f"/etc/apt/apt.conf.d/{name}")
                for value in re.findall(r'^\s*APT::Periodic::Unattended-Upgrade\s+"([^"]*)"', text, re.MULTILINE):
                    on = value not in ("", "0")
            return Known(on, "/etc/apt/apt.conf.d: APT::Periodic::Unattended-Upgrade")
        if root.exists("/usr/bin/dnf-automatic") or root.exists("/etc/dnf/automatic.conf"):
            text = root.read_text("/etc/dnf/automatic.conf")
            return Known(
                bool(re.search(r"^\s*apply_updates\s*=\s*(?:yes|true|1)", text, re.MULTILINE)),
                "/etc/dnf/automatic.conf",
            )
    except OSError as error:
        return Unknown(f"{error.filename}: {error.strerror or error}")
    return Known(False, "neither unattended-upgrades nor dnf-automatic")


def _cloud_init(root: Root) -> Fact:
    """Where cloud-init takes its data from: names, ``any`` when it is not limited, ``none`` without cloud-init."""
    try:
        if not root.exists("/usr/bin/cloud-init"):
            return Known(("none",), "/usr/bin/cloud-init")
        files = ["/etc/cloud/cloud.cfg"]
        if root.exists("/etc/cloud/cloud.cfg.d"):
            names = sorted(root.list_dir("/etc/cloud/cloud.cfg.d"))
            files += [f"/etc/cloud/cloud.cfg.d/{name}" for name in names if name.endswith(".cfg")]
        sources: tuple[str, ...] = ("any",)
        for path in files:
            try:
                found = _CLOUD.findall(root.read_text(path))
            except FileNotFoundError:
                continue
            if found:
                sources = tuple(word.strip(" \"'\n\t") for word in found[-1].split(",") if word.strip(" \"'\n\t"))
    except OSError as error:
        return Unknown(f"{error.filename}: {error.strerror or error}")
    return Known(sources, ", ".join(files[:3]))


def _identity(root: Root) -> Fact:
    """What the image has that each machine should make for itself."""
    found: list[str] = []
    try:
        if root.exists("/etc/machine-id"):
            text = root.read_text("/etc/machine-id", 4096).strip()
            if text not in ("", "uninitialized"):
                found.append("/etc/machine-id")
        if root.exists("/etc/ssh"):
            found += [f"/etc/ssh/{n}" for n in root.list_dir("/etc/ssh") if re.fullmatch(r"ssh_host_\w+_key", n)]
        for path in ("/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret", "/var/lib/dbus/machine-id"):
            if root.exists(path) and not (path.endswith("machine-id") and _is_link(root, path)):
                found.append(path)
    except OSError as error:
        return Unknown(f"{error.filename}: {error.strerror or error}")
    return Known(tuple(found), "/etc/machine-id, /etc/ssh, /var/lib/systemd")


def _is_link(root: Root, path: str) -> bool:
    try:
        root.readlink(path)
    except OSError:
        return False
    return True
