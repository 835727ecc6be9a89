"""Certificates of makers' authorities that come with Casemate, so that evidence needs fewer files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.evidence.x509 import Certificate


def known_authorities() -> tuple[Certificate, ...]:
    """They are not believed: the roots are pinned."""
    from casemate.evidence.x509 import parse_many

    return parse_many((Path(__file__).parents[1] / "data" / "authorities.pem").read_bytes())
