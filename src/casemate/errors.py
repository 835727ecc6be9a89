"""The error tree and the table of exit codes: the one place where both are drawn.

    CasemateError                 exit code
    ├── InputError                2  wrong use or bad input (theirs)
    │   ├── SpecError             2  a specification with one or more faults, all listed
    │   └── ImageError            2  an image whose header we do not accept
    ├── HostError                 3  this host cannot do it
    ├── RefusedError              4  a control refused it
    ├── VmError                   5  a VM or helper failed
    └── VmTimeoutError            6  the time given by --timeout-s ran out

A wrong call order inside Casemate is a plain ``RuntimeError``: our bug, not the user's.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class ExitCode(enum.IntEnum):
    """Process exit codes, one meaning each (also in README and the manual)."""

    DONE = 0
    FINDINGS = 1
    USAGE = 2
    HOST = 3
    REFUSED = 4
    FAILED = 5
    TIMEOUT = 6


class CasemateError(Exception):
    """Root of every error that Casemate raises on purpose.

    Args:
        what: what was being done or looked at, with its path or name.
        got: what was found; empty when there is nothing to show.
        expected: what would have been accepted.
        next_step: what the reader can do now, as a command where there is one.
    """

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, what: str, *, got: str = "", expected: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.got = got
        self.expected = expected
        self.next_step = next_step

    def __str__(self) -> str:
        parts = [self.what]
        if self.got:
            parts.append(f"got {self.got}")
        if self.expected:
            parts.append(f"expected {self.expected}")
        text = "; ".join(parts)
        return f"{text}\n  next: {self.next_step}" if self.next_step else text


class InputError(CasemateError):
    """Wrong use or bad input."""

    exit_code = ExitCode.USAGE


class Fault(NamedTuple):
    """One fault in a specification: where (``disk[1].path``), a stable id (``path.relative``) and what to read."""

    path: str
    fault_id: str
    message: str


class SpecError(InputError):
    """A specification with faults; all of them are reported together."""

    def __init__(self, source: str, faults: tuple[Fault, ...]) -> None:
        if not faults:
            raise RuntimeError("SpecError needs at least one fault")
        self.source = source
        self.faults = faults
        plural = "fault" if len(faults) == 1 else "faults"
        lines = "".join(f"\n  {fault.path or '(top)'}: {fault.message} [{fault.fault_id}]" for fault in faults)
        super().__init__(f"{source}: {len(faults)} {plural}{lines}")


class ImageError(InputError):
    """An image that is not what it claims to be, or that asks for more than it may."""


class HostError(CasemateError):
    """This host cannot do what was asked; the message names the missing part and its package."""

    exit_code = ExitCode.HOST


class RefusedError(CasemateError):
    """A control refused the launch.

    Args:
        control: id of the control, e.g. ``proc.seccomp-on``.
    """

    exit_code = ExitCode.REFUSED

    def __init__(self, control: str, what: str, *, got: str = "", expected: str = "", next_step: str = "") -> None:
        super().__init__(f"refused by control {control}: {what}", got=got, expected=expected, next_step=next_step)
        self.control = control


class VmError(CasemateError):
    """A VM or one of its helpers failed."""

    exit_code = ExitCode.FAILED


class VmTimeoutError(CasemateError):
    """The time allowed for a VM ran out."""

    exit_code = ExitCode.TIMEOUT
