"""passt's arguments: explicit addresses, no way to the host's loopback, ports only from ``publish``."""

from __future__ import annotations

from casemate.plan.model import HelperPlan
from casemate.spec.model import Spec


def plan_passt(spec: Spec, passt: str) -> HelperPlan:
    """The helper that gives a VM its network."""
    raise NotImplementedError
