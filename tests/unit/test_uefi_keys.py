"""Keys of Secure Boot: enrolled by virt-fw-vars and believed only when read back; every change of them is seen."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.signed_boot import OwnerKeys, owner_keys

from casemate.engine import uefi, uefi_enrol, uefi_keys
from casemate.engine.uefi import NOTE_FILE, VARS_FILE, own_variables, read_enrolled
from casemate.engine.uefi_enrol import check_owner, enrol, find_program
from casemate.engine.uefi_keys import Enrolled, certificate_entry, note_of, variables_facts
from casemate.errors import HostError, InputError, RefusedError
from casemate.facts.fact import Facts, Known, Unknown
from casemate.measure.siglists import signature_entries
from casemate.measure.variables import CUSTOM, ENABLE, parse_variables
from casemate.plan.model import OpenFile
from casemate.spec.model import Boot, BootKeys, Firmware

EMPTY = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
ENROLLED = Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd")
_BEGIN, _END = "-----BEGIN CERTIFICATE-----\n", "\n-----END CERTIFICATE-----\n"

needs_program = pytest.mark.skipif(find_program() is None, reason="virt-fw-vars (virt-firmware) is not installed")
needs_ovmf = pytest.mark.skipif(not ENROLLED.exists(), reason="OVMF is not installed")


def boot_keys(keys: OwnerKeys) -> BootKeys:
    return BootKeys(pk=str(keys.pk.certificate), kek=(str(keys.kek.certificate),), db=(str(keys.db.certificate),))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> OwnerKeys:
    return owner_keys(tmp_path_factory.mktemp("owner"))


@pytest.fixture(scope="module")
def own_store(keys: OwnerKeys) -> bytes:
    return enrol(EMPTY.read_bytes(), boot_keys(keys))


def change(store: bytes, *arguments: str) -> bytes:
    """A store after virt-fw-vars did something to it."""
    program = find_program()
    assert program is not None
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "vars.fd"
        path.write_bytes(store)
        subprocess.run([program, "--inplace", str(path), *arguments], check=True, capture_output=True)
        return path.read_bytes()


def value(facts: Facts, name: str) -> object:
    fact = facts[name]
    return fact.value if isinstance(fact, Known) else f"unknown: {fact.why}"


@needs_ovmf
def test_the_distributions_template_is_on_and_as_enrolled() -> None:
    store = ENROLLED.read_bytes()
    facts = variables_facts(store, note_of(parse_variables(store)))
    assert (value(facts, "dev.secure-boot"), value(facts, "dev.boot-keys")) == ("on", ())
    assert value(variables_facts(EMPTY.read_bytes(), None), "dev.secure-boot") == "off: no platform key (setup mode)"


@needs_program
@needs_ovmf
def test_an_owners_keys_are_the_only_ones(keys: OwnerKeys, own_store: bytes) -> None:
    note = note_of(parse_variables(own_store))
    for entries, key in ((note.pk, keys.pk), (note.kek, keys.kek), (note.db, keys.db)):
        der = subprocess.run(
            ["openssl", "x509", "-in", str(key.certificate), "-outform", "DER"], capture_output=True, check=True
        ).stdout
        assert entries == (certificate_entry(der),)
    assert value(variables_facts(own_store, note), "dev.secure-boot") == "on"
    check_owner(boot_keys(keys), note)


@needs_program
@needs_ovmf
def test_every_change_is_seen(keys: OwnerKeys, own_store: bytes) -> None:
    note = note_of(parse_variables(own_store))
    guid, db = uefi_enrol.OWNER, str(keys.db.certificate)

    def after(*arguments: str) -> tuple[object, object]:
        facts = variables_facts(change(own_store, *arguments), note)
        return value(facts, "dev.secure-boot"), value(facts, "dev.boot-keys")

    assert after("--set-false", "SecureBootEnable") == ("off: SecureBootEnable is 0", ())
    assert after("--set-true", "CustomMode") == ("on, in custom mode", ())
    assert after("--delete", "PK") == ("off: no platform key (setup mode)", ())
    assert after("--set-pk", guid, db) == ("on, with another platform key", ())
    assert after("--add-kek", guid, db) == ("on", (f"KEK: {note.db[0]} added",))
    forbidden = "ab" * 32
    assert after("--add-db-hash", guid, forbidden) == ("on", (f"db: sha256:{forbidden} added",))
    assert after("--add-dbx-hash", guid, forbidden) == ("on", ())
    longer = change(own_store, "--add-dbx-hash", guid, forbidden)
    gone = variables_facts(own_store, note_of(parse_variables(longer)))
    assert value(gone, "dev.boot-keys") == (f"dbx: sha256:{forbidden} gone",)


@needs_ovmf
@pytest.mark.parametrize(
    ("key", "data", "name"), [(ENABLE, b"\0", "off: SecureBootEnable is 0"), (CUSTOM, b"\1", "on, in custom mode")]
)
def test_a_guests_own_variable_of_the_same_name_hides_nothing(
    key: tuple[uuid.UUID, str], data: bytes, name: str
) -> None:
    variables = {**parse_variables(ENROLLED.read_bytes()), key: data}
    assert uefi_keys.state_of(variables) == name
    theirs = (uuid.UUID(int=1), key[1])
    assert uefi_keys.state_of({**variables, theirs: bytes([1 - data[0]])}) == name
    assert uefi_keys.state_of({**parse_variables(ENROLLED.read_bytes()), theirs: data}) == "on"


@needs_ovmf
def test_what_is_not_known_never_passes() -> None:
    store = ENROLLED.read_bytes()
    facts = variables_facts(store, None)
    assert all(isinstance(facts[name], Unknown) for name in ("dev.secure-boot", "dev.boot-keys"))
    note = note_of(parse_variables(store))
    for broken in (b"", b"\0" * len(store), store[:100], store[:72] + b"\xff" * 8 + store[80:]):
        facts = variables_facts(broken, note)
        assert all(isinstance(facts[name], Unknown) for name in ("dev.secure-boot", "dev.boot-keys"))


@needs_ovmf
@given(place=st.integers(0, 0x40000 - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_seen_or_changes_nothing_that_counts(place: int, bit: int) -> None:
    """Keys and switches are what they were, or the facts say otherwise."""
    store = bytearray(ENROLLED.read_bytes())
    note = note_of(parse_variables(bytes(store)))
    store[place] ^= 1 << bit
    facts = variables_facts(bytes(store), note)
    if value(facts, "dev.secure-boot") == "on":
        after = note_of(parse_variables(bytes(store)))
        assert after.pk == note.pk
        assert value(facts, "dev.boot-keys") == () or after != note


@given(st.binary(max_size=200))
def test_signature_lists_of_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(InputError):
        assert len(list(signature_entries(data))) <= len(data)


def test_entries_of_every_kind_are_seen() -> None:
    strange = uuid.UUID("ff3e5307-9fd0-48c9-85f1-8ad56c701e01")  # EFI_CERT_SHA384_GUID
    data = b"".join(
        kind.bytes_le + struct.pack("<III", 28 + 16 + 48, 0, 16 + 48) + bytes(16) + bytes(48)
        for kind in (strange, uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072"))
    )
    digest = hashlib.sha256(bytes(48)).hexdigest()
    assert [uefi_keys._name(entry) for entry in signature_entries(data)] == [f"{strange}:{digest}", f"x509:{digest}"]
    with pytest.raises(InputError, match="makes no sense"):
        list(signature_entries(data[:-1]))


@needs_program
@needs_ovmf
def test_an_enrolment_that_did_something_else_is_refused(
    keys: OwnerKeys, own_store: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = find_program()

    def lying(body: str) -> None:
        fake = tmp_path / "virt-fw-vars"
        fake.write_text(f"#!{sys.executable}\nimport subprocess, sys\narguments = sys.argv[1:]\n{body}\n")
        fake.chmod(0o755)
        monkeypatch.setattr(uefi_enrol, "find_program", lambda: str(fake))

    run = f"sys.exit(subprocess.run([{real!r}, *arguments]).returncode)"
    lying(run)
    assert enrol(EMPTY.read_bytes(), boot_keys(keys)) == own_store
    for body in (
        f"arguments += ['--add-db-hash', {uefi_enrol.OWNER!r}, '00' * 32]\n{run}",
        f"arguments.remove('--sb'); arguments[:0] = ['--set-false', 'SecureBootEnable']\n{run}",
        f"arguments += ['--set-shim-verbose']\n{run}",
        "open(arguments[arguments.index('--output') + 1], 'wb').write(b'nothing')",
    ):
        lying(body)
        with pytest.raises(HostError, match="something else"):
            enrol(EMPTY.read_bytes(), boot_keys(keys))
    lying("")
    with pytest.raises(HostError, match="wrote no variables"):
        enrol(EMPTY.read_bytes(), boot_keys(keys))
    lying("sys.exit('out of luck')")
    with pytest.raises(HostError, match="failed") as failed:
        enrol(EMPTY.read_bytes(), boot_keys(keys))
    assert failed.value.got == "out of luck"
    monkeypatch.setattr(uefi_enrol, "find_program", lambda: None)
    with pytest.raises(HostError, match="virt-fw-vars") as missing:
        enrol(EMPTY.read_bytes(), boot_keys(keys))
    assert "python3-virt-firmware" in missing.value.next_step


@pytest.mark.parametrize(
    "text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_files_that_are_no_certificate_are_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.pem"
    file.write_text(text)
    with pytest.raises(InputError, match=r"x\.pem"):
        uefi_enrol._checked(str(file))


@needs_program
@needs_ovmf
def test_variables_are_made_once_noted_and_held_to(keys: OwnerKeys, tmp_path: Path) -> None:
    data = EMPTY.read_bytes()
    file = OpenFile("firmware-vars", str(EMPTY.resolve()), "vars", None, len(data), hashlib.sha256(data).hexdigest())
    boot = Boot(firmware=Firmware.UEFI_SECURE, keys=boot_keys(keys))
    os.close(own_variables(file, boot, str(tmp_path)))
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        VARS_FILE: 0o600,
        NOTE_FILE: 0o600,
    }
    note = read_enrolled(boot, str(tmp_path))
    assert note is not None
    os.close(own_variables(file, boot, str(tmp_path)))
    other = owner_keys(tmp_path / "other")
    with pytest.raises(RefusedError, match=r"boot\.keys\.pk") as refused:
        own_variables(file, Boot(firmware=Firmware.UEFI_SECURE, keys=boot_keys(other)), str(tmp_path))
    assert refused.value.control == "dev.secure-boot"
    (tmp_path / NOTE_FILE).write_text("{}")
    assert read_enrolled(boot, str(tmp_path)) is None
    descriptor = own_variables(file, boot, str(tmp_path))
    facts = uefi.observe_variables(boot, {"firmware-vars": descriptor}, None)
    os.close(descriptor)
    assert isinstance(facts["dev.secure-boot"], Unknown)


def test_a_vm_without_secure_boot_has_nothing_to_say() -> None:
    assert uefi.observe_variables(Boot(firmware=Firmware.UEFI), {}, None) == {}
    assert read_enrolled(Boot(), "/nowhere") is None
    assert Enrolled((), (), (), ()) == note_of({})
