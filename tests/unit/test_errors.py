"""The error tree, its exit codes, and its way across the launch's pipe."""

from __future__ import annotations

import json

import pytest

from casemate import errors
from casemate.engine import errorwire
from casemate.errors import CasemateError, ExitCode, Fault, RefusedError, SpecError

TREE = {
    "CasemateError": (5, "Exception"),
    "InputError": (2, "CasemateError"),
    "SpecError": (2, "InputError"),
    "ImageError": (2, "InputError"),
    "HostError": (3, "CasemateError"),
    "RefusedError": (4, "CasemateError"),
    "VmError": (5, "CasemateError"),
    "VmTimeoutError": (6, "CasemateError"),
}


def test_the_tree_is_the_drawn_one() -> None:
    found = {
        name: (int(kind.exit_code), kind.__bases__[0].__name__)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, CasemateError)
    }
    assert found == TREE
    assert errors.__doc__ is not None
    for name in TREE:
        assert name in errors.__doc__


def test_exit_codes() -> None:
    assert [(code.name, int(code)) for code in ExitCode] == [
        ("DONE", 0),
        ("FINDINGS", 1),
        ("USAGE", 2),
        ("HOST", 3),
        ("REFUSED", 4),
        ("FAILED", 5),
        ("TIMEOUT", 6),
    ]


def test_a_message_says_what_got_expected_and_next() -> None:
    error = errors.HostError("firmware is missing", got="nothing", expected="OVMF", next_step="apt-get install ovmf")
    assert str(error) == "firmware is missing; got nothing; expected OVMF\n  next: apt-get install ovmf"
    assert str(errors.VmError("it died")) == "it died"


def test_all_faults_of_a_specification_are_listed() -> None:
    error = SpecError("web.toml", (Fault("machine.vcpus", "range", "too many"), Fault("", "toml", "broken")))
    assert str(error) == "web.toml: 2 faults\n  machine.vcpus: too many [range]\n  (top): broken [toml]"
    with pytest.raises(RuntimeError):
        SpecError("web.toml", ())


@pytest.mark.parametrize("kind", [k for k in TREE if k not in {"CasemateError", "SpecError", "RefusedError"}])
def test_errors_cross_the_pipe(kind: str) -> None:
    error = getattr(errors, kind)("what", got="got", expected="expected", next_step="next")
    back = errorwire.decode(json.loads(json.dumps(errorwire.encode(error))))
    assert type(back) is type(error)
    assert str(back) == str(error)


def test_a_refusal_keeps_its_control() -> None:
    error = RefusedError("proc.caps", "capabilities are left", got="cap_sys_admin")
    back = errorwire.decode(errorwire.encode(error))
    assert isinstance(back, RefusedError)
    assert (back.control, str(back)) == ("proc.caps", str(error))


def test_an_unknown_kind_is_still_an_error() -> None:
    assert isinstance(errorwire.decode({"kind": "Nonsense", "what": "x"}), errors.VmError)
