"""The emulator: where it is, what it says of itself, which modules a launch needs.

What an emulator can do is asked once, from an instance without a machine, over QMP, with a deadline; the answer is
kept in a cache that is good as long as the binary, its module directory and its data directories have not changed.
A launch with a warm cache starts no process.

Module sets were found by running QEMU 7.2 in a root that held nothing else (tests/walls/test_facts_live.py repeats it).
"""

from __future__ import annotations

import mmap
import os
import stat as stat_module
from pathlib import Path
from typing import Any, Final

import msgspec

from casemate.errors import HostError
from casemate.facts.program import ask_program
from casemate.facts.root import Root
from casemate.facts.stamp import FileStamp, is_current, load_cache, save_cache, stamp_of, stamp_path

MINIMUM_VERSION: Final = (7, 2, 0)
_CACHE_FORMAT: Final = 1
_TIMEOUT_S: Final = 10.0
_LIMIT_BYTES: Final = 4 << 20
_CANDIDATES: Final = ("/usr/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm", "/usr/local/bin/qemu-system-x86_64")
_MODULE_DIRS: Final = (
    "/usr/lib/x86_64-linux-gnu/qemu",
    "/usr/lib64/qemu-kvm",
    "/usr/lib64/qemu",
    "/usr/lib/qemu",
    "/usr/local/lib/x86_64-linux-gnu/qemu",
    "/usr/local/lib64/qemu",
    "/usr/local/lib/qemu",
)
_INSTALL: Final = "apt install qemu-system-x86 (Debian, Ubuntu) or dnf install qemu-system-x86-core (Fedora)"

# Device models that distributions build as modules, by the start of the module's name; all others are built in.
_DEVICE_MODULES: Final = {
    "virtio-gpu": ("hw-display-virtio-gpu",),
    "virtio-vga": ("hw-display-virtio-gpu", "hw-display-virtio-vga"),
    "qxl": ("ui-spice-core", "hw-display-qxl"),
    "usb-host": ("hw-usb-host",),
    "usb-redir": ("hw-usb-redirect",),
    "usb-ccid": ("hw-usb-smartcard",),
}


class Emulator(msgspec.Struct, frozen=True):
    """One QEMU binary and what it said.

    ``version`` is (major, minor, micro); ``machine_types`` holds names and aliases; ``modules`` the file names in
    ``module_dir`` (None for a QEMU without modules); ``data_dirs`` where it looks for firmware, in its order, as
    absolute paths; ``accelerators`` those it started with or that its types show (``tcg``, ``kvm``).
    """

    path: str
    stamp: FileStamp
    sha256: str
    version: tuple[int, int, int]
    version_text: str
    machine_types: tuple[str, ...]
    device_types: tuple[str, ...]
    accelerators: tuple[str, ...]
    module_dir: str | None
    modules: tuple[str, ...]
    data_dirs: tuple[str, ...]
    kvm_device_property: bool
    insecure_types_policy: bool
    netdev_stream: bool
    sandbox: bool


class _CachedEmulator(msgspec.Struct, frozen=True):
    format: int
    emulator: Emulator
    stamps: dict[str, FileStamp | None]


def find_qemu(root: Root, explicit: str | None = None) -> str:
    """The emulator's real path. $PATH is not consulted: it belongs to the caller, not to the host.

    Raises:
        HostError: none is installed, or the one named is no executable file, or somebody else can change it.
    """
    for candidate in (explicit,) if explicit else _CANDIDATES:
        try:
            path = root.real_path(candidate)
            status = root.stat(path)
        except OSError as error:
            if explicit:
                raise HostError(f"emulator {explicit}", got=error.strerror or str(error)) from error
            continue
        if not stat_module.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
            raise HostError(f"emulator {path}", got="no executable file", next_step=_INSTALL)
        if status.st_mode & stat_module.S_IWOTH or status.st_uid not in (0, os.geteuid()):
            raise HostError(
                f"emulator {path}",
                got=f"owner {status.st_uid}, mode {status.st_mode & 0o7777:04o}",
                expected="owned by root or by you, not writable by all",
            )
        return path
    raise HostError("no QEMU found", expected=f"one of {', '.join(_CANDIDATES)}", next_step=_INSTALL)


def describe_emulator(path: str, cache_dir: Path, root: Root | None = None) -> Emulator:
    """What the emulator at ``path`` can do, from the cache or by asking it.

    Raises:
        HostError: it does not run, does not answer in time, or answers nonsense.
    """
    tree = root or Root()
    cache_file = cache_dir / "emulators" / f"{path.strip('/').replace('/', '_')}.json"
    cached = load_cache(cache_file, _CachedEmulator)
    if cached is not None and cached.format == _CACHE_FORMAT and cached.emulator.path == path:
        current = stamp_path(tree, path) == cached.emulator.stamp and is_current(tree, cached.stamps)
        if current:
            return cached.emulator
    if not tree.is_live:
        raise HostError(f"emulator {path}", got="a captured tree", expected="the live host, where it can be run")
    emulator = _ask_emulator(path, tree)
    watched = [*emulator.data_dirs, *_MODULE_DIRS]
    stamps = {directory: stamp_path(tree, directory) for directory in watched}
    save_cache(cache_file, _CachedEmulator(_CACHE_FORMAT, emulator, stamps))
    return emulator


def modules_for(emulator: Emulator, accel: str, devices: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Absolute paths of the modules that a launch needs; everything else of QEMU 7.2 is built in.

    Args:
        emulator: as described.
        accel: ``tcg`` or ``kvm``.
        devices: QEMU device names (``virtio-blk-pci``).

    Raises:
        HostError: this emulator has no such accelerator.
    """
    if accel not in emulator.accelerators:
        raise HostError(
            f"{emulator.path} cannot use accelerator {accel}",
            got=", ".join(emulator.accelerators) or "none",
            next_step=_INSTALL,
        )
    wanted: list[str] = []
    if accel == "tcg":
        # KVM is built in; TCG's operations are a module per target architecture on Debian.
        wanted += [name for name in emulator.modules if name == "accel-tcg-x86_64.so"]
    for device in devices:
        for prefix, names in _DEVICE_MODULES.items():
            if device.startswith(prefix):
                wanted += [module for module in emulator.modules if module.startswith(names)]
    return tuple(f"{emulator.module_dir}/{name}" for name in dict.fromkeys(wanted))


def check_emulator(emulator: Emulator, machine_type: str) -> None:
    """Refuse an emulator that is too old or lacks the machine type.

    Raises:
        HostError: with what was found and what would do.
    """
    if emulator.version < MINIMUM_VERSION:
        wanted = ".".join(map(str, MINIMUM_VERSION))
        raise HostError(
            f"{emulator.path} is too old",
            got=f"QEMU {emulator.version_text}",
            expected=f"{wanted} or newer",
            next_step="install that of Debian 12, Ubuntu 24.04, Fedora 38 or newer",
        )
    if machine_type not in emulator.machine_types:
        raise HostError(
            f"{emulator.path} has no machine type {machine_type}",
            got=", ".join(emulator.machine_types[:8]) or "none",
            next_step=_INSTALL,
        )


def _ask_emulator(path: str, root: Root) -> Emulator:
    questions = (
        {"execute": "qmp_capabilities"},
        {"execute": "query-machines"},
        {"execute": "qom-list-types", "arguments": {"implements": "accel"}},
        {"execute": "qom-list-types", "arguments": {"implements": "device"}},
        {"execute": "query-qmp-schema"},
        {"execute": "query-command-line-options"},
    )
    started, why = "", ""
    answers: list[Any] = []
    for accel in ("tcg", "kvm"):
        answers, why = _ask_qmp(path, accel, questions)
        if answers:
            started = accel
            break
    if not started:
        raise HostError(f"emulator {path} does not answer", got=why, next_step=_INSTALL)
    try:
        greeting, _capabilities, machines, accels, devices, schema, options = answers
        version, text = _version(greeting)
        types = {_of_type(item["name"], str).removesuffix("-accel") for item in accels}
        if started == "kvm":
            types.discard("tcg")
        module_dir = _module_dir(path, root)
        return Emulator(
            path=path,
            stamp=stamp_of(root.stat(path)),
            sha256=_sha256(path),
            version=version,
            version_text=text,
            machine_types=tuple(sorted({m[key] for m in machines for key in ("name", "alias") if key in m})),
            device_types=tuple(sorted(_of_type(item["name"], str) for item in devices)),
            accelerators=tuple(sorted(types & {"tcg", "kvm"})),
            module_dir=module_dir,
            modules=tuple(n for n in root.list_dir(module_dir) if n.endswith(".so")) if module_dir else (),
            data_dirs=_data_dirs(path),
            kvm_device_property="kvm" in types and "device" in _accel_properties(path, started),
            insecure_types_policy=_takes_insecure_types(path),
            netdev_stream=version >= (7, 2, 0) and _has_case(schema, "stream"),
            sandbox=any(option.get("option") == "sandbox" for option in options),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OSError, msgspec.MsgspecError) as error:
        raise HostError(f"emulator {path} gave an answer that was not understood", got=str(error)) from error


def _ask_qmp(path: str, accel: str, questions: tuple[dict[str, Any], ...]) -> tuple[list[Any], str]:
    """The greeting and each command's return value; (empty, reason) when it did not answer all of them."""
    lines = b"".join(msgspec.json.encode(question) + b"\n" for question in (*questions, {"execute": "quit"}))
    argv = (path, "-machine", f"none,accel={accel}", "-nodefaults", "-no-user-config", "-display", "none", "-S")
    try:
        answer = ask_program((*argv, "-qmp", "stdio"), questions=lines, timeout_s=_TIMEOUT_S, limit_bytes=_LIMIT_BYTES)
    except (OSError, ValueError) as error:
        return [], str(error)
    collected: list[Any] = []
    for line in answer.output.splitlines():
        try:
            message = msgspec.json.decode(line)
        except msgspec.MsgspecError as error:
            return [], f"not JSON: {error}"
        if not isinstance(message, dict) or "error" in message:
            return [], f"refused a question: {line[:200]!r}"
        if "QMP" in message:
            collected.append(message["QMP"])
        elif "return" in message:
            collected.append(message["return"])
    wanted = len(questions) + 1
    if len(collected) < wanted:
        return [], answer.error_text() or f"{len(collected)} of {wanted} answers, exit status {answer.status}"
    return collected[:wanted], ""


def _version(greeting: Any) -> tuple[tuple[int, int, int], str]:
    numbers = greeting["version"]["qemu"]
    major, minor, micro = (_of_type(numbers[key], int) for key in ("major", "minor", "micro"))
    package = _of_type(greeting["version"].get("package", ""), str)
    text = f"{major}.{minor}.{micro}"
    return (major, minor, micro), f"{text} ({package})" if package else text


def _of_type(value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {value!r:.80}")
    return value


def _accel_properties(path: str, accel: str) -> frozenset[str]:
    # Asked separately: a QEMU without KVM answers it with an error.
    question = {"execute": "qom-list-properties", "arguments": {"typename": "kvm-accel"}}
    answers, _why = _ask_qmp(path, accel, ({"execute": "qmp_capabilities"}, question))
    return frozenset(item["name"] for item in answers[2]) if answers else frozenset()


def _takes_insecure_types(path: str) -> bool:
    # -compat is not part of the QMP schema; options are parsed in order, so an unknown key fails before -version.
    argv = (path, "-compat", "insecure-types=reject", "-version")
    try:
        return ask_program(argv, timeout_s=_TIMEOUT_S, limit_bytes=_LIMIT_BYTES).status == 0
    except (OSError, ValueError):
        return False


def _has_case(schema: Any, case: str) -> bool:
    return any(variant.get("case") == case for entry in schema for variant in entry.get("variants", ()))


def _data_dirs(path: str) -> tuple[str, ...]:
    answer = ask_program((path, "-L", "help"), timeout_s=_TIMEOUT_S, limit_bytes=1 << 16)
    lines = answer.output.decode("utf-8").splitlines()
    return tuple(dict.fromkeys(os.path.normpath(line) for line in lines if line.startswith("/")))


def _module_dir(path: str, root: Root) -> str | None:
    """The directory of modules compiled into the binary; the one that exists and whose name stands in it."""
    present = [directory for directory in _MODULE_DIRS if root.exists(directory)]
    if not present:
        return None
    descriptor = root.open_regular(path)
    try:
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as content:
            for directory in present:
                if content.find(directory.encode() + b"\0") >= 0:
                    return directory
    finally:
        os.close(descriptor)
    return None


def _sha256(path: str) -> str:
    import hashlib

    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
