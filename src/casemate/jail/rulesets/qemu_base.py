"""What every emulator of ours needs, whatever its accelerator and devices: loader, glibc, main loop, QMP, threads.

Traced on QEMU 7.2 in a root without /proc, /sys and /etc. Start-up calls end before ``cont``: afterwards they fail with
ENOSYS, which QEMU survives where it still tries one (SIGTERM makes it look for the sender's name in /proc).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from casemate.jail.rules import Arg, Op, Origin, Phase, Rule
from casemate.jail.rulesets.values import (
    ARCH_SET_FS,
    AT_EMPTY_PATH,
    CLONE_THREAD_GLIBC,
    EINVAL,
    ENOENT,
    ENOSYS,
    EOPNOTSUPP,
    F_GETFL,
    F_SETFL,
    MADV_DONTDUMP,
    MADV_DONTFORK,
    MADV_DONTNEED,
    MADV_HUGEPAGE,
    PR_CAPBSET_READ,
    PR_MCE_KILL,
    PR_SET_NAME,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_TIMERSLACK,
    PROT_EXEC,
    SIGABRT,
    SO_TYPE,
    SO_ZEROCOPY,
    SOL_SOCKET,
    bits_are,
    int_is,
)

_START = Phase.STARTUP

MEMORY: tuple[Rule, ...] = (
    Rule("brk", "glibc malloc grows and trims the main heap"),
    Rule(
        "mmap",
        "glibc malloc arenas, thread stacks, guest RAM: never executable",
        (bits_are(2, PROT_EXEC, 0),),
    ),
    Rule(
        "mmap",
        "ld.so maps the code of the libraries and of QEMU's modules",
        (bits_are(2, PROT_EXEC, PROT_EXEC),),
        _START,
    ),
    Rule(
        "mprotect",
        "glibc commits heap and sets stack guard pages, ld.so seals relocated data: never executable",
        (bits_are(2, PROT_EXEC, 0),),
    ),
    Rule("munmap", "glibc frees arenas, large blocks and the stacks of ended threads"),
    Rule("madvise", "glibc gives back the stack of an ended thread", (int_is(2, MADV_DONTNEED),)),
    Rule(
        "madvise", "QEMU keeps guest RAM out of core dumps (dump-guest-core=off)", (int_is(2, MADV_DONTDUMP),), _START
    ),
    Rule("madvise", "QEMU asks for huge pages for guest RAM", (int_is(2, MADV_HUGEPAGE),), _START),
    Rule("madvise", "QEMU keeps guest RAM out of child processes", (int_is(2, MADV_DONTFORK),), _START),
)

THREADS: tuple[Rule, ...] = (
    Rule(
        "clone",
        "glibc starts a thread (vCPU, RCU, block worker): these flags only",
        (Arg(0, Op.EQ, CLONE_THREAD_GLIBC),),
    ),
    Rule("clone3", "its flags lie in memory and cannot be checked; glibc falls back to clone", errno=ENOSYS),
    Rule("set_robust_list", "glibc, at the start of each thread"),
    Rule("rseq", "glibc, at the start of each thread"),
    Rule("exit", "an idle block worker ends its thread"),
    Rule("exit_group", "QEMU ends"),
    Rule("futex", "locks and condition variables of glibc, glib and QEMU, RCU's grace periods"),
    Rule("rt_sigprocmask", "glibc blocks signals around thread creation and abort; coroutines restore masks"),
    Rule("rt_sigreturn", "return from a signal handler (SIGTERM, the vCPU kick)"),
    Rule("clock_nanosleep", "the RCU thread waits between grace periods"),
    Rule("getpid", "glib and glibc's pthread_kill ask who they are"),
    Rule("gettid", "each of QEMU's threads notes its number"),
)

LOOP: tuple[Rule, ...] = (
    Rule("ppoll", "the main loop waits for descriptors and timers"),
    Rule("poll", "a channel waits until its socket takes or gives data"),
    Rule("read", "event and signal descriptors, files"),
    Rule("write", "event descriptors, standard error"),
    Rule("recvmsg", "QMP and console sockets"),
    Rule("sendmsg", "QMP and console sockets"),
    Rule("close", "descriptors of ended channels and of event notifiers"),
)

STARTUP: tuple[Rule, ...] = (
    Rule("execve", "the launcher becomes QEMU", phase=_START),
    Rule("access", "ld.so and QEMU's search for modules and firmware", phase=_START),
    Rule("arch_prctl", "glibc sets the thread pointer", (Arg(0, Op.EQ, ARCH_SET_FS),), _START),
    Rule("set_tid_address", "glibc, once", phase=_START),
    Rule("prlimit64", "glibc and QEMU read limits; setting one is not allowed", (Arg(2, Op.EQ, 0),), _START),
    Rule("getrandom", "glibc and glib seed hash tables", phase=_START),
    Rule("newfstatat", "ld.so, glib and QEMU look at files by path", (bits_are(3, AT_EMPTY_PATH, 0),), _START),
    Rule("fstat", "size and kind of an open descriptor, newer glibc"),
    Rule("newfstatat", "size and kind of an open descriptor", (bits_are(3, AT_EMPTY_PATH, AT_EMPTY_PATH),)),
    Rule("openat", "libraries, modules, firmware, kernel, initrd and /dev nodes in the jail's root", phase=_START),
    Rule("pread64", "ld.so reads ELF headers", phase=_START),
    Rule("lseek", "QEMU and glib find the size of firmware, kernel and images", phase=_START),
    Rule("readlink", "QEMU finds where it was installed", phase=_START),
    Rule("sched_getaffinity", "glib and glibc's malloc count processors"),
    Rule("sysinfo", "glibc's qsort asks for the memory size once", phase=_START),
    Rule("rt_sigaction", "QEMU installs its signal handlers", phase=_START),
    Rule("signalfd4", "the main loop takes SIGINT, SIGTERM, SIGHUP as descriptors", phase=_START),
    Rule(
        "epoll_create1",
        "each event context prepares an epoll descriptor, used only beyond 64 descriptors",
        phase=_START,
    ),
    Rule("eventfd2", "event notifiers of the main loop, of thread pools and of virtio queues"),
    *(
        Rule(call, "reads the clock where the vDSO cannot (clock source hpet, acpi_pm, xen)", origin=Origin.SOURCE)
        for call in ("clock_gettime", "gettimeofday", "time")
    ),
    Rule(
        "restart_syscall",
        "the kernel resumes a wait that the read-back's ptrace stop interrupted",
        origin=Origin.SOURCE,
    ),
    Rule("fcntl", "glib and QEMU make inherited sockets non-blocking", (int_is(1, F_GETFL),), _START),
    Rule("fcntl", "glib and QEMU make inherited sockets non-blocking", (int_is(1, F_SETFL),), _START),
    Rule("getpeername", "QEMU names the peer of an inherited socket", phase=_START),
    Rule("getsockname", "QEMU names an inherited socket", phase=_START),
    Rule(
        "getsockopt",
        "QEMU asks what type an inherited socket has",
        (int_is(1, SOL_SOCKET), int_is(2, SO_TYPE)),
        _START,
    ),
    Rule(
        "prctl", "libcap-ng's constructor looks at the bounding set, newer QEMU", (int_is(0, PR_CAPBSET_READ),), _START
    ),
    Rule("prctl", "QEMU asks for precise timers", (int_is(0, PR_SET_TIMERSLACK),), _START),
    Rule("prctl", "QEMU wants early SIGBUS on memory failure", (int_is(0, PR_MCE_KILL),), _START),
    Rule("prctl", "libseccomp, before QEMU's own -sandbox filter", (int_is(0, PR_SET_NO_NEW_PRIVS),), _START),
    Rule("seccomp", "libseccomp loads QEMU's own -sandbox filter on top of this one", phase=_START),
)

OTHER_BUILDS: tuple[Rule, ...] = (
    Rule("prctl", "newer QEMU names its threads", (int_is(0, PR_SET_NAME),), origin=Origin.SOURCE),
    Rule("membarrier", "grace periods, where a distribution builds QEMU with it", origin=Origin.SOURCE),
    Rule("tgkill", "abort() raises SIGABRT: a crash shall look like one", (int_is(2, SIGABRT),), origin=Origin.SOURCE),
    Rule("epoll_ctl", "beyond 64 descriptors; without it QEMU stays with ppoll", errno=ENOSYS, origin=Origin.SOURCE),
    Rule("mremap", "glibc grows a large block; without it copies", errno=ENOSYS, origin=Origin.SOURCE),
    Rule("madvise", "other advice about memory is only advice", errno=EINVAL, origin=Origin.SOURCE),
)

REFUSED: tuple[Rule, ...] = (
    Rule("io_uring_setup", "QEMU probes for it; the thread pool is used instead", errno=ENOSYS),
    Rule("memfd_create", "QEMU probes for the memfd back end, which no machine of ours uses", errno=ENOSYS),
    Rule("get_mempolicy", "libnuma's constructor asks whether there is NUMA; no placement is used", errno=ENOSYS),
    Rule("statfs", "libselinux's constructor looks for /sys/fs/selinux, which the jail has not", errno=ENOENT),
    Rule(
        "setsockopt",
        "QEMU probes zero copy, which Unix sockets do not have",
        (int_is(1, SOL_SOCKET), int_is(2, SO_ZEROCOPY)),
        errno=EOPNOTSUPP,
    ),
)

RULES: tuple[Rule, ...] = (*MEMORY, *THREADS, *LOOP, *STARTUP, *OTHER_BUILDS, *REFUSED)

SURVIVED_AFTER_STARTUP: Final[Mapping[str, str]] = MappingProxyType(
    {
        "openat": "the command line of SIGTERM's sender in /proc; the time zone when the guest reads the clock",
    }
)
"""Start-up calls that traced workloads try again later: they get ENOSYS, and QEMU goes on (see tests)."""
