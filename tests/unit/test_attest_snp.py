"""SEV-SNP beyond what real files show: Turin, VLEK, version 5, masked chips, ID blocks, extended reports; our keys."""

from __future__ import annotations

import datetime
import struct
from typing import Any

import msgspec
import pytest
from tests.support.evidence_makers import CHIP, TCB, Authority, Chip, snp_report

from casemate.errors import InputError
from casemate.evidence import snp, snp_true, verify_snp
from casemate.evidence.policy import Policy, SnpPolicy
from casemate.evidence.verdict import Revocation, Step, Verified
from casemate.evidence.verify import Inputs, verify

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
TURIN = {"fmc": 2, **TCB}
MILAN = Chip()


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pin a chip's root in the place of AMD's."""

    def pin(chip: Chip, product: str = "Milan") -> Chip:
        for module in (snp_true, verify_snp):
            monkeypatch.setattr(module, "AMD_ROOTS", {chip.root.digest: product})
        return chip

    return pin


def judged(report: bytes, chip: Chip, policy: SnpPolicy | None = None, **inputs: Any) -> Verified:
    given = Inputs(**{"certificates": chip.certificates, "moment": NOW, **inputs})
    return verify(report, given, Policy(sev_snp=policy or SnpPolicy()))


def codes(found: Verified) -> set[str]:
    return {reason.code for reason in found.reasons}


def test_nobody_but_a_test_believes_our_chips() -> None:
    assert codes(judged(MILAN.sign(snp_report()), MILAN)) == {"chain.root"}


@pytest.mark.parametrize("version", [2, 3, 5])
def test_milan_of_every_version(pinned: Any, version: int) -> None:
    pinned(MILAN)
    found = judged(MILAN.sign(snp_report(version=version)), MILAN)
    assert found.reasons == ()
    assert found.claims["product"] == "Milan"


def test_a_report_cut_out_of_azures(pinned: Any) -> None:
    """The header of the runtime data that it vouched for comes along."""
    pinned(MILAN)
    report = MILAN.sign(snp_report())
    assert judged(report + struct.pack("<5I", 604, 1, 2, 1, 584), MILAN).reasons == ()
    for other in (struct.pack("<5I", 604, 1, 4, 1, 584), bytes(19)):
        with pytest.raises(InputError):
            judged(report + other, MILAN)


@pytest.mark.parametrize(
    ("product", "cpuid"), [("Genoa", (0x19, 0x11, 1)), ("Genoa", (0x19, 0xA0, 2)), ("Turin", (0x1A, 0x02, 1))]
)
def test_every_product(pinned: Any, product: str, cpuid: tuple[int, int, int]) -> None:
    tcb = TURIN if product == "Turin" else TCB
    hardware = CHIP[:8] if product == "Turin" else CHIP
    chip = pinned(Chip(product, tcb=tcb, hardware_id=hardware), product)
    report = snp_report(cpuid=cpuid, tcb=tcb, chip=hardware.ljust(64, b"\0"))
    found = judged(chip.sign(report), chip)
    assert found.reasons == ()
    assert (found.claims["product"], "tcb-fmc" in found.claims) == (product, product == "Turin")


def test_a_turin_report_of_version_2_is_read_by_its_certificate(pinned: Any) -> None:
    chip = pinned(Chip("Turin", tcb=TURIN, hardware_id=CHIP[:8]), "Turin")
    report = snp_report(version=2, tcb=TURIN, chip=CHIP[:8].ljust(64, b"\0"))
    assert judged(chip.sign(report), chip).reasons == ()


def test_the_cpu_in_the_report_is_the_certificates(pinned: Any) -> None:
    pinned(MILAN)
    for cpuid in ((0x19, 0x11, 1), (0x17, 0x31, 0), (0x1B, 0, 0)):
        assert "product" in codes(judged(MILAN.sign(snp_report(cpuid=cpuid)), MILAN)), cpuid


@pytest.mark.parametrize("name", ["bootloader", "tee", "snp", "microcode", "fmc"])
@pytest.mark.parametrize("step", [-1, 1])
def test_each_component_is_compared_by_itself(pinned: Any, name: str, step: int) -> None:
    """Higher and lower alike: the key is of exactly the versions that the certificate names."""
    turin = name == "fmc"
    base = TURIN if turin else TCB
    tcb = {**base, name: base[name] + step}
    chip = pinned(Chip("Turin" if turin else "Milan", tcb=base, hardware_id=CHIP), "Turin" if turin else "Milan")
    report = snp_report(tcb=tcb, cpuid=(0x1A, 2, 1) if turin else (0x19, 1, 1))
    assert codes(judged(chip.sign(report), chip)) == {f"tcb.{name}"}


def test_vlek(pinned: Any) -> None:
    chip = pinned(Chip(kind="VLEK"))
    report = chip.sign(snp_report(flags=1 << 2, chip=bytes(64)))
    found = judged(report, chip)
    assert found.reasons == ()
    assert (found.claims["provider"], found.claims["chip-id"], found.claims["signing-key"]) == (
        "cloud",
        "masked",
        "VLEK",
    )
    assert codes(judged(report, chip, SnpPolicy(providers=("another",)))) == {"provider"}
    assert codes(judged(report, chip, SnpPolicy(providers=("cloud",)))) == set()
    assert "signing-key" in codes(judged(chip.sign(snp_report(chip=bytes(64))), chip)), "the report says VCEK"


def test_a_vcek_is_not_under_the_vleks_intermediate(pinned: Any) -> None:
    chip = pinned(Chip(intermediate="SEV-VLEK-Milan"))
    assert codes(judged(chip.sign(snp_report()), chip)) == {"chain.kind"}


def test_of_two_certificates_the_one_that_the_report_names_is_taken(pinned: Any) -> None:
    chip = pinned(MILAN)
    others = Chip(kind="VLEK").certificates
    assert judged(MILAN.sign(snp_report()), chip, certificates=(*others, *chip.certificates)).reasons == ()


def test_a_masked_chip_is_said_and_can_be_refused(pinned: Any) -> None:
    pinned(MILAN)
    report = MILAN.sign(snp_report(chip=bytes(64)))
    found = judged(report, MILAN)
    assert found.reasons == ()
    assert any("which chip" in note for note in found.notes)
    assert codes(judged(report, MILAN, SnpPolicy(chip_id=(CHIP.hex(),)))) == {"chip-id"}
    assert codes(judged(MILAN.sign(snp_report()), MILAN, SnpPolicy(chip_id=(CHIP.hex(),)))) == set()
    assert codes(judged(MILAN.sign(snp_report(chip=CHIP[:-1] + b"x")), MILAN)) == {"chip"}


def test_id_blocks_and_author_keys(pinned: Any) -> None:
    pinned(MILAN)
    identity, author = b"\x11" * 48, b"\x22" * 48
    with_both = MILAN.sign(snp_report(flags=1, fields=((0xE0, identity), (0x110, author))))
    without_flag = MILAN.sign(snp_report(fields=((0xE0, identity), (0x110, author))))
    policy = SnpPolicy(id_key_digest=(identity.hex(),), author_key_digest=(author.hex(),))
    assert codes(judged(with_both, MILAN, policy)) == set()
    assert codes(judged(without_flag, MILAN, policy)) == {"author-key-digest"}, "AUTHOR_KEY_EN says that there was none"
    assert codes(judged(MILAN.sign(snp_report()), MILAN, policy)) == {"id-key-digest", "author-key-digest"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"policy": 0xB0000}, "debug"),
        ({"policy": 0x70000}, "migration-agent"),
        ({"policy": 0x10000}, "policy-bits"),
        ({"policy": 0x30000 | 1 << 40}, "policy-bits"),
        ({"fields": ((0x30, b"\1"),)}, "vmpl"),
        ({"fields": ((0x1E0, bytes(8)),)}, "provisional"),
        ({"fields": ((0x1E8, b"\1"),)}, "provisional"),
    ],
)
def test_the_default_policy(pinned: Any, change: dict[str, Any], code: str) -> None:
    pinned(MILAN)
    found = judged(MILAN.sign(snp_report(**change)), MILAN)
    assert codes(found) == {code}
    assert found.is_true


def test_platform_and_mitigations(pinned: Any) -> None:
    pinned(MILAN)
    report = MILAN.sign(snp_report(version=5, platform=0x20, mitigations=(0b1011, 0b0110)))
    for policy, code in (
        (SnpPolicy(platform=("alias-check-complete",)), set()),
        (SnpPolicy(platform=("alias-check-complete", "ciphertext-hiding")), {"platform.ciphertext-hiding"}),
        (SnpPolicy(required_mitigations=(1,)), set()),
        (SnpPolicy(required_mitigations=(0, 1, 2)), {"mitigation.0", "mitigation.2"}),
    ):
        assert codes(judged(report, MILAN, policy)) == code
    older = MILAN.sign(snp_report(version=3, mitigations=(3, 3)))
    assert codes(judged(older, MILAN, SnpPolicy(required_mitigations=(0,)))) == {"mitigation.0"}


def test_an_extended_report_brings_its_certificates(pinned: Any) -> None:
    pinned(MILAN)
    report = MILAN.sign(snp_report())
    items = [item.der for item in (MILAN.leaf, MILAN.middle, MILAN.root)]
    heads, offset = b"", 24 * (len(items) + 1)
    for number, item in enumerate(items):
        heads += bytes([number + 1]) * 16 + struct.pack("<II", offset, len(item))
        offset += len(item)
    whole = report + heads + bytes(24) + b"".join(items)
    found = judged(whole, MILAN, certificates=())
    assert found.reasons == ()
    for broken in (report + heads, report + b"\1" * 16 + struct.pack("<II", 0, 1 << 30) + bytes(24)):
        with pytest.raises(InputError, match="table"):
            judged(broken, MILAN, certificates=())


def test_certificates_are_judged_as_rfc_5280_says(pinned: Any) -> None:
    pinned(MILAN)
    report = MILAN.sign(snp_report())
    strange = Authority(
        "SEV-Milan", MILAN.root, extensions=(("1.2.3.4", b"\5\0"),), critical=("1.2.3.4",), key=MILAN.middle.key
    )
    powerless = Authority("SEV-Milan", MILAN.root, is_authority=False, key=MILAN.middle.key)
    unsigned = Authority("SEV-Milan", key=MILAN.middle.key)
    for middle, code in ((strange, "chain.critical"), (powerless, "chain.authority"), (unsigned, "chain.root")):
        certificates = (MILAN.leaf.certificate, middle.certificate, MILAN.root.certificate)
        assert code in codes(judged(report, MILAN, certificates=certificates))
    old = Authority(
        "SEV-Milan", MILAN.root, key=MILAN.middle.key, end=datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
    )
    found = judged(report, MILAN, certificates=(MILAN.leaf.certificate, old.certificate, MILAN.root.certificate))
    assert {reason.step for reason in found.reasons} == {Step.STALE}


def test_how_many_authorities_may_be_in_between() -> None:
    from casemate.evidence.chain import chain_faults

    root = Authority("root", path_length=1)
    one = Authority("one", root)
    two = Authority("two", one)
    leaf = Authority("leaf", two, is_authority=False)
    chain = [item.certificate for item in (leaf, two, one, root)]
    assert [item.code for item in chain_faults(chain, {root.digest}, NOW, what="x")] == ["chain.path"]
    short = [item.certificate for item in (Authority("leaf", one, is_authority=False), one, root)]
    assert list(chain_faults(short, {root.digest}, NOW, what="x")) == []


def test_every_bit_counts_that_is_signed_or_signs() -> None:
    """All bits: of what is signed, and of R and S. A report that is none any more says so."""
    leaf = MILAN.certificates[:1]
    passed = []
    for bit in range(8 * 0x330):
        report = bytearray(SIGNED)
        report[bit // 8] ^= 1 << bit % 8
        try:
            if "signature" not in codes(judged(bytes(report), MILAN, certificates=leaf)):
                passed.append(bit)
        except InputError:
            assert bit // 8 < 4 or 0x34 <= bit // 8 < 0x38
    assert passed == []


SIGNED = MILAN.sign(snp_report())


def test_what_is_not_signed_changes_nothing(pinned: Any) -> None:
    pinned(MILAN)
    whole = judged(SIGNED, MILAN)
    for offset in range(0x330, snp.SIZE, 7):
        report = bytearray(SIGNED)
        report[offset] ^= 0xFF
        assert judged(bytes(report), MILAN) == whole


# ---- revocation ------------------------------------------------------------------------------------------------------


def test_revocation_is_unknown_without_a_list_and_a_policy_may_mind(pinned: Any) -> None:
    pinned(MILAN)
    found = judged(SIGNED, MILAN)
    assert (found.revocation, found.reasons) == (Revocation.UNKNOWN, ())
    strict = verify(SIGNED, Inputs(certificates=MILAN.certificates, moment=NOW), Policy(require_revocation_lists=True))
    assert codes(strict) == {"revocation.unknown"}
    assert strict.is_true


def test_a_list_that_names_nobody_checks_the_chain(pinned: Any) -> None:
    pinned(MILAN)
    inputs = Inputs(certificates=MILAN.certificates, moment=NOW, revocations=(MILAN.root.list_of(),))
    found = verify(SIGNED, inputs, Policy(require_revocation_lists=True))
    assert (found.revocation, found.reasons) == (Revocation.CHECKED, ())


def test_what_is_on_a_list_is_revoked_however_old_the_list(pinned: Any) -> None:
    pinned(MILAN)
    current = MILAN.root.list_of(MILAN.middle)
    old = MILAN.root.list_of(MILAN.middle, end=datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC))
    assert codes(judged(SIGNED, MILAN, revocations=(current,))) == {"revoked"}
    found = judged(SIGNED, MILAN, revocations=(old,))
    assert codes(found) == {"revoked", "revocation.time"}
    assert not found.is_true
    assert codes(judged(SIGNED, MILAN, revocations=(MILAN.root.list_of(MILAN.root),))) == {"revoked"}, "the root itself"


def test_an_old_list_is_stale_and_a_newer_one_beside_it_counts(pinned: Any) -> None:
    pinned(MILAN)
    old = MILAN.root.list_of(end=datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC))
    found = judged(SIGNED, MILAN, revocations=(old,))
    assert [(reason.step, reason.code) for reason in found.reasons] == [(Step.STALE, "revocation.time")]
    assert found.revocation is Revocation.UNKNOWN
    assert judged(SIGNED, MILAN, revocations=(old, MILAN.root.list_of())).reasons == ()


def test_a_list_by_another_key_is_no_list(pinned: Any) -> None:
    pinned(MILAN)
    forged = MILAN.root.list_of(key=Authority("x").key)
    found = judged(SIGNED, MILAN, revocations=(forged,))
    assert codes(found) == {"revocation.signature"}
    assert found.revocation is Revocation.UNKNOWN
    stranger = Authority("ARK-Genoa").list_of()
    assert judged(SIGNED, MILAN, revocations=(stranger,)).reasons == (), "of another authority: not about this chain"


def test_lists_of_a_part_only() -> None:
    from cryptography import x509 as pyca

    point = [pyca.UniformResourceIdentifier("https://lists.invalid/amd")]
    other = [pyca.UniformResourceIdentifier("https://lists.invalid/other")]

    def scope(name: list[pyca.UniformResourceIdentifier], *, users: bool = False) -> pyca.IssuingDistributionPoint:
        return pyca.IssuingDistributionPoint(name, None, users, False, None, False, False)

    middle = MILAN.middle.certificate
    assert MILAN.root.list_of(extension=scope(point)).is_about(middle)
    assert not MILAN.root.list_of(extension=scope(other)).is_about(middle)
    for extension in (scope(point, users=True), pyca.DeltaCRLIndicator(3)):
        with pytest.raises(InputError, match="revocation list"):
            MILAN.root.list_of(extension=extension)


def test_policies_name_what_there_is() -> None:
    from casemate.errors import SpecError
    from casemate.evidence.policy import parse_policy

    text = (
        'format = 1\n[sev-snp]\nplatform = ["x"]\nrequired-mitigations = [64]\nvmpl = 4\nchip-id = ["00"]\n'
        'minimum-tcb = { snp = 256 }\n[tdx]\naccepted-tcb = ["Fine"]\n[tpm]\nrequired-pcrs = [24]\n'
    )
    with pytest.raises(SpecError) as caught:
        parse_policy(text, "x")
    assert {fault.path for fault in caught.value.faults} == {
        "sev-snp.platform",
        "sev-snp.required-mitigations",
        "sev-snp.vmpl",
        "sev-snp.chip-id",
        "sev-snp.minimum-tcb",
        "tdx.accepted-tcb",
        "tpm.required-pcrs",
    }
    with pytest.raises(InputError):
        parse_policy("format = 1\n[tdx]\naccept-provisional-firmware = true\n", "x")
    assert msgspec.structs.asdict(parse_policy("format = 1\nrequire-revocation-lists = true\n", "x"))[
        "require_revocation_lists"
    ]
