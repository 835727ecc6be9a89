"""Names of positions, goods, statuses and levels in English and French."""

from __future__ import annotations

from typing import Final, Literal

from casemate.scenarios.model import Node, Status
from casemate.scenarios.risk_model import Level

Language = Literal["en", "fr"]

NODES: Final[dict[Node, tuple[str, str]]] = {
    Node.NETWORK: ("on the network", "sur le réseau"),
    Node.GUEST_USER: ("user in the guest", "utilisateur dans l'invité"),
    Node.GUEST_ROOT: ("root in the guest", "root dans l'invité"),
    Node.GUEST_KERNEL: ("kernel of the guest", "noyau de l'invité"),
    Node.EMULATOR: ("code in the emulator", "code dans l'émulateur"),
    Node.HELPER: ("code in a helper", "code dans un processus auxiliaire"),
    Node.HOST_USER: ("user of the host", "utilisateur de l'hôte"),
    Node.VMM_API: ("manager of VMs", "administrateur des VM"),
    Node.HOST_ROOT: ("root or kernel of the host", "root ou noyau de l'hôte"),
    Node.IMAGE_PUBLISHER: ("publisher of images", "éditeur d'images"),
    Node.IMAGE_READER: ("reader of images", "lecteur d'images"),
    Node.CLOUD_OPERATOR: ("operator of the cloud", "opérateur du nuage"),
    Node.HIDDEN_HYPERVISOR: ("hidden hypervisor", "hyperviseur caché"),
    Node.VM_DATA: ("data of the VM", "données de la VM"),
    Node.OTHER_VM_DATA: ("data of other VMs", "données des autres VM"),
    Node.HOST: ("the host", "l'hôte"),
    Node.SECRETS: ("images and secrets", "images et secrets"),
    Node.AVAILABILITY: ("availability", "disponibilité"),
    Node.EVIDENCE: ("evidence", "traces et preuves"),
}
STATUSES: Final[dict[Status, tuple[str, str]]] = {
    Status.OPEN: ("open", "ouvert"),
    Status.UNKNOWN: ("unknown", "inconnu"),
    Status.PAPER: ("closed on paper", "fermé sur le papier"),
    Status.RESIDUAL: ("residual", "résiduel"),
    Status.CONTAINED: ("contained", "contenu"),
    Status.CLOSED: ("closed", "fermé"),
}
LEVELS: Final[dict[Level, tuple[str, str]]] = {
    Level.LOW: ("low", "faible"),
    Level.MODERATE: ("moderate", "modéré"),
    Level.HIGH: ("high", "élevé"),
    Level.CRITICAL: ("critical", "critique"),
}
LIKELIHOODS: Final = (
    ("none", "aucune"),
    ("V1 unlikely", "V1 peu vraisemblable"),
    ("V2 likely", "V2 vraisemblable"),
    ("V3 very likely", "V3 très vraisemblable"),
    ("V4 nearly certain", "V4 quasi-certain"),
)
"""By likelihood, 0 to 4 (EBIOS RM's scale)."""
GRAVITIES: Final = (
    ("", ""),
    ("G1 minor", "G1 mineure"),
    ("G2 significant", "G2 significative"),
    ("G3 serious", "G3 grave"),
    ("G4 critical", "G4 critique"),
)


def pick(names: tuple[str, str], language: Language) -> str:
    """The name in this language."""
    return names[0] if language == "en" else names[1]


def technique_titles(language: Language) -> dict[str, str]:
    """Titles of all techniques by id."""
    from casemate.scenarios.data import graph
    from casemate.scenarios.labels_fr import TECHNIQUES_FR

    return {item.id: item.title for item in graph().techniques} if language == "en" else dict(TECHNIQUES_FR)
