"""What a launch hands over: sealed memory by role, out of sources that are asked once, with nothing left on a fault."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest
from tests.support.hosts import HOST, KVM_HOST, plan_of

from casemate.engine.opening import Opened
from casemate.engine.provisioning import check_documents, fill, observe_provisioning
from casemate.errors import CasemateError, InputError
from casemate.facts.fact import Known
from casemate.plan.model import LaunchPlan
from casemate.spec.parse import parse_spec

TODAY = datetime.date(2026, 1, 1)
MICROVM = '[boot]\nkernel = "k"\n'
Q35 = '[machine]\ntype = "q35"\n[boot]\nkernel = "k"\n'


def plan(directory: Path, text: str) -> LaunchPlan:
    return plan_of(parse_spec(text, "t", directory, today=TODAY), KVM_HOST if "q35" in text else HOST)


def private(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)


def filled(made: LaunchPlan) -> dict[str, bytes]:
    opened = Opened()
    try:
        fill(made, opened)
        return {role: os.pread(fd, 1 << 22, 0) for role, fd in opened.by_role.items()}
    finally:
        opened.close()


def test_credentials_take_the_form_of_their_channel(tmp_path: Path) -> None:
    private(tmp_path / "s", b"hunter2\0")
    secret = '[secrets.db]\nfile = "s"\n'
    assert filled(plan(tmp_path, MICROVM + secret)) == {"credential0": b"hunter2\0"}
    assert filled(plan(tmp_path, Q35 + secret)) == {"credential0": b"io.systemd.credential.binary:db=aHVudGVyMgA="}


def test_seed_and_its_instance(tmp_path: Path) -> None:
    private(tmp_path / "u", b"#cloud-config\n{}\n")
    found = filled(plan(tmp_path, MICROVM + '[secrets.u]\nfile = "u"\nuse = "user-data"\n'))
    assert list(found) == ["seed"]
    assert b"#cloud-config\n{}\n" in found["seed"]
    assert b"casemate-0123456789abcdef" in found["seed"], "one instance per VM"


def test_ignition_from_a_file_and_from_a_secret(tmp_path: Path) -> None:
    config = b'{"ignition": {"version": "3.4.0"}}'
    private(tmp_path / "c", config)
    assert filled(plan(tmp_path, MICROVM + '[provision.ignition]\nconfig = "c"\n')) == {"ignition": config}
    assert filled(plan(tmp_path, MICROVM + '[secrets.c]\nfile = "c"\nuse = "ignition"\n')) == {"ignition": config}


@pytest.mark.parametrize(
    ("text", "content", "message"),
    [
        (MICROVM + '[secrets.a]\nfile = "s"\n', b"x" * 16385, "more than 16384 bytes"),
        (MICROVM + '[secrets.a]\nfile = "s"\nuse = "user-data"\n', b"#include\n", "#include"),
        (MICROVM + '[secrets.a]\nfile = "s"\nuse = "ignition"\n', b"{}", "ignition: is missing"),
        (Q35 + "".join(f'[secrets.a{n}]\nfile = "s"\n' for n in range(4)), b"x" * 12000, "too large together"),
        (
            Q35 + '[[disk]]\npath = "d"\nformat = "raw"\nmode = "persistent"\nencryption = "luks"\nkey = "k"\n'
            '[secrets.k]\nfile = "s"\nuse = "disk"\n',
            b"text\xff",
            "not UTF-8",
        ),
        (
            Q35 + '[[disk]]\npath = "d"\nformat = "raw"\nmode = "persistent"\nencryption = "luks"\nkey = "k"\n'
            '[secrets.k]\nfile = "s"\nuse = "disk"\n',
            b"te\0xt",
            "NUL",
        ),
    ],
)
def test_what_cannot_be_handed_over(tmp_path: Path, text: str, content: bytes, message: str) -> None:
    private(tmp_path / "s", content)
    with pytest.raises(CasemateError) as caught:
        filled(plan(tmp_path, text))
    assert message in str(caught.value)
    assert content.decode("latin-1")[:20] not in str(caught.value) or len(content) < 12


def test_a_plan_asks_no_secret_and_checks_every_document(tmp_path: Path) -> None:
    spec = parse_spec(
        MICROVM
        + '[provision.cloud_init]\nuser_data = "u"\n[secrets.a]\ncommand = ["/bin/touch", "TOUCHED"]\n'.replace(
            "TOUCHED", str(tmp_path / "touched")
        ),
        "t",
        tmp_path,
        today=TODAY,
    )
    (tmp_path / "u").write_text("#cloud-config\nuser_s: []\n")
    with pytest.raises(InputError, match=r"user-data .*1 fault"):
        check_documents(spec)
    (tmp_path / "u").write_text("#cloud-config\nusers: []\n")
    assert check_documents(spec).user_data == b"#cloud-config\nusers: []\n"
    assert not (tmp_path / "touched").exists()


def test_a_value_in_the_arguments_is_seen(tmp_path: Path) -> None:
    """The fact that drift compares: were a value ever to get there, the launch would be refused."""
    for machine in (MICROVM, Q35):
        made = plan(tmp_path, machine + '[secrets.db]\nfile = "s"\n')
        for content, expected in ((b"sandbox", False), (b"elevateprivileges=deny", True), (b"not in there", False)):
            private(tmp_path / "s", content)
            opened = Opened()
            fill(made, opened)
            facts = observe_provisioning(made, ("credential0",), opened)
            opened.close()
            found = facts["prov.in-arguments"]
            assert isinstance(found, Known)
            assert found.value is expected
            channels, declared = facts["prov.channels"], made.declared["prov.channels"]
            assert isinstance(channels, Known)
            assert isinstance(declared, Known)
            assert channels.value == declared.value
