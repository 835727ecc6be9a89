"""Where the disks of a launch come from, as facts: what the store knows of them, judged by the host's policy.

    img.origin-unverified   images of the store whose origin nobody vouched for, and files that a rule of the policy
                            wants signed: control img.origin, which refuses
    img.origin-local        files given by path: whoever gave the path answers for them (img.local-origin, a report)
    img.origin-signed       role and keys of what is verified
    img.origin-judged       disks that img.origin is about: images of the store, files that a rule names
    img.origin-pinned       disks whose content is checked: they have a digest
    img.launch-only         images whose content is checked when the VM starts and not at every read (img.enforced)

A file with its digest in the specification was chosen byte by byte by whoever wrote that: it is in neither list.
Nothing is read here but the store's own notes; a launch without images of the store reads nothing at all.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from casemate.controls.policy import ImageRules
from casemate.engine.content import FS_VERITY, Promise
from casemate.engine.paths import Paths
from casemate.facts.fact import Facts, Known, Stage
from casemate.spec.model import Spec

if TYPE_CHECKING:
    from casemate.image.store_model import StoredImage

SIGNED_KEY = "verified_by"


def stored_images(spec: Spec, paths: Paths) -> dict[str, StoredImage]:
    """Role -> image of the store.

    Raises:
        InputError, ImageError: the store has it no longer.
    """
    if not any(disk.image for disk in spec.disks):
        return {}
    from casemate.engine.imagestore import default_store

    store = default_store(paths)
    return {
        f"disk{index}": store.find(disk.sha256)
        for index, disk in enumerate(spec.disks)
        if disk.image is not None and disk.sha256 is not None
    }


def origin_facts(spec: Spec, stored: dict[str, StoredImage], promises: tuple[Promise, ...], rules: ImageRules) -> Facts:
    """The facts above, declared."""
    unverified, local, signed, judged = [], [], [], []
    for index, disk in enumerate(spec.disks):
        role = f"disk{index}"
        image = stored.get(role)
        if image is None:
            why = _file_origin(disk.path, rules)
            if why:
                judged.append(role)
                unverified.append(f"{role}: {os.path.basename(disk.path)}: {why}")
            elif disk.sha256 is None:
                local.append(f"{role}: {os.path.basename(disk.path)}")
            continue
        judged.append(role)
        why, keys = image_origin(image, rules)
        if why:
            unverified.append(f"{role}: {image.label}: {why}")
        else:
            signed.append(f"{role}: {' '.join(keys)}")
    late = tuple(promise.role for promise in promises if promise.how != FS_VERITY)
    source = "the store's notes and the host's policy"
    return {
        name: Known(tuple(value), source, Stage.DECLARED)
        for name, value in (
            ("img.origin-unverified", unverified),
            ("img.origin-local", local),
            ("img.origin-signed", signed),
            ("img.origin-judged", judged),
            ("img.origin-pinned", tuple(promise.role for promise in promises)),
            ("img.launch-only", late),
        )
    }


def image_origin(image: StoredImage, rules: ImageRules) -> tuple[str, tuple[str, ...]]:
    """Why a stored image's origin is not verified (empty when it is), and the keys that signed it."""
    from casemate.image.origin import judge_origin

    keys = tuple(image.origin.get(SIGNED_KEY, "").split("\n")) if image.origin.get(SIGNED_KEY) else ()
    source = image.origin.get("source", "")
    names = (source, os.path.basename(source), *image.names)
    return judge_origin(rules.source, names, keys), keys


def _file_origin(path: str, rules: ImageRules) -> str:
    if not rules.source:
        return ""
    from casemate.image.origin import missing_signatures, rule_for

    rule = rule_for(rules.source, path, os.path.basename(path))
    return "" if rule is None else missing_signatures(rule, ())
