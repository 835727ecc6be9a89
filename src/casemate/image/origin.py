"""Where an image comes from: who vouched for which bytes, and whom the host wants to have vouched. Data and judgement.

A key has one text, the same in policies, store and messages::

    openpgp:<fingerprint of the certificate, 40 or 64 hexadecimal digits>
    ssh:SHA256:<fingerprint as ssh-keygen -l prints it>
    minisign:<the 56 characters of the public key>
    sigstore:<identity> <issuer>
    tuf:<key id of a root key, 64 hexadecimal digits>

Verifying, collecting and judging are apart: `openpgp`, `sshsig`, `minisign`, `sigstore_bundle` and `sums` turn bytes
into `Signer` and digests; `judge_origin` compares them with a rule; none of them does I/O.
"""

from __future__ import annotations

import enum
import fnmatch
import re
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from casemate.errors import ImageError

UNVERIFIED: Final = "no signature"

_KEY = re.compile(
    r"openpgp:([0-9a-f]{40}|[0-9a-f]{64})|ssh:SHA256:[A-Za-z0-9+/]{43}|minisign:[A-Za-z0-9+/]{55}[A-Za-z0-9+/=]"
    r"|sigstore:[\x21-\x7e]{1,512} https://[\x21-\x7e]{1,512}|tuf:[0-9a-f]{64}",
    re.ASCII,
)


class Signer(msgspec.Struct, frozen=True, kw_only=True):
    """One signature that holds. ``identity`` and ``signed_at`` (UTC) are what the signer says; may be empty."""

    key: str
    identity: str = ""
    signed_at: str = ""

    @property
    def method(self) -> str:
        """``openpgp``, ``ssh``, ``minisign``, ``sigstore`` or ``tuf``."""
        return self.key.partition(":")[0]


class Require(enum.StrEnum):
    """How many of a rule's keys must have signed."""

    ANY = "any"
    ALL = "all"


class SourceRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[[image.source]]``: images whose source (URL, absolute path or name) matches the glob must be signed."""

    match: Annotated[str, Meta(min_length=1, max_length=1024)]
    require: Require = Require.ANY
    keys: Annotated[tuple[Annotated[str, Meta(max_length=1100)], ...], Meta(min_length=1, max_length=64)]


def is_key(text: str) -> bool:
    """True if ``text`` is a key in the form above."""
    return _KEY.fullmatch(text) is not None


def rule_for(rules: Sequence[SourceRule], *names: str) -> SourceRule | None:
    """The first rule that matches one of the image's names (source, file name, name in the store).

    Case counts and ``*`` matches ``/`` too; an empty name matches nothing.
    """
    return next((rule for rule in rules for name in names if name and fnmatch.fnmatchcase(name, rule.match)), None)


def missing_signatures(rule: SourceRule, keys: Sequence[str]) -> str:
    """Why ``keys``, whose signatures hold, do not satisfy ``rule``; empty when they do."""
    have, want = set(keys), set(rule.keys)
    if rule.require is Require.ALL and (lacking := sorted(want - have)):
        return f"not signed by {', '.join(lacking)}, which the rule {rule.match!r} demands"
    if not have & want:
        return f"signed by {', '.join(sorted(have)) or 'nobody'}, and the rule {rule.match!r} wants {_some(rule)}"
    return ""


def judge_origin(rules: Sequence[SourceRule], names: Sequence[str], keys: Sequence[str]) -> str:
    """Why an image's origin is not verified; empty when it is.

    1. A rule matches: its signatures must be there. 2. No rule matches: one signature that was verified against a key
    that the user named.
    """
    rule = rule_for(rules, *names)
    if rule is not None:
        return missing_signatures(rule, keys)
    return "" if keys else UNVERIFIED


def refuse(what: str, why: str, *, expected: str = "", next_step: str = "") -> ImageError:
    """The one error of the verifiers: a signature or list that does not hold, and why."""
    return ImageError(what, got=why, expected=expected, next_step=next_step)


def _some(rule: SourceRule) -> str:
    words = f"{', '.join(rule.keys[:3])}{' …' if len(rule.keys) > 3 else ''}"
    return words if len(rule.keys) == 1 else f"{rule.require.value} of {words}"
