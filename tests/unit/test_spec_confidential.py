"""``[confidential]``: what it takes, what it excludes, and the launch policy that comes of it."""

from __future__ import annotations

import base64
import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import SpecError
from casemate.evidence.snp import POLICY_BITS
from casemate.spec.confidential import KEYS, Confidential, Kind, id_block_policy, snp_policy
from casemate.spec.model import Spec
from casemate.spec.parse import parse_spec

Q35 = '[machine]\ntype = "q35"\n'
KERNEL = '[boot]\nkernel = "/k"\n'
DISK = '[[disk]]\npath = "/d"\nformat = "raw"\n'
SNP, TDX, SE = (f'[confidential]\nkind = "{kind}"\n' for kind in ("sev-snp", "tdx", "se"))
S390 = '[machine]\ntype = "s390-ccw-virtio"\n'
AUTH = base64.b64encode(bytes(4096)).decode()


def block(policy: int, size: int = 96) -> str:
    return base64.b64encode((bytes(88) + policy.to_bytes(8, "little"))[:size]).decode()


def parse(text: str) -> Spec:
    return parse_spec(text, "t.toml", Path("/"), today=datetime.date(2026, 1, 1))


def faults(text: str) -> set[tuple[str, str]]:
    with pytest.raises(SpecError) as caught:
        parse(text)
    return {(fault.path, fault.fault_id) for fault in caught.value.faults}


@pytest.mark.parametrize(
    "text",
    [
        Q35 + KERNEL + SNP,
        Q35 + KERNEL + TDX,
        Q35 + DISK + '[boot]\nfirmware = "uefi"\n' + TDX,
        S390 + KERNEL + SE,
        Q35 + KERNEL + SNP + f'id_block = "{block(0x30000)}"\nid_auth = "{AUTH}"\nauthor_key = true\n',
        Q35 + KERNEL + TDX + f'mrowner = "{"0a" * 48}"\nquote_socket = "/run/q.socket"\n',
    ],
)
def test_what_is_taken(text: str) -> None:
    assert parse(text).confidential is not None


CASES: list[tuple[str, str, set[tuple[str, str]]]] = [
    ("microvm", KERNEL + SNP, {("machine.type", "confidential.machine")}),
    ("se on q35", Q35 + KERNEL + SE, {("machine.type", "confidential.machine")}),
    ("tdx on s390x", S390 + KERNEL + TDX, {("machine.type", "confidential.machine")}),
    ("s390x without se", S390 + KERNEL, {("machine.type", "confidential.machine")}),
    ("tcg", Q35 + 'accel = "tcg"\n' + KERNEL + SNP, {("machine.accel", "confidential.accel")}),
    ("irqchip", Q35 + 'irqchip = "off"\n' + KERNEL + TDX, {("machine.irqchip", "confidential.irqchip")}),
    ("saveable", Q35 + "saveable = true\n" + KERNEL + SNP, {("machine.saveable", "confidential.saveable")}),
    ("tpm", Q35 + KERNEL + SNP + "[tpm]\nenabled = true\n", {("tpm.enabled", "confidential.tpm")}),
    (
        "passthrough",
        Q35 + KERNEL + SNP + '[[passthrough]]\naddress = "0000:3b:02.1"\nreason = "for a test"\nexpires = 2027-01-01\n',
        {("passthrough", "confidential.passthrough")},
    ),
    ("bios", Q35 + DISK + '[boot]\nfirmware = "bios"\n' + TDX, {("boot.firmware", "confidential.firmware")}),
    ("disk", Q35 + DISK + '[boot]\nfirmware = "uefi"\n' + SNP, {("boot.kernel", "confidential.kernel")}),
    (
        "se with an initrd",
        S390 + KERNEL + 'initrd = "/i"\ncmdline = "quiet"\n' + SE,
        {("boot.initrd", "confidential.kernel"), ("boot.cmdline", "confidential.kernel")},
    ),
    ("credential", Q35 + KERNEL + SNP + '[secrets.a]\nfile = "/s"\n', {("secrets.a", "confidential.secret")}),
    (
        "disk key",
        Q35
        + KERNEL
        + '[[disk]]\npath = "/d"\nformat = "raw"\nmode = "persistent"\nencryption = "luks"\nkey = "k"\n'
        + SNP
        + '[secrets.k]\nfile = "/s"\nuse = "disk"\n',
        {("secrets.k", "confidential.secret")},
    ),
    (
        "cloud-init",
        Q35 + KERNEL + SNP + '[provision.cloud_init]\nhostname = "a"\n',
        {("provision", "confidential.provision")},
    ),
    ("another's key", Q35 + KERNEL + SNP + f'mrowner = "{"00" * 48}"', {("confidential.mrowner", "confidential.key")}),
    ("se has none", S390 + KERNEL + SE + 'firmware = "/f"', {("confidential.firmware", "confidential.key")}),
    (
        "half an identity",
        Q35 + KERNEL + SNP + f'id_block = "{block(0x30000)}"',
        {("confidential.id_block", "confidential.id-block")},
    ),
    (
        "short block",
        Q35 + KERNEL + SNP + f'id_block = "{block(0x30000, 90)}"\nid_auth = "{AUTH}"',
        {("confidential.id_block", "confidential.id-block")},
    ),
    (
        "no base64",
        Q35 + KERNEL + SNP + f'id_block = "{block(0x30000)}"\nid_auth = "AAA"',
        {("confidential.id_auth", "confidential.id-block")},
    ),
    (
        "block for another policy",
        Q35 + KERNEL + SNP + f'smt = false\nid_block = "{block(0x30000)}"\nid_auth = "{AUTH}"',
        {("confidential.id_block", "confidential.id-block")},
    ),
    (
        "author key of nobody",
        Q35 + KERNEL + SNP + "author_key = true",
        {("confidential.author_key", "confidential.id-block")},
    ),
    ("abi", Q35 + KERNEL + SNP + 'abi_minimum = "1.256"', {("confidential.abi_minimum", "value.range")}),
    ("no kind", Q35 + KERNEL + "[confidential]\n", {("confidential.kind", "key.missing")}),
    ("kind", Q35 + KERNEL + '[confidential]\nkind = "sev"', {("confidential.kind", "value.choice")}),
    ("cpu", Q35 + KERNEL + SNP + 'cpu = "host"', {("confidential.cpu", "value.pattern")}),
    ("host data", Q35 + KERNEL + SNP + 'host_data = "00"', {("confidential.host_data", "value.pattern")}),
]


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_refused(text: str, expected: set[tuple[str, str]]) -> None:
    assert faults(text) == expected


def test_every_key_belongs_to_a_kind() -> None:
    every = {name for names in KEYS.values() for name in names}
    assert {*every, "kind"} == set(Confidential.__struct_fields__)


def test_the_default_policy_is_the_closed_one() -> None:
    assert snp_policy(Confidential(kind=Kind.SEV_SNP)) == 0x30000


BITS = {
    "smt": "smt-allowed",
    "migration_agent": "migration-agent-allowed",
    "host_may_debug": "debug-allowed",
    "ciphertext_hiding": "ciphertext-hiding",
}


@given(
    st.fixed_dictionaries(dict.fromkeys(BITS, st.booleans())),
    st.integers(0, 255),
    st.integers(0, 255),
)
def test_the_reader_of_reports_sees_the_policy_that_was_asked_for(
    wanted: dict[str, bool], major: int, minor: int
) -> None:
    """Written here by name, read by the other side's table of bits."""
    policy = snp_policy(Confidential(kind=Kind.SEV_SNP, abi_minimum=f"{major}.{minor}", **wanted))  # type: ignore[arg-type]
    seen = {name for bit, name in POLICY_BITS.items() if policy >> bit & 1}
    assert seen == {BITS[name] for name, is_set in wanted.items() if is_set}
    assert (policy >> 8 & 0xFF, policy & 0xFF, policy >> 17 & 1) == (major, minor, 1)


@given(st.integers(0, 2**64 - 1))
def test_policy_of_an_id_block(policy: int) -> None:
    assert id_block_policy(base64.b64decode(block(policy))) == policy
