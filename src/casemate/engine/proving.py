"""From what the user names to a proof, and from a proof to the document that is printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from casemate.engine import prove, prove_report, state
from casemate.engine.paths import Paths
from casemate.engine.policy_file import read_policy
from casemate.engine.state import Definition
from casemate.engine.target import BUILTIN
from casemate.errors import InputError
from casemate.jail.policy import Layer
from casemate.spec.model import Spec


def prove_target(
    target: str,
    load: Callable[[], Spec],
    paths: Paths,
    without: str | None,
    quick: bool,
    policy_file: str | None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Prove a VM's wall if ``target`` names one, else that of the specification that ``load`` gives.

    Raises:
        CasemateError: as `prove.prove_spec` and ``load`` do.
    """
    layer = Layer(without) if without is not None else None
    definition = _definition(paths, target)
    chosen = policy_file or (definition.policy_file if definition else None)
    policy = read_policy(Path(chosen) if chosen else None)

    def progress(done: int, total: int, group: str) -> None:
        report(f"{done} of {total}: {group}")

    if definition is not None:
        proof = prove.prove_vm(paths, definition, policy, without=layer, quick=quick, progress=progress)
    else:
        proof = prove.prove_spec(paths, load(), policy, without=layer, quick=quick, progress=progress)
    groups = [
        {"group": group, "tried": tried, "reached": reached, "stopped_by": stopped}
        for group, tried, reached, stopped in prove_report.rows(proof)
    ]
    return {**prove_report.document(proof), "groups": groups}


def _definition(paths: Paths, target: str) -> Definition | None:
    if target == BUILTIN or "/" in target:
        return None
    try:
        return state.resolve(paths, target)
    except InputError:
        return None
