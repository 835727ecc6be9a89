"""A SEV-SNP report to a verdict: alone, with its certificates behind it, or within another kind of evidence."""

from __future__ import annotations

import hashlib

import msgspec

from casemate.errors import InputError
from casemate.evidence import snp
from casemate.evidence.chain import believed_part, order
from casemate.evidence.inputs import Inputs, moment_of, nonce_faults, notes_of
from casemate.evidence.policy import Policy
from casemate.evidence.policy_wants import wants_revocation, wants_snp
from casemate.evidence.revocation import revocation_of
from casemate.evidence.snp_true import AMD_ROOTS, SigningKey, signing_key, truth_of_snp
from casemate.evidence.verdict import Claim, Reason, Revocation, Verified, false
from casemate.evidence.x509 import Certificate, parse

MASKED = "the platform does not say which chip it is (MASK_CHIP_ID)"


class SnpParts(msgspec.Struct, frozen=True):
    """What there is to say of a report, for whoever has more to say."""

    report: snp.SnpReport
    reasons: list[Reason]
    claims: dict[str, Claim]
    revocation: Revocation
    notes: tuple[str, ...]


def verify_snp(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    """A report of 1184 bytes, or an extended one with its table of certificates."""
    embedded = tuple(parse(item) for item in snp.certificate_table(data))
    inputs = msgspec.structs.replace(inputs, certificates=(*embedded, *inputs.certificates))
    parts = snp_parts(data[: snp.SIZE], inputs, policy)
    parts.reasons.extend(nonce_faults(inputs.nonce, parts.report.report_data, "report data"))
    return Verified(
        kind="sev-snp",
        claims=parts.claims,
        reasons=tuple(parts.reasons),
        notes=notes_of(inputs, *parts.notes),
        revocation=parts.revocation,
    )


def snp_parts(data: bytes, inputs: Inputs, policy: Policy) -> SnpParts:
    """Truth and policy of one report, without its report data: those belong to whoever asked for it."""
    leaf = _leaf(data, inputs)
    key = _signing_key(leaf)
    report = snp.parse_report(data, is_turin=key is not None and key.product == "Turin")
    product = report.product or (key.product if key is not None else "")
    revocation = Revocation.UNKNOWN
    if leaf is None:
        kind = "VLEK" if report.signing_key == 1 else "VCEK"
        reasons = [false("certificate", f"there is no certificate of the signing key: --certs FILE ({kind})")]
    else:
        others = tuple(item for item in inputs.certificates if item is not leaf)
        reasons = list(truth_of_snp(report, leaf, others, moment_of(inputs)))
        chain = believed_part(order(leaf, others), AMD_ROOTS)
        more, revocation = revocation_of(chain, inputs.revocations, moment_of(inputs), what="signing key")
        reasons += more
        product = product or AMD_ROOTS.get(hashlib.sha256(chain[-1].encoded).hexdigest(), "")
    provider = key.provider if key is not None else ""
    reasons += wants_snp(report, product, provider, policy.sev_snp)
    reasons += wants_revocation(revocation, policy)
    notes = (MASKED,) if report.is_chip_masked else ()
    return SnpParts(report, reasons, _claims(report, product, provider), revocation, notes)


def _leaf(data: bytes, inputs: Inputs) -> Certificate | None:
    """The certificate of the key that the report names; any of the two when there is only that."""
    signed_by_vlek = len(data) > 0x48 and data[0x48] >> 2 & 7 == 1
    names = ("SEV-VLEK", "SEV-VCEK") if signed_by_vlek else ("SEV-VCEK", "SEV-VLEK")
    return next((item for name in names for item in inputs.certificates if item.common_name == name), None)


def _signing_key(leaf: Certificate | None) -> SigningKey | None:
    try:
        return None if leaf is None else signing_key(leaf)
    except InputError:
        return None  # `truth_of_snp` says so


def _claims(report: snp.SnpReport, product: str, provider: str) -> dict[str, Claim]:
    return {
        "version": report.version,
        "product": product,
        "measurement": report.measurement.hex(),
        "report-data": report.report_data.hex(),
        "host-data": report.host_data.hex(),
        "policy": f"{report.policy:#x}",
        "debug": report.policy_has("debug-allowed"),
        "migration-agent": report.policy_has("migration-agent-allowed"),
        "vmpl": report.vmpl,
        "guest-svn": report.guest_svn,
        "family-id": report.family_id.hex() if any(report.family_id) else "",
        "image-id": report.image_id.hex() if any(report.image_id) else "",
        "chip-id": "masked" if report.is_chip_masked else report.chip_id.hex(),
        "signing-key": {0: "VCEK", 1: "VLEK"}.get(report.signing_key, str(report.signing_key)),
        "provider": provider,
        "id-key-digest": report.id_key_digest.hex() if any(report.id_key_digest) else "",
        "author-key-digest": report.author_key_digest.hex() if report.has_author_key else "",
        "platform": " ".join(report.platform_features),
        **{f"tcb-{name}": number for name, number in report.reported_tcb.components().items()},
        **({"mitigations": f"{report.launch_mitigations:#x}"} if report.version >= 5 else {}),
    }
