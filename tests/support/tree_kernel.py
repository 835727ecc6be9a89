"""The kernel of a good host, and one change per control of it; the format is described in `host_tree`."""

from __future__ import annotations

from tests.support.host_tree import KERNEL_RELEASE, Content, File, Folder, Lines, Mutation, Words

from casemate.controls.catalogue import kernel_audit
from casemate.controls.kernel_settings import SETTINGS
from casemate.facts.fact import Facts, Known
from casemate.facts.kernel_collect import collect_kernel
from casemate.facts.kernel_khc import import_khc

CONTROLS = kernel_audit.CONTROLS
COLLECTORS = (collect_kernel,)

CONFIG = f"/boot/config-{KERNEL_RELEASE}"
EFIVARS = "/sys/firmware/efi/efivars"
GUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"

BUILT: dict[str, str] = {
    "X86_64": "y",
    "MODULES": "y",
    "RANDOMIZE_BASE": "y",
    "SHUFFLE_PAGE_ALLOCATOR": "y",
    "SLAB_MERGE_DEFAULT": "y",
    "HARDENED_USERCOPY": "y",
    "LIST_HARDENED": "y",
    "RANDOMIZE_KSTACK_OFFSET_DEFAULT": "y",
    "INIT_ON_ALLOC_DEFAULT_ON": "y",
    "X86_VSYSCALL_EMULATION": "y",
    "LEGACY_VSYSCALL_XONLY": "y",
    "X86_KERNEL_IBT": "y",
    "IA32_EMULATION": "y",
    "COMPAT": "y",
    "DEVMEM": "y",
    "STRICT_DEVMEM": "y",
    "IO_STRICT_DEVMEM": "y",
    "DEBUG_FS": "y",
    "DEBUG_FS_ALLOW_ALL": "y",
    "SECURITY_LOCKDOWN_LSM": "y",
    "SECURITY_YAMA": "y",
    "MODULE_SIG": "y",
    "KEXEC": "y",
    "BPF_SYSCALL": "y",
    "IO_URING": "y",
    "USERFAULTFD": "y",
    "USER_NS": "y",
    "MAGIC_SYSRQ": "y",
    **{s.fact.removeprefix("kconfig."): "y" for s in SETTINGS if s.fact.startswith("kconfig.") and s.expect.holds("y")},
}


def config(**changes: str) -> str:
    """A whole kernel configuration; an option with the value ``n`` is not set."""
    options = {f"FILLER_{number}": "m" for number in range(520)} | BUILT | changes
    lines = (f"# CONFIG_{k} is not set" if v == "n" else f"CONFIG_{k}={v}" for k, v in options.items())
    return "# Linux/x86 Kernel Configuration\n" + "\n".join(lines) + "\n"


def sysctl(name: str, value: str) -> dict[str, Content]:
    """One sysctl as a file."""
    return {f"/proc/sys/{name.replace('.', '/')}": f"{value}\n"}


def efi(name: str, value: int) -> dict[str, Content]:
    """A variable of the firmware: attributes, then one byte."""
    return {f"{EFIVARS}/{name}-{GUID}": File(b"\x06\0\0\0" + bytes([value]))}


SYSCTL_VALUES = {
    **{s.fact.removeprefix("sysctl."): "" for s in SETTINGS if s.fact.startswith("sysctl.")},
    "fs.suid_dumpable": "0",
    "kernel.sysrq": "0",
    "vm.unprivileged_userfaultfd": "0",
    "vm.mmap_min_addr": "65536",
    "kernel.modules_disabled": "1",
    "kernel.kexec_load_disabled": "1",
    "kernel.unprivileged_bpf_disabled": "1",
    "kernel.io_uring_disabled": "1",
    "kernel.yama.ptrace_scope": "2",
    "kernel.apparmor_restrict_unprivileged_userns": "1",
    "user.max_user_namespaces": "31000",
}
for _setting in SETTINGS:
    _name = _setting.fact.removeprefix("sysctl.")
    if _setting.fact.startswith("sysctl.") and not SYSCTL_VALUES[_name]:
        SYSCTL_VALUES[_name] = next(value for value in "012345" if _setting.expect.holds(value))

PASSING: dict[str, Content] = {
    CONFIG: config(),
    "/proc/cpuinfo": Lines("flags\t\t: fpu vme de pse msr nx vmx smep smap ibt\n"),
    "/proc/cmdline": Words(
        "slab_nomerge page_alloc.shuffle=1 init_on_free=1 vsyscall=none ia32_emulation=0 debugfs=no-mount"
        " lockdown=integrity"
    ),
    "/sys/kernel/security/lockdown": "none [integrity] confidentiality\n",
    "/sys/kernel/security/tpm0/binary_bios_measurements": "log",
    "/sys/class/tpm/tpm0": Folder(),
    **efi("SecureBoot", 1),
    **efi("SetupMode", 0),
}
for _name, _value in SYSCTL_VALUES.items():
    PASSING |= sysctl(_name, _value)

FACTS: Facts = import_khc(
    '[{"option_name": "CONFIG_BUG", "type": "kconfig", "desired_val": "y", "check_result": "OK"}]', "khc.json"
)

MUTATIONS: dict[str, Mutation | dict[str, Content]] = {
    "hk.lockdown": Mutation(
        {
            "/sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
            "/sys/module/module/parameters/sig_enforce": "Y\n",
        }
    ),
    "hk.modules": Mutation(
        {
            "/sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
            "/sys/module/module/parameters/sig_enforce": "N\n",
        },
        also=("hk.lockdown",),
    ),
    "hk.modules-disabled": sysctl("kernel.modules_disabled", "0"),
    "hk.kexec": sysctl("kernel.kexec_load_disabled", "0"),
    "hk.bpf": sysctl("kernel.unprivileged_bpf_disabled", "0"),
    "hk.io-uring": sysctl("kernel.io_uring_disabled", "0"),
    "hk.userfaultfd": sysctl("vm.unprivileged_userfaultfd", "1"),
    "hk.ptrace": sysctl("kernel.yama.ptrace_scope", "1"),
    "hk.userns": sysctl("kernel.apparmor_restrict_unprivileged_userns", "0"),
    "hk.secure-boot": efi("SecureBoot", 0),
    "hk.secure-boot-setup": efi("SetupMode", 1),
    "hk.measured-boot": {"/sys/class/tpm/tpm0": None},
    "hk.weakening": {"/proc/cmdline": Words(plus="nosmap")},
    "hk.no-outer-vmm": {"/sys/class/dmi/id/product_name": "VirtualBox\n"},
    "hk.khc-report": Mutation(facts={"kernel.khc-failed": Known(("CONFIG_BUG wants y",), "khc.json")}),
    "hk.memory": {"/proc/cmdline": Words(minus="slab_nomerge")},
    "hk.zeroing": {CONFIG: config(INIT_ON_ALLOC_DEFAULT_ON="n")},
    "hk.init-on-free": {"/proc/cmdline": Words(minus="init_on_free=1")},
    "hk.stack": {"/proc/cmdline": Words(plus="randomize_kstack_offset=maybe"), CONFIG: config(VMAP_STACK="n")},
    "hk.wx": {CONFIG: config(STRICT_KERNEL_RWX="n")},
    "hk.kaslr": {CONFIG: config(RANDOMIZE_BASE="n")},
    "hk.cfi": {CONFIG: config(X86_KERNEL_IBT="n")},
    "hk.fortify": {CONFIG: config(FORTIFY_SOURCE="n")},
    "hk.aslr": sysctl("kernel.randomize_va_space", "1"),
    "hk.mmap-min": sysctl("vm.mmap_min_addr", "4096"),
    "hk.leak": sysctl("kernel.kptr_restrict", "1"),
    "hk.dmesg": sysctl("kernel.dmesg_restrict", "0"),
    "hk.debugfs": {"/proc/cmdline": Words(minus="debugfs=no-mount")},
    "hk.devmem": {CONFIG: config(IO_STRICT_DEVMEM="n")},
    "hk.perf": sysctl("kernel.perf_event_paranoid", "1"),
    "hk.bpf-jit": sysctl("net.core.bpf_jit_harden", "1"),
    "hk.sysrq": sysctl("kernel.sysrq", "438"),
    "hk.tty": sysctl("dev.tty.ldisc_autoload", "1"),
    "hk.panic-on-oops": sysctl("kernel.panic_on_oops", "0"),
    "hk.fs-links": sysctl("fs.protected_regular", "1"),
    "hk.vsyscall": {"/proc/cmdline": Words(minus="vsyscall=none", plus="vsyscall=unheard-of")}
    | {CONFIG: config(LEGACY_VSYSCALL_XONLY="n", LEGACY_VSYSCALL_EMULATE="y")},
    "hk.compat": {"/proc/cmdline": Words(minus="ia32_emulation=0")},
    "net.host-sysctl": sysctl("net.ipv4.conf.all.accept_redirects", "1"),
    "hk.khc-set": {CONFIG: config(KFENCE="n")},
}

# Every setting of the table, loosened one at a time, fails its own control and no other.
MORE_FAILURES: tuple[tuple[str, Mutation | dict[str, Content]], ...] = tuple(
    (
        s.group,
        {CONFIG: config(**{s.fact.removeprefix("kconfig."): "n" if s.expect.holds("y") else "y"})}
        if s.fact.startswith("kconfig.")
        else sysctl(s.fact.removeprefix("sysctl."), "9"),
    )
    for s in SETTINGS
    if s.fact.startswith(("kconfig.", "sysctl."))
)

NOT_APPLICABLE: dict[str, Mutation] = {
    "hk.khc-report": Mutation(facts={"kernel.khc-imported": Known(False, "not given")}),
    "hk.secure-boot-setup": Mutation({"/sys/firmware/efi": None}),
}

UNKNOWN: dict[str, Mutation | dict[str, Content]] = {
    "hk.lockdown": {"/sys/kernel/security": None},
    "hk.memory": {CONFIG: "CONFIG_X86_64=y\n"},
    "hk.khc-set": {CONFIG: None},
    "hk.leak": {"/proc/sys": None},
    "hk.secure-boot": {EFIVARS: None},
    "hk.no-outer-vmm": {"/proc/cpuinfo": None},
    "hk.ptrace": sysctl("kernel.yama.ptrace_scope", "nonsense"),
}
