"""Azure's evidence to a verdict: hardware report, its binding to the vTPM, the vTPM's quote."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator

import msgspec

from casemate.evidence import azure, tpm
from casemate.evidence.inputs import Inputs, log_of, notes_of
from casemate.evidence.policy import Policy
from casemate.evidence.policy_wants import wants_tpm
from casemate.evidence.verdict import Claim, Reason, Revocation, Verified, false, unwanted
from casemate.evidence.verify_snp import snp_parts
from casemate.evidence.verify_tdx import tdx_parts
from casemate.evidence.verify_tpm import Quoted, quoted_faults, tpm_claims
from casemate.evidence.x509 import parse_many

USER_DATA_SINCE = 2
_TDREPORT_DATA = slice(128, 192)
"""REPORTDATA in REPORTMACSTRUCT, with which the TDREPORT of an HCL report begins."""


def verify_azure(data: bytes, inputs: Inputs, policy: Policy) -> Verified:
    """The hardware vouches for the runtime data, these for the vTPM's key, that key for the quote."""
    found = azure.parse_evidence(data)
    reasons, claims, report_data, revocation, notes = _hardware(found, inputs, policy)
    digest = hashlib.new(found.report.hash_name, found.report.runtime).digest()
    if not hmac.compare_digest(report_data, digest.ljust(64, b"\0")):
        reasons.append(false("binding", "the report does not vouch for the runtime data with the vTPM's key"))
    quoted = Quoted(
        tpm.parse_quote(found.quote), tpm.Signature("rsa", "sha256", found.signature), {"sha256": found.pcrs}
    )
    log = log_of(inputs)
    reasons += quoted_faults(quoted, azure.attestation_key(found.report), log, inputs)
    runtime = azure.runtime_of(found.report)
    reasons += _user_data_faults(found, runtime, inputs)
    reasons += wants_tpm(quoted.pcrs, log, policy.tpm)
    claims |= tpm_claims(quoted.pcrs, log, quoted.quote)
    claims |= {f"vm-{name}": value for name, value in sorted(runtime.settings.items())}
    kind = "azure-snp" if found.report.kind == "sev-snp" else "azure-tdx"
    return Verified(
        kind=kind,
        claims=claims,
        reasons=tuple(reasons),
        notes=notes_of(inputs, *notes),
        revocation=revocation,
    )


def _hardware(
    found: azure.AzureEvidence, inputs: Inputs, policy: Policy
) -> tuple[list[Reason], dict[str, Claim], bytes, Revocation, tuple[str, ...]]:
    """(reasons, claims, report data, revocation, notes) of the hardware's report."""
    if found.report.kind == "sev-snp":
        certificates = (*parse_many(found.certificate), *inputs.certificates)
        snp = snp_parts(found.report.hardware, msgspec.structs.replace(inputs, certificates=certificates), policy)
        return snp.reasons, snp.claims, snp.report.report_data, snp.revocation, snp.notes
    tdx = tdx_parts(found.td_quote, inputs, policy)
    # The HCL report has the TDREPORT that the quote was made from; a quote of another one is of another machine.
    if not hmac.compare_digest(found.report.hardware[_TDREPORT_DATA], tdx.quote.report_data):
        tdx.reasons.append(false("binding.tdreport", "the TD quote is not of the TD report in the HCL report"))
    return tdx.reasons, tdx.claims, tdx.quote.report_data, tdx.revocation, ()


def _user_data_faults(found: azure.AzureEvidence, runtime: azure.Runtime, inputs: Inputs) -> Iterator[Reason]:
    """From version 2 on the nonce is also in what the hardware vouches for: the quote's alone is the vTPM's word."""
    if inputs.nonce is None or found.version < USER_DATA_SINCE:
        return
    if not hmac.compare_digest(runtime.user_data, inputs.nonce.ljust(len(runtime.user_data), b"\0")):
        yield unwanted("nonce.user-data", "the runtime data have another nonce: this may be a replay")
