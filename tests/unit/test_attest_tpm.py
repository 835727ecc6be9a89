"""Quotes of TPMs, Azure's binding to them, NitroTPM: what no real file shows, with keys of ours."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tests.support.evidence_makers import (
    ATTESTING,
    SEPARATOR,
    Authority,
    Chip,
    Hypervisor,
    Tpm,
    event_log,
    secure_boot_event,
    snp_report,
    weak_rsa_key,
)
from tests.support.tdx_makers import Platform

from casemate.cli.main import main
from casemate.errors import InputError
from casemate.evidence import nitro_true, snp_true, verify_nitro, verify_snp
from casemate.evidence.event_log import parse_event_log, replay, secure_boot
from casemate.evidence.policy import NitroPolicy, Policy, TpmPolicy
from casemate.evidence.verdict import Revocation, Step, Verified
from casemate.evidence.verify import Inputs, verify

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
KEY = Tpm()
VALUES = {0: b"\0" * 32, 7: b"\7" * 32, 11: b"\x0b" * 32}


def json_evidence(
    tpm: Tpm, pcrs: dict[str, dict[int, bytes]], *, nonce: bytes = b"fresh", key: bytes | None = None, **more: Any
) -> bytes:
    message = tpm.quote(pcrs, nonce)
    document = {
        "ak_public": base64.b64encode(key or tpm.public_area()).decode(),
        "tpm_quote": {
            "message": base64.b64encode(message).decode(),
            "signature": base64.b64encode(tpm.sign(message)).decode(),
            "pcrs": {
                bank: {str(number): value.hex() for number, value in values.items()} for bank, values in pcrs.items()
            },
        },
        **more,
    }
    return json.dumps(document).encode()


def judged(data: bytes, tpm: Tpm = KEY, policy: Policy | None = None, **inputs: Any) -> Verified:
    known = hashlib.sha256(tpm.spki()).hexdigest()
    given = Inputs(**{"moment": NOW, "keys": (known,), "nonce": b"fresh", **inputs})
    return verify(data, given, policy or Policy())


def codes(found: Verified) -> set[str]:
    return {reason.code for reason in found.reasons}


@pytest.mark.parametrize("scheme", ["rsa", "rsa-pss", "ecdsa"])
@pytest.mark.parametrize("hash_name", ["sha256", "sha384", "sha512"])
def test_every_scheme_and_hash(scheme: str, hash_name: str) -> None:
    tpm = Tpm(scheme, hash_name)
    assert judged(json_evidence(tpm, {"sha256": VALUES}), tpm).reasons == ()


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512"])
def test_every_bank(bank: str) -> None:
    size = hashlib.new(bank).digest_size
    values = {bank: {3: b"\3" * size, 23: b"\4" * size}}
    found = judged(json_evidence(KEY, values))
    assert found.reasons == ()
    assert found.claims[f"{bank}-pcr23"] == "04" * size


def test_several_banks_in_one_quote() -> None:
    values = {"sha384": {1: b"\1" * 48}, "sha256": VALUES}
    assert judged(json_evidence(KEY, values)).reasons == ()
    assert codes(judged(json_evidence(KEY, values), nonce=b"other")) == {"nonce"}


def test_a_signature_over_sha1_is_refused() -> None:
    tpm = Tpm("rsa", "sha1")
    assert codes(judged(json_evidence(tpm, {"sha256": VALUES}), tpm)) == {"signature.sha1"}


def test_a_key_that_nobody_knows() -> None:
    found = judged(json_evidence(KEY, {"sha256": VALUES}), keys=())
    assert codes(found) == {"key.unknown"}
    assert str(found.claims["attestation-key"]) in found.reasons[0].message


@pytest.mark.parametrize(
    "attributes",
    [ATTESTING & ~(1 << bit) for bit in (1, 4, 5, 16, 18)] + [ATTESTING | 1 << 17],
)
def test_a_key_that_would_sign_anything_attests_nothing(attributes: int) -> None:
    """An unrestricted key signs a quote that no TPM ever made; one that is not fixed may be in anybody's hands."""
    tpm = Tpm(attributes=attributes)
    assert codes(judged(json_evidence(tpm, {"sha256": VALUES}), tpm)) == {"key.attributes"}


def test_a_key_that_others_may_have_computed_attests_nothing() -> None:
    tpm = Tpm(key=weak_rsa_key())
    for key in (tpm.public_area(), tpm.spki()):
        assert codes(judged(json_evidence(tpm, {"sha256": VALUES}, key=key), tpm)) == {"key.weak"}


def test_a_bare_key_is_taken_at_the_callers_word() -> None:
    found = judged(json_evidence(KEY, {"sha256": VALUES}, key=KEY.spki()))
    assert found.reasons == ()


def test_a_certificate_of_the_key() -> None:
    root = Authority("maker")
    leaf = Authority("AK", root, is_authority=False, key=KEY.key, list_url="https://lists.invalid/ak")
    pem = base64.b64encode(leaf.der).decode()
    text = f"-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n"
    evidence = json_evidence(KEY, {"sha256": VALUES}, ak_certificate=text)
    inputs: dict[str, Any] = {"keys": (), "anchors": (root.digest,), "certificates": (root.certificate,)}
    found = judged(evidence, **inputs)
    assert (found.reasons, found.revocation) == ((), Revocation.UNKNOWN)
    assert codes(judged(evidence, **{**inputs, "anchors": ()})) == {"chain.root"}
    assert codes(judged(evidence, **inputs, revocations=(root.list_of(leaf),))) == {"revoked"}
    assert judged(evidence, **inputs, revocations=(root.list_of(),)).revocation is Revocation.CHECKED
    other = json_evidence(Tpm(), {"sha256": VALUES}, ak_certificate=text)
    assert codes(judged(other, **inputs)) == {"key"}
    useless = Authority("EK", root, is_authority=False, key=KEY.key, usage="key_encipherment")
    pem = base64.b64encode(useless.der).decode()
    text = f"-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n"
    evidence = json_evidence(KEY, {"sha256": VALUES}, ak_certificate=text)
    assert codes(judged(evidence, **inputs)) == {"chain.usage"}


def test_values_that_are_not_the_quoted_ones() -> None:
    evidence = json.loads(json_evidence(KEY, {"sha256": VALUES}))
    evidence["tpm_quote"]["pcrs"]["sha256"]["7"] = "00" * 32
    assert codes(judged(json.dumps(evidence).encode())) == {"pcrs.digest"}
    evidence["tpm_quote"]["pcrs"]["sha256"]["7"] = VALUES[7].hex()
    evidence["tpm_quote"]["pcrs"]["sha256"]["8"] = "00" * 32
    assert codes(judged(json.dumps(evidence).encode())) == {"pcrs.sha256.8"}
    del evidence["tpm_quote"]["pcrs"]["sha256"]["8"], evidence["tpm_quote"]["pcrs"]["sha256"]["11"]
    assert codes(judged(json.dumps(evidence).encode())) == {"pcrs.missing"}


def test_every_bit_of_a_quote_and_its_signature() -> None:
    whole = json.loads(json_evidence(KEY, {"sha256": VALUES}))
    for part in ("message", "signature"):
        octets = base64.b64decode(whole["tpm_quote"][part])
        for bit in range(8 * len(octets)):
            changed = bytearray(octets)
            changed[bit // 8] ^= 1 << bit % 8
            document = {**whole, "tpm_quote": {**whole["tpm_quote"], part: base64.b64encode(changed).decode()}}
            try:
                assert not judged(json.dumps(document).encode()).is_true, (part, bit)
            except InputError:
                continue


def secure_boot_log(
    value: int, banks: tuple[str, ...] = ("sha256",), later: tuple[tuple[int, int, bytes], ...] = ()
) -> tuple[bytes, dict[str, dict[int, bytes]]]:
    """A log, and the PCR 7 that it replays to."""
    events = [secure_boot_event(value), SEPARATOR, *later]
    values = {}
    for bank in banks:
        register = bytes(hashlib.new(bank).digest_size)
        for _, _, data in events:
            register = hashlib.new(bank, register + hashlib.new(bank, data).digest()).digest()
        values[bank] = {7: register}
    return event_log(events, banks), values


def _extended(bank: str, data: bytes) -> bytes:
    digest = hashlib.new(bank, data).digest()
    return hashlib.new(bank, bytes(len(digest)) + digest).digest()


def test_secure_boot_by_a_log_that_the_quote_covers() -> None:
    policy = Policy(tpm=TpmPolicy(secure_boot=True))
    log, values = secure_boot_log(1)
    found = judged(json_evidence(KEY, values, event_log=base64.b64encode(log).decode()), policy=policy)
    assert (found.reasons, found.claims["secure-boot"]) == ((), True)
    log, off = secure_boot_log(0)
    found = judged(json_evidence(KEY, off, event_log=base64.b64encode(log).decode()), policy=policy)
    assert codes(found) == {"secure-boot"}
    assert codes(judged(json_evidence(KEY, values), event_log=log)) == {"log.sha256.7"}


def test_who_runs_after_the_firmware_cannot_turn_secure_boot_on() -> None:
    """The same words, extended into the same register after the hand-over, by a system that was started without it; and
    with whatever types and digests of banks that no quote covers its log may have."""
    policy = Policy(tpm=TpmPolicy(secure_boot=True))
    log, values = secure_boot_log(0, later=(secure_boot_event(1),))
    found = judged(json_evidence(KEY, values, event_log=base64.b64encode(log).decode()), policy=policy)
    assert codes(found) == {"secure-boot"}
    assert found.claims["secure-boot"] is False
    separator = struct.pack("<II", 7, 4)
    hidden = log.replace(separator, struct.pack("<II", 7, 0x80000001), 1)
    hidden = hidden.replace(struct.pack("<II", 7, 0x80000001), struct.pack("<II", 7, 5), 1)
    assert hidden != log
    found = judged(json_evidence(KEY, values, event_log=base64.b64encode(hidden).decode()), policy=policy)
    assert found.is_true
    assert found.claims["secure-boot"] == "unknown"
    both = ("sha256", "sha1")
    log, values = secure_boot_log(0, both, later=(secure_boot_event(1),))
    off = hashlib.sha1(secure_boot_event(0)[2], usedforsecurity=False).digest()
    zeros = hashlib.sha1(bytes(4), usedforsecurity=False).digest()
    for changed in (log.replace(off, bytes(20)), log.replace(off, bytes(20)).replace(zeros, bytes(20))):
        quoted = {"sha256": values["sha256"]}
        found = judged(json_evidence(KEY, quoted, event_log=base64.b64encode(changed).decode()), policy=policy)
        assert found.is_true
        assert found.claims["secure-boot"] == "unknown"


def test_logs_that_contradict_themselves_say_nothing_of_secure_boot() -> None:
    for events in (
        [secure_boot_event(1), secure_boot_event(0), SEPARATOR],
        [secure_boot_event(1)],
        [SEPARATOR, secure_boot_event(1)],
        [(4, 0x80000001, secure_boot_event(1)[2]), SEPARATOR],
        [(7, 0x80000001, bytes(16) + secure_boot_event(1)[2][16:]), SEPARATOR],
    ):
        assert secure_boot(parse_event_log(event_log(events))) is None
    assert secure_boot(parse_event_log(event_log([secure_boot_event(1), (7, 5, b"x"), SEPARATOR]))) is True


def test_sha1_alone_proves_no_secure_boot() -> None:
    log, values = secure_boot_log(1, ("sha1",))
    evidence = json_evidence(KEY, values, event_log=base64.b64encode(log).decode())
    assert codes(judged(evidence, policy=Policy(tpm=TpmPolicy(secure_boot=True)))) == {"secure-boot"}


# ---- files as tpm2-tools write them ----------------------------------------------------------------------------------


def serialized(pcrs: dict[str, dict[int, bytes]]) -> bytes:
    """What tpm2_quote -o writes: the tool's C structures."""
    digests = [value for values in pcrs.values() for _, value in sorted(values.items())]
    lists = [digests[index : index + 8] for index in range(0, len(digests), 8)]
    data = bytes(132) + struct.pack("<I", len(lists))
    for items in lists:
        filled = b"".join(struct.pack("<H", len(item)) + item.ljust(64, b"\0") for item in items)
        data += struct.pack("<I", len(items)) + filled.ljust(8 * 66, b"\0")
    return data


@pytest.mark.parametrize("scheme", ["rsa", "ecdsa"])
def test_a_quote_in_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], scheme: str) -> None:
    tpm = Tpm(scheme)
    pcrs = {"sha256": {number: bytes([number]) * 32 for number in range(11)}, "sha1": {4: b"\4" * 20}}
    message = tpm.quote(pcrs, b"fresh")
    for name, data in (
        ("quote.msg", message),
        ("quote.sig", tpm.sign(message)),
        ("quote.pcrs", serialized(pcrs)),
        ("plain.pcrs", b"".join(value for values in pcrs.values() for _, value in sorted(values.items()))),
        ("ak.pub", tpm.public_area()),
        ("other.pub", Tpm().public_area()),
    ):
        (tmp_path / name).write_bytes(data)
    pem = base64.encodebytes(tpm.spki()).decode()
    (tmp_path / "ak.pem").write_text(f"-----BEGIN PUBLIC KEY-----\n{pem}-----END PUBLIC KEY-----\n")

    def run(*more: str) -> int:
        return main(
            ["attest", "verify", str(tmp_path / "quote.msg"), *(str(tmp_path / m) if "." in m else m for m in more)]
        )

    common = ["--signature", "quote.sig", "--nonce", b"fresh".hex()]
    for values in ("quote.pcrs", "plain.pcrs"):
        for key in ("ak.pub", "ak.pem"):
            assert run(*common, "--pcrs", values, "--trust", "other.pub", "--trust", key) == 0
    assert run(*common, "--pcrs", "quote.pcrs", "--trust", "other.pub") == 1
    assert "[signature]" in capsys.readouterr().out
    assert run(*common, "--trust", "ak.pub") == 1
    assert "[pcrs.missing]" in capsys.readouterr().out
    assert run("--trust", "ak.pub") == 2
    assert run("--signature", "quote.sig") == 2
    (tmp_path / "quote.pcrs").write_bytes(serialized({"sha256": pcrs["sha256"]}))
    assert run(*common, "--pcrs", "quote.pcrs", "--trust", "ak.pub") == 2


@pytest.mark.parametrize("bank", ["sha1", "sha256"])
def test_a_log_claims_nothing_of_secure_boot_that_no_quote_covers(bank: str) -> None:
    """A quote without PCR 7, or over SHA-1 alone: whatever log somebody wrote, nothing contradicts it."""
    log = event_log([(0, 8, b"firmware"), secure_boot_event(1), SEPARATOR], (bank,))
    values = replay(parse_event_log(log), bank)
    covered, other = {bank: values}, {bank: {0: values[0]}}
    for pcrs, said in ((covered, True if bank == "sha256" else "unknown"), (other, "unknown")):
        found = judged(json_evidence(KEY, pcrs), event_log=log)
        assert (found.reasons, found.claims["secure-boot"]) == ((), said)


@pytest.mark.parametrize(
    ("tpm", "fault"), [(Tpm("rsa", "sha1"), "signature.sha1"), (Tpm(key=weak_rsa_key()), "key.weak")]
)
def test_of_several_keys_the_verdict_is_about_the_one_that_signed(tpm: Tpm, fault: str) -> None:
    message = tpm.quote({"sha256": VALUES}, b"fresh")
    keys = (KEY.public_area(), tpm.public_area())
    pcrs = b"".join(value for _, value in sorted(VALUES.items()))
    found = judged(message, tpm, signature=tpm.sign(message), public_keys=keys, pcrs=pcrs)
    assert codes(found) == {fault}


def test_a_log_in_the_place_of_the_values() -> None:
    log, values = secure_boot_log(1)
    quoted = {"sha256": {**values["sha256"], 14: bytes(32)}}
    message = KEY.quote(quoted, b"fresh")
    given: dict[str, Any] = {"signature": KEY.sign(message), "public_keys": (KEY.public_area(),), "event_log": log}
    found = judged(message, **given)
    assert (found.reasons, found.claims["secure-boot"]) == ((), True)
    other = KEY.quote({"sha256": {7: b"\1" * 32}}, b"fresh")
    assert codes(judged(other, **{**given, "signature": KEY.sign(other)})) == {"pcrs.digest"}


def test_logs_with_hashes_that_no_quote_is_over() -> None:
    log = event_log([(4, 4, b"\0\0\0\0")], ("sha256", "sha3_256"))
    assert verify(log, Inputs(moment=NOW), Policy()).claims["sha256-pcr4"] == _extended("sha256", bytes(4)).hex()
    with pytest.raises(InputError, match="hash that is not known"):
        verify(log.replace(struct.pack("<HH", 0x27, 32), struct.pack("<HH", 0x99, 32)), Inputs(), Policy())


def test_a_log_alone_is_never_true() -> None:
    log, values = secure_boot_log(1)
    found = verify(log + b"\xff" * 64, Inputs(moment=NOW), Policy())
    assert codes(found) == {"log.unquoted"}
    assert (found.is_true, found.claims["secure-boot"]) == (False, True)
    assert found.claims["sha256-pcr7"] == values["sha256"][7].hex()
    for cut in (len(log) - 1, len(log) - 40):
        with pytest.raises(InputError):
            verify(log[:cut], Inputs(moment=NOW), Policy())
    with pytest.raises(InputError):
        verify(log + b"\xff" * 7, Inputs(moment=NOW), Policy())


def test_evidence_as_text() -> None:
    evidence = json_evidence(KEY, {"sha256": VALUES})
    log = event_log([(4, 4, b"\0\0\0\0")])
    whole = verify(log, Inputs(), Policy())
    for text in (
        log.hex().encode(),
        b"0x" + log.hex().upper().encode() + b"\n",
        base64.encodebytes(log),
        base64.urlsafe_b64encode(log).rstrip(b"="),
    ):
        assert verify(text, Inputs(), Policy()) == whole
    assert judged(base64.b64encode(evidence)).is_accepted
    with pytest.raises(InputError, match="no known kind"):
        verify(b"deadbeef" * 20, Inputs(), Policy())


def test_an_sgx_quote_is_called_by_its_name() -> None:
    quote = b"\3\0" + bytes(10) + bytes.fromhex("939a7233f79c4ca9940a0db3957f0607") + bytes(600)
    with pytest.raises(InputError, match="SGX enclave"):
        verify(quote, Inputs(moment=NOW), Policy())


# ---- Azure -----------------------------------------------------------------------------------------------------------


def _runtime(tpm: Tpm, user_data: bytes) -> bytes:
    """What the paravisor hands to the hardware: the vTPM's key among it."""
    numbers = tpm.key.public_key().public_numbers()

    def url(value: int, size: int) -> str:
        return base64.urlsafe_b64encode(value.to_bytes(size, "big")).decode().rstrip("=")

    key = {"kid": "HCLAkPub", "kty": "RSA", "n": url(numbers.n, 256), "e": url(numbers.e, 3)}
    settings = {"secure-boot": True, "console-enabled": False}
    user = user_data.ljust(64, b"\0").hex()
    return json.dumps({"keys": [key], "vm-configuration": settings, "user-data": user}).encode()


def _hcl(kind: int, hardware: bytes, runtime: bytes) -> str:
    header = struct.pack("<5I", 20 + len(runtime), 1, kind, 1, len(runtime))
    return base64.urlsafe_b64encode(b"HCLA" + bytes(28) + hardware.ljust(1184, b"\0") + header + runtime).decode()


def _vtpm_quote(tpm: Tpm, nonce: bytes) -> dict[str, Any]:
    values = [VALUES.get(number, bytes(32)) for number in range(24)]
    message = tpm.quote({"sha256": dict(enumerate(values))}, nonce)
    pcrs = [value.hex() for value in values]
    return {"message": message.hex(), "signature": tpm.sign(message)[6:].hex(), "pcrs": pcrs}


def azure_evidence(chip: Chip, tpm: Tpm, *, user_data: bytes = b"", version: int = 2, nonce: bytes = b"fresh") -> bytes:
    runtime = _runtime(tpm, user_data)
    report = chip.sign(snp_report(fields=((0x50, hashlib.sha256(runtime).digest()),)))
    document = {
        "version": version,
        "hcl_report": _hcl(2, report, runtime),
        "vcek": base64.urlsafe_b64encode(chip.leaf.der).decode(),
        "tpm_quote": _vtpm_quote(tpm, nonce),
    }
    return json.dumps(document).encode()


def test_azure_on_tdx(monkeypatch: pytest.MonkeyPatch) -> None:
    """TD quote, TD report, runtime data, vTPM: each vouches for the next, and none can be of another machine."""
    import dcap_qvl

    machine, verify_at = Platform(), dcap_qvl.verify_with_root_ca
    monkeypatch.setattr(dcap_qvl, "verify", lambda quote, data, now: verify_at(quote, data, machine.root.der, now))
    begin, end = NOW - datetime.timedelta(days=1), NOW + datetime.timedelta(days=1)
    given: dict[str, Any] = {"collateral": machine.collateral([(5, "UpToDate", [])], begin=begin, end=end)}
    runtime = _runtime(KEY, b"fresh")
    bound = hashlib.sha256(runtime).digest()

    def evidence(*, of_report: bytes = bound, of_quote: bytes = bound, tpm: Tpm = KEY) -> bytes:
        hcl = _hcl(4, bytes(128) + of_report.ljust(64, b"\0"), runtime)
        td_quote = base64.urlsafe_b64encode(machine.quote(report_data=of_quote)).decode()
        quote = _vtpm_quote(tpm, b"fresh")
        return json.dumps({"version": 2, "hcl_report": hcl, "td_quote": td_quote, "tpm_quote": quote}).encode()

    found = judged(evidence(), **given)
    assert (found.kind, found.reasons, found.revocation) == ("azure-tdx", (), Revocation.CHECKED)
    assert (found.claims["tcb-status"], found.claims["vm-secure-boot"]) == ("UpToDate", True)
    assert codes(judged(evidence(), **given, nonce=b"other")) == {"nonce", "nonce.user-data"}
    assert codes(judged(evidence(of_report=b"x" * 32), **given)) == {"binding.tdreport"}
    assert codes(judged(evidence(of_quote=b"x" * 32), **given)) == {"binding", "binding.tdreport"}
    assert codes(judged(evidence(of_report=b"x" * 32, of_quote=b"x" * 32), **given)) == {"binding"}
    assert codes(judged(evidence(tpm=Tpm()), **given)) == {"signature"}
    assert codes(judged(evidence())) == {"collateral"}


def test_azures_user_data_repeat_the_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = Chip()
    for module in (snp_true, verify_snp):
        monkeypatch.setattr(module, "AMD_ROOTS", {chip.root.digest: "Milan"})
    given: dict[str, Any] = {"certificates": chip.certificates[1:]}
    found = judged(azure_evidence(chip, KEY, user_data=b"fresh"), **given)
    assert found.reasons == ()
    assert (found.kind, found.claims["vm-secure-boot"], found.claims["vm-console-enabled"]) == (
        "azure-snp",
        True,
        False,
    )
    assert codes(judged(azure_evidence(chip, KEY), **given)) == {"nonce.user-data"}
    assert codes(judged(azure_evidence(chip, KEY, version=1), **given)) == set()
    assert codes(judged(azure_evidence(chip, KEY, user_data=b"fresh", nonce=b"old"), **given)) == {"nonce"}
    swapped = json.loads(azure_evidence(chip, KEY, user_data=b"fresh"))
    swapped["tpm_quote"] = json.loads(azure_evidence(chip, Tpm(), user_data=b"fresh"))["tpm_quote"]
    assert codes(judged(json.dumps(swapped).encode(), **given)) == {"signature"}


# ---- Nitro -----------------------------------------------------------------------------------------------------------

AWS = Hypervisor()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Hypervisor:
    for module in (nitro_true, verify_nitro):
        monkeypatch.setattr(module, "AWS_ROOTS", frozenset({AWS.root.digest}))
    return AWS


def test_nitro_tpm(aws: Hypervisor) -> None:
    document = aws.document(NOW, pcrs=None, nitrotpm_pcrs={number: bytes([number + 1]) * 48 for number in range(24)})
    found = judged(document, nonce=b"nonce")
    assert (found.kind, found.reasons, found.claims["pcr7"]) == ("nitro-tpm", (), "08" * 48)
    wanted = Policy(nitro=NitroPolicy(pcrs={"7": "00" * 48}))
    assert codes(judged(document, nonce=b"nonce", policy=wanted)) == {"pcr7"}
    for fields in (
        {"nitrotpm_pcrs": {24: b"\1" * 48}, "pcrs": None},
        {"nitrotpm_pcrs": {0: b"\1" * 48}},
        {"pcrs": None},
        {"pcrs": {0: b"\1" * 32}},
        {"digest": "SHA256"},
    ):
        with pytest.raises(InputError):
            judged(aws.document(NOW, **fields))


def test_a_debug_enclave_is_refused_and_old_documents_are_stale(aws: Hypervisor) -> None:
    assert codes(judged(aws.document(NOW, pcrs={0: bytes(48)}), nonce=b"nonce")) == {"debug"}
    late = judged(aws.document(NOW), nonce=b"nonce", moment=datetime.datetime(2041, 1, 1, tzinfo=datetime.UTC))
    assert {reason.step for reason in late.reasons} == {Step.STALE}


def test_nitro_revocation(aws: Hypervisor) -> None:
    document = aws.document(NOW)
    assert judged(document, nonce=b"nonce").revocation is Revocation.UNKNOWN
    checked = judged(document, nonce=b"nonce", revocations=(aws.root.list_of(),))
    assert (checked.revocation, checked.reasons) == (Revocation.CHECKED, ())
    assert codes(judged(document, nonce=b"nonce", revocations=(aws.root.list_of(aws.middle),))) == {"revoked"}


def test_who_signed_a_nitro_document(aws: Hypervisor) -> None:
    other = Hypervisor()
    assert codes(judged(other.document(NOW), nonce=b"nonce")) == {"chain.root"}
    mixed = other.document(NOW, certificate=aws.leaf.der, cabundle=[aws.root.der, aws.middle.der])
    assert codes(judged(mixed, nonce=b"nonce")) == {"signature"}
    as_leaf = Hypervisor()
    as_leaf.leaf = Authority("zonal", aws.middle)
    assert "chain.leaf" in codes(judged(as_leaf.document(NOW, cabundle=[aws.root.der, aws.middle.der]), nonce=b"nonce"))
