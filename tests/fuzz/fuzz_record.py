"""Fuzzes the readers of launch records, public keys and host policies: each answers or raises its own error.

Mutated records are signed again with a known key, so that the steps behind the signature are reached. Run for longer
with ``python tests/fuzz/fuzz_record.py -max_total_time=60``; tests/fuzz/test_fuzz_record.py runs a few thousand inputs.
"""

from __future__ import annotations

import struct
import sys
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.controls.policy import HostPolicy, parse_policy
from casemate.errors import InputError, SpecError
from casemate.evidence.record import (
    DOMAIN,
    GENESIS,
    FileDigest,
    LaunchRecord,
    RecordedFinding,
    canonical_json,
    parse_public_key,
    public_key_text,
    sha256_hex,
    verify_record,
)

POLICY = b"""version = 1
[waivers]
allowed = ["iommu.no-hostdev"]
max_days = 90
[identity]
uid_first = 2000000000
uid_count = 1000
[network]
wide_publish = "refuse"
[limits]
vms = 20
"""


@cache
def key() -> Ed25519PrivateKey:
    """A key that is no secret."""
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def public() -> bytes:
    """Its public half."""
    return key().public_key().public_bytes_raw()


@cache
def payload() -> bytes:
    """A valid record, not yet signed."""
    finding = RecordedFinding(
        control="proc.uid", verdict="pass", severity="high", gate="launch", evidence="é", expected="1", why="\n"
    )
    record = LaunchRecord(
        sequence=1,
        previous=GENESIS,
        key_sha256=sha256_hex(public()),
        vm_id="01",
        name="web",
        released_at="2026-03-01T10:00:00Z",
        accel="kvm",
        spec="{}",
        spec_sha256=sha256_hex(b"{}"),
        plan_sha256=sha256_hex(b"plan"),
        findings=(finding,),
        files=(FileDigest(role="kernel", sha256=GENESIS, size_bytes=0),),
        versions={"qemu": "7.2"},
    )
    return canonical_json(record)


def signed(content: bytes) -> bytes:
    """Any bytes as a record whose signature is right."""
    return b'{"record":' + content + b',"signature":"' + key().sign(DOMAIN + content).hex().encode() + b'"}'


def read_record(data: bytes) -> LaunchRecord | None:
    """The record, or None; what verifies must be exactly what its canonical form signs."""
    try:
        record = verify_record(data, public())
    except InputError:
        return None
    if signed(canonical_json(record)) != data:
        raise AssertionError("two different files verify as one record")
    return record


def read_policy(data: bytes) -> HostPolicy | None:
    """The policy, or None; it never allows what cannot be waived."""
    try:
        policy = parse_policy(data.decode("utf-8", "replace"), "fuzz")
    except SpecError:
        return None
    if "proc.drift" in policy.waivers.allowed or 0 in policy.identity.uids():
        raise AssertionError("a policy got through that must not")
    return policy


def read_key(data: bytes) -> bytes | None:
    """The key, or None."""
    try:
        found = parse_public_key(data.decode("utf-8", "replace"))
    except InputError:
        return None
    if len(found) != 32:
        raise AssertionError("a key of another length got through")
    return found


def mutated(seed: bytes, choices: bytes) -> bytes:
    """``seed`` with bytes replaced as ``choices`` says (3 bytes each: position, value), then cut or not."""
    changed = bytearray(seed)
    for start in range(0, len(choices) - 2, 3):
        position, value = struct.unpack_from("<HB", choices, start)
        changed[position % len(changed)] = value
    return bytes(changed[: len(changed) - choices[0]] if choices and choices[-1] & 1 else changed)


def one_input(data: bytes) -> None:
    """Give ``data``, and the seeds mutated by it, to every reader."""
    read_record(data)
    read_record(signed(data))
    read_record(signed(mutated(payload(), data)))
    read_record(mutated(signed(payload()), data))
    read_policy(data)
    read_policy(mutated(POLICY, data))
    read_key(data)
    read_key(mutated(public_key_text(public()).encode(), data))


def main() -> None:
    """Hand over to libFuzzer."""
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
