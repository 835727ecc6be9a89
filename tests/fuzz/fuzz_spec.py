"""Fuzz target (atheris): any bytes as a specification give a sound ``Spec`` or a ``SpecError`` with known ids.

python tests/fuzz/fuzz_spec.py [libFuzzer options] [corpus directory]
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["casemate", "tomllib"]):
    import datetime
    from pathlib import Path

    from casemate.errors import SpecError
    from casemate.spec.faults import FAULT_IDS
    from casemate.spec.parse import check_spec, parse_spec

TODAY = datetime.date(2026, 10, 1)


def one_input(data: bytes) -> None:
    """One run; an exception is a finding."""
    try:
        spec = parse_spec(data, "fuzz", Path("/specs"), today=TODAY)
    except SpecError as error:
        if not error.faults or {fault.fault_id for fault in error.faults} - set(FAULT_IDS):
            raise RuntimeError(f"unknown faults: {error.faults}") from error
        if any(char < " " and char != "\n" for char in str(error)):
            raise RuntimeError("control characters in a message") from error
        return
    if check_spec(spec, today=TODAY):
        raise RuntimeError("a broken rule was not reported")
    for path in (spec.boot.kernel, spec.boot.initrd, *(disk.path for disk in spec.disks)):
        if path is not None and (not path.startswith("/") or "/../" in f"{path}/" or not path.isprintable()):
            raise RuntimeError(f"path {path!r}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
