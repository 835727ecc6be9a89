"""What a saved state must match, and what a state file from anybody cannot bring along."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec
import pytest
from tests.support.hosts import HOST, plan_of

from casemate.engine.opening import Opened
from casemate.engine.restore import Restore, hardware_digest, open_state
from casemate.engine.sealing import Sealing
from casemate.engine.statefile import Header, Manifest, StateWriter, derive_key
from casemate.engine.unit import systemd_unit
from casemate.errors import CasemateError, InputError, RefusedError, SpecError
from casemate.evidence.record import canonical_json
from casemate.spec.model import Boot, Machine, Secret, Spec

SPEC = Spec(machine=Machine(saveable=True), boot=Boot(kernel="/k"))


def write(path: Path, spec: str, *, key: bytes | None = None, salt: str = "", **changes: object) -> str:
    argv = plan_of(SPEC, HOST).wall.argv
    manifest = Manifest(
        name="a",
        saved_at="2026-01-01T00:00:00.000Z",
        spec=spec,
        spec_sha256=hashlib.sha256(spec.encode()).hexdigest(),
        hardware_sha256=hardware_digest(argv),
        machine="microvm",
        accel="tcg",
        qemu_version="7.2.22",
        files={"kernel": hashlib.sha256(b"kernel").hexdigest()},
        guest_prepared=True,
        stream_bytes=5,
    )
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    writer = StateWriter(descriptor, Header("none" if key is None else "key", salt), key)
    writer.data(b"state")
    writer.finish(msgspec.structs.replace(manifest, **changes))
    os.close(descriptor)
    return str(path)


def restore(path: Path, **changes: object) -> Restore:
    return open_state(write(path, canonical_json(SPEC).decode(), **changes), Sealing())  # type: ignore[arg-type]


def test_a_state_that_matches(tmp_path: Path) -> None:
    found = restore(tmp_path / "s")
    assert found.spec == SPEC
    plan = plan_of(SPEC, HOST)
    found.check_plan(plan)
    found.check_version("7.2.22")
    opened = Opened()
    (tmp_path / "k").write_bytes(b"kernel")
    opened.by_role["kernel"] = os.open(tmp_path / "k", os.O_RDONLY)
    found.check_files(opened)
    found.hand_over(opened)
    assert {"state", "state-in", "state-file"} <= set(opened.by_role)
    found.begin()
    found.stop()
    opened.close()


def test_what_does_not_match(tmp_path: Path) -> None:
    found = restore(tmp_path / "s")
    with pytest.raises(InputError, match="another QEMU"):
        found.check_version("8.0.0")
    bigger = msgspec.structs.replace(SPEC, machine=Machine(saveable=True, memory_mib=512))
    with pytest.raises(InputError, match="another machine"):
        found.check_plan(plan_of(bigger, HOST))
    with pytest.raises(InputError, match="another accelerator"):
        restore(tmp_path / "s", accel="kvm").check_plan(plan_of(SPEC, HOST))
    with pytest.raises(RefusedError, match=r"img\.hash"):
        found.check_files(Opened())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}", "boot.missing"),
        ('{"boot": {"kernel": "/k"}}', "could not have been saved"),
        ('{"boot": {"kernel": "/../k"}, "machine": {"saveable": true}}', "path.parent"),
        ('{"boot": {"kernel": "/k\\u0007"}, "machine": {"saveable": true}}', "text.control"),
        ('{"boot": {"kernel": "/k"}, "machine": {"saveable": true, "memory_mib": 1}}', "value.range"),
        ('{"boot": {"kernel": "/k"}, "machine": {"saveable": true}, "qemu_args": "-s"}', "key.unknown"),
        ("[]", "its specification"),
        ("nonsense", "its specification"),
        (
            '{"boot": {"kernel": "/k"}, "machine": {"saveable": true}, "secrets": {"a": {"command": ["/bin/sh"]}}}',
            "not sealed",
        ),
    ],
)
def test_a_specification_from_anybody_is_checked_like_any(tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises((InputError, SpecError)) as caught:
        open_state(write(tmp_path / "s", spec), Sealing())
    assert message in str(caught.value)


def test_keys_and_files_go_together(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"k" * 32)
    (tmp_path / "key").chmod(0o600)
    given = Sealing(key=Secret(file=str(tmp_path / "key")))
    with pytest.raises(InputError, match="sealed with none"):
        open_state(write(tmp_path / "s", canonical_json(SPEC).decode()), given)
    sealed = write(tmp_path / "t", canonical_json(SPEC).decode(), key=derive_key(b"k" * 32, b"salt"), salt="c2FsdA==")
    with pytest.raises(InputError, match="sealed with key"):
        open_state(sealed, Sealing())
    assert open_state(sealed, given).manifest.name == "a"
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(CasemateError, match="not a password"):
        open_state(sealed, given)


def test_the_digest_leaves_out_what_is_the_vms_own() -> None:
    argv = ("qemu", "-name", "guest=a", "-machine", "microvm", "-append", "x", "-incoming", "fd:9")
    assert hardware_digest(argv) == hardware_digest(("qemu", "-machine", "microvm", "-name", "guest=b"))
    assert hardware_digest(argv) != hardware_digest(("qemu", "-machine", "q35"))


def test_a_unit_may_use_the_tpm_when_a_secret_needs_it() -> None:
    from casemate.engine.paths import Paths
    from casemate.engine.vmfiles import Definition

    paths = Paths("/run/c", "/data", "/cache")
    for spec, expected in (
        (SPEC, False),
        (msgspec.structs.replace(SPEC, secrets={"a": Secret(systemd_creds="/c")}), True),
    ):
        definition = Definition("0123456789abcdef", "a", spec, "2026-01-01T00:00:00.000Z")
        assert ("DeviceAllow=/dev/tpmrm0 rw" in systemd_unit(definition, paths, rootless=False)) is expected
