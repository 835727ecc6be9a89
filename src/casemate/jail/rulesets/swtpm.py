"""swtpm, from its exec on: two sockets that it inherits, one directory with its state.

Traced with 0.7.1 of Debian 12 and 13 and 0.10.2 (libtpms 0.9 and 0.10, OpenSSL 3.0 to 3.6) while a TPM was made, used
and opened again: tools/trace/trace_swtpm.py. No socket is made, no program started, no thread. swtpm loads a list of
forbidden calls of its own on top of this one. What 0.8 and 0.9 need beside that is from their source.
"""

from __future__ import annotations

from typing import Final

from casemate.jail.rules import Arg, Op, Origin, Phase, Rule
from casemate.jail.rulesets.values import (
    ARCH_SET_FS,
    ENOENT,
    ENOSYS,
    PR_SET_NO_NEW_PRIVS,
    PROT_EXEC,
    SIGABRT,
    bits_are,
    int_is,
)

_START = Phase.STARTUP
_SOURCE = Origin.SOURCE
_F_SETLK: Final = 6

_ALWAYS = (
    ("poll", "the main loop: control and data channel"),
    ("recvmsg", "control commands, and the data channel's socket from QEMU"),
    ("read", "TPM commands, state"),
    ("write", "answers, state, messages on standard error"),
    ("openat", "state; Landlock and a root without other files say where"),
    ("close", "state files, the data channel"),
    ("newfstatat", "how large the state is"),
    ("fstat", "how large the state is, newer glibc"),
    ("fchmod", "state files are their owner's alone"),
    ("rename", "new state replaces the old one whole"),
    ("umask", "newer versions give state files their mode as they make them"),
    ("getpid", "OpenSSL: is this still the process that was seeded?"),
    ("getrandom", "seeds, nonces, initialisation vectors"),
    ("futex", "OpenSSL, once per part"),
    ("brk", "malloc"),
    ("munmap", "malloc frees large blocks"),
    ("clock_gettime", "CPU time as extra entropy; the TPM's clock where the vDSO cannot say"),
    ("rt_sigaction", "SIGTERM, SIGPIPE; and back again at the end"),
    ("exit_group", "the end, when QEMU says so"),
)
_STARTUP = (
    ("execve", "the launcher becomes swtpm"),
    ("access", "ld.so"),
    ("pread64", "ld.so"),
    ("set_tid_address", "glibc, once"),
    ("set_robust_list", "glibc, once"),
    ("rseq", "glibc, once"),
    ("pipe2", "SIGTERM becomes a byte in a pipe"),
    ("seccomp", "what the kernel offers, then a list of its own on top of this one"),
)

RULES: tuple[Rule, ...] = (
    *(Rule(name, reason) for name, reason in _ALWAYS),
    *(Rule(name, reason, phase=_START) for name, reason in _STARTUP),
    Rule("mmap", "memory: never executable", (bits_are(2, PROT_EXEC, 0),)),
    Rule("mmap", "ld.so maps code", (bits_are(2, PROT_EXEC, PROT_EXEC),), _START),
    Rule("mprotect", "ld.so seals relocated data: never executable", (bits_are(2, PROT_EXEC, 0),), _START),
    Rule("arch_prctl", "glibc sets the thread pointer", (Arg(0, Op.EQ, ARCH_SET_FS),), _START),
    Rule("prctl", "before its own filter", (int_is(0, PR_SET_NO_NEW_PRIVS),), _START),
    Rule("prlimit64", "glibc reads the limit of the stack", (Arg(2, Op.EQ, 0),), _START),
    Rule("fcntl", "the lock file of its state", (int_is(1, _F_SETLK),)),
    Rule("statfs", "libselinux's constructor looks for /sys/fs/selinux, which the jail has not", errno=ENOENT),
    Rule("clock_nanosleep", "newer versions wait for the lock of the state", origin=_SOURCE),
    # Not seen, and needed by other builds, versions or kernels.
    Rule("fsync", "newer versions: state and its directory reach the disk", origin=_SOURCE),
    Rule("unlink", "volatile state that is used up; a temporary file that could not be renamed", origin=_SOURCE),
    Rule("writev", "newer versions send answers in one piece", origin=_SOURCE),
    Rule("lseek", "the size of a file in newer versions", origin=_SOURCE),
    *(Rule(name, "malloc, in other builds", origin=_SOURCE) for name in ("mremap", "madvise")),
    Rule("gettimeofday", "the clock where the vDSO cannot say", origin=_SOURCE),
    Rule("geteuid", "OpenSSL: may the environment be trusted?", origin=_SOURCE),
    Rule("getuid", "OpenSSL: may the environment be trusted?", origin=_SOURCE),
    Rule("getegid", "OpenSSL: may the environment be trusted?", origin=_SOURCE),
    Rule("getgid", "OpenSSL: may the environment be trusted?", origin=_SOURCE),
    Rule("sysinfo", "OpenSSL and newer GLib ask how much memory there is", errno=ENOSYS, origin=_SOURCE),
    Rule("rt_sigreturn", "return from the handler of SIGTERM", origin=_SOURCE),
    Rule("rt_sigprocmask", "abort", origin=_SOURCE),
    Rule("gettid", "abort", origin=_SOURCE),
    Rule("tgkill", "abort() shall look like one", (int_is(2, SIGABRT),), origin=_SOURCE),
    Rule("restart_syscall", "the kernel resumes a wait after a stop", origin=_SOURCE),
)
