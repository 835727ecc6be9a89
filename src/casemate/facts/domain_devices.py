"""The devices of a libvirt domain, one reader for each element below <devices>, as libvirt turns them into QEMU's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from casemate.facts.domain_draft import DomainDraft
from casemate.facts.domain_tree import Element
from casemate.facts.machine import Disk

Reader = Callable[[DomainDraft, Element, str], None]

_INPUT: Final = {
    ("tablet", "usb"): "usb-tablet",
    ("mouse", "usb"): "usb-mouse",
    ("keyboard", "usb"): "usb-kbd",
    ("tablet", "virtio"): "virtio-tablet-pci",
    ("mouse", "virtio"): "virtio-mouse-pci",
    ("keyboard", "virtio"): "virtio-keyboard-pci",
    ("passthrough", "virtio"): "virtio-input-host-pci",
    ("mouse", "ps2"): "",
    ("keyboard", "ps2"): "",
    ("mouse", "xen"): "",
    ("keyboard", "xen"): "",
}
_VIDEO: Final = {
    "vga": "VGA",
    "cirrus": "cirrus-vga",
    "vmvga": "vmware-svga",
    "qxl": "qxl-vga",
    "virtio": "virtio-vga",
    "bochs": "bochs-display",
    "ramfb": "ramfb",
    "gop": "",
    "none": "",
}
_SOUND: Final[dict[str, tuple[str, ...]]] = {
    "ich6": ("intel-hda", "hda-duplex"),
    "ich9": ("ich9-intel-hda", "hda-duplex"),
    "ac97": ("AC97",),
    "es1370": ("ES1370",),
    "sb16": ("sb16",),
    "pcspk": ("isa-pcspk",),
    "usb": ("usb-audio",),
    "virtio": ("virtio-sound-pci",),
}
_CONTROLLERS: Final = {
    ("usb", "piix3-uhci"): "piix3-usb-uhci",
    ("usb", "piix4-uhci"): "piix4-usb-uhci",
    ("usb", "ehci"): "usb-ehci",
    ("usb", "ich9-ehci1"): "ich9-usb-ehci1",
    ("usb", "ich9-uhci1"): "ich9-usb-uhci1",
    ("usb", "ich9-uhci2"): "ich9-usb-uhci2",
    ("usb", "ich9-uhci3"): "ich9-usb-uhci3",
    ("usb", "pci-ohci"): "pci-ohci",
    ("usb", "nec-xhci"): "nec-usb-xhci",
    ("usb", "qemu-xhci"): "qemu-xhci",
    ("usb", "vt82c686b-uhci"): "vt82c686b-usb-uhci",
    ("usb", "none"): "",
    ("scsi", "lsilogic"): "lsi53c895a",
    ("scsi", "virtio-scsi"): "virtio-scsi-pci",
    ("scsi", "lsisas1068"): "mptsas1068",
    ("scsi", "lsisas1078"): "megasas",
    ("scsi", "vmpvscsi"): "pvscsi",
    ("scsi", "am53c974"): "am53c974",
    ("scsi", "dc390"): "dc390",
    ("pci", "pci-root"): "",
    ("pci", "pcie-root"): "",
    ("pci", "pci-bridge"): "pci-bridge",
    ("pci", "dmi-to-pci-bridge"): "i82801b11-bridge",
    ("pci", "pcie-to-pci-bridge"): "pcie-pci-bridge",
    ("pci", "pcie-root-port"): "pcie-root-port",
    ("pci", "pcie-switch-upstream-port"): "x3130-upstream",
    ("pci", "pcie-switch-downstream-port"): "xio3130-downstream",
    ("pci", "pcie-expander-bus"): "pxb-pcie",
    ("pci", "pci-expander-bus"): "pxb",
}
_WATCHDOGS: Final = {"i6300esb": "i6300esb", "ib700": "ib700", "diag288": "diag288", "itco": ""}
_DIMMS: Final = {
    "dimm": "pc-dimm",
    "nvdimm": "nvdimm",
    "virtio-pmem": "virtio-pmem-pci",
    "virtio-mem": "virtio-mem-pci",
    "sgx-epc": "sgx-epc",
}
_IOMMUS: Final = {"intel": "intel-iommu", "virtio": "virtio-iommu-pci", "smmuv3": "", "amd": "amd-iommu"}


def _named(table: Mapping[str, str], attribute: str = "model") -> Reader:
    def read(draft: DomainDraft, element: Element, origin: str) -> None:
        word = element.get(attribute)
        if word not in table:
            draft.miss(f"{origin}: {attribute} {word[:60] or '(none)'} is not known")
        elif table[word]:
            draft.device(table[word], {}, origin)

    return read


def _controller(draft: DomainDraft, element: Element, origin: str) -> None:
    kind, model = element.get("type"), element.get("model")
    draft.controllers.add(kind)
    if kind in ("ide", "fdc"):
        if kind == "fdc" and draft.family == "q35":
            draft.device("isa-fdc", {}, origin)
        return
    if kind == "sata":
        if not (draft.family == "q35" and element.get("index", "0") == "0"):
            draft.device("ich9-ahci", {}, origin)
        return
    if kind == "virtio-serial":
        draft.device("virtio-serial-pci", {}, origin)
        return
    if kind == "ccid":
        draft.device("usb-ccid", {}, origin)
        return
    if not model:
        model = {"usb": draft.default_usb(), "scsi": "lsilogic"}.get(kind, model)
    if model.startswith("virtio-") and "scsi" in model:
        model = "virtio-scsi"
    if (kind, model) not in _CONTROLLERS:
        draft.miss(f"{origin}: controller {kind[:30]} {model[:30]} is not known")
        return
    target = element.child("target")
    properties = {"hotplug": target.get("hotplug")} if target.get("hotplug") else {}
    if _CONTROLLERS[kind, model]:
        draft.device(_CONTROLLERS[kind, model], properties, origin)


def _interface(draft: DomainDraft, element: Element, origin: str) -> None:
    kind = element.get("type")
    number = draft.count("net")
    name = f"net{number}"
    model = element.child("model").get("type") or "rtl8139"
    card = {"virtio": "virtio-net-pci", "virtio-transitional": "virtio-net-pci"}.get(model, model)
    card = "virtio-net-pci" if card == "virtio-non-transitional" else card
    if kind == "hostdev":
        draft.device("vfio-pci", {"host": _address(element.child("source").child("address"))}, origin)
        return
    driver = element.child("driver")
    backend = element.child("backend")
    properties: dict[str, str] = {"id": f"host{name}"}
    types = {"user": "user", "vhostuser": "vhost-user", "vdpa": "vhost-vdpa", "null": "none"}
    netdev = types.get(kind, "socket" if kind in ("server", "client", "mcast", "udp") else "tap")
    if kind == "user" and backend.get("type") == "passt":
        properties["passt"] = "on"
        for rule in element.all("portForward"):
            _forward(rule, properties)
    if netdev == "tap" and card.startswith("virtio") and driver.get("name") != "qemu":
        properties["vhost"] = "on"  # libvirt takes vhost-net wherever it can open it
    if element.has("filterref"):
        properties["filter"] = element.child("filterref").get("filter")
    if element.child("port").get("isolated") == "yes":
        properties["isolated"] = "on"
    if element.has("vlan"):
        properties["vlan"] = element.child("vlan").child("tag").get("id", "0")
    source = element.child("source")
    for word in ("network", "bridge", "dev", "path", "address"):
        if source.get(word):
            properties[word] = source.get(word)
    draft.backend("netdev", netdev, properties, origin)
    draft.device(card, {"netdev": f"host{name}", "id": name}, origin)


def _forward(rule: Element, properties: dict[str, str]) -> None:
    for span in rule.all("range"):
        address = rule.get("address")
        number = sum(key.startswith("hostfwd") for key in properties)
        properties[f"hostfwd.{number}"] = f"{rule.get('proto')}:{address}:{span.get('start')}-:{span.get('to')}"


def _address(address: Element) -> str:
    if address.get("type") == "usb" or (address.get("bus") and not address.get("slot")):
        return f"{address.get('bus')}.{address.get('device')}"
    parts = [address.get(name, "0x0").removeprefix("0x") for name in ("domain", "bus", "slot", "function")]
    return f"{parts[0].zfill(4)}:{parts[1].zfill(2)}:{parts[2].zfill(2)}.{parts[3]}"


def _hostdev(draft: DomainDraft, element: Element, origin: str) -> None:
    kind = element.get("type")
    source = element.child("source")
    if kind == "usb":
        product = source.child("product").get("id") or _address(source.child("address"))
        draft.device("usb-host", {"hostaddr": product}, origin)
    elif kind == "pci":
        draft.device("vfio-pci", {"host": _address(source.child("address"))}, origin)
    elif kind == "mdev":
        draft.device("vfio-pci", {"sysfsdev": source.child("address").get("uuid")}, origin)
    elif kind == "scsi":
        draft.device("scsi-generic", {"host": source.child("adapter").get("name")}, origin)
        if source.get("protocol"):  # no adapter of the host: QEMU's own client asks a server
            protocol, name = source.get("protocol"), source.get("name")
            draft.disks.append(
                Disk(path=name, format="raw", device="scsi-generic", origin=origin, protocol=protocol, backing=())
            )
    elif kind == "scsi_host":
        draft.device("vhost-scsi-pci", {"wwpn": source.get("wwpn")}, origin)
    else:
        draft.miss(f"{origin}: hostdev of type {kind[:40]} is not known")
        draft.device("vfio-unknown", {}, origin)


def _graphics(draft: DomainDraft, element: Element, origin: str) -> None:
    kind = element.get("type")
    listens = element.all("listen") or [element]
    for listen in listens:
        word = listen.get("type", "address")
        properties = {name: element.get(name) for name in ("port", "autoport", "websocket") if element.get(name)}
        if element.get("passwd"):
            properties["password"] = "(set)"  # noqa: S105  the secret itself is not kept
            draft.secrets.append(f"{origin}: passwd")
        if element.get("tlsPort") or element.get("defaultMode") == "secure":
            properties["tls-port"] = element.get("tlsPort") or "secure"
        if word == "socket" or element.get("socket"):
            properties["path"] = listen.get("socket") or element.get("socket") or "libvirt's own socket"
        elif word == "none" or kind not in ("vnc", "spice", "rdp"):
            properties["path"] = "none"
        elif word == "network":
            properties["listen"] = listen.get("address") or f"network {listen.get('network')}"
        else:
            # Without an address qemu.conf decides; libvirt's own default is the loopback.
            properties["listen"] = listen.get("address") or element.get("listen") or "127.0.0.1"
        draft.backend("display", kind, properties, origin)
        draft.display = draft.display or kind


def _video(draft: DomainDraft, element: Element, origin: str) -> None:
    model = element.child("model")
    word = model.get("type") or "cirrus"
    if word not in _VIDEO:
        draft.miss(f"{origin}: video {word[:40]} is not known")
        return
    kind = _VIDEO[word]
    gl = model.child("acceleration").get("accel3d") == "yes"
    primary = draft.count("video") == 0
    if word == "virtio":
        kind = ("virtio-vga" if primary else "virtio-gpu") + ("-gl" if gl else "")
        kind = kind if primary else f"{kind}-pci"
    elif word == "qxl" and not primary:
        kind = "qxl"
    if kind:
        draft.device(kind, {}, origin)


def _sound(draft: DomainDraft, element: Element, origin: str) -> None:
    word = element.get("model")
    if word not in _SOUND:
        draft.miss(f"{origin}: sound {word[:40]} is not known")
    codecs = {"micro": "hda-micro", "duplex": "hda-duplex", "output": "hda-output"}
    wanted = [codecs[c.get("type")] for c in element.all("codec") if c.get("type") in codecs]
    for kind in _SOUND.get(word, ()):
        if kind == "hda-duplex" and wanted:
            for codec in wanted:
                draft.device(codec, {}, origin)
        else:
            draft.device(kind, {}, origin)


def _input(draft: DomainDraft, element: Element, origin: str) -> None:
    bus = element.get("bus")
    kind = element.get("type")
    if not bus:
        bus = "usb" if kind == "tablet" else "ps2"
    if kind == "evdev":
        draft.backend("object", "input-linux", {"evdev": element.child("source").get("dev")}, origin)
    elif (kind, bus) not in _INPUT:
        draft.miss(f"{origin}: input {kind[:20]} on {bus[:20]} is not known")
    elif _INPUT[kind, bus]:
        draft.device(_INPUT[kind, bus], {}, origin)


def _character(draft: DomainDraft, element: Element, origin: str, name: str) -> None:
    source = element.child("source")
    kind = element.get("type")
    properties = {"id": name}
    driver = {"unix": "socket", "tcp": "socket", "dev": "serial"}.get(kind, kind)
    if kind in ("tcp", "udp"):
        properties["host"] = source.get("host")
        properties["port"] = source.get("service")
        if element.child("source").get("tls") == "yes":
            properties["tls-creds"] = "on"
    elif source.get("path"):
        properties["path"] = source.get("path")
    elif kind == "unix":
        properties["path"] = "libvirt's own socket"
    if element.has("log"):
        properties["logfile"] = element.child("log").get("file")
    draft.backend("chardev", driver, properties, origin)


def _serial(draft: DomainDraft, element: Element, origin: str) -> None:
    name = f"charserial{draft.count('serial')}"
    _character(draft, element, origin, name)
    target = element.child("target")
    model = target.child("model").get("name") or {"usb-serial": "usb-serial", "pci-serial": "pci-serial"}.get(
        target.get("type"), "pl011" if draft.family == "virt" else "isa-serial"
    )
    draft.device(model, {"chardev": name}, origin)


def _parallel(draft: DomainDraft, element: Element, origin: str) -> None:
    name = f"charparallel{draft.count('parallel')}"
    _character(draft, element, origin, name)
    draft.device("isa-parallel", {"chardev": name}, origin)


def _console(draft: DomainDraft, element: Element, origin: str) -> None:
    kind = element.child("target").get("type") or "serial"
    number = draft.count("console")
    if kind == "virtio":
        _character(draft, element, origin, f"charconsole{number}")
        draft.device("virtconsole", {"chardev": f"charconsole{number}"}, origin)
        draft.controllers.add("#virtio-serial")
    elif kind == "serial":
        # The first serial console is the first serial port under another name.
        draft.serial_console = draft.serial_console or (element, origin)
    else:
        draft.miss(f"{origin}: console on {kind[:40]} is not known")


def _channel(draft: DomainDraft, element: Element, origin: str) -> None:
    target = element.child("target")
    if target.get("type") != "virtio":
        return  # guestfwd belongs to slirp
    name = f"charchannel{draft.count('channel')}"
    _character(draft, element, origin, name)
    draft.device("virtserialport", {"chardev": name, "name": target.get("name")}, origin)
    draft.controllers.add("#virtio-serial")


def _rng(draft: DomainDraft, element: Element, origin: str) -> None:
    backend = element.child("backend")
    name = f"objrng{draft.count('rng')}"
    kind = {"random": "rng-random", "egd": "rng-egd", "builtin": "rng-builtin"}.get(backend.get("model"), "")
    if not kind:
        draft.miss(f"{origin}: rng backend {backend.get('model')[:40]} is not known")
    path = backend.text.strip() or "/dev/random"
    draft.backend("object", kind, {"id": name, "filename": path} if kind == "rng-random" else {"id": name}, origin)
    rate = element.child("rate").get("bytes")
    draft.device("virtio-rng-pci", {"rng": name, **({"max-bytes": rate} if rate else {})}, origin)


def _filesystem(draft: DomainDraft, element: Element, origin: str) -> None:
    source = element.child("source")
    path = source.get("dir") or source.get("file") or source.get("socket")
    name = f"fs{draft.count('fs')}"
    if element.child("driver").get("type") == "virtiofs":
        draft.device("vhost-user-fs-pci", {"chardev": name, "path": path}, origin)
    else:
        draft.backend("fsdev", "local", {"id": name, "path": path}, origin)
        draft.device("virtio-9p-pci", {"fsdev": name}, origin)


def _tpm(draft: DomainDraft, element: Element, origin: str) -> None:
    backend = element.child("backend")
    secret = backend.child("encryption").get("secret")
    properties = {"id": "tpm0", "path": backend.child("device").get("path"), "state": "libvirt", "secret": secret}
    draft.backend("tpmdev", backend.get("type"), {k: v for k, v in properties.items() if v}, origin)
    draft.device(element.get("model") or "tpm-tis", {"tpmdev": "tpm0"}, origin)


def _redirdev(draft: DomainDraft, element: Element, origin: str) -> None:
    name = f"charredir{draft.count('redir')}"
    _character(draft, element, origin, name)
    draft.device("usb-redir", {"chardev": name}, origin)


def _smartcard(draft: DomainDraft, element: Element, origin: str) -> None:
    kind = "ccid-card-passthru" if element.get("mode") == "passthrough" else "ccid-card-emulated"
    draft.device(kind, {}, origin)
    if "ccid" not in draft.controllers:
        draft.controllers.add("ccid")
        draft.device("usb-ccid", {}, origin)


def _shmem(draft: DomainDraft, element: Element, origin: str) -> None:
    kind = element.child("model").get("type") or "ivshmem"
    draft.device(kind, {"memdev": element.get("name")}, origin)


def _panic(draft: DomainDraft, element: Element, origin: str) -> None:
    kind = {"isa": "pvpanic", "": "pvpanic", "pvpanic": "pvpanic-pci"}.get(element.get("model"), "")
    if kind:
        draft.device(kind, {}, origin)


def _vsock(draft: DomainDraft, element: Element, origin: str) -> None:
    del element
    draft.device("vhost-vsock-pci", {}, origin)


def _balloon(draft: DomainDraft, element: Element, origin: str) -> None:
    draft.controllers.add("#balloon")
    model = element.get("model")
    if model.startswith("virtio"):
        draft.device("virtio-balloon-pci", {}, origin)
    elif model != "none":
        draft.miss(f"{origin}: memballoon {model[:40]} is not known")


def _simple(kind: str) -> Reader:
    return lambda draft, element, origin: draft.device(kind, {}, origin)


def _nothing(draft: DomainDraft, element: Element, origin: str) -> None:
    del draft, element, origin


READERS: Final[dict[str, Reader]] = {
    "controller": _controller,
    "interface": _interface,
    "hostdev": _hostdev,
    "graphics": _graphics,
    "video": _video,
    "sound": _sound,
    "input": _input,
    "serial": _serial,
    "parallel": _parallel,
    "console": _console,
    "channel": _channel,
    "rng": _rng,
    "filesystem": _filesystem,
    "tpm": _tpm,
    "redirdev": _redirdev,
    "smartcard": _smartcard,
    "shmem": _shmem,
    "panic": _panic,
    "vsock": _vsock,
    "memballoon": _balloon,
    "watchdog": _named(_WATCHDOGS),
    "memory": _named(_DIMMS),
    "iommu": _named(_IOMMUS),
    "crypto": _simple("virtio-crypto-pci"),
    "hub": _simple("usb-hub"),
    "emulator": _nothing,
    "audio": _nothing,
    "lease": _nothing,
    "redirfilter": _nothing,
    "nvram": _nothing,
    "disk": _nothing,
    "pstore": _simple("acpi-erst"),
}
"""Element below <devices>: its reader. Disks have a module of their own; an element not named here is unreadable."""
