"""Rules of a domain's network interfaces."""

from __future__ import annotations

from typing import Final

from casemate.harden.context import PASST_SINCE, Domain
from casemate.harden.document import Element
from casemate.harden.model import Reason

_TAP: Final = ("network", "bridge", "ethernet", "direct")
_FILTERED: Final = ("network", "bridge", "ethernet")
_BRIDGED: Final = ("network", "bridge")
_VIRTIO: Final = ("virtio", "virtio-transitional", "virtio-non-transitional")
_SOCKETS: Final = ("server", "client", "mcast", "udp", "internal")
FILTER: Final = "clean-traffic"


def interfaces(domain: Domain) -> None:
    """Each interface in turn."""
    for node in domain.devices.elements("interface"):
        kind = node.get("type") or ""
        if kind in ("hostdev", "vdpa", "vhostuser"):
            _not_ours(domain, node, kind)
            continue
        _model(domain, node)
        if kind in _TAP:
            _driver(domain, node)
        if kind == "user":
            _passt(domain, node)
        elif kind in _SOCKETS:
            _left(domain, node, "net.antispoof", f"an interface over {kind} sockets stays", "use a libvirt network")
        else:
            _spoofing(domain, node, kind)
            domain.notes.leave(
                "dev.no-slirp",
                node.place(),
                f"the interface stays on the host's network (type {kind[:20]!r})",
                Reason.KEPT if "dev.no-slirp" in domain.notes.keep else Reason.LIMIT,
                "<interface type='user'> with passt, if nobody has to reach the guest by an address of its own",
            )


def _left(domain: Domain, node: Element, control: str, what: str, next_step: str) -> None:
    reason = Reason.KEPT if control in domain.notes.keep else Reason.DECIDE
    domain.notes.leave(control, node.place(), what, reason, next_step)


def _not_ours(domain: Domain, node: Element, kind: str) -> None:
    control, step = {
        "hostdev": ("iommu.no-hostdev", "a virtio interface on a bridge, if the guest can do without its card"),
        "vdpa": ("kvm.no-vhost-other", "a virtio interface on a bridge"),
        "vhostuser": ("dev.no-share", "a virtio interface on a bridge: this one shares the guest's whole memory"),
    }[kind]
    _left(domain, node, control, f"an interface of type {kind} stays", step)
    if kind == "vhostuser":
        _left(domain, node, "dev.no-slirp", "its back end is another process, not passt", step)


def _model(domain: Domain, node: Element) -> None:
    control = "dev.no-legacy-nic"
    model = node.first("model")
    old = "" if model is None else model.get("type") or ""
    if old in _VIRTIO or not domain.notes.wants(control, node.place(), f"model {old or '(default)'} stays"):
        return
    if model is None:
        place = (node.elements("source") or node.elements("mac") or [None])[-1]  # type: ignore[list-item]
        model = node.add("model", after=place)
    model.set("type", "virtio")
    for child in node.elements("address", "alias", "rom"):
        child.remove()
    domain.notes.change(
        control,
        node.place(),
        f"network card {old[:20] or '(default: rtl8139 or e1000)'} becomes virtio",
        "emulated cards have had remote and local code execution on the host (CVE-2015-3209, CVE-2015-7504)",
        "the guest needs a virtio-net driver; the interface may get another name",
    )


def _driver(domain: Domain, node: Element) -> None:
    control = "kvm.no-vhost-net"
    backend = node.first("backend")
    if not domain.notes.wants(control, node.place(), "vhost-net stays"):
        return
    done = []
    if backend is not None and backend.get("vhost") is not None:
        backend.unset("vhost")
        done.append("its vhost device removed")
        if not backend.attributes():
            backend.remove()
    driver = node.first("driver")
    if driver is None:
        places = node.elements("model")
        driver = node.add('driver name="qemu"', after=places[-1] if places else None)
        done.append("<driver name='qemu'/>")
    elif driver.get("name") != "qemu":
        done.append(f"driver {driver.get('name') or '(default: vhost)'} becomes qemu")
        driver.set("name", "qemu")
    if done:
        domain.notes.change(
            control,
            node.place(),
            "; ".join(done),
            "vhost-net handles the guest's queues in the host's kernel: an escape there ignores every confinement",
            "a part of the network throughput, some CPU time",
        )


def _passt(domain: Domain, node: Element) -> None:
    control = "dev.no-slirp"
    if node.value("backend", "type") == "passt":
        return
    if domain.libvirt < PASST_SINCE:
        if domain.notes.wants(control, node.place(), "slirp stays"):
            domain.notes.leave(
                control,
                node.place(),
                "slirp stays: libvirt 9.0 and older refuse passt",
                Reason.LIMIT,
                "--libvirt 9.1 or newer, if that is your version: <backend type='passt'/>",
            )
        return
    if not domain.notes.wants(control, node.place(), "slirp stays"):
        return
    domain.ensure(node, "backend", {"type": "passt"})
    domain.notes.change(
        control,
        node.place(),
        "slirp becomes passt",
        "slirp parses the guest's packets inside QEMU and has had code execution (CVE-2019-6778)",
        "the package passt on the host",
    )


def _spoofing(domain: Domain, node: Element, kind: str) -> None:
    """The guest sends with its own addresses only, and talks to no other guest of the bridge."""
    notes = domain.notes
    control = "net.antispoof"
    switch = node.value("virtualport", "type")
    if node.get("trustGuestRxFilters") == "yes" and notes.wants(control, node.place(), "trustGuestRxFilters stays"):
        node.unset("trustGuestRxFilters")
        notes.change(
            control, node.place(), "trustGuestRxFilters removed", "the guest could change its filters and its MAC"
        )
    if (switch or kind not in _BRIDGED) and "net.isolated" not in notes.keep:
        notes.leave(
            "net.isolated", node.place(), "libvirt cannot isolate this port", Reason.LIMIT, "isolate it on the switch"
        )
    if switch or kind not in _FILTERED:
        what = f"libvirt has no packet filter for {'virtual port ' + switch if switch else 'type ' + kind}"
        if control not in notes.keep:
            notes.leave(
                control, node.place(), what[:80], Reason.LIMIT, "filter on the switch (OVS port security, macvtap)"
            )
        return
    if node.first("filterref") is None and notes.wants(control, node.place(), "no packet filter"):
        node.add(f'filterref filter="{FILTER}"')
        notes.change(
            control,
            node.place(),
            f"<filterref filter='{FILTER}'/>",
            "a guest cannot pose as another by its MAC, IP address or ARP answers",
            "IPv6, VLANs inside the guest, bridges, routers and several addresses inside the guest",
        )
    if kind in _BRIDGED and notes.wants("net.isolated", node.place(), "guests of the bridge reach each other"):
        _, changed = domain.ensure(node, "port", {"isolated": "yes"})
        if changed:
            notes.change(
                "net.isolated",
                node.place(),
                "<port isolated='yes'/>",
                "guests on one bridge cannot attack each other past the host's firewall",
                "guests reach each other only through a router",
            )
