"""The built-in guest's program for clones: its bytes are its listing, and it is an ELF program that a kernel takes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from casemate.image.guest_reseed import CODE, LISTING, reseed_program
from casemate.image.guest_source import is_static_executable


def test_it_is_a_static_program() -> None:
    program = reseed_program()
    assert is_static_executable(program)
    assert program.endswith(CODE)
    assert len(program) < 512


def test_the_bytes_are_what_the_listing_says(tmp_path: Path) -> None:
    if shutil.which("as") is None or shutil.which("objcopy") is None:
        pytest.skip("binutils is not installed")
    (tmp_path / "reseed.s").write_text(LISTING)
    subprocess.run(["as", "-o", tmp_path / "o", tmp_path / "reseed.s"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "o", tmp_path / "bin"], check=True)
    assert (tmp_path / "bin").read_bytes() == CODE


def test_the_two_calls_are_in_it() -> None:
    assert (0x40085203).to_bytes(4, "little") in CODE, "RNDADDENTROPY"
    assert (0x5207).to_bytes(4, "little") in CODE, "RNDRESEEDCRNG"
