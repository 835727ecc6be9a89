"""What each device part needs beyond base and accelerator."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from casemate.jail.rules import Phase, Rule
from casemate.jail.rulesets.values import (
    EOPNOTSUPP,
    F_DUPFD_CLOEXEC,
    F_GETFD,
    F_OFD_GETLK,
    F_OFD_SETLK,
    IPPROTO_TCP,
    TCP_NODELAY,
    int_is,
)

_FALLOCATE_REASON = "the guest discards or writes zeroes, or an overlay grows"

BLOCK: tuple[Rule, ...] = (
    Rule("preadv", "block workers read for the guest (aio=threads)"),
    Rule("pwritev", "block workers write for the guest (aio=threads)"),
    Rule("pread64", "block workers read; qcow2 reads its tables"),
    Rule("pwrite64", "block workers write; qcow2 writes its tables"),
    Rule("fdatasync", "the guest flushes its disk"),
    Rule("fallocate", _FALLOCATE_REASON),
    Rule("lseek", "file length and holes of an image"),
    Rule("ftruncate", "a qcow2 overlay grows"),
    Rule(
        "fcntl",
        "the block layer duplicates a descriptor out of its fdset",
        (int_is(1, F_DUPFD_CLOEXEC),),
        Phase.STARTUP,
    ),
    Rule("fcntl", "fdset descriptors are checked before use", (int_is(1, F_GETFD),), Phase.STARTUP),
    Rule("fcntl", "image locking: try", (int_is(1, F_OFD_GETLK),), Phase.STARTUP),
    Rule("fcntl", "image locking: take", (int_is(1, F_OFD_SETLK),), Phase.STARTUP),
)

ENTROPY: tuple[Rule, ...] = (
    Rule(
        "fcntl", "rng-random duplicates its descriptor out of its fdset", (int_is(1, F_DUPFD_CLOEXEC),), Phase.STARTUP
    ),
    Rule("fcntl", "fdset descriptors are checked before use", (int_is(1, F_GETFD),), Phase.STARTUP),
)

CONSOLE: tuple[Rule, ...] = ()

NETWORK: tuple[Rule, ...] = (
    Rule(
        "setsockopt",
        "the stream netdev asks for TCP_NODELAY, which Unix sockets do not have",
        (int_is(1, IPPROTO_TCP), int_is(2, TCP_NODELAY)),
        errno=EOPNOTSUPP,
    ),
)

TPM: tuple[Rule, ...] = ()

PASSTHROUGH: tuple[Rule, ...] = ()

PARTS: Final = MappingProxyType(
    {"blk": BLOCK, "rng": ENTROPY, "console": CONSOLE, "net": NETWORK, "tpm": TPM, "vfio": PASSTHROUGH}
)
