"""A libvirt domain in, the hardened domain out.

The rules run in one order, and each finds what the ones before it left:

1. the board: accelerator, machine type, features, clock, CPU, memory, generation id, raw arguments, labels, limits,
   the launch of a confidential guest
2. devices: those of the host, disks, USB, displays, shares, consoles, leftovers, network, entropy
3. the slots of everything that is left

Hardening what was hardened changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from casemate.errors import InputError
from casemate.harden import board_rules, device_rules, disk_rules, launch_rules, network_rules, slot_rules
from casemate.harden.context import OLDEST_LIBVIRT, Version, open_domain
from casemate.harden.model import Hardened, Notes
from casemate.harden.reading import read_document

RNG_RATE_BYTES: Final = 1024
RNG_PERIOD_MS: Final = 1000

CONTROLS: Final = (
    "dev.kvm",
    "dev.machine",
    "kvm.irqchip-split",
    "dev.platform-off",
    "dev.smm",
    "kvm.no-hyperv-xen",
    "cpu.guest-flags",
    "kvm.nested-off",
    "mem.no-dump",
    "cpu.ksm",
    "ent.vmgenid",
    "vmm.no-raw-args",
    "proc.mac-label",
    "proc.cgroup",
    "iommu.no-hostdev",
    "iommu.no-usb-host",
    "dev.no-floppy",
    "dev.no-legacy-disk",
    "img.format-explicit",
    "img.exclusive",
    "dev.no-usb",
    "dev.no-display",
    "dev.no-share",
    "kvm.no-vhost-other",
    "vmm.console",
    "guest.agent",
    "dev.no-legacy-nic",
    "kvm.no-vhost-net",
    "dev.no-slirp",
    "net.antispoof",
    "net.isolated",
    "ent.virtio-rng",
    "dev.no-hotplug",
    "cc.no-debug",
    "cc.no-migration",
    "cc.kernel-hashes",
)
"""What the rules satisfy, and what ``--keep`` takes."""


def harden_domain(
    data: bytes,
    source: str,
    *,
    keep: Iterable[str] = (),
    libvirt: Version = OLDEST_LIBVIRT,
    io_limit_mib_s: int | None = None,
) -> Hardened:
    """Harden one domain.

    Args:
        data: the XML document, UTF-8.
        source: what to call it in messages.
        keep: ids of controls whose changes are not made.
        libvirt: oldest version that has to understand the result.
        io_limit_mib_s: limit the traffic of each disk that has no limit.

    Raises:
        InputError: not a domain that these rules are for; an id that no rule has.
    """
    kept = check_keep(keep, CONTROLS)
    document = read_document(data, source)
    before = document.text()
    notes = Notes(kept)
    domain = open_domain(document, source, notes, libvirt)
    board_rules.accelerator(domain)
    board_rules.machine(domain)
    board_rules.features(domain)
    board_rules.clock(domain)
    board_rules.cpu(domain)
    board_rules.memory(domain)
    board_rules.generation_id(domain)
    board_rules.raw_arguments(domain)
    board_rules.labels(domain)
    board_rules.limits(domain)
    launch_rules.launch_security(domain)
    device_rules.host_devices(domain)
    disk_rules.disks(domain)
    if io_limit_mib_s is not None:
        disk_rules.io_limit(domain, io_limit_mib_s)
    device_rules.usb(domain)
    device_rules.display(domain)
    device_rules.shares(domain)
    device_rules.consoles(domain)
    device_rules.leftovers(domain)
    network_rules.interfaces(domain)
    device_rules.entropy(domain, RNG_RATE_BYTES, RNG_PERIOD_MS)
    slot_rules.slots(domain)
    open_ids = {left.control for left in notes.left} | kept
    return Hardened(
        kind="domain",
        before=before,
        after=document.text(),
        changes=tuple(notes.changes),
        left=tuple(notes.left),
        claims=tuple(control for control in CONTROLS if control not in open_ids),
    )


def check_keep(keep: Iterable[str], known: tuple[str, ...]) -> frozenset[str]:
    """The ids of ``--keep`` as a set.

    Raises:
        InputError: an id that no rule has.
    """
    import difflib

    kept = frozenset(keep)
    for name in sorted(kept - frozenset(known)):
        close = difflib.get_close_matches(name, known, 1)
        raise InputError(
            f"--keep {name[:60]}: no change of harden belongs to this control",
            expected=f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}",
        )
    return kept
