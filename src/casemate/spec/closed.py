"""What every table of a specification is made of."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class Closed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base: frozen, and an unknown key is an error."""


HostPath = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=4095,
        extra={"kind": "path"},
        description="A file on the host. Absolute, or relative to the directory of the specification.",
    ),
]
