"""Password hashes: is the structure one that crypt(5) knows, and is the password one of the well-known ones?

The tries are made with the C library's own crypt, on a short list and within a budget: a hash that asks for more work
than usual (rounds=999999999, a cost of 31, yescrypt with gigabytes) is reported and not tried. One scan tries at most
`MAX_HASHES` hashes.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
from functools import lru_cache
from typing import Any, Final

MAX_HASHES: Final = 12
MAX_ROUNDS: Final = 20_000
PASSWORDS: Final = (
    *(
        "",
        "password",
        "root",
        "toor",
        "admin",
        "changeme",
        "123456",
        "12345678",
        "debian",
        "ubuntu",
        "fedora",
        "centos",
    ),
    *("vagrant", "linux", "secret", "passw0rd", "test", "user", "guest", "raspberry", "alpine", "cloud", "kali"),
)
_LENGTHS: Final = {"5": 43, "6": 86, "1": 22}
_NAMES: Final = {"y": "yescrypt", "gy": "gost-yescrypt", "7": "scrypt", "6": "SHA-512", "5": "SHA-256", "1": "MD5"}
# The parameters that distributions use: more work than this is not tried. First letter after "j": log2 of the blocks.
_YESCRYPT: Final = re.compile(r"\$y\$j[5-9]T\$[./A-Za-z0-9]{0,86}\$[./A-Za-z0-9]{43}")
_FORMS: Final = re.compile(
    r"\$(?P<id>y|gy|7|5|6|1|2[abxy])\$(?:rounds=(?P<rounds>\d{4,9})\$)?(?P<rest>[./A-Za-z0-9$]+)"
)
_tried: list[int] = [0]


def crypt_detail(text: str, user: str) -> str | None:
    """What kind of hash it is and, where it could be found out, that its password is a well-known one.

    Returns None when it is no hash of crypt(5).
    """
    form = _FORMS.fullmatch(text)
    if form is None or not _well_formed(form):
        return None
    name = _NAMES.get(form["id"], "bcrypt")
    if len(set(text.rpartition("$")[2])) < 8:
        return None  # a sample: "$6$salt$aaaa…"
    word = weak_password(text, user)
    if word is None:
        return name
    return f"{name}, no password at all" if word == "" else f"{name}, well-known password {word!r}"


def _well_formed(form: re.Match[str]) -> bool:
    scheme, parts = form["id"], form["rest"].split("$")
    if scheme in _LENGTHS:
        return len(parts) == 2 and 1 <= len(parts[0]) <= 16 and len(parts[1]) == _LENGTHS[scheme]
    if scheme in {"y", "gy"}:
        return len(parts) == 3 and 2 <= len(parts[0]) <= 16 and len(parts[2]) == 43
    if scheme == "7":
        return len(parts) == 2 and len(parts[1]) == 43
    return len(parts) == 2 and parts[0].isdigit() and len(parts[1]) == 53


def affordable(text: str) -> bool:
    """Whether a try costs milliseconds and not minutes."""
    form = _FORMS.fullmatch(text)
    if form is None:
        return False
    if form["id"] in {"5", "6"}:
        return int(form["rounds"] or 5000) <= MAX_ROUNDS
    if form["id"] == "1":
        return True
    if form["id"] == "y":
        return _YESCRYPT.fullmatch(text) is not None
    if form["id"].startswith("2"):
        cost = form["rest"][:2]
        return cost.isdigit() and int(cost) <= 10
    return False


def weak_password(text: str, user: str) -> str | None:
    """The well-known password that has this hash; None when none of the list has, or when it was not tried."""
    library = prepare()
    if library is None or not affordable(text) or _tried[0] >= MAX_HASHES:
        return None
    _tried[0] += 1
    words = dict.fromkeys((user, f"{user}123", *PASSWORDS)) if user else dict.fromkeys(PASSWORDS)
    setting = text.encode("ascii")
    for word in words:
        # SAFETY: two NUL-terminated strings; the result is a string inside the library, copied at once.
        result = library.crypt(word.encode("utf-8"), setting)
        if result == setting:
            return word
    return None


@lru_cache(maxsize=1)
def prepare() -> Any:
    """The C library's crypt, loaded now because a confined process finds no file later; None where there is none."""
    for name in ("libcrypt.so.1", "libcrypt.so.2"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.crypt.restype = ctypes.c_char_p
        library.crypt.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
        return library
    return None
