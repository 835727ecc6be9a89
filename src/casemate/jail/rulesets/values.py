"""Numbers that the rules compare with (x86-64 and generic Linux ABI), and the two ways to write a comparison.

The kernel hands seccomp 64-bit arguments, but reads many of them as ``int``. glibc and QEMU sign-extend some of those
(a traced ``KVM_GET_MSRS`` arrives as 0xffffffffc008ae88), so such arguments are compared in their low 32 bits only:
exactly what the kernel looks at.
"""

from __future__ import annotations

from casemate.jail.rules import Arg, Op

LOW_32 = 0xFFFF_FFFF

# errno
ENOENT, ENOTTY, EINVAL, ENOSYS, EOPNOTSUPP, EPERM = 2, 25, 22, 38, 95, 1

# mmap, mprotect
PROT_EXEC = 4

# clone: what glibc's pthread_create passes: VM | FS | FILES | SIGHAND | THREAD | SYSVSEM | SETTLS | PARENT_SETTID |
# CHILD_CLEARTID; no namespace, no new process.
CLONE_THREAD_GLIBC = 0x003D_0F00

# fcntl
F_GETFD, F_SETFD, F_GETFL, F_SETFL = 1, 2, 3, 4
F_OFD_GETLK, F_OFD_SETLK = 36, 37
F_DUPFD_CLOEXEC, F_ADD_SEALS = 1030, 1033

# fallocate
FALLOC_PUNCH_HOLE_KEEP_SIZE, FALLOC_ZERO_RANGE = 3, 0x10

# madvise
MADV_DONTNEED, MADV_FREE, MADV_DONTFORK, MADV_HUGEPAGE, MADV_DONTDUMP = 4, 8, 10, 14, 16

# prctl
PR_SET_NAME, PR_SET_TIMERSLACK, PR_MCE_KILL, PR_SET_NO_NEW_PRIVS = 15, 29, 33, 38
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_READ, PR_CAPBSET_DROP = 4, 22, 23, 24

# ioctl
FIONBIO, TCGETS, FS_IOC_FSGETXATTR = 0x5421, 0x5401, 0x801C_581F
SIOCGIFNAME, SIOCGIFHWADDR, SIOCGIFINDEX = 0x8910, 0x8927, 0x8933

# arch_prctl
ARCH_SET_FS = 0x1002

# sockets
AF_UNIX = 1
SOL_SOCKET, IPPROTO_TCP = 1, 6
SO_TYPE, SO_PEERCRED, SO_ZEROCOPY, TCP_NODELAY = 3, 17, 60, 1

# newfstatat
AT_EMPTY_PATH = 0x1000

# eventfd2: EFD_CLOEXEC | EFD_NONBLOCK
EFD_CLOEXEC, EFD_NONBLOCK = 0x80000, 0x800

# signals
SIGABRT, SIGKILL, SIGUSR1 = 6, 9, 10


def int_is(index: int, value: int) -> Arg:
    """Argument ``index``, read by the kernel as a 32-bit int, equals ``value``."""
    return Arg(index, Op.MASKED_EQ, value & LOW_32, LOW_32)


def bits_are(index: int, mask: int, value: int) -> Arg:
    """The bits ``mask`` of argument ``index`` equal ``value`` (0: all clear)."""
    return Arg(index, Op.MASKED_EQ, value, mask)
