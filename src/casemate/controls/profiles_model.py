"""The types of profiles, apart from the data so that both sides of it can import them."""

from __future__ import annotations

import msgspec

from casemate.controls.model import Severity


class Adjustment(msgspec.Struct, frozen=True):
    """What a profile says about one control, or about those that a pattern (``cc.*``) names.

    ``severity`` None: it does not apply under this profile. ``reason``: why, as the report says it.
    """

    control: str
    severity: Severity | None
    reason: str

    def __post_init__(self) -> None:
        if not self.reason:
            raise RuntimeError(f"profile entry {self.control}: needs a reason")


class Profile(msgspec.Struct, frozen=True):
    """A use of a host. ``about``: one line, for whom it is. ``threat``: what it fears most."""

    name: str
    about: str
    threat: str
    adjustments: tuple[Adjustment, ...] = ()
