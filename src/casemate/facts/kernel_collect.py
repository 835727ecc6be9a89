"""The host's kernel: how it was built, booted and set (``kconfig.*``, ``sysctl.*``, ``kernel.*``)."""

from __future__ import annotations

from typing import Final

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.kconfig import Kconfig, read_kconfig
from casemate.facts.kernel_boot import boot_facts
from casemate.facts.kernel_cmdline import read_cmdline, weakening_fact
from casemate.facts.kernel_effective import OTHER_ARCHITECTURE, effective_facts
from casemate.facts.kernel_names_data import KCONFIG, KCONFIG_OF_ARCH
from casemate.facts.kernel_sysctl import ABSENT, collect_sysctls, read_sysctl
from casemate.facts.root import Root

_LOCKDOWN: Final = "/sys/kernel/security/lockdown"
_SIG_ENFORCE: Final = "/sys/module/module/parameters/sig_enforce"
_USERNS_OPEN: Final = "open"


def collect_kernel(root: Root) -> Facts:
    """All facts about the running kernel; reads small files, starts nothing."""
    config = read_kconfig(root)
    line = read_cmdline(root)
    facts = collect_sysctls(root)
    facts |= _kconfig_facts(config)
    facts |= effective_facts(config, line)
    facts |= boot_facts(root)
    lockdown = _lockdown(root, config)
    facts["kernel.weakening"] = weakening_fact(line)
    facts["kernel.lockdown"] = lockdown
    facts["kernel.module-signatures"] = _module_signatures(root, config, lockdown)
    facts["kernel.module-loading"] = _module_loading(root, config)
    facts["kernel.kexec"] = _kexec(root, config)
    facts["kernel.bpf"] = _bpf(root, config)
    facts["kernel.sysrq"] = _sysrq(root, config)
    facts["kernel.io-uring"] = _io_uring(root, config)
    facts["kernel.userfaultfd"] = _userfaultfd(root, config, facts["sysctl.vm.unprivileged_userfaultfd"])
    facts["kernel.ptrace"] = _ptrace(root, config)
    facts["kernel.userns"] = _userns(root, config)
    # A result of kernel-hardening-checker is imported by whoever was given one (kernel_khc.py).
    facts["kernel.khc-imported"] = Known(False, "no result of kernel-hardening-checker was given")
    return facts


def _kconfig_facts(config: Kconfig | Unknown) -> Facts:
    names = (*KCONFIG, *KCONFIG_OF_ARCH)
    if isinstance(config, Unknown):
        return {f"kconfig.{name}": config for name in names}
    facts: Facts = {f"kconfig.{name}": config.fact(name) for name in KCONFIG}
    for name, arch in KCONFIG_OF_ARCH.items():
        if not config.architecture:
            facts[f"kconfig.{name}"] = Unknown(f"{config.source}: neither x86_64 nor arm64")
        elif arch in ("", config.architecture):
            facts[f"kconfig.{name}"] = config.fact(name)
        else:
            facts[f"kconfig.{name}"] = Known(OTHER_ARCHITECTURE, f"{config.source}: CONFIG_{name} is for {arch}")
    return facts


def _without(config: Kconfig | Unknown, *options: str) -> str:
    """The source when the kernel was surely built without all of these; empty otherwise."""
    if isinstance(config, Unknown) or any(config.has(option) for option in options):
        return ""
    return f"{config.source}: " + ", ".join(f"CONFIG_{option}" for option in options)


def _lockdown(root: Root, config: Kconfig | Unknown) -> Fact:
    """``none``, ``integrity`` or ``confidentiality``."""
    absent = _without(config, "SECURITY_LOCKDOWN_LSM")
    if absent:
        return Known("none", absent)
    try:
        words = root.read_text(_LOCKDOWN, 4096).split()
    except FileNotFoundError:
        return _lockdown_unmounted(root)
    except OSError as error:
        return Unknown(f"{_LOCKDOWN}: {error.strerror or error}")
    chosen = next((word[1:-1] for word in words if word.startswith("[") and word.endswith("]")), "")
    if chosen not in ("none", "integrity", "confidentiality"):
        return Unknown(f"{_LOCKDOWN}: no mode is marked")
    return Known(chosen, _LOCKDOWN)


def _lockdown_unmounted(root: Root) -> Fact:
    try:
        mounted = root.exists("/sys/kernel/security/lsm")
    except OSError as error:
        return Unknown(f"/sys/kernel/security/lsm: {error.strerror or error}")
    if mounted:
        return Known("none", f"{_LOCKDOWN} does not exist: the lockdown LSM is not active")
    return Unknown(f"{_LOCKDOWN}: securityfs is not mounted")


def _module_signatures(root: Root, config: Kconfig | Unknown, lockdown: Fact) -> Fact:
    """``enforced``, ``not-enforced`` or ``no-modules``."""
    absent = _without(config, "MODULES")
    if absent:
        return Known("no-modules", absent)
    if isinstance(config, Kconfig) and config.has("MODULE_SIG_FORCE"):
        return Known("enforced", f"{config.source}: CONFIG_MODULE_SIG_FORCE")
    if isinstance(lockdown, Known) and lockdown.value in ("integrity", "confidentiality"):
        return Known("enforced", f"{lockdown.source}: lockdown accepts signed modules only")
    try:
        value = root.read_text(_SIG_ENFORCE, 64).strip()
    except FileNotFoundError:
        if _without(config, "MODULE_SIG"):
            return Known("not-enforced", _without(config, "MODULE_SIG"))
        return Unknown(f"{_SIG_ENFORCE} does not exist")
    except OSError as error:
        return Unknown(f"{_SIG_ENFORCE}: {error.strerror or error}")
    return Known("enforced" if value == "Y" else "not-enforced", _SIG_ENFORCE)


def _module_loading(root: Root, config: Kconfig | Unknown) -> Fact:
    """``no-modules``, ``disabled`` until the next boot, or ``allowed``."""
    absent = _without(config, "MODULES")
    if absent:
        return Known("no-modules", absent)
    return _translate(read_sysctl(root, "kernel.modules_disabled"), {"1": "disabled", "0": "allowed"})


def _kexec(root: Root, config: Kconfig | Unknown) -> Fact:
    """``absent``, ``disabled`` or ``allowed``."""
    absent = _without(config, "KEXEC", "KEXEC_FILE")
    if absent:
        return Known("absent", absent)
    return _translate(read_sysctl(root, "kernel.kexec_load_disabled"), {"1": "disabled", "0": "allowed"})


def _bpf(root: Root, config: Kconfig | Unknown) -> Fact:
    """``absent``, ``disabled``, ``disabled-locked`` or ``allowed``, for users without rights."""
    absent = _without(config, "BPF_SYSCALL")
    if absent:
        return Known("absent", absent)
    words = {"0": "allowed", "1": "disabled-locked", "2": "disabled"}
    return _translate(read_sysctl(root, "kernel.unprivileged_bpf_disabled"), words)


def _sysrq(root: Root, config: Kconfig | Unknown) -> Fact:
    """What the magic keys may do, as the kernel's number; ``absent`` when it was built without them."""
    absent = _without(config, "MAGIC_SYSRQ")
    return Known("absent", absent) if absent else read_sysctl(root, "kernel.sysrq")


def _io_uring(root: Root, config: Kconfig | Unknown) -> Fact:
    """``absent``, ``disabled``, ``privileged`` (only with rights or the named group) or ``allowed``."""
    absent = _without(config, "IO_URING")
    if absent:
        return Known("absent", absent)
    fact = read_sysctl(root, "kernel.io_uring_disabled")
    if isinstance(fact, Known) and fact.value == ABSENT and isinstance(config, Kconfig):
        return Known("allowed", f"{config.source}: CONFIG_IO_URING; this kernel (before 6.6) has no switch for it")
    return _translate(fact, {"0": "allowed", "1": "privileged", "2": "disabled"})


def _userfaultfd(root: Root, config: Kconfig | Unknown, sysctl: Fact) -> Fact:
    """``absent``, ``restricted`` (no kernel faults for users without rights) or ``allowed``."""
    absent = _without(config, "USERFAULTFD")
    if absent:
        return Known("absent", absent)
    return _translate(sysctl, {"0": "restricted", "1": "allowed"})


def _ptrace(root: Root, config: Kconfig | Unknown) -> Fact:
    """Yama's ptrace_scope as ``0`` to ``3``; ``no-yama`` when the kernel has none."""
    absent = _without(config, "SECURITY_YAMA")
    if absent:
        return Known("no-yama", absent)
    fact = read_sysctl(root, "kernel.yama.ptrace_scope")
    return _translate(fact, {**{str(n): str(n) for n in range(4)}, ABSENT: "no-yama"})


def _userns(root: Root, config: Kconfig | Unknown) -> Fact:
    """Who may make user namespaces: ``absent``, ``nobody``, ``privileged``, ``by-profile`` (AppArmor) or ``open``."""
    absent = _without(config, "USER_NS")
    if absent:
        return Known("absent", absent)
    most = read_sysctl(root, "user.max_user_namespaces")
    if isinstance(most, Unknown):
        return most
    if most.value == "0":
        return Known("nobody", most.source)
    # Two switches of distributions; both are missing on an upstream kernel.
    for name, closed, word in (
        ("kernel.unprivileged_userns_clone", "0", "privileged"),
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "by-profile"),
    ):
        fact = read_sysctl(root, name)
        if isinstance(fact, Unknown):
            return fact
        if fact.value == closed:
            return Known(word, fact.source)
    return Known(_USERNS_OPEN, most.source)


def _translate(fact: Fact, words: dict[str, str]) -> Fact:
    """A sysctl's number as a word; a value without a word is unknown."""
    if isinstance(fact, Unknown):
        return fact
    word = words.get(str(fact.value))
    if word is None:
        return Unknown(f"{fact.source}: {fact.value!r}, expected one of {', '.join(sorted(words))}")
    return Known(word, fact.source)
