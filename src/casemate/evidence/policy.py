"""Policies as closed TOML; without one the default, which trusts no debugging. What one wants: `policy_wants.py`.

    format = 1
    require-revocation-lists = true

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

    [se]
    image = ["…"]                        # from casemate measure

Everything that makes evidence worth less has a long name: `accept-debug-guest-that-its-host-can-read`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from casemate.errors import Fault, InputError, SpecError
from casemate.evidence.se import ADDITIONAL, IMAGE_BYTES
from casemate.evidence.snp import PLATFORM_BITS
from casemate.evidence.tdx import ACCEPTABLE_TCB
from casemate.evidence.tpm import DIGEST_BYTES

FORMAT: Final = 1
_TCB_NAMES: Final = frozenset({"fmc", "bootloader", "tee", "snp", "microcode"})
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+")


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    pass


class SnpPolicy(_Section, frozen=True):
    """What a SEV-SNP report must say; lists of digests mean one of them, empty ones anything.

    ``providers``: of a VLEK (a cloud). ``platform``: features that must all be on. ``required_mitigations``: bits of
    the mitigation vectors, at launch and now.
    """

    measurement: tuple[str, ...] = ()
    host_data: tuple[str, ...] = ()
    id_key_digest: tuple[str, ...] = ()
    author_key_digest: tuple[str, ...] = ()
    family_id: tuple[str, ...] = ()
    image_id: tuple[str, ...] = ()
    chip_id: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    platform: tuple[str, ...] = ()
    minimum_tcb: dict[str, int] = {}
    minimum_guest_svn: int = 0
    required_mitigations: tuple[int, ...] = ()
    vmpl: int = 0
    refuse_smt: bool = False
    accept_debug_guest_that_its_host_can_read: bool = False
    accept_migration_agent_that_can_move_the_guest: bool = False
    accept_provisional_firmware: bool = False


class TdxPolicy(_Section, frozen=True):
    """What a TDX quote must say. ``minimum_tcb_evaluation``: number of Intel's TCB recovery the collateral is of."""

    mrtd: tuple[str, ...] = ()
    mrseam: tuple[str, ...] = ()
    mrconfigid: tuple[str, ...] = ()
    mrowner: tuple[str, ...] = ()
    mrownerconfig: tuple[str, ...] = ()
    mrservicetd: tuple[str, ...] = ()
    rtmr: dict[str, str] = {}
    accepted_tcb: tuple[str, ...] = ("UpToDate",)
    accepted_advisories: tuple[str, ...] = ()
    minimum_tcb_evaluation: int = 0
    accept_debug_guest_that_its_host_can_read: bool = False
    accept_migration_service_that_can_move_the_guest: bool = False
    accept_exceptions_that_the_host_injects: bool = False


class TpmPolicy(_Section, frozen=True):
    """What a TPM's quote and log must say. ``gce_projects``: of Google's cloud, by the key's certificate."""

    pcrs: dict[str, dict[str, str]] = {}
    secure_boot: bool = False
    required_pcrs: tuple[int, ...] = ()
    gce_projects: tuple[str, ...] = ()


class NitroPolicy(_Section, frozen=True):
    """What a Nitro document must say."""

    pcrs: dict[str, str] = {}
    user_data: tuple[str, ...] = ()
    accept_debug_enclave_that_its_host_can_read: bool = False


class SePolicy(_Section, frozen=True):
    """What Secure Execution evidence must say. ``image``: of each image that may run, what its measurement covers
    (``casemate measure``); without one nothing is true. Host keys: SHA-256 of a host's public key."""

    image: tuple[str, ...] = ()
    image_host_key: tuple[str, ...] = ()
    attestation_host_key: tuple[str, ...] = ()
    secret_store: tuple[str, ...] = ()
    firmware_state: tuple[str, ...] = ()
    config_uid: tuple[str, ...] = ()
    user_data: tuple[str, ...] = ()


class Policy(_Section, frozen=True):
    """All kinds. ``require_revocation_lists``: a chain that was not checked against its issuers' lists is refused."""

    format: int = FORMAT
    require_revocation_lists: bool = False
    sev_snp: SnpPolicy = SnpPolicy()
    tdx: TdxPolicy = TdxPolicy()
    tpm: TpmPolicy = TpmPolicy()
    nitro: NitroPolicy = NitroPolicy()
    se: SePolicy = SePolicy()


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
    faults += list(_number_faults(policy))
    if faults:
        raise SpecError(name, tuple(faults))
    return policy


def _number_faults(policy: Policy) -> Iterator[Fault]:
    snp = policy.sev_snp
    for feature in snp.platform:
        if feature not in PLATFORM_BITS.values():
            yield Fault(
                "sev-snp.platform", "policy.platform", f"no {feature!r}; there are {', '.join(PLATFORM_BITS.values())}"
            )
    for status in policy.tdx.accepted_tcb:
        if status not in ACCEPTABLE_TCB:
            yield Fault("tdx.accepted-tcb", "policy.status", f"no {status!r}; there are {', '.join(ACCEPTABLE_TCB)}")
    if not policy.tdx.accepted_tcb:
        yield Fault("tdx.accepted-tcb", "policy.status", "empty, and no quote could ever be accepted")
    for place, numbers, most in (
        ("sev-snp.required-mitigations", snp.required_mitigations, 63),
        ("sev-snp.minimum-tcb", tuple(snp.minimum_tcb.values()), 255),
        ("sev-snp.vmpl", (snp.vmpl,), 3),
        ("tpm.required-pcrs", policy.tpm.required_pcrs, 23),
    ):
        for number in numbers:
            if not 0 <= number <= most:
                yield Fault(place, "policy.number", f"{number}, and a number from 0 to {most} belongs here")


def _digest_faults(policy: Policy) -> Iterator[Fault]:
    snp, tdx, nitro = policy.sev_snp, policy.tdx, policy.nitro
    lists: list[tuple[str, tuple[str, ...], int]] = [
        ("sev-snp.measurement", snp.measurement, 48),
        ("sev-snp.host-data", snp.host_data, 32),
        ("sev-snp.id-key-digest", snp.id_key_digest, 48),
        ("sev-snp.author-key-digest", snp.author_key_digest, 48),
        ("sev-snp.family-id", snp.family_id, 16),
        ("sev-snp.image-id", snp.image_id, 16),
        ("sev-snp.chip-id", snp.chip_id, 64),
        ("tdx.mrtd", tdx.mrtd, 48),
        ("tdx.mrseam", tdx.mrseam, 48),
        ("tdx.mrconfigid", tdx.mrconfigid, 48),
        ("tdx.mrowner", tdx.mrowner, 48),
        ("tdx.mrownerconfig", tdx.mrownerconfig, 48),
        ("tdx.mrservicetd", tdx.mrservicetd, 48),
        *((f"tdx.rtmr.{number}", (value,), 48) for number, value in tdx.rtmr.items()),
        *((f"nitro.pcrs.{number}", (value,), 48) for number, value in nitro.pcrs.items()),
        ("se.image", policy.se.image, IMAGE_BYTES),
        ("se.config-uid", policy.se.config_uid, 16),
        *((f"se.{name}", getattr(policy.se, name.replace("-", "_")), size) for _, name, size in ADDITIONAL),
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


def names_measurements(kind: str, policy: Policy) -> bool:
    """Whether the policy names all that a guest of this kind is started from; otherwise it accepts too many."""
    snp, tdx = policy.sev_snp, policy.tdx
    vtpm = _names_boot(policy.tpm.pcrs)
    return {
        "sev-snp": bool(snp.measurement or snp.id_key_digest),
        "tdx": bool(tdx.mrtd) and _names_domain(tdx.rtmr),
        "nitro": _names_enclave(policy.nitro.pcrs),
        "nitro-tpm": _names_boot({"sha384": policy.nitro.pcrs}),
        "tpm": vtpm,
        "azure-snp": bool(snp.measurement) and vtpm,
        "azure-tdx": bool(tdx.mrtd) and vtpm,
        "se": bool(policy.se.image),
    }.get(kind, False)


def _says(registers: Mapping[str, str], number: str) -> bool:
    """Whether a register is named, and not as zeros, which only say that nothing was measured there."""
    return bool(registers.get(number, "").strip("0"))


def _names_enclave(pcrs: Mapping[str, str]) -> bool:
    """PCR 0 has the whole image; 1 and 2 the kernel and the application; 8 who signed it."""
    return any(all(_says(pcrs, number) for number in numbers) for numbers in ("0", "12", "8"))


def _names_domain(rtmr: Mapping[str, str]) -> bool:
    """RTMR 1 has what the firmware started, RTMR 2 what that loads: GRUB's configuration, command line, initrd."""
    return "1" in rtmr and _says(rtmr, "2")


def _names_boot(pcrs: Mapping[str, Mapping[str, str]]) -> bool:
    """PCR 4 has what the firmware started. Behind it, GRUB's commands and files (8, 9) or the parts of a unified kernel
    image (11). In a bank whose digests cannot be forged."""
    return any(
        "4" in values and ({"8", "9"} <= values.keys() or _says(values, "11"))
        for bank, values in pcrs.items()
        if bank != "sha1"
    )
