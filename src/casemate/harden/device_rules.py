"""Rules of a domain's other devices: USB, displays, shares, passthrough, channels, consoles, entropy."""

from __future__ import annotations

from typing import Final

from casemate.harden.context import Domain
from casemate.harden.document import Element
from casemate.harden.model import Reason

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_WHY_USB: Final = "USB emulation has had public guest-to-host exploits (CVE-2020-14364)"
_WHY_DISPLAY: Final = (
    "display, sound and remote desktop code in QEMU is large and reachable from the guest or the network"
)
AGENT: Final = "org.qemu.guest_agent.0"


def _remove(domain: Domain, node: Element, control: str, what: str, why: str, cost: str = "none") -> bool:
    """Remove one device, unless its control is kept."""
    where = node.place()
    if not domain.notes.wants(control, where, f"{what} stays"):
        return False
    node.remove()
    domain.notes.change(control, where, f"{what} removed", why, cost)
    return True


def host_devices(domain: Domain) -> None:
    """Devices of the host: USB ones go, PCI and SCSI ones are for the owner to decide."""
    devices = domain.devices
    usb = [h for h in devices.elements("hostdev") if h.get("type") == "usb"] + devices.elements("redirdev")
    for node in usb:
        kind = "USB device of the host" if node.name == "hostdev" else "USB redirection"
        _remove(
            domain,
            node,
            "iommu.no-usb-host",
            kind,
            "descriptors of a device that somebody else built are parsed by QEMU and by the guest",
            "the device in the guest",
        )
    if not devices.elements("redirdev"):
        for node in devices.elements("redirfilter"):
            node.remove()
    for node in devices.elements("input"):
        if node.get("type") in ("passthrough", "evdev"):
            _remove(
                domain,
                node,
                "iommu.no-usb-host",
                "input device of the host",
                "the guest reads the host's keyboard",
                "it",
            )
    for node in devices.elements("smartcard"):
        _remove(domain, node, "dev.no-usb", "smart card reader", _WHY_USB, "smart cards in the guest")
    for node in devices.elements("hostdev"):
        if node.get("type") == "usb":
            continue
        control = "kvm.no-vhost-other" if node.get("type") == "scsi_host" else "iommu.no-hostdev"
        _passthrough(domain, node, control, f"hostdev {node.get('type') or node.get('mode') or ''}")
    for node in devices.elements("tpm"):
        if node.value("backend", "type") == "passthrough" or (node.first("backend/device") is not None):
            _passthrough(domain, node, "iommu.no-hostdev", "the host's TPM")
        elif not node.value("backend/encryption", "secret"):
            domain.notes.leave(
                "tpm.state-encrypted",
                node.place(),
                "the TPM's state is written in the clear",
                Reason.DECIDE,
                "virsh secret-define (private, usage vtpm), then <encryption secret='UUID'/> in <backend>; only a"
                " TPM that is made anew can be encrypted: unlock first what the guest sealed with this one",
            )


def _passthrough(domain: Domain, node: Element, control: str, what: str) -> None:
    reason = Reason.KEPT if control in domain.notes.keep else Reason.DECIDE
    domain.notes.leave(
        control,
        node.place(),
        f"{what} stays",
        reason,
        "remove it by hand if the guest can do without; else waive the control with a reason",
    )


def usb(domain: Domain) -> None:
    """No USB controller and nothing behind one."""
    control = "dev.no-usb"
    devices, notes = domain.devices, domain.notes
    held = [h for h in devices.elements("hostdev") if h.get("type") == "usb"] + devices.elements("redirdev")
    if held:
        notes.leave(control, held[0].place(), "the USB controller stays for a device that was kept", Reason.KEPT)
        return
    _usb_devices(domain, control)
    controllers = [c for c in devices.elements("controller") if c.get("type") == "usb"]
    if len(controllers) == 1 and controllers[0].get("model") == "none":
        return
    if not notes.wants(control, "devices/controller", "the USB controller stays"):
        return
    models = ", ".join(dict.fromkeys(c.get("model") or "default" for c in controllers)) or "the one that libvirt adds"
    for node in controllers[1:]:
        node.remove()
    if controllers:
        _make_none(controllers[0])
    else:
        devices.add('controller type="usb" model="none"')
    notes.change(
        control,
        "devices/controller",
        f"USB controllers ({models}) become <controller type='usb' model='none'/>",
        _WHY_USB,
        "no USB devices in the guest",
    )


def _usb_devices(domain: Domain, control: str) -> None:
    """What sits behind the controller; disks have a rule of their own."""
    devices = domain.devices
    for node in devices.elements("hub"):
        _remove(domain, node, control, "USB hub", _WHY_USB)
    for node in devices.elements("input"):
        if node.get("bus") == "usb":
            _remove(
                domain, node, control, f"USB {node.get('type')}", _WHY_USB, "absolute pointer of a graphical console"
            )
    for node in devices.elements("serial"):
        if node.value("target", "type") == "usb-serial":
            _remove(domain, node, control, "USB serial port", _WHY_USB, "that port")
    for node in devices.elements("controller"):
        if node.get("type") == "ccid":
            _remove(domain, node, control, "smart card controller", _WHY_USB)


def _make_none(node: Element) -> None:
    """Turn a device into the ``none`` of its kind: nothing else may stand in it."""
    for name in list(node.attributes()):
        if name not in ("type", "index", "model"):
            node.unset(name)
    node.set("model", "none")
    for child in node.elements_any():
        child.remove()


def display(domain: Domain) -> None:
    """No graphics, no video, no sound; what is kept listens on the loopback only."""
    control = "dev.no-display"
    devices, notes = domain.devices, domain.notes
    if not notes.wants(control, "devices/graphics", "graphics, video and sound stay"):
        _loopback(domain)
        return
    for node in devices.elements("graphics", "sound", "audio"):
        if node.name == "audio" and node.get("type") == "none":
            continue
        what = f"{node.name} {node.get('type') or node.get('model') or ''}".strip()
        cost = "graphical console: use the serial console, or a remote desktop inside the guest"
        _remove(domain, node, control, what, _WHY_DISPLAY, cost if node.name == "graphics" else "sound")
    for node in devices.elements("channel"):
        if node.get("type") in ("spicevmc", "spiceport", "qemu-vdagent"):
            _remove(domain, node, control, f"channel {node.get('type')}", _WHY_DISPLAY, "clipboard of the console")
    for node in devices.elements("input"):
        if node.get("bus") in ("virtio", "xen"):
            _remove(domain, node, control, f"{node.get('bus')} {node.get('type')}", "nothing is there to point at")
    _no_video(domain, control)
    if not devices.elements("serial", "console"):
        devices.add('console type="pty"').add('target type="serial" port="0"')
        notes.change(
            control,
            "devices/console",
            "serial console added (virsh console)",
            "without graphics the guest would have no console at all",
            "the guest's kernel needs console=ttyS0",
        )


def _no_video(domain: Domain, control: str) -> None:
    """The one video device is ``none``."""
    devices = domain.devices
    videos = devices.elements("video")
    if len(videos) == 1 and videos[0].value("model", "type") == "none":
        return
    old = ", ".join(v.value("model", "type") or "default" for v in videos) or "the one that libvirt may add"
    for node in videos[1:]:
        node.remove()
    video = videos[0] if videos else devices.add("video")
    for child in video.elements_any():
        if child.name != "model":
            child.remove()
    model = video.first("model")
    if model is None:
        model = video.add("model")
    for name in model.attributes():
        model.unset(name)
    for child in model.elements_any():
        child.remove()
    model.set("type", "none")
    domain.notes.change(control, "devices/video", f"video {old} becomes none", _WHY_DISPLAY, "no screen")


def _loopback(domain: Domain) -> None:
    """Kept graphics are reachable from this host only."""
    control = "vmm.console"
    notes = domain.notes
    for node in domain.devices.elements("graphics"):
        where = node.place()
        addresses = [a for a in (node, *node.elements("listen")) if a.get("listen" if a is node else "address")]
        for holder in addresses:
            name = "listen" if holder is node else "address"
            old = holder.get(name) or ""
            if old in _LOOPBACK or not notes.wants(control, where, f"listens on {old}"):
                continue
            holder.set(name, "127.0.0.1")
            notes.change(
                control,
                holder.place(),
                f"listens on 127.0.0.1, no longer on {old[:60]}",
                "whoever reaches the port sits at the guest's keyboard, and talks to QEMU's remote desktop code",
                "from elsewhere: ssh -L",
            )
        if node.get("passwd") is not None:
            notes.leave(
                control,
                where,
                "a password stands in the clear",
                Reason.DECIDE,
                "use a Unix socket: <listen type='socket'/>",
            )


def shares(domain: Domain) -> None:
    """No directory and no memory shared with the host or with another process."""
    control = "dev.no-share"
    devices, notes = domain.devices, domain.notes
    why = "file servers inside or beside QEMU let a guest walk out of the shared directory"
    for node in devices.elements("filesystem"):
        source = node.first("source")
        shown = next(iter(source.attributes().values()), "") if source is not None else ""
        _remove(
            domain, node, control, f"shared directory {shown[:100]}", why, "the shared folder: use a disk image or ssh"
        )
    for node in devices.elements("shmem"):
        _remove(domain, node, control, "shared memory", "memory that several processes write", "the shared memory")
    for node in devices.elements("memory"):
        if node.get("model") in ("nvdimm", "virtio-pmem"):
            _passthrough(domain, node, control, f"memory device {node.get('model')}")
        elif node.get("model") in ("dimm", "virtio-mem"):
            _passthrough(domain, node, "dev.no-hotplug", f"memory device {node.get('model')}")
    for node in devices.elements("vsock"):
        _remove(
            domain,
            node,
            "kvm.no-vhost-other",
            "vsock",
            "vhost-vsock runs in the host's kernel: an escape there ignores every confinement of QEMU",
            "vsock between guest and host: use a virtio-serial channel",
        )
    access = domain.root.first("memoryBacking/access")
    users = [i for i in devices.elements("interface") if i.get("type") == "vhostuser"] + devices.elements("filesystem")
    users += [d for d in devices.elements("disk") if d.get("type") == "vhostuser"]
    if access is None or access.get("mode") != "shared" or users:
        return
    if notes.wants(control, "memoryBacking/access", "shared guest memory stays"):
        access.remove()
        notes.change(
            control, "memoryBacking/access", "access mode='shared' removed", "nothing shares guest memory any more"
        )


def leftovers(domain: Domain) -> None:
    """Memory balloon, parallel ports, guest agent, and the controller of channels that went."""
    devices, notes = domain.devices, domain.notes
    _balloon(domain)
    for node in devices.elements("parallel"):
        _remove(domain, node, "dev.platform-off", "parallel port", "an emulated device that nothing needs", "that port")
    for node in devices.elements("channel"):
        if node.value("target", "name") == AGENT:
            _remove(
                domain,
                node,
                "guest.agent",
                "channel of the guest agent",
                "whoever holds libvirt's socket runs commands and reads files in the guest through its agent",
                "virsh shutdown --mode agent, file system freeze, addresses in virsh domifaddr",
            )
    users = devices.elements("channel") + [
        c for c in devices.elements("console", "serial") if c.value("target", "type") == "virtio"
    ]
    for node in devices.elements("controller"):
        if node.get("type") == "virtio-serial" and not users and "dev.no-hotplug" not in notes.keep:
            where = node.place()
            node.remove()
            notes.change(
                "dev.no-hotplug", where, "virtio-serial controller removed", "no channel is left that needs it"
            )


def _balloon(domain: Domain) -> None:
    control = "dev.platform-off"
    found = domain.devices.elements("memballoon")
    if len(found) == 1 and found[0].get("model") == "none":
        return
    if not domain.notes.wants(control, "devices/memballoon", "the memory balloon stays"):
        return
    for node in found[1:]:
        node.remove()
    if found:
        _make_none(found[0])
    else:
        domain.devices.add('memballoon model="none"')
    domain.notes.change(
        control,
        "devices/memballoon",
        "<memballoon model='none'/>" + ("" if found else ", which libvirt would add as virtio"),
        "a device less; with a balloon one guest's memory pressure shows in others",
        "no memory given back while the guest runs, no memory statistics",
    )


def consoles(domain: Domain) -> None:
    """Serial ports and consoles that the network can reach become local ones."""
    notes = domain.notes
    for node in domain.devices.elements("serial", "console", "channel"):
        kind = node.get("type") or ""
        where = node.place()
        if kind == "dev":
            _passthrough(domain, node, "iommu.no-hostdev", f"a device of the host as {node.name}")
        if kind not in ("tcp", "udp") or not notes.wants("vmm.console", where, f"{kind} stays"):
            continue
        if node.name == "channel":
            notes.leave("vmm.console", where, f"a channel over {kind} stays", Reason.DECIDE, "use type='unix'")
            continue
        node.set("type", "pty")
        for child in node.elements("source", "protocol"):
            child.remove()
        notes.change(
            "vmm.console",
            where,
            f"{node.name} over {kind} becomes a local terminal",
            "whoever reaches the port sits at the guest's console; nothing asks for a password",
            "from elsewhere: ssh to the host, then virsh console",
        )


def entropy(domain: Domain, rate_bytes: int, period_ms: int) -> None:
    """One virtio-rng from /dev/urandom with a rate."""
    control = "ent.virtio-rng"
    found = domain.devices.elements("rng")
    good = [r for r in found if r.value("backend", "model") == "random" and r.value("backend") in _SOURCES]
    if not domain.notes.wants(control, "devices/rng", "entropy stays as it is"):
        return
    done: list[str] = []
    for node in found:
        if not any(node is other for other in good):
            node.remove()
            done.append(f"backend {node.value('backend', 'model')} replaced")
    if not good:
        node = domain.devices.add('rng model="virtio"')
        node.add(f'rate bytes="{rate_bytes}" period="{period_ms}"')
        node.add('backend model="random"', "/dev/urandom")
        done.append("virtio-rng from /dev/urandom")
    for node in good:
        if node.first("rate") is None:
            node.add(f'rate bytes="{rate_bytes}" period="{period_ms}"')
            done.append(f"rate of {rate_bytes} bytes per {period_ms} ms")
    if done:
        domain.notes.change(
            control,
            "devices/rng",
            "; ".join(done),
            "a guest has few sources of its own; without a rate it can drain the host's generator of CPU time",
        )


_SOURCES: Final = ("/dev/urandom", "/dev/random", "")
