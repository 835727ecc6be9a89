"""Signing with SSH keys: a private key file, or an agent that has the private half of a public key file.

The agent's protocol (draft-ietf-sshm-ssh-agent): length, type, payload; SSH_AGENTC_SIGN_REQUEST 13 is answered by
SSH_AGENT_SIGN_RESPONSE 14. An agent is a program of the user's, asked for one signature: bounded, with a deadline.
"""

from __future__ import annotations

import base64
import binascii
import os
import socket
import stat
from collections.abc import Callable
from typing import Any, Final

from casemate.errors import HostError, InputError
from casemate.image.ssh_keys import RSA_MIN_BITS, Fields, key_type_of, put
from casemate.image.store_files import read_small

KEY_MAX_BYTES: Final = 64 << 10
AGENT_DEADLINE_S: Final = 60.0
"""A person may have to say yes or touch a key."""
_SIGN_REQUEST: Final = b"\x0d"
_SIGN_RESPONSE: Final = 14
_RSA_SHA2_512: Final = 4

Sign = Callable[[bytes], bytes]
"""Message in, signature in SSH wire format out."""


def signer_for(path: str, passphrase: Callable[[], bytes]) -> tuple[Sign, bytes]:
    """A function that signs, and the public key in SSH wire format.

    Raises:
        InputError: the file is no key that we can use, or others can read it. HostError: no agent.
    """
    try:
        data = read_small(os.path.realpath(path), KEY_MAX_BYTES)
    except (OSError, ValueError) as fault:
        raise InputError(f"cannot read the key {path}", got=str(getattr(fault, "strerror", fault)).lower()) from None
    words = data.split()
    if len(words) >= 2 and key_type_of(words[0].decode("ascii", "replace")):
        return _agent_signer(path, words[1])
    mode = os.stat(path).st_mode
    if mode & 0o077:
        raise InputError(
            f"the key {path} is readable by others", got=stat.filemode(mode), next_step=f"chmod 600 {path}"
        )
    return _file_signer(data, path, passphrase)


def _file_signer(data: bytes, path: str, passphrase: Callable[[], bytes]) -> tuple[Sign, bytes]:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

    key = _load(data, path, passphrase)
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise InputError(f"the key {path} is of a kind that cannot sign here", expected="Ed25519, ECDSA or RSA")
    encoding, shape = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    public = base64.b64decode(key.public_key().public_bytes(encoding, shape).split()[1])

    def sign(message: bytes) -> bytes:
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return put(b"ssh-ed25519") + put(key.sign(message))
        if isinstance(key, rsa.RSAPrivateKey):
            return put(b"rsa-sha2-512") + put(key.sign(message, padding.PKCS1v15(), hashes.SHA512()))
        bits = key.curve.key_size
        digest = {256: hashes.SHA256(), 384: hashes.SHA384()}.get(bits, hashes.SHA512())
        numbers = utils.decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
        return put(f"ecdsa-sha2-nistp{bits}".encode()) + put(b"".join(put(_mpint(number)) for number in numbers))

    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < RSA_MIN_BITS:
        raise InputError(f"the key {path} is too short", got=f"{key.key_size} bits", expected=f"{RSA_MIN_BITS} or more")
    return sign, public


def _load(data: bytes, path: str, passphrase: Callable[[], bytes]) -> Any:
    from cryptography.hazmat.primitives import serialization

    load: Callable[..., Any] = serialization.load_pem_private_key
    if data.lstrip().startswith(b"-----BEGIN OPENSSH"):
        load = serialization.load_ssh_private_key
    try:
        try:
            return load(data, password=None)
        except TypeError:  # it has a passphrase
            return load(data, password=passphrase())
        except ValueError as fault:
            if "password-protected" not in str(fault):
                raise
            return load(data, password=passphrase())
    except (ValueError, TypeError) as fault:
        # the library's message never quotes the key, but a wrong passphrase and a broken file look alike
        raise InputError(
            f"the key {path} cannot be read",
            got=str(fault)[:120] or "a wrong passphrase",
            expected="a private key in OpenSSH or PEM form, and its passphrase",
        ) from None
    except Exception as fault:  # UnsupportedAlgorithm and its like; encrypted OpenSSH keys need the package bcrypt
        raise InputError(
            f"the key {path} cannot be used",
            got=str(fault)[:120],
            next_step=f"ssh-add {path}, then give {path}.pub: the agent signs",
        ) from None


def _mpint(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big")


def _agent_signer(path: str, encoded: bytes) -> tuple[Sign, bytes]:
    try:
        public = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"the public key {path} is broken", got="broken base64") from None
    place = os.environ.get("SSH_AUTH_SOCK", "")
    if not place:
        raise HostError(
            f"{path} is a public key and there is no agent",
            got="SSH_AUTH_SOCK is not set",
            next_step="eval $(ssh-agent); ssh-add KEY, or give the private key file",
        )
    flags = _RSA_SHA2_512 if Fields(public, path).text() == "ssh-rsa" else 0

    def sign(message: bytes) -> bytes:
        request = _SIGN_REQUEST + put(public) + put(message) + flags.to_bytes(4, "big")
        try:
            answer = _ask(place, request)
        except OSError as fault:
            raise HostError("the SSH agent does not answer", got=str(fault), next_step="ssh-add -l") from None
        if not answer or answer[0] != _SIGN_RESPONSE:
            raise HostError(
                "the SSH agent did not sign", got=f"answer {answer[:1].hex()}", next_step="ssh-add KEY; ssh-add -l"
            )
        fields = Fields(answer[1:], "the agent's answer")
        signature = fields.string()
        fields.end()
        return signature

    return sign, public


def _ask(place: str, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.settimeout(AGENT_DEADLINE_S)
        agent.connect(place)
        agent.sendall(put(request))
        length = int.from_bytes(_receive(agent, 4), "big")
        if not 0 < length <= KEY_MAX_BYTES:
            raise OSError(f"an answer of {length} bytes")
        return _receive(agent, length)


def _receive(agent: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = agent.recv(count - len(data))
        if not part:
            raise OSError("it closed the connection")
        data += part
    return data
