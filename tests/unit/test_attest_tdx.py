"""TDX beyond what real files show: version 5, every TCB status, revoked certificates, debug; a platform of ours."""

from __future__ import annotations

import datetime
import hashlib
import json
from typing import Any

import dcap_qvl
import msgspec
import pytest
from tests.support.evidence_makers import Authority
from tests.support.tdx_makers import SEPT_VE_DISABLE, Platform

from casemate.errors import InputError
from casemate.evidence import tdx_signed
from casemate.evidence.policy import Policy, TdxPolicy
from casemate.evidence.tdx import ACCEPTABLE_TCB
from casemate.evidence.verdict import Revocation, Step, Verified
from casemate.evidence.verify import Inputs, verify

BEGIN = datetime.datetime(2026, 5, 20, tzinfo=datetime.UTC)
END = datetime.datetime(2026, 6, 20, tzinfo=datetime.UTC)
NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
MACHINE = Platform()
FINE: list[tuple[int, str, list[str]]] = [(5, "UpToDate", [])]


@pytest.fixture(autouse=True)
def _our_root(monkeypatch: pytest.MonkeyPatch) -> None:
    with_root = dcap_qvl.verify_with_root_ca
    monkeypatch.setattr(
        dcap_qvl, "verify", lambda quote, collateral, now: with_root(quote, collateral, MACHINE.root.der, now)
    )
    monkeypatch.setattr(tdx_signed, "INTEL_ROOTS", {hashlib.sha256(MACHINE.root.der).hexdigest()})


def judged(
    quote: bytes, levels: list[tuple[int, str, list[str]]] | None = None, policy: TdxPolicy | None = None, **more: Any
) -> Verified:
    collateral = MACHINE.collateral(levels or FINE, begin=BEGIN, end=END, **more)
    return verify(quote, Inputs(collateral=collateral, moment=NOW), Policy(tdx=policy or TdxPolicy()))


def codes(found: Verified) -> set[str]:
    return {reason.code for reason in found.reasons}


@pytest.mark.parametrize("version", [4, 5])
def test_both_versions(version: int) -> None:
    found = judged(MACHINE.quote(version=version, report_data=b"nonce"))
    assert found.reasons == ()
    assert (found.claims["version"], found.claims["tcb-status"]) == (version, "UpToDate")
    assert found.revocation is Revocation.CHECKED
    assert str(found.claims["rtmr3"]) == "03" * 48
    assert str(found.claims["report-data"]).startswith(b"nonce".hex())


@pytest.mark.parametrize("status", ACCEPTABLE_TCB)
def test_each_status_is_named_and_only_the_policys_are_accepted(status: str) -> None:
    levels = [(6, "UpToDate", []), (5, status, ["INTEL-SA-00001"])] if status != "UpToDate" else FINE
    found = judged(MACHINE.quote(), levels)
    assert found.is_true
    assert found.claims["tcb-status"] == status
    assert codes(found) == (set() if status == "UpToDate" else {"tcb-status", "advisory"})
    accepting = TdxPolicy(accepted_tcb=(status,), accepted_advisories=("INTEL-SA-00001",))
    assert judged(MACHINE.quote(), levels, accepting).is_accepted


def test_a_revoked_level_is_never_true() -> None:
    found = judged(MACHINE.quote(), [(6, "UpToDate", []), (5, "Revoked", [])])
    assert codes(found) == {"tcb-status.revoked"}
    assert not found.is_true


def test_a_quoting_enclave_that_is_out_of_date_counts_too() -> None:
    assert judged(MACHINE.quote(), qe_status="OutOfDate").claims["tcb-status"] == "OutOfDate"


def test_a_platform_below_every_level() -> None:
    assert codes(judged(MACHINE.quote(), [(6, "UpToDate", [])])) == {"quote"}


@pytest.mark.parametrize("who", ["pck", "ca", "signer"])
def test_revoked_certificates(who: str) -> None:
    revoked: Authority = getattr(MACHINE, who)
    found = judged(MACHINE.quote(), revoked=(revoked,))
    assert codes(found) == {"revoked"}
    assert found.revocation is Revocation.UNKNOWN


@pytest.mark.parametrize(
    ("attributes", "code", "accepting"),
    [
        (SEPT_VE_DISABLE | 1, "debug", "accept_debug_guest_that_its_host_can_read"),
        (SEPT_VE_DISABLE | 1 << 5, "debug", "accept_debug_guest_that_its_host_can_read"),
        (0, "sept-ve", "accept_exceptions_that_the_host_injects"),
        (SEPT_VE_DISABLE | 1 << 29, "migratable", "accept_migration_service_that_can_move_the_guest"),
        (SEPT_VE_DISABLE | 1 << 17, "service-td", ""),
        (SEPT_VE_DISABLE | 1 << 40, "attribute-bits", ""),
        (SEPT_VE_DISABLE | 1 << 1, "attribute-bits", ""),
    ],
)
@pytest.mark.parametrize("version", [4, 5])
def test_what_a_td_lets_others_do_is_the_policys_to_judge(
    version: int, attributes: int, code: str, accepting: str
) -> None:
    quote = MACHINE.quote(version=version, attributes=attributes)
    found = judged(quote)
    assert (codes(found), found.is_true, found.claims["tcb-status"]) == ({code}, True, "UpToDate")
    assert found.revocation is Revocation.CHECKED
    for name in (
        "accept_debug_guest_that_its_host_can_read",
        "accept_exceptions_that_the_host_injects",
        "accept_migration_service_that_can_move_the_guest",
    ):
        accepted = judged(quote, policy=msgspec.convert({name.replace("_", "-"): True}, TdxPolicy)).is_accepted
        assert accepted is (name == accepting), name


def test_a_service_td_is_refused_unless_it_is_named() -> None:
    quote = MACHINE.quote(version=5, service_td=b"\x01" * 48)
    found = judged(quote)
    assert (codes(found), found.is_true) == ({"service-td"}, True)
    assert judged(quote, policy=TdxPolicy(mrservicetd=("01" * 48,))).is_accepted
    assert codes(judged(quote, policy=TdxPolicy(mrservicetd=("02" * 48,)))) == {"mrservicetd"}


def test_an_older_recovery() -> None:
    wanted = TdxPolicy(minimum_tcb_evaluation=18)
    assert codes(judged(MACHINE.quote(), policy=wanted)) == {"tcb-evaluation"}
    assert codes(judged(MACHINE.quote(), policy=wanted, evaluation=18)) == set()


@pytest.mark.parametrize("attributes", [SEPT_VE_DISABLE, 0])
@pytest.mark.parametrize("version", [4, 5])
def test_every_octet_of_what_is_signed(version: int, attributes: int) -> None:
    quote = MACHINE.quote(version=version, attributes=attributes)
    signed = 632 if version == 4 else 702
    collateral = MACHINE.collateral(FINE, begin=BEGIN, end=END)
    for at in range(signed):
        changed = bytearray(quote)
        changed[at] ^= 1 << at % 8
        try:
            found = verify(bytes(changed), Inputs(collateral=collateral, moment=NOW), Policy())
        except InputError:
            continue
        assert not found.is_true, at


def test_another_root_is_not_intels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert codes(judged(MACHINE.quote())) == {"quote"}


def test_a_signature_needs_no_collateral_to_be_wrong() -> None:
    changed = bytearray(MACHINE.quote(attributes=0))
    changed[200] ^= 1
    found = verify(bytes(changed), Inputs(moment=NOW), Policy())
    assert codes(found) == {"quote.signature", "collateral", "sept-ve"}
    assert codes(verify(MACHINE.quote()[:-900], Inputs(moment=NOW), Policy())) == {"quote", "collateral"}
    fine = verify(MACHINE.quote(), Inputs(moment=NOW), Policy())
    assert codes(fine) == {"collateral"}


def test_collateral_whose_parts_never_held_together() -> None:
    early = json.loads(MACHINE.collateral(FINE, begin=BEGIN, end=BEGIN + datetime.timedelta(days=1)))
    mixed = json.loads(MACHINE.collateral(FINE, begin=END - datetime.timedelta(days=1), end=END))
    mixed |= {part: early[part] for part in ("tcb_info", "tcb_info_signature")}
    changed = bytearray(MACHINE.quote())
    changed[200] ^= 1
    for quote, more in ((MACHINE.quote(), set()), (bytes(changed), {"quote.signature"})):
        found = verify(quote, Inputs(collateral=json.dumps(mixed).encode(), moment=NOW), Policy())
        assert codes(found) == {"collateral.time"} | more


@pytest.mark.parametrize("year", [1, 1969, 9999])
def test_any_time_can_be_asked_for(year: int) -> None:
    inputs = Inputs(
        collateral=MACHINE.collateral(FINE, begin=BEGIN, end=END),
        moment=datetime.datetime(year, 12, 31, tzinfo=datetime.UTC),
    )
    for attributes in (SEPT_VE_DISABLE, 0):
        assert "collateral.time" in codes(verify(MACHINE.quote(attributes=attributes), inputs, Policy()))


def test_what_ran_out_and_what_is_false_are_both_said() -> None:
    collateral = MACHINE.collateral([(6, "UpToDate", []), (5, "OutOfDate", [])], begin=BEGIN, end=END)
    late = Inputs(collateral=collateral, moment=END + datetime.timedelta(days=1))
    found = verify(MACHINE.quote(), late, Policy())
    assert {(reason.step, reason.code) for reason in found.reasons} == {
        (Step.STALE, "collateral.time"),
        (Step.POLICY, "tcb-status"),
    }
    assert found.revocation is Revocation.UNKNOWN
    debug = verify(MACHINE.quote(attributes=SEPT_VE_DISABLE | 1), late, Policy())
    assert {(reason.step, reason.code) for reason in debug.reasons} == {
        (Step.STALE, "collateral.time"),
        (Step.POLICY, "tcb-status"),
        (Step.POLICY, "debug"),
    }
