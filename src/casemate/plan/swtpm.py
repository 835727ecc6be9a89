"""swtpm for one VM: its arguments, its wall, where its state lies.

It talks to nobody but QEMU, over a socket pair on which QEMU also hands it the channel for TPM commands; the key of
its state comes in memory, by descriptor. The state is one directory, the only writable place of its root::

    VM that can be started again    a directory of the VM's data, owned by swtpm's own uid, mode 0700
    VM that removes itself          a tmpfs inside the wall, which ends with it
"""

from __future__ import annotations

from typing import Final

from casemate.jail.policy import (
    BindFile,
    Descriptor,
    Identity,
    LandlockPath,
    RootEntry,
    Scratch,
    StateDirectory,
    Wall,
)
from casemate.plan.limits import process_rlimits
from casemate.plan.model import HelperPlan

PROFILE: Final = "swtpm"
PROGRAM: Final = "/swtpm"
"""Where its root has it. Not where the host does: Ubuntu's AppArmor profile is attached to that path, and knows nothing
of a state directory like ours; no profile may be the reason that a wall has a hole or a VM no TPM."""
CONTROL_FD: Final = 3
KEY_FD: Final = 4
EXPORT_KEY_FD: Final = 5
STATE: Final = "/state"
KEY_BYTES: Final = 32
STATE_MAX_BYTES: Final = 1024 * 1024
"""Of one file. libtpms 0.9 and 0.10: 176 KiB of non-volatile memory, and as much again of volatile state."""
_STATE_FILES_MAX: Final = 16
_MIB: Final = 1024 * 1024


def plan_swtpm(swtpm: str, identity: Identity, *, keeps_state: bool) -> HelperPlan:
    """The helper that is a VM's TPM."""
    return HelperPlan(
        name="swtpm",
        argv=(
            PROGRAM,
            "socket",
            "--tpm2",
            "--ctrl",
            f"type=unixio,clientfd={CONTROL_FD}",
            "--tpmstate",
            f"dir={STATE},mode=0600",
            "--key",
            f"fd={KEY_FD},format=binary,mode=aes-256-cbc",
            # Whoever holds the control channel may ask for the whole state in the clear (CMD_GET_STATEBLOB). With this
            # key, which nobody keeps, an emulator that was taken over gets noise. It is what swtpm calls migration.
            "--migration-key",
            f"fd={EXPORT_KEY_FD},format=binary,mode=aes-256-cbc",
        ),
        wall=(
            "new user, mount, pid, network, ipc, uts and cgroup namespaces; the network namespace stays empty",
            f"new root: {swtpm} as {PROGRAM}, its libraries, read-only; {STATE} is "
            + ("the directory with its state" if keeps_state else "a tmpfs that ends with it"),
            f"uid and gid {identity.uid} of its own, no capabilities, no_new_privs, the VM's cgroup, limits",
            f"Landlock: reads its root, writes {STATE}; no TCP, no abstract sockets or signals outside",
            f"seccomp allowlist {PROFILE}, default kill; then swtpm's own filter",
            "state encrypted (AES-256) with a key by descriptor; given out only under a key that nobody keeps",
        ),
        profile=PROFILE,
        program=swtpm,
        descriptors=(
            Descriptor(0, "null", "ro"),
            Descriptor(1, "log", "wo"),
            Descriptor(2, "log", "wo"),
            Descriptor(CONTROL_FD, "tpm-control", "socket"),
            Descriptor(KEY_FD, "tpm-key", "ro"),
            Descriptor(EXPORT_KEY_FD, "tpm-export-key", "ro"),
        ),
        run_as=identity,
        keeps_state=keeps_state,
    )


def swtpm_wall(helper: HelperPlan, vm: Wall, files: dict[str, str], state: str | None) -> Wall:
    """The wall of swtpm beside the VM's.

    Args:
        helper: from `plan_swtpm`.
        vm: the emulator's wall: cgroup and Landlock ABI are the same.
        files: path inside the root -> the host's file, for the program and its libraries.
        state: the host's directory with its state; None for a tmpfs.
    """
    if helper.run_as is None or (state is not None) != helper.keeps_state:
        raise RuntimeError("swtpm_wall: not the plan of a TPM, or not its kind of state")
    place = StateDirectory(state, STATE) if state is not None else Scratch(STATE, STATE_MAX_BYTES, _STATE_FILES_MAX)
    root: list[RootEntry] = [BindFile(source, target) for target, source in sorted(files.items())]
    return Wall(
        argv=helper.argv,
        environment=(),
        root=(*root, place),
        root_size_bytes=_MIB,
        identity=helper.run_as,
        # nofile: more than 256, the launch moves descriptors out of the way there.
        rlimits=process_rlimits(nofile=512, nproc=1, fsize=STATE_MAX_BYTES),
        landlock_abi=vm.landlock_abi,
        landlock=(LandlockPath("/", ("read", "execute")), LandlockPath(STATE, ("read", "write", "replace"))),
        cgroup=vm.cgroup,
        descriptors=helper.descriptors,
        profile=helper.profile,
    )
