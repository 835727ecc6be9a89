"""Does the policy want what evidence says? Policies as closed TOML; without one the default, which trusts no debugging.

    format = 1

    [sev-snp]
    measurement = ["5feee3…"]            # one of these; from casemate measure, or a known good launch
    host-data = ["…"]
    minimum-tcb = { bootloader = 4, tee = 0, snp = 22, microcode = 213 }
    products = ["Genoa", "Turin"]

    [tdx]
    mrtd = ["…"]
    rtmr = { 0 = "…", 1 = "…" }
    accepted-tcb = ["UpToDate"]

    [tpm]
    secure-boot = true
    pcrs.sha256 = { 4 = "…", 7 = "…" }

    [nitro]
    pcrs = { 0 = "…" }

Everything that makes evidence worth less has a long name: `accept-debug-guest-that-its-host-can-read`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from casemate.errors import Fault, InputError, SpecError
from casemate.evidence.event_log import EventLog, secure_boot
from casemate.evidence.nitro import NitroDocument
from casemate.evidence.snp import SnpReport
from casemate.evidence.tdx import DEBUG, MIGRATABLE, SEPT_VE_DISABLE, TdxQuote
from casemate.evidence.tdx_true import TcbStatus
from casemate.evidence.tpm import DIGEST_BYTES
from casemate.evidence.verdict import Reason, unwanted

FORMAT: Final = 1
_TCB_NAMES: Final = frozenset({"fmc", "bootloader", "tee", "snp", "microcode"})
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+")


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    pass


class SnpPolicy(_Section, frozen=True):
    """What a SEV-SNP report must say; lists of digests mean one of them, empty ones anything."""

    measurement: tuple[str, ...] = ()
    host_data: tuple[str, ...] = ()
    id_key_digest: tuple[str, ...] = ()
    author_key_digest: tuple[str, ...] = ()
    family_id: tuple[str, ...] = ()
    image_id: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    minimum_tcb: dict[str, int] = {}
    minimum_guest_svn: int = 0
    vmpl: int = 0
    refuse_smt: bool = False
    accept_debug_guest_that_its_host_can_read: bool = False
    accept_migration_agent_that_can_move_the_guest: bool = False
    accept_provisional_firmware: bool = False


class TdxPolicy(_Section, frozen=True):
    """What a TDX quote must say."""

    mrtd: tuple[str, ...] = ()
    mrseam: tuple[str, ...] = ()
    mrconfigid: tuple[str, ...] = ()
    mrowner: tuple[str, ...] = ()
    rtmr: dict[str, str] = {}
    accepted_tcb: tuple[str, ...] = ("UpToDate",)
    accepted_advisories: tuple[str, ...] = ()
    accept_debug_guest_that_its_host_can_read: bool = False
    accept_migratable_guest: bool = False
    accept_exceptions_that_the_host_injects: bool = False


class TpmPolicy(_Section, frozen=True):
    """What a TPM's quote and log must say."""

    pcrs: dict[str, dict[str, str]] = {}
    secure_boot: bool = False
    required_pcrs: tuple[int, ...] = ()


class NitroPolicy(_Section, frozen=True):
    """What a Nitro document must say."""

    pcrs: dict[str, str] = {}
    user_data: tuple[str, ...] = ()
    accept_debug_enclave_that_its_host_can_read: bool = False


class Policy(_Section, frozen=True):
    """All kinds. ``origin``: the file, or empty for the default."""

    format: int = FORMAT
    sev_snp: SnpPolicy = SnpPolicy()
    tdx: TdxPolicy = TdxPolicy()
    tpm: TpmPolicy = TpmPolicy()
    nitro: NitroPolicy = NitroPolicy()


def parse_policy(text: str, name: str) -> Policy:
    """A policy file.

    Raises:
        InputError: no TOML of this form. SpecError: values that no evidence could have, all together.
    """
    try:
        policy = msgspec.toml.decode(text, type=Policy)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is no attestation policy", got=str(error)[:200], expected="docs/attest.md") from None
    faults = (
        [] if policy.format == FORMAT else [Fault("format", "policy.format", f"{policy.format}, and we read {FORMAT}")]
    )
    faults += list(_digest_faults(policy))
    faults += [
        Fault(
            f"sev-snp.minimum-tcb.{part}", "policy.tcb", f"no such component; there are {', '.join(sorted(_TCB_NAMES))}"
        )
        for part in sorted(policy.sev_snp.minimum_tcb.keys() - _TCB_NAMES)
    ]
    if faults:
        raise SpecError(name, tuple(faults))
    return policy


def _digest_faults(policy: Policy) -> Iterator[Fault]:
    snp, tdx, nitro = policy.sev_snp, policy.tdx, policy.nitro
    lists: list[tuple[str, tuple[str, ...], int]] = [
        ("sev-snp.measurement", snp.measurement, 48),
        ("sev-snp.host-data", snp.host_data, 32),
        ("sev-snp.id-key-digest", snp.id_key_digest, 48),
        ("sev-snp.author-key-digest", snp.author_key_digest, 48),
        ("sev-snp.family-id", snp.family_id, 16),
        ("sev-snp.image-id", snp.image_id, 16),
        ("tdx.mrtd", tdx.mrtd, 48),
        ("tdx.mrseam", tdx.mrseam, 48),
        ("tdx.mrconfigid", tdx.mrconfigid, 48),
        ("tdx.mrowner", tdx.mrowner, 48),
        *((f"tdx.rtmr.{number}", (value,), 48) for number, value in tdx.rtmr.items()),
        *((f"nitro.pcrs.{number}", (value,), 48) for number, value in nitro.pcrs.items()),
    ]
    for bank, values in policy.tpm.pcrs.items():
        if bank not in DIGEST_BYTES:
            yield Fault(f"tpm.pcrs.{bank}", "policy.bank", f"no such bank; there are {', '.join(DIGEST_BYTES)}")
        lists += [(f"tpm.pcrs.{bank}.{n}", (value,), DIGEST_BYTES.get(bank, 0)) for n, value in values.items()]
    numbers = {"tdx.rtmr": (tdx.rtmr, 4), "nitro.pcrs": (nitro.pcrs, 32)}
    numbers |= {f"tpm.pcrs.{bank}": (values, 24) for bank, values in policy.tpm.pcrs.items()}
    for place, (values, most) in numbers.items():
        for number in values:
            if not (number.isascii() and number.isdigit() and int(number) < most):
                yield Fault(f"{place}.{number}", "policy.register", f"a number from 0 to {most - 1} belongs here")
    for place, texts, size in lists:
        for text in texts:
            if not _HEX.fullmatch(text) or len(text) != 2 * size:
                yield Fault(place, "policy.digest", f"{len(text)} characters, and {2 * size} of 0-9a-f belong here")


def wants_snp(report: SnpReport, product: str, policy: SnpPolicy) -> Iterator[Reason]:
    """Every reason against a SEV-SNP report that is true."""
    if report.policy_has("debug-allowed") and not policy.accept_debug_guest_that_its_host_can_read:
        yield unwanted("debug", "the guest may be debugged: its host can read its memory")
    if report.policy_has("migration-agent-allowed") and not policy.accept_migration_agent_that_can_move_the_guest:
        yield unwanted("migration-agent", "a migration agent may move the guest's keys")
    if report.policy_has("smt-allowed") and policy.refuse_smt:
        yield unwanted("smt", "the guest may run beside others on one core")
    if report.vmpl != policy.vmpl:
        yield unwanted("vmpl", f"the report was asked for from VMPL {report.vmpl}, expected {policy.vmpl}")
    provisional = report.committed_tcb != report.current_tcb or report.committed_firmware != report.current_firmware
    if provisional and not policy.accept_provisional_firmware:
        yield unwanted("provisional", "the platform's firmware is provisional: it can still be rolled back")
    if report.guest_svn < policy.minimum_guest_svn:
        yield unwanted("guest-svn", f"guest SVN {report.guest_svn}, at least {policy.minimum_guest_svn} is wanted")
    if policy.products and product not in policy.products:
        yield unwanted("product", f"{product or 'an unnamed product'}, wanted is {', '.join(policy.products)}")
    have = report.reported_tcb.components()
    for part, least in sorted(policy.minimum_tcb.items()):
        if have.get(part, -1) < least:
            yield unwanted(f"tcb.{part}", f"{part} version {have.get(part)}, at least {least} is wanted")
    for name, value, digests in (
        ("measurement", report.measurement, policy.measurement),
        ("host-data", report.host_data, policy.host_data),
        ("id-key-digest", report.id_key_digest, policy.id_key_digest),
        ("author-key-digest", report.author_key_digest, policy.author_key_digest),
        ("family-id", report.family_id, policy.family_id),
        ("image-id", report.image_id, policy.image_id),
    ):
        yield from _one_of(name, value, digests)


def wants_tdx(quote: TdxQuote, status: TcbStatus, policy: TdxPolicy) -> Iterator[Reason]:
    """Every reason against a TDX quote."""
    if quote.attributes & DEBUG and not policy.accept_debug_guest_that_its_host_can_read:
        yield unwanted("debug", "the guest may be debugged: its host can read its memory")
    if quote.attributes & MIGRATABLE and not policy.accept_migratable_guest:
        yield unwanted("migratable", "the guest may be moved by a migration service")
    if not quote.attributes & SEPT_VE_DISABLE and not policy.accept_exceptions_that_the_host_injects:
        yield unwanted("sept-ve", "the host can inject exceptions by taking pages away (SEPT_VE_DISABLE is off)")
    if status.status and status.status not in policy.accepted_tcb:
        yield unwanted("tcb-status", f"the platform is {status.status}, wanted is {', '.join(policy.accepted_tcb)}")
    for advisory in status.advisories:
        if advisory not in policy.accepted_advisories:
            yield unwanted("advisory", f"{advisory} applies to this platform")
    for name, value, wanted in (
        ("mrtd", quote.mrtd, policy.mrtd),
        ("mrseam", quote.mrseam, policy.mrseam),
        ("mrconfigid", quote.mrconfigid, policy.mrconfigid),
        ("mrowner", quote.mrowner, policy.mrowner),
        *((f"rtmr{number}", quote.rtmrs[int(number)], (text,)) for number, text in sorted(policy.rtmr.items())),
    ):
        yield from _one_of(name, value, wanted)


def wants_nitro(document: NitroDocument, policy: NitroPolicy) -> Iterator[Reason]:
    """Every reason against a Nitro document that is true."""
    if not any(document.pcrs.get(0, b"")) and not policy.accept_debug_enclave_that_its_host_can_read:
        yield unwanted("debug", "PCR 0 is all zeros: the enclave runs in debug mode")
    for number, text in sorted(policy.pcrs.items()):
        yield from _one_of(f"pcr{number}", document.pcrs.get(int(number), b""), (text,))
    yield from _one_of("user-data", document.user_data, policy.user_data)


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
        banks = () if log is None else log.banks
        if log is None or not any(7 in values for bank, values in pcrs.items() if bank in banks):
            yield unwanted("secure-boot", "no quote covers what a log says of Secure Boot (PCR 7)")
        elif secure_boot(log) is not True:
            yield unwanted("secure-boot", "the log does not say that Secure Boot was on")


def _one_of(name: str, value: bytes, wanted: tuple[str, ...]) -> Iterator[Reason]:
    if wanted and value.hex() not in wanted:
        yield unwanted(name, f"{name} is {value.hex() or 'absent'}, wanted is {' or '.join(wanted)}")
