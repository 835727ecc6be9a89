"""What boots, what vouches for it and what a unified kernel image measures, on images made for it; real boots are in
tests/boot/test_measured_boot.py."""

from __future__ import annotations

import datetime
import hashlib
import struct
import uuid
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fuzz.fuzz_measure import fat_seed, gpt_seed, reader_of, store_of, variables_seed, volumes_seed
from tests.support.signed_boot import efi_disk

from casemate.errors import InputError
from casemate.evidence.event_log import EV_NO_ACTION, Event, EventLog
from casemate.measure import boot, shim, stub
from casemate.measure.disk import REMOVABLE, _measure_companions, _within, boot_path
from casemate.measure.fat import Fat
from casemate.measure.gpt import Gpt, read_gpt
from casemate.measure.linux import as_loaded
from casemate.measure.pe import Pe, PeSection, parse_pe
from casemate.measure.registers import Steps, extended
from casemate.measure.secureboot import is_enforcing, measure_variables, signature_lists, vouches
from casemate.measure.variables import ENABLE, GLOBAL, SECURITY, SHIM, Variables, parse_variables, variable_event
from casemate.measure.volumes import Volumes, parse_volumes

X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
SHA256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le
TPM_DRIVER = uuid.UUID("fdff263d-5f68-4591-87ba-b768f445a9af").bytes_le
SECURE_PAGES = uuid.UUID("f0e6a44f-7195-41c3-ac64-54f202cd0a21").bytes_le
OWNER = b"o" * 16


def der(tag: int, body: bytes) -> bytes:
    size = len(body)
    length = bytes([size]) if size < 128 else bytes([0x82]) + size.to_bytes(2, "big")
    return bytes([tag]) + length + body


@cache
def certificates() -> tuple[bytes, bytes, bytes]:
    """(root, leaf that it signed, another root) in DER."""
    begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)

    def make(name: str, issuer: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey) -> bytes:
        subject, above = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, issuer))
        builder = x509.CertificateBuilder(above, subject, key.public_key(), 7).not_valid_before(begin)
        made = builder.not_valid_after(begin.replace(year=2045)).sign(by, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.DER)

    root, leaf, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    return make("root", "root", root, root), make("leaf", "root", leaf, root), make("other", "other", other, other)


def pe(sections: dict[str, bytes], *, signed_by: bytes | None = None) -> bytes:
    """An image with these sections; its signature holds one certificate, and is no signature."""
    head = 0x58 + 160 + 40 * len(sections)
    start = -(-head // 512) * 512
    image = bytearray(start)
    image[:2] = b"MZ"
    image[0x3C:0x40] = (0x40).to_bytes(4, "little")
    struct.pack_into("<4sHHIIIHH", image, 0x40, b"PE\0\0", 0x8664, len(sections), 0, 0, 0, 160, 0)
    struct.pack_into("<H", image, 0x58, 0x20B)
    struct.pack_into("<I", image, 0x58 + 60, start)
    struct.pack_into("<I", image, 0x58 + 108, 6)
    body = b""
    for index, (name, data) in enumerate(sections.items()):
        raw = data.ljust(-(-len(data) // 512) * 512, b"\0")
        at = 0x58 + 160 + 40 * index
        where = (len(data), 0x1000 * (index + 1), len(raw), start + len(body))
        struct.pack_into("<8sIIII", image, at, name.encode(), *where)
        body += raw
    table = b""
    if signed_by is not None:
        signed = der(0x30, der(0x02, b"\x01") + der(0xA0, signed_by))
        content = der(0x30, der(0x06, bytes.fromhex("2a864886f70d010702")) + der(0xA0, signed))
        table = struct.pack("<IHH", 8 + len(content), 0x200, 2) + content
        table += bytes(-len(table) % 8)
        struct.pack_into("<II", image, 0x58 + 112 + 32, start + len(body), len(table))
    return bytes(image) + body + table


def listed(kind: bytes, *entries: bytes) -> bytes:
    size = 16 + len(entries[0])
    return kind + struct.pack("<III", 28 + size * len(entries), 0, size) + b"".join(OWNER + item for item in entries)


# ---- Secure Boot -----------------------------------------------------------------------------------------------------


def test_authenticode_leaves_out_what_signing_changes() -> None:
    root, leaf, _ = certificates()
    plain = parse_pe(pe({".text": b"code" * 99}), "plain")
    signed = parse_pe(pe({".text": b"code" * 99}, signed_by=leaf), "signed")
    assert plain.digest("sha256") == signed.digest("sha256")
    assert signed.signatures
    assert not plain.signatures
    assert parse_pe(pe({".text": b"Code" * 99}), "other").digest("sha256") != plain.digest("sha256")
    assert root != leaf


def test_what_vouches_for_an_image() -> None:
    root, leaf, other = certificates()
    signed = parse_pe(pe({".text": b"x"}, signed_by=leaf), "signed")
    plain = parse_pe(pe({".text": b"x"}), "plain")
    for database, entry in (
        (listed(X509, leaf), leaf),
        (listed(X509, root), root),
        (listed(X509, other) + listed(X509, root) + listed(X509, leaf), root),
        (listed(X509, other), None),
        (b"", None),
        (listed(SHA256, plain.digest("sha256")), plain.digest("sha256")),
        (listed(SHA256, plain.digest("sha256")) + listed(X509, root), root),
    ):
        found = vouches(signed, database)
        assert (found.data if found is not None else None) == entry
    found = vouches(plain, listed(X509, root) + listed(SHA256, bytes(32), plain.digest("sha256")))
    assert found is not None
    assert found.measured == OWNER + plain.digest("sha256")


def test_lists_that_lie_are_refused() -> None:
    good = listed(X509, b"c" * 40)
    for data in (good[:-1], good[:20], good + b"x", X509 + struct.pack("<III", 20, 0, 40) + bytes(40)):
        with pytest.raises(InputError):
            list(signature_lists(data))


def test_whether_secure_boot_enforces() -> None:
    keys: Variables = {(GLOBAL, "PK"): b"k"}
    assert is_enforcing(keys, capable=True)
    assert is_enforcing({**keys, ENABLE: b"\x01"}, capable=True)
    assert not is_enforcing({**keys, ENABLE: b"\0"}, capable=True)
    assert not is_enforcing(keys, capable=False)
    assert not is_enforcing({}, capable=True)
    steps = Steps(("sha256",))
    measure_variables(steps, {**keys, (SECURITY, "dbt"): b"t"}, capable=True)
    names = [step.what.removeprefix("variable ") for step in steps.found]
    assert names == ["SecureBoot", "PK", "KEK", "db", "dbx", "dbt", "separator"]
    assert steps.found[0].digests["sha256"] == hashlib.sha256(variable_event(GLOBAL, "SecureBoot", b"\1")).digest()


# ---- which application -----------------------------------------------------------------------------------------------


def table() -> Gpt:
    found = read_gpt(reader_of(gpt_seed()))
    assert found is not None
    return found


def option(*nodes: bytes, attributes: int = 1, data: bytes = b"") -> bytes:
    path = b"".join(nodes) + b"\x7f\xff\x04\0"
    return struct.pack("<IH", attributes, len(path)) + "name\0".encode("utf-16-le") + path + data


def node(kind: int, subkind: int, body: bytes) -> bytes:
    return struct.pack("<BBH", kind, subkind, 4 + len(body)) + body


def hard_disk(identity: uuid.UUID) -> bytes:
    return node(4, 1, struct.pack("<IQQ", 1, 40, 60) + identity.bytes_le + b"\x02\x02")


PCI = node(2, 1, b"\xd0\x41\x03\x0a\0\0\0\0") + node(1, 1, b"\0\x02")
FILE = node(4, 4, "\\EFI\\debian\\shimx64.efi\0".encode("utf-16-le"))
FIRMWARE_PAGES = node(4, 7, bytes(16)) + node(4, 6, bytes(16))


def test_the_boot_order_names_the_application() -> None:
    esp = table().esp
    assert esp is not None
    other = uuid.UUID(int=7)
    for options, path, is_known in (
        ([], REMOVABLE, True),
        ([option(FIRMWARE_PAGES, attributes=0x101)], REMOVABLE, True),
        ([option(FIRMWARE_PAGES)], REMOVABLE, True),
        ([option(PCI)], REMOVABLE, True),
        ([option(PCI, data=b"guid of the firmware")], REMOVABLE, True),
        ([option(hard_disk(esp.identity), FILE)], "EFI/debian/shimx64.efi", True),
        ([option(hard_disk(esp.identity), FILE, attributes=0), option(PCI)], REMOVABLE, True),
        ([option(hard_disk(esp.identity), FILE, data=b"@1")], "", False),
        ([option(hard_disk(other), FILE)], "", False),
    ):
        order = b"".join(struct.pack("<H", number) for number in range(len(options)))
        variables: Variables = {(GLOBAL, "BootOrder"): order}
        variables |= {(GLOBAL, f"Boot{number:04X}"): body for number, body in enumerate(options)}
        found, why = boot_path(variables, table())
        assert (found, not why) == (path, is_known)
    assert boot_path({(GLOBAL, "BootNext"): b"\0\0"}, table())[1]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120))
def test_any_boot_option_is_read_or_passed_over(body: bytes) -> None:
    variables: Variables = {(GLOBAL, "BootOrder"): b"\0\0", (GLOBAL, "Boot0000"): body}
    path, why = boot_path(variables, table())
    assert bool(path) != bool(why)


# ---- unified kernel images, shim -------------------------------------------------------------------------------------


def uki(version: int, **sections: bytes) -> bytes:
    magic = f"#### LoaderInfo: systemd-stub {version}.4-1 ####".encode()
    named = {".linux": pe({".text": b"kernel"}), ".osrel": b"ID=x\n", ".cmdline": b"quiet \n", ".initrd": b"initrd!"}
    return pe({".sdmagic": magic, ".sbat": b"sbat", **named, **{f".{name}": data for name, data in sections.items()}})


def test_sections_count_by_version() -> None:
    old = [".linux", ".osrel", ".cmdline", ".initrd"]
    for version, more in (
        (252, []),
        (253, [".uname"]),
        (254, [".uname", ".sbat"]),
        (257, [".uname", ".sbat"]),
    ):
        image = parse_pe(uki(version, uname=b"6.1"), "uki")
        assert [name for name, _ in stub.measured_sections(image)] == [*old, *more]
        assert stub.loads_kernel_by_firmware(image) == (version < 258)
        assert stub.unpredictable(image) == ""
        assert stub.command_line(image) == "quiet"
    assert stub.initrd(parse_pe(uki(252), "uki")) == b"initrd!"
    archive = stub.initrd(parse_pe(uki(257), "uki"))
    assert archive.startswith(b"initrd!\0" + b"070701")
    assert b".extra/os-release" in archive
    assert archive.endswith(b"TRAILER!!!\0\0\0\0")
    assert len(archive) % 4 == 0


def test_unified_images_that_cannot_be_told() -> None:
    for image, said in (
        (uki(251), "older"),
        (uki(257, profile=b"ID=a"), "chooses"),
        (uki(257, hwids=b"x"), "chooses"),
        (uki(257).replace(b"quiet \n", b" quiet\n"), "space"),
    ):
        assert said in stub.unpredictable(parse_pe(image, "uki"))
    assert stub.stub_version(parse_pe(pe({".text": b"x"}), "none")) is None


LEVELS = b"\0\0\0\0\x08\0\0\0\x29\0\0\0sbat,1,2025021800\nshim,4\ngrub,5\n\0sbat,1,2025051000\n\0"


def shim_image(vendor: bytes = b"") -> Pe:
    """shim with its two sections, whose names are too long for a header."""
    cert = struct.pack("<IIII", len(vendor), 0, 16, 16) + vendor
    sections = (
        PeSection(".sbatlevel", len(LEVELS), 0, len(LEVELS)),
        PeSection(".vendor_cert", len(cert), 64, len(cert)),
    )
    return Pe(LEVELS.ljust(64, b"\0") + cert, (), sections, ())


def test_long_section_names_are_in_the_string_table() -> None:
    image = bytearray(pe({"/4": b"x"}))
    struct.pack_into("<II", image, 0x40 + 12, len(image), 0)
    names = b"\0\0\0\0.sbatlevel\0"
    image += struct.pack("<I", len(names)) + names[4:]
    assert parse_pe(bytes(image), "shim").section(".sbatlevel") == b"x"


def test_shim_and_its_variables() -> None:
    volume = Fat(reader_of(fat_seed()))
    assert "MokListX" in shim.unpredictable(volume, "EFI", {(SHIM, "MokListX"): b"x"})
    assert shim.unpredictable(volume, "EFI", {(SHIM, "SbatLevel"): b"sbat,1,2025021800\n"}) == ""
    assert shim.is_shim(shim_image())
    automatic, original = b"sbat,1,2025021800\nshim,4\ngrub,5\n", b"sbat,1,2021030218\n"
    newer, older = b"sbat,1,2026010100\nshim,5\n", b"sbat,1,2022010100\n"
    on: Variables = {(GLOBAL, "PK"): b"k"}
    for variables, level in (
        (on, automatic),
        ({**on, (SHIM, "SbatLevel"): older}, automatic),
        ({**on, (SHIM, "SbatLevel"): newer}, newer),
        ({}, original),
        ({(SHIM, "SbatLevel"): older}, older),
    ):
        steps = Steps(("sha256",))
        shim.measure_level(steps, platform(variables=variables), shim_image())
        wanted = hashlib.sha256(variable_event(SHIM, "SbatLevel", level)).digest()
        assert [(step.register, step.digests["sha256"]) for step in steps.found] == [(7, wanted)]


def test_lists_of_shim() -> None:
    """As the event log of a real trust domain has them (Ubuntu's shim on TDX; rhboot/shim mok.c)."""
    steps = Steps(("sha384",))
    shim.measure_lists(steps, shim_image(b"\x30certificate"))
    trusted, revoked, both = (step.digests["sha384"].hex() for step in steps.found)
    assert {step.register for step in steps.found} == {14}
    assert revoked == hashlib.sha384(shim._NOTHING).hexdigest()
    assert revoked.startswith("80ee2571334a57bf90238d21964447e5")
    assert both == "8d2ce87d86f55fcfab770a047b090da23270fa206832dfea7e0c946fff451f819add242374be551b0d6318ed6c7d41d8"
    size = struct.pack("<III", 28 + 16 + 12, 0, 16 + 12)
    kind = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
    entry = SHIM.bytes_le + b"\x30certificate"
    assert trusted == hashlib.sha384(kind + size + entry).hexdigest()
    none = Steps(("sha384",))
    shim.measure_lists(none, shim_image())
    assert [step.digests["sha384"].hex() for step in none.found] == [revoked, revoked, both]
    with pytest.raises(InputError, match="vendor_cert"):
        shim.measure_lists(none, parse_pe(pe({".text": b"x"}), "none"))


def test_what_shim_lets_start() -> None:
    root, leaf, other = certificates()
    grub = pe({".text": b"grub"}, signed_by=leaf)
    on: Variables = {(GLOBAL, "PK"): b"k", (SECURITY, "db"): listed(X509, other)}
    steps = Steps(("sha256",))
    vendor = shim.Vendor(steps, platform(variables=on), shim_image(root))
    vendor.start(grub, "grub")
    vendor.check(grub, "kernel", 2, 0)
    assert [step.register for step in steps.found] == [7, 4, 4, 4], "the authority is measured once"
    authority = variable_event(SHIM, "MokListRT", SHIM.bytes_le + root)
    assert steps.found[0].digests["sha256"] == hashlib.sha256(authority).digest()
    with pytest.raises(InputError, match="shim refuses"):
        vendor.start(pe({".text": b"grub"}, signed_by=other[:-1] + b"x"), "grub")
    with pytest.raises(InputError, match="shim refuses"):
        shim.Vendor(Steps(("sha256",)), platform(variables=on), shim_image()).start(grub, "grub")
    steps = Steps(("sha256",))
    off = shim.Vendor(steps, platform(), shim_image(root))
    off.start(grub, "grub")
    off.check(grub, "kernel", 2, 1)
    assert [step.register for step in steps.found] == [4, 4]


@pytest.mark.parametrize(
    ("extra", "said"),
    [("loader/addons/a.addon.efi", "loader/addons"), ("EFI/BOOT/BOOTX64.EFI.extra.d/x.cred", ".extra.d"), ("x", "")],
)
def test_what_a_stub_takes_along_is_not_guessed(tmp_path: Path, extra: str, said: str) -> None:
    """On a partition that mkfs.vfat and mtools made, which the reader has to agree with."""
    files: dict[str, Path | bytes] = {REMOVABLE: bytes(range(256)) * 999, extra: b"more"}
    read = reader_of(efi_disk(tmp_path / "disk", files).read_bytes())
    found = read_gpt(read)
    assert found is not None
    assert found.esp is not None
    volume = Fat(_within(read, found.esp))
    for name, data in files.items():
        assert volume.file(name.lower()) == data
    assert volume.file("EFI/none") is None
    assert volume.file("EFI") is None
    steps = Steps(("sha256",))
    _measure_companions(steps, volume, REMOVABLE)
    assert {step.register for step in steps.found} == ({4, 9, 12, 13} if said else set())
    assert all(said in step.unknown for step in steps.found)


# ---- platform --------------------------------------------------------------------------------------------------------


def platform(**more: object) -> boot.Platform:
    main = TPM_DRIVER + SECURE_PAGES + b" initrd=initrd\0"
    fields = {"volumes": Volumes(b"early", main), "variables": {}, "memory_bytes": 1 << 30, **more}
    return boot.Platform(**fields)  # type: ignore[arg-type]


def kernel() -> bytes:
    image = bytearray(pe({".text": bytes(0x2000)}))
    image[0x202:0x206], image[0x206:0x208], image[0x211], image[0x236] = b"HdrS", b"\x0f\x02", 1, 2
    return bytes(image)


def test_a_given_kernel_depends_on_emulator_firmware_and_secure_boot() -> None:
    given_ = boot.Direct(kernel(), b"initrd", "quiet")
    old = boot.predict_direct(platform(), given_)
    assert set(old.unpredictable()) == {0, 1}
    plain = Volumes(b"", platform().volumes.main + b"etc/boot/\0")
    unknown = boot.predict_direct(platform(volumes=plain), given_)
    assert "--qemu" in unknown.unpredictable()[4]
    new = boot.predict_direct(platform(volumes=plain, plain_kernel=True), given_)
    header = boot.predict_direct(platform(volumes=plain, plain_kernel=False), given_)
    assert header.values("sha256", (4,)) == old.values("sha256", (4,)) != new.values("sha256", (4,))
    enforced: Variables = {(GLOBAL, "PK"): b"k"}
    with pytest.raises(InputError, match="breaks its signature"):
        boot.predict_direct(platform(variables=enforced), given_)
    with pytest.raises(InputError, match="nothing in db"):
        boot.predict_direct(platform(volumes=plain, plain_kernel=True, variables=enforced), given_)
    for volumes, said in ((Volumes(b"", b""), "no TPM driver"), (Volumes(b"", TPM_DRIVER), "naming the initrd")):
        with pytest.raises(InputError, match=said):
            boot.predict_direct(platform(volumes=volumes), given_)
    roms = boot.predict_direct(platform(foreign_roms=True), given_)
    assert "option ROMs" in roms.unpredictable()[2]


def test_where_the_initrd_goes() -> None:
    image = kernel()
    low = as_loaded(image, 5000, 1 << 30)
    assert int.from_bytes(low[0x218:0x21C], "little") == (((1 << 30) - 0x28000 - 1) - 5000) & ~4095
    assert int.from_bytes(low[0x21C:0x220], "little") == 5000
    high = as_loaded(image, 5000, 4 << 30)
    assert int.from_bytes(high[0x218:0x21C], "little") == ((0x80000000 - 0x28000 - 1) - 5000) & ~4095
    with pytest.raises(InputError, match="initrd"):
        as_loaded(image, 1 << 31, 1 << 30)
    for broken in (b"", image[:0x202] + b"xxxx" + image[0x206:], image[:0x206] + b"\0\2" + image[0x208:]):
        with pytest.raises(InputError, match="kernel"):
            as_loaded(broken, 0, 1 << 30)


def test_a_reference_log_gives_pcr_0_of_the_same_firmware_only() -> None:
    def log(*data: bytes, banks: tuple[str, ...] = ("sha256",), locality: int = 0) -> EventLog:
        first = Event(0, EV_NO_ACTION, {"sha256": bytes(32)}, b"")
        rest = [Event(0, 8, {"sha256": hashlib.sha256(item).digest()}, item) for item in data]
        return EventLog((first, *rest), banks, locality)

    main, given_ = platform().volumes.main, boot.Direct(kernel(), None, "")
    good = (b"version", b"early, changed", main, bytes(4))
    found = boot.predict_direct(platform(reference=log(*good)), given_)
    wanted = extended("sha256", [hashlib.sha256(item).digest() for item in good])
    assert found.values("sha256", (0,)) == {0: wanted}
    for broken in (log(b"version", b"other"), log(*good, banks=("sha1",)), log(*good, locality=3)):
        with pytest.raises(InputError, match="reference log"):
            boot.predict_direct(platform(reference=broken), given_)


def test_of_two_variables_of_one_name_the_firmwares_counts() -> None:
    """The first one that is added; while one is being replaced, the old one as long as the new one is not there."""
    one, two = b"\1", b"\2"
    for states, wanted in (((0x3F, 0x3F), one), ((0x3E, 0x3F), two), ((0x3F, 0x3E), one), ((0x3E, 0x3C), one)):
        store = store_of(*(("0" * 32, "x", data, state) for data, state in zip((one, two), states, strict=True)))
        assert parse_variables(store) == {(uuid.UUID(int=0), "x"): wanted}


def test_stores_and_volumes_that_lie_are_refused() -> None:
    store = variables_seed()
    for data in (b"", store[:60], store[:100], b"\1" * len(store)):
        with pytest.raises(InputError, match="variable store"):
            parse_variables(data)
    seed = volumes_seed()
    assert len(parse_volumes(seed).main) == 4096
    for data in (b"", bytes(8192), seed[:4095], seed.replace(seed[140:150], b"x" * 10)):
        with pytest.raises(InputError, match="firmware"):
            parse_volumes(data)
