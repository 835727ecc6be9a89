"""The techniques and scenarios as data: each names controls that exist, is used, and can be told from the next."""

from __future__ import annotations

from itertools import pairwise

import pytest

from casemate.controls.catalogue.all import all_controls
from casemate.controls.model import AttackStep, Scenario, Subject
from casemate.facts.cve_table import table
from casemate.scenarios.conflicts import CONFLICTS, conflicts_of
from casemate.scenarios.costs import cost_of
from casemate.scenarios.data import graph
from casemate.scenarios.formula import Never, State, Value, controls_of, evaluate
from casemate.scenarios.labels import NODES
from casemate.scenarios.model import GOODS, POSITIONS, Graph, Nature, Node, Technique, Variant
from casemate.scenarios.search import MAX_PATHS, MAX_STEPS, MAX_VISITS, find_paths

CONTROLS = {control.id: control for control in all_controls()}
GRAPH = graph()


@pytest.mark.parametrize("technique", GRAPH.techniques, ids=lambda item: item.id)
def test_a_technique_names_what_exists(technique: Technique) -> None:
    named = {*controls_of(technique.closed_when), *technique.slows, *technique.contained_by}
    assert named <= CONTROLS.keys()
    assert not set(controls_of(technique.closed_when)) & set(technique.slows)
    assert set(technique.history) <= {cve.component for cve in table().cves}
    assert technique.target not in technique.sources
    assert set(technique.sources) <= set(POSITIONS)
    assert 1 <= technique.effort <= 4
    if technique.nature is not Nature.CONSEQUENCE:
        assert technique.steps
        assert technique.references


@pytest.mark.parametrize("technique", GRAPH.techniques, ids=lambda item: item.id)
def test_by_nature(technique: Technique) -> None:
    """A weakness can be closed; an unknown bug only where the thing itself can be away; a consequence never."""
    passing = dict.fromkeys(CONTROLS, State(Value.YES))
    closing = evaluate(technique.closed_when, passing)
    if technique.nature is Nature.WEAKNESS:
        assert closing is Value.YES
        assert evaluate(technique.closed_when, {}) is Value.UNKNOWN, "nothing known closes nothing"
    elif technique.nature is Nature.UNKNOWN_BUG:
        assert closing is Value.NO
        assert technique.contained_by
    else:
        assert isinstance(technique.closed_when, Never)


def test_every_technique_is_on_a_path() -> None:
    used = {index for variant in GRAPH.variants for row in find_paths(GRAPH, variant).rows for index in row}
    assert [item.id for index, item in enumerate(GRAPH.techniques) if index not in used] == []


def test_steps_scenarios_and_nodes_are_covered() -> None:
    assert {step for technique in GRAPH.techniques for step in technique.steps} == set(AttackStep)
    assert {variant.letter for variant in GRAPH.variants} == set(Scenario)
    assert len(GRAPH.variants) >= 12
    assert set(NODES) == set(Node) == {*POSITIONS, *GOODS}
    assert {goal for variant in GRAPH.variants for goal in (*variant.goals, *variant.harms)} >= set(GOODS)


@pytest.mark.parametrize("variant", GRAPH.variants, ids=lambda item: item.id)
def test_a_scenario_has_its_texts_and_paths(variant: Variant) -> None:
    for text in (variant.title, variant.title_fr, variant.story, variant.story_fr, *variant.source, *variant.objective):
        assert text
    assert variant.title != variant.title_fr
    assert all(node in GOODS for node in variant.harms or variant.goals)
    found = find_paths(GRAPH, variant)
    assert found.complete
    assert found.rows
    via = set(variant.via)
    assert {step for row in found.rows for step in (GRAPH.techniques[i].id for i in row)} >= via, "no idle entry in via"
    for row in found.rows:
        _check_path(row, variant)


def _check_path(row: tuple[int, ...], variant: Variant) -> None:
    steps = [GRAPH.techniques[index] for index in row]
    assert any(start in steps[0].sources for start in variant.starts)
    for before, after in pairwise(steps):
        assert before.target in after.sources
    assert steps[-1].target in variant.goals
    assert len({step.target for step in steps}) == len(steps) <= MAX_STEPS
    assert not variant.via or any(step.id in variant.via for step in steps)


def test_a_hostile_graph_is_searched_within_bounds() -> None:
    """Every position leads to every other one, tenfold: the search stops and says so."""
    techniques = tuple(
        Technique(
            id=f"{number}-{source}-{target}",
            title="",
            nature=Nature.WEAKNESS,
            sources=(source,),
            target=target,
            closed_when=Never("x"),
        )
        for number in range(10)
        for source in POSITIONS
        for target in (*POSITIONS, Node.HOST)
        if source is not target
    )
    variant = Variant(
        id="all",
        letter=Scenario.HOST,
        title="",
        title_fr="",
        story="",
        story_fr="",
        starts=(Node.NETWORK,),
        goals=(Node.HOST,),
        via=(techniques[-1].id,),
    )
    found = find_paths(Graph(techniques, (variant,)), variant)
    assert not found.complete
    assert len(found.rows) <= MAX_PATHS < MAX_VISITS


def test_names_twice_are_our_bug() -> None:
    variant = GRAPH.variants[0]
    for broken in ((GRAPH.techniques[:1] * 2, ()), (GRAPH.techniques, (variant, variant)), ((), (variant,))):
        with pytest.raises(RuntimeError):
            Graph(*broken)


def test_costs_come_from_the_catalogues_words() -> None:
    assert cost_of(CONTROLS["dev.no-floppy"]) >= 1
    assert cost_of(CONTROLS["cpu.smt"]) > cost_of(CONTROLS["vmm.tcp"])
    assert all(cost_of(control) >= 1 for control in CONTROLS.values())
    cheapest = {subject: min(cost_of(c) for c in CONTROLS.values() if c.subject is subject) for subject in Subject}
    assert cheapest[Subject.VM] < cheapest[Subject.HOST] < cheapest[Subject.EMULATOR]


def test_conflicts_name_controls_that_exist() -> None:
    assert {control for item in CONFLICTS for control in (*item.one, *item.other)} <= CONTROLS.keys()
    assert [item.id for item in conflicts_of(["cpu.smt"])] == ["smt-core-scheduling"]
    assert conflicts_of([]) == ()
