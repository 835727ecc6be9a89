"""Is an image what its specification or the store says? Asked of the very descriptor that the emulator gets.

How, the strongest way that there is:

1. ``fs-verity``: the store sealed the file at its import. The kernel's measurement is compared, in constant time, and
   the kernel goes on checking every block that anybody reads.
2. ``tree``: an image of the store; its tree digest, noted at the import, is computed on every core.
3. ``sha256``: any other file with a digest in the specification.

2 and 3 read every byte beside the emulator's start-up; the guest is not released before they are through. What
somebody who may write to the file does to it later, they cannot see: the store's files are 0400 and no VM has their
owner's uid. There is no shortcut by size or time of change.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import msgspec

from casemate.errors import CasemateError, RefusedError, VmError

if TYPE_CHECKING:
    from casemate.image.store_model import StoredImage
    from casemate.spec.model import Spec

FS_VERITY = "fs-verity"
TREE_KEY = "tree"
"""Where `StoredImage.origin` has the tree digest."""
SLOWEST_BYTES_S = 20 << 20
"""A disk slower than this makes a launch time out."""


class Promise(msgspec.Struct, frozen=True):
    """What one disk must be. ``how``: ``fs-verity``, ``tree`` or ``sha256``; ``expected``: that kind of digest."""

    role: str
    name: str
    path: str
    sha256: str
    how: str
    expected: str


def promises_of(spec: Spec, stored: dict[str, StoredImage]) -> tuple[Promise, ...]:
    """The promises of a specification.

    Args:
        stored: role -> image of the store, for the disks that have one.
    """
    found = []
    for index, disk in enumerate(spec.disks):
        role = f"disk{index}"
        if disk.sha256 is None:
            continue
        image, name = stored.get(role), f"image {disk.image}" if disk.image else os.path.basename(disk.path)
        how, expected = "sha256", disk.sha256
        if image is not None and image.verity_digest:
            how, expected = FS_VERITY, image.verity_digest
        elif image is not None and TREE_KEY in image.origin:
            how, expected = TREE_KEY, image.origin[TREE_KEY]
        found.append(Promise(role, name, disk.path, disk.sha256, how, expected))
    return tuple(found)


def extra_time_s(promises: tuple[Promise, ...], by_role: dict[str, int]) -> float:
    """How much longer a launch may take because images are read."""
    read = sum(os.fstat(by_role[promise.role]).st_size for promise in promises if promise.how != FS_VERITY)
    return read / SLOWEST_BYTES_S


def how_checked(promises: tuple[Promise, ...]) -> str:
    """Where the digests of a launch come from, in words."""
    late = [promise.role for promise in promises if promise.how != FS_VERITY]
    sealed = [promise.role for promise in promises if promise.how == FS_VERITY]
    words = ["copies in its sealed root, hashed before the guest ran"]
    if late:
        words.append(f"{', '.join(late)} checked at launch only")
    if sealed:
        words.append(f"{', '.join(sealed)} checked by the kernel at every read (fs-verity)")
    return "; ".join(words)


class ContentChecks:
    """The promises of one launch, checked in threads, one for each disk.

    A launch that fails meanwhile does not wait for them: they only read, and end with its process.
    """

    def __init__(self, promises: tuple[Promise, ...], by_role: dict[str, int]) -> None:
        self._promises = promises
        self._descriptors = {promise.role: by_role[promise.role] for promise in promises}
        self._found: dict[str, str] = {}
        self._faults: dict[str, BaseException] = {}
        self._threads = [threading.Thread(target=self._run, args=(promise,), daemon=True) for promise in promises]

    def begin(self) -> None:
        """Start reading. Not before the emulator's process is made, which wants a single thread."""
        for thread in self._threads:
            thread.start()

    def result(self) -> dict[str, str]:
        """Role -> SHA-256 of every disk with a promise, once all hold.

        Raises:
            RefusedError: a disk is not what was promised (control img.hash).
            VmError: it could not be read.
        """
        if any(thread.ident is None for thread in self._threads):
            raise RuntimeError("ContentChecks: result() before begin()")
        for thread in self._threads:
            thread.join()
        for promise in self._promises:
            fault = self._faults.get(promise.role)
            if isinstance(fault, CasemateError):
                raise fault
            if fault is not None:
                raise VmError(f"{promise.name} cannot be verified", got=str(fault)) from fault
            check_promise(promise, self._found.get(promise.role, ""))
        return {promise.role: promise.sha256 for promise in self._promises}

    def _run(self, promise: Promise) -> None:
        try:
            self._found[promise.role] = measure(promise.how, self._descriptors[promise.role])
        except BaseException as fault:
            self._faults[promise.role] = fault


def measure(how: str, descriptor: int) -> str:
    """The digest of that kind of an open file.

    Raises:
        OSError, ImageError, ValueError: it cannot be taken.
    """
    if how == FS_VERITY:
        from casemate.sys.fsverity import fs_ioc_measure_verity

        return fs_ioc_measure_verity(descriptor)
    from casemate.image.origin_digest import digests_of, tree_digest

    return tree_digest(descriptor) if how == TREE_KEY else digests_of(descriptor, {"sha256"})["sha256"].hex()


def check_promise(promise: Promise, found: str) -> None:
    """Compare.

    Raises:
        RefusedError: control img.hash.
    """
    if found == promise.expected:
        return
    kind = "tree digest" if promise.how == TREE_KEY else promise.how
    raise RefusedError(
        "img.hash",
        f"{promise.name} is not what it was",
        got=f"{kind} {found or 'none: the file is not sealed'}",
        expected=f"{kind} {promise.expected}",
        next_step=f"find out who wrote to {promise.path}, and take the image from its source again",
    )
