"""AWS Nitro enclave images (EIF, aws-nitro-enclaves-image-format, versions 2 to 4): PCR 0, 1, 2 and 8. Big endian.

header, 548 bytes: ".eif", version (2), flags (2), memory (8), CPUs (8), 0 (2), sections (2), offsets (32 x 8),
                   sizes (32 x 8), 0 (4), CRC-32 of all but this field (4)
section: type (2), flags (2), size (8), contents; one behind the other

Each register is SHA-384 of 48 zeros and SHA-384 of its contents: 0 of kernel, command line and ramdisks; 1 of kernel,
command line and the first ramdisk; 2 of the other ramdisks; 8 of the certificate that signed register 0.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from typing import Any, Final

from casemate.errors import InputError
from casemate.measure.gpt import Read
from casemate.measure.registers import Step, Steps, extended

HEADER_BYTES: Final = 548
MAX_BYTES: Final = 64 << 30
_SECTION_BYTES: Final = 12
_MAX_SECTIONS: Final = 32
_MAX_SIGNATURE: Final = 64 << 10
_CHUNK: Final = 4 << 20
_KERNEL, _CMDLINE, _RAMDISK, _SIGNATURE, _METADATA = 1, 2, 3, 4, 5
_NAMES: Final = {
    0: "kernel, command line and ramdisks",
    1: "kernel, command line and first ramdisk",
    2: "other ramdisks",
}
_CURVES: Final[dict[object, tuple[str, str, int]]] = {
    -7: ("secp256r1", "sha256", 32),
    -35: ("secp384r1", "sha384", 48),
    -36: ("secp521r1", "sha512", 66),
}


def measure_eif(read: Read) -> Steps:
    """The registers of an image, as one event each.

    Raises:
        InputError: it is no EIF, contradicts itself, or its signature is not over its own measurement.
    """
    offsets, wanted_crc, crc = _header(read)
    hashes = {number: hashlib.sha384() for number in _NAMES}
    signature: bytes | None = None
    at, found, kinds = HEADER_BYTES, list[tuple[int, int]](), list[int]()
    while head := read(at, _SECTION_BYTES):
        if len(head) < _SECTION_BYTES or len(found) >= len(offsets):
            raise _fault("bytes behind the last section, or a section that is cut off")
        kind, _, size = struct.unpack(">HHQ", head)
        found.append((at, size))
        at += _SECTION_BYTES
        if kind == _SIGNATURE:
            signature = _signature(read, at, size, signature)
        crc = _take(read, at, size, [hashes[number] for number in _into(kind, kinds)], zlib.crc32(head, crc))
        kinds.append(kind)
        at += size
    if sorted(found) != sorted(offsets):
        raise _fault("sections in other places than its header says")
    if kinds.count(_KERNEL) != 1 or kinds.count(_CMDLINE) != 1 or _RAMDISK not in kinds:
        raise _fault("not one kernel, one command line and ramdisks")
    if crc != wanted_crc:
        raise _fault(f"CRC-32 {crc:08x}, and its header says {wanted_crc:08x}")
    digests = {number: item.digest() for number, item in hashes.items()}
    steps = Steps(("sha384",))
    for number, what in _NAMES.items():
        steps.found.append(Step(register=number, what=what, digests={"sha384": digests[number]}))
    if signature is not None:
        certificate = _signed(signature, extended("sha384", [digests[0]]))
        steps.data(8, "certificate that signed it", certificate)
    return steps


def _into(kind: int, before: list[int]) -> tuple[int, ...]:
    """The registers that a section goes into, by what came before it."""
    if not _KERNEL <= kind <= _METADATA:
        raise _fault(f"a section of type {kind}")
    if kind in (_KERNEL, _CMDLINE):
        return (0, 1)
    if kind == _RAMDISK:
        return (0, 2) if _RAMDISK in before else (0, 1)
    return ()


def _signature(read: Read, at: int, size: int, before: bytes | None) -> bytes:
    if size > _MAX_SIGNATURE or before is not None:
        raise _fault("two signatures, or one that is too long")
    return read(at, size)


def _header(read: Read) -> tuple[list[tuple[int, int]], int, int]:
    """((offset, size) of each section, the CRC that it says, the CRC of itself)."""
    head = read(0, HEADER_BYTES)
    if len(head) < HEADER_BYTES or head[:4] != b".eif":
        raise _fault(f"{len(head)} bytes beginning {head[:4].hex()}")
    version, _, _, _, _, count = struct.unpack_from(">HHQQHH", head, 4)
    if not 2 <= version <= 4 or not 1 <= count <= _MAX_SECTIONS:
        raise _fault(f"version {version} with {count} sections")
    offsets = struct.unpack_from(">32Q", head, 28)[:count]
    sizes = struct.unpack_from(">32Q", head, 28 + 256)[:count]
    if sum(sizes) > MAX_BYTES:
        raise _fault(f"{sum(sizes)} bytes")
    return list(zip(offsets, sizes, strict=True)), int.from_bytes(head[-4:], "big"), zlib.crc32(head[:-4])


def _take(read: Read, at: int, size: int, hashes: list[Any], crc: int) -> int:
    """Hash a section piece by piece; returns the CRC with it."""
    while size:
        part = read(at, min(size, _CHUNK))
        if not part:
            raise _fault("a section that is cut off")
        crc = zlib.crc32(part, crc)
        for item in hashes:
            item.update(part)
        at, size = at + len(part), size - len(part)
    return crc


def _signed(section: bytes, register: bytes) -> bytes:
    """The certificate, in DER, whose key signed register 0.

    The section is a list with one map: ``signing_certificate`` in PEM, and ``signature``, a COSE_Sign1 around the
    number and the value of the register.
    """
    from casemate.evidence.x509 import parse_many, verify

    listed = _cbor(section)
    if not isinstance(listed, list) or len(listed) != 1 or not isinstance(listed[0], dict):
        raise _fault("a signature section of another form")
    certificates = parse_many(_octets(listed[0].get("signing_certificate")))
    cose = _cbor(_octets(listed[0].get("signature")))
    parts = getattr(cose, "value", cose)
    if len(certificates) != 1 or not isinstance(parts, list) or len(parts) != 4:
        raise _fault("a signature of another form")
    protected, _, payload, value = parts
    header, says = _cbor(_octets(protected)), _cbor(_octets(payload))
    curve, hash_name, half = _CURVES.get(header.get(1) if isinstance(header, dict) else 0, ("", "", 0))
    value = _octets(value)
    key = certificates[0].public_key()
    if getattr(getattr(key, "curve", None), "name", "") != curve or len(value) != 2 * half:
        raise _fault("a signature by a key of another kind")
    if not isinstance(says, dict) or says.get("register_index") != 0 or _octets(says.get("register_value")) != register:
        raise _fault("a signature over another measurement than its own")
    if not verify(key, "ecdsa", hash_name, _dss(value, half), _to_be_signed(protected, payload)):
        raise _fault("a signature that its certificate's key did not make")
    return certificates[0].encoded


def _dss(value: bytes, half: int) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    return encode_dss_signature(int.from_bytes(value[:half], "big"), int.from_bytes(value[half:], "big"))


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    from cbor2 import dumps

    return dumps(["Signature1", protected, b"", payload])


def _cbor(data: bytes) -> Any:
    from cbor2 import CBORDecodeError, CBORDecoder

    stream = io.BytesIO(data)
    try:
        found = CBORDecoder(stream).decode()
    except (CBORDecodeError, ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
        raise _fault(f"CBOR: {type(error).__name__}") from None
    if stream.read(1):
        raise _fault("bytes behind its CBOR")
    return found


def _octets(value: object) -> bytes:
    """Bytes, which AWS's tools also write as a list of numbers."""
    if isinstance(value, list) and all(isinstance(item, int) and 0 <= item < 256 for item in value):
        return bytes(value)
    if not isinstance(value, bytes):
        raise _fault("a signature with parts of other kinds")
    return value


def _fault(what: str) -> InputError:
    return InputError("not a Nitro enclave image", got=what, expected="an EIF as nitro-cli builds it")
