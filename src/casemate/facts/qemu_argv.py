"""A QEMU command line as a described machine: any that QEMU 4 to 11 accepts, libvirt's JSON forms included.

1. Bound the input; split it into options with their arguments (``options`` keeps every one).
2. Let each option add what it adds; an option that nobody knows, or whose text is not understood, is *unreadable*.
3. Settle what depends on other options: -set, network cards and drives without a model, the board's own devices.

Nothing is run, opened or looked up: two equal command lines give equal machines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from casemate.errors import InputError
from casemate.facts.machine import Machine
from casemate.facts.machine_boards import DEFAULT_NIC, ORIGIN, board_devices, board_family
from casemate.facts.machine_secrets import secrets_in
from casemate.facts.qemu_argv_disks import finish_disks, short_drive
from casemate.facts.qemu_argv_draft import Draft
from casemate.facts.qemu_argv_front import finish_display, finish_monitors
from casemate.facts.qemu_argv_names_data import HARMLESS, PLAIN, TAKES_ARGUMENT
from casemate.facts.qemu_argv_options import HANDLERS, finish_nics
from casemate.facts.qemu_argv_text import (
    MAX_ARGUMENT_CHARS,
    MAX_ARGUMENTS,
    MAX_TOTAL_CHARS,
    OptionFaultError,
    parse_option,
)
from casemate.units import MIB, parse_size_bytes

_PROGRAM: Final = re.compile(r"qemu(?:-system)?-([a-z0-9_]+?)(?:-(?:microvm|spice|headless))?(?:-[0-9.]+)?")
_LAUNCH_SECURITY: Final = ("sev-guest", "sev-snp-guest", "tdx-guest", "s390-pv-guest", "pef-guest")


def read_argv(argv: Sequence[str], source: str) -> Machine:
    """The machine that this command line describes.

    Args:
        argv: the whole argument vector; the program's name may be left out.
        source: where it was read, for messages and evidence.

    Raises:
        InputError: empty, or larger than anything that a real VM has.
    """
    # 1. Bound and split.
    _check_bounds(argv, source)
    draft = Draft()
    emulator = "" if argv[0].startswith("-") else argv[0]
    for position, option, argument in _options(argv, 1 if emulator else 0, draft):
        # 2. Let each option add what it adds.
        name = option.lstrip("-")
        origin = f"argv[{position}]"
        draft.options.append((option, argument))
        draft.secrets += secrets_in(option, argument)
        handler = HANDLERS.get(name)
        try:
            if handler is not None:
                handler(draft, argument, origin)
            elif name not in HARMLESS:
                _other(draft, name, argument, origin)
        except OptionFaultError as fault:
            draft.miss(f"{origin} {option}: {fault}")
    # 3. Settle what depends on other options.
    return _finish(draft, emulator, source)


def _check_bounds(argv: Sequence[str], source: str) -> None:
    if not argv:
        raise InputError(f"{source}: the command line is empty", expected="qemu-system-… and its options")
    total = sum(map(len, argv))
    longest = max(map(len, argv))
    if len(argv) > MAX_ARGUMENTS or longest > MAX_ARGUMENT_CHARS or total > MAX_TOTAL_CHARS:
        raise InputError(
            f"{source}: the command line is larger than a VM's can be",
            got=f"{len(argv)} arguments, {total} characters, the longest {longest}",
            expected=f"at most {MAX_ARGUMENTS} arguments, {MAX_TOTAL_CHARS} characters, {MAX_ARGUMENT_CHARS} in one",
        )


def _options(argv: Sequence[str], start: int, draft: Draft) -> list[tuple[int, str, str]]:
    """(position, option, argument) in order. A bare word is a disk, as for QEMU."""
    found = []
    position = start
    while position < len(argv):
        word = argv[position]
        name = word[2:] if word.startswith("--") else word[1:]
        if not word.startswith("-") or not name:
            draft.drives.append((short_drive("hda", word), f"argv[{position}]"))
            found.append((position, "", word))
            position += 1
            continue
        follows = position + 1 < len(argv)
        takes = name in TAKES_ARGUMENT or (name in HANDLERS and name not in PLAIN)
        if not takes and name not in PLAIN:
            draft.miss(f"argv[{position}]: option {word[:80]} is not known to this reader")
            takes = follows and not argv[position + 1].startswith("-")
        if takes and not follows:
            draft.miss(f"argv[{position}]: {word[:80]} without its argument")
        found.append((position, f"-{name}", argv[position + 1] if takes and follows else ""))
        position += 2 if takes else 1
    return found


def _other(draft: Draft, name: str, argument: str, origin: str) -> None:
    """Options without a handler: those that bring nothing stay in ``options``, the others are said to be unread."""
    if name in ("fw_cfg", "version", "h", "help", "", "vmstate-size", "shim", "qtest-log", "mem-prealloc"):
        return
    if name in TAKES_ARGUMENT or name in PLAIN:
        draft.miss(f"{origin}: -{name} {argument[:80]}: what it adds is not known to this reader")


def _finish(draft: Draft, emulator: str, source: str) -> Machine:
    board = draft.machine.pop("type", "")
    architecture = _architecture(emulator)
    if not board and architecture in ("x86_64", "i386"):
        board = "microvm" if emulator.endswith("-microvm") else "pc"
    _apply_sets(draft)
    family = board_family(board, architecture)
    finish_nics(draft, family, board)
    disks = finish_disks(draft, family)
    draft.machine.pop("#made", None)
    accels = [accel for accel in draft.accels if accel] or _default_accel(emulator)
    defaults = "-nodefaults" not in draft.flags
    if not board_family(board, architecture):
        draft.miss(f"board {board[:60] or '(default)'}: what it brings along was not measured")
    own = board_devices(
        board, draft.machine, accels[0], defaults=defaults, taken=draft.taken, architecture=architecture
    )
    if any(device.type == DEFAULT_NIC.get(board_family(board, architecture)) for device in own):
        # The card that comes by itself is plugged into slirp.
        draft.backend("netdev", "user", {"id": draft.name("net")}, ORIGIN)
    monitors = finish_monitors(draft, defaults=defaults)
    security = _launch_security(draft)
    return Machine(
        source=source,
        name=_name(draft),
        uuid=draft.words.get("uuid", ""),
        emulator=emulator,
        architecture=architecture,
        accel=":".join(dict.fromkeys(accels)),
        board=board,
        board_options=draft.machine,
        cpu_model=draft.cpu_model,
        cpu_flags=draft.cpu_flags,
        memory_mib=_memory_mib(draft),
        vcpus=_vcpus(draft),
        kernel=draft.words.get("kernel", ""),
        initrd=draft.words.get("initrd", ""),
        cmdline=draft.words.get("append", ""),
        firmware=tuple(draft.firmware),
        devices=(*draft.final_devices(), *own),
        backends=draft.final_backends(),
        disks=disks,
        monitors=monitors,
        display=finish_display(draft),
        sandbox=draft.words.get("sandbox", ""),
        run_as=draft.words.get("runas", ""),
        flags=tuple(draft.flags),
        launch_security=security.removesuffix("-guest"),
        options=tuple(draft.options),
        unreadable=tuple(draft.unreadable),
        settings=_settings(draft),
        secrets=tuple(dict.fromkeys(draft.secrets)),
    )


def _launch_security(draft: Draft) -> str:
    """The object that the machine is linked with; one beside it that nothing names encrypts nothing."""
    named = draft.machine.get("confidential-guest-support") or draft.machine.get("memory-encryption", "")
    objects = [
        (kind, words) for what, kind, words, _ in draft.backends if what == "object" and kind in _LAUNCH_SECURITY
    ]
    return next((kind for kind, words in objects if named and words.get("id") == named), "")


def _architecture(emulator: str) -> str:
    name = emulator.rpartition("/")[2]
    if name in ("qemu-kvm", "kvm", "qemu", "qemu-dm", ""):
        return "x86_64"
    found = _PROGRAM.fullmatch(name)
    return found[1] if found else "x86_64"


def _default_accel(emulator: str) -> list[str]:
    """QEMU prefers KVM by itself only when its own name ends with kvm."""
    return ["kvm", "tcg"] if emulator.endswith("kvm") else ["tcg"]


def _apply_sets(draft: Draft) -> None:
    """``-set group.id.property=value`` changes an option given elsewhere."""
    for group, name, key, value, origin in draft.sets:
        if group == "device":
            known = [properties for _, properties, _ in draft.devices]
        elif group == "drive":
            known = [properties for properties, _ in draft.drives]
        elif group == "machine":
            draft.machine[key.replace("_", "-")] = value
            continue
        else:
            known = [properties for kind, _, properties, _ in draft.backends if kind == group]
        changed = [properties for properties in known if properties.get("id") == name]
        for properties in changed:
            properties[key] = value
        if not changed:
            draft.miss(f"{origin}: -set {group}.{name} has no such option")


def _name(draft: Draft) -> str:
    try:
        return parse_option(draft.words.get("name", ""), "guest").get("guest", "")
    except OptionFaultError:
        return ""


def _memory_mib(draft: Draft) -> int:
    try:
        stated = parse_option(draft.words.get("m", ""), "size").get("size", "")
        return parse_size_bytes(stated, "m") // MIB if stated else 0
    except (OptionFaultError, ValueError):
        return 0


def _vcpus(draft: Draft) -> int:
    try:
        stated = parse_option(draft.words.get("smp", ""), "cpus").get("cpus", "")
    except OptionFaultError:
        return 0
    return int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 6 else 0


def _settings(draft: Draft) -> dict[str, str]:
    found: dict[str, str] = {name: draft.words[name] for name in ("mem-path", "chroot") if name in draft.words}
    for driver, name, value in draft.globals:
        if (driver, name) == ("cfi.pflash01", "secure"):
            found["flash-secure"] = value
    return found
