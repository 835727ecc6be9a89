"""The words of the EBIOS RM export, in English and French."""

from __future__ import annotations

from typing import Final

import msgspec

from casemate.scenarios.labels import Language
from casemate.scenarios.model import Node
from casemate.scenarios.risk_model import Action


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """One language."""

    title: str
    lead: str
    audited: str
    context: str
    what_if: str
    workshops: tuple[str, str, str, str, str]
    origins: dict[str, str]
    yes_no: tuple[str, str]
    feared: dict[Node, str]
    actions: dict[Action, str]
    scope: str
    kind: str
    host: str
    goods: str
    good: str
    feared_event: str
    gravity: str
    baseline: str
    source: str
    objective: str
    scenarios: str
    kept: str
    why: str
    scenario: str
    story: str
    start: str
    harm: str
    likelihood: str
    if_known: str
    level: str
    settle: str
    nothing: str
    action: str
    control: str
    measure: str
    how: str
    cost: str
    responsible: str
    due: str
    after: str
    before: str
    later: str
    accepted: str
    residual: str
    held: str
    reach: str


_ENGLISH: Final = Words(
    title="Risk analysis of virtual machines (EBIOS Risk Manager, draft)",
    lead="Draft made from evidence, to be completed by the owner. Each value says where it comes from: evidence (read "
    "on the machine), owner (his context file) or assumption (a default, to be checked).",
    audited="Audited",
    context="Context",
    what_if="What if",
    workshops=(
        "Workshop 1: scope, goods, feared events, security baseline",
        "Workshop 2: risk sources and their objectives",
        "Workshop 3: strategic scenarios",
        "Workshop 4: operational scenarios",
        "Workshop 5: treatment of the risk",
    ),
    origins={"evidence": "evidence", "owner": "owner", "assumption": "assumption"},
    yes_no=("yes", "no"),
    feared={
        Node.VM_DATA: "data of a VM are read, changed or destroyed",
        Node.OTHER_VM_DATA: "data of the other VMs are read or changed from one of them",
        Node.HOST: "the host is taken over, and with it every VM",
        Node.SECRETS: "images, keys or secrets are stolen",
        Node.AVAILABILITY: "the VMs stand still",
        Node.EVIDENCE: "nobody can tell any more what happened",
    },
    actions={Action.FIX: "fix", Action.OBSERVE: "look at, then fix if needed", Action.VERIFY: "verify on the live VM"},
    scope="Scope",
    kind="kind",
    host="host",
    goods="Goods and feared events",
    good="good",
    feared_event="feared event",
    gravity="gravity",
    baseline="Baseline: attack paths by state",
    source="risk source",
    objective="objective",
    scenarios="scenarios",
    kept="kept",
    why="reason",
    scenario="scenario",
    story="story",
    start="starts",
    harm="harms",
    likelihood="Likelihood",
    if_known="if everything unknown turns out well",
    level="Risk",
    settle="settled by observing",
    nothing="nothing",
    action="what",
    control="control",
    measure="measure",
    how="how",
    cost="cost (points)",
    responsible="responsible",
    due="due",
    after="Risk before and after the plan",
    before="before",
    later="after",
    accepted="accepted",
    residual="Residual risks: bugs that nobody knows yet",
    held="held by",
    reach="then in reach",
)
_FRENCH: Final = Words(
    title="Analyse de risque de machines virtuelles (EBIOS Risk Manager, projet)",
    lead="Projet établi à partir de constats, à compléter par le responsable. Chaque valeur dit son origine: constat "
    "(lu sur la machine), responsable (son fichier de contexte) ou hypothèse (valeur par défaut, à vérifier).",
    audited="Audit du",
    context="Contexte",
    what_if="Et si",
    workshops=(
        "Atelier 1: périmètre, biens, événements redoutés, socle de sécurité",
        "Atelier 2: sources de risque et objectifs visés",
        "Atelier 3: scénarios stratégiques",
        "Atelier 4: scénarios opérationnels",
        "Atelier 5: traitement du risque",
    ),
    origins={"evidence": "constat", "owner": "responsable", "assumption": "hypothèse"},
    yes_no=("oui", "non"),
    feared={
        Node.VM_DATA: "les données d'une VM sont lues, modifiées ou détruites",
        Node.OTHER_VM_DATA: "les données des autres VM sont lues ou modifiées depuis l'une d'elles",
        Node.HOST: "l'hôte est compromis, et avec lui toutes les VM",
        Node.SECRETS: "des images, clés ou secrets sont volés",
        Node.AVAILABILITY: "les VM sont à l'arrêt",
        Node.EVIDENCE: "nul ne peut plus dire ce qui s'est passé",
    },
    actions={
        Action.FIX: "corriger",
        Action.OBSERVE: "examiner, puis corriger au besoin",
        Action.VERIFY: "vérifier sur la VM en marche",
    },
    scope="Périmètre",
    kind="type",
    host="hôte",
    goods="Biens et événements redoutés",
    good="bien",
    feared_event="événement redouté",
    gravity="gravité",
    baseline="Socle: chemins d'attaque par état",
    source="source de risque",
    objective="objectif visé",
    scenarios="scénarios",
    kept="retenu",
    why="motif",
    scenario="scénario",
    story="récit",
    start="départs",
    harm="atteint",
    likelihood="Vraisemblance",
    if_known="si tout ce qui est inconnu se révèle en ordre",
    level="Risque",
    settle="tranché par l'observation de",
    nothing="rien",
    action="quoi",
    control="contrôle",
    measure="mesure",
    how="comment",
    cost="coût (points)",
    responsible="responsable",
    due="échéance",
    after="Risque avant et après le plan",
    before="avant",
    later="après",
    accepted="accepté",
    residual="Risques résiduels: failles que nul ne connaît encore",
    held="contenu par",
    reach="ensuite à portée",
)


def words(language: Language) -> Words:
    """The words of a language."""
    return _ENGLISH if language == "en" else _FRENCH
