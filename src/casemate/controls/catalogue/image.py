"""Layer image: what the emulator may open, in which format, and who else may write it."""

from __future__ import annotations

from casemate.controls.catalogue.common import HAS_DISKS, HOST, OTHERS, S6, S8, S9, VM, cve, lecture, libvirt
from casemate.controls.expectations import EachMatches, Empty, Present
from casemate.controls.model import Check, Control, Cost, Gate, Remedies, Severity

CONTROLS = (
    Control(
        id="img.format-explicit",
        title="The format of every image is given, never guessed",
        question="Was every image opened as raw or qcow2 because the specification says so?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("img.formats", EachMatches(r"(.*[=:])?(raw|qcow2|luks)", "each one raw, qcow2 or luks")),),
        applies_when=(HAS_DISKS,),
        cuts=(S8,),
        scenarios=(HOST,),
        cost=Cost(features="images of other formats have to be converted first"),
        remedies=Remedies(libvirt="<driver name='qemu' type='qcow2'/>", spec="[[disk]] format"),
        sources=(libvirt("kbase/secureusage: disk image format"), cve("CVE-2014-0144", "CVE-2026-2243")),
    ),
    Control(
        id="img.no-backing",
        title="No image points to another file",
        question="Has no image a backing file, an external data file or a json: reference?",
        severity=Severity.CRITICAL,
        gate=Gate.LAUNCH,
        checks=(Check("img.backing", Empty()),),
        cuts=(S8,),
        scenarios=(HOST, OTHERS),
        cost=Cost(features="chains of images: merge them first; overlays of our own are joined by descriptor"),
        remedies=Remedies(host="qemu-img convert the image to a single file, inside a throwaway VM if it is not yours"),
        sources=(libvirt("kbase/secureusage: backing files"),),
    ),
    Control(
        id="img.exclusive",
        title="No image is writable by two VMs",
        question="Is no writable image of this VM open in another VM?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("img.shared-writable", Empty()),),
        cuts=(S6,),
        scenarios=(OTHERS,),
        cost=Cost(features="cluster file systems on a shared disk"),
        remedies=Remedies(
            libvirt="remove <shareable/>; lock_manager in qemu.conf", spec='[[disk]] mode = "overlay" or "read-only"'
        ),
        sources=(libvirt("qemu.conf: lock_manager"),),
    ),
    Control(
        id="img.hash",
        title="What boots was measured",
        question="Is the digest of the kernel, the initrd or the boot image known and in the launch record?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        checks=(Check("img.digest-checked", Present()),),
        cuts=(S9, S8),
        scenarios=(VM,),
        cost=Cost(performance="reading a big image once before it boots"),
        remedies=Remedies(host="keep images in the store, which hashes them once", spec="give kernel and initrd"),
        sources=(lecture("Images de machines virtuelles: vérifier l'origine et l'intégrité"),),
        limits="Says that a digest was taken, not that somebody trusted has signed it.",
    ),
)
