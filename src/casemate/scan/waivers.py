"""The waiver file of a scan: which findings are accepted in a published image, why and until when::

    version = 1

    [[allow]]
    rule = "machine-id.file"            # the rule's name; shell patterns
    path = "/etc/machine-id"            # optional: the file; shell patterns
    place = "file"                      # optional: file, disk, snapshot, unreferenced
    digest = "0123456789abcdef"         # optional, with a key of your own (--digest-key-file)
    reason = "made anew at first boot by our own unit"
    expires = 2027-03-31                # the last day on which it counts

    [[authorized_key]]
    fingerprint = "SHA256:…"            # as ssh-keygen -l shows it
    reason = "the fleet's recovery key"

Pure: bytes in, waivers out. Unknown keys are faults.
"""

from __future__ import annotations

import datetime
import tomllib
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from casemate.errors import InputError

MAX_ENTRIES: Final = 4_096
_Text = Annotated[str, Meta(min_length=1, max_length=512)]
_Reason = Annotated[str, Meta(min_length=8, max_length=1024)]


class Allow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One accepted kind of finding. A rule must be named: ``*`` alone is refused."""

    rule: _Text
    reason: _Reason
    expires: datetime.date
    path: _Text = "*"
    place: Literal["*", "file", "disk", "snapshot", "unreferenced"] = "*"
    digest: str = ""


class AuthorizedKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A public key that may stand in authorized_keys."""

    fingerprint: Annotated[str, Meta(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")]
    reason: _Reason


class Waivers(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file."""

    version: Literal[1]
    allow: Annotated[tuple[Allow, ...], Meta(max_length=MAX_ENTRIES)] = ()
    authorized_key: Annotated[tuple[AuthorizedKey, ...], Meta(max_length=MAX_ENTRIES)] = ()


NO_WAIVERS: Final = Waivers(version=1)


def read_waivers(data: bytes, source: str) -> Waivers:
    """Parse a waiver file.

    Raises:
        InputError: it is not TOML, has an unknown key, a missing reason, or a pattern that accepts everything.
    """
    try:
        waivers = msgspec.convert(tomllib.loads(data.decode("utf-8")), Waivers)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as fault:
        raise InputError(
            f"{source} is no waiver file", got=str(fault)[:200], next_step="docs/scan.md shows one"
        ) from None
    for entry in waivers.allow:
        if not entry.rule.strip("*?[]!."):
            raise InputError(
                f"{source}: a waiver that accepts every rule",
                got=repr(entry.rule),
                expected="the name of a rule",
                next_step="waive each kind of finding by its name",
            )
    return waivers
