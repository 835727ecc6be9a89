"""Layer image: who vouched for what a VM starts from, and whether that stays true while it runs."""

from __future__ import annotations

from casemate.controls.catalogue.common import HAS_DISKS, S8, S9, VM, lecture
from casemate.controls.expectations import Empty, Present
from casemate.controls.model import Check, Condition, Control, Cost, Gate, Remedies, Severity, Source

_JUDGED = Condition(
    "img.origin-judged", Present(), "no disk is an image of the store, or a file that a rule of the policy names"
)
_PINNED = Condition("img.origin-pinned", Present(), "no disk has a digest that somebody noted")
_SOURCES = (
    lecture("Images de machines virtuelles: vérifier l'origine et l'intégrité"),
    Source("NIST SP 800-190", "4.1.5: use of untrusted images"),
)

CONTROLS = (
    Control(
        id="img.origin",
        title="Somebody known has signed every image of the store",
        question="Has every stored image of this VM a signature that was verified and that the host's policy wants?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("img.origin-unverified", Empty()),),
        applies_when=(HAS_DISKS, _JUDGED),
        cuts=(S9, S8),
        scenarios=(VM,),
        cost=Cost(features="the publishers' keys have to be known, and kept up to date"),
        remedies=Remedies(
            host="casemate image verify IMAGE --signature FILE --keyring FILE; or vouch for it yourself: casemate "
            "image sign IMAGE",
            spec='[[waiver]] control = "img.origin", if the host\'s policy allows it',
        ),
        sources=_SOURCES,
        limits="Says who signed the bytes, not that they do no harm. Images are judged by the signatures noted when "
        "they were verified; a key that was revoked since shows when image verify is run again.",
    ),
    Control(
        id="img.local-origin",
        title="Disks given by path have a known origin",
        question="Is every disk an image of the store, or a file whose digest stands in the specification?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        checks=(Check("img.origin-local", Empty()),),
        applies_when=(HAS_DISKS,),
        cuts=(S9,),
        scenarios=(VM,),
        remedies=Remedies(host="casemate image add FILE --signature …", spec='[[disk]] sha256 = "…"'),
        sources=_SOURCES,
        limits="Whoever gives a path answers for the file. A policy can make this a condition: [gates] launch.",
    ),
    Control(
        id="img.enforced",
        title="The kernel checks images at every read",
        question="Is every image with a known digest sealed by fs-verity?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        checks=(Check("img.launch-only", Empty()),),
        applies_when=(HAS_DISKS, _PINNED),
        cuts=(S9,),
        scenarios=(VM,),
        remedies=Remedies(
            host="keep the store on ext4, f2fs or btrfs with fs-verity (tune2fs -O verity), and add the image again; "
            "or casemate image build --verity, which the guest checks itself"
        ),
        sources=(Source("Linux", "filesystems/fsverity"),),
        limits="Without it the content is checked at launch only. The store's files are mode 0400, and no VM has the "
        "uid of their owner.",
    ),
)
