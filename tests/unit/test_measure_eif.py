"""Registers of Nitro enclave images, beside AWS's published algorithm; lies and damage are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import eif

from casemate.cli.main import main
from casemate.errors import InputError
from casemate.evidence.policy import parse_policy
from casemate.measure.eif import measure_eif

KERNEL, CMDLINE, APP = b"kernel" * 1000, b"reboot=k panic=1", [b"boot" * 99, b"app", b"more"]


def measured(image: bytes) -> dict[int, bytes]:
    prediction = measure_eif(lambda offset, length: image[offset : offset + length]).prediction()
    return prediction.values("sha384", sorted({step.register for step in prediction.steps}))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=64), st.binary(max_size=64), st.lists(st.binary(max_size=64), min_size=1, max_size=4))
def test_registers_are_those_of_the_published_algorithm(kernel: bytes, cmdline: bytes, ramdisks: list[bytes]) -> None:
    assert measured(eif.example(kernel=kernel, cmdline=cmdline, ramdisks=ramdisks)) == {
        0: eif.register(kernel, cmdline, *ramdisks),
        1: eif.register(kernel, cmdline, ramdisks[0]),
        2: eif.register(*ramdisks[1:]),
    }


@pytest.mark.parametrize("as_numbers", [True, False])
def test_a_signed_image_has_its_certificate(as_numbers: bool) -> None:
    signer = eif.Signer()
    sections = [(eif.KERNEL, KERNEL), (eif.CMDLINE, CMDLINE), *((eif.RAMDISK, item) for item in APP)]
    register0 = eif.register(KERNEL, CMDLINE, *APP)
    good = eif.build([*sections, (eif.SIGNATURE, signer.section(register0, as_numbers=as_numbers))])
    assert measured(good)[8] == eif.register(signer.der)
    whole = signer.section(register0)
    for section, said in (
        (signer.section(eif.register(b"other")), "another measurement"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "did not make"),
        (b"", "CBOR"),
        (b"\x80", "another form"),
    ):
        with pytest.raises(InputError, match=said):
            measured(eif.build([*sections, (eif.SIGNATURE, section)]))


def test_what_lies_is_refused() -> None:
    good = eif.example()
    sections = [(eif.KERNEL, b"k"), (eif.CMDLINE, b"c"), (eif.RAMDISK, b"r")]
    for image, said in (
        (b"", "0 bytes"),
        (b".elf" + good[4:], "beginning"),
        (good[:-1], "cut off"),
        (good + b"\0", "cut off"),
        (good[:600], "cut off"),
        (good[:-1] + bytes([good[-1] ^ 1]), "CRC"),
        (eif.build(sections, version=1), "version 1"),
        (eif.build(sections, version=5), "version 5"),
        (eif.build(sections[:2]), "not one kernel"),
        (eif.build([*sections, sections[0]]), "not one kernel"),
        (eif.build([*sections, (9, b"x")]), "type 9"),
    ):
        with pytest.raises(InputError, match=said):
            measured(image)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_no_changed_byte_passes(place: int, value: int) -> None:
    image = bytearray(eif.example())
    at = place % len(image)
    if image[at] != value:
        image[at] = value
        with pytest.raises(InputError):
            measured(bytes(image))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, other = tmp_path / "web.eif", tmp_path / "other.eif"
    image.write_bytes(eif.example())
    other.write_bytes(eif.example(cmdline=b"debug"))
    assert main(["measure", str(image), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "nitro"
    assert found["values"]["pcr0"] == eif.register(b"kernel", b"quiet", b"boot", b"app").hex()
    assert main(["measure", str(image), "--policy", "-"]) == 0
    assert parse_policy(capsys.readouterr().out, "policy").nitro.pcrs["2"] == found["values"]["pcr2"]
    reported = f"pcr0={found['values']['pcr0']}"
    assert main(["measure", str(other), "--other", f"eif={image}", "--explain", reported]) == 0
    assert capsys.readouterr().out == f"eif {image}\n"
    assert main(["measure", str(image), "--explain", reported]) == 0
    assert capsys.readouterr().out.startswith("nothing")
