"""The few TPM 2.0 commands with which a new TPM is made ready, and swtpm's control commands, as bytes. Pure.

Structures: TPM 2.0 library specification, parts 2 and 3. Templates: TCG EK credential profile 2.x (L-1). Control
channel: swtpm's `include/swtpm/tpm_ioctl.h`, which QEMU's backend ``emulator`` speaks too. All numbers are big-endian.
"""

from __future__ import annotations

import struct
from typing import Final

from casemate.errors import VmError

# Control channel: every answer begins with a result, 0 for success.
CMD_INIT: Final = 2
CMD_STOP: Final = 14
CMD_SET_DATAFD: Final = 16

RESPONSE_MAX_BYTES: Final = 4096

EK_HANDLE: Final = 0x8101_0001
"""TCG registry of reserved handles: the RSA 2048 endorsement key."""
AK_HANDLE: Final = 0x8101_0002
"""Where confidential-containers' attestation agent looks for an RSA attestation key; the host knows this one."""

SHA256: Final = 0x000B
_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_STARTUP, _SHUTDOWN, _GET_CAPABILITY, _PCR_ALLOCATE = 0x144, 0x145, 0x17A, 0x12B
_CREATE_PRIMARY, _EVICT_CONTROL, _FLUSH_CONTEXT = 0x131, 0x120, 0x165
_OWNER, _PASSWORD, _ENDORSEMENT, _PLATFORM = 0x4000_0001, 0x4000_0009, 0x4000_000B, 0x4000_000C
_CAP_PCRS: Final = 5
_RC_RETRY: Final = 0x922
_EMPTY_PASSWORD: Final = struct.pack(">IIHBH", 9, _PASSWORD, 0, 0, 0)

# TPMA_OBJECT
_FIXED_TPM, _FIXED_PARENT, _ORIGIN = 1 << 1, 1 << 4, 1 << 5
_USER, _ADMIN_POLICY, _NO_DA, _RESTRICTED, _DECRYPT, _SIGN = 1 << 6, 1 << 7, 1 << 10, 1 << 16, 1 << 17, 1 << 18
_MADE_HERE: Final = _FIXED_TPM | _FIXED_PARENT | _ORIGIN

_EK_POLICY: Final = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
"""PolicySecret(TPM_RH_ENDORSEMENT), SHA-256: template L-1 of the EK credential profile."""
_RSA, _NULL, _AES, _CFB, _RSASSA = 0x0001, 0x0010, 0x0006, 0x0043, 0x0014

EK_TEMPLATE: Final = (
    struct.pack(">HHIH", _RSA, SHA256, _MADE_HERE | _ADMIN_POLICY | _RESTRICTED | _DECRYPT, len(_EK_POLICY))
    + _EK_POLICY
    + struct.pack(">HHHHHI", _AES, 128, _CFB, _NULL, 2048, 0)
    + struct.pack(">H", 256)
    + bytes(256)
)
"""TPMT_PUBLIC of the RSA 2048 endorsement key: what every TPM of that seed makes of this template is the same key."""

AK_TEMPLATE: Final = struct.pack(
    ">HHIHHHHHIH",
    _RSA,
    SHA256,
    _MADE_HERE | _USER | _NO_DA | _RESTRICTED | _SIGN,
    0,
    _NULL,
    _RSASSA,
    SHA256,
    2048,
    0,
    0,
)
"""TPMT_PUBLIC of an RSA 2048 key (RSASSA, SHA-256) that signs only what the TPM itself made, such as quotes."""


def control(command: int, *, flags: int | None = None) -> bytes:
    """A control command; CMD_INIT takes flags."""
    return struct.pack(">I", command) + (struct.pack(">I", flags) if flags is not None else b"")


def control_result(answer: bytes) -> int:
    """The result of a control command; 0 is success.

    Raises:
        VmError: no answer of swtpm's.
    """
    if len(answer) < 4:
        raise VmError("swtpm did not answer a control command", got=answer.hex() or "nothing")
    return int.from_bytes(answer[:4], "big")


def _command(tag: int, code: int, body: bytes) -> bytes:
    return struct.pack(">HII", tag, 10 + len(body), code) + body


def startup() -> bytes:
    """TPM2_Startup(CLEAR)."""
    return _command(_NO_SESSIONS, _STARTUP, struct.pack(">H", 0))


def shutdown() -> bytes:
    """TPM2_Shutdown(CLEAR)."""
    return _command(_NO_SESSIONS, _SHUTDOWN, struct.pack(">H", 0))


def get_banks() -> bytes:
    """TPM2_GetCapability(TPM_CAP_PCRS)."""
    return _command(_NO_SESSIONS, _GET_CAPABILITY, struct.pack(">III", _CAP_PCRS, 0, 1))


def pcr_allocate(banks: tuple[int, ...], wanted: int) -> bytes:
    """TPM2_PCR_Allocate: all 24 PCRs of bank ``wanted``, none of the others; in force after the next reset."""
    selections = b"".join(
        struct.pack(">HB", bank, 3) + (b"\xff\xff\xff" if bank == wanted else bytes(3)) for bank in banks
    )
    body = struct.pack(">I", _PLATFORM) + _EMPTY_PASSWORD + struct.pack(">I", len(banks)) + selections
    return _command(_SESSIONS, _PCR_ALLOCATE, body)


def create_primary(template: bytes) -> bytes:
    """TPM2_CreatePrimary in the endorsement hierarchy, without authorisation value or outside data."""
    sensitive = struct.pack(">HHH", 4, 0, 0)
    body = struct.pack(">I", _ENDORSEMENT) + _EMPTY_PASSWORD + sensitive
    body += struct.pack(">H", len(template)) + template + struct.pack(">HI", 0, 0)
    return _command(_SESSIONS, _CREATE_PRIMARY, body)


def evict_control(transient: int, persistent: int) -> bytes:
    """TPM2_EvictControl: keep a loaded key under a handle that survives a reset."""
    body = struct.pack(">II", _OWNER, transient) + _EMPTY_PASSWORD + struct.pack(">I", persistent)
    return _command(_SESSIONS, _EVICT_CONTROL, body)


def flush_context(handle: int) -> bytes:
    """TPM2_FlushContext."""
    return _command(_NO_SESSIONS, _FLUSH_CONTEXT, struct.pack(">I", handle))


def is_retry(data: bytes) -> bool:
    """Whether the TPM was busy with itself and did nothing: it is to be asked again."""
    return int.from_bytes(data[6:10], "big") == _RC_RETRY


def response(data: bytes, what: str) -> bytes:
    """What follows the header of a TPM's response.

    Raises:
        VmError: it is an error, or no response at all.
    """
    if len(data) < 10 or int.from_bytes(data[2:6], "big") != len(data):
        raise VmError(f"the TPM did not answer {what}", got=data[:16].hex() or "nothing")
    code = int.from_bytes(data[6:10], "big")
    if code != 0:
        raise VmError(f"the TPM refused {what}", got=f"TPM_RC {code:#x}")
    return data[10:]


def parse_banks(body: bytes) -> dict[int, bytes]:
    """Bank -> its PCR selection bits, of the body of an answer to `get_banks`.

    Raises:
        VmError: cut off, or not about PCRs.
    """
    fault = VmError("the TPM's list of PCR banks makes no sense", got=body[:32].hex())
    if len(body) < 9 or int.from_bytes(body[1:5], "big") != _CAP_PCRS:
        raise fault
    count, offset, banks = int.from_bytes(body[5:9], "big"), 9, dict[int, bytes]()
    if count > 16:
        raise fault
    for _ in range(count):
        if len(body) < offset + 3 or len(body) < offset + 3 + body[offset + 2]:
            raise fault
        banks[int.from_bytes(body[offset : offset + 2], "big")] = body[offset + 3 : offset + 3 + body[offset + 2]]
        offset += 3 + body[offset + 2]
    return banks


def parse_allocated(body: bytes) -> bool:
    """Whether TPM2_PCR_Allocate did it; ``body`` begins with the size of its parameters."""
    return len(body) >= 5 and body[4] == 1


def parse_primary(body: bytes) -> tuple[int, bytes]:
    """(transient handle, TPMT_PUBLIC) of the body of an answer to `create_primary`.

    Raises:
        VmError: cut off.
    """
    size = int.from_bytes(body[8:10], "big")
    if len(body) < 10 + size or size == 0:
        raise VmError("the TPM's new key makes no sense", got=body[:32].hex())
    return int.from_bytes(body[:4], "big"), body[10 : 10 + size]
