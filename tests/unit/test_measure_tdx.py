"""MRTD and RTMRs: beside a plain reading of the TDX module's rules, a firmware made for it, Debian's, and the event log
of a real TDX guest. No TDX processor has run here: what its module would do is what its specification says.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.cli.main import main
from casemate.errors import InputError
from casemate.evidence.event_log import EV_EFI_VARIABLE_DRIVER_CONFIG, EventLog, parse_event_log
from casemate.evidence.policy import parse_policy
from casemate.measure.boot import CALLING
from casemate.measure.inputs import Inputs, measured
from casemate.measure.registers import Prediction, Step, Steps
from casemate.measure.tdvf import parse_tdvf
from casemate.measure.tdx import measure_tdx
from casemate.measure.variables import GLOBAL, SECURITY, variable_event

VECTORS = Path(__file__).parents[3] / "shared/vectors/tdx"
DEBIAN = Path("/usr/share/ovmf/OVMF.fd")
PAGE = 4096
CODE, STORE, TEMPORARY = 0, 1, 3


def firmware(
    sections: list[tuple[int, int, int, int, int, int]], *, pages: int = 8, fill: int = 0x5A, version: int = 1
) -> bytes:
    """An image with TDX metadata: (data offset, data size, address, memory, type, attributes) of each section."""
    data = bytearray(bytes([fill]) * (pages * PAGE))
    metadata = struct.pack("<4sIII", b"TDVF", 16 + 32 * len(sections), version, len(sections))
    metadata += b"".join(struct.pack("<IIQQII", *section) for section in sections)
    at = len(data) - 2048
    data[at : at + len(metadata)] = metadata
    entry = struct.pack("<IH", 2048, 22) + uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2").bytes_le
    table = entry + struct.pack("<H", len(entry) + 18) + uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    data[len(data) - 32 - len(table) : len(data) - 32] = table
    return bytes(data)


SECTIONS = [
    (2 * PAGE, 6 * PAGE, 0xFFFFA000, 6 * PAGE, CODE, 1),
    (0, 2 * PAGE, 0xFFFF8000, 2 * PAGE, STORE, 0),
    (0, 0, 0x810000, 2 * PAGE, TEMPORARY, 0),
    (0, 0, 0x900000, PAGE, TEMPORARY, 2),
]


def by_the_rules(data: bytes, sections: list[tuple[int, int, int, int, int, int]], two_passes: bool) -> bytes:
    """TDH.MEM.PAGE.ADD: 12 bytes of name, 4 of zeros, address, zeros to 128. TDH.MR.EXTEND: the same, and 256 bytes."""
    operations: list[bytes] = []
    for offset, size, address, memory, _, attributes in sections:
        if attributes & 2:
            continue
        adds, extends = [], []
        for page in range(memory // PAGE):
            gpa = address + page * PAGE
            adds.append(b"MEM.PAGE.ADD" + bytes(4) + struct.pack("<Q", gpa) + bytes(104))
            found = b""
            for chunk in range(16):
                where = page * PAGE + chunk * 256
                body = data[offset : offset + size][where : where + 256]
                found += b"MR.EXTEND" + bytes(7) + struct.pack("<Q", gpa + chunk * 256) + bytes(104)
                found += body + bytes(256 - len(body))
            extends.append(found if attributes & 1 else b"")
        if two_passes:
            operations += adds + extends
        else:
            operations += [part for pair in zip(adds, extends, strict=True) for part in pair]
    return hashlib.sha384(b"".join(operations)).digest()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 255), st.integers(0, 6 * PAGE), st.booleans())
def test_mrtd_by_the_rules(fill: int, size: int, two_passes: bool) -> None:
    sections = [(2 * PAGE, size, 0xFFFFA000, 6 * PAGE, CODE, 1), *SECTIONS[1:]]
    image = firmware(sections, fill=fill)
    assert parse_tdvf(image).mrtd(two_passes=two_passes) == by_the_rules(image, sections, two_passes)


@pytest.mark.skipif(not DEBIAN.is_file(), reason="ovmf is not installed")
def test_debians_firmware() -> None:
    image = DEBIAN.read_bytes()
    found = parse_tdvf(image)
    sections = [msgspec.structs.astuple(section) for section in found.sections]
    assert len(sections) == 6
    for two_passes in (False, True):
        assert found.mrtd(two_passes=two_passes) == by_the_rules(image, sections, two_passes)


def test_metadata_that_lie_are_refused() -> None:
    good = SECTIONS[0]
    for sections, said in (
        ([(0, PAGE, 0x1001, PAGE, 0, 1)], "does not fit"),
        ([(0, 2 * PAGE, 0x1000, PAGE, 0, 1)], "does not fit"),
        ([(7 * PAGE, 2 * PAGE, 0x1000, 2 * PAGE, 0, 1)], "does not fit"),
        ([(0, 0, 0x1000, PAGE, 0, 4)], "does not fit"),
        ([(0, 0, 1 << 52, PAGE, 0, 0)], "does not fit"),
        ([(0, 0, 0, 1 << 30, 0, 0)], "more initial memory"),
        ([], "another form"),
    ):
        with pytest.raises(InputError, match=said):
            parse_tdvf(firmware(sections))
    with pytest.raises(InputError, match="another form"):
        parse_tdvf(firmware([good], version=2))
    with pytest.raises(InputError, match="no TDX metadata"):
        parse_tdvf(bytes(PAGE))
    with pytest.raises(InputError, match="no section of variables"):
        parse_tdvf(firmware([good])).variables  # noqa: B018


def step(register: int, what: str, data: bytes) -> Step:
    return Step(register=register, what=what, digests={"sha384": hashlib.sha384(data).digest()})


def test_pcrs_go_into_their_registers() -> None:
    """UEFI specification, table 38.4.1; one separator for each register."""
    pcrs = Prediction(
        ("sha384",),
        (
            step(7, "variable", b"v"),
            step(7, "separator", bytes(4)),
            step(4, "boot option", CALLING),
            *(step(register, "separator", bytes(4)) for register in range(7)),
            step(5, "partition table", b"g"),
            step(4, "loader", b"l"),
            step(9, "initrd", b"i"),
            step(11, "section", b"s"),
        ),
    )
    tdvf = parse_tdvf(firmware(SECTIONS))
    found = measure_tdx(pcrs, tdvf, None)
    names = {register: [item.what for item in found.steps if item.register == register] for register in (1, 2)}
    assert names == {1: ["boot option", "separator", "partition table", "loader"], 2: ["initrd", "section"]}
    assert set(found.unpredictable()) == {0}
    assert found.values("sha384", (3,)) == {3: bytes(48)}


def log_of(*data: bytes) -> EventLog:
    """A log whose register 1, RTMR 0, has these."""
    from casemate.evidence.event_log import Event

    events = tuple(Event(1, 1, {"sha384": hashlib.sha384(item).digest()}, item) for item in data)
    return EventLog(events, ("sha384",), 0)


def test_a_reference_gives_rtmr_0_when_it_is_of_this_launch() -> None:
    tdvf = parse_tdvf(firmware(SECTIONS))
    pcrs = Prediction(("sha384",), (step(7, "variable SecureBoot", b"on"), step(4, "loader", b"l")))
    good = (b"memory", tdvf.variables, b"on", b"acpi")
    found = measure_tdx(pcrs, tdvf, log_of(*good))
    wanted = bytes(48)
    for item in good:
        wanted = hashlib.sha384(wanted + hashlib.sha384(item).digest()).digest()
    assert found.values("sha384", (0,)) == {0: wanted}
    for other in ((b"memory", b"other", b"on"), (b"memory", tdvf.variables, b"off"), (b"on", tdvf.variables), ()):
        with pytest.raises(InputError, match="another launch"):
            measure_tdx(pcrs, tdvf, log_of(*other))


@pytest.mark.skipif(not VECTORS.is_dir(), reason="shared/vectors is not beside this checkout")
def test_events_of_a_real_guest_are_those_that_are_computed() -> None:
    """Google's firmware is not at hand, so its MRTD cannot be computed; its log has the events that ours have."""
    log = parse_event_log((VECTORS / "cos-113.ccel-data.bin").read_bytes())
    by_register = {n: [event for event in log.events[1:] if event.register == n] for n in (1, 2, 3)}
    for name, vendor in (("SecureBoot", GLOBAL), ("PK", GLOBAL), ("KEK", GLOBAL), ("db", SECURITY), ("dbx", SECURITY)):
        event = next(e for e in by_register[1] if name.encode("utf-16-le") in e.data[32:60])
        assert event.kind == EV_EFI_VARIABLE_DRIVER_CONFIG
        value = event.data[32 + 2 * len(name) :]
        assert hashlib.sha384(variable_event(vendor, name, value)).digest() == event.digests["sha384"]
    steps = Steps(("sha384",))
    steps.data(1, "", CALLING)
    steps.data(1, "", bytes(4))
    for own, event in zip(steps.found, by_register[2], strict=False):
        assert own.digests["sha384"] == event.digests["sha384"]
    assert [event.data for event in by_register[2][-2:]] == [
        b"Exit Boot Services Invocation",
        b"Exit Boot Services Returned with Success",
    ]


@pytest.mark.skipif(not DEBIAN.is_file(), reason="ovmf is not installed")
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel, spec = tmp_path / "vmlinuz", tmp_path / "td.toml"
    kernel.write_bytes(b"not a kernel")
    spec.write_text(f'[machine]\ntype = "q35"\n[boot]\nkernel = "{kernel}"\n')
    line = ["measure", str(spec), "--kind", "tdx", "--firmware", str(DEBIAN)]
    assert main(line) == 2
    assert "bzImage" in capsys.readouterr().err
    kernel.write_bytes(bzimage())
    assert main([*line, "--policy", "-"]) == 0
    policy = parse_policy(capsys.readouterr().out, "policy")
    assert policy.tdx.mrtd == (parse_tdvf(DEBIAN.read_bytes()).mrtd().hex(),)
    assert set(policy.tdx.rtmr) == {"1", "2", "3"}
    two = parse_tdvf(DEBIAN.read_bytes()).mrtd(two_passes=True).hex()
    assert main([*line, "--explain", f"mrtd={two}"]) == 0
    assert "before they are measured" in capsys.readouterr().out


def bzimage() -> bytes:
    """The least that is a kernel: headers of the boot protocol and of PE, one section."""
    image = bytearray(0x2000)
    image[:2] = b"MZ"
    image[0x3C:0x40] = (0x80).to_bytes(4, "little")
    image[0x80:0x84] = b"PE\0\0"
    struct.pack_into("<HH", image, 0x84, 0x8664, 1)
    struct.pack_into("<H", image, 0x94, 160)
    struct.pack_into("<H", image, 0x98, 0x20B)
    struct.pack_into("<I", image, 0x98 + 60, 0x1000)
    struct.pack_into("<I", image, 0x98 + 108, 6)
    struct.pack_into("<8sIIII", image, 0x98 + 160, b".text", 0x1000, 0x1000, 0x1000, 0x1000)
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = (0x20F).to_bytes(2, "little")
    image[0x211] = 1
    image[0x236] = 2
    return bytes(image)


def test_memory_counts_only_where_the_header_is_qemus() -> None:
    if not DEBIAN.is_file():
        pytest.skip("ovmf is not installed")
    image = DEBIAN.read_bytes()
    base = Inputs(kind="tdx", firmware=image, kernel=bzimage(), initrd=b"i" * 5000, memory_bytes=1 << 30)
    small = measured(base, {}).values
    large = measured(msgspec.structs.replace(base, memory_bytes=2 << 30), {}).values
    assert small["rtmr1"] != large["rtmr1"], "this firmware sees the kernel with the initrd's address in its header"
    assert small["mrtd"] == large["mrtd"]


def test_a_kernel_that_secure_boot_would_not_check_leaves_mrtd() -> None:
    from tests.unit.test_measure_boot import kernel, platform

    from casemate.measure import boot

    enforced = {(GLOBAL, "PK"): b"k"}
    found = boot.predict_direct(
        platform(variables=enforced, is_td=True, plain_kernel=True), boot.Direct(kernel(), None, ""), ("sha384",)
    )
    assert {4, 7, 9} <= set(found.unpredictable())
    registers = measure_tdx(found, parse_tdvf(firmware(SECTIONS)), None)
    assert set(registers.unpredictable()) == {0, 1, 2}
    assert registers.values("sha384", (3,)) == {3: bytes(48)}
