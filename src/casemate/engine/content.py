"""Is an image what its specification says it hashes to? Asked of the very descriptor that the emulator gets."""

from __future__ import annotations

import os

from casemate.errors import RefusedError
from casemate.image.opening import identity_of, verify_unchanged
from casemate.spec.model import Disk


def verify_content(descriptor: int, disk: Disk) -> str:
    """The SHA-256 of an open image, every byte of it read.

    Nothing may have written to it meanwhile; that it stays so until the guest runs, `Opened.verify_unchanged` looks.

    Raises:
        RefusedError (img.hash): another one than the specification says. ImageError: it changed while it was read.
    """
    from casemate.image.store_import import digest_of

    before = identity_of(descriptor)
    found = digest_of(descriptor)
    verify_unchanged(descriptor, before, disk.path)
    if found != disk.sha256:
        name = f"image {disk.image}" if disk.image else os.path.basename(disk.path)
        raise RefusedError(
            "img.hash",
            f"{name} is not what it was",
            got=f"sha256 {found}",
            expected=f"sha256 {disk.sha256}",
            next_step=f"find out who wrote to {disk.path}, and take the image from its source again",
        )
    return found
