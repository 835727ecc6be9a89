"""A TPM's evidence to a verdict: go-tpm-tools' container, JSON, and the vTPM's part of other kinds."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Sequence

import msgspec

from casemate.errors import InputError
from casemate.evidence import gotpm, tpm, tpm_files, tpm_json
from casemate.evidence.chain import believed_part, order
from casemate.evidence.event_log import EventLog, parse_event_log, replay, secure_boot
from casemate.evidence.gce import instance_of
from casemate.evidence.inputs import Inputs, log_of, moment_of, notes_of
from casemate.evidence.policy import Policy
from casemate.evidence.policy_wants import wants_place, wants_revocation, wants_tpm
from casemate.evidence.revocation import revocation_of
from casemate.evidence.tpm_true import (
    GOOGLE_ROOTS,
    Pcrs,
    covered,
    covers_secure_boot,
    truth_of_key,
    truth_of_log,
    truth_of_pcrs,
    truth_of_quote,
)
from casemate.evidence.verdict import Claim, Reason, Revocation, Verified, false, unwanted
from casemate.evidence.x509 import Certificate, parse, parse_authority

NO_LOG = "no event log: nothing explains what the PCRs stand for"


class Quoted(msgspec.Struct, frozen=True):
    """One quote, its signature, and the values that came along."""

    quote: tpm.Quote
    signature: tpm.Signature
    pcrs: dict[str, dict[int, bytes]]


def verify_gotpm(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    """An attestation as go-tpm-tools write it: key, quotes, log, certificate in one file."""
    found = gotpm.parse_gotpm(data)
    chain: tuple[Certificate, ...] = ()
    if found.certificate:
        leaf = parse(found.certificate)
        chain = order(leaf, [*map(parse_authority, found.intermediates), *inputs.certificates])
    log = parse_event_log(found.event_log) if found.event_log else log_of(inputs)
    quotes = [
        Quoted(tpm.parse_quote(item.quote), tpm.parse_signature(item.signature), {item.bank: item.pcrs})
        for item in found.quotes
    ]
    return _verified(tpm.parse_public_area(found.key), chain, quotes, log, inputs, policy)


def verify_tpm_json(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    """Evidence as JSON (`tpm_json.py`)."""
    found = tpm_json.parse_tpm_json(data)
    chain = order(found.chain[0], [*found.chain[1:], *inputs.certificates]) if found.chain else ()
    log = parse_event_log(found.event_log) if found.event_log is not None else log_of(inputs)
    quote = Quoted(tpm.parse_quote(found.quote), tpm.parse_signature(found.signature), found.pcrs)
    return _verified(tpm.parse_key(found.key), chain, [quote], log, inputs, policy)


def verify_quote(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    """A quote whose signature, PCR values and key are files of their own (`tpm_files.py`)."""
    quote = tpm.parse_quote(data)
    if inputs.signature is None or not inputs.public_keys:
        raise InputError(
            "a TPM's quote alone",
            expected="its signature and the key that you believe",
            next_step="--signature FILE --trust FILE (public area or PEM), --pcrs FILE or --event-log FILE",
        )
    signature = tpm_files.parse_signature_file(inputs.signature)
    log = log_of(inputs)
    pcrs = _replayed(quote, log) if inputs.pcrs is None else tpm_files.parse_pcr_file(inputs.pcrs, quote)
    keys = [tpm.parse_key(item) for item in inputs.public_keys]
    signed = [key for key in keys if _is_signer(key, quote, signature)]
    return _verified((signed or keys)[0], (), [Quoted(quote, signature, pcrs)], log, inputs, policy)


def _is_signer(key: tpm.PublicKey, quote: tpm.Quote, signature: tpm.Signature) -> bool:
    """Whether a key made the signature, whatever else speaks against the two."""
    return {"key", "signature"}.isdisjoint(reason.code for reason in truth_of_quote(quote, signature, key.key))


def _replayed(quote: tpm.Quote, log: EventLog | None) -> dict[str, dict[int, bytes]]:
    """What a log says that the quoted PCRs are; those that it says nothing of are as a TPM starts them."""
    found: dict[str, dict[int, bytes]] = {}
    for bank, numbers in quote.selected:
        if log is None or bank not in log.banks:
            continue
        values = replay(log, bank)
        zeros = bytes(tpm.DIGEST_BYTES[bank])
        found[bank] = {number: values.get(number, zeros) for number in numbers}
    return found


def _verified(
    key: tpm.PublicKey,
    chain: tuple[Certificate, ...],
    quotes: Sequence[Quoted],
    log: EventLog | None,
    inputs: Inputs,
    policy: Policy,
) -> Verified:
    moment = moment_of(inputs)
    reasons = list(truth_of_key(key, chain, inputs.keys, inputs.anchors, moment))
    believed = believed_part(chain, {*inputs.anchors, *GOOGLE_ROOTS})
    more, revocation = revocation_of(believed, inputs.revocations, moment, what="attestation key")
    reasons += more
    if not chain and not reasons:
        revocation = Revocation.UNPUBLISHED  # whoever believes a bare key is the one to take it back
    pcrs: dict[str, dict[int, bytes]] = {}
    for item in quotes:
        reasons += quoted_faults(item, key.key, log, inputs)
        for bank, values in item.pcrs.items():
            pcrs.setdefault(bank, {}).update(values)
    instance = instance_of(chain[0]) if chain else {}
    reasons += wants_tpm(pcrs, log, policy.tpm)
    reasons += wants_place(str(instance.get("gce-project", "")), policy.tpm)
    reasons += wants_revocation(revocation, policy)
    claims: dict[str, Claim] = {"attestation-key": hashlib.sha256(key.key).hexdigest()}
    claims |= instance
    claims |= tpm_claims(pcrs, log, quotes[0].quote)
    notes = notes_of(inputs, *(() if log is not None else (NO_LOG,)))
    return Verified(
        kind="tpm", claims=claims, reasons=tuple(dict.fromkeys(reasons)), notes=notes, revocation=revocation
    )


def quoted_faults(item: Quoted, key: bytes, log: EventLog | None, inputs: Inputs) -> Iterator[Reason]:
    """Truth of one quote by a key (SubjectPublicKeyInfo) that is believed, and whether it is fresh."""
    yield from truth_of_quote(item.quote, item.signature, key)
    yield from truth_of_pcrs(item.quote, item.pcrs, item.signature.hash_name)
    for bank, values in item.pcrs.items():
        for number in sorted(values.keys() - set(covered(item.quote, bank))):
            yield false(f"pcrs.{bank}.{number}", f"{bank} PCR {number} came along, and is not quoted")
    if log is not None:
        yield from truth_of_log(item.quote, item.pcrs, log)
    if inputs.nonce is not None and not hmac.compare_digest(item.quote.nonce, inputs.nonce):
        yield unwanted("nonce", "the quote is over another nonce: this may be a replay")


def tpm_claims(pcrs: Pcrs, log: EventLog | None, quote: tpm.Quote) -> dict[str, Claim]:
    """What a vTPM's part claims."""
    claims: dict[str, Claim] = {
        f"{bank}-pcr{number}": value.hex() for bank, values in pcrs.items() for number, value in sorted(values.items())
    }
    claims["nonce"] = quote.nonce.hex()
    claims["resets"] = quote.resets
    claims["restarts"] = quote.restarts
    if log is not None:
        state = secure_boot(log) if covers_secure_boot(pcrs, log) else None
        claims["secure-boot"] = "unknown" if state is None else state
        claims["events"] = len(log.events)
    return claims
