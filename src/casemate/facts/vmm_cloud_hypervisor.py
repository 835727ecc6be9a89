"""Cloud Hypervisor's VmConfig (the body of ``vm.create``, and what ``vm.info`` shows) as a machine.

Names as in the project's API description (vmm/src/api/openapi/cloud-hypervisor.yaml). Every VM has besides what is
configured: an IOAPIC of the VMM's own, RTC, a device that only resets, ACPI's event device, an entropy device fed from
/dev/urandom, and a console on standard output. It has no PIT and no PIC.
"""

from __future__ import annotations

from typing import Final

from casemate.facts.machine import Disk, Machine
from casemate.facts.machine_secrets import secrets_in
from casemate.facts.qemu_argv_draft import Draft
from casemate.facts.vmm_document import View, parse_json

KEYS: Final = frozenset({"payload", "cpus", "memory", "disks"})
_BOARD: Final = ("ioapic", "kvm-apic", "mc146818rtc", "i8042", "acpi-ged", "pci-host-bridge")
_FORMATS: Final = {"Raw": "raw", "Qcow2": "qcow2", "Vhdx": "vhdx", "FixedVhd": "vpc", "FlatVmdk": "vmdk"}
_CONSOLES: Final = {"file": "file", "socket": "socket", "tty": "stdio", "pty": "pty", "null": "null", "off": ""}
_PLACE: Final = ("iommu", "pci_segment", "pci_device_id", "id")


def read_cloud_hypervisor(data: bytes, source: str) -> Machine:
    """The machine of a VmConfig, or of the answer of ``vm.info`` around one.

    Raises:
        InputError: not JSON, or larger than one can be.
    """
    tree = parse_json(data, source)
    inner = tree.get("config")
    if "payload" not in tree and isinstance(inner, dict):
        tree = inner
    draft = Draft()
    return machine_of(View(tree, "", draft), draft, source)


def machine_of(view: View, draft: Draft, source: str) -> Machine:
    """The machine of a VmConfig that is already a tree."""
    payload = view.child("payload")
    kernel, initrd, cmdline = payload.text("kernel"), payload.text("initramfs"), payload.text("cmdline")
    firmware = tuple(text for text in (payload.text("firmware"), payload.text("igvm")) if text)
    payload.skip("host_data")
    payload.done()
    settings: dict[str, str] = {"landlock": "on" if view.flag("landlock_enable") else "off"}
    view.skip("landlock_rules", "numa", "pci_segments", "rate_limit_groups", "preserved_fds", "tdx")
    vcpus, flags = _cpus(view.child("cpus"), settings)
    memory_mib = _memory(draft, view.child("memory"), settings)
    disks = [_disk(draft, disk) for disk in view.each("disks")]
    disks += [_pmem(draft, pmem) for pmem in view.each("pmem")]
    for card in view.each("net"):
        _network(draft, card)
    _devices(draft, view)
    _consoles(draft, view)
    security = _platform(view.child("platform"))
    view.done()
    for kind in _BOARD:
        draft.device(kind, {}, "machine")
    secrets = [name.replace("-append", "payload.cmdline") for name in secrets_in("-append", cmdline)]
    return Machine(
        vmm="cloud-hypervisor",
        form="cloud-hypervisor",
        source=source,
        accel="kvm",
        cpu_model="host",
        cpu_flags=flags,
        memory_mib=memory_mib,
        vcpus=vcpus,
        kernel=kernel,
        initrd=initrd,
        cmdline=cmdline,
        firmware=firmware,
        devices=draft.final_devices(),
        backends=draft.final_backends(),
        disks=tuple(disks),
        flags=tuple(draft.flags),
        display="none",
        launch_security=security,
        unreadable=tuple(draft.unreadable),
        settings=settings,
        secrets=tuple(secrets),
    )


def _cpus(cpus: View, settings: dict[str, str]) -> tuple[int, dict[str, str]]:
    count = cpus.number("boot_vcpus", 1)
    flags = {} if cpus.flag("nested", default=True) else {"vmx": "off", "svm": "off"}
    settings["kvm-hyperv"] = "on" if cpus.flag("kvm_hyperv") else "off"
    # "Vm", "Vcpu" or "Off"; releases from before core scheduling do not know the word.
    settings["core-scheduling"] = cpus.text("core_scheduling")
    cpus.skip("max_vcpus", "topology", "max_phys_bits", "affinity", "features")
    cpus.done()
    return count, flags


def _memory(draft: Draft, memory: View, settings: dict[str, str]) -> int:
    size = memory.number("size", 512 << 20)
    merged = memory.flag("mergeable")
    if memory.flag("shared"):
        draft.backend("object", "memory-backend-memfd", {"id": "ram", "share": "on"}, memory.place)
    if memory.text("hotplug_method", "Acpi") == "VirtioMem":
        draft.device("virtio-mem-pci", {}, memory.at("hotplug_method"))
    memory.skip("hotplug_size", "hotplugged_size", "hugepages", "hugepage_size", "prefault", "thp", "reserve")
    for zone in memory.each("zones"):
        size += zone.number("size")
        merged = zone.flag("mergeable") or merged
        kind = "memory-backend-file" if zone.has("file") else "memory-backend-memfd"
        share = "on" if zone.flag("shared") else "off"
        draft.backend(
            "object", kind, {"id": zone.text("id"), "share": share, "mem-path": zone.text("file")}, zone.place
        )
        zone.skip("hugepages", "hugepage_size", "host_numa_node", "hotplug_size", "hotplugged_size", "prefault")
        zone.skip("reserve", "mergeable")
        zone.done()
    memory.done()
    settings["mergeable"] = "on" if merged else "off"
    return size >> 20


def _disk(draft: Draft, disk: View) -> Disk:
    name, path, socket = disk.text("id") or draft.name("disk"), disk.text("path"), disk.text("vhost_socket")
    kind = "vhost-user-blk-pci" if disk.flag("vhost_user") else "virtio-blk-pci"
    stated = disk.text("image_type")
    read_only, follows = disk.flag("readonly"), disk.flag("backing_files")
    disk.skip(*_PLACE, "direct", "num_queues", "queue_size", "rate_limiter_config", "rate_limit_group", "serial")
    disk.skip("queue_affinity", "disable_io_uring", "disable_aio", "sparse", "lock_granularity")
    disk.done()
    draft.device(kind, {"id": name, "drive": name}, disk.place)
    if socket:
        draft.backend("chardev", "socket", {"id": name, "path": socket}, disk.place)
    form = _FORMATS.get(stated, "")
    # Without backing_files the VMM refuses an image that names another one.
    backing = None if follows and form != "raw" else ()
    return Disk(path or socket, form, read_only, device=kind, origin=disk.place, id=name, backing=backing)


def _pmem(draft: Draft, pmem: View) -> Disk:
    name, path, discards = pmem.text("id") or draft.name("pmem"), pmem.text("file"), pmem.flag("discard_writes")
    pmem.skip(*_PLACE, "size", "mergeable")
    pmem.done()
    draft.device("virtio-pmem-pci", {"id": name}, pmem.place)
    return Disk(path, "raw", discards, device="virtio-pmem-pci", origin=pmem.place, id=name, backing=())


def _network(draft: Draft, card: View) -> None:
    name = card.text("id") or draft.name("net")
    user = card.flag("vhost_user")
    properties = {"id": f"host{name}", "ifname": card.text("tap"), "path": card.text("vhost_socket")}
    draft.backend("netdev", "vhost-user" if user else "tap", properties, card.place)
    draft.device("vhost-user-net-pci" if user else "virtio-net-pci", {"id": name, "netdev": f"host{name}"}, card.place)
    card.skip(*_PLACE, "ip", "mask", "mac", "host_mac", "mtu", "num_queues", "queue_size", "vhost_mode", "fds")
    card.skip("rate_limiter_config", "offload_tso", "offload_ufo", "offload_csum")
    card.done()


def _devices(draft: Draft, view: View) -> None:
    rng = view.child("rng")
    rng_id = {"id": "rng", "filename": rng.text("src", "/dev/urandom")}
    rng.skip(*_PLACE)
    rng.done()
    draft.backend("object", "rng-random", rng_id, "rng")
    draft.device("virtio-rng-pci", {"rng": "rng"}, "rng")
    for key, kind in (("balloon", "virtio-balloon-pci"), ("rtc", "virtio-rtc-pci")):
        if view.has(key):
            draft.device(kind, {}, key)
    for key, kind in (("watchdog", "virtio-watchdog-pci"), ("pvpanic", "pvpanic-pci"), ("iommu", "virtio-iommu-pci")):
        if view.flag(key):
            draft.device(kind, {}, key)
    if view.flag("pvmemcontrol"):
        draft.device("pvmemcontrol", {}, "pvmemcontrol")
    _passed(draft, view)
    if view.has("vsock"):
        vsock = view.child("vsock")
        draft.backend("chardev", "socket", {"id": "vsock", "path": vsock.text("socket")}, vsock.place)
        draft.device("virtio-vsock-pci", {}, vsock.place)
        vsock.skip(*_PLACE, "cid")
        vsock.done()
    if view.has("tpm"):
        draft.backend("tpmdev", "emulator", {"id": "tpm0", "path": view.child("tpm").text("socket")}, "tpm")
        draft.device("tpm-crb", {"tpmdev": "tpm0"}, "tpm")
    if view.has("gdb"):
        draft.flags.append("-gdb")


def _passed(draft: Draft, view: View) -> None:
    """What another process or the host itself is behind."""
    for key, kind in (("fs", "vhost-user-fs-pci"), ("generic_vhost_user", "vhost-user-device-pci")):
        for item in view.each(key):
            draft.device(kind, {"id": item.text("id"), "chardev": item.text("tag") or item.text("socket")}, item.place)
    for device in view.each("devices"):
        path = device.text("path").rstrip("/")
        draft.device("vfio-pci", {"id": device.text("id"), "host": path.rpartition("/")[2]}, device.place)
    for device in view.each("user_devices"):
        draft.device("vfio-user-pci", {"id": device.text("id"), "chardev": device.text("socket")}, device.place)
    for device in view.each("vdpa"):
        draft.backend("netdev", "vhost-vdpa", {"id": "vdpa", "vhostdev": device.text("path")}, device.place)
        draft.device("vhost-vdpa-device-pci", {"id": device.text("id")}, device.place)


def _consoles(draft: Draft, view: View) -> None:
    for key, kind, default in (("console", "virtconsole", "Tty"), ("serial", "serial", "Null")):
        console = view.child(key)
        mode = console.text("mode", default).lower()
        if mode not in _CONSOLES:
            draft.miss(f"{console.at('mode')}: {mode[:40]} is not known")
        elif _CONSOLES[mode]:
            path = console.text("file") or console.text("socket")
            draft.backend("chardev", _CONSOLES[mode], {"id": key, "path": path}, key)
            draft.device(kind, {"chardev": key}, key)
        console.skip(*_PLACE, "file", "socket")
        console.done()
    debug = view.child("debug_console")
    if debug.text("mode", "Off") != "Off":
        draft.device("isa-debugcon", {}, "debug_console")
    debug.skip("file", "iobase")
    debug.done()


def _platform(platform: View) -> str:
    found = "tdx" if platform.flag("tdx") else "sev-snp" if platform.flag("sev_snp") else ""
    platform.skip("num_pci_segments", "iommu_segments", "iommu_address_width_bits", "serial_number", "uuid")
    platform.skip("oem_strings", "iommufd", "iommu_address_width", "vfio_p2p_dma", "system_serial_number")
    platform.skip("system_uuid", "system_manufacturer", "system_product_name", "system_version", "system_family")
    platform.skip("system_sku_number", "chassis_asset_tag")
    platform.done()
    return found
