"""Is Secure Execution evidence true? It is a message authentication code whose key only two know: whoever made the
request, and the firmware that could open it with the host's private key.

1. Only the maker's key opens the request, and its tag says that nothing in it was changed.
2. The measurement is HMAC-SHA-512, with the key inside, over: digests and tag of the image's header, configuration UID,
   length of user data (2), 0 (2), length of additional data (4), user data, nonce, additional data.

The image is no part of the evidence: it must be one of those that the verifier names. What this rests on is that the
request was sealed for genuine hosts only: their keys' certificates are checked by whoever makes it (pvattest create).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

import msgspec

from casemate.evidence.se import KEY_BYTES, SeRequest, SeResponse
from casemate.evidence.verdict import Reason, false

REQUEST_KEY_BYTES = 32


class SeTruth(msgspec.Struct, frozen=True):
    """``image``: of those named, the one that was measured; None when none was. ``nonce``: of the request."""

    reasons: tuple[Reason, ...]
    image: bytes | None = None
    nonce: bytes = b""


def truth_of_se(response: SeResponse, request_key: bytes | None, images: Sequence[bytes]) -> SeTruth:
    """Every reason why it is not true.

    Args:
        request_key: with which the request was sealed (pvattest create --arpk), None when nobody has it.
        images: `evidence.se.parse_image` of each image that may run.
    """
    if request_key is None:
        return SeTruth((false("request-key", "without the key of its request nothing in it can be checked"),))
    opened = open_request(response.request, request_key)  # 1
    if opened is None:
        return SeTruth((false("request", "the request was not made with this key, or was changed since"),))
    key, nonce = opened[:KEY_BYTES], opened[KEY_BYTES:]
    if not images:
        text = "the measurement covers the image that runs, and the policy names none"
        return SeTruth((false("image", text),), nonce=nonce)
    found = None
    for image in images:  # 2, all of them: how long it takes says nothing
        if hmac.compare_digest(measurement_of(response, image, key, nonce), response.measurement):
            found = image
    if found is None:
        text = "the measurement is none of an image that the policy names, or something in the evidence was changed"
        return SeTruth((false("measurement", text),), nonce=nonce)
    return SeTruth((), found, nonce)


def open_request(request: SeRequest, key: bytes) -> bytes | None:
    """The measurement key and the nonce; None when the key or anything of the request is another one."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if len(key) != REQUEST_KEY_BYTES:
        return None
    try:
        return AESGCM(key).decrypt(request.iv, request.sealed + request.tag, request.authenticated)
    except InvalidTag:
        return None


def measurement_of(response: SeResponse, image: bytes, key: bytes, nonce: bytes) -> bytes:
    """What the firmware would have written for this image."""
    code = hmac.new(key, image, hashlib.sha512)
    code.update(response.config_uid)
    code.update(len(response.user_data).to_bytes(2, "big") + bytes(2))
    code.update(len(response.additional).to_bytes(4, "big"))
    code.update(response.user_data + nonce + response.additional)
    return code.digest()
