"""Settings of the kernel with more than one switch, worked out to the one value that is in force.

A build option gives the default, the command line overrides it, a sysctl may close the rest. Each function takes what
was read and answers one fact; pure.
"""

from __future__ import annotations

from collections.abc import Callable

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.kconfig import ABSENT, Kconfig
from casemate.facts.kernel_cmdline import CMDLINE, Cmdline

Config = Kconfig | Unknown
Line = Cmdline | Unknown
OTHER_ARCHITECTURE = "other-architecture"


def _switched(config: Config, line: Line, words: tuple[str, ...], default: Callable[[Kconfig], bool]) -> Fact:
    """``on`` or ``off``: the command line's word if there is one, else the build's default."""
    if isinstance(line, Unknown):
        return line
    given = line.switch(*words)
    if given is not None:
        return Known("on" if given else "off", f"{CMDLINE}: {words[0]}")
    if isinstance(config, Unknown):
        return config
    return Known("on" if default(config) else "off", f"{config.source}; {CMDLINE} has no {words[0]}")


def _built(config: Config, line: Line, option: str, off_words: tuple[str, ...]) -> Fact:
    """``on`` when built in and no bare word of the command line takes it away."""
    if isinstance(line, Unknown):
        return line
    word = next((word for word in off_words if line.last(word) is not None), None)
    if word is not None:
        return Known("off", f"{CMDLINE}: {word}")
    if isinstance(config, Unknown):
        return config
    return Known("on" if config.has(option) else "off", f"{config.source}: CONFIG_{option}")


def _init_on_alloc(config: Config, line: Line) -> Fact:
    return _switched(config, line, ("init_on_alloc",), lambda c: c.has("INIT_ON_ALLOC_DEFAULT_ON"))


def _init_on_free(config: Config, line: Line) -> Fact:
    return _switched(config, line, ("init_on_free",), lambda c: c.has("INIT_ON_FREE_DEFAULT_ON"))


def _kstack_offset(config: Config, line: Line) -> Fact:
    default = lambda c: c.has("RANDOMIZE_KSTACK_OFFSET_DEFAULT")  # noqa: E731
    return _switched(config, line, ("randomize_kstack_offset",), default)


def _page_shuffle(config: Config, line: Line) -> Fact:
    if isinstance(config, Kconfig) and not config.has("SHUFFLE_PAGE_ALLOCATOR"):
        return Known("off", f"{config.source}: CONFIG_SHUFFLE_PAGE_ALLOCATOR")
    # Built in it still waits for the word; the kernel turns it on by itself only with a direct-mapped memory cache.
    return _switched(config, line, ("page_alloc.shuffle",), lambda _config: False)


def _usercopy(config: Config, line: Line) -> Fact:
    if isinstance(config, Kconfig) and not config.has("HARDENED_USERCOPY"):
        return Known("off", f"{config.source}: CONFIG_HARDENED_USERCOPY")
    # Kernels before 6.13 have no _DEFAULT_ON option: there, built in means on.
    on = lambda c: c.get("HARDENED_USERCOPY_DEFAULT_ON") in ("y", ABSENT)  # noqa: E731
    return _switched(config, line, ("hardened_usercopy",), on)


def _slab_merge(config: Config, line: Line) -> Fact:
    if isinstance(line, Unknown):
        return line
    if line.last("slab_nomerge", "slub_nomerge") is not None:
        return Known("off", f"{CMDLINE}: slab_nomerge")
    if line.last("slab_merge", "slub_merge") is not None:
        return Known("on", f"{CMDLINE}: slab_merge")
    if isinstance(config, Unknown):
        return config
    return Known("on" if config.has("SLAB_MERGE_DEFAULT") else "off", f"{config.source}: CONFIG_SLAB_MERGE_DEFAULT")


def _kaslr(config: Config, line: Line) -> Fact:
    return _built(config, line, "RANDOMIZE_BASE", ("nokaslr",))


def _list_hardened(config: Config, _line: Line) -> Fact:
    if isinstance(config, Unknown):
        return config
    name = next((name for name in ("LIST_HARDENED", "DEBUG_LIST") if config.has(name)), None)
    source = f"{config.source}: CONFIG_{name or 'LIST_HARDENED'}"
    return Known("on" if name else "off", source)


def _vsyscall(config: Config, line: Line) -> Fact:
    """``none``, ``xonly`` or ``emulate``."""
    if isinstance(config, Kconfig) and config.architecture == "arm64":
        return Known(OTHER_ARCHITECTURE, config.source)
    if isinstance(line, Unknown):
        return line
    given = line.last("vsyscall")
    if given in ("none", "xonly", "emulate"):
        return Known(given, f"{CMDLINE}: vsyscall")
    if isinstance(config, Unknown):
        return config
    if not config.has("X86_VSYSCALL_EMULATION"):
        return Known("none", f"{config.source}: CONFIG_X86_VSYSCALL_EMULATION")
    for option, value in (("NONE", "none"), ("XONLY", "xonly"), ("EMULATE", "emulate")):
        if config.has(f"LEGACY_VSYSCALL_{option}"):
            return Known(value, f"{config.source}: CONFIG_LEGACY_VSYSCALL_{option}")
    return Unknown(f"{config.source}: none of CONFIG_LEGACY_VSYSCALL_* is set")


def _cfi(config: Config, line: Line) -> Fact:
    """``kcfi``, ``ibt``, ``bti`` or ``none``; what the processor has to offer is not looked at."""
    if isinstance(config, Unknown):
        return config
    if isinstance(line, Unknown):
        return line
    # Renamed from CFI_CLANG to CFI in 6.18.
    name = next((name for name in ("CFI", "CFI_CLANG") if config.has(name)), None)
    if name and line.last("cfi") != "off":
        return Known("kcfi", f"{config.source}: CONFIG_{name}")
    if config.has("X86_KERNEL_IBT") and line.last("ibt") != "off":
        return Known("ibt", f"{config.source}: CONFIG_X86_KERNEL_IBT")
    if config.has("ARM64_BTI_KERNEL"):
        return Known("bti", f"{config.source}: CONFIG_ARM64_BTI_KERNEL")
    return Known("none", f"{config.source}: CONFIG_CFI_CLANG, CONFIG_X86_KERNEL_IBT, CONFIG_ARM64_BTI_KERNEL")


def _ia32(config: Config, line: Line) -> Fact:
    """Whether 32-bit programs run: ``on`` or ``off``."""
    if isinstance(config, Kconfig) and not (config.has("IA32_EMULATION") or config.has("COMPAT")):
        return Known("off", f"{config.source}: CONFIG_IA32_EMULATION")
    off = lambda c: not c.has("IA32_EMULATION_DEFAULT_DISABLED")  # noqa: E731
    return _switched(config, line, ("ia32_emulation",), off)


def _debugfs(config: Config, line: Line) -> Fact:
    """``off``, ``no-mount`` or ``on``."""
    if isinstance(config, Kconfig) and not config.has("DEBUG_FS"):
        return Known("off", f"{config.source}: CONFIG_DEBUG_FS")
    if isinstance(line, Unknown):
        return line
    given = line.last("debugfs")
    if given in ("off", "no-mount", "on"):
        return Known(given, f"{CMDLINE}: debugfs")
    if isinstance(config, Unknown):
        return config
    for option, value in (("ALLOW_NONE", "off"), ("DISALLOW_MOUNT", "no-mount")):
        if config.has(f"DEBUG_FS_{option}"):
            return Known(value, f"{config.source}: CONFIG_DEBUG_FS_{option}")
    return Known("on", f"{config.source}: CONFIG_DEBUG_FS_ALLOW_ALL")


def _devmem(config: Config, line: Line) -> Fact:
    """``absent``, ``strict`` (no memory and no device in use), ``ram-only`` (no memory), ``relaxed`` or ``open``."""
    if isinstance(config, Unknown):
        return config
    if not config.has("DEVMEM"):
        return Known("absent", f"{config.source}: CONFIG_DEVMEM")
    if not config.has("STRICT_DEVMEM"):
        return Known("open", f"{config.source}: CONFIG_STRICT_DEVMEM")
    if isinstance(line, Unknown):
        return line
    if line.last("iomem") == "relaxed":
        return Known("relaxed", f"{CMDLINE}: iomem=relaxed")
    strict = config.has("IO_STRICT_DEVMEM") or line.last("iomem") == "strict"
    return Known("strict" if strict else "ram-only", f"{config.source}: CONFIG_IO_STRICT_DEVMEM; {CMDLINE}: iomem")


_EFFECTIVE: dict[str, Callable[[Config, Line], Fact]] = {
    "kernel.init-on-alloc": _init_on_alloc,
    "kernel.init-on-free": _init_on_free,
    "kernel.kstack-offset": _kstack_offset,
    "kernel.page-shuffle": _page_shuffle,
    "kernel.usercopy": _usercopy,
    "kernel.slab-merge": _slab_merge,
    "kernel.kaslr": _kaslr,
    "kernel.list-hardened": _list_hardened,
    "kernel.vsyscall": _vsyscall,
    "kernel.cfi": _cfi,
    "kernel.ia32": _ia32,
    "kernel.debugfs": _debugfs,
    "kernel.devmem": _devmem,
}


def effective_facts(config: Config, line: Line) -> Facts:
    """Every ``kernel.*`` fact of this module."""
    return {name: work_out(config, line) for name, work_out in _EFFECTIVE.items()}
