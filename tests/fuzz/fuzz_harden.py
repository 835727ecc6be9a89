"""Fuzzes what harden makes of command lines (first byte even) and Xen domains (odd).

Run with ``python -m tests.fuzz.fuzz_harden NEW -max_total_time=180`` (NEW: an empty directory); the smoke run is
tests/fuzz/test_fuzz_harden.py.
"""

import sys

import atheris

with atheris.instrument_imports(include=["casemate"]):
    from tests.fuzz.harden_cases import command_input, xl_input


def one_input(data: bytes) -> None:
    """One run; an exception is a finding."""
    if data:
        (xl_input if data[0] % 2 else command_input)(data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
