"""From one specification: QEMU's arguments, the measurement, and what evidence of that guest has to say.

ID blocks are made by sev-snp-measure, whose digests of keys are those that a report shows.
"""

from __future__ import annotations

import base64
import datetime
import json
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sevsnpmeasure.id_block import snp_calc_id_block  # type: ignore[import-untyped]
from tests.support.evidence_makers import snp_report
from tests.support.hosts import CONFIDENTIAL_EMULATORS, CONFIDENTIAL_HOSTS, plan_of
from tests.unit.test_measure import firmware

from casemate.errors import InputError
from casemate.evidence.policy import Policy, parse_policy
from casemate.evidence.policy_wants import wants_snp
from casemate.evidence.snp import parse_report
from casemate.measure.confidential import wanted_policy
from casemate.measures import Choices, Measured, measure
from casemate.spec.confidential import Confidential, Kind
from casemate.spec.file import load_spec
from casemate.spec.model import Spec

HOST_DATA = "5a" * 32


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "kernel").write_bytes(b"kernel" * 1000)
    (tmp_path / "fw.fd").write_bytes(firmware())
    return tmp_path


def specification(files: Path, more: str = "", kind: str = "sev-snp", *, fw: bool = True) -> Path:
    path = files / "vm.toml"
    text = '[machine]\ntype = "q35"\nvcpus = 2\n[boot]\nkernel = "kernel"\ncmdline = "quiet"\n'
    text += f'[confidential]\nkind = "{kind}"\n' + ('firmware = "fw.fd"\n' if fw else "") + more
    path.write_text(text)
    return path


def measured(files: Path, more: str = "", **choices: object) -> Measured:
    return measure(str(specification(files, more)), Choices(**choices))  # type: ignore[arg-type]


def launch_object(path: Path) -> dict[str, object]:
    """QEMU's object in the plan of this very specification."""
    spec: Spec = load_spec(str(path), today=datetime.date(2026, 1, 1))
    assert spec.confidential is not None
    kind = spec.confidential.kind
    argv = plan_of(spec, CONFIDENTIAL_HOSTS[kind], emulator=CONFIDENTIAL_EMULATORS[kind]).wall.argv
    found: dict[str, object] = json.loads(argv[argv.index("-object") + 1])
    return found


def test_the_specification_says_kind_firmware_and_processor(files: Path) -> None:
    found = measured(files).expected
    assert found.kind == "sev-snp"
    flags = Choices(kind="sev-snp", firmware=str(files / "fw.fd"), cpu="EPYC")
    plain = files / "plain.toml"
    plain.write_text('[machine]\ntype = "q35"\nvcpus = 2\n[boot]\nkernel = "kernel"\ncmdline = "quiet"\n')
    assert found.values == measure(str(plain), flags).expected.values
    assert found.inputs["cpu"] == "EPYC-v4"
    assert measured(files, cpu="EPYC-Turin").expected.values != found.values


def test_another_kind_is_a_contradiction(files: Path) -> None:
    with pytest.raises(InputError, match="--kind tpm of a guest of kind sev-snp"):
        measured(files, kind="tpm")


def test_a_report_of_that_launch_is_wanted_and_no_other(files: Path) -> None:
    """What the plan gives to QEMU comes back in a report, and the policy of the same file wants just that."""
    more = f'host_data = "{HOST_DATA}"\nsmt = false\n'
    expected = measured(files, more).expected
    policy = parse_policy(expected.policy_text(), "p")
    launched = launch_object(files / "vm.toml")
    flags, host_data = launched["policy"], base64.b64decode(str(launched["host-data"]))
    assert isinstance(flags, int)
    digest = bytes.fromhex(expected.values["measurement"])

    def reasons(flags: int, digest: bytes = digest, host_data: bytes = host_data) -> set[str]:
        report = parse_report(snp_report(policy=flags, fields=((0x90, digest), (0xC0, host_data))))
        return {reason.code for reason in wants_snp(report, "", "", policy.sev_snp)}

    assert reasons(flags) == set()
    assert reasons(flags | 1 << 16) == {"smt"}
    assert reasons(flags | 1 << 18) == {"migration-agent"}
    assert reasons(flags | 1 << 19) == {"debug"}
    assert reasons(flags, digest=bytes(48)) == {"measurement"}
    assert reasons(flags, host_data=bytes(32)) == {"host-data"}


def test_what_is_open_in_the_specification_is_open_in_the_policy() -> None:
    closed = wanted_policy(Confidential(kind=Kind.SEV_SNP))
    assert closed == Policy()
    opened = wanted_policy(Confidential(kind=Kind.SEV_SNP, host_may_debug=True, migration_agent=True)).sev_snp
    assert opened.accept_debug_guest_that_its_host_can_read
    assert opened.accept_migration_agent_that_can_move_the_guest
    tdx = wanted_policy(Confidential(kind=Kind.TDX, mrowner="0a" * 48)).tdx
    assert (tdx.mrowner, tdx.mrconfigid) == (("0a" * 48,), ())
    assert wanted_policy(Confidential(kind=Kind.SE)) == Policy()


def private_key(path: Path) -> str:
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(path)


def test_an_id_block_is_for_one_launch(files: Path) -> None:
    digest = measured(files).expected.values["measurement"]
    keys = private_key(files / "id.pem"), private_key(files / "author.pem")
    made = snp_calc_id_block(bytes.fromhex(digest), *keys).split("\n")
    block, auth = (part.partition("=")[2] for part in made[0].split(","))
    id_key, author_key = (base64.b64decode(line.partition(": ")[2]).hex() for line in made[1:3])
    more = f'id_block = "{block}"\nid_auth = "{auth}"\n'
    policy = measured(files, more + "author_key = true\n").expected.policy().sev_snp
    assert (policy.id_key_digest, policy.author_key_digest) == ((id_key,), (author_key,))
    assert (policy.family_id, policy.minimum_guest_svn) == (("00" * 16,), 0)
    assert measured(files, more).expected.policy().sev_snp.author_key_digest == ()
    launched = launch_object(files / "vm.toml")
    assert (launched["id-block"], launched["id-auth"], launched["author-key-enabled"]) == (block, auth, False)
    (files / "kernel").write_bytes(b"another")
    with pytest.raises(InputError, match="ID block is for another launch") as caught:
        measured(files, more)
    assert digest in caught.value.got
    assert measured(files, more, reported=digest).explained == ""


def test_without_a_firmware_the_hosts_own_is_looked_for(files: Path) -> None:
    path = specification(files, fw=False)
    try:
        found = measure(str(path), Choices()).expected
    except InputError as error:
        assert "--firmware FILE" in error.expected  # noqa: PT017 - this host has none with amd-sev-snp
    else:
        assert str(found.inputs["firmware"]).startswith("/")


def test_policies_survive_their_file(files: Path) -> None:
    expected = measured(files, f'host_data = "{HOST_DATA}"\nhost_may_debug = true\n').expected
    assert parse_policy(expected.policy_text(), "p") == expected.policy()
    assert msgspec.structs.replace(expected, wanted=Policy()).identity() != expected.identity()
