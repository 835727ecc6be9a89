"""The tables against the two sources on this machine: libseccomp and the kernel's headers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from casemate.bpf import syscalls

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_numbers_agree_with_libseccomp(arch: str) -> None:
    import pyseccomp

    token = {"x86_64": pyseccomp.Arch.X86_64, "aarch64": pyseccomp.Arch.AARCH64}[arch]
    table = syscalls.numbers(arch)
    unknown_to_it = 0
    for name, number in table.items():
        resolved = pyseccomp.resolve_syscall(token, name)
        assert resolved in {number, -1}, name
        unknown_to_it += resolved == -1
    assert unknown_to_it < 20
    for number in range(1024):
        try:
            name = pyseccomp.resolve_syscall(token, number).decode()
        except ValueError:
            continue
        assert table.get(name) == number, name


@pytest.mark.skipif(not HEADER.exists(), reason=f"no kernel header {HEADER}")
def test_numbers_agree_with_the_kernel_header() -> None:
    header = {name: int(nr) for name, nr in re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text())}
    assert len(header) > 300
    table = syscalls.numbers("x86_64")
    assert {name: table.get(name) for name in header} == header


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_names_and_numbers_are_inverse_and_ascending(arch: str) -> None:
    table = syscalls.numbers(arch)
    assert list(table.values()) == sorted(set(table.values()))
    assert {number: name for name, number in table.items()} == dict(syscalls.names(arch))


def test_known_landmarks() -> None:
    assert syscalls.number_of("read", "x86_64") == 0
    assert syscalls.number_of("read", "aarch64") == 63
    assert syscalls.number_of("statmount", "x86_64") == syscalls.number_of("statmount", "aarch64") == 457
    assert "open" not in syscalls.numbers("aarch64")
    assert syscalls.audit_arch("x86_64") == 0xC000003E


def test_what_is_unknown_is_named() -> None:
    with pytest.raises(ValueError, match="'s390x'"):
        syscalls.numbers("s390x")
    with pytest.raises(ValueError, match="no system call 'open' on aarch64"):
        syscalls.number_of("open", "aarch64")
