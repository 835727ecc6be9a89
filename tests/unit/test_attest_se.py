"""IBM Secure Execution evidence, made here after the published formats: there is no machine of that kind to ask.

No vector here comes from hardware. Where s390-tools' own tests state what a key and known inputs give (rust/pv), those
answers are repeated as numbers: two implementations that were written apart agree on them.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.se_makers import (
    HOST_KEY_HASH,
    IMAGE_KEY_HASH,
    KEY,
    MEASUREMENT_KEY,
    NONCE,
    UID,
    exchange,
    header,
    measured,
    request,
)

from casemate.cli.main import main
from casemate.errors import InputError, SpecError
from casemate.evidence.inputs import Inputs
from casemate.evidence.policy import Policy, SePolicy, parse_policy
from casemate.evidence.se import IMAGE_BYTES, SeRequest, SeResponse, parse_image, parse_request, parse_response
from casemate.evidence.se_true import measurement_of, open_request
from casemate.evidence.verify import verify
from casemate.measures import Choices, measure

IMAGE = parse_image(header())
ADDITIONAL = IMAGE_KEY_HASH + HOST_KEY_HASH


def response(
    user: bytes = b"hello", additional: bytes = ADDITIONAL, image: bytes = IMAGE, asked: bytes | None = None
) -> bytes:
    return exchange(asked or request(), measured(image, user, additional), additional, user, UID)


INPUTS = Inputs(request_key=KEY)
POLICY = Policy(se=SePolicy(image=(IMAGE.hex(),)))


def codes(data: bytes, inputs: Inputs = INPUTS, **wanted: tuple[str, ...]) -> set[str]:
    policy = Policy(se=SePolicy(**{"image": (IMAGE.hex(),), **wanted}))
    return {reason.code for reason in verify(data, inputs, policy).reasons}


def test_what_is_true_and_wanted() -> None:
    found = verify(response(), INPUTS, POLICY)
    assert found.is_accepted
    assert found.kind == "se"
    assert found.claims == {
        "config-uid": UID.hex(),
        "user-data": b"hello".hex(),
        "image": IMAGE.hex(),
        "image-host-key": IMAGE_KEY_HASH.hex(),
        "attestation-host-key": HOST_KEY_HASH.hex(),
    }
    assert any("used once" in note for note in found.notes)
    with_nonce = verify(response(), Inputs(request_key=KEY, nonce=NONCE), POLICY)
    assert with_nonce.is_accepted
    assert not any("used once" in note for note in with_nonce.notes)


@pytest.mark.parametrize("user", [b"", b"u" * 256])
@pytest.mark.parametrize("nonce", [b"", NONCE])
def test_parts_that_may_be_missing(user: bytes, nonce: bytes) -> None:
    asked = request(flags=0x4000000000000000 if nonce else 0, nonce=nonce)
    data = exchange(asked, measured(IMAGE, user, b"", nonce), b"", user, UID)
    assert verify(data, INPUTS, POLICY).is_accepted


def test_one_of_several_images() -> None:
    other = parse_image(header(fill=9))
    assert codes(response(), image=(other.hex(), IMAGE.hex())) == set()
    assert codes(response(), image=(other.hex(),)) == {"measurement"}
    assert codes(response(image=other)) == {"measurement"}
    assert codes(response(), image=()) == {"image"}


def test_only_the_maker_of_the_request_can_verify() -> None:
    assert codes(response(), Inputs()) == {"request-key"}
    assert codes(response(), Inputs(request_key=bytes(32))) == {"request"}
    assert codes(response(), Inputs(request_key=KEY[:16])) == {"request"}
    assert codes(response(asked=request(key=bytes(32)))) == {"request"}


def test_what_the_policy_wants() -> None:
    assert codes(response(), Inputs(request_key=KEY, nonce=bytes(16))) == {"nonce"}
    assert codes(response(), user_data=(b"bye".hex(),)) == {"user-data"}
    assert codes(response(), config_uid=("00" * 16,)) == {"config-uid"}
    assert codes(response(), attestation_host_key=("00" * 32,)) == {"attestation-host-key"}
    assert codes(response(), attestation_host_key=("00" * 32, HOST_KEY_HASH.hex())) == set()
    assert codes(response(), secret_store=("00" * 64,)) == {"secret-store"}  # nobody asked for it: not there
    policy = msgspec.structs.replace(POLICY, require_revocation_lists=True)
    assert {reason.code for reason in verify(response(), INPUTS, policy).reasons} == {"revocation.unknown"}


def test_additional_data_by_its_flags() -> None:
    everything = b"\1" * 32 + b"\2" * 32 + b"\3" * 64 + b"\4" * 320 + b"\5" * 7
    asked = request(flags=0x7C00000000000000)
    claims = verify(response(additional=everything, asked=asked), INPUTS, POLICY).claims
    assert claims["secret-store"] == "03" * 64
    assert claims["firmware-state"] == "04" * 320
    assert claims["unrecognized"] == "05" * 7
    with pytest.raises(InputError, match="additional data is cut off"):
        verify(response(additional=everything[:40], asked=asked), INPUTS, POLICY)


def test_any_changed_bit_is_seen() -> None:
    """In reserved fields as well: the request's tag covers its header, and the format has a size for everything."""
    data = response()
    for index in range(len(data) * 8):
        changed = bytearray(data)
        changed[index // 8] ^= 1 << index % 8
        if 0x10 <= index // 8 < 0x18:
            continue  # reserved in the envelope, which nobody signs and nothing relies on
        with contextlib.suppress(InputError):
            assert not verify(bytes(changed), INPUTS, POLICY).is_accepted, index


CUT_OFF = [
    (b"pvattest", "cut off"),
    (response()[:-1], "size"),
    (response() + b"\0", "size"),
    (exchange(request(), b"", b"", b"", b""), "a request for Secure Execution evidence, not the evidence"),
    (exchange(request(), bytes(63), b"", b"", UID), "bytes of measurement"),
    (exchange(request(), bytes(64), b"", b"", UID[1:]), "bytes of configuration UID"),
    (exchange(request(), bytes(64), b"", bytes(257), UID), "user data lies where it cannot"),
    (exchange(request(algorithm=2), bytes(64), b"", b"", UID), "algorithm"),
    (exchange(request(flags=0), bytes(64), b"", b"", UID), "size of the encrypted part"),
    (exchange(request()[:-1], bytes(64), b"", b"", UID), "size"),
    (exchange(b"", bytes(64), b"", b"", UID), "cut off"),
]


@pytest.mark.parametrize(("data", "message"), CUT_OFF)
def test_what_is_unreadable_says_why(data: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        verify(data, INPUTS, POLICY)
    assert message in str(caught.value)


def test_an_entry_that_lies_elsewhere_is_refused() -> None:
    for place, offset in ((0x20, 8), (0x20, 1 << 31), (0x38, 0x3F)):
        data = bytearray(response())
        data[place + 4 : place + 8] = offset.to_bytes(4, "big")
        with pytest.raises(InputError, match="lies where it cannot"):
            parse_response(bytes(data))


@given(st.binary(max_size=600))
def test_no_bytes_crash_the_readers(data: bytes) -> None:
    for read in (parse_response, parse_request, parse_image):
        for start in (b"", b"pvattest\0\0\1\0", b"IBMSecEx\0\0\1\0"):
            with contextlib.suppress(InputError):
                read(start + data)


# ---- known answers --------------------------------------------------------------------------------------------------

ANSWERS = {
    (True, True, True): "88794c62cce7bcf26216deb3f48f13fea6374b6d7e35bcc5c2ce68121db6f45d"
    "fc8c171856463549408bf8e7d1aca11efad0a878af97dc9e21a1fc2a32f3a675",
    (True, False, True): "fbd4f738a390edd947cd4f11af3a2f3bab2fdf8bf89bf81beb495117f4382cf4"
    "2f0730c8c7d9e3ca27fb25adfceb21224f57fdb398dcf41a83c146e6a23db760",
    (False, False, True): "63671fbf295036eb1023ea71f7182e7d6343dc7b2da584e824d0a7d198ab9cde"
    "d756c93b39050ffb764555b01f88cb82017a6a15c7e0bafc6005f1e4f78aa124",
    (False, False, False): "c5c34c93835d1ec23f5c2d778dfa20129b11b305601742cb2f38e0ed9894dcdb"
    "73fc8695ab6a8dbad0744073ddc81a5eaafa52e4a15af8deb8d761091922847f",
}
"""s390-tools, rust/pv/src/uvattest/attest.rs: (user data, nonce, additional data) to the measurement."""


@pytest.mark.parametrize(("with_user", "with_nonce", "with_additional"), ANSWERS)
def test_measurements_that_another_implementation_gives(
    with_user: bool, with_nonce: bool, with_additional: bool
) -> None:
    image = b"\1" * 64 + b"\2" * 64 + b"\3" * 64 + b"\4" * 16
    sealed = SeRequest(flags=0, iv=b"", authenticated=b"", sealed=b"", tag=b"")
    found = SeResponse(
        request=sealed,
        measurement=b"",
        additional=b"\x09" * 128 if with_additional else b"",
        user_data=b"\x07" * 256 if with_user else b"",
        config_uid=b"\x05" * 16,
    )
    answer = measurement_of(found, image, b"\x41" * 64, b"\x08" * 16 if with_nonce else b"")
    assert answer.hex() == ANSWERS[with_user, with_nonce, with_additional]


def test_a_request_opens_to_its_key_and_nonce() -> None:
    assert open_request(parse_request(request()), KEY) == MEASUREMENT_KEY + NONCE


# ---- images, measure, the command line ------------------------------------------------------------------------------


def test_where_the_header_of_an_image_lies() -> None:
    tags = parse_image(header())
    assert len(tags) == IMAGE_BYTES
    assert parse_image(bytes(0x12000) + header() + bytes(999)) == tags
    newer = bytearray(0x30000)
    newer[0xC000:0xC010] = b"SeImgLnx" + (0x14008).to_bytes(8, "big")
    newer[0x14008 : 0x14008 + len(header())] = header()
    assert parse_image(bytes(newer)) == tags
    for wrong in (bytes(8) + header(), bytes(0x16000) + header(), header(size=0x1A0)[:0x1A0], header()[:-1], b""):
        with pytest.raises(InputError):
            parse_image(wrong)


def test_from_a_specification_to_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "secure.img").write_bytes(bytes(0x12000) + header())
    spec = tmp_path / "se.toml"
    spec.write_text('[machine]\ntype = "s390-ccw-virtio"\n[boot]\nkernel = "secure.img"\n[confidential]\nkind = "se"\n')
    expected = measure(str(spec), Choices()).expected
    assert (expected.kind, expected.values) == ("se", {"image": IMAGE.hex()})
    assert parse_policy(expected.policy_text(), "p") == POLICY
    policy = tmp_path / "policy.toml"
    assert main(["measure", str(spec), "--policy", str(policy)]) == 0
    (tmp_path / "request.key").write_bytes(KEY)
    (tmp_path / "response.bin").write_bytes(response())
    capsys.readouterr()
    words = ["attest", "verify", str(tmp_path / "response.bin"), "--policy", str(policy), "--json"]
    assert main([*words, "--request-key", str(tmp_path / "request.key")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert KEY.hex() not in json.dumps(document)
    assert MEASUREMENT_KEY.hex() not in json.dumps(document)
    assert main(words) == 1
    (tmp_path / "request.key").write_bytes(KEY[1:])
    assert main([*words, "--request-key", str(tmp_path / "request.key")]) == 2
    assert "no key of a request" in capsys.readouterr().err


def test_a_policy_with_an_image_of_another_size() -> None:
    with pytest.raises(SpecError, match=r"se\.image"):
        parse_policy('format = 1\n[se]\nimage = ["00"]\n', "p")
