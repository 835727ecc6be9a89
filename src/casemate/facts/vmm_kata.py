"""Kata Containers' ``configuration.toml`` as the machine of every pod that starts with it.

Keys as in the project's commented templates (src/runtime/config/configuration-*.toml.in). A pod's disks and folders are
added while it runs and stand in no file; what the runtime gives to every VM is here.
"""

from __future__ import annotations

import re
from typing import Any, Final

from casemate.errors import InputError
from casemate.facts.machine import Device, Disk, Machine
from casemate.facts.machine_boards import board_devices, board_family
from casemate.facts.machine_secrets import secrets_in
from casemate.facts.qemu_argv_draft import Draft
from casemate.facts.qemu_argv_text import Properties
from casemate.facts.vmm_document import View, parse_toml

VMMS: Final = {
    "qemu": "qemu",
    "clh": "cloud-hypervisor",
    "cloud-hypervisor": "cloud-hypervisor",
    "firecracker": "firecracker",
    "stratovirt": "stratovirt",
    "acrn": "acrn",
    "dragonball": "dragonball",
    "remote": "remote",
}
HARMLESS: Final = frozenset(
    """default_vcpus default_maxvcpus default_memory default_maxmemory memory_slots block_device_cache_set
    block_device_cache_direct block_device_cache_noflush enable_iothreads enable_mem_prealloc enable_hugepages
    enable_swap enable_iommu enable_iommu_platform rx_rate_limiter_max_rate tx_rate_limiter_max_rate virtio_fs_cache
    virtio_fs_cache_size virtio_fs_queue_size use_vsock disable_vhost_net msize_9p pcie_root_port cc_init_data
    reclaim_guest_freed_memory""".split()  # noqa: SIM905
)
"""Annotations that change sizes or take rights away; any other may change what runs on the host or in the guest."""
_QUIET: Final = frozenset(
    """ctlpath rootfs_type valid_hypervisor_paths valid_ctlpaths valid_jailer_paths default_vcpus default_maxvcpus
    default_maxmemory memory_slots memory_offset virtio_fs_daemon valid_virtio_fs_daemon_paths virtio_fs_cache_size
    virtio_fs_queue_size virtio_fs_cache virtio_fs_inode_file_handles block_device_aio block_device_cache_set
    block_device_cache_direct block_device_cache_noflush block_device_logical_sector_size kernel_verity_params
    block_device_physical_sector_size enable_iothreads indep_iothreads enable_mem_prealloc enable_hugepages
    enable_vhost_user_store vhost_user_store_path enable_iommu_platform valid_vhost_user_store_paths
    vhost_user_reconnect_timeout_sec valid_file_mem_backends disable_nesting_checks msize_9p valid_entropy_sources
    guest_hook_path rx_rate_limiter_max_rate tx_rate_limiter_max_rate guest_memory_dump_path guest_memory_dump_paging
    enable_guest_swap use_legacy_serial disable_guest_selinux guest_swap_path guest_swap_size_percent
    guest_swap_create_threshold_secs hypervisor_loglevel pcie_switch_port sandbox_cgroup_only disable_image_nvdimm
    default_gpus default_gpu_model vmm_jail_path use_vsock measurement_algo snp_guest_policy snp_id_block snp_id_auth
    tdx_quote_generation_service_socket_port net_rate_limiter_bw_max_rate net_rate_limiter_bw_one_time_burst
    net_rate_limiter_ops_max_rate net_rate_limiter_ops_one_time_burst disk_rate_limiter_bw_max_rate
    disk_rate_limiter_bw_one_time_burst disk_rate_limiter_ops_max_rate disk_rate_limiter_ops_one_time_burst
    balloon swap_in_bytes extra_monitor_socket enable_debug disable_vhost_net jailer_path initrd image""".split()  # noqa: SIM905
)
"""Keys that change nothing of what is judged, or that are read only where they count."""
_DEVICES: Final = {
    "virtio-scsi": "virtio-scsi-pci",
    "virtio-blk": "virtio-blk-pci",
    "virtio-blk-ccw": "virtio-blk-ccw",
    "virtio-mmio": "virtio-blk-device",
    "nvdimm": "nvdimm",
}


def read_kata(data: bytes, source: str) -> Machine:
    """The machine of a configuration.

    Raises:
        InputError: not TOML, or no hypervisor in it.
    """
    tree = parse_toml(data, source)
    name, hypervisor = _hypervisor(tree, source)
    draft = Draft()
    if name not in VMMS:
        draft.miss(f"hypervisor.{name[:60]}: not known to this reader")
    view = View(hypervisor, f"hypervisor.{name}", draft)
    runtime = View(_table(tree, "runtime"), "runtime", draft)
    agent = View(_table(_table(tree, "agent"), "kata"), "agent.kata", draft)
    vmm = VMMS.get(name, name[:60])
    settings = _settings(view, runtime, agent, View(_table(tree, "factory"), "factory", draft), vmm)
    disks = _devices(draft, view, runtime, vmm, settings)
    monitors = _monitors(view, vmm)
    features = _features(view)
    cmdline = view.text("kernel_params")
    if view.texts("pflashes"):
        draft.device("cfi.pflash01", {}, f"{view.place}.pflashes")
    security = _security(view)
    emulator, board, options = view.text("path"), view.text("machine_type"), view.text("machine_accelerators")
    memory_mib, kernel, initrd = view.number("default_memory"), view.text("kernel"), view.text("initrd")
    firmware = tuple(text for text in (view.text("firmware"), view.text("firmware_volume")) if text)
    sandbox = view.text("seccompsandbox")
    view.done(_QUIET)
    devices = (*draft.final_devices(), *_board(draft, board, options, vmm))
    return Machine(
        vmm=vmm,
        form="kata",
        source=source,
        emulator=emulator,
        accel="kvm",
        board=board if vmm == "qemu" else "",
        board_options=_accelerators(options),
        cpu_model="host",
        cpu_flags=features,
        memory_mib=memory_mib,
        kernel=kernel,
        initrd=initrd,
        cmdline=cmdline,
        firmware=firmware,
        devices=devices,
        backends=draft.final_backends(),
        disks=tuple(disks),
        monitors=tuple(monitors),
        display="none",
        sandbox=sandbox,
        flags=("-nodefaults", "-no-user-config") if vmm == "qemu" else (),
        launch_security=security,
        unreadable=tuple(draft.unreadable),
        settings=settings,
        secrets=tuple(name.replace("-append", "kernel_params") for name in secrets_in("-append", cmdline)),
    )


def _settings(view: View, runtime: View, agent: View, factory: View, vmm: str) -> dict[str, str]:
    """What Kata itself does with the VM."""
    settings = {"kata-annotations": ", ".join(_annotations(view.texts("enable_annotations")))}
    loosened = _loosened(view, runtime, vmm)
    if loosened:
        settings["sandbox-off"] = "; ".join(loosened)
    if agent.flag("debug_console_enabled"):
        settings["debug-console"] = "on"
    if factory.flag("enable_template"):
        settings["template"] = "on"
    if view.text("guest_memory_dump_path"):
        settings["memory-dump"] = view.text("guest_memory_dump_path")
    return settings


def _monitors(view: View, vmm: str) -> list[str]:
    monitors = ["unix:/run/vc/vm/SANDBOX/qmp.sock" if vmm == "qemu" else "unix:/run/vc/vm/SANDBOX/api.sock"]
    debug = view.flag("enable_debug")  # read whatever the other says: what was not read is reported
    if debug and view.text("extra_monitor_socket"):
        monitors.append("unix:/run/vc/vm/SANDBOX/extra-monitor.sock, open to whoever reaches it")
    return monitors


def _features(view: View) -> Properties:
    features: Properties = {}
    for part in view.text("cpu_features").split(","):
        key, equals, value = part.strip().partition("=")
        if equals:
            features[key] = value
    return features


def _hypervisor(tree: dict[str, Any], source: str) -> tuple[str, dict[str, Any]]:
    tables = {name: value for name, value in _table(tree, "hypervisor").items() if isinstance(value, dict)}
    if len(tables) != 1:
        raise InputError(
            f"{source}: not one hypervisor",
            got=", ".join(map(str, tables))[:200] or "none",
            expected="one table [hypervisor.NAME], as in Kata's configuration.toml",
        )
    return next(iter(tables.items()))


def _table(tree: dict[str, Any], key: str) -> dict[str, Any]:
    found = tree.get(key)
    return found if isinstance(found, dict) else {}


def _annotations(stated: tuple[str, ...]) -> tuple[str, ...]:
    """Those that may do harm. Each is a regular expression; one that is no plain name may match anything."""
    return tuple(word[:60] for word in stated if not re.fullmatch(r"\w+", word, re.ASCII) or word not in HARMLESS)


def _loosened(view: View, runtime: View, vmm: str) -> list[str]:
    found = []
    if not view.flag("rootless"):
        found.append("rootless is off: the VMM runs as root")
    if view.flag("disable_selinux"):
        found.append("disable_selinux: no label for the VMM")
    if view.flag("disable_seccomp"):
        found.append("disable_seccomp: no system call filter")
    if vmm == "firecracker" and not view.text("jailer_path"):
        found.append("jailer_path is empty: Firecracker without its jailer")
    if runtime.flag("disable_new_netns"):
        found.append("disable_new_netns: VMM in the host's network namespace")
    if any(word.startswith("--sandbox=none") for word in view.texts("virtio_fs_extra_args")):
        found.append("virtio_fs_extra_args: virtiofsd without its sandbox")
    return found


def _devices(draft: Draft, view: View, runtime: View, vmm: str, settings: dict[str, str]) -> list[Disk]:
    place = view.place
    shared = view.text("shared_fs", "virtio-fs")
    if shared.startswith("virtio-fs"):
        draft.device("vhost-user-fs-pci", {"chardev": "kataShared"}, f"{place}.shared_fs")
    elif shared == "virtio-9p":
        draft.device("virtio-9p-pci", {}, f"{place}.shared_fs")
    elif shared not in ("none", ""):
        draft.miss(f"{place}.shared_fs: {shared[:40]} is not known")
    memory = view.text("file_mem_backend")
    if shared.startswith("virtio-fs") or memory:
        properties = {"id": "mem0", "share": "on", "mem-path": memory or "/dev/shm"}  # noqa: S108
        draft.backend("object", "memory-backend-file", properties, f"{place}.file_mem_backend")
    model = runtime.text("internetworking_model", "tcfilter")
    if model != "none":
        vhost = "off" if view.flag("disable_vhost_net") or vmm != "qemu" else "on"
        draft.backend("netdev", "tap", {"id": "network-0", "vhost": vhost}, "runtime.internetworking_model")
        draft.device("virtio-net-pci", {"netdev": "network-0"}, "runtime.internetworking_model")
    source = view.text("entropy_source", "/dev/urandom")
    draft.backend("object", "rng-random", {"id": "rng0", "filename": source}, f"{place}.entropy_source")
    draft.device("virtio-rng-pci", {"rng": "rng0"}, f"{place}.entropy_source")
    draft.device("vhost-vsock-pci" if vmm == "qemu" else "virtio-vsock-pci", {}, "the agent's channel")
    _ports(draft, view, vmm, settings)
    for key, kind in (
        ("reclaim_guest_freed_memory", "virtio-balloon-pci"),
        ("enable_virtio_mem", "virtio-mem-pci"),
        ("enable_iommu", "intel-iommu"),
    ):
        if view.flag(key):
            draft.device(kind, {}, f"{place}.{key}")
    return _images(draft, view, vmm)


def _board(draft: Draft, board: str, options: str, vmm: str) -> tuple[Device, ...]:
    """What QEMU's board brings along; the runtime always starts it with -nodefaults."""
    if vmm != "qemu":
        return ()
    if not board_family(board):
        draft.miss(f"machine_type {board[:60] or '(default)'}: what it brings along was not measured")
    return board_devices(board, _accelerators(options), "kvm", defaults=False)


def _ports(draft: Draft, view: View, vmm: str, settings: dict[str, str]) -> None:
    place = view.place
    bridges, ports = view.number("default_bridges", 1) or 1, view.number("pcie_root_port")
    if vmm == "qemu":
        draft.device("virtio-serial-pci", {}, "the guest's console")
        for _ in range(min(bridges, 5)):
            draft.device("pci-bridge", {}, f"{place}.default_bridges")
        for _ in range(min(ports, 16)):
            draft.device("pcie-root-port", {}, f"{place}.pcie_root_port")
    for key in ("hot_plug_vfio", "cold_plug_vfio"):
        if view.text(key, "no-port") not in ("no-port", ""):
            settings[key] = view.text(key)
            draft.device("pcie-root-port", {}, f"{place}.{key}")


def _images(draft: Draft, view: View, vmm: str) -> list[Disk]:
    driver = view.text("block_device_driver", "virtio-scsi")
    kind = _DEVICES.get(driver, "")
    if not kind:
        draft.miss(f"{view.place}.block_device_driver: {driver[:40]} is not known")
    elif not view.flag("disable_block_device_use"):
        draft.device(kind, {}, f"{view.place}.block_device_driver")
    image = view.text("image")
    if not image:
        return []
    front = "nvdimm" if vmm == "qemu" and not view.flag("disable_image_nvdimm") else "virtio-blk-pci"
    draft.device(front, {}, f"{view.place}.image")
    return [Disk(image, "raw", True, device=front, origin=f"{view.place}.image", id="image", backing=())]


def _accelerators(text: str) -> Properties:
    """``nopit,smm=off``: bare words of old templates say nothing that QEMU still takes."""
    found: Properties = {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        if equals:
            found[key.replace("_", "-")] = value
    return found


def _security(view: View) -> str:
    if not view.flag("confidential_guest"):
        return ""
    return "sev-snp" if view.flag("sev_snp_guest") else "confidential"
