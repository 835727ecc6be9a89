"""What making a control pass costs, in points, when the owner has not said: from the catalogue's own words."""

from __future__ import annotations

from casemate.controls.model import Control, Subject

_NOTHING = frozenset({"", "none"})
_BASE = {Subject.VM: 1.0, Subject.HOST: 2.0, Subject.EMULATOR: 6.0, Subject.IMAGE: 3.0, Subject.GUEST: 2.0}
"""A VM is changed by a line of its definition; a host affects all its VMs; an emulator has to be built or replaced; an
image has to be made again; a guest has an owner of its own."""
PERFORMANCE = 3.0
FEATURES = 2.0


def cost_of(control: Control) -> float:
    """Points, 1 and up."""
    points = _BASE[control.subject]
    points += PERFORMANCE if control.cost.performance.casefold() not in _NOTHING else 0.0
    points += FEATURES if control.cost.features.casefold() not in _NOTHING else 0.0
    return points
