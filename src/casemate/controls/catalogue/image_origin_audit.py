"""Layer image: where the images come from that a host keeps, running or not."""

from __future__ import annotations

from casemate.controls.catalogue.common import S8, S9, VM, lecture
from casemate.controls.expectations import Empty, Present
from casemate.controls.model import Check, Condition, Control, Cost, Gate, Remedies, Severity, Subject

CONTROLS: tuple[Control, ...] = (
    Control(
        id="img.store-origin",
        title="Every image that is kept here has a verified origin",
        question="Has every image of the store a verified signature of those whom the host's policy wants?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        subject=Subject.HOST,
        checks=(Check("img.store-unverified", Empty()),),
        applies_when=(Condition("img.store-images", Present(), "the store of whoever asks has no images"),),
        cuts=(S9, S8),
        scenarios=(VM,),
        cost=Cost(features="the publishers' keys have to be known"),
        remedies=Remedies(
            host="casemate image verify IMAGE --signature FILE …; casemate image sign IMAGE to vouch for it; or "
            "casemate image rm IMAGE"
        ),
        sources=(lecture("Images de machines virtuelles: vérifier l'origine et l'intégrité"),),
        limits="The store of the user who asks; other users have their own. A launch refuses such images (img.origin).",
    ),
)
