"""One minimal change to a good host per host control makes it fail, and it alone; format: tests/support/host_tree.

The whole host is written once; each case changes a few files, collects every fact of the host again and judges.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import host_tree
from tests.support.host_tree import Mutation

from casemate.controls.judge import judge
from casemate.controls.model import Verdict
from casemate.facts.fact import Facts, Stage

LAYERS = host_tree.layers()
CONTROLS = tuple(control for layer in LAYERS for control in layer.controls)
TREE = host_tree.merged((host_tree.BASE, *(layer.passing for layer in LAYERS)))
COLLECTORS = tuple(dict.fromkeys(collect for layer in LAYERS for collect in layer.collectors))
FACTS: Facts = {name: fact for layer in LAYERS for name, fact in layer.facts.items()}
FAILURES = [
    (control_id, change) for layer in LAYERS for control_id, change in (*layer.mutations.items(), *layer.more_failures)
]

CONTEXT = {control_id: change for layer in LAYERS for control_id, change in layer.context.items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("host")
    host_tree.write_tree(path, TREE)
    return path


def verdicts(base: Path, change: Mutation | None = None) -> dict[str, Verdict]:
    """The verdict of every host control on the host with ``change``."""
    files = change.files if change else {}
    with host_tree.mutated(base, TREE, files):
        root = host_tree.tree_root(base, TREE, files)
        facts: Facts = {}
        for collect in COLLECTORS:
            facts |= collect(root)
    facts |= FACTS | (change.facts if change else {})
    return {finding.control_id: finding.verdict for finding in judge(CONTROLS, facts, stage=Stage.OBSERVED)}


@pytest.fixture(scope="module")
def good(base: Path) -> dict[str, Verdict]:
    return verdicts(base)


def test_there_are_layers() -> None:
    assert "tree_hardware" in {layer.name for layer in LAYERS}
    assert len(CONTROLS) == len({control.id for control in CONTROLS})


def test_every_control_has_a_mutation() -> None:
    for layer in LAYERS:
        assert {control.id for control in layer.controls} == set(layer.mutations), layer.name


@pytest.mark.parametrize("control_id", [control.id for control in CONTROLS])
def test_the_good_host_passes(good: dict[str, Verdict], control_id: str) -> None:
    if control_id in CONTEXT:
        assert good[control_id] is Verdict.NOT_APPLICABLE
    else:
        assert good[control_id] is Verdict.PASS


@pytest.mark.parametrize("control_id", CONTEXT)
def test_a_control_that_does_not_apply_there_passes_on_its_own_good_host(base: Path, control_id: str) -> None:
    assert verdicts(base, CONTEXT[control_id])[control_id] is Verdict.PASS


@pytest.mark.parametrize(("control_id", "change"), FAILURES, ids=lambda v: v if isinstance(v, str) else "")
def test_one_change_flips_exactly_that_control(
    base: Path, good: dict[str, Verdict], control_id: str, change: Mutation
) -> None:
    before = good
    if control_id in CONTEXT:
        context = CONTEXT[control_id]
        before = verdicts(base, context)
        change = Mutation(
            {**context.files, **change.files}, {**context.facts, **change.facts}, change.also, change.other
        )
    found = verdicts(base, change)
    changed = {name: verdict for name, verdict in found.items() if verdict is not before[name]}
    assert changed == {**dict.fromkeys((control_id, *change.also), Verdict.FAIL), **change.other}


@pytest.mark.parametrize(
    ("control_id", "change", "verdict"),
    [
        (control_id, change, verdict)
        for layer in LAYERS
        for changes, verdict in ((layer.not_applicable, Verdict.NOT_APPLICABLE), (layer.unknown, Verdict.UNKNOWN))
        for control_id, change in changes.items()
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_does_not_apply_or_cannot_be_known(
    base: Path, control_id: str, change: Mutation, verdict: Verdict
) -> None:
    assert verdicts(base, change)[control_id] is verdict


def test_every_condition_has_a_case_in_which_it_does_not_hold() -> None:
    for layer in LAYERS:
        conditional = {control.id for control in layer.controls if control.applies_when}
        assert conditional == set(layer.not_applicable), layer.name


def test_a_mutation_is_put_back(base: Path, good: dict[str, Verdict]) -> None:
    assert verdicts(base) == good
