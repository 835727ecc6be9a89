"""Our header readers beside QEMU and oslo.utils, on mutated headers: never "safe" where another file is meant.

``CASEMATE_ORACLE_HEADERS`` is how many mutated headers each format gets (default 200).
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import tempfile
from collections.abc import Iterator

import pytest
from tests.support import foreign_images as make
from tests.support.foreign_images import MIB, SOUND, mended
from tests.support.image_oracle import Oracle, oracle

from casemate.errors import ImageError
from casemate.image.foreign import DRIVERS, SourceHeader, inspect_source
from casemate.image.overlay import write_empty_qcow2
from casemate.image.reader import ImageReader

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-storage-daemon") is None,
    reason="qemu-storage-daemon is missing (qemu-system-common, qemu-utils)",
)
EACH = int(os.environ.get("CASEMATE_ORACLE_HEADERS", "200"))
LIMIT = 1 << 50
"""As large as anything may claim to be: sizes are not what this is about."""
INTERESTING = (0, 1, 2, 3, 4, 7, 0x7F, 0x80, 0xFF, 0x200, 0x7FFF, 0xFFFF, 1 << 26, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62)


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    with oracle(tmp_path_factory.mktemp("oracle")) as made:
        yield made
        assert not made.deaths, "a header killed QEMU: look at it, and refuse it"


FLAT = make.DESCRIPTOR.format(kind="monolithicFlat", sectors=2048, file="disk.vmdk").replace("SPARSE", "FLAT")


def ours(data: bytes, declared: str) -> SourceHeader | None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            return inspect_source(ImageReader(file.fileno(), "it"), declared, LIMIT)
        except ImageError:
            return None


def oslo_objects(data: bytes, image_format: str) -> str:
    """What oslo.utils finds unsafe in an image of this format; empty if nothing, or if it cannot read it."""
    from oslo_utils.imageutils import format_inspector

    name = {"vhd": "vhd"}.get(image_format, image_format)
    made = format_inspector.get_inspector(name)
    assert made is not None
    inspector = made()
    try:
        for at in range(0, len(data), 65536):
            inspector.eat_chunk(data[at : at + 65536])
        inspector.finish()
        if not inspector.format_match:
            return ""
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as failed:
        return ", ".join(sorted(failed.failures))
    except Exception as error:
        return "" if "safety" not in str(error) else str(error)
    return ""


def qcow2(**fields: int) -> bytes:
    """An empty qcow2 of one MiB with bytes at places: ``at_8=...`` writes 8 bytes, big endian, at 8."""
    with tempfile.TemporaryFile() as file:
        write_empty_qcow2(file.fileno(), MIB)
        file.seek(0)
        data = bytearray(file.read())
    for name, value in fields.items():
        struct.pack_into(">Q", data, int(name.removeprefix("at_")), value)
    return bytes(data)


BASES = {**SOUND, "empty.qcow2": qcow2()}
PLACES = {
    "vmdk": [(at, 4) for at in range(0, 80, 4)] + [(at, 8) for at in (12, 20, 28, 36, 48, 56, 64)],
    "vhd": [(at, 4) for at in range(0, 90, 4)] + [(512 + at, 4) for at in range(0, 640, 8)],
    "vhdx": [(place + at, 4) for place in (65536, 196608) for at in range(0, 96, 4)]
    + [(2 * MIB + at, 4) for at in range(0, 192, 4)]
    + [(2 * MIB + 65536 + at, 4) for at in range(0, 40, 4)],
    "vdi": [(at, 4) for at in (*range(64, 84, 4), *range(340, 456, 4))],
    "qcow2": [(at, 4) for at in range(0, 120, 4)] + [(at, 8) for at in (8, 24, 40, 48, 64, 72, 80, 88)],
}
WORDS = (
    'parentFileNameHint="{bait}"\n',
    'RW 2048 FLAT "{bait}" 0\n',
    'RW 2048 VMFS "{bait}"\n',
    'RW 2048 SPARSE "{bait}"\n',
    'createType="monolithicFlat"\n',
    'createType="twoGbMaxExtentSparse"\n',
    '\0RW 2048 FLAT "{bait}" 0\n',
    'PARENTCID=00000001\nparentfilenamehint="{bait}"\n',
    'json:{{"driver":"file","filename":"{bait}"}}',
)


def mutations(name: str, bait: str, count: int) -> Iterator[bytes]:
    image_format = name.split(".")[1]
    rng = random.Random(f"{name} {os.environ.get('CASEMATE_ORACLE_SEED', '')}")
    base = BASES[name]
    for _ in range(count):
        data = bytearray(base)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            at, width = rng.choice(PLACES[image_format])
            if name == "fixed.vhd":
                at = len(base) - 512 + at % 96
            value = rng.choice((*INTERESTING, rng.getrandbits(16), rng.getrandbits(63)))
            order = rng.choice(("little", "big")) if image_format == "qcow2" else "little"
            data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, order)  # type: ignore[arg-type]
        if image_format == "vmdk" and rng.random() < 0.5:
            at = rng.choice((0x200, 0x200 + len(make.DESCRIPTOR) - 9, 0x200 + 600, 10 * 512))
            word = rng.choice(WORDS).format(bait=bait).encode()
            data[at : at + len(word)] = word
        if image_format == "qcow2" and rng.random() < 0.3:
            data[8:16] = struct.pack(">Q", 1024)
            data[16:20] = struct.pack(">I", len(bait))
            data[1024 : 1024 + len(bait)] = bait.encode()
        yield mended(bytes(data), image_format)


@pytest.mark.parametrize("name", BASES)
def test_sound_images_open_and_have_the_same_size(name: str, qemu: Oracle) -> None:
    image_format = name.split(".")[1]
    header = ours(BASES[name], image_format)
    assert header is not None
    answer = qemu.ask(BASES[name], header.driver)
    assert (answer.opened, answer.other, answer.virtual_size_bytes) == (True, "", header.virtual_size_bytes), answer
    assert oslo_objects(BASES[name], image_format) == ""


@pytest.mark.parametrize("name", BASES)
def test_never_safe_where_qemu_or_oslo_sees_another_file(name: str, qemu: Oracle) -> None:
    image_format = name.split(".")[1]
    accepted = wanted = 0
    for data in mutations(name, str(qemu.bait), EACH // 2 if image_format == "qcow2" else EACH):
        header = ours(data, image_format)
        answer = qemu.ask(data, DRIVERS[image_format])
        wanted += bool(answer.other)
        if header is None:
            continue
        accepted += 1
        assert not answer.other, f"accepted, and QEMU wants {answer.other}"
        if answer.opened:
            assert answer.virtual_size_bytes == header.virtual_size_bytes
        objections = oslo_objects(data, image_format)
        assert not objections, f"accepted, and oslo.utils objects: {objections}"
    assert accepted > EACH // 100, "the mutations must leave some images sound"
    if name in {"sparse.vmdk", "empty.qcow2"} and EACH >= 100:
        assert wanted > 0, "the mutations must make some images point elsewhere"


@pytest.mark.parametrize(
    ("data", "driver"),
    [
        (make.vmdk(capacity=0, text=FLAT), "vmdk"),
        (make.vmdk(text=make.DESCRIPTOR + 'parentFileNameHint="/nonexistent"'), "vmdk"),
    ],
    ids=["capacity 0", "parent"],
)
def test_the_oracle_sees_references(data: bytes, driver: str, qemu: Oracle) -> None:
    del qemu.deaths[:]
    bait = str(qemu.bait).encode()
    data = data.replace(b"/nonexistent", bait).replace(b'"disk.vmdk"', b'"' + bait + b'" 0')
    assert qemu.ask(data, driver).other
    assert ours(data, driver) is None


def test_extended_l2_is_accepted_which_oslo_refuses(qemu: Oracle) -> None:
    """The one objection of oslo.utils that we do not share: a feature of the format that needs no other file."""
    data = bytearray(BASES["empty.qcow2"])
    data[72:80] = struct.pack(">Q", 1 << 4)
    header = ours(bytes(data), "qcow2")
    assert header is not None
    assert qemu.ask(bytes(data), "qcow2").opened
    assert "unknown" in oslo_objects(bytes(data), "qcow2") or oslo_objects(bytes(data), "qcow2")
