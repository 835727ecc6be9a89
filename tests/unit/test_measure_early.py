"""What OVMF's first code writes into itself: beside the memory of real machines (QEMU 7.2, TCG), whose event logs had
the digest of exactly these volumes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from casemate.errors import InputError
from casemate.measure import early
from casemate.measure.early import Machine, early_volume, is_known
from casemate.measure.volumes import parse_volumes

MIB = 1 << 20
OVMF = Path("/usr/share/OVMF")
_HEAD, _WINDOW = "c0290000000000000000000000000000", "c00000003c006000000000000000a00000000000000000000000000000"
SEEN = {
    (512, 1, False): _HEAD
    + "00000000000000001000000028000000800000000000000000000000000000000000e00000000000000020000000000000"
    + _WINDOW
    + "01000000010000004000000000000000000000000101",
    (8192, 3, False): _HEAD
    + "00000000000000001000000028000000800000000000000000000000000000000000e00000000000000020000000000000"
    + _WINDOW
    + "03000000030000004000000000000000000000000101",
    (2815, 1, False): _HEAD
    + "00000000000000001000000028000000b00000000000000000000000000000000000e00000000000000020000000000000"
    + _WINDOW
    + "01000000010000004000000000000000000000000101",
    (4096, 2, True): _HEAD
    + "01011000000000001000000028000000800000000000000000000000000000000000e00000000000000020000000000000"
    + _WINDOW
    + "02000000020000004000000000000000000000000101",
}
"""(MiB, vCPUs, built for SMM) to what stood in memory, 40 address bits."""


@pytest.fixture(params=[False, True])
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, bool]:
    """A volume that counts as known, and whether it is built for SMM."""
    volume = bytes(range(1, 201))
    known = early._Build(40, has_smm=request.param)
    monkeypatch.setattr(early, "_BUILDS", {hashlib.sha256(volume).hexdigest(): known})
    return volume, request.param


@pytest.mark.parametrize(("mib", "vcpus", "has_smm"), list(SEEN))
def test_what_stood_in_memory(mib: int, vcpus: int, has_smm: bool) -> None:
    found = early._found_out(Machine(mib * MIB, vcpus, 40), has_smm=has_smm)
    assert found.hex() == SEEN[mib, vcpus, has_smm]


def test_the_rest_of_the_volume_stays(build: tuple[bytes, bool]) -> None:
    volume, has_smm = build
    found = early_volume(volume, Machine(512 * MIB, 1, 40))
    assert (len(found), found[:40], found[156:]) == (len(volume), volume[:40], volume[156:])
    assert found[40:156].hex() == SEEN[512, 1, False] if not has_smm else "010110" in found[40:156].hex()


def test_each_input_counts(build: tuple[bytes, bool]) -> None:
    volume, _ = build
    machines = [Machine(512 * MIB, 1, 40), Machine(512 * MIB, 2, 40), Machine(2815 * MIB, 1, 40)]
    machines += [Machine(512 * MIB, 1, bits) for bits in (36, 39, 41, 46, 47)] + [Machine(1 << 36, 1, 46)]
    assert len({early_volume(volume, machine) for machine in machines}) == len(machines)
    # More than 47 bits are not used: they would take a fifth level of page tables.
    assert early_volume(volume, Machine(512 * MIB, 1, 48)) == early_volume(volume, Machine(512 * MIB, 1, 47))


def test_a_processor_of_36_bits() -> None:
    """As a Nehalem under TCG had it: the window of old, right above the first 32 GiB."""
    found = early._found_out(Machine(512 * MIB, 1, 36), has_smm=False)
    assert found[0x1C:0x1D].hex() == "24"
    assert found[0x2E:0x3E].hex() == "00000000080000000000000008000000"


def test_what_is_not_known_is_not_guessed(build: tuple[bytes, bool]) -> None:
    volume, _ = build
    assert is_known(volume)
    for other, bits in ((volume[:-1] + b"\0", 40), (volume, 35), (volume, 53)):
        with pytest.raises(InputError):
            early_volume(other, Machine(512 * MIB, 1, bits))


@pytest.mark.skipif(not (OVMF / "OVMF_CODE_4M.fd").is_file(), reason="ovmf is not installed")
def test_where_known_builds_keep_it() -> None:
    """Zeros there: another place would be code, or a constant."""
    for name in ("OVMF_CODE_4M.fd", "OVMF_CODE_4M.secboot.fd"):
        volume = parse_volumes((OVMF / name).read_bytes()).early
        if is_known(volume):
            at = early._BUILDS[hashlib.sha256(volume).hexdigest()].at
            assert not any(volume[at : at + early._FIELDS.size])
