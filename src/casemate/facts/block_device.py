"""The block device that a file lies on, as the io controller of cgroups names it: whole devices, never partitions."""

from __future__ import annotations

import os
from pathlib import Path

from casemate.facts.root import Root


def whole_device(root: Root, path: str) -> str | None:
    """``MAJOR:MINOR`` of the device below the file system of ``path`` (Linux: admin-guide/cgroup-v2, io.max).

    Returns:
        None where there is none to limit: tmpfs, network file systems, overlayfs, and btrfs, whose files have a device
        number of no device.

    Raises:
        OSError: the file or what the kernel says of its device cannot be read. ValueError: it makes no sense.
    """
    number = root.stat(path).st_dev
    major, minor = os.major(number), os.minor(number)
    place = f"/sys/dev/block/{major}:{minor}"
    if major == 0 or not root.exists(place):
        return None
    if root.exists(f"{place}/partition"):
        text = root.read_text(Path(root.real_path(place)).parent / "dev", 64).strip()
        parts = text.split(":")
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
            raise ValueError(f"{place}: the device of a partition is {text!r}")
        return text
    return f"{major}:{minor}"
