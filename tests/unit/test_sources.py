"""What controls cite: works that are known here, and places of the form that these have."""

from __future__ import annotations

import re

import pytest

from casemate.controls.catalogue.all import all_controls
from casemate.controls.kernel_settings import SETTINGS
from casemate.controls.model import Source

CITED = sorted(
    {(source.work, source.place) for control in all_controls() for source in control.sources}
    | {(setting.source.work, setting.source.place) for setting in SETTINGS}
)

# The headings of the lecture, as its slides have them but for spelling.
LECTURE = (
    "Confidential Computing",
    "Durcissement KVM",
    "Durcissement de l'émulateur",
    "Entropie dans une machine virtuelle",
    "Eviter Xen",
    "Gestionnaire de machines virtuelles",
    "Hôte et système de fichier",
    "IOMMU et PCI passthrough",
    "Images de machines virtuelles",
    "Isolation entre les machines virtuelles",
    "Matériel",
    "Noyau Linux",
    "Scénario d'attaque",
    "Systeme d'exploitation",
    "Sécurité des machines virtuelles",
    "Virtualisation == sécurité ?",
)
FORMS = {
    "lecture Virtualisation et sécurité (T. Ravier)": rf"({'|'.join(map(re.escape, LECTURE))})(:? .+)?",
    # R1 to R80 is all that version 2.0 has.
    "ANSSI-BP-028 v2.0": r"R([1-9]|[1-7]\d|80)\b.*",
    "KSPP recommended settings": r"kernel (configuration|command line)|sysctls|init_on_free",
    "kernel-hardening-checker": r"checks\.py:( (defconfig|grsec|clipos|cis|a13xp0p0v)|[\d-]+)|checks of x86-64|-m json",
    "CVE": r"CVE-\d{4}-\d{4,7}(, CVE-\d{4}-\d{4,7})*|src/casemate/data/cves\.toml",
}


@pytest.mark.parametrize("work", FORMS)
def test_a_place_has_the_form_of_its_work(work: str) -> None:
    places = [place for cited, place in CITED if cited == work]
    assert places
    assert [place for place in places if not re.fullmatch(FORMS[work], place)] == []


def test_a_reference_says_where_to_look() -> None:
    assert [(work, place) for work, place in CITED if not work.strip() or not place.strip()] == []
    assert [control.id for control in all_controls() if not control.sources] == []
    assert all(isinstance(source, Source) for control in all_controls() for source in control.sources)
