"""Launch measurements beside sev-snp-measure on firmwares made for it, and on Debian's."""

from __future__ import annotations

import json
import struct
import uuid
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sevsnpmeasure import guest as oracle  # type: ignore[import-untyped]
from sevsnpmeasure.sev_mode import SevMode  # type: ignore[import-untyped]
from sevsnpmeasure.vcpu_types import CPU_SIGS  # type: ignore[import-untyped]

from casemate import releases
from casemate.cli.main import main
from casemate.errors import InputError
from casemate.evidence.policy import parse_policy
from casemate.measure.expected import Expected
from casemate.measure.explain import explain
from casemate.measure.inputs import Inputs, measured
from casemate.measure.ovmf import PAGE, parse_firmware
from casemate.measure.sev import Guest, hash_kernel, seves_digest, snp_digest
from casemate.measure.vmsa import CPUS

FOOTER = "96b582de-1fb2-45f7-baea-a366c55a082d"
HASHES = "7255371f-3a3b-4b04-927b-1da6efa8d454"
RESET = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
METADATA = "dc886566-984a-4798-a75e-5585a7bf67cc"
SECTIONS = (
    (0x800000, 0x9000, 1),
    (0x80A000, 0x3000, 1),
    (0x80D000, 0x1000, 2),
    (0x80E000, 0x1000, 3),
    (0x810000, 0x1000, 16),
)


def firmware(
    *,
    pages: int = 16,
    reset: int | None = 0x80B004,
    table: int | None = 0x810C00,
    sections: tuple[tuple[int, int, int], ...] = SECTIONS,
    fill: int = 0x5A,
) -> bytes:
    """An image of so many pages with OVMF's table at its end."""
    data = bytearray([fill]) * (pages * PAGE)
    metadata = struct.pack("<4sIII", b"ASEV", 16 + 12 * len(sections), 1, len(sections))
    metadata += b"".join(struct.pack("<III", *section) for section in sections)
    at = len(data) - 1024
    data[at : at + len(metadata)] = metadata
    entries = b""
    for guid, value in ((METADATA, 1024 if sections else None), (HASHES, table), (RESET, reset)):
        if value is not None:
            entries += struct.pack("<I", value) + struct.pack("<H", 22) + uuid.UUID(guid).bytes_le
    whole = entries + struct.pack("<H", len(entries) + 18) + uuid.UUID(FOOTER).bytes_le
    data[len(data) - 32 - len(whole) : len(data) - 32] = whole
    return bytes(data)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 20),
    st.sampled_from(sorted(CPUS)),
    st.sampled_from([0x1, 0x21, 0x201]),
    st.booleans(),
    st.text("abc =/,", max_size=20),
    st.integers(1, 24),
)
def test_the_oracle_agrees(
    tmp_path: Path, vcpus: int, cpu: str, features: int, with_kernel: bool, cmdline: str, pages: int
) -> None:
    image = tmp_path / "ovmf.fd"
    image.write_bytes(firmware(pages=pages, fill=vcpus))
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(b"kernel" * vcpus)
    initrd.write_bytes(b"initrd" * pages)
    ours = Guest(
        firmware=parse_firmware(image.read_bytes()),
        vcpus=vcpus,
        signature=CPUS[cpu],
        features=features,
        kernel=hash_kernel(kernel.read_bytes(), initrd.read_bytes(), cmdline) if with_kernel else None,
    )
    assert CPUS[cpu] == CPU_SIGS[cpu]
    files = (str(kernel), str(initrd), cmdline) if with_kernel else ("", "", "")
    for mode, digest in ((SevMode.SEV_SNP, snp_digest), (SevMode.SEV_ES, seves_digest)):
        wanted = oracle.calc_launch_digest(mode, vcpus, CPUS[cpu], str(image), *files, features)
        assert digest(ours) == wanted


def test_debians_firmware_is_measured_as_the_oracle_does() -> None:
    image = Path("/usr/share/ovmf/OVMF.fd")
    if not image.is_file():
        pytest.skip("ovmf is not installed")
    ours = Guest(firmware=parse_firmware(image.read_bytes()), vcpus=4, signature=CPUS["EPYC-Milan"])
    wanted = oracle.calc_launch_digest(SevMode.SEV_SNP, 4, CPUS["EPYC-Milan"], str(image), "", "", "", 1)
    assert snp_digest(ours) == wanted
    kernel = hash_kernel(b"k", b"i", "c")
    with pytest.raises(InputError, match="no hashes"):
        snp_digest(Guest(firmware=ours.firmware, vcpus=1, signature=ours.signature, kernel=kernel))


def test_what_cannot_be_measured_is_said() -> None:
    signature = CPUS["EPYC"]
    bare = parse_firmware(firmware(sections=()))
    with pytest.raises(InputError, match="no SEV metadata"):
        snp_digest(Guest(firmware=bare, vcpus=1, signature=signature))
    single = parse_firmware(firmware(reset=None))
    assert snp_digest(Guest(firmware=single, vcpus=1, signature=signature))
    with pytest.raises(InputError, match="second vCPU"):
        snp_digest(Guest(firmware=single, vcpus=2, signature=signature))
    for vcpus in (0, -1, 10_000):
        with pytest.raises(InputError, match="vCPUs"):
            snp_digest(Guest(firmware=parse_firmware(firmware()), vcpus=vcpus, signature=signature))
    strange = parse_firmware(firmware(sections=((0x800000, PAGE, 9),)))
    with pytest.raises(InputError, match="unknown type"):
        snp_digest(Guest(firmware=strange, vcpus=1, signature=signature))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1100), st.binary(min_size=1, max_size=8))
def test_damaged_firmware_never_crashes(back: int, noise: bytes) -> None:
    data = bytearray(firmware(pages=2))
    at = max(0, len(data) - back - len(noise))
    data[at : at + len(noise)] = noise
    try:
        snp_digest(Guest(firmware=parse_firmware(bytes(data)), vcpus=2, signature=CPUS["EPYC"]))
    except InputError:
        return


def test_sizes_of_firmware() -> None:
    for data in (b"", b"x", bytes(PAGE - 1), bytes(PAGE + 1)):
        with pytest.raises(InputError):
            parse_firmware(data)


def test_a_single_change_is_explained() -> None:
    guest = Inputs(
        kind="sev-snp", firmware=firmware(), vcpus=2, cpu="EPYC-Milan", kernel=b"k", initrd=b"i", cmdline="c"
    )
    others = {"firmware": [("other.fd", firmware(fill=1))], "initrd": [("new.img", b"i2")]}
    for change, said in (
        ({}, "nothing"),
        ({"vcpus": 7}, "7 vCPUs in place of 2"),
        ({"vcpus": 255}, "255 vCPUs in place of 2"),
        ({"cpu": "EPYC-Genoa"}, "CPU model EPYC-Genoa"),
        ({"features": 0x21}, "guest features 0x21"),
        ({"features": 0x9}, "guest features 0x9"),
        ({"kernel": None}, "no hashes"),
        ({"initrd": None}, "no initrd"),
        ({"cmdline": ""}, "no command line"),
        ({"firmware": firmware(fill=1)}, "firmware other.fd"),
        ({"initrd": b"i2"}, "initrd new.img"),
    ):
        reported = measured(msgspec.structs.replace(guest, **change), {}).values["measurement"]
        for name in ("", "measurement"):
            found = explain(guest, name, reported, others)
            assert found is not None
            assert found.startswith(said)
    two = measured(msgspec.structs.replace(guest, firmware=firmware(fill=1), vcpus=3), {}).values["measurement"]
    assert explain(guest, "", two, others) is None
    with pytest.raises(InputError, match="no value"):
        explain(guest, "sha256.4", two, others)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, kernel, spec = tmp_path / "ovmf.fd", tmp_path / "vmlinuz", tmp_path / "web.toml"
    image.write_bytes(firmware())
    kernel.write_bytes(b"kernel")
    spec.write_text(f'[machine]\nvcpus = 2\n[boot]\nkernel = "{kernel}"\ncmdline = "quiet"\n')
    line = ["measure", str(spec), "--firmware", str(image), "--cpu", "EPYC-Milan-v2"]
    assert main(line) == 0
    digest = capsys.readouterr().out.strip()
    expected = Guest(
        firmware=parse_firmware(firmware()),
        vcpus=2,
        signature=CPUS["EPYC-Milan"],
        kernel=hash_kernel(b"kernel", b"", "quiet"),
    )
    assert digest == snp_digest(expected).hex()
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == digest
    assert main([*line, "--policy", "-"]) == 0
    policy = capsys.readouterr().out
    assert parse_policy(policy, "policy").sev_snp.measurement == (digest,)
    assert main([*line, "--policy", str(tmp_path / "policy.toml")]) == 0
    assert (tmp_path / "policy.toml").read_text() == policy
    capsys.readouterr()
    assert main([*line, "--vcpus", "3", "--explain", digest]) == 0
    assert capsys.readouterr().out == "2 vCPUs in place of 3\n"
    assert main([*line, "--explain", "00" * 48]) == 1
    assert main([*line, "--explain", "xx"]) == 2
    assert main(["measure", "--firmware", str(image), "--cpu", "Pentium"]) == 2
    assert main(["measure", "--firmware", str(image), "--cpu", "EPYC", "--kind", "sev-es"]) == 0


@pytest.mark.parametrize("choice", [[], ["--no-kernel-hashes"]])
def test_a_digest_that_says_nothing_of_the_kernel_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], choice: list[str]
) -> None:
    image, spec = tmp_path / "ovmf.fd", tmp_path / "web.toml"
    image.write_bytes(firmware())
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    spec.write_text(f'[boot]\nkernel = "{tmp_path}/vmlinuz"\n')
    line = ["measure", *([str(spec)] if choice else []), "--firmware", str(image), "--cpu", "EPYC", *choice]
    assert main([*line, "--policy", "-"]) == 0
    said = capsys.readouterr()
    assert "# not predictable: boot: " in said.out
    assert "the firmware and nothing behind it" in said.err
    assert main(["measure", str(spec), "--firmware", str(image), "--cpu", "EPYC", "--policy", "-"]) == 0
    said = capsys.readouterr()
    assert "not predictable" not in said.out
    assert said.err == ""


HEX = st.text("0123456789abcdef", min_size=96, max_size=96)
SHA256 = st.text("0123456789abcdef", min_size=64, max_size=64)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_policy_file_is_the_policy(data: st.DataObject) -> None:
    """What is written is what is read back, whatever the inputs are called."""
    kind = data.draw(st.sampled_from(["sev-snp", "tdx", "tpm", "nitro"]))
    names = {
        "sev-snp": st.just({"measurement"}),
        "tdx": st.sets(st.sampled_from(["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"]), min_size=1),
        "tpm": st.sets(st.integers(0, 23).map("sha256.{}".format), min_size=1),
        "nitro": st.sets(st.integers(0, 31).map("pcr{}".format), min_size=1),
    }[kind]
    values = {name: data.draw(SHA256 if kind == "tpm" else HEX) for name in sorted(data.draw(names))}
    inputs: dict[str, str | int] = {"kernel": data.draw(st.text(max_size=30)), "memory_mib": 7}
    found = Expected(kind=kind, values=values, inputs=inputs, unpredictable={"x": data.draw(st.text(max_size=30))})
    assert parse_policy(found.policy_text(), "policy") == found.policy()
    other = msgspec.structs.replace(found, inputs={}, unpredictable={})
    assert found.identity() == other.identity()
    assert found.document()["values"] == values


def test_what_has_no_policy_says_so() -> None:
    for kind, values, said in (("sev-es", {"measurement": "00" * 32}, "no policy"), ("tpm", {}, "nothing to want")):
        with pytest.raises(InputError, match=said):
            Expected(kind=kind, values=values, inputs={}).policy()


def test_key_release_takes_the_same_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, spec, policy = tmp_path / "ovmf.fd", tmp_path / "web.toml", tmp_path / "policy.toml"
    image.write_bytes(firmware())
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    spec.write_text(f'[boot]\nkernel = "{tmp_path}/vmlinuz"\n')
    assert main(["measure", str(spec), "--firmware", str(image), "--cpu", "EPYC", "--policy", str(policy)]) == 0
    digest = capsys.readouterr().out.strip()
    release, key = tmp_path / "release.toml", tmp_path / "web.key"
    key.write_bytes(b"secret")
    key.chmod(0o600)
    release.write_text(
        f'format = 1\n[resource."default/disk/web"]\npolicy = "{policy}"\nsecret = {{ file = "{key}" }}\n'
    )
    guarded = releases.load(str(release))["default/disk/web"]
    assert guarded.policy.sev_snp.measurement == (digest,)
    assert guarded.kinds == {"sev-snp"}
