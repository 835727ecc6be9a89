"""Evidence of any kind, told by its content, to a verdict: fields, truth, policy. No I/O, and the time is given.

What binds pieces together is checked here: the report data of an Azure report are the hash of the runtime data that
hold the vTPM's key; the nonce is where each kind has it; the log is the one that the registers were made by.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
from collections.abc import Callable, Iterator, Sequence

import msgspec

from casemate.errors import InputError
from casemate.evidence import azure, gotpm, nitro, snp, tdx, tpm
from casemate.evidence.chain import chain_faults, order
from casemate.evidence.event_log import EventLog, parse_event_log, secure_boot
from casemate.evidence.nitro_true import truth_of_nitro
from casemate.evidence.policy import Policy, wants_nitro, wants_snp, wants_tdx, wants_tpm
from casemate.evidence.snp_true import AMD_ROOTS, signing_key, truth_of_snp
from casemate.evidence.tdx_true import truth_of_rtmrs, truth_of_tdx
from casemate.evidence.tpm_true import covered, truth_of_log, truth_of_pcrs, truth_of_quote
from casemate.evidence.verdict import Claim, Reason, Verified, false, unwanted
from casemate.evidence.x509 import Certificate

NO_NONCE = "freshness is not known: no nonce was given"
NO_REVOCATION = "revocation is not known: no list was given"


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """What comes along with evidence. ``moment``: when it has to hold; None: the document's own time, for kinds that
    have one. ``anchors``: SHA-256 of certificates (of attestation keys, or above them) that the caller believes."""

    certificates: tuple[Certificate, ...] = ()
    collateral: bytes | None = None
    event_log: bytes | None = None
    nonce: bytes | None = None
    moment: datetime.datetime | None = None
    anchors: tuple[str, ...] = ()


def verify(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    """Verify one piece of evidence.

    Raises:
        InputError: it is of no kind that is known, or cannot be read.
    """
    for looks_like, check in _KINDS:
        if looks_like(data):
            return check(data, inputs, policy)
    raise InputError(
        "evidence of no known kind",
        got=f"{len(data)} bytes beginning {data[:8].hex()}",
        expected="a SEV-SNP report, TDX quote, TPM attestation, Nitro document or Azure evidence",
    )


def _moment(inputs: Inputs) -> datetime.datetime:
    if inputs.moment is None:
        raise InputError("this evidence has no time of its own", next_step="--at TIME, or leave --at out for now")
    return inputs.moment


def _nonce_faults(nonce: bytes | None, found: bytes, where: str) -> Iterator[Reason]:
    """A field of fixed length holds the nonce at its beginning, and zeros."""
    if nonce is None:
        return
    if len(nonce) > len(found) or not hmac.compare_digest(nonce.ljust(len(found), b"\0"), found):
        yield unwanted("nonce", f"the {where} is not the nonce: this may be a replay")


def _notes(inputs: Inputs, *more: str) -> tuple[str, ...]:
    return (*more, *(() if inputs.nonce is not None else (NO_NONCE,)))


# ---- SEV-SNP ---------------------------------------------------------------------------------------------------------


def _snp(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    reasons, claims = _snp_parts(data, inputs, policy)
    report = snp.parse_report(data)
    reasons += _nonce_faults(inputs.nonce, report.report_data, "report data")
    return Verified(kind="sev-snp", claims=claims, reasons=tuple(reasons), notes=_notes(inputs, NO_REVOCATION))


def _snp_parts(data: bytes, inputs: Inputs, policy: Policy) -> tuple[list[Reason], dict[str, Claim]]:
    leaf = next((item for item in inputs.certificates if item.common_name in ("SEV-VCEK", "SEV-VLEK")), None)
    product = ""
    if leaf is not None:
        try:
            product = signing_key(leaf).product
        except InputError:
            product = ""
    report = snp.parse_report(data, is_turin=product == "Turin")
    if leaf is None:
        reasons = [false("certificate", "there is no certificate of the signing key: --certs FILE (VCEK or VLEK)")]
    else:
        others = tuple(item for item in inputs.certificates if item is not leaf)
        reasons = list(truth_of_snp(report, leaf, others, _moment(inputs)))
        chain = order(leaf, others)
        product = product or AMD_ROOTS.get(hashlib.sha256(chain[-1].encoded).hexdigest(), "")
    reasons += wants_snp(report, product, policy.sev_snp)
    claims: dict[str, Claim] = {
        "version": report.version,
        "product": product,
        "measurement": report.measurement.hex(),
        "report-data": report.report_data.hex(),
        "host-data": report.host_data.hex(),
        "policy": f"{report.policy:#x}",
        "debug": report.policy_has("debug-allowed"),
        "vmpl": report.vmpl,
        "guest-svn": report.guest_svn,
        "chip-id": "masked" if report.is_chip_masked else report.chip_id.hex(),
        "id-key-digest": report.id_key_digest.hex(),
        **{f"tcb-{name}": number for name, number in report.reported_tcb.components().items()},
    }
    return reasons, claims


# ---- TDX -------------------------------------------------------------------------------------------------------------


def _tdx(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    quote = tdx.parse_tdx(data)
    found, status = truth_of_tdx(quote, inputs.collateral, _moment(inputs))
    reasons = list(found)
    log = _log(inputs)
    if log is not None:
        reasons += truth_of_rtmrs(quote, log)
    reasons += wants_tdx(quote, status, policy.tdx)
    reasons += _nonce_faults(inputs.nonce, quote.report_data, "report data")
    claims: dict[str, Claim] = {
        "version": quote.version,
        "mrtd": quote.mrtd.hex(),
        **{f"rtmr{number}": value.hex() for number, value in enumerate(quote.rtmrs)},
        "report-data": quote.report_data.hex(),
        "attributes": f"{quote.attributes:#x}",
        "debug": bool(quote.attributes & tdx.DEBUG),
        "tcb-status": status.status or "unknown",
        "advisories": " ".join(status.advisories),
    }
    return Verified(kind="tdx", claims=claims, reasons=tuple(reasons), notes=_notes(inputs))


def _log(inputs: Inputs) -> EventLog | None:
    return parse_event_log(inputs.event_log) if inputs.event_log is not None else None


# ---- TPM -------------------------------------------------------------------------------------------------------------


def _gotpm(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    """An attestation as go-tpm-tools write it: key, quotes, log, certificate in one file."""
    from casemate.evidence.x509 import parse

    found = gotpm.parse_gotpm(data)
    key = tpm.parse_public_key(found.key)
    reasons: list[Reason] = []
    if found.certificate:
        leaf = parse(found.certificate)
        chain = order(leaf, [*map(parse, found.intermediates), *inputs.certificates])
        reasons += chain_faults(chain, inputs.anchors, _moment(inputs), what="attestation key")
        if leaf.key != key:
            reasons.append(false("key", "the certificate is of another key than the one that came along"))
    else:
        reasons.append(false("chain.empty", "nothing says whose attestation key this is"))
    log = parse_event_log(found.event_log) if found.event_log else _log(inputs)
    pcrs: dict[str, dict[int, bytes]] = {}
    for item in found.quotes:
        reasons += _quoted(tpm.parse_quote(item.quote), tpm.parse_signature(item.signature), key, item, log, inputs)
        pcrs.setdefault(item.bank, {}).update(item.pcrs)
    reasons += wants_tpm(pcrs, log, policy.tpm)
    return Verified(kind="tpm", claims=_tpm_claims(pcrs, log), reasons=tuple(reasons), notes=_notes(inputs))


def _quoted(
    quote: tpm.Quote,
    signature: tpm.Signature,
    key: bytes,
    item: gotpm.QuotedPcrs,
    log: EventLog | None,
    inputs: Inputs,
) -> Iterator[Reason]:
    values = {item.bank: item.pcrs}
    yield from truth_of_quote(quote, signature, key)
    yield from truth_of_pcrs(quote, values, signature.hash_name)
    for number in sorted(item.pcrs.keys() - set(covered(quote, item.bank))):
        yield false(f"pcrs.{item.bank}.{number}", f"{item.bank} PCR {number} came along, and is not quoted")
    if log is not None:
        yield from truth_of_log(quote, values, log)
    if inputs.nonce is not None and not hmac.compare_digest(quote.nonce, inputs.nonce):
        yield unwanted("nonce", "the quote is over another nonce: this may be a replay")


def _tpm_claims(pcrs: dict[str, dict[int, bytes]], log: EventLog | None) -> dict[str, Claim]:
    claims: dict[str, Claim] = {
        f"{bank}-pcr{number}": value.hex() for bank, values in pcrs.items() for number, value in sorted(values.items())
    }
    if log is not None:
        state = secure_boot(log)
        claims["secure-boot"] = "unknown" if state is None else state
        claims["events"] = len(log.events)
    return claims


# ---- Azure -----------------------------------------------------------------------------------------------------------


def _azure(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    """HCL report, its VCEK, and the vTPM's quote by the key that the report vouches for."""
    from casemate.evidence.x509 import parse_many

    found = azure.parse_evidence(data)
    if found.report.kind != "sev-snp":
        raise InputError(
            "Azure evidence on TDX needs its quote", got=found.report.kind, next_step="verify the TDX quote"
        )
    hardware = msgspec.structs.replace(inputs, certificates=(*parse_many(found.certificate), *inputs.certificates))
    reasons, claims = _snp_parts(found.report.hardware, hardware, policy)
    report = snp.parse_report(found.report.hardware)
    digest = hashlib.new(found.report.hash_name, found.report.runtime).digest()
    if not hmac.compare_digest(report.report_data, digest.ljust(64, b"\0")):
        reasons.append(false("binding", "the report does not vouch for the runtime data with the vTPM's key"))
    quote = tpm.parse_quote(found.quote)
    signature = tpm.Signature("rsa", "sha256", found.signature)
    item = gotpm.QuotedPcrs(found.quote, found.signature, "sha256", found.pcrs)
    log = _log(inputs)
    reasons += _quoted(quote, signature, azure.attestation_key(found.report), item, log, inputs)
    pcrs = {"sha256": found.pcrs}
    reasons += wants_tpm(pcrs, log, policy.tpm)
    return Verified(
        kind="azure-snp",
        claims=claims | _tpm_claims(pcrs, log),
        reasons=tuple(reasons),
        notes=_notes(inputs, NO_REVOCATION),
    )


# ---- Nitro -----------------------------------------------------------------------------------------------------------


def _nitro(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    document = nitro.parse_document(data)
    moment = inputs.moment or document.moment
    reasons = [*truth_of_nitro(document, moment), *wants_nitro(document, policy.nitro)]
    if inputs.nonce is not None and not hmac.compare_digest(document.nonce, inputs.nonce):
        reasons.append(unwanted("nonce", "the document has another nonce: this may be a replay"))
    claims: dict[str, Claim] = {
        "module": document.module,
        "time": document.moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        **{f"pcr{number}": value.hex() for number, value in document.pcrs.items() if any(value)},
        "user-data": document.user_data.hex(),
        "nonce": document.nonce.hex(),
        "public-key": document.public_key.hex(),
    }
    return Verified(kind="nitro", claims=claims, reasons=tuple(reasons), notes=_notes(inputs, NO_REVOCATION))


_Check = Callable[[bytes, Inputs, Policy], Verified]
_KINDS: Sequence[tuple[Callable[[bytes], bool], _Check]] = (
    (snp.looks_like_snp, _snp),
    (tdx.looks_like_tdx, _tdx),
    (nitro.looks_like_nitro, _nitro),
    (azure.looks_like_azure, _azure),
    (gotpm.looks_like_gotpm, _gotpm),
)
