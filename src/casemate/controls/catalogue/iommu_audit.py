"""Layer IOMMU: what an audit asks about the host, beyond what a launch asks."""

from __future__ import annotations

from casemate.controls.model import Control

CONTROLS: tuple[Control, ...] = ()
