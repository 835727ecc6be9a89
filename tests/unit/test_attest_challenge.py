"""Credential activation: what an endorsement certificate must say, and that a real TPM opens our challenges."""

from __future__ import annotations

import datetime
import hashlib
import json
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from tests.support import tpm_credential as real
from tests.support.evidence_makers import Authority, pem_of, weak_rsa_key
from tests.support.tpm_client import SWTPM, Tpm, TpmError, software_tpm

from casemate.cli.main import main
from casemate.errors import InputError
from casemate.evidence import challenge as asking
from casemate.evidence import ek
from casemate.evidence.credential import Protector, kdfa, make_credential
from casemate.evidence.ek_true import truth_of_attestation_key, truth_of_endorsement, truth_of_storage_key
from casemate.evidence.inputs import Inputs
from casemate.evidence.policy import Policy
from casemate.evidence.verdict import Revocation

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
MAKER = Authority("maker of TPMs")
POLICY = Policy()
needs_swtpm = pytest.mark.skipif(not SWTPM, reason="package swtpm is not installed")


def spki(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


EK = spki(ec.generate_private_key(ec.SECP256R1()).public_key())
RSA_EK = spki(rsa.generate_private_key(65537, 2048).public_key())


def attestation_area(attributes: int = real.AK_ATTRIBUTES, name_hash: bytes = b"\x00\x0b") -> bytes:
    """TPMT_PUBLIC of an attestation key on P-256."""
    numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    template = real.ak_template(is_ecc=True, attributes=attributes)[:-4]
    point = b"".join(b"\x00\x20" + number.to_bytes(32, "big") for number in (numbers.x, numbers.y))
    return template[:2] + name_hash + template[4:] + point


def inputs(*lists: Any, anchors: tuple[str, ...] = (MAKER.digest,)) -> Inputs:
    return Inputs(certificates=(MAKER.certificate,), moment=NOW, anchors=anchors, revocations=tuple(lists))


def codes(leaf: Authority, moment: datetime.datetime = NOW) -> set[str]:
    chain = (leaf.certificate, MAKER.certificate)
    return {item.code for item in truth_of_endorsement(chain, {MAKER.digest}, moment)}


# ---- certificates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [EK, RSA_EK], ids=["P-256", "RSA"])
def test_a_certificate_by_the_profile_is_true(key: bytes) -> None:
    leaf = real.ek_certificate(key, MAKER)
    assert codes(leaf) == set()
    found = ek.read_endorsement(leaf.certificate)
    assert found.names == {"manufacturer": "id:49424D00", "model": "swtpm", "version": "id:20191023"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"purpose": real.AK_PURPOSE}, "ek.purpose"),
        ({"usage": "digital_signature"}, "ek.usage"),
        ({"usage": "key_encipherment"}, "ek.usage"),
        ({"usage": "key_agreement digital_signature"}, "ek.usage"),
        ({"usage": "key_agreement key_cert_sign", "is_authority": True}, "ek.authority"),
        ({"names": dict(list(real.TPM_NAMES.items())[:2])}, "ek.names"),
        ({"names": {"2.5.4.3": "a machine"}}, "ek.names"),
    ],
)
def test_a_certificate_of_another_purpose_is_refused(changes: dict[str, Any], code: str) -> None:
    assert code in codes(real.ek_certificate(EK, MAKER, **changes))


def test_a_certificate_of_a_stranger_or_out_of_its_time_is_refused() -> None:
    other = Authority("maker of TPMs")
    assert "chain.signature" in codes(real.ek_certificate(EK, other))
    assert codes(real.ek_certificate(EK, MAKER), NOW.replace(year=2100)) == {"chain.time"}
    found = asking.challenge(
        attestation_area(), (real.ek_certificate(EK, MAKER).certificate,), None, inputs(anchors=()), POLICY
    )
    assert {item.code for item in found.verdict.reasons} == {"chain.root"}
    assert (found.blob, found.asked) == (None, None)


def test_without_a_subject_the_names_must_be_critical() -> None:
    leaf = msgspec.structs.replace(real.ek_certificate(EK, MAKER).certificate, subject=b"\x30\x00")
    chain = (leaf, MAKER.certificate)
    assert {item.code for item in truth_of_endorsement(chain, {MAKER.digest}, NOW)} == {"ek.names"}
    named = {**leaf.extensions, "2.5.29.17": (True, leaf.extensions["2.5.29.17"][1])}
    chain = (msgspec.structs.replace(leaf, extensions=named), MAKER.certificate)
    assert not list(truth_of_endorsement(chain, {MAKER.digest}, NOW))


@pytest.mark.parametrize(
    "key",
    [
        spki(rsa.generate_private_key(65537, 1024).public_key()),
        spki(ec.generate_private_key(ec.SECP256K1()).public_key()),
        spki(ed25519.Ed25519PrivateKey.generate().public_key()),
    ],
    ids=["RSA of 1024 bits", "secp256k1", "Ed25519"],
)
def test_a_key_of_no_template_is_refused(key: bytes) -> None:
    with pytest.raises(InputError, match="known template"):
        Protector.of_key(key)


def test_revocation_counts_as_for_other_evidence() -> None:
    leaf = real.ek_certificate(EK, MAKER, list_url="http://lists.invalid/")
    area, strict = attestation_area(), Policy(require_revocation_lists=True)
    unknown = asking.challenge(area, (leaf.certificate,), None, inputs(), POLICY)
    assert unknown.verdict.is_accepted
    assert unknown.verdict.revocation is Revocation.UNKNOWN
    assert not asking.challenge(area, (leaf.certificate,), None, inputs(), strict).verdict.is_accepted
    fine = asking.challenge(area, (leaf.certificate,), None, inputs(MAKER.list_of()), strict)
    assert fine.verdict.revocation is Revocation.CHECKED
    revoked = asking.challenge(area, (leaf.certificate,), None, inputs(MAKER.list_of(leaf)), POLICY)
    assert [item.code for item in revoked.verdict.reasons] == ["revoked"]


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [1, 4, 5, 16, 17, 18])
def test_only_an_attestation_key_is_vouched_for(bit: int) -> None:
    area = attestation_area(real.AK_ATTRIBUTES ^ 1 << bit)
    found = asking.challenge(area, (real.ek_certificate(EK, MAKER).certificate,), None, inputs(), POLICY)
    assert [item.code for item in found.verdict.reasons] == ["key.attributes"]
    assert found.blob is None


def test_a_name_over_sha1_is_refused_and_a_bare_key_has_none() -> None:
    found = ek.parse_attestation_key(attestation_area(name_hash=b"\x00\x04"))
    assert [item.code for item in truth_of_attestation_key(found)] == ["key.name"]
    with pytest.raises(InputError, match="public area"):
        ek.parse_attestation_key(EK)


@given(st.binary(max_size=600), st.integers(0, 400))
def test_hostile_areas_answer_or_raise(data: bytes, at: int) -> None:
    template = real.ek_template("L-1")
    for hostile in (data, template[:at] + data, template[:at] + data + template[at + len(data) :]):
        for read in (ek.parse_storage_key, ek.parse_attestation_key):
            try:
                read(hostile)
            except InputError:
                continue


@given(st.binary(max_size=80), st.integers(0, 100), st.sampled_from(["2.5.29.17", "2.5.29.37", "2.5.29.19"]))
def test_hostile_extensions_answer_or_raise(data: bytes, at: int, name: str) -> None:
    leaf = LEAF.certificate
    value = leaf.extensions[name][1]
    changed = {**leaf.extensions, name: (True, value[:at] + data + value[at + len(data) :])}
    chain = (msgspec.structs.replace(leaf, extensions=changed), MAKER.certificate)
    for reason in truth_of_endorsement(chain, {MAKER.digest}, NOW):
        assert reason.code.startswith("ek.")


LEAF = real.ek_certificate(EK, MAKER)


def test_kdfa_is_the_counter_mode_of_sp_800_108() -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

    for bits, name in ((128, b"name"), (256, b"")):
        peer = KBKDFHMAC(
            hashes.SHA256(), Mode.CounterMode, bits // 8, 4, 4, CounterLocation.BeforeFixed, b"STORAGE", name, None
        )
        assert kdfa("sha256", b"k" * 32, b"STORAGE", name, bits) == peer.derive(b"k" * 32)


@pytest.mark.parametrize("bits", [2048, 3072])
def test_keys_that_can_be_factored_are_refused(bits: int) -> None:
    weak = spki(weak_rsa_key(bits).public_key())
    assert codes(real.ek_certificate(weak, MAKER)) == {"ek.weak"}
    found = ek.AttestationKey(key=weak, attributes=real.AK_ATTRIBUTES, name_hash="sha256", name=b"")
    assert [item.code for item in truth_of_attestation_key(found)] == ["key.weak"]
    assert codes(real.ek_certificate(RSA_EK, MAKER)) == set()


# ---- a real TPM ------------------------------------------------------------------------------------------------------


class Furnished(NamedTuple):
    tpm: Tpm
    ek: int
    ek_area: bytes
    ak: int
    ak_area: bytes
    kind: str

    @property
    def key(self) -> bytes:
        return ek.parse_storage_key(self.ek_area).key

    def activate(self, blob: bytes) -> bytes:
        return real.activate(self.tpm, self.ak, self.ek, blob, has_policy=self.kind.startswith("L"))


@pytest.fixture(params=["L-1", "L-2", "H-3", "H-6"])
def furnished(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Furnished]:
    with software_tpm(tmp_path / "state") as tpm:
        endorsement, area = real.create_primary(tpm, real.ek_template(request.param))
        attestation, ak_area = real.create_primary(tpm, real.ak_template(is_ecc=request.param in ("L-2", "H-3")))
        yield Furnished(tpm, endorsement, area, attestation, ak_area, request.param)


@needs_swtpm
def test_a_real_tpm_opens_a_challenge_and_only_the_right_one(furnished: Furnished) -> None:
    leaf = real.ek_certificate(furnished.key, MAKER)
    found = asking.challenge(furnished.ak_area, (leaf.certificate,), None, inputs(), POLICY)
    assert found.verdict.reasons == ()
    assert found.blob is not None
    assert found.asked is not None
    assert found.verdict.claims["attestation-key-name"] == real.name_of(furnished.tpm, furnished.ak).hex()
    answer = furnished.activate(found.blob)
    assert asking.judge_answer(found.asked, answer).is_accepted
    wrong = asking.judge_answer(found.asked, bytes([answer[0] ^ 1]) + answer[1:])
    assert [item.code for item in wrong.reasons] == ["credential.answer"]
    assert not asking.judge_answer(found.asked, b"").is_accepted
    assert not asking.judge_answer(found.asked, hashlib.sha256(answer).digest()).is_accepted

    # The same with the public area, which says the same of itself as the template.
    area = asking.challenge(furnished.ak_area, (leaf.certificate,), furnished.ek_area, inputs(), POLICY)
    assert area.blob is not None
    assert furnished.activate(area.blob) != answer

    # A bit of the blob; another key's name; another endorsement key.
    for at in (10, 14, 60, len(found.blob) - 1):
        with pytest.raises(TpmError):
            furnished.activate(found.blob[:at] + bytes([found.blob[at] ^ 1]) + found.blob[at + 1 :])
    protector, secret = Protector.of_key(furnished.key), secrets.token_bytes(32)
    name = ek.parse_attestation_key(attestation_area()).name
    with pytest.raises(TpmError):
        furnished.activate(make_credential(protector, name, secret))
    other = RSA_EK if furnished.kind == "L-1" else EK
    name = ek.parse_attestation_key(furnished.ak_area).name
    with pytest.raises(TpmError):
        furnished.activate(make_credential(Protector.of_key(other), name, secret))
    assert furnished.activate(make_credential(protector, name, secret)) == secret


@needs_swtpm
def test_the_public_area_must_be_the_certificates(tmp_path: Path) -> None:
    with software_tpm(tmp_path / "state") as tpm:
        _, area = real.create_primary(tpm, real.ek_template("L-2"))
    found = ek.parse_storage_key(area)
    assert (found.hash_name, found.key_bits) == ("sha256", 128)
    assert not list(truth_of_storage_key(found, real.ek_certificate(found.key, MAKER).certificate))
    assert [item.code for item in truth_of_storage_key(found, LEAF.certificate)] == ["ek.public"]
    loose = msgspec.structs.replace(found, attributes=found.attributes ^ 2)
    leaf = real.ek_certificate(found.key, MAKER).certificate
    assert [item.code for item in truth_of_storage_key(loose, leaf)] == ["ek.attributes"]
    with pytest.raises(InputError, match="storage key"):
        ek.parse_attestation_key(area)
    with pytest.raises(InputError, match="endorsement key"):
        ek.parse_storage_key(attestation_area())


# ---- the command -----------------------------------------------------------------------------------------------------


@needs_swtpm
def test_the_command_asks_and_judges_and_keeps_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blob, asked, answer = (tmp_path / name for name in ("credential.blob", "asked.json", "secret.bin"))
    with software_tpm(tmp_path / "state") as tpm:
        endorsement, area = real.create_primary(tpm, real.ek_template("L-1"))
        attestation, ak_area = real.create_primary(tpm, real.ak_template())
        (tmp_path / "ak.pub").write_bytes(ak_area)
        (tmp_path / "ek.pub").write_bytes(area)
        leaf = real.ek_certificate(ek.parse_storage_key(area).key, MAKER)
        (tmp_path / "ek.pem").write_text(pem_of(leaf))
        (tmp_path / "maker.pem").write_text(pem_of(MAKER))
        command = ["attest", "challenge", str(tmp_path / "ak.pub"), "--ek-cert", str(tmp_path / "ek.pem")]
        command += ["--blob", str(blob), "--challenge", str(asked)]
        at = ["--at", "2026-06-01T00:00:00Z"]
        assert main([*command, *at]) == 1  # nobody believes its maker: nothing is written
        assert not blob.exists()
        assert not asked.exists()
        assert "chain.root" in capsys.readouterr().out
        command += ["--trust", str(tmp_path / "maker.pem"), "--ek", str(tmp_path / "ek.pub"), *at]
        assert main(command) == 0
        assert main(command) == 2  # an older challenge is not lost
        assert "is there already" in capsys.readouterr().err
        answer.write_bytes(real.activate(tpm, attestation, endorsement, blob.read_bytes()))
    assert [stat.S_IMODE(path.stat().st_mode) for path in (blob, asked)] == [0o600, 0o600]
    assert answer.read_bytes() not in asked.read_bytes()
    assert answer.read_bytes().hex() not in asked.read_text()
    judge = ["attest", "answer", str(answer), "--challenge", str(asked)]
    assert main([*judge, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    key = ek.parse_attestation_key(ak_area).key
    assert (document["kind"], document["accepted"]) == ("tpm-activation", True)
    assert document["claims"]["attestation-key"] == hashlib.sha256(key).hexdigest()
    assert document["claims"]["tpm-manufacturer"] == "id:49424D00"
    answer.write_bytes(bytes(32))
    assert main(judge) == 1
    assert "credential.answer" in capsys.readouterr().out
    asked.write_text("{}")
    assert main(judge) == 2
    assert "is no challenge" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["challenge", "answer"])
def test_what_is_missing_is_said(action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attest", action, str(tmp_path / "nothing")]) == 2
    assert "--challenge" in capsys.readouterr().err
