"""Every measure leads to controls that exist, or says why it cannot."""

from __future__ import annotations

from casemate.controls.catalogue.all import all_controls
from casemate.controls.frameworks import FRAMEWORKS


def test_every_measure_has_existing_controls_or_a_reason() -> None:
    known = {control.id for control in all_controls()}
    assert len(FRAMEWORKS["gcp7"]) == 7
    for measures in FRAMEWORKS.values():
        for measure in measures:
            assert bool(measure.controls) != bool(measure.cannot), measure.title
            assert set(measure.controls) <= known, measure.title
