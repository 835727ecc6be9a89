"""The guest that measures: the distribution's plain kernel, busybox and an init of ours that moves packets and blocks.

The built-in guest's cloud kernel has no driver of the e1000, so the plain kernel of the same distribution is taken, out
of a signed package, with the modules for four devices and the kernel's own packet generator (pktgen), which sends an
exact number of packets of an exact size.

Layout below the cache directory (0700, the caller's own)::

    measure/<recipe>/kernel  initrd  manifest.json    complete when the directory has its name
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from casemate.engine import files
from casemate.engine.paths import own_directory
from casemate.errors import HostError
from casemate.image import packages
from casemate.image.cpio import character_device, directory, regular, symlink, write_cpio
from casemate.image.guest_modules import decompress_module, module_depends, module_name
from casemate.image.guest_source import busybox_bytes
from casemate.image.packages import Package

MODULES: Final = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "e1000",
    "ata_piix",
    "sd_mod",
    "crct10dif_generic",
    "pktgen",
)
CMDLINE: Final = "console=ttyS0 quiet loglevel=3 reboot=t panic=-1 cryptomgr.notests"
READY: Final = "cm ready"
_META: Final = "linux-image-amd64"
_IMAGE_NAME: Final = re.compile(r"linux-image-(?P<release>[0-9][a-z0-9.+~-]*-amd64)$")
_PARTS: Final = re.compile(r"linux-(image|binary|modules|base)-[0-9]")
_WANTED: Final = (
    "/kernel/drivers/virtio/",
    "/kernel/drivers/block/virtio",
    "/kernel/drivers/net/virtio_net",
    "/kernel/drivers/net/net_failover",
    "/kernel/drivers/net/ethernet/intel/e1000/",
    "/kernel/drivers/ata/",
    "/kernel/drivers/scsi/",
    "/kernel/net/core/",
    "/kernel/block/",
    "/kernel/crypto/",
    "/kernel/arch/x86/crypto/",
    "/kernel/lib/",
    "/modules.builtin",
)
_MANIFEST_BYTES: Final = 64 << 10

INIT: Final = """\
#!/bin/busybox sh
# Reads requests from the console, one a line, and answers each with lines that begin with "cm".
bb=/bin/busybox
export PATH=/bin
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs dev /dev
while read module; do
    $bb insmod "/lib/modules/$module.ko" || echo "cm fault module $module"
done </lib/modules/order
driver_of() { $bb basename "$($bb readlink "$1/device/driver")"; }
nic() {
    for d in /sys/class/net/*; do
        [ -e "$d/device/driver" ] && [ "$(driver_of "$d")" = "$1" ] && $bb basename "$d"
    done
}
disk() { for d in /sys/block/*; do case "$($bb readlink -f "$d")" in *"/$1"*) $bb basename "$d" ;; esac; done; }
move() { echo "cm done $($bb dd "$@" "bs=$size" "count=$count" 2>&1 | $bb head -1)"; }
tries=0
while [ -z "$(disk ata)" ] && [ $tries -lt 50 ]; do $bb sleep 0.1; tries=$((tries + 1)); done
e1000=$(nic e1000) vnet=$(nic virtio_net) ide=$(disk ata) vblk=$(disk virtio)
for name in $e1000 $vnet; do
    echo 1 >"/proc/sys/net/ipv6/conf/$name/disable_ipv6"
    $bb ip link set "$name" up
done
# The e1000 finds its link after a while, and pktgen sends nothing before.
for name in $e1000 $vnet; do
    tries=0
    while [ "$($bb cat "/sys/class/net/$name/carrier")" != 1 ] && [ $tries -lt 200 ]; do
        $bb sleep 0.1
        tries=$((tries + 1))
    done
done
$bb sleep 1
$bb stty -echo
echo "cm ready $e1000 $vnet $ide $vblk"
while read verb device size count gap; do
    case "$device" in
        e1000) name=$e1000 ;; virtio-net) name=$vnet ;; ide) name=$ide ;; virtio-blk) name=$vblk ;; *) name= ;;
    esac
    case "$verb" in
        transmit)
            p=/proc/net/pktgen
            echo rem_device_all >$p/kpktgend_0
            echo "add_device $name" >$p/kpktgend_0
            for word in "count $count" "pkt_size $size" "delay $gap" "clone_skb 0" "dst_mac 02:00:00:00:00:01" \\
                "dst 192.0.2.1"; do
                echo "$word" >"$p/$name"
            done
            echo start >$p/pgctrl
            echo "cm done $($bb sed -n 's/.*pkts-sofar: \\([0-9]*\\).*/\\1/p' "$p/$name")" ;;
        received) echo "cm done $($bb cat "/sys/class/net/$name/statistics/rx_packets")" ;;
        read) move "if=/dev/$name" of=/dev/null iflag=direct ;;
        write) move if=/dev/zero "of=/dev/$name" oflag=direct ;;
        off) $bb poweroff -f ;;
    esac
done </dev/console
$bb poweroff -f
"""


class MeasureGuest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A built guest: ``kernel`` and ``initrd`` are paths, digests lower-case hex SHA-256."""

    kernel: str
    initrd: str
    kernel_sha256: str
    initrd_sha256: str
    release: str
    sources: dict[str, str]


def measure_guest(cache: str, report: Callable[[str], None]) -> MeasureGuest:
    """The guest, out of the cache when it is sound, built otherwise.

    Args:
        report: told one line per long step.

    Raises:
        HostError: not x86-64, no package to be had, or the cache cannot be written.
    """
    recipe = hashlib.sha256("\0".join((INIT, CMDLINE, *MODULES)).encode()).hexdigest()[:32]
    store = f"{cache}/measure"
    own_directory(cache)
    own_directory(store)
    place = f"{store}/{recipe}"
    found = _load(place)
    if found is not None:
        return found
    lock = files.take_lock(f"{store}/lock", wait=True)
    try:
        return _load(place) or _build(store, place, report)  # somebody else may have built it meanwhile
    except OSError as error:
        raise HostError(
            f"cannot write the guest cache {store}", got=str(error), next_step="free space there"
        ) from error
    finally:
        if lock is not None:
            os.close(lock)


def _load(place: str) -> MeasureGuest | None:
    try:
        guest = msgspec.json.decode(files.read_bounded(f"{place}/manifest.json", _MANIFEST_BYTES), type=MeasureGuest)
        if (guest.kernel, guest.initrd) != (f"{place}/kernel", f"{place}/initrd"):
            return None
        for path, digest in ((guest.kernel, guest.kernel_sha256), (guest.initrd, guest.initrd_sha256)):
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return None
    except (OSError, msgspec.MsgspecError):
        return None
    return guest


def _build(store: str, place: str, report: Callable[[str], None]) -> MeasureGuest:
    import tempfile

    with tempfile.TemporaryDirectory(prefix=".build-", dir=store) as scratch:
        release, kernel, modules, sources = _kernel(Path(scratch), report)
        busybox, source = busybox_bytes(Path(scratch), report)
        initrd = _initrd(busybox, modules)
        guest = MeasureGuest(
            kernel=f"{place}/kernel",
            initrd=f"{place}/initrd",
            kernel_sha256=hashlib.sha256(kernel).hexdigest(),
            initrd_sha256=hashlib.sha256(initrd).hexdigest(),
            release=release,
            sources={package.name: package.version for package in (*sources, source)},
        )
        fresh = f"{scratch}/guest"
        own_directory(fresh)
        for name, data in (("kernel", kernel), ("initrd", initrd), ("manifest.json", msgspec.json.encode(guest))):
            files.write_atomic(f"{fresh}/{name}", data)
        if Path(place).exists():
            Path(place).rename(f"{scratch}/old-{secrets.token_hex(4)}")
        Path(fresh).rename(place)
    found = _load(place)
    if found is None:
        raise HostError(f"the guest just built in {place} does not load", next_step="free space there, and try again")
    return found


def _kernel(scratch: Path, report: Callable[[str], None]) -> tuple[str, bytes, dict[str, bytes], tuple[Package, ...]]:
    names = [name for name in packages.dependencies(_META) if _IMAGE_NAME.match(name)]
    match = _IMAGE_NAME.match(names[0]) if names else None
    if match is None:
        raise HostError(f"package {_META}", got="no dependency on a kernel image", next_step="sudo apt-get update")
    release = match["release"]
    more = [name for name in packages.dependencies(names[0]) if _PARTS.match(name) and release in name]
    fetched = tuple(packages.download(name, scratch, report) for name in (names[0], *more))
    report(f"unpacking kernel {release}")
    image, builtin, found = b"", frozenset[str](), dict[str, bytes]()
    for package in fetched:
        for path, data in packages.read_members(package, _is_wanted):
            if path == f"boot/vmlinuz-{release}":
                image = data
            elif path.endswith("/modules.builtin"):
                builtin = frozenset(filter(None, map(module_name, data.decode("ascii", "replace").split())))
            elif (name := module_name(path)) is not None:
                found[name] = decompress_module(path, data)
    if not image or not builtin:
        raise HostError(f"package {names[0]}", got=f"no {'kernel image' if not image else 'modules.builtin'} in it")
    return release, image, _ordered(found, builtin), fetched


def _is_wanted(path: str) -> bool:
    below = path.removeprefix("usr/")
    if below.startswith("lib/modules/"):
        return any(part in below for part in _WANTED) and not below.endswith(".modinfo")
    return below.startswith("boot/vmlinuz-")


def _ordered(found: dict[str, bytes], builtin: frozenset[str]) -> dict[str, bytes]:
    """The modules to load, dependencies first."""
    ordered: dict[str, bytes] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in ordered or name in builtin:
            return
        if name in path or name not in found:
            raise HostError(f"kernel module {' -> '.join((*path, name))}", got="a circular or missing dependency")
        for needed in module_depends(found[name]):
            visit(needed, (*path, name))
        ordered[name] = found[name]

    for name in MODULES:
        visit(name, ())
    return ordered


def _initrd(busybox: bytes, modules: dict[str, bytes]) -> bytes:
    entries = [
        directory("dev"),
        character_device("dev/console", 5, 1),
        directory("proc"),
        directory("sys"),
        directory("tmp", 0o1777),
        regular("init", INIT.encode(), 0o755),
        regular("bin/busybox", busybox, 0o755),
        symlink("bin/sh", "busybox"),
        regular("lib/modules/order", "".join(f"{name}\n" for name in modules).encode()),
    ]
    entries += [regular(f"lib/modules/{name}.ko", elf) for name, elf in modules.items()]
    return write_cpio(entries)
