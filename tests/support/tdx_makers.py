"""A TDX platform that does not exist: quotes of versions 4 and 5 and Intel's collateral, with a root of ours.

Quote: Intel TDX DCAP quoting library API, appendix 3. Collateral: PCS version 4. A test that uses it gives dcap-qvl our
root in the place of Intel's.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import struct
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from tests.support.evidence_makers import Authority, pem_of

FMSPC = bytes.fromhex("00906ed50000")
_SGX = "1.2.840.113741.1.13.1"
_INTEL_QE = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_QE_SIGNER = bytes(range(32))
SEPT_VE_DISABLE = 1 << 28


def _der(tag: int, body: bytes) -> bytes:
    size = len(body)
    return bytes([tag]) + (bytes([size]) if size < 128 else bytes([0x82]) + size.to_bytes(2, "big")) + body


def _oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    octets = bytearray([40 * first + second])
    for number in rest:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        octets += bytes(reversed(groups))
    return _der(6, bytes(octets))


def _entry(dotted: str, value: bytes) -> bytes:
    return _der(0x30, _oid(dotted) + value)


def _small(value: int) -> bytes:
    return _der(2, bytes([value]))


def _platform(svns: bytes) -> bytes:
    """The SGX extension of a PCK certificate."""
    components = b"".join(_entry(f"{_SGX}.2.{number}", _small(svn)) for number, svn in enumerate(svns, 1))
    tcb = components + _entry(f"{_SGX}.2.17", _small(11)) + _entry(f"{_SGX}.2.18", _der(4, svns))
    return _der(
        0x30,
        _entry(f"{_SGX}.1", _der(4, bytes(16)))
        + _entry(f"{_SGX}.2", _der(0x30, tcb))
        + _entry(f"{_SGX}.3", _der(4, bytes(2)))
        + _entry(f"{_SGX}.4", _der(4, FMSPC))
        + _entry(f"{_SGX}.5", _der(10, b"\0")),
    )


def _sign(key: Any, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


class Platform:
    """One machine under one root. ``svns``: of the components of its processor."""

    def __init__(self, svns: bytes = bytes([5]) * 16) -> None:
        p256 = [ec.generate_private_key(ec.SECP256R1()) for _ in range(5)]
        self.root = Authority("Intel SGX Root CA", key=p256[3])
        self.ca = Authority("Intel SGX PCK Platform CA", self.root, key=p256[4])
        self.pck = Authority(
            "Intel SGX PCK Certificate",
            self.ca,
            is_authority=False,
            key=p256[0],
            extensions=((_SGX, _platform(svns)),),
        )
        self.signer = Authority("Intel SGX TCB Signing", self.root, is_authority=False, key=p256[1])
        self.attester = p256[2]

    def quote(
        self,
        *,
        version: int = 4,
        attributes: int = SEPT_VE_DISABLE,
        module_svn: int = 3,
        report_data: bytes = b"",
        service_td: bytes = bytes(48),
        mrtd: bytes = b"\x44" * 48,
        tee_svns: bytes = b"",
        enclave_svn: int = 4,
    ) -> bytes:
        """A quote of a TD. ``tee_svns``: of all 16 components of the TDX module, in place of ``module_svn``."""
        body = bytearray(584 if version == 4 else 648)
        body[0:16] = tee_svns or bytes([module_svn, 0]) + bytes([module_svn]) * 14
        struct.pack_into("<QQ", body, 120, attributes, 0xE7)
        body[136:184] = mrtd
        for number in range(4):
            body[328 + 48 * number : 376 + 48 * number] = bytes([number]) * 48
        body[520:584] = report_data.ljust(64, b"\0")
        if version == 5:
            body[600:648] = service_td
        header = struct.pack("<HHIHH", version, 2, 0x81, 0, 0) + _INTEL_QE + bytes(20)
        signed = header + (struct.pack("<HI", 3, len(body)) if version == 5 else b"") + bytes(body)
        return signed + self._authentication(signed, enclave_svn)

    def _authentication(self, signed: bytes, enclave_svn: int) -> bytes:
        point = self.attester.public_key().public_numbers()
        key = point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big")
        more = bytes(range(32))
        report = bytearray(384)
        report[48:64] = bytes.fromhex("11000000000000000000000000000000")
        report[128:160] = _QE_SIGNER
        struct.pack_into("<HH", report, 256, 2, enclave_svn)
        report[320:352] = hashlib.sha256(key + more).digest()
        chain = pem_of(self.pck, self.ca, self.root).encode() + b"\0"
        certified = (
            bytes(report)
            + _sign(self.pck.key, bytes(report))
            + struct.pack("<H", len(more))
            + more
            + struct.pack("<HI", 5, len(chain))
            + chain
        )
        data = _sign(self.attester, signed) + key + struct.pack("<HI", 6, len(certified)) + certified
        return struct.pack("<I", len(data)) + data

    def collateral(
        self,
        levels: list[tuple[int, str, list[str]]],
        *,
        begin: datetime.datetime,
        end: datetime.datetime,
        qe_status: str = "UpToDate",
        evaluation: int = 17,
        revoked: tuple[Authority, ...] = (),
        info: dict[str, Any] | None = None,
        identity: dict[str, Any] | None = None,
        signer: Authority | None = None,
    ) -> bytes:
        """What Intel would say. ``levels``: (least SVN of all components, status, advisories), highest first.
        ``info``, ``identity``: what to say otherwise."""
        times = {
            "issueDate": begin.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "nextUpdate": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tcbEvaluationDataNumber": evaluation,
        }
        infos = {
            "id": "TDX",
            "version": 3,
            **times,
            "fmspc": FMSPC.hex().upper(),
            "pceId": "0000",
            "tcbType": 0,
            "tdxModule": {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8},
            "tcbLevels": [
                {
                    "tcb": {
                        "sgxtcbcomponents": [{"svn": svn}] * 16,
                        "pcesvn": 11,
                        "tdxtcbcomponents": [{"svn": 0}] * 16,
                    },
                    "tcbDate": times["issueDate"],
                    "tcbStatus": status,
                    "advisoryIDs": advisories,
                }
                for svn, status, advisories in levels
            ],
        } | (info or {})
        identities = {
            "id": "TD_QE",
            "version": 2,
            **times,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": _QE_SIGNER.hex().upper(),
            "isvprodid": 2,
            "tcbLevels": [{"tcb": {"isvsvn": 4}, "tcbDate": times["issueDate"], "tcbStatus": qe_status}],
        } | (identity or {})
        signer = signer or self.signer
        info_text, identity_text = json.dumps(infos), json.dumps(identities)
        chain = pem_of(signer, *((self.ca,) if signer is self.pck else ()), self.root)
        above = [item for item in revoked if item is not self.pck]
        document = {
            "pck_crl_issuer_chain": pem_of(self.ca, self.root),
            "root_ca_crl": self.root.revokes(*above, begin=begin, end=end, is_numbered=True).hex(),
            "pck_crl": self.ca.revokes(
                *(item for item in revoked if item is self.pck), begin=begin, end=end, is_numbered=True
            ).hex(),
            "tcb_info_issuer_chain": chain,
            "tcb_info": info_text,
            "tcb_info_signature": _sign(signer.key, info_text.encode()).hex(),
            "qe_identity_issuer_chain": chain,
            "qe_identity": identity_text,
            "qe_identity_signature": _sign(signer.key, identity_text.encode()).hex(),
        }
        return json.dumps(document).encode()
