"""What a maker publishes for one piece of evidence: where it is, what it is called in a cache, whether an answer is it.

| maker | service | what |
|---|---|---|
| AMD | key distribution service (57230) | the VCEK's certificate; the product's revocation list |
| Google | https://pki.goog | the revocation lists above the attestation keys of its vTPMs |
| Intel | provisioning certification service, version 4 | TCB info, QE identity, two revocation lists: one collateral |

A VLEK's certificate comes from the cloud that has the key; Nitro documents bring their chain along. Pure: nothing is
fetched here, and an answer that is taken is judged again whenever it is used.
"""

from __future__ import annotations

import binascii
import datetime
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from casemate.errors import InputError
from casemate.evidence import azure, crl, gotpm, snp, tdx, x509
from casemate.evidence.chain import chain_faults, order
from casemate.evidence.snp_true import AMD_ROOTS, signing_key
from casemate.evidence.tdx_collateral import windows_of
from casemate.evidence.textual import binary_of
from casemate.evidence.verdict import Step

AMD_URL: Final = "https://kdsintf.amd.com"
INTEL_URL: Final = "https://api.trustedservices.intel.com"
GOOGLE_URL: Final = "https://pki.goog"
_GOOGLE_LISTS: Final = "/cloud_integrity/"
_GOOGLE_ROOT_LIST: Final = "tpm_ek_root_1.crl"
INTEL_ROOT_LIST_URL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
MAX_ANSWER_BYTES: Final = 2 << 20
_CHAIN_HEADERS: Final = {
    "pck_crl": "SGX-PCK-CRL-Issuer-Chain",
    "tcb_info": "TCB-Info-Issuer-Chain",
    "qe_identity": "SGX-Enclave-Identity-Issuer-Chain",
}


_GOOGLE_LIST: Final = re.compile(rb"https?://pki\.goog/cloud_integrity/([a-z0-9_]{1,64}\.crl)(?![a-z0-9_.])")


class Wanted(msgspec.Struct, frozen=True):
    """One file of a cache. ``kind``: ``vcek``, ``list`` or ``collateral``. ``name``: of the file. ``urls``: what it is
    made from, by part; one part, but for a collateral. ``one_of``: what it is one of, when one of them suffices."""

    kind: str
    name: str
    what: str
    urls: dict[str, str]
    one_of: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What a service answered. ``headers``: names in lower case."""

    body: bytes
    headers: Mapping[str, str]


def wanted_for(
    data: bytes, *, amd: str = AMD_URL, intel: str = INTEL_URL, google: str = GOOGLE_URL
) -> tuple[Wanted, ...]:
    """Everything that makers publish for one piece of evidence; nothing for kinds that bring it along.

    Args:
        amd, intel, google: where the services are: the makers', or a mirror of one's own (PCCS).

    Raises:
        InputError: it looks like a kind that it is not.
    """
    data = binary_of(data)
    if snp.looks_like_snp(data):
        return _for_snp(data, amd)
    if tdx.looks_like_tdx(data):
        return _for_tdx(data, intel)
    if azure.looks_like_azure(data):
        found = azure.parse_evidence(data)
        if found.report.kind == "tdx":
            return _for_tdx(found.td_quote, intel)
        return tuple(item for item in _for_snp(found.report.hardware, amd) if item.kind != "vcek")
    if gotpm.looks_like_gotpm(data):
        return _for_gce(data, google)
    return ()


def _for_gce(data: bytes, google: str) -> tuple[Wanted, ...]:
    """The lists of the authorities above a vTPM's key. Its certificate says where; of that only a file's name is taken,
    for nobody has verified it yet."""
    found = gotpm.parse_gotpm(data)
    leaf = x509.parse(found.certificate) if found.certificate else None
    points = leaf.distribution_points() if leaf is not None else ()
    names = {match[1].decode("ascii") for point in points for match in _GOOGLE_LIST.finditer(point)}
    return tuple(
        Wanted("list", f"google-{name}", f"Google's revocation list {name}", {"list": f"{google}{_GOOGLE_LISTS}{name}"})
        for name in sorted({*names, _GOOGLE_ROOT_LIST} if names else ())
    )


def _for_snp(data: bytes, amd: str) -> tuple[Wanted, ...]:
    report = snp.parse_report(data[: snp.SIZE])
    # Version 2 does not say which product it is of; both that had it are asked for.
    products = (report.product,) if report.product else ("Milan", "Genoa")
    service = "vlek" if report.signing_key == 1 else "vcek"
    found = []
    for product in products:
        if service == "vcek" and not report.is_chip_masked:
            found.append(_vcek(report, product, amd))
        name = f"amd-{product.lower()}-{service}.crl"
        url = f"{amd}/{service}/v1/{product}/crl"
        found.append(Wanted("list", name, f"AMD's revocation list for {product}", {"list": url}))
    return tuple(found)


def _vcek(report: snp.SnpReport, product: str, amd: str) -> Wanted:
    turin = product == "Turin"
    chip = (report.chip_id[:8] if turin else report.chip_id).hex()
    tcb = report.reported_tcb
    parts = [("fmcSPL", tcb.fmc or 0)] if turin else []
    parts += [("blSPL", tcb.bootloader), ("teeSPL", tcb.tee), ("snpSPL", tcb.snp), ("ucodeSPL", tcb.microcode)]
    query = "&".join(f"{name}={value:02d}" for name, value in parts)
    levels = "-".join(str(value) for _, value in parts)
    name = f"amd-{product.lower()}-{hashlib.sha256(report.chip_id).hexdigest()[:32]}-{levels}.der"
    url = f"{amd}/vcek/v1/{product}/{chip}?{query}"
    return Wanted("vcek", name, f"{product} VCEK", {"vcek": url}, one_of="" if report.product else f"VCEK {chip}")


def _for_tdx(data: bytes, intel: str) -> tuple[Wanted, ...]:
    import dcap_qvl

    tdx.parse_tdx(data)
    try:
        quote = dcap_qvl.parse_quote(data)
        fmspc, authority = str(quote.fmspc()).upper(), str(quote.ca()).lower()
    except ValueError as error:
        raise InputError("a TDX quote without the platform's certificate", got=str(error)[:120]) from None
    if len(fmspc) != 12 or not set(fmspc) <= set("0123456789ABCDEF") or authority not in ("platform", "processor"):
        raise InputError("a TDX quote of an unknown platform", got=f"{fmspc[:16]!r}, {authority[:16]!r}")
    base = f"{intel}/sgx/certification/v4"
    root = INTEL_ROOT_LIST_URL if intel == INTEL_URL else f"{base}/rootcacrl"
    urls = {
        "root_ca_crl": root,
        "pck_crl": f"{base}/pckcrl?ca={authority}&encoding=der",
        "tcb_info": f"{intel}/tdx/certification/v4/tcb?fmspc={fmspc}",
        "qe_identity": f"{intel}/tdx/certification/v4/qe/identity",
    }
    name = f"intel-tdx-{fmspc.lower()}-{authority}.json"
    return (Wanted("collateral", name, f"Intel's collateral for {fmspc}", urls),)


def content_of(
    item: Wanted, answers: Mapping[str, Answer], authorities: Sequence[x509.Certificate], moment: datetime.datetime
) -> bytes:
    """The file's content, when the answers are what was asked for.

    Raises:
        InputError: they are not.
    """
    if item.kind == "collateral":
        content = _collateral(answers)
    else:
        (answer,) = answers.values()
        content = answer.body
    until(item, content)
    if item.kind == "vcek":
        leaf = x509.parse(content)
        signing_key(leaf)
        faults = chain_faults(order(leaf, authorities), AMD_ROOTS, moment, what=item.what)
        wrong = [fault.message for fault in faults if fault.step is Step.TRUTH]
        if leaf.common_name != "SEV-VCEK" or wrong:
            raise InputError(f"the answer is not the {item.what}", got="; ".join(wrong) or leaf.common_name)
    if item.kind == "list":
        found = crl.parse_list(content)
        if not any(found.signed_by(upper) for upper in authorities if upper.subject == found.issuer):
            raise InputError(f"the answer is not {item.what}", got="a list that no known authority signed")
    return content


def until(item: Wanted, content: bytes) -> datetime.datetime:
    """When the content runs out.

    Raises:
        InputError: it is not of this kind.
    """
    if item.kind == "vcek":
        return x509.parse(content).not_after
    if item.kind == "list":
        return crl.parse_list(content).next_update
    return min(window.end for window in windows_of(content))


class _TcbInfo(msgspec.Struct, rename="camel"):
    tcb_info: msgspec.Raw
    signature: str


class _Identity(msgspec.Struct, rename="camel"):
    enclave_identity: msgspec.Raw
    signature: str


def _collateral(answers: Mapping[str, Answer]) -> bytes:
    """Intel's answers as one JSON, in the form of dcap-qvl. What is signed stays as it came, octet by octet."""
    try:
        info = msgspec.json.decode(answers["tcb_info"].body, type=_TcbInfo)
        identity = msgspec.json.decode(answers["qe_identity"].body, type=_Identity)
        document = {
            "pck_crl_issuer_chain": _chain(answers, "pck_crl"),
            "root_ca_crl": _list(answers["root_ca_crl"].body).hex(),
            "pck_crl": _list(answers["pck_crl"].body).hex(),
            "tcb_info_issuer_chain": _chain(answers, "tcb_info"),
            "tcb_info": bytes(info.tcb_info).decode(),
            "tcb_info_signature": bytes.fromhex(info.signature).hex(),
            "qe_identity_issuer_chain": _chain(answers, "qe_identity"),
            "qe_identity": bytes(identity.enclave_identity).decode(),
            "qe_identity_signature": bytes.fromhex(identity.signature).hex(),
        }
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError("the answer is not Intel's collateral", got=str(error)[:120]) from None
    return msgspec.json.encode(document)


def _list(body: bytes) -> bytes:
    """A list in DER; a PCCS answers in hexadecimal."""
    try:
        return bytes.fromhex(body.decode("ascii").strip()) if body[:1] != b"\x30" else body
    except (UnicodeDecodeError, binascii.Error, ValueError):
        raise InputError("the answer is no revocation list", got=f"{len(body)} bytes") from None


def _chain(answers: Mapping[str, Answer], part: str) -> str:
    from urllib.parse import unquote

    header = _CHAIN_HEADERS[part]
    found = answers[part].headers.get(header.lower(), "")
    if not found:
        raise InputError("the answer is not Intel's collateral", got=f"no header {header}")
    return unquote(found)
