"""The kernel and initramfs that start a guest from a dm-verity root: the distribution's kernel, its modules, busybox,
an init of ours (``verity_init``) and 127 bytes of code for the ioctls of device-mapper, which a shell cannot make.

`CONTROL_LISTING` is the source of that code for GNU as; a test assembles it and compares. It reads one request from
standard input, a command number of 8 bytes and a ``struct dm_ioctl`` of 16384 bytes, and makes it on
/dev/mapper/control; exit status 0 or the errno. Source: linux/dm-ioctl.h; admin-guide/device-mapper/verity.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from casemate.image.cpio import CpioEntry, character_device, directory, regular, symlink, write_cpio

CMDLINE: Final = "console=ttyS0 reboot=t panic=-1 quiet loglevel=3 cryptomgr.notests"
FILE_SYSTEMS: Final = ("ext4", "squashfs", "erofs")
REQUIRED: Final = (
    ("virtio_mmio", "virtio devices of microvm"),
    ("virtio_pci", "virtio devices of q35"),
    ("virtio_blk", "the disk"),
    ("dm_mod", "device-mapper"),
    ("dm_verity", "checks the root"),
)
OPTIONAL: Final = (
    *((name, "a root of that kind") for name in FILE_SYSTEMS),
    ("overlay", "what is written to the root"),
    ("virtio_rng", "entropy"),
    ("virtio_net", "the network card"),
    ("virtio_console", "the console hvc0"),
    ("sha256_generic", "dm-verity's digest"),
    ("crc32c_generic", "ext4's checksums"),
    ("evdev", "the power button"),
    ("button", "the power button"),
)
_FOLDERS: Final = (
    *("/kernel/drivers/virtio/", "/kernel/drivers/block/virtio", "/kernel/drivers/char/", "/kernel/drivers/md/"),
    *("/kernel/drivers/net/virtio_net", "/kernel/drivers/net/net_failover", "/kernel/net/core/failover"),
    *("/kernel/drivers/input/evdev", "/kernel/drivers/acpi/button", "/kernel/fs/", "/kernel/lib/", "/kernel/crypto/"),
    *("/kernel/arch/x86/crypto/", "/kernel/drivers/dax/", "/kernel/block/"),
)

CONTROL_LISTING: Final = """\
    .intel_syntax noprefix
    .globl _start
_start:
    sub rsp, 20480
    xor ebx, ebx
again:
    lea rsi, [rsp+rbx]
    mov edx, 16392
    sub edx, ebx
    xor edi, edi
    xor eax, eax
    syscall
    test eax, eax
    js fail
    jz short_input
    add ebx, eax
    cmp ebx, 16392
    jb again
    lea rdi, [rip+control]
    mov esi, 2
    mov eax, 2
    syscall
    test eax, eax
    js fail
    mov edi, eax
    mov rsi, [rsp]
    lea rdx, [rsp+8]
    mov eax, 16
    syscall
    test eax, eax
    js fail
    xor edi, edi
    jmp exit
short_input:
    mov eax, -5
fail:
    neg eax
    mov edi, eax
exit:
    mov eax, 60
    syscall
control: .asciz "/dev/mapper/control"
"""
CONTROL_CODE: Final = bytes.fromhex(
    "4881ec0050000031db488d341cba0840000029da31ff31c00f0585c07842743b01c381fb0840000072df488d3d3a000000be02000000"
    "b8020000000f0585c0781f89c7488b3424488d542408b8100000000f0585c0780931ffeb09b8fbfffffff7d889c7b83c0000000f052f"
    "6465762f6d61707065722f636f6e74726f6c00"
)
_BASE: Final = 0x400000
_REQUEST_BYTES: Final = 16_384
_DM_IOCTL = struct.Struct("<3IIIIiIIIQ128s129s7s")
_TARGET = struct.Struct("<iI16s")  # struct dm_target_spec without its first two numbers
_CREATE, _LOAD, _RESUME = 0xC138FD03, 0xC138FD09, 0xC138FD06
_READ_ONLY: Final = 1
_PARAMETERS_MAX: Final = 1024


class VerityGuest(NamedTuple):
    """``kernel``: bzImage; ``initrd``: newc cpio; ``sources``: package to version."""

    kernel: bytes
    initrd: bytes
    release: str
    sources: dict[str, str]


def build_verity_guest(scratch: Path, report: Callable[[str], None]) -> VerityGuest:
    """Kernel and initramfs from the distribution's packages.

    Raises:
        HostError: the packages are not to be had, or lack a module.
    """
    from casemate.image.guest_modules import load_order
    from casemate.image.guest_source import busybox_bytes, kernel_tree

    tree = kernel_tree(scratch, report, _FOLDERS)
    modules = load_order(tree.available, tree.builtin, tree.read_elf, REQUIRED, OPTIONAL)
    busybox, source = busybox_bytes(scratch, report)
    sources = {package.name: package.version for package in (*tree.packages, source)}
    return VerityGuest(tree.image, assemble(busybox, modules), tree.release, sources)


def assemble(busybox: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """The initramfs: the same inputs give the same bytes."""
    entries: list[CpioEntry] = [
        *(directory(name) for name in ("dev", "proc", "sys", "run", "sysroot", "newroot", "over")),
        directory("tmp", 0o1777),
        character_device("dev/console", 5, 1),
        regular("init", Path(__file__).with_name("verity_init").read_bytes(), 0o755),
        regular("bin/busybox", busybox, 0o755),
        symlink("bin/sh", "busybox"),
        regular("sbin/dmctl", control_program(), 0o755),
        regular("dm/create", _request(_CREATE).ljust(8 + _REQUEST_BYTES, b"\0")),
        regular("dm/load", _request(_LOAD, flags=_READ_ONLY, targets=1)),
        regular("dm/target", _TARGET.pack(0, 0, b"verity")),
        # whatever the parameters take: the program reads no more than one request
        regular("dm/padding", bytes(_REQUEST_BYTES)),
        regular("dm/resume", _request(_RESUME).ljust(8 + _REQUEST_BYTES, b"\0")),
        regular("lib/modules/order", "".join(f"{name}\n" for name, _ in modules).encode()),
    ]
    entries += [regular(f"lib/modules/{name}.ko", elf) for name, elf in modules]
    return write_cpio(entries)


def command_line(root_hash: str, salt: bytes, data_blocks: int, fstype: str, *, overlay: bool) -> str:
    """What the guest's kernel must be told; it is what somebody signs or measures."""
    words = [CMDLINE, f"casemate.verity={root_hash}:{salt.hex()}:{data_blocks}", f"casemate.verity.fstype={fstype}"]
    return " ".join([*words, "casemate.verity.overlay"] if overlay else words)


def control_program() -> bytes:
    """A static x86-64 ELF program: one header, one segment (read, execute), no sections."""
    size = 64 + 56 + len(CONTROL_CODE)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = identity + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000) + CONTROL_CODE


def _request(command: int, *, flags: int = 0, targets: int = 0) -> bytes:
    # Only the first request may carry a uuid beside the name.
    identity = b"casemate-verity" if command == _CREATE else b""
    header = _DM_IOCTL.pack(
        *(4, 0, 0, _REQUEST_BYTES, _DM_IOCTL.size, targets, 0, flags, 0, 0, 0), b"root", identity, b""
    )
    return command.to_bytes(8, "little") + header
