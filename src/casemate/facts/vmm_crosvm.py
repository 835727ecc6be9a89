"""crosvm's command line (``crosvm run … KERNEL``) as a machine.

Options as in the project's src/crosvm/cmdline.rs, in the older spelling (``--rwdisk``, ``--tap-name``) and the
newer one (``--block path=…``, ``--net tap-name=…``). What it adds unasked on x86: four serial ports,
keyboard controller, RTC, USB (xHCI), memory balloon, entropy device, and KVM's whole interrupt controller unless
that is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from casemate.facts.machine import Disk, Machine
from casemate.facts.machine_secrets import secrets_in
from casemate.facts.qemu_argv_draft import Draft
from casemate.facts.qemu_argv_text import Properties

_DISKS: Final = {"r": True, "root": True, "d": True, "disk": True, "qcow": True}
_WRITABLE: Final = frozenset({"rwroot", "rwdisk", "rwqcow"})
_SWITCHES: Final = frozenset(
    """disable-sandbox seccomp-log-failures split-irqchip vhost-net no-usb no-rng no-balloon no-i8042 no-rtc no-legacy
    no-smt hugepages lock-guest-memory protected-vm protected-vm-without-firmware per-vm-core-scheduling software-tpm
    privileged-vm strict-balloon s2idle core-scheduling host-cpu-topology itmt enable-pnp-data disable-virtio-intx
    balloon-page-reporting delay-rt force-calibrated-tsc-leaf display-window-keyboard display-window-mouse vtpm-proxy
    vfio-isolate-hotplug vcpu-cgroup unmap-guest-memory-on-fork no-pmu virt-cpufreq help""".split()  # noqa: SIM905
)
_ONE_DEVICE: Final = {
    "gpu": "virtio-gpu-pci",
    "wayland-sock": "virtio-wl-pci",
    "sound": "virtio-snd-pci",
    "virtio-snd": "virtio-snd-pci",
    "ac97": "AC97",
    "video-decoder": "virtio-video-pci",
    "video-encoder": "virtio-video-pci",
    "evdev": "virtio-input-host-pci",
    "keyboard": "virtio-keyboard-pci",
    "mouse": "virtio-mouse-pci",
    "trackpad": "virtio-tablet-pci",
    "multi-touch": "virtio-tablet-pci",
    "single-touch": "virtio-tablet-pci",
    "switches": "virtio-input-pci",
    "input": "virtio-input-pci",
    "pvpanic": "pvpanic-pci",
    "pflash": "cfi.pflash01",
    "battery": "goldfish-battery",
    "vvu-proxy": "virtio-vhost-user-pci",
    "coiommu": "coiommu",
    "stub-pci-device": "stub-pci",
    "file-backed-mapping": "file-backed-mapping",
    "direct-pmio": "direct-pmio",
    "direct-mmio": "direct-mmio",
    "x-display": "x-display",
}
_QUIET: Final = frozenset(
    """mem m cpus c cpu-affinity cpu-cluster cpu-capacity rt-cpus name syslog-tag log-level extended-status hypervisor
    kvm-device swiotlb init-memory balloon-bias-mib mac host-ip netmask vcpu-cgroup-path net-vq-pairs acpi-table dmi
    smbios pci-low-start pcie-ecam userspace-msr android-fstab gpu-display gpu-render-server pivot-root pstore
    seccomp-policy-dir vhost-net-device boost-uclamp core-types cpu-frequencies-khz pci mmio-address-range
    task-profiles dump-device-tree-blob fdt-position""".split()  # noqa: SIM905
)


def read_crosvm_command(argv: Sequence[str], source: str) -> Machine:
    """The machine of a ``crosvm run`` command."""
    draft = Draft()
    values, switches, kernel = _words(argv, draft)
    disks = [disk for name, value in values for disk in _disk_of(draft, name, value)]
    for name, value in values:
        _device_of(draft, name, value, "vhost-net" in switches)
    _always(draft, switches, values)
    cmdline = " ".join(value for name, value in values if name in ("p", "params"))
    sockets = [value for name, value in values if name in ("s", "socket")]
    loosened = []
    if "disable-sandbox" in switches:
        loosened.append("--disable-sandbox: every device runs in the main process, without a filter")
    if "seccomp-log-failures" in switches:
        loosened.append("--seccomp-log-failures: calls outside of a filter are only logged")
    protected = bool({"protected-vm", "protected-vm-without-firmware"} & switches)
    memory = next((value for name, value in values if name in ("m", "mem")), "")
    return Machine(
        vmm="crosvm",
        form="crosvm-command",
        source=source,
        name=next((value for name, value in values if name == "name"), ""),
        emulator=argv[0],
        accel="kvm",
        board_options={"kernel-irqchip": _irqchip(values, switches)},
        cpu_model="host",
        memory_mib=_number(memory.rpartition("size=")[2].partition(",")[0]),
        vcpus=_number(
            next((v.rpartition("num-cores=")[2].partition(",")[0] for n, v in values if n in ("c", "cpus")), "")
        ),
        kernel=kernel,
        initrd=next((value for name, value in values if name in ("i", "initrd")), ""),
        cmdline=cmdline,
        firmware=tuple(value for name, value in values if name == "bios"),
        devices=draft.final_devices(),
        backends=draft.final_backends(),
        disks=tuple(disks),
        monitors=tuple(f"unix:{path}" for path in sockets) or ("none",),
        display="none",
        flags=tuple("-gdb" for name, _ in values if name == "gdb"),
        launch_security="pkvm" if protected else "",
        options=tuple((f"--{name}", value) for name, value in values),
        unreadable=tuple(draft.unreadable),
        settings={"sandbox-off": "; ".join(loosened)},
        secrets=tuple(name.replace("-append", "--params") for name in secrets_in("-append", cmdline)),
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0


def _words(argv: Sequence[str], draft: Draft) -> tuple[list[tuple[str, str]], set[str], str]:
    """(options with their values, switches, kernel)."""
    values: list[tuple[str, str]] = []
    switches: set[str] = set()
    kernel = ""
    rest = list(argv[1:])
    while rest and rest[0].startswith("-"):  # options of the program itself: --log-level LEVEL, --no-syslog
        word = rest.pop(0)
        if word in ("--log-level", "--syslog-tag") and rest:
            rest.pop(0)
    if not rest or rest.pop(0) != "run":
        draft.miss("not `crosvm run`: what it starts is not known to this reader")
        return [], set(), ""
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            kernel = word
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if name in _SWITCHES:
            switches.add(name)
        elif equals:
            values.append((name, value))
        elif rest:
            values.append((name, rest.pop(0)))
        else:
            draft.miss(f"{word[:80]} without its argument")
    return values, switches, kernel


def _parts(text: str, first: str) -> Properties:
    """``PATH,key=value`` or ``path=PATH,key=value``; a bare word in front is ``first``, a later one a switch."""
    found: Properties = {}
    for number, part in enumerate(text.split(",")):
        key, equals, value = part.partition("=")
        if equals:
            found[key] = value
        elif number == 0:
            found[first] = part
        else:
            found[part] = "true"
    return found


def _disk_of(draft: Draft, name: str, value: str) -> list[Disk]:
    if name in _DISKS or name in _WRITABLE:
        found = _parts(value, "path")
        read_only, kind = name not in _WRITABLE, "virtio-blk-pci"
    elif name in ("b", "block"):
        found = _parts(value, "path")
        read_only, kind = found.get("ro") == "true", "virtio-blk-pci"
    elif name in ("pmem-device", "rw-pmem-device", "pmem"):
        found = _parts(value, "path")
        read_only, kind = name == "pmem-device" or found.get("ro") == "true", "virtio-pmem-pci"
    elif name == "scsi-block":
        found = _parts(value, "path")
        read_only, kind = found.get("ro") == "true", "virtio-scsi-pci"
    else:
        return []
    disk = found.get("id") or draft.name("disk")
    draft.device(kind, {"id": disk, "drive": disk}, f"--{name}")
    raw = kind == "virtio-pmem-pci"
    # crosvm looks at the content to tell raw, qcow2, composite and sparse images apart, and follows a qcow2's header.
    path = found.get("path", "")
    return [Disk(path, "raw" if raw else "", read_only, device=kind, id=disk, backing=() if raw else None)]


def _device_of(draft: Draft, name: str, value: str, vhost: bool) -> None:
    origin = f"--{name}"
    if name in ("tap-name", "tap-fd", "net", "host-ip"):
        found = _parts(value, "tap-name") if name == "net" else {name: value}
        if name == "host-ip":
            found = {}
        net = draft.name("net")
        kernel_side = vhost or found.get("vhost-net", "") not in ("", "false")
        properties = {"id": f"host{net}", "ifname": found.get("tap-name", ""), "vhost": "on" if kernel_side else "off"}
        draft.backend("netdev", "tap", properties, origin)
        draft.device("virtio-net-pci", {"id": net, "netdev": f"host{net}"}, origin)
    elif name in ("cid", "vsock", "vhost-vsock-device", "vhost-vsock-fd"):
        draft.device("vhost-vsock-pci", {}, origin)
    elif name == "shared-dir":
        kind = "virtio-fs-pci" if ":type=fs" in value else "virtio-9p-pci"
        draft.device(kind, {"path": value.partition(":")[0]}, origin)
    elif name in ("vfio", "vfio-platform"):
        host = _parts(value, "path").get("path", "").rstrip("/").rpartition("/")[2]
        draft.device("vfio-pci" if name == "vfio" else "vfio-platform", {"host": host}, origin)
    elif name.startswith("vhost-user"):
        kind = _parts(value, "type").get("type", "device") if name == "vhost-user" else name.removeprefix("vhost-user-")
        draft.device(f"vhost-user-{kind}-pci", {}, origin)
    elif name == "serial":
        _serial(draft, _parts(value, "type"), origin)
    elif name in _ONE_DEVICE:
        draft.device(_ONE_DEVICE[name], {}, origin)
    elif name in ("cfg", "plugin"):
        draft.miss(f"{origin} {value[:100]}: more is said there")
    elif not (name in _QUIET or name in _KNOWN):
        draft.miss(f"{origin}: not known to this reader")


_KNOWN: Final = frozenset(
    {*_DISKS, *_WRITABLE, "b", "block", "pmem", "pmem-device", "rw-pmem-device", "scsi-block", "p", "params", "s"}
    | {"socket", "i", "initrd", "bios", "gdb", "irqchip", "unprotected-vm-with-firmware"}
)


def _serial(draft: Draft, found: Properties, origin: str) -> None:
    name = draft.name("serial")
    kinds = {"file": "file", "stdout": "stdio", "unix": "socket", "unix-stream": "socket"}
    kind = kinds.get(found.get("type", ""), "null")
    draft.backend("chardev", kind, {"id": name, "path": found.get("path", "")}, origin)
    console = found.get("hardware", "serial") in ("virtio-console", "legacy-virtio-console")
    draft.device("virtconsole" if console else "serial", {"chardev": name}, origin)


def _always(draft: Draft, switches: set[str], values: list[tuple[str, str]]) -> None:
    """What comes unasked, unless it was refused or the VM is a protected one."""
    protected = bool({"protected-vm", "protected-vm-without-firmware"} & switches) or any(
        name == "unprotected-vm-with-firmware" for name, _ in values
    )
    for switch, kind in (
        ("no-usb", "xhci"),
        ("no-balloon", "virtio-balloon-pci"),
        ("no-rng", "virtio-rng-pci"),
    ):
        if switch not in switches and not protected:
            draft.device(kind, {"rng": "rng"} if kind == "virtio-rng-pci" else {}, "machine")
            if kind == "virtio-rng-pci":
                draft.backend("object", "rng-random", {"id": "rng", "filename": "/dev/urandom"}, "machine")
    for switch, kind in (("no-i8042", "i8042"), ("no-rtc", "mc146818rtc")):
        if not {switch, "no-legacy"} & switches:
            draft.device(kind, {}, "machine")
    draft.device("serial", {}, "machine")
    if "software-tpm" in switches or "vtpm-proxy" in switches:
        draft.device("tpm-virtio", {}, "--software-tpm")
    chips = {
        "on": ("kvm-ioapic", "kvm-i8259", "kvm-pit", "kvm-apic"),
        "split": ("ioapic", "i8259", "pit", "kvm-apic"),
    }
    for kind in chips[_irqchip(values, switches)]:
        draft.device(kind, {}, "machine")


def _irqchip(values: list[tuple[str, str]], switches: set[str]) -> str:
    stated = next((value.partition("[")[0] for name, value in values if name == "irqchip"), "")
    return "split" if "split-irqchip" in switches or stated in ("split", "userspace") else "on"
