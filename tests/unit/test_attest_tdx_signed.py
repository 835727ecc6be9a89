"""Intel's rules by ours, for TDs of which dcap-qvl calls no quote true: dcap-qvl is the oracle on all others."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dcap_qvl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.evidence_makers import Authority
from tests.support.tdx_makers import SEPT_VE_DISABLE, Platform

from casemate.errors import InputError
from casemate.evidence import tdx_signed
from casemate.evidence.policy import Policy
from casemate.evidence.tdx import ACCEPTABLE_TCB, authentication_of, parse_tdx
from casemate.evidence.tdx_levels import TcbStatus
from casemate.evidence.tdx_signed import truth_of_signed
from casemate.evidence.verify import Inputs, verify

BEGIN = datetime.datetime(2026, 5, 20, tzinfo=datetime.UTC)
END = datetime.datetime(2026, 6, 20, tzinfo=datetime.UTC)
NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
MACHINE = Platform(bytes([5, 3] * 8))
FINE: list[tuple[int, str, list[str]]] = [(3, "UpToDate", [])]
REAL = Path(__file__).parents[3] / "shared/vectors/tdx"
THEN = datetime.datetime(2025, 6, 20, tzinfo=datetime.UTC)


@pytest.fixture(autouse=True)
def _our_root(monkeypatch: pytest.MonkeyPatch) -> None:
    _trust(monkeypatch.setattr)


def _trust(put: Callable[..., None]) -> None:
    with_root = dcap_qvl.verify_with_root_ca
    put(dcap_qvl, "verify", lambda quote, collateral, now: with_root(quote, collateral, MACHINE.root.der, now))
    put(tdx_signed, "INTEL_ROOTS", {hashlib.sha256(MACHINE.root.der).hexdigest()})


def collateral(levels: list[tuple[int, str, list[str]]] | None = None, **more: Any) -> bytes:
    return MACHINE.collateral(levels or FINE, begin=BEGIN, end=END, **more)


def by_ours(quote: bytes, document: bytes, moment: datetime.datetime = NOW) -> TcbStatus | None:
    """What it is, when it is true."""
    try:
        reasons, status = truth_of_signed(parse_tdx(quote), document, moment)
    except InputError:
        return None
    assert bool(reasons) is (status.status == "")
    return None if reasons else status


def by_oracle(quote: bytes, document: bytes, moment: datetime.datetime = NOW) -> tuple[str, set[str]] | None:
    try:
        parsed = dcap_qvl.QuoteCollateralV3.from_json(document.decode())
        found = dcap_qvl.verify_with_root_ca(quote, parsed, MACHINE.root.der, int(moment.timestamp()))
    except ValueError:
        return None
    return str(found.status), set(found.advisory_ids)


def agree(quote: bytes, document: bytes, moment: datetime.datetime = NOW) -> bool:
    """Whether both call it true; fails when they do not say the same."""
    ours, oracle = by_ours(quote, document, moment), by_oracle(quote, document, moment)
    assert (None if ours is None else (ours.status, set(ours.advisories))) == oracle
    return ours is not None


@pytest.mark.skipif(not REAL.exists(), reason="the evidence beside the project (shared/vectors) is not there")
def test_a_real_quote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    quote = (REAL / "dcap-qvl-tdx-v4.quote").read_bytes()
    document = (REAL / "dcap-qvl-tdx-v4.collateral.json").read_bytes()
    assert by_ours(quote, document, THEN) == TcbStatus("UpToDate", (), 17)
    assert by_ours(quote, document, THEN + datetime.timedelta(days=90)) is None
    # Up to the root in the quote's chain, which dcap-qvl does without.
    for at in range(0, quote.rindex(b"-----BEGIN"), 41):
        changed = bytearray(quote)
        changed[at] ^= 0x10
        ours = by_ours_or_unread(bytes(changed), document)
        try:
            parsed = dcap_qvl.QuoteCollateralV3.from_json(document.decode())
            dcap_qvl.verify(bytes(changed), parsed, int(THEN.timestamp()))
            assert ours, at
        except ValueError:
            assert not ours, at


def by_ours_or_unread(quote: bytes, document: bytes) -> bool:
    try:
        return by_ours(quote, document, THEN) is not None
    except InputError:
        return False


def test_every_octet_of_who_vouches() -> None:
    """Also of what is not signed: nothing of it may be turned into another quote that is true."""
    for attributes in (SEPT_VE_DISABLE, 0):
        quote, document = MACHINE.quote(attributes=attributes), collateral()
        end = 632 + 4 + 128 + 6 + 384 + 64 + 2 + 32 + 6
        for at in range(632, end):
            changed = bytearray(quote)
            changed[at] ^= 1 << at % 8
            assert by_ours(bytes(changed), document) is None, at
        assert by_ours(quote[:-400], document) is None


def test_certificates_of_another_kind_of_data_count_for_nothing() -> None:
    quote = MACHINE.quote(attributes=0)
    chain = authentication_of(parse_tdx(quote)).certificates
    at = quote.index(chain) - 6
    assert by_ours(quote, collateral()) is not None
    assert by_ours(quote[:at] + b"\x03" + quote[at + 1 :], collateral()) is None


SVN = st.integers(0, 7)
STATUS = st.sampled_from((*ACCEPTABLE_TCB, "Revoked"))
OF_PARTS = st.sampled_from(["UpToDate", "OutOfDate", "Revoked"])
COMPONENTS = st.lists(st.sampled_from([0, 2, 3, 5, 6]), min_size=16, max_size=16) | SVN.map(lambda svn: [svn] * 16)


@st.composite
def levels(draw: st.DrawFn) -> dict[str, Any]:
    """A TCB level as Intel publishes one."""
    some = {
        "tcb": {
            "sgxtcbcomponents": [{"svn": svn} for svn in draw(COMPONENTS)],
            "pcesvn": draw(st.integers(9, 13)),
            "tdxtcbcomponents": [{"svn": svn} for svn in draw(COMPONENTS)],
        },
        "tcbDate": "2026-01-01T00:00:00Z",
        "tcbStatus": draw(STATUS),
    }
    return some | draw(st.just({}) | st.lists(st.sampled_from("ABC"), max_size=2).map(lambda ids: {"advisoryIDs": ids}))


@st.composite
def of_svn(draw: st.DrawFn) -> list[dict[str, Any]]:
    svns = draw(st.lists(SVN, min_size=0, max_size=3, unique=True))
    return [
        {
            "tcb": {"isvsvn": svn},
            "tcbDate": "2026-01-01T00:00:00Z",
            "tcbStatus": draw(OF_PARTS),
            "advisoryIDs": [str(svn)],
        }
        for svn in sorted(svns, reverse=True)
    ]


MODULE = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_levels_are_as_the_oracle_finds_them(data: st.DataObject) -> None:
    info = {
        "tcbLevels": data.draw(st.lists(levels(), min_size=1, max_size=4)),
        "tdxModuleIdentities": [
            MODULE | {"id": name, "tcbLevels": data.draw(of_svn())}
            for name in data.draw(st.sets(st.sampled_from(["TDX_01", "TDX_03"])))
        ],
    }
    identity = {"tcbLevels": data.draw(of_svn())}
    document = collateral(info=info, identity=identity)
    svns = bytes([data.draw(SVN), data.draw(st.sampled_from([0, 1, 3])), *data.draw(COMPONENTS)[2:]])
    quote = MACHINE.quote(tee_svns=svns, enclave_svn=data.draw(SVN))
    agree(quote, document)


@pytest.mark.parametrize(
    ("info", "identity"),
    [
        ({"fmspc": "00906ed50001"}, {}),
        ({"fmspc": "xy"}, {}),
        ({"id": "SGX"}, {}),
        ({"version": 2}, {}),
        ({"tcbLevels": []}, {}),
        ({"tdxModule": None}, {}),
        ({"tdxModule": MODULE | {"mrsigner": "01" * 48}}, {}),
        ({"tdxModule": MODULE | {"attributes": "01" + "00" * 7}}, {}),
        ({}, {"id": "QE"}),
        ({}, {"version": 4}),
        ({}, {"mrsigner": "00" * 32}),
        ({}, {"isvprodid": 1}),
        ({}, {"miscselect": "01000000"}),
        ({}, {"attributes": "13000000000000000000000000000000"}),
        ({}, {"tcbLevels": []}),
        ({}, {"tcbLevels": [{"tcb": {"isvsvn": 5}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": "UpToDate"}]}),
        ({}, {"tcbLevels": [{"tcb": {"isvsvn": 4}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": "Fine"}]}),
    ],
)
def test_collateral_that_is_of_something_else(info: dict[str, Any], identity: dict[str, Any]) -> None:
    assert agree(MACHINE.quote(), collateral())
    assert not agree(MACHINE.quote(), collateral(info=info, identity=identity))
    assert by_ours(MACHINE.quote(attributes=0), collateral(info=info, identity=identity)) is None


@pytest.mark.parametrize("status", sorted({*ACCEPTABLE_TCB} - {"UpToDate", "OutOfDate"}))
def test_an_enclave_has_no_status_of_a_platform(status: str) -> None:
    level = {"tcb": {"isvsvn": 4}, "tcbDate": "2026-01-01T00:00:00Z", "tcbStatus": status}
    assert by_ours(MACHINE.quote(), collateral(identity={"tcbLevels": [level]})) is None


def test_another_pce_is_refused() -> None:
    """Intel's library compares it; dcap-qvl does not."""
    assert by_ours(MACHINE.quote(), collateral(info={"pceId": "0001"})) is None


@pytest.mark.parametrize("who", ["pck", "ca", "signer"])
def test_revoked_certificates(who: str) -> None:
    revoked: Authority = getattr(MACHINE, who)
    assert not agree(MACHINE.quote(), collateral(revoked=(revoked,)))
    found = verify(MACHINE.quote(attributes=0), Inputs(collateral=collateral(revoked=(revoked,)), moment=NOW), Policy())
    assert {reason.code for reason in found.reasons} == {"revoked", "sept-ve"}


def test_times() -> None:
    second = datetime.timedelta(seconds=1)
    for moment, expected in ((BEGIN, True), (BEGIN - second, False), (END - second, True), (END + second, False)):
        assert agree(MACHINE.quote(), collateral(), moment) is expected, moment


@pytest.mark.parametrize("part", ["root_ca_crl", "pck_crl"])
def test_a_list_of_somebody_else(part: str) -> None:
    """Also an empty one of a namesake: a missing answer is no answer."""
    other = json.loads(Platform().collateral(FINE, begin=BEGIN, end=END))
    document = json.loads(collateral())
    changed = json.dumps(document | {part: other[part]}).encode()
    assert by_ours(MACHINE.quote(), changed) is None
    swapped = json.dumps(document | {"pck_crl": document["root_ca_crl"]}).encode()
    assert by_ours(MACHINE.quote(), swapped) is None


def test_a_platforms_key_signs_no_collateral() -> None:
    """It hangs on the same root; Intel signs with another one."""
    assert by_ours(MACHINE.quote(), collateral(signer=MACHINE.pck)) is None


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity", "tcb_info_signature", "qe_identity_signature"])
def test_collateral_that_was_changed(part: str) -> None:
    document = json.loads(collateral())
    text = document[part]
    document[part] = text.replace("17", "18") if part in ("tcb_info", "qe_identity") else "00" * 64
    assert document[part] != text
    assert not agree(MACHINE.quote(), json.dumps(document).encode())


def test_the_chain_in_the_collateral_counts_before_the_quotes() -> None:
    other = Platform()
    document = json.loads(collateral())
    quote = MACHINE.quote(attributes=0)
    chain = authentication_of(parse_tdx(quote)).certificates
    assert by_ours(quote, json.dumps(document | {"pck_certificate_chain": chain.rstrip(b"\0").decode()}).encode())
    theirs = authentication_of(parse_tdx(other.quote())).certificates.rstrip(b"\0").decode()
    assert by_ours(quote, json.dumps(document | {"pck_certificate_chain": theirs}).encode()) is None


def test_what_the_oracle_finds_wrong_stays_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is asked when dcap-qvl names an attribute, and for nothing else."""

    def complains(*_: object) -> None:
        raise ValueError("Verification failed: something new")

    monkeypatch.setattr(dcap_qvl, "verify", complains)
    found = verify(MACHINE.quote(attributes=0), Inputs(collateral=collateral(), moment=NOW), Policy())
    assert {reason.code for reason in found.reasons} == {"quote", "sept-ve"}
    assert not found.is_true
