"""What a capture keeps of dnf's advisories: those about packages that run VMs or about a kernel, each tag as it stands.

The text is cut before each ``<``. Kept are the tags ``updates``, ``update`` (where one of its packages is kept) and
``package``, whole, so that the reader of advisories judges what the host had. A name that is written with a character
reference is kept, whatever it spells; a file with a comment, a CDATA section or a document type, in which ``<`` may
mean something else, stays behind. The function and the awk program do the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from casemate.facts.rpm_advisories import MAX_XML_BYTES, unpacked_advisories
from casemate.facts.rpm_answer import KEPT

DAMAGED: Final = "<!damaged"
"""What the script puts behind a text that could not be unpacked to its end: it then stays behind."""
_QUOTE: Final = """["']"""
_ABOUT: Final = rf"[ \t\r\n]name[ \t\r\n]*=[ \t\r\n]*{_QUOTE}({KEPT}|kernel-[a-z0-9-]+){_QUOTE}|&"
_OF_TAG: Final = r"[ \t\r\n/>]"
_MAX_RECORD: Final = 1 << 20

AWK: Final = rf"""awk 'BEGIN {{ RS = "<" }}
NR == 1 {{ next }}
/^!/ {{ bad = 1; exit }}
/^(\?xml|\/?updates){_OF_TAG.replace("/", chr(92) + "/")}/ {{ printf "<%s", $0 }}
/^update{_OF_TAG.replace("/", chr(92) + "/")}/ {{ held = $0; told = 0 }}
/^\/update[ \t\r\n>]/ {{ if (told) printf "<%s", $0; held = ""; told = 0 }}
/^package{_OF_TAG.replace("/", chr(92) + "/")}/ {{
    keep = $0 ~ /ABOUT/
    if (keep && !told && held != "") {{ printf "<%s", held; told = 1 }}
    if (keep) printf "<%s", $0
}}
/^\/package[ \t\r\n>]/ {{ if (keep) printf "<%s", $0; keep = 0 }}
END {{ exit bad }}'""".replace("ABOUT", _ABOUT.replace("'", "'\\''"))

_TAG: Final = re.compile(rb"(\?xml|/?updates|/?update|/?package)" + _OF_TAG.encode())
_ABOUT_COMPILED: Final = re.compile(_ABOUT.encode())


def kept_advisories(data: bytes, path: str) -> bytes:
    """The part of updateinfo.xml that is kept, unpacked.

    Raises:
        ValueError: damaged, too large, packed in a way that nobody here understands, or not to be cut.
    """
    kept: list[bytes] = []
    held, told, keep = b"", False, False
    for record in _records(unpacked_advisories(data, path)):
        if record.startswith(b"!"):
            raise ValueError(f"{path}: a comment, a CDATA section or a document type")
        found = _TAG.match(record)
        tag = found[1] if found else b""
        if tag in (b"?xml", b"updates", b"/updates"):
            kept += b"<", record
        elif tag == b"update":
            held, told = record, False
        elif tag == b"/update":
            kept += (b"<", record) if told else ()
            held, told = b"", False
        elif tag == b"package":
            keep = _ABOUT_COMPILED.search(record) is not None
            if keep and not told and held:
                kept += b"<", held
                told = True
            kept += (b"<", record) if keep else ()
        elif tag == b"/package":
            kept += (b"<", record) if keep else ()
            keep = False
    return b"".join(kept)


def _records(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """What stands between one ``<`` and the next, the text before the first left out.

    Raises:
        ValueError: too much in all, or between two.
    """
    rest, taken, is_first = b"", 0, True
    for piece in pieces:
        taken += len(piece)
        if taken > MAX_XML_BYTES:
            raise ValueError(f"larger than {MAX_XML_BYTES >> 20} MiB when unpacked")
        *whole, rest = (rest + piece).split(b"<")
        if len(rest) > _MAX_RECORD:
            raise ValueError(f"more than {_MAX_RECORD >> 20} MiB without a tag")
        for record in whole:
            if not is_first:
                yield record
            is_first = False
    if not is_first:
        yield rest
