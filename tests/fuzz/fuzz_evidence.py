"""Fuzzes what reads and judges evidence: every kind, what comes along with it, policies. Each answers or raises its own
error; nothing that differs from a seed in what it claims is ever accepted.

Seeds are signed by keys of ours, whose roots are pinned in this process alone, so that the steps behind signatures are
reached. Run for longer with ``python tests/fuzz/fuzz_evidence.py -max_total_time=60 -rss_limit_mb=400``;
tests/fuzz/test_fuzz_evidence.py runs a few thousand inputs.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import struct
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]  # as a program it is not installed

from tests.support import se_makers  # noqa: E402
from tests.support.evidence_makers import (  # noqa: E402
    SEPARATOR,
    Authority,
    Chip,
    Hypervisor,
    Tpm,
    event_log,
    secure_boot_event,
    snp_report,
)
from tests.support.tdx_makers import Platform  # noqa: E402
from tests.support.tpm_credential import ek_certificate  # noqa: E402

from casemate.engine.tpm_commands import EK_TEMPLATE  # noqa: E402
from casemate.errors import CasemateError  # noqa: E402
from casemate.evidence import (  # noqa: E402
    challenge,
    companions,
    ear,
    ek,
    ek_true,
    gce,
    nitro_true,
    se,
    snp_true,
    tdx,
    tdx_collateral,
    tdx_levels,
    tdx_signed,
    tpm_files,
    verify_nitro,
    verify_snp,
    wanted,
)
from casemate.evidence.policy import Policy, SePolicy, parse_policy  # noqa: E402
from casemate.evidence.tpm import parse_quote  # noqa: E402
from casemate.evidence.verify import Inputs, verify  # noqa: E402
from casemate.evidence.x509 import parse  # noqa: E402

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
POLICY = b"""format = 1
require-revocation-lists = true
[sev-snp]
measurement = ["%s"]
minimum-tcb = { snp = 1 }
[tdx]
rtmr = { 1 = "%s" }
[tpm]
pcrs.sha256 = { 7 = "%s" }
""" % (b"00" * 48, b"11" * 48, b"22" * 32)


class Seed(NamedTuple):
    """Evidence that is accepted with these inputs. ``free``: octets at its end that nobody signs."""

    name: str
    data: bytes
    inputs: Inputs
    policy: Policy
    claims: dict[str, Any]


@cache
def chip() -> Chip:
    return Chip()


@cache
def hypervisor() -> Hypervisor:
    return Hypervisor()


@cache
def key() -> Tpm:
    return Tpm()


def pin(set_attribute: Any = setattr) -> None:
    """Believe our roots in this process."""
    for module in (snp_true, verify_snp):
        set_attribute(module, "AMD_ROOTS", {chip().root.digest: "Milan"})
    for module in (nitro_true, verify_nitro):
        set_attribute(module, "AWS_ROOTS", frozenset({hypervisor().root.digest}))


def _extended(report: bytes) -> bytes:
    items = [item.der for item in (chip().leaf, chip().middle, chip().root)]
    heads, offset = b"", 24 * (len(items) + 1)
    for number, item in enumerate(items):
        heads += bytes([number + 1]) * 16 + struct.pack("<II", offset, len(item))
        offset += len(item)
    return report + heads + bytes(24) + b"".join(items)


def log() -> bytes:
    """A firmware's log whose Secure Boot event is measured."""
    return event_log([(0, 8, b"firmware"), secure_boot_event(1), SEPARATOR])


def _values() -> dict[str, dict[int, bytes]]:
    from casemate.evidence.event_log import parse_event_log, replay

    return {"sha256": dict(replay(parse_event_log(log()), "sha256").items())}


def _tpm_json() -> bytes:
    message = key().quote(_values(), b"fresh")
    pcrs = {bank: {str(n): value.hex() for n, value in values.items()} for bank, values in _values().items()}
    quote = {
        "message": base64.b64encode(message).decode(),
        "signature": base64.b64encode(key().sign(message)).decode(),
        "pcrs": pcrs,
    }
    document = {
        "ak_public": base64.b64encode(key().public_area()).decode(),
        "tpm_quote": quote,
        "event_log": base64.b64encode(log()).decode(),
    }
    return json.dumps(document).encode()


def _field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*octets, value))


def _gotpm() -> bytes:
    message = key().quote(_values(), b"fresh")
    pcrs = _field(1, 11) + b"".join(
        _field(2, _field(1, number) + _field(2, value)) for number, value in _values()["sha256"].items()
    )
    quote = _field(1, message) + _field(2, key().sign(message)) + _field(3, pcrs)
    return _field(1, key().public_area()[2:]) + _field(2, quote) + _field(3, log())


@cache
def seeds() -> tuple[Seed, ...]:
    """One of each kind."""
    tpm = Inputs(moment=NOW, nonce=b"fresh", keys=(hashlib.sha256(key().spki()).hexdigest(),))
    snp = Inputs(moment=NOW, certificates=chip().certificates, revocations=(chip().root.list_of(),))
    parts = (b"\1" * se.IMAGE_BYTES, b"user", b"\2" * 64)
    measured = se_makers.measured(*parts)
    exchange = se_makers.exchange(se_makers.request(), measured, parts[2], parts[1], se_makers.UID)
    own = Policy(se=SePolicy(image=(parts[0].hex(),)))
    report = chip().sign(snp_report(version=5))
    nitro = Inputs(moment=NOW, nonce=b"nonce")
    pcrs = {number: bytes([number + 1]) * 48 for number in range(3)}
    found = []
    for name, data, inputs in (
        ("snp", report, snp),
        ("snp-extended", _extended(report), Inputs(moment=NOW)),
        ("snp-text", report.hex().encode(), snp),
        ("nitro", hypervisor().document(NOW), nitro),
        ("nitro-tpm", hypervisor().document(NOW, pcrs=None, nitrotpm_pcrs=pcrs), nitro),
        ("tpm-json", _tpm_json(), tpm),
        ("gotpm", _gotpm(), tpm),
        ("se", exchange, Inputs(request_key=se_makers.KEY)),
    ):
        policy = own if name == "se" else Policy()
        found.append(Seed(name, data, inputs, policy, dict(verify(data, inputs, policy).claims)))
    return tuple(found)


def judge(seed: Seed, data: bytes) -> bool:
    """Whether it is accepted; then it claims what the seed does."""
    try:
        wanted.wanted_for(data)
        found = verify(data, seed.inputs, seed.policy)
    except CasemateError:
        return False
    ear.ear_claims([("x", found)], Policy(), policy_id="", issued_at_s=0, lifetime_s=1, build="")
    if not found.is_accepted:
        return False
    # A log beside a quote may lose what no register hangs on, and Secure Boot with it; nothing changes otherwise.
    lost = ("events", *(("secure-boot",) if found.claims.get("secure-boot") == "unknown" else ()))
    claims = {name: value for name, value in found.claims.items() if name not in lost}
    if not claims.items() <= seed.claims.items():
        raise AssertionError(f"{seed.name}: accepted with other claims")
    return True


@cache
def other_seeds() -> tuple[bytes, ...]:
    """What comes along with evidence."""
    authority = Authority("a", list_url="https://lists.invalid/a")
    files = (
        authority.der,
        ek_certificate(key().spki(), authority).der,
        authority.revokes(authority),
        chip().leaf.der,
        se_makers.header(),
        key().public_area(),
        EK_TEMPLATE,
        key().spki(),
        key().quote(_values(), b"fresh"),
        key().sign(b"x"),
        log(),
        POLICY,
    )
    collateral = Path(ROOT.parent / "shared/vectors/tdx/dcap-qvl-tdx-v4.collateral.json")
    made = (platform()[0].raw, platform()[1])
    return (*files, *made, collateral.read_bytes()) if collateral.is_file() else (*files, *made)


@cache
def platform() -> tuple[tdx.TdxQuote, bytes]:
    """A quote of a TD that dcap-qvl stops at, and its collateral."""
    machine = Platform()
    collateral = machine.collateral([(5, "UpToDate", [])], begin=NOW, end=NOW + datetime.timedelta(days=1))
    return tdx.parse_tdx(machine.quote(attributes=0)), collateral


def read_all(data: bytes) -> None:
    """Every reader of what comes along."""
    quote = parse_quote(key().quote(_values(), b"fresh"))
    for reader in (
        lambda: companions.parse_companions(data, "x"),
        lambda: tdx_collateral.windows_of(data),
        lambda: wanted.wanted_for(data),
        lambda: gce.instance_of(parse(data)),
        lambda: tdx_collateral.evaluation_of(data),
        lambda: tdx_levels.parse_tcb_info(data.decode("utf-8", "replace")),
        lambda: tdx_levels.parse_qe_identity(data.decode("utf-8", "replace")),
        lambda: tdx_levels.platform_key(parse(data)),
        lambda: tdx.authentication_of(tdx.parse_tdx(data)),
        lambda: tdx_signed.truth_of_signed(tdx.parse_tdx(data), platform()[1], NOW),
        lambda: tdx_signed.truth_of_signed(platform()[0], data, NOW),
        lambda: se.parse_image(data),
        lambda: tpm_files.parse_signature_file(data),
        lambda: tpm_files.parse_pcr_file(data, quote),
        lambda: ek.parse_storage_key(data),
        lambda: ek.parse_attestation_key(data),
        lambda: list(ek_true.truth_of_endorsement([parse(data)], (), NOW)),
        lambda: challenge.parse_asked(data, "x"),
        lambda: parse_policy(data.decode("utf-8", "replace"), "x"),
        lambda: verify(data, Inputs(moment=NOW, collateral=data, event_log=data, nonce=b"x"), Policy()),
    ):
        try:
            reader()
        except CasemateError:
            continue


def mutated(seed: bytes, choices: bytes) -> bytes:
    """``seed`` with octets replaced (4 of ``choices`` each: where, what, how), cut or doubled."""
    changed = bytearray(seed)
    for start in range(0, len(choices) - 3, 4):
        position, value, how = struct.unpack_from("<HBB", choices, start)
        at = position * len(changed) // 65536 if changed else 0
        if how < 200:
            changed[at : at + 1] = bytes([value])
        elif how < 220:
            del changed[at : at + value]
        elif how < 240:
            changed[at:at] = changed[at : at + value]
        else:
            changed[at : at + 4] = value.to_bytes(4, "little" if how & 1 else "big")
    return bytes(changed)


def one_input(data: bytes) -> None:
    """Give ``data``, and a seed mutated by it, to the verifier and to the readers."""
    if not data:
        return
    seed = seeds()[data[0] % len(seeds())]
    judge(seed, mutated(seed.data, data[1:]))
    other = other_seeds()[data[0] % len(other_seeds())]
    read_all(mutated(other, data[1:]))
    read_all(data[1:])


def main() -> None:
    """Hand over to libFuzzer."""
    import atheris

    pin()
    seeds()
    other_seeds()
    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
