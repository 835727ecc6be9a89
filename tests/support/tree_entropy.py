"""The host's random numbers; format: `tests/support/host_tree`."""

from __future__ import annotations

from tests.support.host_tree import Content, File, Mutation

from casemate.controls.catalogue.provision_audit import CONTROLS as ALL
from casemate.controls.model import Subject
from casemate.facts.entropy import collect_entropy

CONTROLS = tuple(control for control in ALL if control.subject is Subject.HOST)
COLLECTORS = (collect_entropy,)

_SEED = "/var/lib/systemd/random-seed"
_HWRNG = "/sys/class/misc/hw_random/rng_current"

PASSING: dict[str, Content] = {
    "/proc/sys/kernel/random/entropy_avail": "256\n",
    "/proc/sys/kernel/random/poolsize": "256\n",
    _HWRNG: "tpm-rng-0\n",
    _SEED: File("s" * 32, 0o600),
    "/usr/bin/env": "program",
}

MUTATIONS: dict[str, Mutation | dict[str, Content]] = {
    "ent.host-ready": {"/proc/sys/kernel/random/entropy_avail": "255\n"},
    "ent.host-sources": {_HWRNG: "none\n"},
    "ent.host-seed": {_SEED: None},
    "ent.host-daemons": {"/usr/sbin/haveged": "program"},
}

MORE_FAILURES: tuple[tuple[str, Mutation | dict[str, Content]], ...] = (
    ("ent.host-seed", {_SEED: File("s" * 32, 0o640)}),
    ("ent.host-seed", {_SEED: File("s" * 32, 0o600, uid=1000)}),
    ("ent.host-seed", {_SEED: File("s" * 31, 0o600)}),
    ("ent.host-daemons", {"/usr/bin/pollinate": "program"}),
)

UNKNOWN: dict[str, Mutation | dict[str, Content]] = {
    "ent.host-ready": {"/proc/sys/kernel/random/entropy_avail": "many\n"},
}
