"""What stands beside the devices of a machine that becomes a specification: interfaces, memory, what cannot be said."""

from __future__ import annotations

import re
from typing import Final

from casemate.facts.machine import Machine
from casemate.harden.machine_confidential import is_taken
from casemate.harden.model import Notes, Reason

_IGNORED_FLAGS: Final = frozenset({"-nodefaults", "-no-user-config", "-snapshot", "-enable-kvm", "-S"})


def tpm(machine: Machine, notes: Notes) -> dict[str, dict[str, bool]]:
    """``[tpm]`` where the machine has one that is emulated; its state cannot come along."""
    device = next((item for item in machine.devices if item.type.startswith(("tpm-", "spapr-tpm"))), None)
    if device is None:
        return {}
    if is_taken(machine):
        step = "the guest's evidence is its own report: what trusts its TPM has to change"
        notes.leave(
            "dev.tpm", device.origin, f"{device.type} is what the host says it is: removed", Reason.DECIDE, step
        )
        return {}
    if any(item.kind == "tpmdev" and item.type == "passthrough" for item in machine.backends):
        step = "a TPM of the VM's own: [tpm] enabled = true; the host's is the host's"
        notes.leave("dev.tpm", device.origin, "the host's TPM is not in the specification", Reason.DECIDE, step)
        return {}
    notes.change(
        "tpm.state-encrypted",
        device.origin,
        f"{device.type} becomes a TPM of the VM's own, in a wall, with encrypted state",
        "what guards a TPM's state on the host guards what the guest sealed with it",
        "it is a new TPM: what was sealed by the old one (disk keys, BitLocker) has to be unlocked with a recovery key",
    )
    return {"tpm": {"enabled": True}}


def surroundings(machine: Machine, notes: Notes) -> None:
    """Monitors, screens, debugging, shared memory, secrets, and what nobody understood."""
    ways = [way for way in machine.monitors if way not in ("fd", "none", "libvirt")]
    if ways:
        notes.change(
            "vmm.qmp",
            "monitor",
            f"monitor on {', '.join(ways)[:120]} removed",
            "whoever reaches the monitor owns the VM and reads files as the emulator",
            "programs that speak QMP: casemate's own commands take their place",
        )
    screens = [b for b in machine.backends if b.kind == "display"]
    for screen in screens:
        listen = screen.properties.get("listen", "")
        notes.change(
            "vmm.console-listen" if listen else "dev.no-display",
            screen.origin,
            f"{screen.type} removed" + (f", which listened on {listen[:60]}" if listen else ""),
            "display and remote desktop code in QEMU is large and reachable from the network",
            "the screen: the console is a serial one (casemate console)",
        )
    _serial(machine, notes)
    _memory(machine, notes)
    _interfaces(machine, notes)
    if not any(d.type.startswith("virtio-rng") for d in machine.devices):
        notes.change(
            "ent.virtio-rng", "devices", "virtio-rng from /dev/urandom, with a rate", "early keys need entropy"
        )
    if "spawn=deny" not in machine.sandbox and machine.form == "argv":
        notes.change("proc.qemu-sandbox", "argv", "-sandbox on with all denials, inside our wall", "one more filter")
    _unsaid(machine, notes)
    for part in machine.unreadable[:64]:
        notes.leave(
            "dev.surface",
            machine.form,
            f"not understood, and not taken over: {part[:160]}",
            Reason.DECIDE,
            "look at it",
        )


def _memory(machine: Machine, notes: Notes) -> None:
    shared = [b for b in machine.backends if b.kind == "object" and b.properties.get("share") in ("on", "yes", "true")]
    files = [b for b in machine.backends if b.kind == "object" and b.type == "memory-backend-file"]
    if shared or files or machine.settings.get("mem-path"):
        notes.change(
            "mem.no-shared-backend",
            ", ".join(b.origin for b in (*shared, *files)) or "-mem-path",
            "memory back end removed: the guest's memory is anonymous",
            "another process that maps the guest's memory sees its keys",
            "huge pages and NUMA placement",
        )


def _interfaces(machine: Machine, notes: Notes) -> None:
    """Debuggers, secrets in arguments."""
    opened = [flag for flag in machine.flags if flag not in _IGNORED_FLAGS]
    if opened:
        notes.change(
            "vmm.no-debug",
            "argv",
            f"{', '.join(opened)[:120]} removed",
            "debuggers and incoming migrations rule the guest, and nobody asks who they are",
            "that interface",
        )
    if machine.secrets:
        notes.change(
            "dev.no-secret-args",
            ", ".join(machine.secrets)[:120],
            "secrets in the arguments are not taken over",
            "every process of the host can read another one's arguments",
            "what needed them",
        )


def _serial(machine: Machine, notes: Notes) -> None:
    open_ways = [
        b.origin
        for b in machine.backends
        if b.kind == "chardev" and b.type in ("socket", "udp") and not b.path and b.properties.get("port")
    ]
    open_ways += [d.origin for d in machine.devices if re.match(r"(tcp|telnet|udp|websocket):", d.backend)]
    if open_ways:
        notes.change(
            "vmm.serial-network",
            ", ".join(open_ways[:4]),
            "console on the network removed",
            "nobody asks who types into it",
            "casemate console, over ssh to the host",
        )


_SAID: Final = frozenset(
    """M machine accel enable-kvm no-kvm cpu smp m name nodefaults no-user-config nodefconfig device drive hda hdb hdc
    hdd fda fdb cdrom sd mtdblock blockdev pflash bios kernel initrd append boot snapshot netdev nic net redir smb
    tftp bootp usb usbdevice display vga std-vga vnc spice nographic sdl curses full-screen serial parallel monitor
    qmp qmp-pretty mon chardev debugcon object fsdev virtfs virtfs-synth tpmdev audiodev audio soundhw balloon
    watchdog sandbox run-with runas chroot daemonize pidfile msg D d dfilter trace S s gdb incoming add-fd set mem-
    path mem-prealloc L k echr no-quit no-frame alt-grab ctrl-grab show-cursor portrait rotate no-hpet no-kvm-
    irqchip no-kvm-pit no-kvm-pit-reinjection no-reboot no-shutdown action version h help overcommit rtc fw_cfg uuid
    smbios global numa virtioconsole enable-fips only-migratable realtime tdf win2k-hack no-fd-bootchk""".split()  # noqa: SIM905
) | {""}
"""Options that another rule speaks of, or whose absence no guest notices; a bare word is a disk."""
_GUEST_SEES: Final = {
    "rtc": (re.compile(r"base=(?!utc)"), "the guest's clock is UTC: Windows wants RealTimeIsUniversal"),
    "fw_cfg": (re.compile(r"."), "files for the guest's firmware: provisioning, if the guest reads them"),
    "uuid": (re.compile(r"."), "licences and cloud-init may know the old one"),
    "smbios": (
        re.compile(r"."),
        "what the guest reads as its hardware; cloud-init may look for its serial number there",
    ),
    "numa": (re.compile(r"."), "the guest sees one node"),
    "global": (re.compile(r"."), "look whether the guest needs that default"),
    "no-reboot": (re.compile(r""), "a guest that reboots does reboot"),
    "boot": (re.compile(r"^(order=)?n"), "firmware boots the first disk; there is no network boot"),
}


def _unsaid(machine: Machine, notes: Notes) -> None:
    """Options that a specification has no word for; their values may be secrets and are not repeated."""
    for name in dict.fromkeys(option.lstrip("-") for option, _ in machine.options):
        values = [argument for option, argument in machine.options if option.lstrip("-") == name]
        if name in _GUEST_SEES:
            pattern, step = _GUEST_SEES[name]
            if any(pattern.search(value) for value in values):
                notes.leave("dev.surface", f"-{name}", f"-{name} is not in the specification", Reason.LIMIT, step)
        elif name not in _SAID and machine.form == "argv":
            what = f"-{name[:40]} is not in the specification"
            notes.leave("dev.surface", f"-{name[:40]}", what, Reason.LIMIT, "see whether the guest needs it")
