"""Evidence that others made: each vector verifies, or is refused, as its provenance says; changed bits never pass.

The files are in ``shared/vectors`` beside the project, and not part of it.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.cli.main import main
from casemate.engine.authorities import known_authorities
from casemate.errors import CasemateError, InputError, SpecError
from casemate.evidence import azure, der, gotpm, nitro, snp, tdx, tpm, x509
from casemate.evidence.event_log import parse_event_log, replay, secure_boot
from casemate.evidence.policy import NitroPolicy, Policy, SnpPolicy, TdxPolicy, TpmPolicy, parse_policy
from casemate.evidence.tpm_true import truth_of_pcrs
from casemate.evidence.verdict import Step, Verified
from casemate.evidence.verify import Inputs, verify

VECTORS = Path(__file__).parents[3] / "shared/vectors"
NOW = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC)
THEN = datetime.datetime(2025, 6, 20, tzinfo=datetime.UTC)

pytestmark = pytest.mark.skipif(not VECTORS.is_dir(), reason="shared/vectors is not beside this checkout")


@cache
def vector(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


@cache
def amd() -> tuple[x509.Certificate, ...]:
    return tuple(
        item for path in sorted(VECTORS.glob("snp/ask_ark_*.pem")) for item in x509.parse_many(path.read_bytes())
    )


def judged(data: bytes, *certificates: str, policy: Policy | None = None, **inputs: object) -> Verified:
    given_ = {"moment": NOW, **inputs}
    chain = (*(item for name in certificates for item in x509.parse_many(vector(name))), *amd())
    return verify(data, Inputs(certificates=chain, **given_), policy or Policy())  # type: ignore[arg-type]


def codes(found: Verified) -> set[str]:
    return {reason.code for reason in found.reasons}


# ---- SEV-SNP ---------------------------------------------------------------------------------------------------------

MILAN = ("snp/trustee-test-report.bin", "snp/trustee-test-vcek.der")
DEBUG = ("snp/go-sev-guest-milan-debug.bin", "snp/go-sev-guest-milan-debug.vcek.der")


def test_milan_reports_are_true_and_judged_by_policy() -> None:
    found = judged(vector(DEBUG[0]), DEBUG[1])
    assert found.is_true
    assert codes(found) == {"debug"}
    found = judged(vector(MILAN[0]), MILAN[1])
    assert found.is_true
    assert codes(found) == {"provisional"}
    assert "microcode 206 runs, 115 is committed" in found.reasons[0].message
    assert any("all that has to run" in note for note in found.notes)
    lenient = Policy(sev_snp=SnpPolicy(accept_provisional_firmware=True))
    assert judged(vector(MILAN[0]), MILAN[1], policy=lenient).is_accepted


@pytest.mark.parametrize("name", ["snp/trustee-test-vcek-invalid-legacy.der", "snp/trustee-test-vcek-invalid-new.der"])
def test_forged_vceks_are_refused(name: str) -> None:
    found = judged(vector(MILAN[0]), name)
    assert not found.is_true
    assert {"signature", "chain.signature", "chip", "tcb.microcode"} <= codes(found)


def test_a_turin_vcek_hangs_on_amds_root() -> None:
    from casemate.evidence.chain import chain_faults, order
    from casemate.evidence.snp_true import AMD_ROOTS, signing_key

    leaf = x509.parse(vector("snp/virtee-turin.vcek.der"))
    assert list(chain_faults(order(leaf, amd()), AMD_ROOTS, NOW, what="VCEK")) == []
    key = signing_key(leaf)
    assert (key.product, key.tcb.fmc, key.tcb.microcode, len(key.hardware_id or b"")) == ("Turin", 0, 9, 8)


@pytest.mark.parametrize(
    "bit", [0, 7, 64 * 8, 0x90 * 8 + 3, 0x180 * 8, 0x1A0 * 8 + 1, 0x29F * 8 + 7, 0x2A0 * 8, 0x2E8 * 8]
)
def test_every_signed_bit_counts(bit: int) -> None:
    assert not _flipped_report(bit)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 0x330 * 8 - 1))
def test_any_signed_bit_counts(bit: int) -> None:
    assert not _flipped_report(bit)


def _flipped_report(bit: int) -> bool:
    """Whether a report with one bit flipped is still true. One that is no report any more is not."""
    data = bytearray(vector(MILAN[0]))
    data[bit // 8] ^= 1 << bit % 8
    try:
        return judged(bytes(data), MILAN[1]).is_true
    except InputError:
        return False


def test_unsigned_bits_change_nothing() -> None:
    whole = judged(vector(MILAN[0]), MILAN[1])
    for octet in (0x330, 0x400, 0x49F):
        data = bytearray(vector(MILAN[0]))
        data[octet] ^= 0x55
        assert judged(bytes(data), MILAN[1]) == whole


def test_certificates_out_of_their_time_are_stale_and_not_false() -> None:
    for moment in (
        datetime.datetime(2019, 1, 1, tzinfo=datetime.UTC),
        datetime.datetime(2060, 1, 1, tzinfo=datetime.UTC),
    ):
        found = judged(vector(MILAN[0]), MILAN[1], moment=moment)
        assert not found.is_true
        assert {reason.step for reason in found.reasons} == {Step.STALE, Step.POLICY}


def test_what_is_missing_is_named() -> None:
    leaf = x509.parse(vector(MILAN[1]))
    (reason,) = (
        item
        for item in verify(vector(MILAN[0]), Inputs(certificates=(leaf,), moment=NOW), Policy()).reasons
        if item.code == "chain.root"
    )
    assert "ends at 'SEV-VCEK'; the certificate of its issuer 'SEV-Milan' is missing" in reason.message


def test_verifying_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for any kind, with a cache or without: only `attest fetch` goes to the network."""
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    for which, (name, _) in enumerate(WHOLE):
        assert judged_whole(which, vector(name)).is_true
        main(["attest", "verify", str(VECTORS / name)])


def test_the_right_chain_is_needed() -> None:
    report = vector(MILAN[0])
    assert "certificate" in codes(judged(report))
    leaf = x509.parse(vector(MILAN[1]))
    for names in (("ask_ark_genoa.pem",), ("ask_ark_milan_vlek.pem",), ()):
        chain = [item for name in names for item in x509.parse_many(vector(f"snp/{name}"))]
        found = verify(report, Inputs(certificates=(leaf, *chain), moment=NOW), Policy())
        assert not found.is_true, names


def test_snp_policy() -> None:
    report = snp.parse_report(vector(MILAN[0]))
    free = SnpPolicy(accept_provisional_firmware=True)
    for wanted, code in (
        ({"measurement": (report.measurement.hex(),)}, ""),
        ({"measurement": ("00" * 48,)}, "measurement"),
        ({"host_data": ("11" * 32,)}, "host-data"),
        ({"minimum_tcb": {"microcode": 116}}, "tcb.microcode"),
        ({"minimum_tcb": {"fmc": 0}}, "tcb.fmc"),
        ({"products": ("Genoa",)}, "product"),
        ({"products": ("Milan",)}, ""),
        ({"vmpl": 1}, "vmpl"),
        ({"minimum_guest_svn": report.guest_svn + 1}, "guest-svn"),
        ({"refuse_smt": True}, "smt"),
    ):
        assert codes(
            judged(vector(MILAN[0]), MILAN[1], policy=Policy(sev_snp=msgspec.structs.replace(free, **wanted)))
        ) == ({code} if code else set())


def test_nonce_of_a_report() -> None:
    data = snp.parse_report(vector(MILAN[0])).report_data
    assert "nonce" not in codes(judged(vector(MILAN[0]), MILAN[1], nonce=data))
    found = judged(vector(MILAN[0]), MILAN[1], nonce=b"another")
    assert "nonce" in codes(found)
    assert found.is_true
    assert any("freshness" in note for note in judged(vector(MILAN[0]), MILAN[1]).notes)


def test_layout_of_turin() -> None:
    data = bytearray(vector(MILAN[0]))
    data[0] = 3
    data[0x188:0x18B] = bytes((0x1A, 2, 1))
    data[0x180:0x188] = bytes((9, 1, 2, 3, 0, 0, 0, 7))
    report = snp.parse_report(bytes(data))
    assert report.reported_tcb == snp.Tcb(bootloader=1, tee=2, snp=3, microcode=7, fmc=9)
    assert report.layout == "turin"


# ---- Azure -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["azure/snp-evidence-v1.json", "azure/snp-evidence-genoa.json"])
def test_azure_end_to_end(name: str) -> None:
    found = judged(vector(name))
    assert found.is_accepted
    assert found.claims["product"] in ("Milan", "Genoa")
    nonce = tpm.parse_quote(azure.parse_evidence(vector(name)).quote).nonce
    assert judged(vector(name), nonce=nonce).is_accepted
    assert codes(judged(vector(name), nonce=nonce + b"x")) == {"nonce"}


@pytest.mark.parametrize(
    ("part", "code"), [("runtime", "binding"), ("report", "signature"), ("pcr", "pcrs.digest"), ("quote", "signature")]
)
def test_azure_parts_are_bound_together(part: str, code: str) -> None:
    document = json.loads(vector("azure/snp-evidence-v1.json"))
    report = bytearray(base64.urlsafe_b64decode(document["hcl_report"] + "=="))
    if part == "runtime":
        report[report.index(b"HCLAkPub") + 400] ^= 1  # within the JSON, behind the key's name
    if part == "report":
        report[32 + 0x90] ^= 1
    if part == "pcr":
        document["tpm_quote"]["pcrs"][3] = "00" * 32
    if part == "quote":
        message = bytearray.fromhex(document["tpm_quote"]["message"])
        message[-1] ^= 1
        document["tpm_quote"]["message"] = message.hex()
    document["hcl_report"] = base64.urlsafe_b64encode(report).decode()
    try:
        found = judged(json.dumps(document).encode())
    except InputError:
        assert part == "runtime"
        return
    assert not found.is_true
    assert code in codes(found)


# ---- TDX -------------------------------------------------------------------------------------------------------------

TDX = "tdx/dcap-qvl-tdx-v4.quote"
COLLATERAL = "tdx/dcap-qvl-tdx-v4.collateral.json"


def test_tdx_is_up_to_date_within_its_collaterals_time() -> None:
    found = judged(vector(TDX), collateral=vector(COLLATERAL), moment=THEN)
    assert found.is_accepted
    assert found.claims["tcb-status"] == "UpToDate"
    late = judged(vector(TDX), collateral=vector(COLLATERAL), moment=NOW)
    assert {reason.step for reason in late.reasons} == {Step.STALE}
    assert {reason.message.partition(":")[0] for reason in late.reasons} == {
        *("TCB info", "QE identity", "root CRL", "PCK CRL"),
    }
    assert late.claims["tcb-status"] == "UpToDate", "as it was while the collateral was in its time"


def test_collateral_that_has_run_out_does_not_hide_what_is_false() -> None:
    data = bytearray(vector(TDX))
    data[48 + 140] ^= 1  # MRTD
    found = judged(bytes(data), collateral=vector(COLLATERAL), moment=NOW)
    assert {reason.step for reason in found.reasons} == {Step.STALE, Step.TRUTH}
    before = datetime.datetime(2025, 6, 19, 10, 15, tzinfo=datetime.UTC)
    early = judged(vector(TDX), collateral=vector(COLLATERAL), moment=before)
    assert {reason.message.partition(":")[0] for reason in early.reasons} == {"TCB info", "QE identity"}


def test_collateral_says_of_which_recovery_it_is() -> None:
    found = judged(vector(TDX), collateral=vector(COLLATERAL), moment=THEN)
    assert found.claims["tcb-evaluation"] == 17
    policy = Policy(tdx=TdxPolicy(minimum_tcb_evaluation=18))
    assert codes(judged(vector(TDX), collateral=vector(COLLATERAL), moment=THEN, policy=policy)) == {"tcb-evaluation"}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 632 * 8 - 1))
def test_any_bit_of_a_tdx_body_counts(bit: int) -> None:
    data = bytearray(vector(TDX))
    data[bit // 8] ^= 1 << bit % 8
    try:
        found = judged(bytes(data), collateral=vector(COLLATERAL), moment=THEN)
    except InputError:
        return
    # The header's user data (20 bytes at 28) are signed as well.
    assert not found.is_true


def test_a_debug_guest_is_refused_and_missing_collateral_never_passes() -> None:
    assert codes(judged(vector("tdx/trustee-tdx-debug.quote"))) == {"collateral", "debug"}
    for broken in (b"", b"{}", b"\xff", b"[" * 10000):
        assert not judged(vector(TDX), collateral=broken, moment=THEN).is_true


def test_rtmrs_replay_from_a_ccel() -> None:
    log = vector("tdx/cos-113.ccel-data.bin")
    assert codes(judged(vector("tdx/cos-113.quote"), event_log=log)) == {"collateral"}
    changed = bytearray(log)
    changed[changed.index(hashlib.sha384(b"\0\0\0\0").digest()) + 1] ^= 1
    assert any(
        code.startswith("log.rtmr") for code in codes(judged(vector("tdx/cos-113.quote"), event_log=bytes(changed)))
    )


def test_tdx_policy() -> None:
    quote = tdx.parse_tdx(vector(TDX))
    for wanted, code in (
        (TdxPolicy(mrtd=(quote.mrtd.hex(),)), ""),
        (TdxPolicy(mrtd=("00" * 48,)), "mrtd"),
        (TdxPolicy(rtmr={"1": "00" * 48}), "rtmr1"),
        (TdxPolicy(accepted_tcb=("SWHardeningNeeded",)), "tcb-status"),
    ):
        found = judged(vector(TDX), collateral=vector(COLLATERAL), moment=THEN, policy=Policy(tdx=wanted))
        assert codes(found) == ({code} if code else set())


# ---- TPM -------------------------------------------------------------------------------------------------------------

GCE = "tpm/gce-cos-85-nonce9009.pb"


def test_three_quotes_of_google() -> None:
    """Nobody pinned Google's key: with its certificate believed, everything holds."""
    found = judged(vector(GCE), nonce=bytes.fromhex("9009"))
    assert codes(found) == {"chain.root"}
    anchor = hashlib.sha256(gotpm.parse_gotpm(vector(GCE)).certificate).hexdigest()
    trusting: dict[str, Any] = {"anchors": (anchor,), "moment": datetime.datetime(2021, 6, 1, tzinfo=datetime.UTC)}
    found = judged(vector(GCE), nonce=bytes.fromhex("9009"), **trusting)
    assert {reason.code for reason in found.reasons if reason.step is not Step.STALE} == set()
    assert codes(judged(vector(GCE), nonce=b"\x90\x08", **trusting)) - {"chain.time"} == {"nonce"}


def test_google_vouches_for_its_own_vtpms() -> None:
    """With the authorities that come with Casemate: the root is pinned, the intermediate is found."""
    inputs = Inputs(certificates=known_authorities(), moment=NOW, nonce=bytes.fromhex("9009"))
    found = verify(vector(GCE), inputs, Policy())
    assert found.is_accepted
    assert verify(vector(GCE), msgspec.structs.replace(inputs, nonce=b"x"), Policy()).is_true
    assert found.claims["gce-zone"] == "us-central1-a"
    project = str(found.claims["gce-project"])
    assert verify(vector(GCE), inputs, Policy(tpm=TpmPolicy(gce_projects=("x", project)))).is_accepted
    assert codes(verify(vector(GCE), inputs, Policy(tpm=TpmPolicy(gce_projects=("x",))))) == {"gce-project"}
    strict = verify(vector(GCE), inputs, Policy(require_revocation_lists=True))
    assert codes(strict) == {"revocation.unknown"}, "Google publishes lists for these keys"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 8 * 29602 - 1))
def test_changed_bits_of_an_attestation_never_add_a_claim(bit: int) -> None:
    """Of the whole file: a change is refused, or is in what nothing relies on."""
    data = bytearray(vector(GCE))
    data[bit // 8] ^= 1 << bit % 8
    whole = judged(vector(GCE))
    try:
        found = judged(bytes(data))
    except CasemateError:
        return
    if not codes(found) - codes(whole):
        assert {k: v for k, v in found.claims.items() if "pcr" in k}.items() <= whole.claims.items()


@pytest.mark.parametrize(
    ("name", "banks", "state"),
    [
        ("cos-85-amd-sev", ("sha1", "sha256", "sha384"), True),
        ("debian-10", ("sha1",), True),
        ("rhel8-uefi", ("sha1", "sha256", "sha384"), True),
        ("keylime-secureboot", ("sha256",), True),
        ("ubuntu-2104-no-dbx", ("sha1", "sha256", "sha384"), False),
    ],
)
def test_event_logs(name: str, banks: tuple[str, ...], state: bool) -> None:
    log = parse_event_log(vector(f"tpm/{name}.eventlog"))
    assert log.banks == banks
    assert secure_boot(log) is state
    assert {0, 4, 7} <= replay(log, banks[-1]).keys()


def test_secure_boot_is_not_believed_from_text_beside_a_digest() -> None:
    """The variable's value is changed and its digest kept: the log still replays, and says nothing any more."""
    data = vector("tpm/keylime-secureboot.eventlog")
    log = parse_event_log(data)
    event = next(e for e in log.events if e.register == 7 and "SecureBoot".encode("utf-16-le") in e.data)
    changed = data.replace(event.data, event.data[:-1] + bytes([event.data[-1] ^ 1]), 1)
    forged = parse_event_log(changed)
    assert replay(forged, "sha256") == replay(log, "sha256")
    assert secure_boot(forged) is None


def test_secure_boot_needs_a_quote_that_covers_it() -> None:
    from casemate.evidence.policy_wants import wants_tpm

    log = parse_event_log(vector("tpm/keylime-secureboot.eventlog"))
    policy = TpmPolicy(secure_boot=True)
    pcr7 = replay(log, "sha256")[7]
    assert list(wants_tpm({"sha256": {7: pcr7}}, log, policy)) == []
    for pcrs in ({}, {"sha256": {4: pcr7}}, {"sha1": {7: bytes(20)}}):
        assert [reason.code for reason in wants_tpm(pcrs, log, policy)] == ["secure-boot"]
    assert [reason.code for reason in wants_tpm({"sha256": {7: pcr7}}, None, policy)] == ["secure-boot"]


def test_a_quote_over_no_register_is_worth_nothing() -> None:
    quote = tpm.parse_quote(azure.parse_evidence(vector("azure/snp-evidence-v1.json")).quote)
    empty = msgspec.structs.replace(quote, selected=(), digest=hashlib.sha256(b"").digest())
    assert [reason.code for reason in truth_of_pcrs(empty, {}, "sha256")] == ["pcrs.none"]


# ---- Nitro -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nitro/evervault-valid.bin", "nitro/sp2.bin"])
def test_nitro_documents(name: str) -> None:
    found = judged(vector(name), moment=None)
    assert found.is_accepted
    assert {reason.step for reason in judged(vector(name)).reasons} == {Step.STALE}
    document = nitro.parse_document(vector(name))
    assert judged(vector(name), moment=None, nonce=document.nonce).is_accepted
    assert codes(judged(vector(name), moment=None, nonce=b"other")) == {"nonce"}
    zeros = Policy(nitro=NitroPolicy(pcrs={"0": "00" * 48}))
    assert codes(judged(vector(name), moment=None, policy=zeros)) == {"pcr0"}


def test_a_debug_enclave_is_refused() -> None:
    from casemate.evidence.policy_wants import wants_nitro

    document = nitro.parse_document(vector("nitro/sp2.bin"))
    debug = msgspec.structs.replace(document, pcrs={**document.pcrs, 0: bytes(48)})
    assert [reason.code for reason in wants_nitro(debug, NitroPolicy())] == ["debug"]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 8 * 4766 - 1))
def test_any_bit_of_a_nitro_document_counts(bit: int) -> None:
    data = bytearray(vector("nitro/sp2.bin"))
    data[bit // 8] ^= 1 << bit % 8
    try:
        found = judged(bytes(data), moment=None)
    except InputError:
        return
    # The unprotected header is an empty map here: there is nothing unsigned to flip.
    assert not found.is_true


# ---- hostile input, policies, the command --------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([MILAN[0], TDX, GCE, "nitro/sp2.bin", "azure/snp-evidence-v1.json"]), st.data())
def test_damaged_evidence_never_crashes(name: str, data: st.DataObject) -> None:
    whole = vector(name)
    cut = data.draw(st.integers(0, len(whole)))
    noise = data.draw(st.binary(max_size=40))
    try:
        found = judged(whole[:cut] + noise + whole[cut + len(noise) :][: data.draw(st.integers(0, len(whole)))])
    except CasemateError:
        return
    assert isinstance(found, Verified)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_readers_refuse_noise(data: bytes) -> None:
    readers = (
        x509.parse,
        x509.parse_many,
        snp.parse_report,
        tdx.parse_tdx,
        tpm.parse_quote,
        tpm.parse_signature,
        tpm.parse_public_key,
        nitro.parse_document,
        azure.parse_evidence,
        azure.parse_hcl,
        gotpm.parse_gotpm,
        parse_event_log,
    )
    for reader in readers:
        try:
            reader(data)
        except CasemateError:
            continue


def test_der_is_strict() -> None:
    for data in (
        b"",
        b"\x30",
        b"\x30\x80\0\0",
        b"\x30\x81\x05hello",
        b"\x30\x82\0\x05hello",
        b"\x1f\x01\0",
        b"\x30\x05hi",
    ):
        with pytest.raises(InputError):
            der.whole(data, der.SEQUENCE)
    with pytest.raises(InputError, match="behind"):
        der.whole(b"\x30\x00\x00", der.SEQUENCE)
    for body in (b"", b"\xff", b"\x00\x01"):
        with pytest.raises(InputError):
            der.integer(body)


def test_policies_are_closed() -> None:
    assert parse_policy("format = 1\n", "x") == Policy()
    with pytest.raises(InputError):
        parse_policy("format = 1\n[sev-snp]\ndebug = true\n", "x")
    text = (
        'format = 2\n[sev-snp]\nmeasurement = ["ABC"]\nminimum-tcb = { microcod = 1 }\n[tdx]\nrtmr = { 4 = "00" }\n'
        '[tpm.pcrs.sha3]\n0 = "00"\n[nitro]\npcrs = { x = "00" }\n'
    )
    with pytest.raises(SpecError) as caught:
        parse_policy(text, "x")
    assert {fault.path for fault in caught.value.faults} >= {
        *(
            "format",
            "sev-snp.measurement",
            "sev-snp.minimum-tcb.microcod",
            "tdx.rtmr.4",
            "tpm.pcrs.sha3",
            "nitro.pcrs.x",
        ),
    }


def test_the_guide_has_every_word_of_a_policy() -> None:
    guide = (Path(__file__).parents[2] / "docs/attest.md").read_text()
    policy = Policy()
    for section in msgspec.structs.fields(Policy):
        value = getattr(policy, section.name)
        names = (
            [field.encode_name for field in msgspec.structs.fields(value)] if isinstance(value, msgspec.Struct) else []
        )
        for name in names or [section.encode_name]:
            assert name in guide, f"{section.encode_name}: {name}"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, vcek = str(VECTORS / MILAN[0]), str(VECTORS / MILAN[1])
    chain = str(VECTORS / "snp/ask_ark_milan.pem")
    assert main(["attest", "verify", report, "--certs", vcek, "--certs", chain]) == 1
    shown = capsys.readouterr().out
    assert "true, and refused by the policy" in shown
    assert "provisional" in shown
    policy = tmp_path / "policy.toml"
    policy.write_text("format = 1\n[sev-snp]\naccept-provisional-firmware = true\n")
    line = ["attest", "verify", report, "--certs", vcek, "--certs", chain, "--policy", str(policy)]
    assert main(line) == 0
    capsys.readouterr()
    assert main([*line, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["true"], document["accepted"]) == ("casemate.attest/1", True, True)
    assert main(["attest", "verify", str(VECTORS / "nitro/sp2.bin"), "--at", "document"]) == 0
    assert main(["attest", "verify", str(VECTORS / "nitro/sp2.bin")]) == 1
    assert main(["attest", "verify", str(policy)]) == 2
    assert main(["attest", "verify", report, "--nonce", "xyz"]) == 2
    assert main(["attest", "verify", report, "--at", "yesterday"]) == 2
    assert main(["attest", "verify", report, "--certs", vcek, "--certs", chain, "--at", "document"]) == 2


# ---- every vector, every bit -----------------------------------------------------------------------------------------

WHOLE: tuple[tuple[str, dict[str, Any]], ...] = (
    (DEBUG[0], {"certificates": DEBUG[1:]}),
    (MILAN[0], {"certificates": MILAN[1:]}),
    ("azure/snp-evidence-v1.json", {}),
    ("azure/snp-evidence-genoa.json", {}),
    (TDX, {"collateral": COLLATERAL, "moment": THEN}),
    ("nitro/sp2.bin", {"moment": None}),
    ("nitro/evervault-valid.bin", {"moment": None}),
    (GCE, {}),
)


def judged_whole(which: int, data: bytes) -> Verified:
    """One of `WHOLE`, or what became of it, with what belongs to it and the authorities that come with Casemate."""
    _, given_ = WHOLE[which]
    names = given_.get("certificates", ())
    leaf = tuple(item for name in names for item in x509.parse_many(vector(name)))
    collateral = vector(str(given_["collateral"])) if "collateral" in given_ else None
    moment: Any = given_.get("moment", NOW)
    inputs = Inputs(certificates=(*leaf, *known_authorities()), collateral=collateral, moment=moment)
    return verify(data, inputs, Policy())


@cache
def claimed(which: int) -> tuple[bool, dict[str, Any]]:
    found = judged_whole(which, vector(WHOLE[which][0]))
    return found.is_true, dict(found.claims)


def test_every_vector_is_true() -> None:
    assert all(claimed(which)[0] for which in range(len(WHOLE)))


@settings(max_examples=800, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_no_flipped_bit_makes_evidence_say_something_else(which: int, place: float, bit: int) -> None:
    """Anywhere in a file: it is not true any more, or the bit is of no consequence. What a log says beside its digests
    may be lost, never gained."""
    data = bytearray(vector(WHOLE[which][0]))
    data[int(place * len(data))] ^= 1 << bit
    try:
        found = judged_whole(which, bytes(data))
    except CasemateError:
        return
    if found.is_true:
        lost = {"secure-boot"} if found.claims.get("secure-boot") == "unknown" else set()
        _, whole = claimed(which)
        assert {name: value for name, value in found.claims.items() if name not in lost}.items() <= whole.items()
