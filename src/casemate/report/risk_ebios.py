"""The analysis in the five workshops of EBIOS Risk Manager (ANSSI), as a draft that a person completes.

Every value says where it comes from: **evidence** (read on the machine), **owner** (the context file) or **assumption**
(a default, or judgement written into the data). Nothing here is a claim that nobody has to look at.
"""

from __future__ import annotations

from typing import Any, Final

from casemate.controls.catalogue.all import all_controls
from casemate.report.ebios_words import words
from casemate.scenarios.context import Context
from casemate.scenarios.data import graph
from casemate.scenarios.labels import GRAVITIES, LEVELS, LIKELIHOODS, NODES, STATUSES, Language, pick, technique_titles
from casemate.scenarios.model import GOODS, Status, Variant
from casemate.scenarios.risk_model import RiskReport, ScenarioRisk, VmRisk

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
        "context": report.context,
        "assumed": list(report.assumed),
        "workshop_1": _scope(report, context, language),
        "workshop_2": _sources(report, context, language),
        "workshop_3": _strategic(report, language),
        "workshop_4": _operational(report, language),
        "workshop_5": _treatment(report, language),
    }


def _said(value: Any, origin: str) -> dict[str, Any]:
    return {"value": value, "from": origin}


def _scope(report: RiskReport, context: Context, language: Language) -> dict[str, Any]:
    """Workshop 1: scope, goods, feared events, security baseline."""
    origin = OWNER if context.origin else ASSUMPTION
    text = words(language)
    return {
        "scope": [{"name": vm.name, "kind": vm.kind, "host": vm.host, "from": EVIDENCE} for vm in report.vms],
        "goods": [
            {
                "good": pick(NODES[good], language),
                "feared_event": text.feared[good],
                "gravity": _said(GRAVITIES[context.goods[good]][0 if language == "en" else 1], origin),
            }
            for good in GOODS
        ],
        "baseline": [
            {
                "vm": vm.name,
                "paths": {pick(STATUSES[status], language): vm.counts[status.value] for status in Status},
                "from": EVIDENCE,
            }
            for vm in report.vms
        ],
    }


def _sources(report: RiskReport, context: Context, language: Language) -> list[dict[str, Any]]:
    """Workshop 2: pairs of risk source and objective, kept or set aside."""
    side = 0 if language == "en" else 1
    found: dict[tuple[str, str], list[Variant]] = {}
    for variant in graph().variants:
        found.setdefault((variant.source[side], variant.objective[side]), []).append(variant)
    rows = []
    for (source, objective), variants in found.items():
        trusted = [node for item in variants for node in item.starts if node in context.trust]
        kept = any(not all(start in context.trust for start in item.starts) for item in variants)
        reasons = [f"{pick(NODES[node], language)}: {context.trust[node]}" for node in dict.fromkeys(trusted)]
        rows.append(
            {
                "source": source,
                "objective": objective,
                "scenarios": [item.title if side == 0 else item.title_fr for item in variants],
                "kept": _said(kept, OWNER if context.origin and trusted else ASSUMPTION),
                "why": reasons,
            }
        )
    return rows


def _strategic(report: RiskReport, language: Language) -> list[dict[str, Any]]:
    """Workshop 3: from source to feared event, with the gravity of the worst VM."""
    rows = []
    for variant in graph().variants:
        items = _of(report, variant)
        if not items:
            continue
        gravity = max(item.gravity for _, item in items)
        rows.append(
            {
                "id": variant.id,
                "title": variant.title if language == "en" else variant.title_fr,
                "story": variant.story if language == "en" else variant.story_fr,
                "starts": [pick(NODES[node], language) for node in variant.starts],
                "harms": [pick(NODES[node], language) for node in variant.harms or variant.goals],
                "gravity": _said(pick(GRAVITIES[gravity], language), _origin_of(report)),
            }
        )
    return rows


def _operational(report: RiskReport, language: Language) -> list[dict[str, Any]]:
    """Workshop 4: the paths, with likelihood from evidence."""
    titles = technique_titles(language)
    rows = []
    for vm in report.vms:
        for item in vm.scenarios:
            if item.set_aside or not item.likelihood:
                continue
            rows.append(
                {
                    "vm": vm.name,
                    "scenario": item.id,
                    "title": _title(item, language),
                    "likelihood": _said(pick(LIKELIHOODS[item.likelihood], language), EVIDENCE),
                    "if_unknown_holds": _said(pick(LIKELIHOODS[item.likelihood_if_known], language), EVIDENCE),
                    "level": pick(LEVELS[item.level], language),
                    "paths": [
                        {
                            "status": pick(STATUSES[path.status], language),
                            "steps": [titles[name] for name in path.techniques],
                            "settle": list(path.settle),
                        }
                        for path in item.paths
                        if path.status not in (Status.CLOSED, Status.CONTAINED)
                    ],
                }
            )
    return rows


def _treatment(report: RiskReport, language: Language) -> list[dict[str, Any]]:
    """Workshop 5: the plan with its residual risks."""
    controls = {control.id: control for control in all_controls()}
    titles = technique_titles(language)
    text = words(language)
    return [
        {
            "vm": vm.name,
            "measures": [
                {
                    "control": fix.control,
                    "title": controls[fix.control].title if fix.control in controls else "",
                    "action": text.actions[fix.action],
                    "how": controls[fix.control].remedies.text() if fix.control in controls else "",
                    "cost": _said(fix.cost, ASSUMPTION),
                    "owner": _said("", OWNER),
                    "due": _said("", OWNER),
                }
                for fix in vm.fixes
                if fix.of_plan
            ],
            "after": [
                {
                    "title": _title(item, language),
                    "before": pick(LEVELS[item.level], language),
                    "after": pick(LEVELS[item.level_after], language),
                    "accepted": _said(item.accepted, OWNER),
                }
                for item in vm.scenarios
                if item.likelihood and not item.set_aside
            ],
            "residual": [
                {
                    "bug": titles[item.technique],
                    "likelihood": _said(pick(LIKELIHOODS[item.likelihood], language), EVIDENCE),
                    "held_by": list(item.holding),
                    "not_by": list(item.missing),
                    "reaches": [pick(NODES[node], language) for node in item.reaches],
                }
                for item in vm.residuals
            ],
        }
        for vm in report.vms
    ]


def _of(report: RiskReport, variant: Variant) -> list[tuple[VmRisk, ScenarioRisk]]:
    return [(vm, item) for vm in report.vms for item in vm.scenarios if item.id == variant.id and not item.set_aside]


def _origin_of(report: RiskReport) -> str:
    return ASSUMPTION if report.context == "defaults" else OWNER


def _title(item: ScenarioRisk, language: Language) -> str:
    variant = next(variant for variant in graph().variants if variant.id == item.id)
    return variant.title if language == "en" else variant.title_fr


def to_page(document: dict[str, Any]) -> str:
    """The draft as one self-contained page."""
    import jinja2

    from casemate.report.risk_html import page_policy, page_style

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("casemate.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = page_style()
    return environment.get_template("ebios.html.j2").render(
        document=document, text=words(document["language"]), style=style, policy=page_policy(style)
    )
