"""The audit of a guest from its image: files copied out of the cell in one boot, facts, controls, findings."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from casemate.cell.guest_tree import guest_root
from casemate.controls.catalogue.guest_image_audit import CONTROLS
from casemate.controls.judge import judge
from casemate.controls.model import Finding
from casemate.facts.fact import Facts, Stage
from casemate.facts.guest_accounts import collect_accounts
from casemate.facts.guest_packages import collect_packages
from casemate.facts.guest_system import collect_system

if TYPE_CHECKING:
    from casemate.cell.cell import Cell
    from casemate.facts.root import Root


def guest_facts(cell: Cell, name: str, lists: Root | None = None) -> tuple[Facts, Root]:
    """Every fact of the guest, and the tree that they were read from.

    Args:
        lists: where security lists of the distribution are, when not in the guest.

    Raises:
        ImageError: no system in the image. VmError: the cell died or lied.
    """
    root = guest_root(cell, name, time.time())
    return facts_of(root, lists), root


def facts_of(root: Root, lists: Root | None = None) -> Facts:
    """The facts of a guest's tree."""
    return {**collect_system(root), **collect_accounts(root), **collect_packages(root, lists)}


def findings_of(facts: Facts) -> tuple[Finding, ...]:
    """What the guest's controls say of them."""
    return judge(CONTROLS, facts, stage=Stage.OBSERVED)
