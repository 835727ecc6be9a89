/* System calls and small helpers of the cell's agent: freestanding C for x86-64 Linux, no C library.
 * Numbers: arch/x86/entry/syscalls/syscall_64.tbl. Every call returns the kernel's value: negative errno on failure. */
#ifndef CASEMATE_SYSTEM_H
#define CASEMATE_SYSTEM_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long i64;

enum {
    NR_READ = 0, NR_WRITE = 1, NR_OPEN = 2, NR_CLOSE = 3, NR_PREAD = 17, NR_DUP2 = 33, NR_NANOSLEEP = 35, NR_FORK = 57, NR_EXECVE = 59,
    NR_EXIT = 60, NR_WAIT4 = 61, NR_MKDIR = 83, NR_SYSLOG = 103, NR_MOUNT = 165, NR_UMOUNT = 166, NR_INIT_MODULE = 175,
    NR_GETDENTS64 = 217, NR_MKNODAT = 259, NR_OPENAT = 257, NR_NEWFSTATAT = 262, NR_READLINKAT = 267, NR_PIPE2 = 293,
    NR_PRLIMIT64 = 302, NR_OPENAT2 = 437,
};

enum { E_2BIG = 7, E_BADMSG = 74, E_INVAL = 22, E_LOOP = 40, E_NAMETOOLONG = 36, E_ISDIR = 21, E_NOTDIR = 20 };
enum {
    O_RDONLY = 0, O_WRONLY = 1, O_RDWR = 2, O_CREAT = 0100, O_TRUNC = 01000, O_NONBLOCK = 04000, O_DIRECTORY = 0200000,
    O_NOFOLLOW = 0400000, O_NOATIME = 01000000, O_CLOEXEC = 02000000, O_PATH = 010000000,
};
enum { AT_FDCWD = -100, AT_SYMLINK_NOFOLLOW = 0x100, AT_NO_AUTOMOUNT = 0x800, AT_EMPTY_PATH = 0x1000 };
enum { RESOLVE_NO_XDEV = 1, RESOLVE_NO_MAGICLINKS = 2, RESOLVE_IN_ROOT = 0x10 };
enum { S_IFMT = 0170000, S_IFREG = 0100000, S_IFDIR = 0040000, S_IFLNK = 0120000, S_IFCHR = 0020000 };

struct stat { /* arch/x86/include/uapi/asm/stat.h */
    u64 dev, ino, nlink;
    u32 mode, uid, gid, pad0;
    u64 rdev;
    i64 size, blksize, blocks;
    u64 atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns;
    i64 unused[3];
};

struct open_how { u64 flags, mode, resolve; };

static inline i64 call6(i64 nr, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f)
{
    i64 result;
    register i64 r10 __asm__("r10") = d;
    register i64 r8 __asm__("r8") = e;
    register i64 r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

#define CALL(nr, a, b, c, d) call6((nr), (i64)(a), (i64)(b), (i64)(c), (i64)(d), 0, 0)
#define CALL5(nr, a, b, c, d, e) call6((nr), (i64)(a), (i64)(b), (i64)(c), (i64)(d), (i64)(e), 0)

/* The compiler itself emits calls to these. */
void *memcpy(void *to, const void *from, u64 count);
void *memset(void *to, int value, u64 count);
u64 text_length(const char *text);

#endif
