"""Does a policy want what evidence says? Every reason against it; whether it is true is asked elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from casemate.evidence.event_log import EventLog, secure_boot
from casemate.evidence.nitro import NitroDocument
from casemate.evidence.policy import NitroPolicy, Policy, SePolicy, SnpPolicy, TdxPolicy, TpmPolicy
from casemate.evidence.se import SeResponse
from casemate.evidence.snp import SnpReport
from casemate.evidence.tdx import (
    DEBUG,
    KNOWN_ATTRIBUTES,
    MIGRATABLE,
    PROFILED,
    SEPT_VE_DISABLE,
    SERVICE_EXTENDED,
    TdxQuote,
)
from casemate.evidence.tdx_levels import TcbStatus
from casemate.evidence.tpm_true import covers_secure_boot
from casemate.evidence.verdict import Reason, Revocation, unwanted


def wants_revocation(found: Revocation, policy: Policy) -> Iterator[Reason]:
    """Every reason against a chain of which it is not known whether it was revoked."""
    if not policy.require_revocation_lists or found is Revocation.CHECKED:
        return
    if found is Revocation.UNPUBLISHED:
        yield unwanted(
            "revocation.unpublished", "nobody publishes revocation lists for this chain, and lists are wanted"
        )
    else:
        yield unwanted(
            "revocation.unknown", "a list that this chain's issuers publish was not there, and lists are wanted"
        )


def wants_snp(report: SnpReport, product: str, provider: str, policy: SnpPolicy) -> Iterator[Reason]:
    """Every reason against a SEV-SNP report.

    Args:
        provider: that a VLEK's certificate names; empty for a VCEK.
    """
    yield from _wants_snp_guest(report, policy)
    yield from _wants_snp_platform(report, product, provider, policy)
    for name, value, digests in (
        ("measurement", report.measurement, policy.measurement),
        ("host-data", report.host_data, policy.host_data),
        ("id-key-digest", report.id_key_digest, policy.id_key_digest),
        ("author-key-digest", report.author_key_digest if report.has_author_key else b"", policy.author_key_digest),
        ("family-id", report.family_id, policy.family_id),
        ("image-id", report.image_id, policy.image_id),
        ("chip-id", b"" if report.is_chip_masked else report.chip_id, policy.chip_id),
    ):
        yield from _one_of(name, value, digests)


def _wants_snp_guest(report: SnpReport, policy: SnpPolicy) -> Iterator[Reason]:
    if report.policy_has("debug-allowed") and not policy.accept_debug_guest_that_its_host_can_read:
        yield unwanted("debug", "the guest may be debugged: its host can read its memory")
    if report.policy_has("migration-agent-allowed") and not policy.accept_migration_agent_that_can_move_the_guest:
        yield unwanted("migration-agent", "a migration agent may move the guest's keys")
    if report.policy_has("smt-allowed") and policy.refuse_smt:
        yield unwanted("smt", "the guest may run beside others on one core")
    if report.vmpl != policy.vmpl:
        yield unwanted("vmpl", f"the report was asked for from VMPL {report.vmpl}, expected {policy.vmpl}")
    if report.unknown_policy_bits:
        yield unwanted(
            "policy-bits", f"the guest's policy has bits that nobody here knows: {report.unknown_policy_bits:#x}"
        )
    if report.guest_svn < policy.minimum_guest_svn:
        yield unwanted("guest-svn", f"guest SVN {report.guest_svn}, at least {policy.minimum_guest_svn} is wanted")


def _provisional(report: SnpReport) -> str:
    """What runs and is not committed, by component; empty when all is."""
    current, committed = report.current_tcb.components(), report.committed_tcb.components()
    parts = [
        f"{name} {value} runs, {committed.get(name)} is committed"
        for name, value in current.items()
        if value != committed.get(name)
    ]
    if report.current_firmware != report.committed_firmware:
        runs, stays = (".".join(map(str, item)) for item in (report.current_firmware, report.committed_firmware))
        parts.append(f"firmware {runs} runs, {stays} is committed")
    return ", ".join(parts)


def _wants_snp_platform(report: SnpReport, product: str, provider: str, policy: SnpPolicy) -> Iterator[Reason]:
    provisional = _provisional(report)
    if provisional and not policy.accept_provisional_firmware:
        text = f"the platform's firmware is provisional, and can still be rolled back: {provisional}"
        yield unwanted("provisional", text)
    if policy.products and product not in policy.products:
        yield unwanted("product", f"{product or 'an unnamed product'}, wanted is {', '.join(policy.products)}")
    if policy.providers and provider not in policy.providers:
        yield unwanted("provider", f"{provider or 'no provider (VCEK)'}, wanted is {', '.join(policy.providers)}")
    for feature in policy.platform:
        if feature not in report.platform_features:
            yield unwanted(f"platform.{feature}", f"the platform does not have {feature}")
    have = report.reported_tcb.components()
    for part, least in sorted(policy.minimum_tcb.items()):
        if have.get(part, -1) < least:
            yield unwanted(f"tcb.{part}", f"{part} version {have.get(part)}, at least {least} is wanted")
    for bit in policy.required_mitigations:
        if not report.launch_mitigations & report.current_mitigations & 1 << bit:
            yield unwanted(f"mitigation.{bit}", f"mitigation {bit} was not in force from the launch until now")


def wants_tdx(quote: TdxQuote, status: TcbStatus, policy: TdxPolicy) -> Iterator[Reason]:
    """Every reason against a TDX quote."""
    yield from _wants_td(quote, policy)
    if status.status and status.status not in policy.accepted_tcb:
        yield unwanted("tcb-status", f"the platform is {status.status}, wanted is {', '.join(policy.accepted_tcb)}")
    if status.status and status.evaluation < policy.minimum_tcb_evaluation:
        text = f"TCB evaluation {status.evaluation}, at least {policy.minimum_tcb_evaluation} is wanted"
        yield unwanted("tcb-evaluation", text)
    for advisory in status.advisories:
        if advisory not in policy.accepted_advisories:
            yield unwanted("advisory", f"{advisory} applies to this platform")
    for name, value, wanted in (
        ("mrtd", quote.mrtd, policy.mrtd),
        ("mrseam", quote.mrseam, policy.mrseam),
        ("mrconfigid", quote.mrconfigid, policy.mrconfigid),
        ("mrowner", quote.mrowner, policy.mrowner),
        ("mrownerconfig", quote.mrownerconfig, policy.mrownerconfig),
        ("mrservicetd", quote.mrservicetd, policy.mrservicetd),
        *((f"rtmr{number}", quote.rtmrs[int(number)], (text,)) for number, text in sorted(policy.rtmr.items())),
    ):
        yield from _one_of(name, value, wanted)


def _wants_td(quote: TdxQuote, policy: TdxPolicy) -> Iterator[Reason]:
    """What the TD lets others do with it."""
    bits = quote.attributes
    is_debug = bits & (DEBUG | PROFILED)
    if is_debug and not policy.accept_debug_guest_that_its_host_can_read:
        what = "may be debugged: its host can read its memory" if bits & DEBUG else "may be profiled by its host"
        yield unwanted("debug", f"the guest {what}")
    if bits & MIGRATABLE and not policy.accept_migration_service_that_can_move_the_guest:
        yield unwanted("migratable", "the guest may be moved by a migration service")
    if not bits & SEPT_VE_DISABLE and not policy.accept_exceptions_that_the_host_injects:
        yield unwanted("sept-ve", "the host can inject exceptions by taking pages away (SEPT_VE_DISABLE is off)")
    if bits & SERVICE_EXTENDED:
        yield unwanted("service-td", "the guest may have service TDs that its quote does not name")
    if any(quote.mrservicetd) and not policy.mrservicetd:
        yield unwanted("service-td", "the guest is bound to a service TD, and the policy names none (mrservicetd)")
    if unknown := bits & ~KNOWN_ATTRIBUTES:
        yield unwanted("attribute-bits", f"the guest's attributes have bits that nobody here knows: {unknown:#x}")


def wants_nitro(document: NitroDocument, policy: NitroPolicy) -> Iterator[Reason]:
    """Every reason against a Nitro document that is true."""
    if not any(document.pcrs.get(0, b"")) and not policy.accept_debug_enclave_that_its_host_can_read:
        what = "the TPM measured no firmware" if document.is_tpm else "the enclave runs in debug mode"
        yield unwanted("debug", f"PCR 0 is all zeros: {what}")
    for number, text in sorted(policy.pcrs.items()):
        yield from _one_of(f"pcr{number}", document.pcrs.get(int(number), b""), (text,))
    yield from _one_of("user-data", document.user_data, policy.user_data)


def wants_se(response: SeResponse, parts: dict[str, bytes], policy: SePolicy) -> Iterator[Reason]:
    """Every reason against Secure Execution evidence; its image is part of its truth.

    Args:
        parts: `SeResponse.parts`; what the request did not ask for is not there, and then not what is wanted.
    """
    for name, value, wanted in (
        ("image-host-key", parts.get("image-host-key", b""), policy.image_host_key),
        ("attestation-host-key", parts.get("attestation-host-key", b""), policy.attestation_host_key),
        ("secret-store", parts.get("secret-store", b""), policy.secret_store),
        ("firmware-state", parts.get("firmware-state", b""), policy.firmware_state),
        ("config-uid", response.config_uid, policy.config_uid),
        ("user-data", response.user_data, policy.user_data),
    ):
        yield from _one_of(name, value, wanted)


def wants_tpm(pcrs: dict[str, dict[int, bytes]], log: EventLog | None, policy: TpmPolicy) -> Iterator[Reason]:
    """Every reason against quoted PCR values and their log.

    Args:
        pcrs: values that a true quote covers, by bank and number.
    """
    for required in policy.required_pcrs:
        if not any(required in values for bank, values in pcrs.items() if bank != "sha1"):
            yield unwanted(f"pcr{required}", f"PCR {required} is not quoted")
    for bank, wanted in sorted(policy.pcrs.items()):
        for number, text in sorted(wanted.items()):
            yield from _one_of(f"{bank}.pcr{number}", pcrs.get(bank, {}).get(int(number), b""), (text,))
    if policy.secure_boot:
        if log is None or not covers_secure_boot(pcrs, log):
            yield unwanted("secure-boot", "no quote covers what a log says of Secure Boot (PCR 7)")
        elif secure_boot(log) is not True:
            yield unwanted("secure-boot", "the log does not say that Secure Boot was on")


def wants_place(project: str, policy: TpmPolicy) -> Iterator[Reason]:
    """Every reason against where a vTPM's certificate says that it is. ``project``: of Google's cloud, or empty."""
    if policy.gce_projects and project not in policy.gce_projects:
        text = f"the key is of {project or 'no project'}, wanted is {' or '.join(policy.gce_projects)}"
        yield unwanted("gce-project", text)


def _one_of(name: str, value: bytes, wanted: tuple[str, ...]) -> Iterator[Reason]:
    if wanted and value.hex() not in wanted:
        yield unwanted(name, f"{name} is {value.hex() or 'absent'}, wanted is {' or '.join(wanted)}")
