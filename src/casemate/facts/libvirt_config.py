"""libvirt on this host: is it there, how are its daemons and its QEMU driver set, who may open its sockets.

A setting that no file names has libvirt's documented default; such a fact is *declared*, with that as its source.
"""

from __future__ import annotations

import re
import stat as stat_module
from typing import Final

from casemate.facts.fact import Fact, Facts, Known, Stage, Unknown
from casemate.facts.libvirt_access import access_facts
from casemate.facts.libvirt_conf import MAX_BYTES, Value, parse_conf
from casemate.facts.libvirt_names_data import DAEMON, PERMISSION_KEYS, QEMU, SOCKETS
from casemate.facts.root import Root

CONFIG: Final = "/etc/libvirt"
_RUN: Final = "/run/libvirt"
_BIN: Final = ("/usr/sbin", "/usr/bin", "/usr/libexec", "/sbin")
_UNITS: Final = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_KEY: Final = "/etc/pki/libvirt/private/serverkey.pem"
FILE_FACTS: Final = (
    *("libvirt.readable-domains", "libvirt.writable-configs", "libvirt.secrets-mode", "libvirt.hooks-writable"),
)
_SYSTEMD_MODE: Final = 0o666
_OTHERS_MAY: Final = 0o007

Settings = dict[str, Value] | Unknown


def collect_libvirt(root: Root) -> Facts:
    """``libvirt.*``: everything about libvirt's own configuration; reads files, asks no daemon."""
    daemons = _daemons(root)
    if isinstance(daemons, Unknown) or not daemons:
        known: Fact = daemons if isinstance(daemons, Unknown) else Known(False, f"no daemon in {_BIN[0]}, no {CONFIG}")
        return {"libvirt.installed": known, **access_facts(root)}
    return _configured(root, daemons, "systemd units, programs, configuration files")


def collect_configuration(root: Root, *, is_copy: bool) -> Facts:
    """The same of a tree that holds ``/etc/libvirt`` and nothing else of its host: of every daemon that has a file
    there. What other files decide is unknown.

    Args:
        is_copy: what is in it, and whose it is, need not be as on the host.
    """
    daemons = tuple(daemon for daemon in SOCKETS if root.exists(f"{CONFIG}/{daemon}.conf"))
    facts = _configured(root, daemons, "configuration files")
    if not daemons:
        why = Unknown(f"{CONFIG}: no daemon has a file here, so nobody knows which of them run")
        facts |= dict.fromkeys(("libvirt.daemons", "libvirt.tcp", "libvirt.tls"), why)
        facts |= dict.fromkeys((f"libvirt.{kind}-sockets" for kind in ("rw", "ro", "admin")), why)
        facts |= dict.fromkeys((f"libvirt.{name.replace('_', '-')}" for name in DAEMON), why)
    if is_copy:
        facts |= dict.fromkeys(FILE_FACTS, Unknown("owner and mode of a copy are not those on its host"))
    return facts


def _configured(root: Root, daemons: tuple[str, ...], source: str) -> Facts:
    facts = access_facts(root)
    facts["libvirt.installed"] = Known(True, ", ".join(daemons) or CONFIG)
    facts["libvirt.daemons"] = Known(daemons, source)
    settings = {daemon: _settings(root, f"{CONFIG}/{daemon}.conf") for daemon in daemons}
    qemu = _settings(root, f"{CONFIG}/qemu.conf")
    for name, default in QEMU.items():
        facts[f"libvirt.qemu.{name.replace('_', '-')}"] = _setting(qemu, f"{CONFIG}/qemu.conf", name, default)
    for name in ("user", "group"):
        facts[f"libvirt.qemu.{name}"] = _account(root, qemu, name)
    for name, default in DAEMON.items():
        facts[f"libvirt.{name.replace('_', '-')}"] = _each_daemon(settings, name, default)
    facts |= _sockets(root, settings, facts)
    facts["libvirt.tcp"] = _listening(root, settings, "tcp")
    facts["libvirt.tls"] = _listening(root, settings, "tls")
    facts["libvirt.tls-key"] = _mode(root, _KEY)
    facts |= _files(root)
    return facts


def _daemons(root: Root) -> tuple[str, ...] | Unknown:
    """The daemons in use: enabled ones; else installed ones; else those with a configuration file."""
    try:
        if not root.exists("/etc"):
            return Unknown("there is no /etc here, so a missing libvirt says nothing")
        enabled = tuple(d for d in SOCKETS if any(_enabled(root, f"{d}.{kind}") for kind in ("socket", "service")))
        if enabled:
            return enabled
        there = tuple(d for d in SOCKETS if any(root.exists(f"{directory}/{d}") for directory in _BIN))
        return there or tuple(d for d in SOCKETS if root.exists(f"{CONFIG}/{d}.conf"))
    except OSError as error:
        return Unknown(f"{error.filename or CONFIG}: {error.strerror or error}")


def _enabled(root: Root, unit: str) -> bool:
    """Whether some target wants the unit: a link in a ``.wants`` directory of the administrator.

    Raises:
        OSError: that cannot be known.
    """
    for directory in _UNITS[:2]:
        for name in _listed(root, directory):
            if name.endswith((".wants", ".requires")) and unit in _listed(root, f"{directory}/{name}"):
                return True
    return False


def _settings(root: Root, path: str) -> Settings:
    """The settings of one file; none when there is no such file: libvirt then runs on its defaults."""
    try:
        return parse_conf(root.read_text(path, MAX_BYTES))
    except FileNotFoundError:
        return {}
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")
    except ValueError as error:
        return Unknown(f"{path}: {error}")


def _setting(settings: Settings, path: str, name: str, default: str | tuple[str, ...]) -> Fact:
    if isinstance(settings, Unknown):
        return settings
    value = settings.get(name)
    if value is None:
        return Known(default, f"{path}: {name} is not set; libvirt's default", Stage.DECLARED)
    # A password must not become evidence.
    shown = "(set)" if name.endswith("_password") else _as(value, default)
    return Known(shown, f"{path}: {name}")


def _as(value: Value, default: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """A value in the kind of its default: libvirt takes one text for a list of one."""
    if isinstance(default, tuple):
        return value if isinstance(value, tuple) else (str(value),)
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _account(root: Root, settings: Settings, name: str) -> Fact:
    """User or group of the emulators. The default is chosen by whoever built libvirt: Debian's, Fedora's, or root."""
    path = f"{CONFIG}/qemu.conf"
    if isinstance(settings, Unknown) or settings.get(name) is not None:
        return _setting(settings, path, name, "")
    file = "/etc/passwd" if name == "user" else "/etc/group"
    try:
        there = {line.partition(":")[0] for line in root.read_text(file, MAX_BYTES).split("\n")}
    except OSError as error:
        return Unknown(f"{file}: {error.strerror or error}")
    for candidate in ("libvirt-qemu", "qemu"):
        if candidate in there:
            return Known(candidate, f"{path}: {name} is not set; {file} has the account of the package", Stage.DECLARED)
    return Unknown(f"{path}: {name} is not set, and neither libvirt-qemu nor qemu is in {file}")


def _each_daemon(settings: dict[str, Settings], name: str, default: str | tuple[str, ...]) -> Fact:
    """``DAEMON=VALUE`` for each daemon in use."""
    values: list[str] = []
    stage = Stage.OBSERVED
    for daemon, found in settings.items():
        fact = _setting(found, f"{CONFIG}/{daemon}.conf", name, default)
        if isinstance(fact, Unknown):
            return fact
        stage = fact.stage if fact.stage is Stage.DECLARED else stage
        text = ",".join(fact.value) if isinstance(fact.value, tuple) else fact.value
        values.append(f"{daemon}={text}")
    return Known(tuple(values), f"{CONFIG}: {name} of {', '.join(settings)}", stage)


def _sockets(root: Root, settings: dict[str, Settings], facts: Facts) -> Facts:
    """``libvirt.rw-sockets``, ``ro-sockets``, ``admin-sockets``: ``PATH MODE AUTH``, the read-only ones with polkit's
    answer."""
    has_polkit = isinstance(facts["libvirt.polkit-manage"], Known)
    monitor = facts["libvirt.polkit-monitor"]
    found: Facts = {}
    for index, kind in enumerate(("rw", "ro", "admin")):
        texts: list[str] = []
        problem: Unknown | None = None
        for daemon, said in settings.items():
            unit, name = SOCKETS[daemon][index]
            mode = _socket_mode(root, said, unit, f"{_RUN}/{name}", PERMISSION_KEYS[index])
            if isinstance(mode, Unknown) or isinstance(said, Unknown):
                problem = mode if isinstance(mode, Unknown) else said  # type: ignore[assignment]
                continue
            auth = str(said.get(f"auth_unix_{kind}", "polkit" if has_polkit else "none"))
            if kind == "ro" and auth == "polkit":
                auth = f"polkit:{monitor.value}" if isinstance(monitor, Known) else "polkit:unknown"
            texts.append(f"{_RUN}/{name} {mode:04o}" + ("" if kind == "admin" else f" {auth}"))
        source = f"{_RUN}, systemd units, {CONFIG}"
        found[f"libvirt.{kind}-sockets"] = problem or Known(tuple(dict.fromkeys(texts)), source)
    return found


def _socket_mode(root: Root, settings: Settings, unit: str, path: str, key: tuple[str, str]) -> int | Unknown:
    """The mode of the socket itself; while nothing listens, the one that systemd or the daemon would give it."""
    try:
        return stat_module.S_IMODE(root.stat(path).st_mode)
    except FileNotFoundError:
        pass
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")
    try:
        text = _unit_text(root, f"{unit}.socket")
    except OSError as error:
        return Unknown(f"{unit}.socket: {error.strerror or error}")
    if text:
        modes = re.findall(r"^\s*SocketMode\s*=\s*([0-7]{1,4})\s*$", text, re.MULTILINE)
        return int(modes[-1], 8) if modes else _SYSTEMD_MODE
    if isinstance(settings, Unknown):
        return settings
    value = str(settings.get(*key))
    return int(value, 8) if re.fullmatch(r"[0-7]{1,4}", value) else Unknown(f"{key[0]}: {value!r} is no octal mode")


def _unit_text(root: Root, unit: str) -> str:
    """The unit file that counts, and its drop-ins behind it; empty when there is none.

    Raises:
        OSError: something is there and cannot be read.
    """
    texts: list[str] = []
    for directory in _UNITS:
        if root.exists(f"{directory}/{unit}"):
            texts.append(root.read_text(f"{directory}/{unit}"))
            break
    for directory in _UNITS if texts else ():
        try:
            names = root.list_dir(f"{directory}/{unit}.d")
        except (FileNotFoundError, NotADirectoryError):
            continue
        texts += [root.read_text(f"{directory}/{unit}.d/{name}") for name in names if name.endswith(".conf")]
    return "\n".join(texts)


def _listening(root: Root, settings: dict[str, Settings], kind: str) -> Fact:
    """Why libvirt listens on the network; empty when it does not."""
    reasons: list[str] = []
    for daemon, said in settings.items():
        if isinstance(said, Unknown):
            return said
        try:
            if _enabled(root, f"{daemon}-{kind}.socket"):
                reasons.append(f"{daemon}-{kind}.socket is enabled")
        except OSError as error:
            return Unknown(f"{daemon}-{kind}.socket: {error.strerror or error}")
        # TLS is on by default, but only a daemon started with --listen looks at it: a set value is what counts.
        if str(said.get(f"listen_{kind}", "0")) != "0":
            reasons.append(f"{daemon}.conf: listen_{kind} = {said[f'listen_{kind}']}")
    return Known(tuple(reasons), f"{CONFIG}, {_UNITS[0]}")


def _mode(root: Root, path: str) -> Fact:
    """``absent`` or the mode as four octal digits."""
    try:
        return Known(f"{stat_module.S_IMODE(root.stat(path).st_mode):04o}", path)
    except FileNotFoundError:
        return Known("absent", path)
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")


def _files(root: Root) -> Facts:
    """Files that only root should read or write, by what is wrong with them."""
    try:
        domains = [f"{CONFIG}/qemu/{n}" for n in _listed(root, f"{CONFIG}/qemu") if n.endswith(".xml")]
        hooks = [f"{CONFIG}/hooks", *(f"{CONFIG}/hooks/{n}" for n in _listed(root, f"{CONFIG}/hooks"))]
        configs = [CONFIG, *(f"{CONFIG}/{n}" for n in _listed(root, CONFIG) if n.endswith(".conf")), *domains]
        readable = tuple(p for p in domains if root.stat(p).st_mode & _OTHERS_MAY)
        writable = tuple(p for p in configs if _writable(root, p))
        hooked = tuple(p for p in hooks if root.exists(p) and _writable(root, p))
    except OSError as error:
        return dict.fromkeys(FILE_FACTS, Unknown(f"{error.filename or CONFIG}: {error.strerror or error}"))
    known = (
        Known(readable, f"{CONFIG}/qemu/*.xml"),
        Known(writable, f"{CONFIG}: owner and mode"),
        _mode(root, f"{CONFIG}/secrets"),
        Known(hooked, f"{CONFIG}/hooks: owner and mode"),
    )
    return dict(zip(FILE_FACTS, known, strict=True))


def _listed(root: Root, directory: str) -> tuple[str, ...]:
    try:
        return root.list_dir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return ()


def _writable(root: Root, path: str) -> bool:
    """Whether somebody but root may write it."""
    status = root.stat(path)
    return status.st_uid != 0 or bool(status.st_mode & (0o022 if status.st_gid else 0o002))
