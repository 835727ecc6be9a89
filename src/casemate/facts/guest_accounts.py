"""Who may log in to a guest and become root: passwd, shadow, sshd with Include and Match, sudo. From its files."""

from __future__ import annotations

import fnmatch
import re
from typing import Final

from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.root import Root

SSHD: Final = "/etc/ssh/sshd_config"
SUDOERS: Final = "/etc/sudoers"
_INCLUDES_MAX: Final = 64
_DEPTH_MAX: Final = 8
_NO_SHELL: Final = ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false", "/usr/bin/false", "")
_SSHD_LINE: Final = re.compile(r"\s*([A-Za-z0-9]+)(?:\s+|\s*=\s*)(.*?)\s*")
_SSHD_DEFAULTS: Final = {
    "permitrootlogin": "prohibit-password",
    "passwordauthentication": "yes",
    "kbdinteractiveauthentication": "yes",
    "permitemptypasswords": "no",
}


def collect_accounts(root: Root) -> Facts:
    """``guest.root-login``, ``guest.empty-passwords``, ``guest.uid-0``, ``guest.sshd-*``, ``guest.sudo-nopasswd``."""
    facts = _shadow(root)
    facts |= sshd_facts(root)
    facts["guest.sudo-nopasswd"] = _sudo(root)
    return facts


def _lines(root: Root, path: str) -> list[list[str]] | Unknown:
    try:
        text = root.read_text(path)
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")
    return [line.split(":") for line in text.splitlines() if line and not line.startswith("#")]


def _shadow(root: Root) -> Facts:
    passwd, shadow = _lines(root, "/etc/passwd"), _lines(root, "/etc/shadow")
    facts: Facts = {}
    if isinstance(passwd, Unknown):
        return dict.fromkeys(("guest.root-login", "guest.empty-passwords", "guest.uid-0"), passwd)
    admins = tuple(sorted(f[0] for f in passwd if len(f) >= 7 and f[2].lstrip("0") == "" and f[2] and f[0] != "root"))
    facts["guest.uid-0"] = Known(admins, "/etc/passwd: users beside root with uid 0")
    shells = {f[0]: f[6] for f in passwd if len(f) >= 7}
    if isinstance(shadow, Unknown):
        return facts | dict.fromkeys(("guest.root-login", "guest.empty-passwords"), shadow)
    words = {f[0]: f[1] for f in shadow if len(f) >= 2}
    # "x" in passwd means: look into shadow; any other word there counts itself.
    words |= {f[0]: f[1] for f in passwd if len(f) >= 7 and f[1] != "x"}
    empty = tuple(sorted(name for name, word in words.items() if word == "" and shells.get(name, "") not in _NO_SHELL))
    facts["guest.empty-passwords"] = Known(empty, "/etc/shadow")
    facts["guest.root-login"] = _root_login(words, shells)
    return facts


def _root_login(words: dict[str, str], shells: dict[str, str]) -> Fact:
    if "root" not in words:
        return Unknown("/etc/shadow: has no line for root")
    word = words["root"]
    if word == "":
        return Known("no password", "/etc/shadow: root")
    if word.startswith(("!", "*")):
        return Known("locked", "/etc/shadow: root")
    if shells.get("root", "/bin/sh") in _NO_SHELL[:-1]:
        return Known("locked", "/etc/passwd: the shell of root")
    return Known("password", "/etc/shadow: root")


def sshd_facts(root: Root) -> Facts:
    """What sshd would do: the first value of a keyword counts, Include in place, Match blocks apart (sshd_config(5)).

    ``guest.sshd`` says whether there is one. A Match block that allows more than the rest does makes the value that
    of the block: somebody may log in so.
    """
    names = ("guest.sshd-root", "guest.sshd-passwords", "guest.sshd-empty")
    try:
        installed = any(root.exists(path) for path in ("/usr/sbin/sshd", "/usr/bin/sshd", "/sbin/sshd"))
    except OSError as error:
        return dict.fromkeys(("guest.sshd", *names), Unknown(f"/usr/sbin/sshd: {error.strerror or error}"))
    facts: Facts = {"guest.sshd": Known(installed, "/usr/sbin/sshd")}
    if not installed:
        return facts | {name: Known("no sshd", "/usr/sbin/sshd") for name in names}
    main: dict[str, str] = {}
    matched: list[dict[str, str]] = []
    try:
        _read_sshd(root, SSHD, 0, main, matched, [0], [False])
    except OSError as error:
        why = Unknown(f"{error.filename or SSHD}: {error.strerror or error}")
        return facts | dict.fromkeys(names, why)
    values = {**_SSHD_DEFAULTS, **main}
    root_login = values["permitrootlogin"].lower()
    passwords = "yes" in (values["passwordauthentication"].lower(), values["kbdinteractiveauthentication"].lower())
    empty = values["permitemptypasswords"].lower() == "yes"
    source = f"{SSHD} and what it includes"
    for block in matched:
        passwords |= "yes" in (
            block.get("passwordauthentication", "no").lower(),
            block.get("kbdinteractiveauthentication", "no").lower(),
        )
        empty |= block.get("permitemptypasswords", "no").lower() == "yes"
        if _OPENNESS.get(block.get("permitrootlogin", "no").lower(), 3) > _OPENNESS.get(root_login, 3):
            root_login = block["permitrootlogin"].lower()
            source = f"{SSHD}: a Match block"
    # without-password is the old name.
    facts["guest.sshd-root"] = Known("prohibit-password" if root_login == "without-password" else root_login, source)
    facts["guest.sshd-passwords"] = Known("yes" if passwords else "no", source)
    facts["guest.sshd-empty"] = Known("yes" if empty else "no", source)
    return facts


_OPENNESS: Final = {"no": 0, "forced-commands-only": 1, "prohibit-password": 2, "without-password": 2, "yes": 3}


def _read_sshd(
    root: Root,
    path: str,
    depth: int,
    main: dict[str, str],
    matched: list[dict[str, str]],
    count: list[int],
    in_match: list[bool],
) -> None:
    """One file, Include in place. A Match inside an included file ends with that file (OpenSSH readconf)."""
    count[0] += 1
    if depth > _DEPTH_MAX or count[0] > _INCLUDES_MAX:
        raise OSError(40, f"more than {_INCLUDES_MAX} files or {_DEPTH_MAX} levels of Include", path)
    outer = in_match[0]
    for line in root.read_text(path).splitlines():
        found = _SSHD_LINE.fullmatch(line.partition("#")[0])
        if found is None:
            continue
        key, value = found[1].lower(), found[2].strip('"')
        if key == "include":
            for name in _included(root, value):
                _read_sshd(root, name, depth + 1, main, matched, count, in_match)
        elif key == "match":
            if value.lower() == "all":
                in_match[0] = False  # applies to everybody: as good as the global part
            else:
                in_match[0] = True
                matched.append({})
        elif in_match[0] and matched:
            matched[-1].setdefault(key, value)
        else:
            main.setdefault(key, value)
    in_match[0] = outer


def _included(root: Root, value: str) -> list[str]:
    names: list[str] = []
    for pattern in value.split():
        path = pattern.strip('"') if pattern.startswith(("/", '"/')) else f"/etc/ssh/{pattern}"
        folder, _, glob = path.rpartition("/")
        try:
            listed = root.list_dir(folder)
        except FileNotFoundError:
            continue
        names += [f"{folder}/{name}" for name in sorted(listed) if fnmatch.fnmatchcase(name, glob)]
    return names


def _sudo(root: Root) -> Fact:
    """``USER FILE`` for each rule that asks for no password."""
    found: list[str] = []
    try:
        if not root.exists("/usr/bin/sudo"):
            return Known((), "/usr/bin/sudo: not installed")
        files = [SUDOERS]
        if root.exists("/etc/sudoers.d"):
            # sudo passes over names with a dot or a tilde at the end.
            names = root.list_dir("/etc/sudoers.d")
            files += [f"/etc/sudoers.d/{n}" for n in names if "." not in n and not n.endswith("~")]
        for path in files:
            text = root.read_text(path).replace("\\\n", " ")
            for line in text.splitlines():
                rule = line.partition("#")[0].strip() if not line.lstrip().startswith(("#include", "@include")) else ""
                if re.search(r"\bNOPASSWD\s*:", rule) or re.match(r"Defaults\b.*!authenticate\b", rule):
                    found.append(f"{rule.split()[0][:64]} ({path})")
    except OSError as error:
        return Unknown(f"{error.filename or SUDOERS}: {error.strerror or error}")
    return Known(tuple(found), ", ".join(files[:4]))
