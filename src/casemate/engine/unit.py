"""A systemd unit for a defined VM.

``casemate start --foreground`` starts the VM, tells systemd when the guest has been released (Type=notify), waits for
its end, and passes its exit code on. Options: systemd.exec(5), systemd.service(5), systemd.kill(5).
"""

from __future__ import annotations

import os
import sys

from casemate.engine.paths import Paths
from casemate.engine.state import Definition
from casemate.spec.confidential import Kind
from casemate.spec.model import AccelChoice, DiskMode

STOP_GRACE_S = 10

# What root needs to build the wall: ids and mounts, another uid's /proc entries and files, cgroups and limits,
# profiles of AppArmor.
_CAPABILITIES = (
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_KILL CAP_MAC_ADMIN CAP_MKNOD CAP_NET_ADMIN"
    " CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_ADMIN CAP_SYS_CHROOT CAP_SYS_NICE CAP_SYS_PTRACE CAP_SYS_RESOURCE"
)


def systemd_unit(definition: Definition, paths: Paths, *, rootless: bool, policy_file: str | None = None) -> str:
    """The unit's text. Nothing of the specification but paths and numbers gets into it, and those are escaped."""
    program = _program()
    start = [*program, "start", "--foreground"]
    if policy_file is not None:
        start += ["--policy", policy_file]
    lines = [
        "[Unit]",
        f"Description=Casemate VM {_plain(definition.name)}",
        "" if rootless else "After=network-online.target",
        "" if rootless else "Wants=network-online.target",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={_command([*start, definition.id])}",
        f"ExecStop={_command([*program, 'stop', '--time', str(STOP_GRACE_S), definition.id])}",
        f"TimeoutStartSec={180}",
        f"TimeoutStopSec={STOP_GRACE_S + 10}",
        "# The guest powering off is a clean end; a panic or a dead emulator is a failure.",
        "Restart=on-failure",
        "RestartSec=5",
        "# A refusal, bad input or a host that cannot do it will be the same the next time.",
        "RestartPreventExitStatus=2 3 4",
        "Delegate=cpu io memory pids",
        "KillMode=mixed",
        *_hardening(definition, paths, rootless),
        "",
        "[Install]",
        f"WantedBy={'default.target' if rootless else 'multi-user.target'}",
        "",
    ]
    return "\n".join(line for line, before in zip(lines, ["-", *lines], strict=False) if line or before)


def _hardening(definition: Definition, paths: Paths, rootless: bool) -> list[str]:
    """What can be closed around the launcher and the supervisor without closing what the wall is built from.

    Nothing that systemd does with a system call filter (RestrictRealtime, RestrictSUIDSGID, LockPersonality,
    SystemCallArchitectures, ProtectHostname, ProtectKernelModules, ProtectKernelLogs, RestrictNamespaces and their
    like): the emulator would inherit it, and the read-back refuses a VM with filters that nobody planned; nor may a
    process that has one read another's (seccomp_get_filter in the kernel). The capabilities that those options take
    away are not in the bounding set. For an ordinary user each of them also implies NoNewPrivileges, under which
    newuidmap, which is set-user-ID, does nothing.

    Left out as well: MemoryDenyWriteExecute (TCG translates code), ProtectControlGroups (each VM gets its own),
    PrivateDevices (/dev/kvm), ProtectProc (the read-back reads the emulator's).
    """
    if rootless:
        return ["UMask=0077"]
    writable = [paths.runtime, paths.data, paths.cache]
    writable += [disk.path for disk in definition.spec.disks if disk.mode is DiskMode.PERSISTENT]
    lines = [
        "NoNewPrivileges=yes",
        f"CapabilityBoundingSet={_CAPABILITIES}",
        "ProtectSystem=strict",
        "# After a reboot nothing is below /run: systemd makes the directory, and leaves it to the other VMs.",
        f"RuntimeDirectory={_word(os.path.relpath(paths.runtime, '/run'))}",
        "RuntimeDirectoryMode=0700",
        "RuntimeDirectoryPreserve=yes",
        "# ProtectSystem=strict closes /tmp; roots of helpers are mounted over an empty directory.",
        f"Environment={_word(f'TMPDIR={paths.runtime}')}",
        "ReadWritePaths=" + " ".join(_word(f"-{path}") for path in writable),
        "ReadWritePaths=-/sys/fs/cgroup",
        "InaccessiblePaths=-/usr/lib/modules -/dev/kmsg",
        "DevicePolicy=closed",
        "UMask=0077",
    ]
    if definition.spec.machine.accel is not AccelChoice.TCG:
        lines.insert(-1, "DeviceAllow=/dev/kvm rwm")
    if definition.spec.confidential is not None and definition.spec.confidential.kind is Kind.SEV_SNP:
        lines.insert(-1, "DeviceAllow=/dev/sev rwm")
    if any(secret.systemd_creds is not None for secret in definition.spec.secrets.values()):
        lines.insert(-1, "DeviceAllow=/dev/tpmrm0 rw")
    return lines


def _program() -> list[str]:
    """How this very installation is called."""
    script = os.path.join(os.path.dirname(sys.executable), "casemate")
    if os.access(script, os.X_OK):
        return [script]
    return [sys.executable, "-I", "-m", "casemate.cli.main"]


def _command(words: list[str]) -> str:
    return " ".join(_word(word, command=True) for word in words)


def _word(text: str, *, command: bool = False) -> str:
    """One word, quoted; ``%`` begins a specifier everywhere, ``$`` a variable in commands only."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    if command:
        text = text.replace("$", "$$")
    return f'"{text}"' if any(not (char.isalnum() or char in "/._-:+@") for char in text) else text


def _plain(text: str) -> str:
    return "".join(char for char in text if char.isalnum() or char in "._-")
