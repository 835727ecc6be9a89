"""What this host can do for Casemate, as groups of checks. Reads and asks; changes nothing but the cache.

Each check is ``ok``, ``limited`` (it works, with less; ``why`` says what is lost) or ``missing``. Only what no launch
can do without is ``required``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from casemate.engine import cgroups, doctor_confidential
from casemate.engine.labels import detect_mac, emulator_domain
from casemate.engine.paths import Paths
from casemate.engine.uefi_enrol import INSTALL, PROGRAM, find_program
from casemate.errors import HostError
from casemate.facts.fact import Facts, Known, Value
from casemate.facts.firmware import Wanted, choose_uefi
from casemate.facts.host import HostFacts, collect_host
from casemate.facts.kvm import cached_probe
from casemate.facts.kvm_components import in_kernel_components
from casemate.facts.kvm_report import KvmReport, Verdict
from casemate.facts.qemu import describe_emulator, find_qemu
from casemate.facts.root import Root
from casemate.facts.subid import total_ids
from casemate.plan.build import MINIMUM_VERSION
from casemate.units import format_bytes

DOCTOR_SCHEMA = "casemate.doctor/1"
MACHINES = ("microvm", "q35")
FREE_BYTES_MIN = 256 << 20
APT_QEMU = "apt install qemu-system-x86 (Debian, Ubuntu) or dnf install qemu-system-x86-core (Fedora)"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report. ``next_step`` is empty when there is nothing to do."""

    id: str
    title: str
    status: str
    found: str
    why: str = ""
    next_step: str = ""
    required: bool = False


def diagnose(paths: Paths) -> dict[str, Any]:
    """The whole report; ``ok`` is False when a required part is missing.

    Raises:
        HostError: not even our own directories can be used.
    """
    root = Root()
    directories = (paths.runtime, paths.data, paths.cache)
    host = collect_host(root, os.geteuid(), directories)
    report = cached_probe(Path(paths.cache) / "kvm.json")
    groups = (
        ("Emulator", _emulator(paths, root)),
        ("Acceleration", (_kvm(report), _confidential(paths, root))),
        ("Wall", _wall(host, root)),
        ("Identity", (_identity(host),)),
        ("Network, firmware, TPM", (*_helpers(host), *_secure_boot(root, paths))),
        ("Built-in guest", (_guest(paths),)),
        ("Directories", tuple(_directory(host.facts, path) for path in directories)),
    )
    checks = [check for _, members in groups for check in members]
    return {
        "schema": DOCTOR_SCHEMA,
        "ok": not any(check.required and check.status == "missing" for check in checks),
        "groups": [{"name": name, "checks": msgspec.to_builtins(members)} for name, members in groups],
        "kvm": msgspec.to_builtins(report),
        "emulation": msgspec.to_builtins(in_kernel_components(report)),
        "facts": msgspec.to_builtins(host.facts),
    }


def _value(facts: Facts, name: str) -> Value | None:
    fact = facts.get(name)
    return fact.value if isinstance(fact, Known) else None


def _shown(facts: Facts, name: str) -> str:
    fact = facts.get(name)
    if isinstance(fact, Known):
        return ", ".join(fact.value) if isinstance(fact.value, tuple) else str(fact.value)
    return fact.why if fact is not None else "not looked at"


def _emulator(paths: Paths, root: Root) -> tuple[Check, ...]:
    try:
        with emulator_domain(detect_mac()):
            facts = describe_emulator(find_qemu(root), Path(paths.cache), root)
    except HostError as fault:
        return (
            Check(
                id="qemu",
                title="QEMU",
                status="missing",
                found=fault.got or fault.what,
                why="runs the VMs",
                next_step=fault.next_step or APT_QEMU,
                required=True,
            ),
        )
    old = facts.version < MINIMUM_VERSION
    lacking = [name for name in MACHINES if name not in facts.machine_types]
    return (
        Check(
            id="qemu",
            title="QEMU",
            status="missing" if old else "ok",
            found=f"{facts.path} {'.'.join(map(str, facts.version))}",
            why="7.2 or newer is needed" if old else "",
            next_step=APT_QEMU if old else "",
            required=True,
        ),
        Check(
            id="machines",
            title="machine types",
            status="missing" if lacking else "ok",
            found=", ".join(name for name in MACHINES if name not in lacking) or "none",
            why=f"{', '.join(lacking)} not in this QEMU" if lacking else "",
            next_step=APT_QEMU if lacking else "",
            required=True,
        ),
        Check(
            id="qemu-sandbox",
            title="QEMU's own -sandbox",
            status="ok" if facts.sandbox else "missing",
            found="yes" if facts.sandbox else "built without seccomp",
            next_step="" if facts.sandbox else APT_QEMU,
            required=True,
        ),
    )


def _kvm(report: KvmReport) -> Check:
    usable = report.verdict is Verdict.USABLE
    return Check(
        id="kvm",
        title="KVM",
        status="ok" if usable else "limited",
        found=f"{report.verdict.value}: {report.why}",
        why="" if usable else "VMs run under TCG: slower, and TCG is not a security boundary",
        next_step=report.next_step,
    )


def _confidential(paths: Paths, root: Root) -> Check:
    status, found, why, step = doctor_confidential.look(paths, root)
    return Check(id="confidential", title="Confidential guests", status=status, found=found, why=why, next_step=step)


def _mac(facts: Facts) -> Check:
    """A host with an LSM that cannot label a VM refuses every launch (control proc.mac-label)."""
    mac = detect_mac()
    if mac is None:
        found = f"neither ({_shown(facts, 'host.lsm')})"
        why = "no label of its own for each VM (control os.mac)"
        return Check(id="mac", title="SELinux or AppArmor", status="limited", found=found, why=why)
    return Check(
        id="mac",
        title="SELinux or AppArmor",
        status="ok" if mac.ready else "missing",
        found=mac.module if mac.ready else f"{mac.module}: {mac.why_not}",
        why="" if mac.ready else "launches are refused (control proc.mac-label)",
        next_step="" if mac.ready else mac.why_not.rpartition(": ")[2],
        required=True,
    )


def _wall(host: HostFacts, root: Root) -> tuple[Check, ...]:
    facts = host.facts
    userns, notify = _value(facts, "host.userns"), _value(facts, "host.seccomp-user-notif")
    landlock = _value(facts, "host.landlock-abi")
    base = cgroups.find_base(root)
    cookie = bool(_value(facts, "host.core-sched"))
    return (
        Check(
            id="user-namespaces",
            title="user namespaces",
            status="ok" if userns == "yes" else "missing",
            found="a namespace was made" if userns == "yes" else _shown(facts, "host.userns"),
            next_step="" if userns == "yes" else _userns_step(facts),
            required=True,
        ),
        Check(
            id="seccomp",
            title="seccomp with user notification",
            status="ok" if notify is True else "missing",
            found="yes" if notify is True else _shown(facts, "host.seccomp-user-notif"),
            next_step="" if notify is True else "a kernel of version 5.0 or newer with CONFIG_SECCOMP_FILTER",
            required=True,
        ),
        Check(
            id="landlock",
            title="Landlock",
            status="ok" if landlock else "limited",
            found=f"ABI {landlock}" if landlock else _shown(facts, "host.landlock-abi"),
            why="" if landlock else "one layer fewer",
            next_step="" if landlock else "boot with lsm=landlock,... (kernel 5.13 or newer)",
        ),
        Check(
            id="cgroup",
            title="cgroups for limits",
            status="ok" if base.version else "limited",
            found=f"version {base.version}: {', '.join(base.parents)}" if base.version else base.why_none,
            why="" if base.version else "memory and CPU of a VM are limited by rlimits only",
            next_step="" if base.version else "systemd-run --user --scope -p Delegate=yes casemate ...",
        ),
        _mac(facts),
        Check(
            id="core-scheduling",
            title="core scheduling",
            status="ok" if cookie else "limited",
            found="yes" if cookie else "not in this kernel",
            why="" if cookie else "another VM may share a physical core's caches and buffers",
        ),
    )


def _userns_step(facts: Facts) -> str:
    if _value(facts, "host.userns-apparmor") == 1:
        return "this host's AppArmor restricts user namespaces: install a profile with `userns,` for casemate's Python"
    if _value(facts, "host.userns-clone") == 0:
        return "sysctl kernel.unprivileged_userns_clone=1"
    if _value(facts, "host.userns-max") == 0:
        return "sysctl user.max_user_namespaces=15000"
    return "run as root, or ask who runs this host (or container) to allow user namespaces"


def _identity(host: HostFacts) -> Check:
    title = "a uid of its own for each VM"
    if os.geteuid() == 0:
        return Check(id="uids", title=title, status="ok", found="root: a reserved range")
    tools = [name for name in ("newuidmap", "newgidmap") if _value(host.facts, f"host.{name}") is None]
    count = min(total_ids(host.subuids), total_ids(host.subgids))
    if count > 1 and not tools:
        return Check(id="uids", title=title, status="ok", found=f"{count} subordinate ids")
    step = "apt install uidmap (Debian, Ubuntu) or dnf install shadow-utils (Fedora)"
    if not tools:
        step = "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"
    return Check(
        id="uids",
        title=title,
        status="limited",
        found="; ".join(_shown(host.facts, f"host.{name}") for name in tools) or "no subordinate ids",
        why="one VM at a time, under your own uid",
        next_step=step,
    )


def _helpers(host: HostFacts) -> tuple[Check, ...]:
    missing = {item.name: item for item in host.missing}
    checks = []
    for name, fact, title in (
        ("passt", "host.passt", "passt"),
        ("ovmf", "host.uefi", "UEFI firmware"),
        ("swtpm", "host.swtpm", "swtpm"),
    ):
        part = missing.get(name)
        version = _shown(host.facts, f"{fact}-version") if f"{fact}-version" in host.facts else ""
        found = _value(host.facts, fact)
        text = str(found[0]) if isinstance(found, tuple) and found else _shown(host.facts, fact)
        checks.append(
            Check(
                id=name,
                title=title,
                status="missing" if part else "ok",
                found=f"{text} ({version})" if version and "unknown version" not in version and not part else text,
                why=f"needed for {part.why}" if part else "",
                next_step=part.command if part else "",
            )
        )
    return tuple(checks)


def _secure_boot(root: Root, paths: Paths) -> tuple[Check, ...]:
    """The firmware of ``uefi-secure``, with the distribution's keys and for an owner's own."""
    checks = []
    smm = bool(cached_probe(Path(paths.cache) / "kvm.json").extension("X86_SMM"))
    for name, title, wanted, why in (
        ("secure-boot", "Secure Boot", Wanted.ENROLLED, 'needed for firmware = "uefi-secure"'),
        ("secure-boot-keys", "Secure Boot with keys of yours", Wanted.SETUP, "needed for [boot.keys]"),
    ):
        try:
            found, status, step = choose_uefi(root, wanted).code, "ok", ""
        except HostError as error:
            found, status, step = f"{error.what} in {error.got}", "missing", error.next_step
        if wanted is Wanted.SETUP and status == "ok":
            program = find_program()
            found = f"{found}, {program or f'no {PROGRAM}'}"
            status, step = ("ok", "") if program else ("missing", INSTALL)
        if status == "ok" and not smm:
            status, why_not = "limited", "this host's KVM does not emulate system management mode: under TCG only"
        else:
            why_not = why if status != "ok" else ""
        checks.append(Check(id=name, title=title, status=status, found=found, why=why_not, next_step=step))
    return tuple(checks)


def _guest(paths: Paths) -> Check:
    from casemate.image.builtin import find_builtin

    guest = find_builtin([Path(paths.cache)])
    if guest is not None:
        return Check(id="builtin", title="guest named builtin", status="ok", found=f"kernel {guest.kernel_release}")
    return Check(
        id="builtin",
        title="guest named builtin",
        status="limited",
        found="not built yet",
        why="the first `casemate run builtin` builds it from signed packages, which takes some seconds",
    )


def _directory(facts: Facts, path: str) -> Check:
    free = _value(facts, f"host.free-bytes.{path}")
    enough = isinstance(free, int) and free >= FREE_BYTES_MIN
    return Check(
        id=f"free:{path}",
        title=path,
        status="ok" if enough else "limited",
        found=f"{format_bytes(free)} free" if isinstance(free, int) else _shown(facts, f"host.free-bytes.{path}"),
        why="" if enough else "overlays, logs and the built-in guest need room",
        next_step="" if enough else f"df -h {path}",
    )
