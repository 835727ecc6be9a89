"""Logins of registries in the files that podman and docker keep: which entry is for which image. Pure.

    {"auths":       {"HOST[:PORT][/NAMESPACE...]": {"auth": base64("USER:PASSWORD")}
                                           or {"identitytoken": "..."}},      docker login with a token
     "credHelpers": {"HOST[:PORT][/NAMESPACE...]": "NAME"},                   ask docker-credential-NAME
     "credsStore":  "NAME"}                                                  ask it for everything

Sources: containers-auth.json(5); docker/cli, cli/config/configfile. The longest key that fits wins: a namespace before
its host. A helper for a host comes before an entry, and an entry before the store of everything. Other keys are left
alone. A key is compared as a whole: ``r.example`` is neither ``r.example.org`` nor ``r.example:5000``.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final, NamedTuple, TypeVar

import msgspec

from casemate.errors import InputError

MAX_FILE_BYTES: Final = 1 << 20
MAX_SECRET_BYTES: Final = 16 * 1024
MAX_USER_BYTES: Final = 1024
TOKEN_USER: Final = "<token>"  # noqa: S105 - a name
"""What a helper calls the user of an identity token (docker-credential-helpers)."""
_HELPER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_DOCKER_HUB: Final = ("docker.io", "index.docker.io", "registry-1.docker.io")
T = TypeVar("T")
_NEXT: Final = "podman login or docker login writes such a file"


class Login:
    """A user and a password, or an identity token, for one registry; ``source``: where they come from, for messages.

    It shows neither, not in a traceback either.
    """

    __slots__ = ("is_token", "secret", "source", "user")

    def __init__(self, user: str, secret: str, source: str, *, is_token: bool = False) -> None:
        self.user, self.secret, self.source, self.is_token = user, secret, source, is_token

    def __repr__(self) -> str:
        return f"Login(from {self.source})"

    def basic(self) -> str:
        """The ``Authorization`` header of HTTP's own scheme (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.secret}".encode()).decode("ascii")


class Helper(NamedTuple):
    """Ask ``docker-credential-NAME`` for ``server``; with ``optional`` it may know nothing of it."""

    name: str
    server: str
    optional: bool


class _Entry(msgspec.Struct, frozen=True):
    auth: str = ""
    identitytoken: str = ""


class _File(msgspec.Struct, frozen=True, rename={"helpers": "credHelpers", "store": "credsStore"}):
    auths: dict[str, _Entry] = {}
    helpers: dict[str, str] = {}
    store: str = ""


class HelperAnswer(msgspec.Struct, frozen=True, rename="pascal"):
    """What a helper says on ``get``."""

    username: str = ""
    secret: str = ""


def checked_login(user: str, secret: str, source: str, *, is_token: bool = False) -> Login:
    """A login that can be sent.

    Raises:
        InputError: a user or password that HTTP cannot carry; neither is shown.
    """
    said = f"the login of {source}"
    if not secret or len(secret.encode()) > MAX_SECRET_BYTES or not secret.isprintable():
        raise InputError(said, got="a password that is empty, too long, or not one line of text")
    if is_token:
        return Login("", secret, source, is_token=True)
    if not user or ":" in user or not user.isprintable() or len(user.encode()) > MAX_USER_BYTES:
        raise InputError(said, got="a user name that is empty, too long, or has a colon or control character in it")
    return Login(user, secret, source)


def find_login(data: bytes, host: str, name: str, source: str) -> Login | Helper | None:
    """What a file says about the image ``host``/``name``.

    Args:
        data: the file, at most `MAX_FILE_BYTES`.
        source: how messages name it.

    Raises:
        InputError: it is no such file, or the entry that fits makes no sense.
    """
    try:
        found = msgspec.json.decode(data, type=_File) if data.strip() else _File()
    except (msgspec.DecodeError, UnicodeDecodeError):  # its words may quote what the file holds
        raise InputError(
            f"{source} is no file of logins", got="not the JSON that is expected", next_step=_NEXT
        ) from None
    wanted = _keys(host, name)
    helper = _first(found.helpers, wanted)
    if helper is not None:
        key, program = helper
        return Helper(_checked_helper(program, source), key, optional=False)
    entry = _first(found.auths, wanted)
    if entry is not None and (entry[1].auth or entry[1].identitytoken):
        return _login_of(entry[1], f"{source} ({entry[0][:80]})")
    if found.store:
        return Helper(_checked_helper(found.store, source), entry[0] if entry else _server(host), optional=True)
    return None


def read_answer(data: bytes, helper: Helper) -> Login:
    """The login in a helper's answer.

    Raises:
        InputError: there is none in it.
    """
    source = f"docker-credential-{helper.name}"
    try:
        answer = msgspec.json.decode(data, type=HelperAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InputError(f"{source} gives no login", got="something else than a user and a secret") from None
    return checked_login(answer.username, answer.secret, source, is_token=answer.username == TOKEN_USER)


def _keys(host: str, name: str) -> list[str]:
    """Keys that fit, the most particular first."""
    hosts = [host.lower()]
    if hosts[0] in _DOCKER_HUB:
        hosts += [other for other in _DOCKER_HUB if other != hosts[0]]
    parts = name.split("/")
    return ["/".join((one, *parts[:count])) for count in range(len(parts), -1, -1) for one in hosts]


def _first(table: dict[str, T], wanted: list[str]) -> tuple[str, T] | None:
    """The entry of the first key that is in the table, as the table writes that key."""
    known: dict[str, str] = {}
    for key in table:
        known.setdefault(_plain(key), key)
    return next(((known[key], table[known[key]]) for key in wanted if key in known), None)


def _plain(key: str) -> str:
    """``https://index.docker.io/v1/``, as old dockers wrote it, is ``index.docker.io``."""
    scheme, mark, rest = key.partition("://")
    rest = rest if mark and scheme in {"http", "https"} else key
    host, _, path = rest.partition("/")
    path = path.strip("/")
    return host.lower() if path in {"", "v1", "v2"} else f"{host.lower()}/{path}"


def _server(host: str) -> str:
    """What a store of everything knows a host by (docker's default registry has a URL)."""
    return "https://index.docker.io/v1/" if host.lower() in _DOCKER_HUB else host


def _checked_helper(name: str, source: str) -> str:
    if not _HELPER.fullmatch(name):
        raise InputError(f"{source} names a helper that cannot be", got=ascii(name[:60]), expected="a word: pass")
    return name


def _login_of(entry: _Entry, source: str) -> Login:
    if entry.identitytoken:
        return checked_login("", entry.identitytoken, source, is_token=True)
    try:
        text = base64.b64decode(entry.auth, validate=True).decode().rstrip("\0\n")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise InputError(f"the login of {source}", got="an entry that is no base64 of USER:PASSWORD") from None
    user, _, secret = text.partition(":")
    return checked_login(user, secret, source)
