"""The words of the EBIOS RM export, in English and French."""

from __future__ import annotations

from typing import Final

import msgspec

from casemate.scenarios.labels import Language
from casemate.scenarios.model import Node
from casemate.scenarios.risk_model import Action


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """One language."""

    colon: str
    semicolon: str
    title: str
    lead: str
    about_likelihood: str
    about_remedies: str
    audited: str
    context: str
    no_context: str
    what_if: str
    workshops: tuple[str, str, str, str, str]
    origins: dict[str, str]
    origin: str
    yes_no: tuple[str, str]
    feared: dict[Node, str]
    actions: dict[Action, str]
    scope: str
    kind: str
    host: str
    kinds: dict[str, str]
    values: str
    value: str
    all_vms: str
    feared_event: str
    assets: str
    asset: str
    carries: str
    asset_kinds: dict[str, str]
    gravity: str
    baseline: str
    paths: str
    controls: str
    standings: tuple[str, str, str, str]
    gaps: str
    references: str
    source: str
    objective: str
    scenarios: str
    kept: str
    relevance: str
    why: str
    stakeholders: str
    stakeholder: str
    trusted: str
    threat: str
    people: dict[Node, str]
    trust_default: str
    strategic: str
    scenario: str
    story: str
    start: str
    harm: str
    likelihood: str
    if_known: str
    level: str
    path: str
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
    colon=": ",
    semicolon="; ",
    title="Risk analysis of virtual machines (EBIOS Risk Manager, draft)",
    lead="Draft made from evidence, to be completed by the owner. Each value says where it comes from: evidence (read "
    "on the machine), owner (his context file) or assumption (a default, to be checked).",
    about_likelihood="Likelihood is evidence where it rests on what was found; where something unknown is counted as "
    "open, it is an assumption. The effort of each step, and from which product of gravity and likelihood on a risk is "
    "high, are assumptions of Casemate throughout.",
    about_remedies="",
    audited="Audited",
    context="Context",
    no_context="defaults",
    what_if="What if",
    workshops=(
        "Workshop 1: scope, business values, supporting assets, feared events, security baseline",
        "Workshop 2: risk sources and their objectives",
        "Workshop 3: strategic scenarios",
        "Workshop 4: operational scenarios",
        "Workshop 5: treatment of the risk",
    ),
    origins={"evidence": "evidence", "owner": "owner", "assumption": "assumption"},
    origin="origin",
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
    kinds={},
    values="Business values and feared events",
    value="business value",
    all_vms="all VMs, by way of their host",
    feared_event="feared event",
    assets="Supporting assets",
    asset="supporting asset",
    carries="carries",
    asset_kinds={
        "host": "host",
        "vm": "VM",
        "emulator": "emulator",
        "images": "images and copies",
        "vmm": "administration",
    },
    gravity="gravity",
    baseline="Security baseline",
    paths="attack paths",
    controls="controls that paths depend on",
    standings=("do not hold", "unknown", "on paper", "hold"),
    gaps="gaps",
    references="baseline: Casemate's catalogue of controls, to be completed by what the owner has to follow",
    source="risk source",
    objective="objective",
    scenarios="scenarios",
    kept="kept",
    relevance="motivation, resources, relevance",
    why="reason",
    stakeholders="Stakeholders of the ecosystem",
    stakeholder="stakeholder",
    trusted="trusted",
    threat="exposure, reliability",
    people={
        Node.CLOUD_OPERATOR: "operator of the host or the cloud",
        Node.HOST_USER: "users and administrators of the host",
        Node.VMM_API: "administrators of VMs",
        Node.IMAGE_PUBLISHER: "publishers of images and of the emulator",
        Node.IMAGE_READER: "holders of copies of images (backup, transport)",
        Node.GUEST_USER: "other tenants, users of the VMs",
    },
    trust_default="the owner of the VMs runs the host",
    strategic="Strategic scenarios",
    scenario="scenario",
    story="story",
    start="starts",
    harm="harms",
    likelihood="Likelihood",
    if_known="if everything unknown turns out well",
    level="Risk",
    path="ways of attack",
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
    colon="\u00a0: ",
    semicolon="\u00a0; ",
    title="Analyse de risque de machines virtuelles (EBIOS Risk Manager, projet)",
    lead="Projet établi à partir de constats, à compléter par le responsable. Chaque valeur dit son origine\u00a0: "
    "constat (lu sur la machine), responsable (son fichier de contexte) ou hypothèse (valeur par défaut, à vérifier).",
    about_likelihood="La vraisemblance est un constat là où elle repose sur ce qui a été trouvé\u00a0; là où une "
    "inconnue est comptée comme ouverte, c'est une hypothèse. L'effort de chaque action élémentaire et les seuils des "
    "niveaux de risque sont partout des hypothèses de Casemate.",
    about_remedies="Les remèdes (colonne «\u00a0comment\u00a0») sont ceux du catalogue, en anglais.",
    audited="Audit du",
    context="Contexte",
    no_context="valeurs par défaut",
    what_if="Et si",
    workshops=(
        "Atelier 1\u00a0: périmètre, valeurs métier, biens supports, événements redoutés, socle de sécurité",
        "Atelier 2\u00a0: sources de risque et objectifs visés",
        "Atelier 3\u00a0: scénarios stratégiques",
        "Atelier 4\u00a0: scénarios opérationnels",
        "Atelier 5\u00a0: traitement du risque",
    ),
    origins={"evidence": "constat", "owner": "responsable", "assumption": "hypothèse"},
    origin="origine",
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
    kinds={
        "vm": "VM en marche",
        "process": "émulateur en marche",
        "domain": "domaine libvirt (déclaré)",
        "command-line": "ligne de commande (déclarée)",
        "vmm-config": "configuration (déclarée)",
        "host": "hôte seul",
    },
    values="Valeurs métier et événements redoutés",
    value="valeur métier",
    all_vms="toutes les VM, par leur hôte",
    feared_event="événement redouté",
    assets="Biens supports",
    asset="bien support",
    carries="porte",
    asset_kinds={
        "host": "hôte",
        "vm": "VM",
        "emulator": "émulateur",
        "images": "images et copies",
        "vmm": "administration",
    },
    gravity="gravité",
    baseline="Socle de sécurité",
    paths="chemins d'attaque",
    controls="contrôles dont dépendent les chemins",
    standings=("non tenus", "inconnus", "sur le papier", "tenus"),
    gaps="écarts",
    references="référentiel\u00a0: catalogue de contrôles de Casemate, à compléter par ceux que le responsable doit "
    "suivre",
    source="source de risque",
    objective="objectif visé",
    scenarios="scénarios",
    kept="retenu",
    relevance="motivation, ressources, pertinence",
    why="motif",
    stakeholders="Parties prenantes de l'écosystème",
    stakeholder="partie prenante",
    trusted="de confiance",
    threat="exposition, fiabilité cyber",
    people={
        Node.CLOUD_OPERATOR: "exploitant de l'hôte ou du nuage",
        Node.HOST_USER: "utilisateurs et administrateurs de l'hôte",
        Node.VMM_API: "administrateurs des VM",
        Node.IMAGE_PUBLISHER: "éditeurs des images et de l'émulateur",
        Node.IMAGE_READER: "détenteurs de copies d'images (sauvegarde, transport)",
        Node.GUEST_USER: "autres locataires, utilisateurs des VM",
    },
    trust_default="le propriétaire des VM exploite lui-même l'hôte",
    strategic="Scénarios stratégiques",
    scenario="scénario",
    story="récit",
    start="point de départ",
    harm="valeurs métier touchées",
    likelihood="Vraisemblance",
    if_known="si tout ce qui est inconnu se révèle en ordre",
    level="Niveau de risque",
    path="modes opératoires",
    settle="tranché par l'observation de",
    nothing="rien",
    action="action",
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
    residual="Risques résiduels\u00a0: failles que nul ne connaît encore",
    held="contenu par",
    reach="ensuite à portée",
)


def words(language: Language) -> Words:
    """The words of a language."""
    return _ENGLISH if language == "en" else _FRENCH
