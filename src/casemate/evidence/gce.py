"""Which VM of Google Compute Engine an attestation key belongs to: an extension of the key's certificate.

    SEQUENCE { zone UTF8String, project number INTEGER, project UTF8String, instance id INTEGER, instance UTF8String,
               [0] { [0] security version INTEGER, [1] production BOOLEAN } OPTIONAL }

It is worth what the certificate's chain is worth. As go-tpm-tools reads it (GCEInstanceInfo).
"""

from __future__ import annotations

from typing import Final

from casemate.errors import InputError
from casemate.evidence import der
from casemate.evidence.x509 import Certificate

_INSTANCE: Final = "1.3.6.1.4.1.11129.2.1.21"
_UTF8: Final = 0x0C
_MAX_TEXT: Final = 256


def instance_of(certificate: Certificate) -> dict[str, str | int]:
    """Claims by name (``gce-project``, ``gce-zone``…); none when the certificate names no VM, or cannot be read."""
    _, value = certificate.extensions.get(_INSTANCE, (False, b""))
    try:
        parts = der.elements(der.whole(value, der.SEQUENCE).body) if value else []
        if len(parts) < 5:
            return {}
        return {
            "gce-zone": _text(parts[0]),
            "gce-project-number": der.integer(der.expect(parts[1], der.INTEGER).body),
            "gce-project": _text(parts[2]),
            "gce-instance-id": der.integer(der.expect(parts[3], der.INTEGER).body),
            "gce-instance": _text(parts[4]),
        }
    except InputError:
        return {}


def _text(element: der.Element) -> str:
    body = der.expect(element, _UTF8).body
    if len(body) > _MAX_TEXT:
        raise InputError("a name of more than 256 bytes")
    return body.decode("utf-8", "backslashreplace")
