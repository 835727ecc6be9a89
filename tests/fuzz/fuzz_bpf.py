"""Fuzz target for the readers of BPF: ``python -m tests.fuzz.fuzz_bpf -len_control=0 -max_len=1500``.

Each input is tried as raw bytes of a program and as a recipe for a valid one; what the modules say about a program must
agree with what it does (`bpf_cases.check_program`).
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run until libFuzzer's limits end it."""
    import atheris

    with atheris.instrument_imports(include=["casemate.bpf"]):
        from tests.fuzz import bpf_cases

    atheris.Setup(sys.argv, bpf_cases.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
