"""The program with which the built-in guest starts its random numbers anew after it was cloned: 202 bytes of code.

A shell cannot make the two ioctls, and busybox's seedrng credits nothing without a file. Reads 512 bytes of /dev/hwrng
(the virtio-rng driver keeps up to 64 bytes that it asked for before the state was saved, which are the same in every
clone), writes them into the pool with 256 bits of credit (RNDADDENTROPY), and makes the generator take a new key out of
the pool at once (RNDRESEEDCRNG), which also ends every CPU's prepared output. Exit status 0, or 1 when anything failed.
Source: random(4); drivers/char/random.c; drivers/char/hw_random/virtio-rng.c.

``LISTING`` is its source for GNU as; a test assembles it and compares.
"""

from __future__ import annotations

import struct
from typing import Final

LISTING: Final = """\
    .intel_syntax noprefix
    .globl _start
_start:
    lea rdi, [rip+hwrng]
    xor esi, esi
    mov eax, 2
    syscall
    test eax, eax
    js fail
    mov r12d, eax
    xor ebx, ebx
again:
    lea rsi, [rsp-1024]
    lea rsi, [rsi+rbx+8]
    mov edx, 512
    sub edx, ebx
    mov edi, r12d
    xor eax, eax
    syscall
    test eax, eax
    jle fail
    add ebx, eax
    cmp ebx, 512
    jb again
    mov dword ptr [rsp-1024], 256
    mov dword ptr [rsp-1020], 512
    lea rdi, [rip+random]
    mov esi, 1
    mov eax, 2
    syscall
    test eax, eax
    js fail
    mov ebx, eax
    mov edi, ebx
    mov esi, 0x40085203
    lea rdx, [rsp-1024]
    mov eax, 16
    syscall
    test eax, eax
    jnz fail
    mov edi, ebx
    mov esi, 0x5207
    xor edx, edx
    mov eax, 16
    syscall
    test eax, eax
    jnz fail
    xor edi, edi
    jmp exit
fail:
    mov edi, 1
exit:
    mov eax, 60
    syscall
hwrng: .asciz "/dev/hwrng"
random: .asciz "/dev/random"
"""

CODE: Final = bytes.fromhex(
    "488d3dac00000031f6b8020000000f0585c00f888f0000004189c431db488db42400fcffff488d741e08ba0002000029da44"
    "89e731c00f0585c07e6b01c381fb0002000072d7c7842400fcffff00010000c7842404fcffff00020000488d3d5b000000be"
    "01000000b8020000000f0585c0783489c389dfbe03520840488d942400fcffffb8100000000f0585c0751889dfbe07520000"
    "31d2b8100000000f0585c0750431ffeb05bf01000000b83c0000000f052f6465762f6877726e67002f6465762f72616e646f"
    "6d00"
)

_BASE: Final = 0x400000
_HEADERS_BYTES: Final = 64 + 56


def reseed_program() -> bytes:
    """A static x86-64 ELF program: one header, one segment (read, execute), no sections."""
    size = _HEADERS_BYTES + len(CODE)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = identity + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _HEADERS_BYTES, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000) + CODE
