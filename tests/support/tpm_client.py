"""A small TPM 2.0 client: commands over swtpm's data socket (TPM library specification, parts 2 and 3), as a guest's
attester sends them. Enough to make an attestation key, extend PCRs and quote."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

SWTPM = shutil.which("swtpm") or ""
NO_SESSIONS, SESSIONS = 0x8001, 0x8002
OWNER, ENDORSEMENT, PASSWORD = 0x40000001, 0x4000000B, 0x40000009
SHA256, RSASSA, NULL, RSA = 0x000B, 0x0014, 0x0010, 0x0001
AK_HANDLE = 0x81010002
"""Where the attestation agent of guest-components looks."""
RETRY = 0x922
_EMPTY_AUTH = struct.pack(">IHBH", PASSWORD, 0, 0, 0)


class TpmError(Exception):
    """A response code that is not success."""


class Tpm:
    """One TPM, by its data socket."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel

    def command(
        self, code: int, handles: bytes, parameters: bytes, *, auth: bool = False, has_auths: bool = False
    ) -> bytes:
        """Send one command; what comes behind the response's header. ``has_auths``: the handles have theirs behind."""
        body = handles + (struct.pack(">I", len(_EMPTY_AUTH)) + _EMPTY_AUTH if auth else b"") + parameters
        tag = SESSIONS if auth or has_auths else NO_SESSIONS
        result = RETRY
        while result == RETRY:  # it was busy and did nothing; swtpm says so once after a key was made
            self.channel.sendall(struct.pack(">HII", tag, 10 + len(body), code) + body)
            _, size, result = struct.unpack(">HII", self._exactly(10))
            rest = self._exactly(size - 10)
        if result:
            raise TpmError(f"{code:#x}: {result:#x}")
        return rest

    def create_key(self, *, modulus_bits: int = 2048) -> int:
        """A restricted signing key (RSASSA, SHA-256) of the endorsement hierarchy: it signs only what the TPM made."""
        attributes = 0x00050072  # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign
        public = struct.pack(">HHIH", RSA, SHA256, attributes, 0)
        public += struct.pack(">HHHHI", NULL, RSASSA, SHA256, modulus_bits, 0) + struct.pack(">H", 0)
        parameters = struct.pack(">HHH", 4, 0, 0) + struct.pack(">H", len(public)) + public + struct.pack(">HI", 0, 0)
        rest = self.command(0x131, struct.pack(">I", ENDORSEMENT), parameters, auth=True)
        return int.from_bytes(rest[:4], "big")

    def persist(self, handle: int, at: int = AK_HANDLE) -> None:
        """Keep a key across resets."""
        self.command(0x120, struct.pack(">II", OWNER, handle), struct.pack(">I", at), auth=True)

    def public_key(self, handle: int) -> bytes:
        """SubjectPublicKeyInfo of an RSA key."""
        from cryptography.hazmat.primitives.asymmetric import rsa
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        rest = self.command(0x173, struct.pack(">I", handle), b"")
        public = rest[2 : 2 + int.from_bytes(rest[:2], "big")]
        (size,) = struct.unpack_from(">H", public, 22)
        modulus = int.from_bytes(public[24 : 24 + size], "big")
        return (
            rsa.RSAPublicNumbers(65537, modulus)
            .public_key()
            .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        )

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend the SHA-256 bank of one PCR."""
        self.command(0x182, struct.pack(">I", pcr), struct.pack(">IH", 1, SHA256) + digest, auth=True)

    def pcrs(self) -> list[bytes]:
        """All 24 values of the SHA-256 bank."""
        values: list[bytes] = []
        for octet in range(3):
            mask = bytearray(3)
            mask[octet] = 0xFF
            rest = self.command(0x17E, b"", struct.pack(">IHB", 1, SHA256, 3) + mask)
            offset = 4 + 4 + 2 + 1 + 3 + 4
            for _ in range(8):
                values.append(rest[offset + 2 : offset + 34])
                offset += 34
        return values

    def quote(self, handle: int, nonce: bytes, pcrs: bytes = b"\xff\xff\xff") -> tuple[bytes, bytes]:
        """(TPMS_ATTEST, TPMT_SIGNATURE) over the PCRs of the SHA-256 bank."""
        parameters = struct.pack(">H", len(nonce)) + nonce + struct.pack(">HH", RSASSA, SHA256)
        parameters += struct.pack(">IHB", 1, SHA256, len(pcrs)) + pcrs
        rest = self.command(0x158, struct.pack(">I", handle), parameters, auth=True)
        body = rest[4 : 4 + int.from_bytes(rest[:4], "big")]
        size = int.from_bytes(body[:2], "big")
        return body[2 : 2 + size], body[2 + size :]

    def evidence(self, handle: int, nonce: bytes, *, event_log: bytes = b"", pcrs: bytes = b"\xff\xff\xff") -> bytes:
        """As guest-components' TPM attester writes it, and our event log beside it."""
        message, signature = self.quote(handle, nonce, pcrs)
        document: dict[str, object] = {
            "tpm_quote": {
                "signature": _text(signature),
                "message": _text(message),
                "pcrs": [value.hex() for value in self.pcrs()],
            },
            "ak_public": _text(self.public_key(handle)),
        }
        if event_log:
            document["event_log"] = _text(event_log)
        return json.dumps(document).encode()

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            piece = self.channel.recv(size - len(found))
            if not piece:
                raise TpmError("swtpm went")
            found += piece
        return found


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@contextlib.contextmanager
def software_tpm(directory: Path) -> Iterator[Tpm]:
    """A swtpm with its state in ``directory``; ends with the block."""
    directory.mkdir(mode=0o700, exist_ok=True)
    ours, theirs = socket.socketpair()
    command = [SWTPM, "socket", "--tpm2", "--tpmstate", f"dir={directory}", "--flags", "not-need-init,startup-clear"]
    command += ["--server", f"type=tcp,fd={theirs.fileno()}"]
    helper = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        ours.settimeout(30)
        yield Tpm(ours)
    finally:
        ours.close()
        end = time.monotonic() + 5
        while helper.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        helper.kill()
        helper.wait()
