"""Who may talk to libvirt: groups of the host and rules of polkit.

Rules of polkit are JavaScript; they are not run, only searched. A rule that names an action of libvirt (or all of them)
and can answer YES is a grant; whatever narrows it to a group or a user is named with it, anything else is ``anyone``.
"""

from __future__ import annotations

import re
from typing import Final

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.root import Root

_ADMIN_GROUPS: Final = ("root", "sudo", "wheel", "admin")
_GROUPS: Final = ("libvirt", "libvirtd", "kvm", "disk", "qemu", "libvirt-qemu")
_NO_LOGIN: Final = ("nologin", "false", "sync")
_FIRST_USER_UID: Final = 1000
_MAX_BYTES: Final = 4 << 20
_RULES: Final = (
    "/etc/polkit-1/rules.d",
    "/run/polkit-1/rules.d",
    "/usr/local/share/polkit-1/rules.d",
    "/usr/share/polkit-1/rules.d",
)
_PKLA: Final = ("/etc/polkit-1/localauthority", "/var/lib/polkit-1/localauthority")
_POLICY: Final = "/usr/share/polkit-1/actions/org.libvirt.unix.policy"
_MAX_RULE_FILES: Final = 500


def access_facts(root: Root) -> Facts:
    """``host.admins``, ``libvirt.group.*``, ``libvirt.polkit-*``."""
    return _groups(root) | {
        "libvirt.polkit-grants": _grants(root),
        "libvirt.polkit-manage": _policy_default(root, "manage"),
        "libvirt.polkit-monitor": _policy_default(root, "monitor"),
    }


def _groups(root: Root) -> Facts:
    names = ("libvirt", "kvm", "disk")
    try:
        members, people = _accounts(root)
    except (OSError, ValueError) as error:
        why = Unknown(f"/etc/group, /etc/passwd: {error}")
        return dict.fromkeys(("host.admins", *(f"libvirt.group.{name}" for name in names)), why)
    source = "/etc/group, /etc/passwd"
    facts: Facts = {"host.admins": Known(_union(members, _ADMIN_GROUPS), source)}
    for name, groups in (("libvirt", ("libvirt", "libvirtd")), ("kvm", ("kvm",)), ("disk", ("disk",))):
        found = tuple(user for user in _union(members, groups) if user in people)
        facts[f"libvirt.group.{name}"] = Known(found, f"{source}: {', '.join(groups)}")
    return facts


def _accounts(root: Root) -> tuple[dict[str, set[str]], set[str]]:
    """Members by group (by /etc/group and by primary group), and the accounts that are people: a shell or a user's id.

    Raises:
        OSError, ValueError: a file cannot be read or understood.
    """
    members: dict[str, set[str]] = {}
    name_of_gid: dict[str, str] = {}
    for line in root.read_text("/etc/group", _MAX_BYTES).split("\n"):
        if line and not line.startswith(("#", "+", "-")):
            name, _, gid, users = _fields(line, 4)
            members[name] = {user.strip() for user in users.split(",") if user.strip()}
            name_of_gid.setdefault(gid, name)
    known: set[str] = set()
    services: set[str] = set()
    for line in root.read_text("/etc/passwd", _MAX_BYTES).split("\n"):
        if line and not line.startswith(("#", "+", "-")):
            user, _, uid, gid, _, _, shell = _fields(line, 7)
            known.add(user)
            members.setdefault(name_of_gid.get(gid, gid), set()).add(user)
            if shell.rpartition("/")[2] in _NO_LOGIN or 0 < int(uid) < _FIRST_USER_UID:
                services.add(user)
    # A member without a line in /etc/passwd may come from a directory service: a person until shown otherwise.
    return members, set().union(*members.values(), known) - services


def _fields(line: str, count: int) -> list[str]:
    words = line.split(":")
    if len(words) != count:
        raise ValueError(f"{line[:80]!r} has {len(words)} fields, expected {count}")
    return words


def _union(members: dict[str, set[str]], groups: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set().union(*(members.get(group, set()) for group in groups))))


def _grants(root: Root) -> Fact:
    """``group:NAME``, ``user:NAME`` or ``anyone``, each with its file, for whoever manages VMs without a password."""
    grants: list[str] = []
    try:
        for path in _files(root, _RULES, ".rules", 0):
            grants += [f"{who} ({path})" for who in rule_grants(root.read_text(path, _MAX_BYTES))]
        for path in _files(root, _PKLA, ".pkla", 1):
            grants += [f"{who} ({path})" for who in pkla_grants(root.read_text(path, _MAX_BYTES))]
    except OSError as error:
        return Unknown(f"{error.filename or 'polkit rules'}: {error.strerror or error}")
    return Known(tuple(grants), "polkit rules and local authority")


def _files(root: Root, directories: tuple[str, ...], suffix: str, depth: int) -> list[str]:
    """Files with ``suffix`` in the directories, or one level below them; a missing directory holds none."""
    found: list[str] = []
    for directory in directories:
        try:
            names = root.list_dir(directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise OSError(error.errno, error.strerror, directory) from None
        if depth:
            found += _files(root, tuple(f"{directory}/{name}" for name in names), suffix, depth - 1)
        else:
            found += [f"{directory}/{name}" for name in names if name.endswith(suffix)]
    if len(found) > _MAX_RULE_FILES:
        raise OSError(27, f"more than {_MAX_RULE_FILES} rule files", directories[0])
    return found


def rule_grants(text: str) -> list[str]:
    """Grants of one file of rules in JavaScript."""
    found: list[str] = []
    # Comments may hold examples. Only whole lines of them go: a // inside a string could hide a grant behind it.
    text = re.sub(r"^\s*//[^\n]*", "", text, flags=re.MULTILINE)
    for rule in re.split(r"polkit\s*\.\s*addRule", text)[1:]:
        if "org.libvirt" not in rule or not re.search(r"polkit\s*\.\s*Result\s*\.\s*YES|[\"']yes[\"']", rule):
            continue
        narrower = "org.libvirt.unix.monitor" in rule or "org.libvirt.api" in rule
        if narrower and "org.libvirt.unix.manage" not in rule:
            continue
        groups = re.findall(r"isInGroup\(\s*[\"']([^\"']{1,64})[\"']", rule)
        users = re.findall(r"subject\s*\.\s*user\s*={2,3}\s*[\"']([^\"']{1,64})[\"']", rule)
        who = [*(f"group:{name}" for name in groups), *(f"user:{name}" for name in users)]
        found += who or ["anyone"]
    return found


def pkla_grants(text: str) -> list[str]:
    """Grants of one file of the local authority (polkit before 0.106): INI sections of Identity, Action, Result."""
    found: list[str] = []
    for section in re.split(r"^\s*\[[^\]\n]*\]\s*$", text, flags=re.MULTILINE)[1:]:
        keys = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", section, re.MULTILINE))
        actions = keys.get("Action", "").split(";")
        if not any(_glob_hits(action.strip(), "org.libvirt.unix.manage") for action in actions):
            continue
        if "yes" not in (keys.get(name, "") for name in ("ResultAny", "ResultInactive", "ResultActive")):
            continue
        for identity in filter(None, (part.strip() for part in keys.get("Identity", "*").split(";"))):
            kind, _, name = identity.partition(":")
            word = {"unix-group": "group", "unix-user": "user"}.get(kind)
            found.append(f"{word}:{name}" if word and "*" not in name else "anyone")
    return found


def _glob_hits(pattern: str, action: str) -> bool:
    return pattern == action or (pattern.endswith("*") and "*" not in pattern[:-1] and action.startswith(pattern[:-1]))


def _policy_default(root: Root, action: str) -> Fact:
    """The weakest of the three defaults of ``org.libvirt.unix.ACTION``: ``yes``, ``auth_self…``, ``auth_admin…``, …"""
    try:
        text = root.read_text(_POLICY, _MAX_BYTES)
    except OSError as error:
        return Unknown(f"{_POLICY}: {error.strerror or error}")
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    block = re.search(rf'<action\s+id="org\.libvirt\.unix\.{action}"\s*>(.*?)</action>', text, re.DOTALL)
    results = re.findall(r"<allow_(?:any|inactive|active)>\s*(\w+)\s*</allow_", block[1]) if block else []
    if not results:
        return Unknown(f"{_POLICY}: no defaults for org.libvirt.unix.{action}")
    order = ("yes", "auth_self_keep", "auth_self", "auth_admin_keep", "auth_admin", "no")
    return Known(min(results, key=lambda word: order.index(word) if word in order else 0), _POLICY)
