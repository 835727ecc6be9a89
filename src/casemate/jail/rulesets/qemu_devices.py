"""What each device part needs beyond base and accelerator.

``vfio`` was never run on hardware here, nor ``smm`` under KVM: all their rules have origin SOURCE.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from casemate.jail.rules import Origin, Phase, Rule
from casemate.jail.rulesets.kvm_ioctls import KVM_IOCTLS, VFIO_IOCTLS
from casemate.jail.rulesets.values import (
    ENOTTY,
    EOPNOTSUPP,
    F_DUPFD_CLOEXEC,
    F_GETFD,
    F_GETFL,
    F_OFD_GETLK,
    F_OFD_SETLK,
    F_SETFL,
    FALLOC_PUNCH_HOLE_KEEP_SIZE,
    FALLOC_ZERO_RANGE,
    FS_IOC_FSGETXATTR,
    IPPROTO_TCP,
    SO_TYPE,
    SOL_SOCKET,
    TCP_NODELAY,
    int_is,
)

_START, _SOURCE = Phase.STARTUP, Origin.SOURCE

_FDSET: tuple[Rule, ...] = (
    Rule("fcntl", "QEMU duplicates a descriptor out of its fdset", (int_is(1, F_DUPFD_CLOEXEC),), _START),
    Rule("fcntl", "QEMU checks a descriptor before it joins its fdset", (int_is(1, F_GETFD),), _START),
)

BLOCK: tuple[Rule, ...] = (
    *_FDSET,
    Rule("preadv", "block workers read for the guest (aio=threads)"),
    Rule("pwritev", "block workers write for the guest (aio=threads)"),
    Rule("pread64", "block workers read; qcow2 reads its tables"),
    Rule("pwrite64", "block workers write; qcow2 writes its tables; UEFI variables"),
    Rule("fdatasync", "the guest flushes its disk"),
    Rule("fallocate", "the guest discards blocks", (int_is(1, FALLOC_PUNCH_HOLE_KEEP_SIZE),)),
    Rule("fallocate", "the guest writes zeroes", (int_is(1, FALLOC_ZERO_RANGE),)),
    Rule("fallocate", "writing zeroes beyond the end of an image", (int_is(1, 0),), origin=_SOURCE),
    Rule("ftruncate", "a qcow2 image is resized or shrinks", origin=_SOURCE),
    Rule("lseek", "holes of an image, for zero detection", origin=_SOURCE),
    Rule("fcntl", "image locking: look", (int_is(1, F_OFD_GETLK),), _START),
    Rule("fcntl", "image locking: take; give back when QEMU ends", (int_is(1, F_OFD_SETLK),)),
    Rule("ioctl", "newer QEMU asks for the alignment of an XFS file", (int_is(1, FS_IOC_FSGETXATTR),), errno=ENOTTY),
)

ENTROPY: tuple[Rule, ...] = _FDSET

CONSOLE: tuple[Rule, ...] = ()

NETWORK: tuple[Rule, ...] = (
    Rule(
        "setsockopt",
        "the stream netdev asks for TCP_NODELAY, which Unix sockets do not have",
        (int_is(1, IPPROTO_TCP), int_is(2, TCP_NODELAY)),
        errno=EOPNOTSUPP,
    ),
)

TPM: tuple[Rule, ...] = (
    Rule("fcntl", "QEMU looks at the flags of swtpm's socket", (int_is(1, F_GETFL),)),
    Rule("fcntl", "QEMU makes swtpm's socket blocking for a command", (int_is(1, F_SETFL),)),
    Rule("socketpair", "the channel for TPM commands, one end of which goes to swtpm", phase=_START),
)


def _ioctls(numbers: dict[str, int], reason: str, phase: Phase = Phase.ALWAYS) -> tuple[Rule, ...]:
    return tuple(Rule("ioctl", f"{name}: {reason}", (int_is(1, n),), phase, _SOURCE) for name, n in numbers.items())


def _named(*names: str) -> dict[str, int]:
    return {name: VFIO_IOCTLS[name] for name in names}


PASSTHROUGH: tuple[Rule, ...] = (
    *_ioctls(
        _named(
            "VFIO_GET_API_VERSION",
            "VFIO_CHECK_EXTENSION",
            "VFIO_SET_IOMMU",
            "VFIO_GROUP_GET_STATUS",
            "VFIO_GROUP_SET_CONTAINER",
            "VFIO_GROUP_GET_DEVICE_FD",
            "VFIO_DEVICE_GET_INFO",
            "VFIO_DEVICE_GET_REGION_INFO",
            "VFIO_DEVICE_GET_IRQ_INFO",
            "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO",
            "VFIO_IOMMU_GET_INFO",
        ),
        "QEMU opens the device and asks what it has",
        _START,
    ),
    *_ioctls(
        _named("VFIO_IOMMU_MAP_DMA", "VFIO_IOMMU_UNMAP_DMA"), "guest memory becomes reachable for the device, or not"
    ),
    *_ioctls(
        _named("VFIO_DEVICE_SET_IRQS", "VFIO_DEVICE_RESET", "VFIO_DEVICE_PCI_HOT_RESET"),
        "the guest programs interrupts or resets the device",
    ),
    *_ioctls(
        _named("VFIO_GROUP_UNSET_CONTAINER"),
        "QEMU gives the group back when it ends",
    ),
    *_ioctls(
        {name: KVM_IOCTLS[name] for name in ("KVM_CREATE_DEVICE", "KVM_SET_DEVICE_ATTR", "KVM_HAS_DEVICE_ATTR")},
        "KVM learns of the group (kvm-vfio device)",
        _START,
    ),
    Rule("pread64", "configuration space and BARs that are not mapped", origin=_SOURCE),
    Rule("pwrite64", "configuration space and BARs that are not mapped", origin=_SOURCE),
)

SAVE: tuple[Rule, ...] = (
    Rule("writev", "the state goes out through a pipe that the supervisor hands over", origin=_SOURCE),
    Rule("readv", "a saved state comes in through an inherited pipe", origin=_SOURCE),
    Rule("fcntl", "that pipe's flags are looked at", (int_is(1, F_GETFL),), origin=_SOURCE),
    Rule("fcntl", "that pipe becomes blocking or non-blocking", (int_is(1, F_SETFL),), origin=_SOURCE),
    Rule("fadvise64", "a disk's cached pages are dropped when the guest goes on", (int_is(3, 4),), origin=_SOURCE),
    Rule(
        "fcntl",
        "the images' locks are looked at when the guest goes on after a save",
        (int_is(1, F_OFD_GETLK),),
        origin=_SOURCE,
    ),
    Rule("getsockopt", "is the pipe a socket? it is not", (int_is(1, SOL_SOCKET), int_is(2, SO_TYPE)), origin=_SOURCE),
    *_ioctls({"KVM_GET_DIRTY_LOG": KVM_IOCTLS["KVM_GET_DIRTY_LOG"]}, "which pages changed while the state went out"),
)

SMM: tuple[Rule, ...] = _ioctls(
    {"KVM_SMI": KVM_IOCTLS["KVM_SMI"]}, "the guest's firmware calls its guarded part: a write to the port of SMIs"
)

PARTS: Final = MappingProxyType(
    {
        "blk": BLOCK,
        "rng": ENTROPY,
        "console": CONSOLE,
        "net": NETWORK,
        "tpm": TPM,
        "vfio": PASSTHROUGH,
        "save": SAVE,
        "smm": SMM,
    }
)
