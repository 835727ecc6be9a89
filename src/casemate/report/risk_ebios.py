"""The analysis in the five workshops of EBIOS Risk Manager (ANSSI), as a draft that a person completes.

Every value says where it comes from: **evidence** (read on the machine), **owner** (the context file) or **assumption**
(a default, or judgement written into the data). Nothing here is a claim that nobody has to look at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from casemate.controls.catalogue.all import all_controls
from casemate.report.control_titles_fr_host import HOST_TITLES_FR
from casemate.report.control_titles_fr_vm import VM_TITLES_FR
from casemate.report.ebios_words import words
from casemate.scenarios.context import DEFAULT_TRUST, NO_FILE, Context
from casemate.scenarios.data import graph
from casemate.scenarios.labels import GRAVITIES, LEVELS, LIKELIHOODS, NODES, STATUSES, Language, pick, technique_titles
from casemate.scenarios.model import GOODS, Node, Status, Variant
from casemate.scenarios.risk_model import Action, RiskReport, ScenarioRisk, VmRisk

EBIOS_SCHEMA: Final = "casemate.ebios/1"
EVIDENCE: Final = "evidence"
OWNER: Final = "owner"
ASSUMPTION: Final = "assumption"


def ebios_document(report: RiskReport, context: Context, language: Language) -> dict[str, Any]:
    """The five workshops as plain data; `ebios_markdown` and the page show this and nothing else.

    Each value that was decided by somebody is ``{"value": …, "from": "evidence" | "owner" | "assumption"}``.
    """
    return {
        "schema": EBIOS_SCHEMA,
        "language": language,
        "tool_version": report.tool_version,
        "audited": report.audited,
        "context": words(language).no_context if report.context == NO_FILE else report.context,
        "assumed": list(report.assumed),
        "workshop_1": _scope(report, context, language),
        "workshop_2": _sources(context, language),
        "workshop_3": _strategic(report, context, language),
        "workshop_4": _operational(report, language),
        "workshop_5": _treatment(report, context, language),
    }


def _said(value: Any, origin: str) -> dict[str, Any]:
    return {"value": value, "from": origin}


def _origin(context: Context, goods: Iterable[Node]) -> str:
    """Of a gravity: the owner's where his file says it of each of these goods."""
    return OWNER if all(good in context.stated for good in goods) else ASSUMPTION


def _scope(report: RiskReport, context: Context, language: Language) -> dict[str, Any]:
    """Workshop 1: scope, business values, supporting assets, feared events, security baseline."""
    text = words(language)
    return {
        "scope": [
            {"name": vm.name, "kind": text.kinds.get(vm.kind, vm.kind), "host": vm.host, "from": EVIDENCE}
            for vm in report.vms
        ],
        "values": [
            {
                "value": _value(good, language) + (f" ({pattern})" if pattern else ""),
                "feared_event": text.feared[good],
                "gravity": _said(pick(GRAVITIES[gravities[good]], language), origin),
            }
            for pattern, gravities, origin in _gravities(context)
            for good in GOODS
            if good in gravities
        ],
        "assets": list(_assets(report, language)),
        "references": _said(text.references, ASSUMPTION),
        "baseline": [
            {
                "vm": vm.name,
                "paths": {pick(STATUSES[status], language): vm.counts[status.value] for status in Status},
                "controls": dict(zip(text.standings, map(len, standings), strict=True)),
                "gaps": sorted(standings[0]),
                "from": EVIDENCE,
            }
            for vm in report.vms
            for standings in [_standings(vm)]
        ],
    }


def _value(good: Node, language: Language) -> str:
    """The host is no value of its own but carries those of all its VMs."""
    return words(language).all_vms if good is Node.HOST else pick(NODES[good], language)


def _gravities(context: Context) -> Iterator[tuple[str, dict[Node, int], str]]:
    """(pattern of VMs, gravity by good, who says so): the owner's exceptions last."""
    for good in GOODS:
        yield "", {good: context.goods[good]}, _origin(context, [good])
    for pattern, own in context.goods_of:
        yield pattern, own, OWNER


def _assets(report: RiskReport, language: Language) -> Iterator[dict[str, Any]]:
    """What carries the values: hosts and VMs that were audited, and what each host of VMs has besides."""
    text = words(language)
    everything = [pick(NODES[good], language) for good in GOODS if good is not Node.HOST]
    own = [pick(NODES[good], language) for good in (Node.VM_DATA, Node.SECRETS)]
    rows: list[tuple[str, str, list[str], str]] = []
    for host in dict.fromkeys(vm.host for vm in report.vms):
        rows.append((host, "host", everything, EVIDENCE))
        rows.append((host, "vmm", everything, ASSUMPTION))
        rows.append((host, "emulator", everything, ASSUMPTION))
        rows.append((host, "images", own, ASSUMPTION))
    rows += [(vm.name, "vm", own, EVIDENCE) for vm in report.vms if vm.kind != "host"]
    for name, kind, carries, origin in rows:
        yield {
            "asset": f"{text.asset_kinds[kind]} {name}",
            "carries": carries,
            "owner": _said("", OWNER),
            "from": origin,
        }


def _standings(vm: VmRisk) -> tuple[set[str], set[str], set[str], set[str]]:
    """Controls that paths depend on: those that do not hold, are unknown, on paper, hold."""
    found: tuple[set[str], set[str], set[str], set[str]] = (set(), set(), set(), set())
    for item in vm.techniques:
        for place, names in zip(found, (item.failing, item.unknown, item.on_paper, item.passing), strict=True):
            place.update(names)
    return found


def _why_trusted(node: Node, context: Context, language: Language) -> str:
    """The owner's reason in his words; the default one in the reader's language."""
    reason = context.trust[node]
    return words(language).trust_default if reason == DEFAULT_TRUST.get(node) else reason


def _sources(context: Context, language: Language) -> list[dict[str, Any]]:
    """Workshop 2: pairs of risk source and objective, kept or set aside."""
    side = 0 if language == "en" else 1
    colon = words(language).colon
    found: dict[tuple[str, str], list[Variant]] = {}
    for variant in graph().variants:
        found.setdefault((variant.source[side], variant.objective[side]), []).append(variant)
    rows = []
    for (source, objective), variants in found.items():
        trusted = dict.fromkeys(node for item in variants for node in item.starts if node in context.trust)
        kept = any(not all(start in context.trust for start in item.starts) for item in variants)
        rows.append(
            {
                "source": source,
                "objective": objective,
                "scenarios": [pick((item.title, item.title_fr), language) for item in variants],
                "relevance": _said("", OWNER),
                "kept": _said(kept, OWNER if context.states_trust and trusted else ASSUMPTION),
                "why": [
                    f"{pick(NODES[node], language)}{colon}{_why_trusted(node, context, language)}" for node in trusted
                ],
            }
        )
    return rows


def _strategic(report: RiskReport, context: Context, language: Language) -> dict[str, Any]:
    """Workshop 3: the stakeholders, and the way from source to feared event, with the gravity of the worst VM."""
    rows = []
    for variant in graph().variants:
        items = _of(report, variant)
        if not items:
            continue
        harms = variant.harms or variant.goals
        gravity = max(item.gravity for _, item in items)
        rows.append(
            {
                "id": variant.id,
                "title": pick((variant.title, variant.title_fr), language),
                "story": pick((variant.story, variant.story_fr), language),
                "starts": [pick(NODES[node], language) for node in variant.starts],
                "harms": [pick(NODES[node], language) for node in harms],
                "gravity": _said(pick(GRAVITIES[gravity], language), _origin(context, harms)),
            }
        )
    return {"stakeholders": list(_stakeholders(context, language)), "scenarios": rows}


def _stakeholders(context: Context, language: Language) -> Iterator[dict[str, Any]]:
    for node, name in words(language).people.items():
        inside = (Node.GUEST_USER, Node.GUEST_ROOT, Node.GUEST_KERNEL) if node is Node.GUEST_USER else (node,)
        through = [item for item in graph().variants if set(item.starts) & set(inside)]
        yield {
            "stakeholder": name,
            "scenarios": [pick((item.title, item.title_fr), language) for item in through],
            "trusted": _said(node in context.trust, OWNER if context.states_trust else ASSUMPTION),
            "why": _why_trusted(node, context, language) if node in context.trust else "",
            "threat": _said("", OWNER),
        }


def _operational(report: RiskReport, language: Language) -> list[dict[str, Any]]:
    """Workshop 4: the paths, with their likelihood.

    It is evidence where the likeliest path rests on what was found; where that path hangs on what nobody knows, or on
    a what-if, it is an assumption.
    """
    titles = technique_titles(language)
    rows = []
    for vm in report.vms:
        for item in vm.scenarios:
            if item.set_aside or not item.likelihood:
                continue
            found = EVIDENCE if not report.assumed else ASSUMPTION
            sure = found if item.likelihood == item.likelihood_if_known else ASSUMPTION
            rows.append(
                {
                    "vm": vm.name,
                    "scenario": item.id,
                    "title": _title(item, language),
                    "likelihood": _said(pick(LIKELIHOODS[item.likelihood], language), sure),
                    "if_unknown_holds": _said(pick(LIKELIHOODS[item.likelihood_if_known], language), found),
                    "level": _said(pick(LEVELS[item.level], language), ASSUMPTION),
                    "paths": [
                        {
                            "status": pick(STATUSES[path.status], language),
                            "steps": [titles[name] for name in path.techniques],
                            "settle": list(path.settle),
                            "from": found,
                        }
                        for path in item.paths
                        if path.status not in (Status.CLOSED, Status.CONTAINED)
                    ],
                }
            )
    return rows


def _treatment(report: RiskReport, context: Context, language: Language) -> list[dict[str, Any]]:
    """Workshop 5: the plan, what is known to be wrong first, with its residual risks."""
    controls = {control.id: control for control in all_controls()}
    measures = control_titles(language)
    titles = technique_titles(language)
    text = words(language)
    return [
        {
            "vm": vm.name,
            "measures": [
                {
                    "control": fix.control,
                    "title": measures.get(fix.control, ""),
                    "action": text.actions[fix.action],
                    "how": controls[fix.control].remedies.text() if fix.control in controls else "",
                    "cost": _said(fix.cost, OWNER if fix.control in context.costs else ASSUMPTION),
                    "owner": _said("", OWNER),
                    "due": _said("", OWNER),
                }
                for fix in sorted(vm.fixes, key=lambda fix: _FIRST.index(fix.action))
                if fix.of_plan
            ],
            "after": [
                {
                    "title": _title(item, language),
                    "before": _said(pick(LEVELS[item.level], language), ASSUMPTION),
                    "after": _said(pick(LEVELS[item.level_after], language), ASSUMPTION),
                    "accepted": _said(item.accepted, OWNER),
                }
                for item in vm.scenarios
                if item.likelihood and not item.set_aside
            ],
            "residual": [
                {
                    "bug": titles[item.technique],
                    "likelihood": _said(pick(LIKELIHOODS[item.likelihood], language), ASSUMPTION),
                    "held_by": list(item.holding),
                    "not_by": list(item.missing),
                    "reaches": [pick(NODES[node], language) for node in item.reaches],
                    "from": EVIDENCE if not report.assumed else ASSUMPTION,
                }
                for item in vm.residuals
            ],
        }
        for vm in report.vms
    ]


def control_titles(language: Language) -> dict[str, str]:
    """Titles of all controls by id."""
    if language == "en":
        return {control.id: control.title for control in all_controls()}
    return HOST_TITLES_FR | VM_TITLES_FR


_FIRST: Final = (Action.FIX, Action.OBSERVE, Action.VERIFY)


def _of(report: RiskReport, variant: Variant) -> list[tuple[VmRisk, ScenarioRisk]]:
    return [(vm, item) for vm in report.vms for item in vm.scenarios if item.id == variant.id and not item.set_aside]


def _title(item: ScenarioRisk, language: Language) -> str:
    variant = next(variant for variant in graph().variants if variant.id == item.id)
    return pick((variant.title, variant.title_fr), language)


def to_page(document: dict[str, Any]) -> str:
    """The draft as one self-contained page."""
    from casemate.report.pages import rendered
    from casemate.report.risk_html import page_policy, page_style

    style = page_style("ebios.css")
    return rendered(
        "ebios.html.j2",
        {"document": document, "text": words(document["language"]), "style": style, "policy": page_policy(style)},
    )
