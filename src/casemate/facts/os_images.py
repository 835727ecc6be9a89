"""Images of guests that the host itself has attached or mounted: a file system made by a guest then meets the host's
kernel. Looked at: mounts, network block devices, loop devices, FUSE mounts of libguestfs."""

from __future__ import annotations

import re
from typing import Final

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.mountinfo import Mount, parse_mountinfo
from casemate.facts.root import Root

_BLOCK: Final = "/sys/block"
_MOUNTS: Final = "/proc/self/mountinfo"
_MOUNTS_BYTES: Final = 16 << 20
# Where images of VMs usually lie; anything that ends like an image counts wherever it lies.
_POOLS: Final = ("/var/lib/libvirt/", "/var/lib/casemate/", "/var/lib/nova/", "/var/lib/vz/", "/var/lib/lxd/")
_IMAGE: Final = re.compile(r".*\.(?:qcow2?|vmdk|vdi|vhdx?|raw|img|qed)(?: \(deleted\))?")
_FUSE: Final = re.compile(r"fuse\.(?:guestmount|qemu-storage-daemon|.*nbdfuse.*|affuse|libguestfs.*)|/dev/fuse")


def image_facts(root: Root) -> Facts:
    """``os.nbd-attached``, ``os.loop-images``, ``os.guest-mounts``."""
    try:
        names = root.list_dir(_BLOCK)
    except OSError as error:
        why = Unknown(f"{_BLOCK}: {error.strerror or error}")
        return dict.fromkeys(("os.nbd-attached", "os.loop-images", "os.guest-mounts"), why)
    nbd = _attached_nbd(root, names)
    loops = _loop_images(root, names)
    return {
        "os.nbd-attached": nbd,
        "os.loop-images": loops,
        "os.guest-mounts": _guest_mounts(root, loops),
    }


def _attached_nbd(root: Root, names: tuple[str, ...]) -> Fact:
    """Network block devices that a process serves: their ``pid`` file is there only then."""
    try:
        found = tuple(name for name in names if name.startswith("nbd") and root.exists(f"{_BLOCK}/{name}/pid"))
    except OSError as error:
        return Unknown(f"{error.filename or _BLOCK}: {error.strerror or error}")
    return Known(found, f"{_BLOCK}/nbd*/pid")


def _loop_images(root: Root, names: tuple[str, ...]) -> Fact:
    """``loopN PATH`` for each loop device over something that looks like an image of a VM."""
    found: list[str] = []
    for name in names:
        if not name.startswith("loop"):
            continue
        try:
            backing = root.read_text(f"{_BLOCK}/{name}/loop/backing_file", 8192).strip()
        except FileNotFoundError:
            continue
        except OSError as error:
            return Unknown(f"{_BLOCK}/{name}/loop/backing_file: {error.strerror or error}")
        if backing.startswith(_POOLS) or _IMAGE.fullmatch(backing):
            found.append(f"{name} {backing}")
    return Known(tuple(found), f"{_BLOCK}/loop*/loop/backing_file")


def _guest_mounts(root: Root, loops: Fact) -> Fact:
    """``POINT from SOURCE`` for each mount that comes out of an image."""
    if isinstance(loops, Unknown):
        return loops
    devices = {text.partition(" ")[0] for text in loops.value} if isinstance(loops.value, tuple) else set()
    try:
        mounts = parse_mountinfo(root.read_text(_MOUNTS, _MOUNTS_BYTES))
    except OSError as error:
        return Unknown(f"{_MOUNTS}: {error.strerror or error}")
    except ValueError as error:
        return Unknown(f"{_MOUNTS}: not understood ({error})")
    found = tuple(f"{mount.point} from {mount.source}" for mount in mounts if _from_image(mount, devices))
    return Known(found, f"{_MOUNTS}, {_BLOCK}")


def _from_image(mount: Mount, loops: set[str]) -> bool:
    if _FUSE.fullmatch(mount.kind) or (mount.kind.startswith("fuse") and _FUSE.fullmatch(mount.source)):
        return True
    device = re.fullmatch(r"/dev/((?:nbd|loop)\d+)(?:p\d+)?", mount.source)
    return device is not None and (device[1].startswith("nbd") or device[1] in loops)
