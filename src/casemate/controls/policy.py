"""The host's policy: what a specification may waive here, and what this host demands beyond the catalogue.

A specification comes from anywhere; the policy belongs to who answers for the host. A waiver counts only when both say
so. Without a policy file nothing may be waived. The file (read by `engine/policy_file.py`)::

    version = 1

    [waivers]
    allowed = ["iommu.no-hostdev"]     # control ids that a specification may waive
    max_days = 90                      # how far away a waiver's expiry may be

    [gates]
    launch = ["dev.kvm", "os.mac"]     # report controls that stop a launch on this host

    [identity]
    uid_first = 1900000000             # reserved for VMs that root starts: one uid and gid each
    uid_count = 65536

    [network]
    wide_publish = "refuse"            # ports bound to other than loopback addresses: "report" or "refuse"

    [limits]
    vms = 200                          # running at once
    memory_mib = 65536                 # of one guest
    vcpus = 16                         # of one guest

    [[image.source]]                   # whose signatures an image needs (docs/origin.md); the first match counts
    match = "https://cloud.example.org/images/*"
    require = "any"                    # or "all"
    keys = ["openpgp:0123456789abcdef0123456789abcdef01234567"]

Pure: text in, policy out; the date is given.
"""

from __future__ import annotations

import datetime
import enum
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from casemate.controls.catalogue.launch import catalogue, launch_controls
from casemate.controls.drift import DRIFT
from casemate.controls.model import AppliedWaiver, Control, Gate
from casemate.errors import Fault, SpecError
from casemate.image.origin import SourceRule, is_key

NO_POLICY = "no policy file"
WIDE_PUBLISH_CONTROL = "net.publish-wide"
UNUSABLE_UIDS = (65534, 65535)
UID_MAX = 2**31 - 1


class WidePublish(enum.StrEnum):
    """Whether a port published on a non-loopback address is only reported or stops the launch."""

    REPORT = "report"
    REFUSE = "refuse"


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the file's tables."""


class WaiverRules(_Table, frozen=True, kw_only=True):
    """Controls that a specification may waive, and for how many days from today at most."""

    allowed: tuple[str, ...] = ()
    max_days: Annotated[int, Meta(ge=1, le=3660)] = 366


class GateRules(_Table, frozen=True, kw_only=True):
    """Controls whose gate is ``launch`` on this host whatever the catalogue says."""

    launch: tuple[str, ...] = ()


class IdentityRules(_Table, frozen=True, kw_only=True):
    """Uids (and the same gids) for VMs that root starts.

    The default lies above what systemd gives to containers (it ends at 1879048191) and below 2**31, where programs
    that keep a uid in a signed integer go wrong: https://systemd.io/UIDS-GIDS/.
    """

    uid_first: Annotated[int, Meta(ge=1000, le=UID_MAX)] = 1_900_000_000
    uid_count: Annotated[int, Meta(ge=1, le=16_777_216)] = 65_536

    def uids(self) -> range:
        """The reserved uids."""
        return range(self.uid_first, self.uid_first + self.uid_count)


class NetworkRules(_Table, frozen=True, kw_only=True):
    """What may be published, and where."""

    wide_publish: WidePublish = WidePublish.REPORT


class LimitRules(_Table, frozen=True, kw_only=True):
    """Ceilings of this host; None: no ceiling but the machine's."""

    vms: Annotated[int, Meta(ge=0, le=65_536)] = 1024
    memory_mib: Annotated[int, Meta(ge=32)] | None = None
    vcpus: Annotated[int, Meta(ge=1)] | None = None


class ImageRules(_Table, frozen=True, kw_only=True):
    """Who must have signed images from where."""

    source: Annotated[tuple[SourceRule, ...], Meta(max_length=256)] = ()


class HostPolicy(_Table, frozen=True, kw_only=True):
    """The whole policy. ``source`` is the file it was read from, and not a key of the file."""

    source: str = NO_POLICY
    version: Literal[1] = 1
    waivers: WaiverRules = WaiverRules()
    gates: GateRules = GateRules()
    identity: IdentityRules = IdentityRules()
    network: NetworkRules = NetworkRules()
    limits: LimitRules = LimitRules()
    image: ImageRules = ImageRules()


class WaiverRequest(Protocol):
    """A waiver as a specification states it (`spec.model.Waiver` is one)."""

    @property
    def control(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def expires(self) -> datetime.date: ...


class RefusedWaiver(msgspec.Struct, frozen=True):
    """A waiver that does not count, and why."""

    control: str
    why: str


def parse_policy(text: str, source: str) -> HostPolicy:
    """Parse a policy file, closed: unknown keys, unknown controls and impossible ranges are faults.

    Raises:
        SpecError: every fault in the file, each with its path.
    """
    import tomllib  # most hosts have no policy file

    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecError(source, (Fault("", "policy.toml", str(error)),)) from None
    faults: list[Fault] = []
    tables = {field.name: field for field in msgspec.structs.fields(HostPolicy) if field.name != "source"}
    values: dict[str, Any] = {}
    if "version" not in document:
        faults.append(Fault("version", "policy.version", "missing; write version = 1"))
    for key, value in document.items():
        if key not in tables:
            faults.append(Fault(key, "policy.unknown-key", f"unknown; known are {', '.join(tables)}"))
        elif key == "version":
            values[key] = _convert("version", value, tables[key].type, faults)
        else:
            values[key] = _table(key, value, tables[key].type, faults)
    faults.extend(_meaning_faults(values))
    if faults:
        raise SpecError(source, tuple(faults))
    return HostPolicy(source=source, **values)


def effective_waivers(
    requests: Iterable[WaiverRequest], policy: HostPolicy, today: datetime.date
) -> tuple[tuple[AppliedWaiver, ...], tuple[RefusedWaiver, ...]]:
    """Split a specification's waivers into those that count and those that do not.

    The day in ``expires`` is the last one on which a waiver counts.
    """
    applied: dict[str, AppliedWaiver] = {}
    refused = []
    for request in requests:
        why = _why_refused(request, policy, today)
        if not why and request.control in applied:
            why = "this control is waived twice"
        if why:
            refused.append(RefusedWaiver(request.control, why))
        else:
            applied[request.control] = AppliedWaiver(request.control, request.reason, request.expires)
    return tuple(applied.values()), tuple(refused)


def controls_under(policy: HostPolicy, controls: Sequence[Control] | None = None) -> tuple[Control, ...]:
    """The launch controls with the gates that this host demands: gates are raised, never lowered."""
    raised = set(policy.gates.launch)
    if policy.network.wide_publish is WidePublish.REFUSE:
        raised.add(WIDE_PUBLISH_CONTROL)
    return tuple(
        msgspec.structs.replace(control, gate=Gate.LAUNCH) if control.id in raised else control
        for control in (launch_controls() if controls is None else controls)
    )


def _why_refused(request: WaiverRequest, policy: HostPolicy, today: datetime.date) -> str:
    if request.control not in {control.id for control in catalogue()}:
        return "there is no such control"
    if request.control == DRIFT.id:
        return "this control cannot be waived"
    if request.control not in policy.waivers.allowed:
        return f"the host's policy ({policy.source}) does not allow it; its owner can add it to [waivers] allowed"
    if request.expires < today:
        return f"it expired on {request.expires.isoformat()}"
    if (request.expires - today).days > policy.waivers.max_days:
        return f"it expires more than {policy.waivers.max_days} days from now, the limit of {policy.source}"
    return ""


def _convert(path: str, value: object, kind: Any, faults: list[Fault]) -> Any:
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        faults.append(Fault(path, "policy.value", str(error)))
        return None


def _table(name: str, table: object, kind: Any, faults: list[Fault]) -> Any:
    """One table of the file, key by key, so that all its faults are found; None when it has any."""
    if not isinstance(table, dict):
        faults.append(Fault(name, "policy.value", "is not a table"))
        return None
    before = len(faults)
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    values = {}
    for key, value in table.items():
        path = f"{name}.{key}"
        if key in fields:
            values[key] = _convert(path, value, fields[key], faults)
        else:
            faults.append(Fault(path, "policy.unknown-key", f"unknown; known are {', '.join(fields)}"))
    return kind(**values) if len(faults) == before else None


def _meaning_faults(values: dict[str, Any]) -> list[Fault]:
    """Faults that types cannot say."""
    faults = []
    known = {control.id for control in catalogue()}
    waivers, gates, identity = values.get("waivers"), values.get("gates"), values.get("identity")
    lists = (("waivers.allowed", waivers.allowed if waivers else ()), ("gates.launch", gates.launch if gates else ()))
    for path, ids in lists:
        for control, count in Counter(ids).items():
            if control not in known:
                faults.append(Fault(path, "policy.unknown-control", f"there is no control {control!r}"))
            elif count > 1:
                faults.append(Fault(path, "policy.repeated", f"{control} is named {count} times"))
    if waivers and DRIFT.id in waivers.allowed:
        faults.append(Fault("waivers.allowed", "policy.unwaivable", f"{DRIFT.id} cannot be waived"))
    for index, rule in enumerate(values["image"].source if values.get("image") else ()):
        faults.extend(
            Fault(f"image.source[{index}].keys", "policy.key", f"{key[:80]!r} is no key; see docs/origin.md")
            for key in rule.keys
            if not is_key(key)
        )
    if identity:
        uids = identity.uids()
        if uids[-1] > UID_MAX:
            faults.append(Fault("identity.uid_count", "policy.uids", f"the last uid {uids[-1]} is above {UID_MAX}"))
        faults.extend(
            Fault("identity.uid_first", "policy.uids", f"the range holds {uid}, which the kernel uses for nobody")
            for uid in UNUSABLE_UIDS
            if uid in uids
        )
    return faults
