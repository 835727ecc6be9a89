"""``build_plan``: specification and host become a launch plan. Pure: no clock, no I/O, no randomness.

Steps: 1. board · 2. files to open · 3. arguments and descriptors · 4. seccomp profile · 5. wall · 6. helpers ·
7. declared facts · 8. warnings.
"""

from __future__ import annotations

import msgspec

from casemate.errors import HostError, InputError
from casemate.jail.policy import Identity
from casemate.jail.profiles import qemu_profile
from casemate.plan.accel import Board, choose_board
from casemate.plan.argv import Numbering, build_argv, devices_of
from casemate.plan.confidential import FIRMWARE_MAX_BYTES, firmware_path, missing
from casemate.plan.declare import declare
from casemate.plan.label import process_label
from casemate.plan.model import Emulator, HelperPlan, Host, LaunchPlan
from casemate.plan.passt import plan_passt
from casemate.plan.passthrough import check_passthrough, passthrough_files
from casemate.plan.wall import build_wall, needs_group_kvm, open_files
from casemate.spec.model import AccelChoice, NetworkMode, Spec

MINIMUM_VERSION = (7, 2)


class Request(msgspec.Struct, frozen=True):
    """What the engine decided before planning: ids, and sizes that it read from files.

    ``sizes``: role -> virtual size in bytes (disks, firmware variables) or file size (kernel, initrd).
    ``incoming``: it goes on from a saved state.
    ``channel``: a virtio-serial port whose other end is the descriptor of that role: the cell's agent speaks there.
    ``tpm_identity``: who the TPM's emulator runs as, for a VM with a TPM; ``keeps_state``: the VM can be started again.
    """

    vm_id: str
    name: str
    identity: Identity
    sizes: dict[str, int] = {}
    channel: bool = False
    incoming: bool = False
    tpm_identity: Identity | None = None
    keeps_state: bool = True


def build_plan(spec: Spec, host: Host, emulator: Emulator, request: Request) -> LaunchPlan:
    """Decide everything about a launch.

    Raises:
        HostError: QEMU too old or without the machine type, firmware or passt missing, KVM demanded but absent.
        InputError: a combination that cannot start here.
    """
    if spec.confidential is None:  # for one everything that is not there is told together
        _check_emulator(spec, emulator)
    check_passthrough(spec, host, emulator)
    board = choose_board(spec, host)  # 1
    if spec.has_flash and (host.uefi is None or host.uefi.secure_boot is not spec.boot.is_secure):
        raise HostError("UEFI firmware is missing", expected="OVMF", next_step="apt-get install ovmf")
    files = open_files(spec, request.sizes, host.uefi, firmware_path(spec, host)) + passthrough_files(spec, host)  # 2
    numbering = Numbering()
    argv = build_argv(spec, board, request.vm_id, numbering, channel=request.channel, incoming=request.incoming)  # 3
    profile = qemu_profile(board.accel, devices_of(spec, board.accel))  # 4
    identity = request.identity
    if needs_group_kvm(board, identity):
        identity = msgspec.structs.replace(identity, keep_groups=True)
    boot_bytes = request.sizes.get("kernel", 0) + request.sizes.get("initrd", 0)
    boot_bytes += FIRMWARE_MAX_BYTES if spec.confidential is not None else 0
    wall = build_wall(  # 5
        spec,
        board,
        host,
        emulator,
        identity,
        request.vm_id,
        argv,
        tuple(numbering.descriptors),
        files,
        boot_bytes,
        profile.name,
        process_label(host, identity, request.vm_id, board.accel),
    )
    helpers: tuple[HelperPlan, ...] = ()
    if spec.network.mode is NetworkMode.USER:  # 6
        if host.passt is None:
            raise HostError('network.mode = "user" needs passt', next_step="apt-get install passt")
        helpers = (plan_passt(spec, host.passt),)
    if spec.tpm.enabled:
        if host.swtpm is None:
            raise HostError("[tpm] needs swtpm", next_step="apt-get install swtpm")
        from casemate.plan.swtpm import plan_swtpm

        helpers += (plan_swtpm(host.swtpm, request.tpm_identity or identity, keeps_state=request.keeps_state),)
    return LaunchPlan(
        vm_id=request.vm_id,
        name=request.name,
        spec=spec,
        accel=board.accel,
        accel_why=board.accel_why,
        machine=spec.machine.type.value,
        wall=wall,
        profile=profile,
        files=files,
        helpers=helpers,
        declared=declare(spec, board, host, wall, profile, files, request.vm_id, helpers),  # 7
        warnings=_warnings(spec, board, host),  # 8
        run_as=identity,
        missing=missing(spec, host, emulator),
    )


def _check_emulator(spec: Spec, emulator: Emulator) -> None:
    if emulator.version < MINIMUM_VERSION:
        found = ".".join(map(str, emulator.version))
        raise HostError(
            f"{emulator.path} is too old",
            got=f"QEMU {found}",
            expected="7.2 or newer",
            next_step="apt-get install qemu-system-x86 from Debian 12 or newer",
        )
    if spec.machine.type.value not in emulator.machine_types:
        raise HostError(
            f"{emulator.path} has no machine type {spec.machine.type.value}",
            got=", ".join(emulator.machine_types[:8]) or "none",
            next_step="install the distribution's full qemu-system-x86",
        )
    if spec.passthrough and spec.machine.type.value == "microvm":
        raise InputError("[[passthrough]] needs a PCI bus", got="microvm", expected='machine.type = "q35"')


def _warnings(spec: Spec, board: Board, host: Host) -> tuple[str, ...]:
    warnings = []
    if board.accel == "tcg":
        # One line, said at each start: accel_why, which plan and inspect show, may be long.
        why = "as asked for" if spec.machine.accel is AccelChoice.TCG else "why not KVM: casemate doctor"
        warnings.append(f"TCG is not a security boundary, only the wall around it holds; {why} [dev.kvm]")
    if not host.lsms or not {"selinux", "apparmor"} & set(host.lsms):
        warnings.append("no SELinux and no AppArmor on this host [os.mac]")
    if host.landlock_abi == 0:
        warnings.append("this kernel has no Landlock [proc.landlock]")
    if host.cgroup.version == 0:
        why = host.cgroup.why_none.partition(";")[0]
        warnings.append(f"{why}: limits are rlimits only; casemate doctor [proc.cgroup]")
    if board.accel == "kvm" and "demanded" in board.accel_why:
        warnings.append(f"KVM on this host: {board.accel_why}")
    return tuple(warnings)
