"""The image store of whoever runs the audit, as facts of the host.

    img.store-images        names of its images
    img.store-unverified    those whose origin nobody vouched for, or not whom the host's policy wants, and why

Notes only are read: whether the content is what was noted, ``image verify`` says and every launch checks.
"""

from __future__ import annotations

from casemate.errors import CasemateError
from casemate.facts.fact import Facts, Known, Unknown
from casemate.facts.root import Root

_NAMES = ("img.store-images", "img.store-unverified")


def collect_store(root: Root) -> Facts:
    """Both facts; unknown where the host is not this one, or the store or the policy cannot be read."""
    if not root.is_live:
        return dict.fromkeys(_NAMES, Unknown("a captured tree does not hold the image store"))
    from casemate.engine.imagestore import default_store
    from casemate.engine.origins import image_origin
    from casemate.engine.policy_file import read_policy

    try:
        store = default_store()
        images, rules = store.images(), read_policy(None).image
    except (CasemateError, OSError) as fault:
        return dict.fromkeys(_NAMES, Unknown(str(fault).partition("\n")[0]))
    source = store.directory
    faults = ((image.label, image_origin(image, rules)[0]) for image in images)
    unverified = tuple(f"{label}: {why}" for label, why in faults if why)
    return {
        "img.store-images": Known(tuple(image.label for image in images), source),
        "img.store-unverified": Known(unverified, f"{source} and the host's policy"),
    }
