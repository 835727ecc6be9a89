"""Which evidence releases which resource, as closed TOML; and where the resources come from.

    format = 1

    [evidence]                                  # what evidence is verified with; all optional
    certificates = ["vcek.pem"]
    collateral = "collateral.json"
    trust = ["makers-root.pem"]

    [resource."default/disk/web"]               # REPOSITORY/TYPE/TAG, as the guest asks for it
    spec = "web.toml"                           # the guest must measure what this specification will: or
    policy = "web-policy.toml"                  # what this policy wants, of `casemate measure --policy`
    secret = { file = "web-disk.key" }          # any source of secrets but a descriptor
    kinds = ["tpm"]                             # kinds of evidence that may ask for it
    attestation-keys = ["vm:web"]               # the TPMs that may: a VM's of this host, or files with public keys

A resource without a policy does not exist, and neither does a default: an empty policy accepts any guest that is not
debugged. `accept-guests-whatever-they-measured = true` says that this is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from casemate.errors import Fault, InputError, SpecError
from casemate.release.protocol import TEES
from casemate.spec.model import Secret

FORMAT: Final = 1
RESOURCES_MAX: Final = 256
RESOURCE_MAX_BYTES: Final = 1 << 20
KINDS: Final = tuple(dict.fromkeys(TEES.values()))
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}(?:/[A-Za-z0-9][A-Za-z0-9_.-]{0,127}){2}")

Names = Annotated[tuple[str, ...], Meta(max_length=64)]


class _Closed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Base: frozen, and an unknown key is a fault."""


class Evidence(_Closed, frozen=True):
    """Files that evidence is verified with."""

    certificates: Names = ()
    collateral: str = ""
    trust: Names = ()


class Resource(_Closed, frozen=True):
    """One secret and who may have it."""

    secret: Secret
    policy: str = ""
    spec: str = ""
    kinds: Names = ()
    attestation_keys: Names = ()
    accept_guests_whatever_they_measured: bool = False


class ReleasePolicy(_Closed, frozen=True):
    """The whole file."""

    format: int
    resource: dict[str, Resource]
    evidence: Evidence = Evidence()


def parse_release_policy(text: str, name: str) -> ReleasePolicy:
    """The file.

    Raises:
        InputError: no TOML of this form. SpecError: faults in what it says, all together.
    """
    try:
        found = msgspec.toml.decode(text, type=ReleasePolicy)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is no release policy", got=str(error)[:200], expected="docs/key-release.md") from None
    faults = tuple(_faults(found))
    if faults:
        raise SpecError(name, faults)
    return found


def _faults(found: ReleasePolicy) -> Iterator[Fault]:
    if found.format != FORMAT:
        yield Fault("format", "release.format", f"{found.format}, and we read {FORMAT}")
    if not 1 <= len(found.resource) <= RESOURCES_MAX:
        yield Fault("resource", "release.count", f"{len(found.resource)} resources; 1 to {RESOURCES_MAX} belong here")
    for name, resource in found.resource.items():
        where = f"resource.{name}"
        if not _NAME.fullmatch(name):
            yield Fault(where, "release.name", "is not REPOSITORY/TYPE/TAG of letters, digits, '_', '.', '-'")
        if bool(resource.policy) == bool(resource.spec):
            yield Fault(where, "release.policy", "says policy and spec, or neither; keep one")
        for kind in resource.kinds:
            if kind not in KINDS:
                yield Fault(f"{where}.kinds", "release.kind", f"{kind}: there are {', '.join(KINDS)}")
        yield from _secret_faults(where, resource.secret)


def _secret_faults(where: str, secret: Secret) -> Iterator[Fault]:
    given = [name for name in ("file", "systemd_creds", "command", "age") if getattr(secret, name) is not None]
    if secret.descriptor is not None:
        yield Fault(
            f"{where}.secret", "release.descriptor", "a descriptor can be read once only; name a file or program"
        )
    elif len(given) != 1:
        yield Fault(f"{where}.secret", "release.source", "one source: file, systemd_creds, command or age")
    if (secret.age is None) != (secret.identity is None):
        yield Fault(f"{where}.secret", "release.identity", "age and identity go together")
    if secret.command is not None and not (secret.command and secret.command[0].startswith("/")):
        yield Fault(f"{where}.secret", "release.command", "expected a program by its full path, then its arguments")
