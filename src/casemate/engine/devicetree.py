"""What the emulator built, asked over QMP while the guest is paused. Replies are bounded and never trusted as whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from casemate.engine.startup import Startup
from casemate.errors import VmError
from casemate.facts.fact import Facts, Known, Stage, Value
from casemate.facts.machine_risks import is_display, is_insecure, is_usb
from casemate.plan.model import LaunchPlan

_CHILDREN_MAX: Final = 512
_FOLDERS_MAX: Final = 16
_FOLDERS: Final = ("/machine", "/machine/unattached", "/machine/peripheral", "/machine/peripheral-anon", "/objects")
_FLASH: Final = "cfi.pflash01"
_CPU: Final = "/machine/unattached/device[0]"
QUESTIONS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    *(("qom-list", {"path": folder}) for folder in _FOLDERS),
    ("query-kvm", {}),
    *(("qom-get", {"path": "/machine", "property": name}) for name in ("type", "mem-merge", "dump-guest-core")),
    ("qom-get", {"path": "/machine", "property": "smm"}),
    ("qom-get", {"path": "/objects/entropy", "property": "filename"}),
    *(("qom-get", {"path": _CPU, "property": name}) for name in ("vmx", "svm")),
    ("query-named-block-nodes", {"flat": True}),
)
"""What `observe_devices` asks of every VM; sent ahead, so that the emulator answers while /proc is read."""


def observe_devices(plan: LaunchPlan, startup: Startup) -> Facts:
    """Facts about machine, accelerator, interrupt controllers, devices, memory, disks."""
    ask: Callable[..., Any] = startup.command
    facts: Facts = {}

    def know(name: str, value: Value, question: str) -> None:
        know_from(name, value, f"QMP {question}")

    def know_from(name: str, value: Value, source: str) -> None:
        facts[name] = Known(value, source, Stage.OBSERVED)

    types = device_types(ask)
    know("dev.types", tuple(sorted(types)), "qom-list")
    kvm = ask("query-kvm")
    know("dev.accel", "kvm" if isinstance(kvm, dict) and kvm.get("enabled") is True else "tcg", "query-kvm")
    machine = str(_get(ask, "/machine", "type"))
    know("dev.machine", _machine_name(machine), "qom-get /machine type")
    know("dev.insecure-types", tuple(sorted(t for t in types if is_insecure(t))), "qom-list")
    know("dev.display", next((t for t in sorted(types) if is_display(t)), "none"), "qom-list")
    know("dev.usb", tuple(sorted(t for t in types if is_usb(t))), "qom-list")
    know("mem.merge", _get(ask, "/machine", "mem-merge") is not False, "qom-get /machine mem-merge")
    know("mem.dump", _get(ask, "/machine", "dump-guest-core") is not False, "qom-get /machine dump-guest-core")
    know("kvm.pit", bool(types & {"isa-pit", "kvm-pit", "pit"}), "qom-list")
    know("kvm.pic", bool(types & {"isa-i8259", "kvm-i8259", "i8259"}), "qom-list")
    know("kvm.irqchip", _irqchip(types, facts["dev.accel"]), "qom-list")
    know("ent.virtio-rng", _entropy(ask, types, plan), "qom-get /objects/entropy")
    nested = tuple(flag for flag in ("vmx", "svm") if _get(ask, _CPU, flag) is not False)
    know("cpu.nested-flags", nested, f"qom-get {_CPU}")
    _firmware(know, ask, plan, types)
    _disks(know, ask)
    if not any("-net" in kind for kind in types):
        _no_network(know)
    if plan.spec.confidential is not None:
        from casemate.engine.readback_confidential import observe_confidential

        facts.update(observe_confidential(plan, ask))
    if not any(kind.startswith("tpm-") for kind in types):
        know("tpm.backend", "none", "qom-list: no TPM")
    argv = plan.wall.argv
    # QMP has no question for these three; proc.argv compares the live argument vector with the plan's, whole.
    live = f"/proc/{startup.spawned.pid}/cmdline, which is the plan's (proc.argv)"
    know_from("dev.nodefaults", "-nodefaults" in argv and "-no-user-config" in argv, live)
    know_from("emu.sandbox", argv[argv.index("-sandbox") + 1], f"{live}, and the number of filters")
    know_from("emu.debug", _debugging(argv), live)
    know_from("qmp.transport", "inherited-descriptor", "the QMP connection itself: a socket pair made before exec")
    return facts


def _debugging(argv: tuple[str, ...]) -> tuple[str, ...]:
    """Options that open the emulator; a state that comes in through an inherited descriptor does not."""
    own = {index for index, word in enumerate(argv[1:]) if argv[index] == "-incoming" and word.startswith("fd:")}
    words = {"-s", "-gdb", "-d", "-trace", "-incoming"}
    return tuple(word for index, word in enumerate(argv) if word in words and index not in own)


def device_types(ask: Callable[..., Any]) -> set[str]:
    """QOM type names of everything that the machine holds."""
    found: set[str] = set()
    folders = list(_FOLDERS)
    for folder in folders:  # grows while we go
        children = ask("qom-list", path=folder)
        if not isinstance(children, list) or len(children) > _CHILDREN_MAX:
            raise VmError("the emulator's device list makes no sense", got=f"{folder}: {str(children)[:80]}")
        for child in children:
            kind = child.get("type") if isinstance(child, dict) else None
            if isinstance(kind, str) and kind.startswith("child<") and kind.endswith(">"):
                found.add(kind[6:-1])
                if kind[6:-1].endswith("-pcihost") and len(folders) < _FOLDERS_MAX:
                    folders.append(f"{folder}/{child.get('name')}")
    return found - {"container", "irq", "qemu:memory-region", "memory-region", "memory-region-alias"}


def _get(ask: Callable[..., Any], path: str, name: str) -> Any:
    return ask("qom-get", path=path, property=name)


def _machine_name(kind: str) -> str:
    """``microvm-machine`` and ``pc-q35-7.2-machine`` in the words of the specification."""
    name = kind.removesuffix("-machine")
    return "q35" if name == "q35" or name.startswith("pc-q35-") else name


def _irqchip(types: set[str], accel: object) -> str:
    if isinstance(accel, Known) and accel.value != "kvm":
        return "none"
    if types & {"kvm-ioapic", "kvm-i8259"}:
        return "on"
    return "split" if "ioapic" in types else "off"


def _entropy(ask: Callable[..., Any], types: set[str], plan: LaunchPlan) -> str:
    if not any(kind.startswith("virtio-rng") for kind in types):
        return "none"
    backend = _get(ask, "/objects/entropy", "filename")
    number = next(item.number for item in plan.descriptors if item.role == "entropy")
    added = next(argument for argument in plan.wall.argv if argument.startswith(f"fd={number},set="))
    # The descriptor set holds one descriptor, which the launch opened itself: /dev/urandom of the host.
    return "/dev/urandom" if backend == f"/dev/fdset/{added.rpartition('=')[2]}" else str(backend)


def _firmware(
    know: Callable[[str, Value, str], None], ask: Callable[..., Any], plan: LaunchPlan, types: set[str]
) -> None:
    """What starts the guest, and whether code beyond the firmware's guarded part can write to its variables."""
    smm = _get(ask, "/machine", "smm")
    know("dev.smm", smm != "off", "qom-get /machine smm")
    names = _names_in(ask, "/machine") if _FLASH in types else ()
    flashes = [name for name in names if name.startswith("system.flash")]
    opened = [
        f"{name} takes writes from any code" for name in flashes if _get(ask, f"/machine/{name}", "secure") is not True
    ]
    if smm != "on":  # an answer that nobody knows counts against both: the mode may be there, or may not
        opened.append("system management mode is off")
    if not flashes:
        opened.append("there is no flash")
    if plan.spec.boot.is_secure:
        know("dev.boot-variables", tuple(opened), "qom-get of each flash")
    # A board without flash takes its kernel from fw_cfg, where there is one, and else looks for a boot sector; a
    # confidential one starts OVMF out of memory.
    without = "kernel" if "-kernel" in plan.wall.argv else "bios" if plan.spec.confidential is None else "uefi"
    # Flash holds the planned firmware: its digest was compared (img.digest-checked).
    know("vm.firmware", plan.spec.boot.firmware.value if flashes else without, "qom-list /machine: flash, or none")


def _names_in(ask: Callable[..., Any], folder: str) -> tuple[str, ...]:
    children = ask("qom-list", path=folder)
    if not isinstance(children, list) or len(children) > _CHILDREN_MAX:
        raise VmError("the emulator's device list makes no sense", got=f"{folder}: {str(children)[:80]}")
    return tuple(sorted(str(child.get("name")) for child in children if isinstance(child, dict)))


def _disks(know: Callable[[str, Value, str], None], ask: Callable[..., Any]) -> None:
    nodes = ask("query-named-block-nodes", flat=True)
    if not isinstance(nodes, list) or len(nodes) > _CHILDREN_MAX:
        raise VmError("the emulator's list of block nodes makes no sense", got=str(nodes)[:80])
    formats, foreign = set(), []
    for node in nodes:
        driver, name = str(node.get("drv")), str(node.get("node-name"))
        file = str(node.get("file", ""))
        if driver not in {"file", "throttle"} and not name.startswith("firmware-"):  # throttle: a filter, no format
            formats.add(driver)
        if driver == "file" and not file.startswith("/dev/fdset/"):
            foreign.append(f"{name}: {file}")
    know("img.formats", tuple(sorted(formats)), "query-named-block-nodes")
    know("img.backing", tuple(foreign), "query-named-block-nodes: files beyond the descriptors handed over")


def _no_network(know: Callable[[str, Value, str], None]) -> None:
    source = "qom-list: no network device"
    know("net.backend", "none", source)
    know("net.egress", "none", source)
    know("net.host-loopback", False, source)
    know("net.published", (), source)
    know("net.publish-wide", (), source)
