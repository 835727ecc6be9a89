"""Is a SEV-SNP report true: signed by a key of a genuine AMD chip, at exactly the versions that it reports.

1. The signature over everything before 0x2a0 is the signing key's (ECDSA P-384, SHA-384).
2. That key's certificate hangs on AMD's pinned root by the right intermediate: VCEK by SEV-…, VLEK by SEV-VLEK-….
3. Each component of the certificate's TCB is equal to REPORTED_TCB: compared one by one, never as one number.
4. A VCEK is of this very chip (hwID is CHIP_ID); a VLEK names a provider in its place.
5. Everything is within its time. Revocation: `revocation.py`.

A report may leave out its chip (MASK_CHIP_ID): what signed it is still that chip's key, whose certificate names it.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence import der
from casemate.evidence.chain import chain_faults, order
from casemate.evidence.snp import ECDSA_P384_SHA384, SnpReport, Tcb
from casemate.evidence.verdict import Reason, false
from casemate.evidence.x509 import Certificate, verify

AMD_ROOTS: Final = {
    "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd": "Milan",
    "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1": "Genoa",
    "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a": "Turin",
}
"""SHA-256 of AMD's root certificates (ARK), by product."""
_AMD: Final = "1.3.6.1.4.1.3704.1."
_PRODUCT: Final = _AMD + "2"
_HARDWARE_ID: Final = _AMD + "4"
_PROVIDER: Final = _AMD + "5"
_SVN: Final = {
    "fmc": _AMD + "3.9",
    "bootloader": _AMD + "3.1",
    "tee": _AMD + "3.2",
    "snp": _AMD + "3.3",
    "microcode": _AMD + "3.8",
}
_ORDER_P384: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


class SigningKey(msgspec.Struct, frozen=True):
    """What a VCEK's or VLEK's certificate says. ``hardware_id``: of a VCEK; ``provider``: of a VLEK."""

    certificate: Certificate
    product: str
    tcb: Tcb
    hardware_id: bytes | None
    provider: str


def signing_key(certificate: Certificate) -> SigningKey:
    """Read AMD's extensions (specification 57230).

    Raises:
        InputError: one is missing or holds no number.
    """
    versions = {}
    for name, oid in _SVN.items():
        _, value = certificate.extensions.get(oid, (False, b""))
        if value:
            versions[name] = der.integer(der.whole(value, der.INTEGER).body)
        elif name != "fmc":
            raise InputError(f"the certificate has no {name} version", got=certificate.common_name)
    if any(not 0 <= value <= 255 for value in versions.values()):
        raise InputError("a version number of more than a byte", got=str(versions))
    _, product = certificate.extensions.get(_PRODUCT, (False, b""))
    _, hardware = certificate.extensions.get(_HARDWARE_ID, (False, b""))
    _, provider = certificate.extensions.get(_PROVIDER, (False, b""))
    return SigningKey(
        certificate,
        _text(product).partition("-")[0],
        Tcb(**versions),
        _hardware_id(hardware) if hardware else None,
        _text(provider),
    )


def _text(value: bytes) -> str:
    """A string extension; some are IA5String, some bare."""
    if len(value) > 2 and value[0] in (0x0C, 0x13, 0x16) and value[1] == len(value) - 2:
        value = value[2:]
    return value.decode("utf-8", "backslashreplace")


def _hardware_id(value: bytes) -> bytes:
    """Raw (8 or 64 bytes), or within an OCTET STRING, as some certificates have it."""
    if len(value) in (8, 64):
        return value
    return der.whole(value, der.OCTET_STRING).body


def truth_of_snp(
    report: SnpReport, leaf: Certificate, others: Sequence[Certificate], moment: datetime.datetime
) -> Iterator[Reason]:
    """Every reason why the report is not true.

    Args:
        leaf: of the VCEK or VLEK.
        others: intermediates and roots, in any order; a root counts only by its pinned digest.
        moment: when the certificates have to be valid.
    """
    # 1. The signature.
    if report.signature_algorithm != ECDSA_P384_SHA384:
        yield false("algorithm", f"signature algorithm {report.signature_algorithm}, and only 1 is known")
    if not _is_signed(report, leaf):
        yield false("signature", f"the report is not signed by the key of {leaf.common_name!r}")
    # 2. The chain.
    chain = order(leaf, others)
    yield from chain_faults(chain, AMD_ROOTS, moment, what="signing key")
    try:
        key = signing_key(leaf)
    except InputError as error:
        yield false("certificate", f"{error.what} ({error.got})")
        return
    yield from _kind_faults(report, key, chain)
    # 3. The versions.
    certified, reported = key.tcb.components(), report.reported_tcb.components()
    for name in dict.fromkeys((*certified, *reported)):
        if certified.get(name) != reported.get(name):
            message = f"{name} version {reported.get(name)} is reported, the certificate is for {certified.get(name)}"
            yield false(f"tcb.{name}", message)
    # 4. The chip.
    yield from _chip_faults(report, key)


def _is_signed(report: SnpReport, leaf: Certificate) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    r, s = report.signature
    if not (0 < r < _ORDER_P384 and 0 < s < _ORDER_P384):
        return False
    try:
        key = leaf.public_key()
    except InputError:
        return False
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        return False
    return verify(key, "ecdsa", "sha384", encode_dss_signature(r, s), report.signed)


def _kind_faults(report: SnpReport, key: SigningKey, chain: Sequence[Certificate]) -> Iterator[Reason]:
    """The certificate is of the kind that the report names, under that kind's intermediate, of that product."""
    kinds = {0: "VCEK", 1: "VLEK"}
    named = kinds.get(report.signing_key)
    if named is None:
        yield false("signing-key", f"the report says that key {report.signing_key} signed it: no VCEK and no VLEK")
        return
    if key.certificate.common_name != f"SEV-{named}":
        yield false("signing-key", f"a {named} signed the report; the certificate is {key.certificate.common_name!r}")
    if len(chain) > 1 and ("VLEK" in chain[1].common_name) != (named == "VLEK"):
        yield false("chain.kind", f"a {named} under {chain[1].common_name!r}")
    products = {name for name in AMD_ROOTS.values() if chain[-1].common_name == f"ARK-{name}"}
    if key.product and products and key.product not in products:
        yield false("chain.product", f"a certificate for {key.product} under {chain[-1].common_name!r}")
    if report.cpuid is not None and report.product != key.product:
        family, model, _ = report.cpuid
        named = report.product or "no product that is known"
        yield false(
            "product", f"CPU family {family:#x} model {model:#x} is {named}, the certificate's is {key.product!r}"
        )
    if (report.layout == "turin") != (key.tcb.fmc is not None):
        yield false(
            "product", f"the report's versions lie as on {report.layout.capitalize()}; not so the certificate's"
        )


def _chip_faults(report: SnpReport, key: SigningKey) -> Iterator[Reason]:
    if report.signing_key == 1:
        if not key.provider:
            yield false("chip", "the VLEK's certificate names no provider")
        return
    if not key.hardware_id:
        yield false("chip", "the VCEK's certificate names no chip")
    elif not report.is_chip_masked and report.chip_id != key.hardware_id.ljust(64, b"\0"):
        yield false("chip", "the VCEK is of another chip than the report")
