"""Fuzz target (atheris): user-data, network-config, Ignition configs, LUKS headers and saved states from anybody.

The first byte chooses the reader. Each accepts, or raises its domain error; a message about a secret quotes nothing.

python tests/fuzz/fuzz_provision.py [libFuzzer options] [corpus directory]
"""

from __future__ import annotations

import hashlib
import os
import sys

import atheris

with atheris.instrument_imports(include=["casemate"]):
    from casemate.engine.statefile import MAGIC, StateReader
    from casemate.errors import ImageError, InputError
    from casemate.image.luks import ITERATIONS_MIN, parse_header
    from casemate.image.luks2 import parse_luks2
    from casemate.image.luks2_judge import Luks2Wanted, judge_luks2
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
        for _ in reader.pieces():
            continue
    except InputError:
        return
    finally:
        os.close(descriptor)


READERS = (user_data, network_config, ignition, luks, state, luks2)


def one_input(data: bytes) -> None:
    """One run; an exception is a finding."""
    if data:
        READERS[data[0] % len(READERS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
