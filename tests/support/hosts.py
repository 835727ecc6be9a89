"""Hosts and emulators as plain data, for pure planning."""

from __future__ import annotations

import msgspec

from casemate.facts.confidential import ConfidentialHost
from casemate.jail.policy import Identity, IdentityMode
from casemate.plan.build import Request, build_plan
from casemate.plan.model import CgroupBase, Emulator, FirmwarePair, Host, LaunchPlan
from casemate.spec.model import Spec

EMULATOR = Emulator(
    path="/usr/bin/qemu-system-x86_64",
    version=(7, 2, 22),
    machine_types=("microvm", "q35", "pc"),
    files={
        "/usr/bin/qemu-system-x86_64": "/usr/bin/qemu-system-x86_64",
        "/lib64/ld-linux-x86-64.so.2": "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "/lib/x86_64-linux-gnu/libc.so.6": "/usr/lib/x86_64-linux-gnu/libc.so.6",
    },
    modules={
        "accel-tcg-x86_64.so": (
            "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
            "/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
        )
    },
    firmware={
        name: (f"/usr/share/qemu/{name}", f"/usr/share/qemu/{name}")
        for name in ("bios-microvm.bin", "linuxboot_dma.bin", "kvmvapic.bin", "bios-256k.bin")
    },
)

HOST = Host(
    machine="x86_64",
    kvm_verdict="emulated",
    kvm_why="1,700,000 instructions per second",
    kvm_tsc_deadline=False,
    kvm_irqchip_off=False,
    kvm_refused_flags={},
    kvm_device="root:kvm 0660",
    tsc_khz=2_000_000,
    landlock_abi=6,
    core_sched=True,
    lsms=("landlock", "apparmor"),
    cgroup=CgroupBase(2, dict.fromkeys(("memory", "cpu", "pids"), "/sys/fs/cgroup/casemate")),
    uefi=FirmwarePair("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", "c" * 64, "d" * 64),
    passt="/usr/bin/passt",
    swtpm="/usr/bin/swtpm",
    rootless=False,
)

KVM_HOST = msgspec.structs.replace(HOST, kvm_verdict="usable", kvm_why="it runs guest code", kvm_tsc_deadline=True)

SECURE_HOST = msgspec.structs.replace(
    KVM_HOST,
    uefi=FirmwarePair(
        "/usr/share/OVMF/OVMF_CODE_4M.ms.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
        "e" * 64,
        "f" * 64,
        "/usr/share/qemu/firmware/40-edk2-x86_64-secure-enrolled.json",
        secure_boot=True,
    ),
)
NEWER_EMULATOR = msgspec.structs.replace(EMULATOR, version=(11, 1, 3))
S390_EMULATOR = Emulator(
    path="/usr/bin/qemu-system-s390x",
    version=(11, 1, 3),
    machine_types=("s390-ccw-virtio",),
    files={"/usr/bin/qemu-system-s390x": "/usr/bin/qemu-system-s390x"},
    modules={},
    firmware={"s390-ccw.img": ("/usr/share/qemu/s390-ccw.img", "/usr/share/qemu/s390-ccw.img")},
)
CONFIDENTIAL_EMULATORS = {"sev-snp": NEWER_EMULATOR, "tdx": NEWER_EMULATOR, "se": S390_EMULATOR}

CONFIDENTIAL_HOSTS = {
    "sev-snp": msgspec.structs.replace(
        KVM_HOST,
        confidential=ConfidentialHost(
            flag=True, parameter="Y", vm_types=0x1F, c_bit=51, firmware="/usr/share/ovmf/OVMF.amdsev.fd"
        ),
    ),
    "tdx": msgspec.structs.replace(
        KVM_HOST,
        confidential=ConfidentialHost(parameter="Y", vm_types=0x21, firmware="/usr/share/ovmf/OVMF.inteltdx.ms.fd"),
    ),
    "se": msgspec.structs.replace(KVM_HOST, machine="s390x", confidential=ConfidentialHost(parameter="1")),
}
"""Hosts that have everything, by kind."""

ROOT_IDENTITY = Identity(1_900_000_007, 1_900_000_007, IdentityMode.ROOT)


def plan_of(
    spec: Spec,
    host: Host = HOST,
    sizes: dict[str, int] | None = None,
    *,
    emulator: Emulator = EMULATOR,
    identity: Identity = ROOT_IDENTITY,
) -> LaunchPlan:
    """A plan with fixed ids; ``sizes``: role -> bytes."""
    request = Request("0123456789abcdef", spec.name or "golden", identity, sizes or {"kernel": 1})
    return build_plan(spec, host, emulator, request)
