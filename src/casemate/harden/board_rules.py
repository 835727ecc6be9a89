"""Rules of a domain's board: accelerator, machine type, features, clock, CPU, memory, labels, limits."""

from __future__ import annotations

import re
from typing import Final

from casemate.harden.context import PS2_SINCE, QEMU_NAMESPACE, Domain, bytes_of
from casemate.harden.document import Element
from casemate.harden.model import Reason

HEADROOM_BYTES: Final = 1 << 30
"""What QEMU may use beyond the guest's RAM; libvirt itself takes the same for VFIO."""

_NESTED = ("vmx", "svm")
_BARE_CPUS = re.compile(r"(qemu|kvm)(32|64)|n270|pentium[23]?|486|athlon|phenom|coreduo|core2duo|Conroe|Penryn")
_AFTER_OS = ("os", "sysinfo", "bootloader", "resource", "vcpu", "memory")


def accelerator(domain: Domain) -> None:
    """KVM instead of QEMU's translator."""
    root, notes = domain.root, domain.notes
    if root.get("type") == "kvm" or not notes.wants("dev.kvm", "domain", "type='qemu' stays"):
        return
    root.set("type", "kvm")
    notes.change(
        "dev.kvm",
        "domain",
        "type='qemu' becomes 'kvm'",
        "QEMU's translator (TCG) promises no isolation between the guest and the emulator",
        "the host needs /dev/kvm",
    )


def machine(domain: Domain) -> None:
    """The board is q35 (or microvm): no floppy controller, no IDE, no PIIX."""
    old = domain.machine
    if domain.is_q35 or old.startswith("microvm"):
        return
    if not domain.notes.wants("dev.machine", "os/type", f"machine {old or '(default)'} stays"):
        domain.notes.leave(
            "dev.no-floppy", "os/type", f"{old or 'pc'} has a floppy and an IDE controller of its own", Reason.KEPT
        )
        return
    domain.section("os/type").set("machine", "q35")
    dropped = 0
    for node in domain.devices.elements():
        if node.name == "controller" and node.get("type") == "pci":
            node.remove()
            dropped += 1
            continue
        for address in node.elements("address"):
            if address.get("type") == "pci":
                address.remove()
                dropped += 1
    domain.notes.change(
        "dev.machine",
        "os/type",
        f"machine {old or '(default: pc)'} becomes q35" + (f"; {dropped} PCI addresses go with it" if dropped else ""),
        "the pc board has a floppy controller (VENOM), IDE and PIIX that nothing removes",
        "the guest sees other hardware: names of network cards change, Windows looks for drivers again; "
        "guests older than PCI Express do not boot",
    )


def features(domain: Domain) -> None:
    """Interrupt controllers to QEMU; VMware port, PS/2 and foreign hypervisors' interfaces off."""
    notes = domain.notes
    if notes.wants("kvm.irqchip-split", "features/ioapic", "the interrupt controllers stay in the kernel"):
        _, changed = domain.ensure(_features(domain), "ioapic", {"driver": "qemu"})
        if changed:
            notes.change(
                "kvm.irqchip-split",
                "features/ioapic",
                "<ioapic driver='qemu'/>",
                "IOAPIC and PIC leave the host's kernel, where an escape ignores every confinement of QEMU; "
                "the PIT leaves it with them",
                "a few percent on interrupts of devices without MSI; none with virtio",
            )
    if notes.wants("dev.platform-off"):
        _, changed = domain.ensure(_features(domain), "vmport", {"state": "off"})
        if changed:
            notes.change(
                "dev.platform-off",
                "features/vmport",
                "<vmport state='off'/>",
                "a back door of VMware that QEMU emulates",
            )
        _ps2(domain)
    _smm(domain)
    _enlightenments(domain)


def _features(domain: Domain) -> Element:
    return domain.section("features", after=_AFTER_OS)


def _smm(domain: Domain) -> None:
    """Off, unless UEFI may need it: which build libvirt chooses, or a loader's file is, decides that."""
    control = "dev.smm"
    if not domain.notes.wants(control, "features/smm", "system management mode stays as it is"):
        return
    system = domain.section("os")
    section = domain.root.first("features")
    now = section.first("smm") if section is not None else None
    if now is not None and now.get("state") == "off":
        return
    # An encrypted guest has no such mode: the host could not emulate it.
    is_encrypted = domain.root.value("launchSecurity", "type") in ("sev-snp", "tdx")
    if not is_encrypted and (system.get("firmware") or system.first("loader") is not None):
        domain.notes.leave(
            control,
            "features/smm",
            "system management mode stays: UEFI with Secure Boot guards its variables with it",
            Reason.DECIDE,
            "<smm state='off'/> by hand if this firmware has no Secure Boot, or --keep it",
        )
        return
    _, changed = domain.ensure(_features(domain), "smm", {"state": "off"})
    if changed:
        domain.notes.change(
            control,
            "features/smm",
            "<smm state='off'/>",
            "a processor mode above the kernel, emulated by KVM or QEMU, that only Secure Boot has a use for",
        )


def _ps2(domain: Domain) -> None:
    if domain.libvirt < PS2_SINCE:
        domain.notes.leave(
            "dev.platform-off",
            "features/ps2",
            "the keyboard controller i8042 stays",
            Reason.LIMIT,
            "--libvirt 10.7, if that is your version: <ps2 state='off'/>",
        )
        return
    _, changed = domain.ensure(_features(domain), "ps2", {"state": "off"})
    for node in domain.devices.elements("input"):
        if node.get("bus") == "ps2":
            node.remove()
            changed = True
    if changed:
        domain.notes.change(
            "dev.platform-off",
            "features/ps2",
            "<ps2 state='off'/>",
            "the keyboard controller is an emulated device that a guest with a serial console never uses",
            "no PS/2 keyboard and mouse",
        )


def _enlightenments(domain: Domain) -> None:
    control = "kvm.no-hyperv-xen"
    section = domain.root.first("features")
    found = section.elements("hyperv", "xen") if section is not None else []
    clock = domain.root.first("clock")
    found += [t for t in (clock.elements("timer") if clock else []) if t.get("name") == "hypervclock"]
    found += [p for p in domain.devices.elements("panic") if p.get("model") == "hyperv"]
    if not found or not domain.notes.wants(control, "features", "Hyper-V and Xen interfaces stay"):
        return
    if domain.is_windows:
        domain.notes.leave(
            control,
            found[0].place(),
            "Hyper-V interfaces stay, because the metadata says that the guest is Windows",
            Reason.DECIDE,
            "remove <hyperv> and the timer hypervclock by hand if the guest keeps time and speed without, or --keep it",
        )
        return
    for node in found:
        where = node.place()
        node.remove()
        domain.notes.change(
            control,
            where,
            f"<{node.name}> removed",
            "an interface of another hypervisor that KVM emulates inside the host's kernel",
            "Windows guests run slower and may lose clock ticks; others do not use it",
        )


def clock(domain: Domain) -> None:
    """No HPET."""
    if not domain.notes.wants("dev.platform-off"):
        return
    node = domain.root.first("clock")
    if node is None:
        places = domain.root.elements("cpu", "features", *_AFTER_OS)
        node = domain.root.add('clock offset="utc"', after=places[-1] if places else None)
    timers = [timer for timer in node.elements("timer") if timer.get("name") == "hpet"]
    if timers and all(timer.get("present") == "no" for timer in timers):
        return
    for timer in timers:
        timer.set("present", "no")
    if not timers:
        node.add('timer name="hpet" present="no"')
    domain.notes.change(
        "dev.platform-off",
        "clock/timer",
        "<timer name='hpet' present='no'/>",
        "an emulated timer that guests with kvmclock or a TSC do not need",
    )


def cpu(domain: Domain) -> None:
    """A CPU model with the flags that mitigations need, and without nested virtualisation."""
    notes = domain.notes
    node = domain.root.first("cpu")
    mode = "" if node is None else node.get("mode") or ("custom" if node.first("model") is not None else "")
    bare = mode in ("", "custom") and (node is None or _is_bare(node))
    if bare and notes.wants("cpu.guest-flags", "cpu", "the CPU model stays"):
        old = "none (qemu64)" if node is None or not node.value("model") else node.value("model")
        if node is None:
            places = domain.root.elements("features", *_AFTER_OS)
            node = domain.root.add('cpu mode="host-model"', after=places[-1] if places else None)
        else:
            node.set("mode", "host-model")
            for name in ("match", "check"):
                node.unset(name)
            for child in node.elements("model", "vendor"):
                child.remove()
        notes.change(
            "cpu.guest-flags",
            "cpu",
            f"CPU model {old[:40]} becomes host-model",
            "a guest whose CPU lacks spec-ctrl, ssbd or md-clear cannot mitigate Spectre and MDS inside itself",
            "live migration only between hosts with like CPUs",
        )
    if node is None or not notes.wants("kvm.nested-off", "cpu", "nested virtualisation stays as it is"):
        return
    _no_nested(domain, node)


def _is_bare(node: Element) -> bool:
    model = node.value("model")
    return not model or _BARE_CPUS.fullmatch(model) is not None


def _no_nested(domain: Domain, node: Element) -> None:
    changed = []
    for flag in _NESTED:
        found = [feature for feature in node.elements("feature") if feature.get("name") == flag]
        for feature in found:
            if feature.get("policy") not in ("disable", "forbid"):
                feature.set("policy", "disable")
                changed.append(flag)
        if not found:
            node.add(f'feature policy="disable" name="{flag}"')
            changed.append(flag)
    if changed:
        domain.notes.change(
            "kvm.nested-off",
            "cpu/feature",
            f"{' and '.join(changed)} disabled",
            "nested virtualisation has the worst history of all of KVM, and lets a guest hide a hypervisor",
            "no hypervisor inside the guest",
        )


def memory(domain: Domain) -> None:
    """No page sharing, no guest memory in core dumps."""
    notes, root = domain.notes, domain.root
    size = root.first("memory")
    if size is not None and size.get("dumpCore") != "off" and notes.wants("mem.no-dump", "memory", "dumpCore stays"):
        size.set("dumpCore", "off")
        notes.change(
            "mem.no-dump", "memory", "dumpCore='off'", "a core dump of QEMU would hold the guest's keys and passwords"
        )
    crash = root.first("on_crash")
    if crash is not None and crash.text.startswith("coredump-") and notes.wants("mem.no-dump", "on_crash", crash.text):
        old = crash.text
        crash.say(old.removeprefix("coredump-"))
        notes.change(
            "mem.no-dump",
            "on_crash",
            f"{old} becomes {crash.text}",
            "it writes the guest's memory to the host's disk whenever the guest panics",
            "no dump to analyse after a panic: use kdump inside the guest",
        )
    if root.first("memoryBacking/nosharepages") is None and notes.wants(
        "cpu.ksm", "memoryBacking", "pages may be merged"
    ):
        domain.section("memoryBacking", after=("currentMemory", "memory", "maxMemory")).add("nosharepages")
        notes.change(
            "cpu.ksm",
            "memoryBacking",
            "<nosharepages/>",
            "merged pages tell one guest by their timing what is in the memory of another, and ease Rowhammer",
            "no memory saved by KSM",
        )


def generation_id(domain: Domain) -> None:
    """A generation id, so that a guest sees that it was cloned or rolled back."""
    if domain.root.first("genid") is not None or not domain.notes.wants("ent.vmgenid", "genid", "no generation id"):
        return
    places = domain.root.elements("name", "uuid")
    domain.root.add("genid", after=places[-1] if places else None)
    domain.notes.change(
        "ent.vmgenid",
        "genid",
        "<genid/>",
        "a guest that was cloned or rolled back would go on with the random numbers of its twin",
    )


def raw_arguments(domain: Domain) -> None:
    """No arguments and properties that go around libvirt."""
    control = "vmm.no-raw-args"
    for node in domain.root.elements_any():
        if node.namespace != QEMU_NAMESPACE or node.local not in ("commandline", "override", "capabilities"):
            continue
        if not domain.notes.wants(control, node.name, f"<{node.name}> stays"):
            continue
        shown = " ".join(other.get("value") or other.get("name") or "" for other in list(node.walk())[1:]).strip()
        where = node.place()
        node.remove()
        domain.notes.change(
            control,
            where,
            f"<{node.name}> removed" + (f": {shown[:200]}" if shown else ""),
            "whatever stands there goes to QEMU unseen by libvirt, its labels and its checks",
            "what these arguments did: give it a libvirt element instead",
        )


def labels(domain: Domain) -> None:
    """A label of its own for each start of the VM."""
    control = "proc.mac-label"
    notes, root = domain.notes, domain.root
    for node in root.elements("seclabel"):
        kind = node.get("type") or "dynamic"
        if (kind == "dynamic" and node.get("relabel") != "no") or not notes.wants(
            control, "seclabel", f"type={kind!r}"
        ):
            continue
        if kind == "static":
            notes.leave(
                control,
                node.place(),
                f"a static label stays: {node.value('label')[:80]}",
                Reason.DECIDE,
                "make it type='dynamic' unless something outside libvirt depends on this very label, or --keep it",
            )
            continue
        node.set("type", "dynamic")
        node.set("relabel", "yes")
        notes.change(
            control,
            node.place(),
            f"seclabel type={kind!r} becomes dynamic",
            "without a label SELinux or AppArmor does not hold the emulator, and all VMs may open each other's images",
            "shared files must be relabelled or listed for this VM",
        )
    if not root.elements("seclabel") and notes.wants(control, "seclabel", "no label is demanded"):
        root.add('seclabel type="dynamic" relabel="yes"')
        notes.change(
            control,
            "seclabel",
            "<seclabel type='dynamic' relabel='yes'/>",
            "says what qemu.conf may switch off (security_default_confined): this VM has a label of its own",
        )


def limits(domain: Domain) -> None:
    """A bound for memory and CPU time of the whole emulator."""
    control = "proc.cgroup"
    root, notes = domain.root, domain.notes
    if not notes.wants(control, "memtune", "no limits of memory and CPU time"):
        return
    size = bytes_of(root.first("maxMemory")) or bytes_of(root.first("memory"))
    places = ("memoryBacking", "currentMemory", "memory", "maxMemory")
    if size and root.first("memtune/hard_limit") is None:
        kib = (size + HEADROOM_BYTES + 1023) // 1024
        domain.section("memtune", after=("blkiotune", *places)).add('hard_limit unit="KiB"', str(kib))
        notes.change(
            control,
            "memtune/hard_limit",
            f"hard_limit {kib // 1024} MiB: the guest's RAM and 1 GiB",
            "an emulator that leaks or is made to leak takes its own VM down, not the host",
            "a guest with very many disks or queues may need more; libvirt raises QEMU's lockable memory to the same "
            "value, for which it needs CAP_SYS_RESOURCE (absent in containers)",
        )
    vcpus = root.value("vcpu")
    tuned = root.first("cputune")
    has_quota = tuned is not None and any(tuned.elements(name) for name in ("global_quota", "quota"))
    if re.fullmatch(r"[1-9][0-9]{0,3}", vcpus) and not has_quota:
        quota = (int(vcpus) + 1) * 100_000
        section = domain.section("cputune", after=("vcpus", "vcpu", "iothreads", "iothreadids"))
        section.add("global_period", "100000")
        section.add("global_quota", str(quota))
        notes.change(
            control,
            "cputune/global_quota",
            f"at most {int(vcpus) + 1} CPUs for the whole VM",
            "vCPUs and one CPU for the emulator: a device loop cannot take the rest of the host",
        )
