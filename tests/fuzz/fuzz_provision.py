"""Fuzz target (atheris): user-data, network-config, Ignition configs, LUKS headers, saved states and their overlays,
files of logins, and rpm's older databases, from anybody.

The first byte chooses the reader. Each accepts, or raises its domain error; a message about a secret quotes nothing.

python tests/fuzz/fuzz_provision.py [libFuzzer options] [corpus directory]
"""

from __future__ import annotations

import hashlib
import os
import sys

import atheris

with atheris.instrument_imports(include=["casemate"]):
    from casemate.engine.opening import Opened
    from casemate.engine.savedoverlay import place_overlays
    from casemate.engine.statefile import MAGIC, Header, Manifest, OverlayPiece, SavedOverlay, StateReader, StateWriter
    from casemate.errors import CasemateError, ImageError, InputError
    from casemate.facts.rpm_bdb import BdbFormatError, bdb_blobs
    from casemate.facts.rpm_ndb import NdbFormatError, ndb_blobs
    from casemate.image.luks import ITERATIONS_MIN, parse_header
    from casemate.image.luks2 import parse_luks2
    from casemate.image.luks2_judge import Luks2Wanted, judge_luks2
    from casemate.image.oci_login import find_login
    from casemate.plan.model import OpenFile
    from casemate.provision.cloudinit import check_network_config, check_user_data
    from casemate.provision.ignition import check_ignition

SENTINEL = b"hunter2sentinel"


def user_data(data: bytes) -> None:
    """As a secret: whatever the message, the sentinel is not in it."""
    for content in (data, b"#cloud-config\n" + data, b"#cloud-config\n" + SENTINEL + b": [" + data):
        try:
            check_user_data(content, "fuzz", secret=True)
        except InputError as fault:
            if SENTINEL.decode() in str(fault):
                raise RuntimeError("a secret in a message") from fault


def network_config(data: bytes) -> None:
    """Plain."""
    try:
        check_network_config(data, "fuzz")
    except InputError:
        return


def ignition(data: bytes) -> None:
    """As a secret."""
    for content in (data, b'{"ignition": {"version": "3.4.0"}, "' + SENTINEL + b'": ' + data + b"}"):
        try:
            check_ignition(content, "fuzz", secret=True)
        except InputError as fault:
            if SENTINEL.decode() in str(fault):
                raise RuntimeError("a secret in a message") from fault


def luks(data: bytes) -> None:
    """What is accepted is strong."""
    try:
        header = parse_header(data, "fuzz")
    except ImageError:
        return
    if any(slot.active and slot.iterations < ITERATIONS_MIN for slot in header.slots):
        raise RuntimeError("a weak key slot was accepted")


def luks2(data: bytes) -> None:
    """The bytes as the JSON of a header that is whole otherwise; what is accepted encrypts."""
    try:
        header = parse_luks2(luks2_with(data[: 16384 - 4096]), "fuzz")
    except ImageError:
        return
    faults = judge_luks2(header, 1 << 30, Luks2Wanted())
    if not faults and header.metadata.segments["0"].encryption != "aes-xts-plain64":
        raise RuntimeError("a null cipher was accepted")


def luks2_with(text: bytes) -> bytes:
    """Both copies of a header with this JSON, their checksums right."""
    found = b""
    for magic, offset in ((b"LUKS", 0), (b"SKUL", 16384)):
        copy = bytearray(16384)
        copy[:16] = magic + b"\xba\xbe\x00\x02" + (16384).to_bytes(8, "big")
        copy[72:78], copy[104], copy[256:264] = b"sha256", magic[0], offset.to_bytes(8, "big")
        copy[4096 : 4096 + len(text)] = text
        copy[448:480] = hashlib.sha256(copy).digest()
        found += copy
    return found


def state(data: bytes) -> None:
    """Without a key, and with one."""
    descriptor = os.memfd_create("fuzz")
    try:
        os.write(descriptor, MAGIC + data)
        reader = StateReader(descriptor, "fuzz")
        reader.salt()
        reader.wrapped()
        reader.unlock(None if reader.header.sealing == "none" else bytes(32))
        reader.scan()
        for _ in (*reader.pieces(), *reader.overlay_pieces()):
            continue
    except InputError:
        return
    finally:
        os.close(descriptor)


def overlay(data: bytes) -> None:
    """A state whose records are sound and whose overlay is any: its size, then pieces at any place."""
    size, rest = int.from_bytes(data[:3], "little"), data[3:]
    content, pieces = bytearray(size), []
    while len(rest) > 5:
        offset, length = int.from_bytes(rest[1:4], "little"), rest[4]
        pieces.append(OverlayPiece(rest[0] & 1, offset, rest[5 : 5 + length]))
        content[offset : offset + length] = pieces[-1].data
        rest = rest[5 + length :]
    descriptor = os.memfd_create("fuzz")
    opened = Opened(by_role={"state": descriptor})
    try:
        writer = StateWriter(descriptor, Header("none"), None)
        for piece in pieces:
            writer.overlay(piece)
        saved = {"overlay0": SavedOverlay(size, hashlib.sha256(content).hexdigest())}
        writer.finish(Manifest("a", "b", "{}", "c", "d", "q35", "tcg", "7.2.0", {}, True, 0, saved))
        reader = StateReader(descriptor, "fuzz")
        reader.unlock(None)
        planned = OpenFile("overlay0", "", "overlay", "qcow2", 1 << 20)
        place_overlays(reader, reader.scan().overlays, (planned,), opened, "/dev/shm")
        if os.pread(opened.by_role["overlay0"], 4, 0) != b"QFI\xfb":
            raise RuntimeError("something else than an overlay was accepted")
    except CasemateError:
        return
    finally:
        opened.close()


def login(data: bytes) -> None:
    """Whatever the message, no secret is in it."""
    for content in (data, b'{"auths": {"r": {"identitytoken": "' + SENTINEL + b'", ' + data):
        try:
            find_login(content, "r", "a/b", "fuzz")
        except InputError as fault:
            if SENTINEL.decode() in str(fault):
                raise RuntimeError("a secret in a message") from fault


def rpm(data: bytes) -> None:
    """Both formats; no file gives more than it has."""
    descriptor = os.memfd_create("fuzz")
    try:
        os.write(descriptor, data)
        for read, error in ((ndb_blobs, NdbFormatError), (bdb_blobs, BdbFormatError)):
            try:
                total = sum(map(len, read(descriptor)))
            except error:
                continue
            if total > 16 * len(data):
                raise RuntimeError(f"{total} bytes out of {len(data)}")
    finally:
        os.close(descriptor)


READERS = (user_data, network_config, ignition, luks, state, luks2, overlay, login, rpm)


def one_input(data: bytes) -> None:
    """One run; an exception is a finding."""
    if data:
        READERS[data[0] % len(READERS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
