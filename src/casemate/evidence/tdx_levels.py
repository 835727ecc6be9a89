"""Intel's TCB levels (PCS, version 4): what the collateral says of a platform, its TDX module, its quoting enclave.

Values in, a status out; signatures and times are judged elsewhere (`tdx_signed.py`).

1. TCB info is of this family of platforms (FMSPC, PCE).
2. Levels from the highest down; the first one whose every component the platform reaches is the platform's. From the
   module's version 1 on its own two components are left to step 3.
3. The TDX module is signed as the TCB info says; from version 1 on by its own identity, which has levels of its own.
4. The quoting enclave is the one that its identity describes, and is no debug enclave; its level is by ISVSVN.
5. Module and enclave are up to date, out of date or revoked; that joins the platform's status; the advisories of all.
"""

from __future__ import annotations

import functools
import hmac
import struct
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from casemate.errors import InputError
from casemate.evidence import der
from casemate.evidence.tdx import ACCEPTABLE_TCB
from casemate.evidence.x509 import Certificate

SGX: Final = "1.2.840.113741.1.13.1"
STATUSES: Final = (*ACCEPTABLE_TCB, "Revoked")
"""Each worse than the ones before it."""
_OF_PARTS: Final = frozenset({"UpToDate", "OutOfDate", "Revoked"})
_TO_CONFIGURE: Final = frozenset({"ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"})
COMPONENTS: Final = 16
_ENCLAVE_BYTES: Final = 384
_LONGEST: Final = 4096
_Form = TypeVar("_Form")


class TcbStatus(msgspec.Struct, frozen=True):
    """What Intel says of the platform: ``UpToDate``, ``SWHardeningNeeded``, ``OutOfDate``…; empty: not known.
    ``evaluation``: number of the TCB recovery that says so."""

    status: str
    advisories: tuple[str, ...]
    evaluation: int = 0

    def joined(self, part: TcbStatus) -> TcbStatus:
        """Step 5: the platform's with that of its module or enclave."""
        worst = max(self, part, key=lambda item: STATUSES.index(item.status)).status
        if part.status == "OutOfDate" and self.status in _TO_CONFIGURE:
            worst = "OutOfDateConfigurationNeeded"
        return TcbStatus(worst, tuple(dict.fromkeys((*self.advisories, *part.advisories))), self.evaluation)


class PlatformKey(msgspec.Struct, frozen=True):
    """What the certificate of a platform's key (PCK) says. ``components``: SVN of each, 16 of them."""

    components: tuple[int, ...]
    pce_svn: int
    pce_id: bytes
    fmspc: bytes


class _Levelled(msgspec.Struct, frozen=True, rename="camel"):
    tcb_status: str
    advisories: tuple[str, ...] = msgspec.field(name="advisoryIDs", default=())

    def status(self) -> TcbStatus:
        if self.tcb_status not in STATUSES:
            raise InputError("a TCB status that Intel does not have", got=self.tcb_status[:40])
        return TcbStatus(self.tcb_status, self.advisories)


class _Component(msgspec.Struct, frozen=True):
    svn: int


class _Tcb(msgspec.Struct, frozen=True):
    sgx: tuple[_Component, ...] = msgspec.field(name="sgxtcbcomponents")
    tdx: tuple[_Component, ...] = msgspec.field(name="tdxtcbcomponents")
    pce_svn: int = msgspec.field(name="pcesvn")

    def components(self) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
        """In the order in which levels are compared."""
        found = tuple(item.svn for item in self.sgx), self.pce_svn, tuple(item.svn for item in self.tdx)
        if len(found[0]) != COMPONENTS or len(found[2]) != COMPONENTS:
            raise InputError("a TCB level that does not have 16 components of each kind")
        return found


class _PlatformLevel(_Levelled, frozen=True, kw_only=True):
    tcb: _Tcb


class _Isvsvn(msgspec.Struct, frozen=True):
    isvsvn: int


class _EnclaveLevel(_Levelled, frozen=True, kw_only=True):
    tcb: _Isvsvn


class _Module(msgspec.Struct, frozen=True, rename="camel"):
    mrsigner: str
    attributes: str
    attributes_mask: str


class _ModuleIdentity(_Module, frozen=True, rename="camel"):
    id: str
    tcb_levels: tuple[_EnclaveLevel, ...]


class TcbInfo(msgspec.Struct, frozen=True, rename="camel"):
    """Of TDX platforms of one family."""

    id: str
    version: int
    fmspc: str
    pce_id: str
    tcb_evaluation_data_number: int
    tcb_levels: tuple[_PlatformLevel, ...]
    tdx_module: _Module | None = None
    tdx_module_identities: tuple[_ModuleIdentity, ...] = ()


class QeIdentity(msgspec.Struct, frozen=True):
    """Of the quoting enclave for TDs."""

    id: str
    version: int
    tcb_evaluation: int = msgspec.field(name="tcbEvaluationDataNumber")
    miscselect: str
    miscselect_mask: str = msgspec.field(name="miscselectMask")
    attributes: str
    attributes_mask: str = msgspec.field(name="attributesMask")
    mrsigner: str
    isvprodid: int
    tcb_levels: tuple[_EnclaveLevel, ...] = msgspec.field(name="tcbLevels")


def parse_tcb_info(text: str) -> TcbInfo:
    """Raises InputError: another form, or not of TDX."""
    found = _decoded(text, TcbInfo)
    if found.id != "TDX" or found.version != 3:
        raise InputError("TCB info that is not of TDX", got=f"{found.id[:20]} version {found.version}")
    return found


def parse_qe_identity(text: str) -> QeIdentity:
    """Raises InputError: another form, or not of the enclave that quotes TDs."""
    found = _decoded(text, QeIdentity)
    if found.id != "TD_QE" or found.version not in (2, 3):
        raise InputError("a QE identity that is not of TDX", got=f"{found.id[:20]} version {found.version}")
    return found


def platform_key(certificate: Certificate) -> PlatformKey:
    """What Intel's extension of a PCK certificate says.

    Raises:
        InputError: it has none, or not all of it.
    """
    _, value = certificate.extensions.get(SGX, (False, b""))
    if len(value) > _LONGEST:
        raise InputError("Intel's extension of a PCK certificate", got=f"{len(value)} bytes")
    return _platform_key(value)


@functools.lru_cache(maxsize=128)
def _platform_key(value: bytes) -> PlatformKey:
    """Remembered: every quote of one platform brings the same."""
    try:
        parts = _entries(der.whole(value, der.SEQUENCE))
        tcb = _entries(der.expect(parts[f"{SGX}.2"], der.SEQUENCE))
        components = tuple(_number(tcb[f"{SGX}.2.{number}"]) for number in range(1, COMPONENTS + 1))
        pce_svn = _number(tcb[f"{SGX}.2.17"])
        pce_id, fmspc = (der.expect(parts[f"{SGX}.{number}"], der.OCTET_STRING).body for number in (3, 4))
    except KeyError as error:
        raise InputError("the PCK certificate leaves out what TCB levels are found by", got=str(error)) from None
    return PlatformKey(components, pce_svn, pce_id, fmspc)


def _entries(element: der.Element) -> dict[str, der.Element]:
    found: dict[str, der.Element] = {}
    for entry in der.elements(element.body):
        parts = der.elements(der.expect(entry, der.SEQUENCE).body)
        if len(parts) != 2:
            raise InputError("an entry of Intel's extension without one value")
        name = der.oid_text(der.expect(parts[0], der.OID).body)
        if name in found:
            raise InputError("an entry of Intel's extension twice", got=name)
        found[name] = parts[1]
    return found


def _number(element: der.Element) -> int:
    return der.integer(der.expect(element, der.INTEGER).body)


def level_of_platform(info: TcbInfo, key: PlatformKey, body: bytes) -> TcbStatus:
    """Steps 1 to 3.

    Args:
        body: the TD report in the quote.

    Raises:
        InputError: why the platform has no level.
    """
    if not hmac.compare_digest(_octets(info.fmspc, 6), key.fmspc):
        raise InputError("the collateral is of another family of platforms", got=info.fmspc, expected=key.fmspc.hex())
    if not hmac.compare_digest(_octets(info.pce_id, 2), key.pce_id):
        raise InputError("the collateral is of another PCE", got=info.pce_id, expected=key.pce_id.hex())
    first = 2 if body[1] else 0
    of_module = tuple(body[first:COMPONENTS])
    levels = sorted(((level.tcb.components(), level) for level in info.tcb_levels), key=lambda item: item[0])
    for (sgx, pce_svn, tdx), level in reversed(levels):
        if _reaches(key.components, sgx) and key.pce_svn >= pce_svn and _reaches(of_module, tdx[first:]):
            module = _level_of_module(info, body)
            found = level.status() if module is None else level.status().joined(module)
            return msgspec.structs.replace(found, evaluation=info.tcb_evaluation_data_number)
    raise InputError("the platform is below every TCB level")


def _reaches(have: Sequence[int], wanted: Sequence[int]) -> bool:
    return all(mine >= least for mine, least in zip(have, wanted, strict=True))


def _level_of_module(info: TcbInfo, body: bytes) -> TcbStatus | None:
    """Step 3; None: the module's versions are among the platform's components."""
    svn, version = body[0], body[1]
    signed: _Module | None = info.tdx_module
    identity = None
    if version:
        name = f"TDX_{version:02X}"
        identity = next((item for item in info.tdx_module_identities if item.id.upper() == name), None)
        if identity is None:
            raise InputError("Intel publishes nothing of this TDX module", got=name)
        signed = identity
    if signed is None:
        raise InputError("the TCB info says nothing of TDX modules")
    if not hmac.compare_digest(_octets(signed.mrsigner, 48), body[64:112]):
        raise InputError("the TDX module is signed by somebody else", got=body[64:112].hex())
    mask = _bits(signed.attributes_mask, 8)
    attributes = int.from_bytes(body[112:120], "big")
    if attributes & ~mask or attributes != _bits(signed.attributes, 8) & mask:
        raise InputError("the TDX module has other attributes than Intel's", got=body[112:120].hex())
    return None if identity is None else _level_of_svn(identity.tcb_levels, svn, "the TDX module")


def level_of_enclave(identity: QeIdentity, report: bytes) -> TcbStatus:
    """Step 4, of the quoting enclave's report.

    Raises:
        InputError: it is another enclave, or has no level.
    """
    if len(report) != _ENCLAVE_BYTES:
        raise InputError("no report of an enclave", got=f"{len(report)} bytes")
    misc = int.from_bytes(report[16:20], "little")
    attributes = int.from_bytes(report[48:64], "big")
    product, svn = struct.unpack_from("<HH", report, 256)
    # MISCSELECT is a number in the report and, in the identity, its four octets as they stand in memory.
    misc_mask = int.from_bytes(_octets(identity.miscselect_mask, 4), "little")
    wanted_misc = int.from_bytes(_octets(identity.miscselect, 4), "little")
    mask = _bits(identity.attributes_mask, 16)
    if report[48] & 2:
        raise InputError("the quoting enclave runs in debug mode")
    if not hmac.compare_digest(_octets(identity.mrsigner, 32), report[128:160]) or product != identity.isvprodid:
        raise InputError("the quote is by another enclave than Intel's", got=report[128:160].hex())
    if misc & misc_mask != wanted_misc & misc_mask or attributes & mask != _bits(identity.attributes, 16) & mask:
        raise InputError("the quoting enclave has other attributes than Intel's", got=report[48:64].hex())
    return _level_of_svn(identity.tcb_levels, svn, "the quoting enclave")


def _level_of_svn(levels: Sequence[_EnclaveLevel], svn: int, what: str) -> TcbStatus:
    """As published, highest first; the first one that is reached."""
    for level in levels:
        if svn >= level.tcb.isvsvn:
            found = level.status()
            if found.status not in _OF_PARTS:
                raise InputError(f"{what} has a status that only platforms have", got=found.status)
            return found
    raise InputError(f"{what} is below every TCB level", got=f"SVN {svn}")


def _octets(text: str, size: int) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != size:
        raise InputError("the collateral cannot be read", got=text[:64], expected=f"{size} bytes in hexadecimal")
    return found


def _bits(text: str, size: int) -> int:
    return int.from_bytes(_octets(text, size), "big")


def _decoded(text: str, kind: type[_Form]) -> _Form:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError("the collateral cannot be read", got=str(error)[:120]) from None
