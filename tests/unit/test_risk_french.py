"""The EBIOS RM draft in French: its terms, its typography, no title left in English."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
from tests.unit.test_risk_examples import risk, states
from tests.unit.test_risk_reports import CONTROLS, rendered, report

from casemate import risk_reports
from casemate.report.control_titles_fr_host import HOST_TITLES_FR
from casemate.report.control_titles_fr_vm import VM_TITLES_FR
from casemate.report.ebios_words import words
from casemate.report.risk_ebios import control_titles
from casemate.scenarios.context import NO_FILE
from casemate.scenarios.data import graph
from casemate.scenarios.labels import technique_titles
from casemate.scenarios.risk_model import RiskReport

GOLDEN = Path(__file__).parents[1] / "golden"


def test_terms_and_spaces() -> None:
    """The terms of EBIOS RM, and no colon, semicolon or question mark without its no-break space."""
    text = rendered("ebios-md", language="fr")
    for term in ("valeurs métier", "biens supports", "événements redoutés", "socle de sécurité", "sources de risque",
                 "objectifs visés", "parties prenantes", "scénarios stratégiques", "scénarios opérationnels",
                 "modes opératoires", "vraisemblance", "mesure", "risques résiduels"):  # fmt: skip
        assert term in text.lower(), term
    ours = [*vars_of(words("fr")), *technique_titles("fr").values(), *control_titles("fr").values(),
            *(v.title_fr for v in graph().variants), *(v.story_fr for v in graph().variants)]  # fmt: skip
    assert [line for line in ours if re.search(r"[^\s\u00a0][:;?!](\s|$)", line)] == []
    assert [line for line in ours if re.search(r"'\s|\s'", line)] == []
    assert "&amp;lt;" not in text, "escaped once"
    assert "xa0" not in text


def vars_of(found: Any) -> list[str]:
    """Every text in a struct of words."""
    values = [getattr(found, name) for name in found.__struct_fields__]
    flat: list[str] = []
    for value in values:
        flat += value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
    return flat


def plain_report() -> RiskReport:
    """One VM with things to fix; the owner has said nothing."""
    vm = risk(states(fail=["cpu.ksm", "cpu.ksm-host", "dev.no-floppy", "proc.uid"]))
    return msgspec.structs.replace(report(), vms=(vm,), context=NO_FILE, assumed=(), notes=())


def test_spaces_of_what_is_joined() -> None:
    """Up to the measures, whose remedies are English."""
    text = risk_reports.render(plain_report(), "ebios-md", language="fr").partition("## Atelier 5")[0]
    assert "Contexte\u00a0: valeurs par défaut" in text
    assert "\u00a0; Pages mémoire fusionnées" in text
    assert [line for line in text.splitlines() if re.search(r"\w[:;] ", line)] == []


def test_no_english_titles() -> None:
    english = {variant.title for variant in graph().variants} | set(technique_titles("en").values())
    english |= set(control_titles("en").values())
    text = rendered("ebios-md", language="fr")
    assert "Atelier 5" in text
    assert [title for title in english if title in text] == []
    assert technique_titles("fr").keys() == technique_titles("en").keys()


def test_every_control_has_a_title() -> None:
    """Each control of the catalogue one, no other id, none left in English, none given to two controls."""
    french, english = control_titles("fr"), control_titles("en")
    assert HOST_TITLES_FR.keys() & VM_TITLES_FR.keys() == set()
    assert french.keys() == english.keys() == set(CONTROLS)
    assert [name for name in CONTROLS if french[name] in english.values() or not french[name].strip()] == []
    assert len(set(french.values())) == len(french)


def test_french_titles_are_those_of_the_english_ones_of_now() -> None:
    """Which English title each French one was made from stands in a file: a title that changes takes both along."""
    made_from = json.loads((GOLDEN / "translated-titles.json").read_text())
    assert made_from.keys() == set(CONTROLS)
    now, french = control_titles("en"), control_titles("fr")
    changed = {name: (made_from[name], now[name], french[name]) for name in CONTROLS if made_from[name] != now[name]}
    assert changed == {}, "(was, is, French): mend report/control_titles_fr_*.py, then the golden file"


def test_measures_have_their_titles_in_every_form() -> None:
    document = json.loads(risk_reports.render(plain_report(), "ebios-json", language="fr"))
    measures = {row["control"]: row["title"] for row in document["workshop_5"][0]["measures"]}
    assert len(measures) > 1
    assert measures == {name: control_titles("fr")[name] for name in measures}
    for form in ("ebios-md", "ebios-html"):
        shown = risk_reports.render(plain_report(), form, language="fr").replace("&#39;", "'")
        assert [title for title in measures.values() if title not in shown] == []
