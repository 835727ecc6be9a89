"""Attestation results: claims by the draft, the trust vector, and a signature that anybody can verify."""

from __future__ import annotations

import base64
import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tests.support.evidence_makers import Chip, snp_report

from casemate import attests
from casemate.cli.main import main
from casemate.engine import paths
from casemate.evidence import snp_true, verify_snp
from casemate.evidence.ear import PROFILES, ear_claims, labelled, trust_vector
from casemate.evidence.policy import NitroPolicy, Policy, SnpPolicy, TdxPolicy, TpmPolicy
from casemate.evidence.verdict import Reason, Revocation, Step, Verified

CHIP = Chip()


def verdict(*reasons: Reason, kind: str = "sev-snp") -> Verified:
    return Verified(kind=kind, claims={"vmpl": 0}, reasons=reasons, revocation=Revocation.CHECKED)


def claims_of(found: Verified, profile: str = "2023", policy: Policy | None = None, nonce: bytes | None = None) -> Any:
    return ear_claims(
        labelled([found]),
        policy or Policy(),
        policy_id="p",
        issued_at_s=1_800_000_000,
        lifetime_s=60,
        build="1",
        nonce=nonce,
        profile=profile,
    )


def test_claims_of_both_profiles() -> None:
    old = claims_of(verdict(), nonce=b"12345678")
    assert old["eat_profile"] == "tag:github.com,2023:veraison/ear"
    assert (old["iat"], old["exp"], old["eat_nonce"]) == (1_800_000_000, 1_800_000_060, "MTIzNDU2Nzg")
    part = old["submods"]["sev-snp"]
    assert part["ear.status"] == "affirming"
    assert part["ear.appraisal-policy-id"] == "p"
    assert part["ear.veraison.annotated-evidence"] == {"kind": "sev-snp", "vmpl": 0}
    new = claims_of(verdict(), "2026-03")
    assert new["eat_profile"] == "tag:ietf.org,2026:rats/ear#03"
    assert set(new) == {"eat_profile", "iat", "exp", "ear_verifier_id", "submods"}
    assert new["submods"]["sev-snp"]["ear_appraisal_policy_ids"] == ["p"]
    assert set(PROFILES) == set(attests.EAR_PROFILES)


def test_a_nonce_of_a_length_that_eat_does_not_have_is_left_out() -> None:
    assert "eat_nonce" not in claims_of(verdict(), nonce=b"short")


def test_no_refusal_is_a_warning() -> None:
    for step in Step:
        for code in ("debug", "tcb.snp", "measurement", "chip-id", "anything-else"):
            part = claims_of(verdict(Reason(step, code, "")))["submods"]["sev-snp"]
            assert part["ear.status"] == "contraindicated"
            assert max(part["ear.trustworthiness-vector"].values()) > 31


@pytest.mark.parametrize(
    ("step", "code", "part", "value"),
    [
        (Step.TRUTH, "signature", "hardware", 99),
        (Step.TRUTH, "chain.root", "instance-identity", 99),
        (Step.STALE, "chain.time", "hardware", 32),
        (Step.POLICY, "debug", "runtime-opaque", 96),
        (Step.POLICY, "debug", "configuration", 96),
        (Step.POLICY, "vmpl", "configuration", 96),
        (Step.POLICY, "sept-ve", "configuration", 96),
        (Step.POLICY, "service-td", "configuration", 96),
        (Step.POLICY, "attribute-bits", "configuration", 96),
        (Step.POLICY, "measurement", "executables", 33),
        (Step.POLICY, "rtmr3", "executables", 33),
        (Step.POLICY, "sha256.pcr7", "executables", 33),
        (Step.POLICY, "pcr4", "executables", 33),
        (Step.POLICY, "secure-boot", "executables", 33),
        (Step.POLICY, "tcb.microcode", "hardware", 32),
        (Step.POLICY, "tcb-status", "hardware", 32),
        (Step.POLICY, "provisional", "hardware", 32),
        (Step.POLICY, "platform.smt", "hardware", 32),
        (Step.POLICY, "nonce", "instance-identity", 97),
        (Step.POLICY, "nonce.user-data", "instance-identity", 97),
        (Step.POLICY, "revocation.unknown", "instance-identity", 97),
        (Step.POLICY, "something-new", "configuration", 96),
    ],
)
def test_where_it_went_wrong(step: Step, code: str, part: str, value: int) -> None:
    assert trust_vector(verdict(Reason(step, code, "")), Policy())[part] == value


def test_what_nobody_asked_for_is_not_claimed() -> None:
    assert trust_vector(verdict(), Policy()) == {
        "instance-identity": 2,
        "hardware": 2,
        "configuration": 3,
        "runtime-opaque": 2,
    }
    asked = Policy(sev_snp=SnpPolicy(measurement=("00" * 48,)))
    assert trust_vector(verdict(), asked)["executables"] == 3
    assert "runtime-opaque" not in trust_vector(verdict(kind="nitro"), Policy())
    assert trust_vector(verdict(kind="nitro"), Policy(nitro=NitroPolicy(pcrs={"0": "11" * 48})))["executables"] == 3


def registers(*numbers: str, octets: int = 32, zeros: str = "") -> dict[str, str]:
    return {number: ("00" if number == zeros else "11") * octets for number in numbers}


MRTD = ("11" * 48,)


@pytest.mark.parametrize(
    ("kind", "policy", "is_named"),
    [
        ("sev-snp", Policy(sev_snp=SnpPolicy(host_data=("11" * 32,))), False),
        ("sev-snp", Policy(sev_snp=SnpPolicy(id_key_digest=("11" * 48,))), True),
        ("tdx", Policy(tdx=TdxPolicy(mrtd=MRTD, rtmr=registers("0", octets=48))), False),
        ("tdx", Policy(tdx=TdxPolicy(mrtd=MRTD, rtmr=registers("1", "2", octets=48, zeros="2"))), False),
        ("tdx", Policy(tdx=TdxPolicy(mrtd=MRTD, rtmr=registers("1", "2", octets=48))), True),
        ("tpm", Policy(tpm=TpmPolicy(pcrs={"sha256": registers("0", "7")})), False),
        ("tpm", Policy(tpm=TpmPolicy(pcrs={"sha256": registers("4", "11", zeros="11")})), False),
        ("tpm", Policy(tpm=TpmPolicy(pcrs={"sha1": registers("4", "11", octets=20)})), False),
        ("tpm", Policy(tpm=TpmPolicy(pcrs={"sha256": registers("4", "8", "9")})), True),
        ("azure-tdx", Policy(tdx=TdxPolicy(mrtd=MRTD)), False),
        ("nitro", Policy(nitro=NitroPolicy(pcrs=registers("3", octets=48))), False),
        ("nitro", Policy(nitro=NitroPolicy(pcrs=registers("0", octets=48, zeros="0"))), False),
        ("nitro", Policy(nitro=NitroPolicy(pcrs=registers("1", "2", octets=48))), True),
        ("nitro-tpm", Policy(nitro=NitroPolicy(pcrs=registers("0", octets=48))), False),
        ("nitro-tpm", Policy(nitro=NitroPolicy(pcrs=registers("4", "11", octets=48))), True),
    ],
)
def test_executables_are_affirmed_where_the_policy_names_all_of_them(kind: str, policy: Policy, is_named: bool) -> None:
    """A policy of firmware, or of registers that nothing extended, says nothing of what runs."""
    assert ("executables" in trust_vector(verdict(kind=kind), policy)) == is_named


def test_labels() -> None:
    found = labelled([verdict(), verdict(kind="tdx"), verdict()])
    assert [label for label, _ in found] == ["sev-snp", "tdx", "sev-snp-2"]
    with pytest.raises(RuntimeError):
        claims_of_nothing()


def claims_of_nothing() -> Any:
    return ear_claims([], Policy(), policy_id="p", issued_at_s=0, lifetime_s=0, build="")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories of our own, a chip that is believed, its report in a file."""
    own = paths.Paths(*(str(tmp_path / name) for name in ("run", "data", "cache")))
    for directory in (own.runtime, own.data, own.cache):
        Path(directory).mkdir(mode=0o700)
    monkeypatch.setattr(paths, "default_paths", lambda: own)
    for module in (snp_true, verify_snp):
        monkeypatch.setattr(module, "AMD_ROOTS", {CHIP.root.digest: "Milan"})
    (tmp_path / "report.bin").write_bytes(CHIP.sign(snp_report()))
    pem = "".join(
        f"-----BEGIN CERTIFICATE-----\n{base64.b64encode(item.der).decode()}\n-----END CERTIFICATE-----\n"
        for item in (CHIP.leaf, CHIP.middle, CHIP.root)
    )
    (tmp_path / "chain.pem").write_text(pem)
    return tmp_path


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_anybody_verifies_the_token_with_the_hosts_key(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without joserfc: the signature is over the text of header and claims (RFC 7515), by what `key show` prints."""
    line = ["attest", "verify", str(here / "report.bin"), "--certs", str(here / "chain.pem"), "--ear", "-"]
    assert main([*line, "--nonce", "00" * 8]) == 0
    header, claims, signature = capsys.readouterr().out.strip().split(".")
    assert main(["key", "show", "--jwk"]) == 0
    jwk = json.loads(capsys.readouterr().out)
    shown = attests.host_jwk()
    assert jwk == shown
    assert json.loads(_decoded(header)) == {"alg": "EdDSA", "typ": "JWT", "kid": jwk["kid"]}
    key = Ed25519PublicKey.from_public_bytes(_decoded(jwk["x"]))
    key.verify(_decoded(signature), f"{header}.{claims}".encode())
    with pytest.raises(InvalidSignature):
        key.verify(_decoded(signature), f"{header}.{claims[:-2]}AA".encode())
    document = json.loads(_decoded(claims))
    assert document["submods"]["sev-snp"]["ear.status"] == "affirming"
    assert document["exp"] - document["iat"] == attests.EAR_LIFETIME_S
    now = datetime.datetime.now(datetime.UTC).timestamp()
    assert abs(document["iat"] - now) < 3600


def test_a_refused_report_has_a_result_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "debug.bin").write_bytes(CHIP.sign(snp_report(policy=0xB0000)))
    target = here / "result.jwt"
    policy = here / "policy.toml"
    policy.write_text("format = 1\nrequire-revocation-lists = true\n")
    line = ["attest", "verify", str(here / "debug.bin"), str(here / "missing.bin"), "--certs", str(here / "chain.pem")]
    assert main([*line, "--policy", str(policy), "--ear", str(target), "--ear-profile", "2026-03", "--json"]) == 2
    documents = json.loads(capsys.readouterr().out)
    assert [(item["kind"], item["true"]) for item in documents] == [("sev-snp", True), (None, False)]
    claims = json.loads(_decoded(target.read_text().split(".")[1]))
    part = claims["submods"]["sev-snp"]
    assert part["ear_status"] == "contraindicated"
    assert part["ear_appraisal_policy_ids"][0].startswith("sha256:")
    codes = {item["code"] for item in part["ear_veraison_policy_claims"]["reasons"]}
    assert codes == {"debug", "revocation.unknown"}


def test_what_an_operator_reads(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "debug.bin").write_bytes(CHIP.sign(snp_report(policy=0xB0000, chip=bytes(64))))
    assert main(["attest", "verify", str(here / "debug.bin"), "--certs", str(here / "chain.pem")]) == 1
    shown = capsys.readouterr().out
    for part in (
        "SEV-SNP report: true, and refused by the policy",
        "not as the policy wants\n    the guest may be debugged: its host can read its memory [debug]",
        "revocation\n    not known: no current list",
        "which chip it is (MASK_CHIP_ID)",
        "freshness is not known",
        "debug              yes",
    ):
        assert part in shown
    assert "author-key-digest" not in shown, "what is empty is not shown"
