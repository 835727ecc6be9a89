"""What captured content goes through before it is kept: only what the audit reads, and no secrets.

Each filter exists twice, as a function and as a POSIX shell pipeline for hosts without Python, from the same data; a
test holds both against each other. Patterns are POSIX extended regular expressions that Python reads alike: no classes
by name, no lookaround, longer words first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec

from casemate.audit.capture_advisories import AWK, DAMAGED, kept_advisories
from casemate.facts.updates import FAMILIES, KEPT_MARK, unpacked

REDACTED: Final = "redacted"
_SPARED: Final = "\x02"
_WORDS: Final = (
    "password|passphrase|passwd|secrets?|tokens?|api[-_]?key|private[-_]?key|credentials?|master[-_]?key|access[-_]?key"
)
_KEY: Final = rf"((^|[^A-Za-z-])({_WORDS})[\"']?[ \t]*[=:][ \t]*)"


class Redaction(msgspec.Struct, frozen=True):
    """One replacement in each line. ``only``: lines that it is about (all when empty). ``ignore_case`` for words."""

    pattern: str
    replacement: str
    only: str = ""
    ignore_case: bool = False


# A switch is no secret: what stands behind the word is marked, and the patterns below do not begin with the mark.
_SPARE: Final = Redaction(
    rf"{_KEY}([\"']?(on|off|yes|no|true|false)([^A-Za-z0-9]|$))", rf"\1{_SPARED}\4", ignore_case=True
)
_UNSPARE: Final = Redaction(_SPARED, "")
_EVERYWHERE: Final = (
    _SPARE,
    Redaction(rf"{_KEY}\"[^\"{_SPARED}][^\"]*", rf'\1"{REDACTED}', ignore_case=True),
    Redaction(rf"{_KEY}'[^'{_SPARED}][^']*", rf"\1'{REDACTED}", ignore_case=True),
    Redaction(r"([A-Za-z][A-Za-z0-9+]*://[^/ \t,:@\"']+:)[^/ \t@\"']+@", rf"\1{REDACTED}@"),
    Redaction(r"(io\.systemd\.credential(\.binary)?:[A-Za-z0-9_.-]+=).*", rf"\1{REDACTED}"),
    Redaction(r"(name=opt/[^,]*,string=).*", rf"\1{REDACTED}"),
    Redaction(r"(:key=)[^:, \t\"']+", rf"\1{REDACTED}"),
    Redaction(r"([Bb]earer[ \t]+)[A-Za-z0-9._~+/-]+", rf"\1{REDACTED}"),
)
TEXT: Final = (
    *_EVERYWHERE,
    Redaction(rf"{_KEY}[^ \t,\"'<>{_SPARED}][^ \t,\"'<>]*", rf"\1{REDACTED}", ignore_case=True),
    _UNSPARE,
)
"""For files of text and for the kernel's command line: a value ends at a space or a comma."""
ARGUMENTS: Final = (
    *_EVERYWHERE,
    Redaction(r"((^|,)data=)([^,]|,,)+", rf"\1{REDACTED}", only=r"^secret[,_]|qom-type=secret"),
    Redaction(r"(\"data\"[ \t]*:[ \t]*\")[^\"]*", rf"\1{REDACTED}", only=r"\"secret"),
    Redaction(rf"{_KEY}([^,\"'{_SPARED}]|,,)([^,]|,,)*", rf"\1{REDACTED}", ignore_case=True),
    _UNSPARE,
)
"""For one argument of a program: a value ends at a single comma, as QEMU reads its options."""
PRIVATE_KEY: Final = "-----BEGIN [A-Z ]*PRIVATE KEY-----"
"""A file with such a line stays behind as a whole."""

_PACKAGE: Final = "|".join(FAMILIES.values()).replace(r"\d", "[0-9]")
_MODULES: Final = r"/(kvm|vhost)[a-z0-9_-]*\.ko"
_SLASH: Final = r"\/"


def _sed(redactions: tuple[Redaction, ...]) -> str:
    """The same replacements for sed -E; the delimiter is a control character that no pattern holds."""
    lines = []
    for entry in redactions:
        flags = "gI" if entry.ignore_case else "g"
        address = f"/{entry.only}/" if entry.only else ""
        pattern = entry.pattern.replace("\t", r"\t")
        lines.append(f"{address}s\x03{pattern}\x03{entry.replacement}\x03{flags}")
    script = "\n".join(lines).replace("\\t", "\t").replace("'", "'\\''")
    return f"sed -E '{script}'"


def _redact(data: bytes, compiled: tuple[tuple[re.Pattern[bytes], bytes, re.Pattern[bytes] | None], ...]) -> bytes:
    """Line by line, as sed does; a last line without an end keeps none."""
    lines = data.split(b"\n")
    for index, line in enumerate(lines):
        for pattern, replacement, only in compiled:
            if only is None or only.search(line):
                line = pattern.sub(replacement, line)  # noqa: PLW2901  one line goes through all
        lines[index] = line
    return b"\n".join(lines)


def _compiled(
    redactions: tuple[Redaction, ...],
) -> tuple[tuple[re.Pattern[bytes], bytes, re.Pattern[bytes] | None], ...]:
    return tuple(
        (
            re.compile(entry.pattern.encode(), re.IGNORECASE if entry.ignore_case else 0),
            entry.replacement.encode(),
            re.compile(entry.only.encode()) if entry.only else None,
        )
        for entry in redactions
    )


_TEXT_COMPILED: Final = _compiled(TEXT)
_ARGUMENTS_COMPILED: Final = _compiled(ARGUMENTS)
_SWAP: Final = bytes.maketrans(b"\0\n", b"\n\1")
_SWAP_BACK: Final = bytes.maketrans(b"\n\1", b"\0\n")


def _no_secrets(data: bytes, _name: str) -> bytes:
    return _redact(data, _TEXT_COMPILED)


def _settings(data: bytes, _name: str) -> bytes:
    """Without comments, which hold old passwords as well as examples."""
    rows = (row for row in data.split(b"\n") if not re.match(rb"[ \t]*(#|$)", row))
    return _no_secrets(b"".join(row + b"\n" for row in rows), "")


def _arguments(data: bytes, _name: str) -> bytes:
    return _redact(data.translate(_SWAP), _ARGUMENTS_COMPILED).translate(_SWAP_BACK)


def _loader_variables(data: bytes, _name: str) -> bytes:
    """Only LD_*: other variables may be secrets, and nobody asks for them."""
    return b"".join(item + b"\0" for item in data.split(b"\0") if item.startswith(b"LD_"))


def _first_cpu(data: bytes, _name: str) -> bytes:
    found = [match.start() for match in re.finditer(rb"^processor", data, re.MULTILINE)]
    return data if len(found) < 2 else data[: found[1]]


def _accounts(data: bytes, _name: str) -> bytes:
    """Name, ids and shell: no password, no person's name, no home."""
    return _colons(data, (1, 4, 5))


def _groups(data: bytes, _name: str) -> bytes:
    return _colons(data, (1,))


def _colons(data: bytes, blank: tuple[int, ...]) -> bytes:
    rows = []
    for row in data.split(b"\n"):
        words = row.split(b":")
        for index in blank:
            if index < len(words):
                words[index] = b""
        rows.append(b":".join(words))
    return b"\n".join(rows)


def _listeners(data: bytes, _name: str) -> bytes:
    """The heading and sockets that listen: who talks to whom is nobody's business."""
    rows = data.split(b"\n")
    kept = rows[:1] + [row for row in rows[1:] if row.split()[3:4] == [b"0A"]]
    return b"".join(row + b"\n" for row in kept)


def _virt_modules(data: bytes, _name: str) -> bytes:
    pattern = re.compile(_MODULES.encode())
    names = (row.partition(b":") for row in data.split(b"\n"))
    return b"".join(name + colon + b"\n" for name, colon, _ in names if pattern.search(name))


def _release_head(data: bytes, _name: str) -> bytes:
    head = data.partition(b"\nSHA256:")[0]
    return b"".join(row + b"\n" for row in head.split(b"\n") if not row.startswith(b" "))


def _packages(data: bytes, name: str) -> bytes:
    """Packages that run VMs, with the fields that the audit reads; unpacked.

    Raises:
        ValueError: it is packed in a way that nobody here understands, or is damaged.
    """
    wanted = re.compile(rf"Package: ({_PACKAGE})".encode())
    rows, keep = [KEPT_MARK.encode()], False
    for row in unpacked(data, name.rpartition("_Packages")[2] if "_Packages" in name else "").split(b"\n"):
        if row.startswith(b"Package: "):
            keep = wanted.fullmatch(row) is not None
            if keep:
                rows.append(b"")
        if keep and row.startswith((b"Package:", b"Status:", b"Version:", b"Architecture:")):
            rows.append(row)
    return b"\n".join(rows) + b"\n"


class Filter(msgspec.Struct, frozen=True):
    """``apply(content, path)``; ``shell``: the same for a file on standard input. ``loses``: what is left out."""

    apply: Callable[[bytes, str], bytes]
    shell: str
    loses: str = ""


def _quoted(text: str) -> str:
    return text.replace("'", "'\\''")


FILTERS: Final[dict[str, Filter]] = {
    "whole": Filter(lambda data, name: data, "cat"),
    "no-secrets": Filter(_no_secrets, _sed(TEXT), "values of passwords, tokens and keys"),
    "settings": Filter(
        _settings,
        f"sed -e '/^[ \t]*#/d' -e '/^[ \t]*$/d' | {_sed(TEXT)}",
        "comments, values of passwords, tokens and keys",
    ),
    "arguments": Filter(
        _arguments,
        rf"tr '\000\012' '\012\001' | {_sed(ARGUMENTS)} | tr '\012\001' '\000\012'",
        "values of passwords, tokens and keys",
    ),
    "loader-variables": Filter(
        _loader_variables, r"tr '\000\012' '\012\001' | sed -n '/^LD_/p' | tr '\012\001' '\000\012'", "all but LD_*"
    ),
    "first-cpu": Filter(_first_cpu, "awk '/^processor/ && n++ { exit } { print }'", "all but the first processor"),
    "accounts": Filter(
        _accounts,
        'awk -F: -v OFS=: \'NF { if (NF > 1) $2 = ""; if (NF > 4) $5 = ""; if (NF > 5) $6 = "" } { print }\'',
        "passwords, names and homes",
    ),
    "groups": Filter(_groups, "awk -F: -v OFS=: 'NF > 1 { $2 = \"\" } { print }'", "passwords"),
    "listeners": Filter(_listeners, "awk 'NR == 1 || $4 == \"0A\"'", "connections"),
    "virt-modules": Filter(
        _virt_modules,
        f'awk -F: \'$1 ~ /{_MODULES.replace("/", _SLASH)}/ {{ print $1 (index($0, ":") ? ":" : "") }}\'',
        "modules that have nothing to do with VMs",
    ),
    "release-head": Filter(_release_head, "sed -n -e '/^SHA256:/q' -e '/^ /!p'", "lists of files, signatures"),
    "packages": Filter(
        _packages,
        f'{{ unpack_as "$1" || printf "\\n%s\\n" "Package: {DAMAGED}"; }} | awk \'BEGIN {{ print "{KEPT_MARK}" }}'
        f" /^Package: {DAMAGED}$/{{ exit 1 }}"
        f' /^Package: /{{ keep = $0 ~ /^Package: ({_quoted(_PACKAGE)})$/; if (keep) print "" }}'
        " keep && /^(Package|Status|Version|Architecture):/'",
        "packages that have nothing to do with VMs",
    ),
    "advisories": Filter(
        kept_advisories,
        f'{{ unpack_as "$1" || printf %s "{DAMAGED}"; }} | {AWK}',
        "advisories that have nothing to do with VMs, and their texts",
    ),
}
"""By the name that the table uses."""
