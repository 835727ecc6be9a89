"""Bytes of strangers to a `Document`.

Expat says first whether the document is well-formed; a document type, and with it every entity of its own, is refused
there. Afterwards a few patterns are enough to cut the text into its parts. Bounded in size, depth and number of nodes.
"""

from __future__ import annotations

import re
from typing import Final

from casemate.errors import InputError
from casemate.harden.document import Document, Element, Text

MAX_DOCUMENT_BYTES: Final = 4 << 20
MAX_DEPTH: Final = 64
MAX_NODES: Final = 50_000

_PARTS = re.compile(
    r"(?P<other><!--.*?-->|<\?.*?\?>|<!\[CDATA\[.*?\]\]>)"
    r"|(?P<end></[^>]*>)"
    r"|(?P<start><[^!?/\"'>][^\"'>]*(?:\"[^\"]*\"[^\"'>]*|'[^']*'[^\"'>]*)*>)"
    r"|(?P<text>[^<]+)",
    re.DOTALL,
)
_ENCODING = re.compile(r"\A\ufeff?<\?xml[^>]*\sencoding\s*=\s*[\"']([^\"']+)[\"']")


def read_document(data: bytes, source: str) -> Document:
    """The document in ``data``.

    Args:
        source: what to call it in messages.

    Raises:
        InputError: too big, not UTF-8, not well-formed, with a document type, too deep or with too many parts.
    """
    what = f"{source} is not a document that can be hardened"
    if len(data) > MAX_DOCUMENT_BYTES:
        raise InputError(what, got=f"{len(data)} bytes", expected=f"at most {MAX_DOCUMENT_BYTES} bytes")
    try:
        text = data.decode()  # a byte order mark stays, as every other character
    except UnicodeDecodeError as error:
        raise InputError(
            what,
            got=f"a byte that is not UTF-8 at offset {error.start}",
            expected="a libvirt domain in UTF-8",
            next_step="iconv -f latin1 -t utf-8 changes the encoding (and change the XML declaration)",
        ) from None
    declared = _ENCODING.match(text)
    if declared and declared[1].lower() not in ("utf-8", "utf8", "us-ascii", "ascii"):
        raise InputError(what, got=f"encoding {declared[1][:40]!r}", expected="UTF-8")
    _check_well_formed(data, what)
    return _cut(text, what)


def _check_well_formed(data: bytes, what: str) -> None:
    from xml.parsers import expat

    depth = nodes = 0

    def refuse_doctype(*_: object) -> None:
        raise InputError(what, got="a document type (<!DOCTYPE>)", expected="a domain as virsh dumpxml prints it")

    def start(_name: str, _attributes: object) -> None:
        nonlocal depth, nodes
        depth, nodes = depth + 1, nodes + 1
        if depth > MAX_DEPTH:
            raise InputError(what, got=f"elements nested deeper than {MAX_DEPTH}")
        if nodes > MAX_NODES:
            raise InputError(what, got=f"more than {MAX_NODES} elements")

    def end(_name: str) -> None:
        nonlocal depth
        depth -= 1

    parser = expat.ParserCreate("utf-8", "\x01")
    parser.StartDoctypeDeclHandler = refuse_doctype
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise InputError(
            what, got=f"{expat.ErrorString(error.code)} at line {error.lineno}, column {error.offset + 1}"
        ) from None


def _cut(text: str, what: str) -> Document:
    root: Element | None = None
    before: list[str] = []
    after: list[str] = []
    open_elements: list[Element] = []
    scopes: list[dict[str, str]] = [{}]
    position = 0
    for count, match in enumerate(_PARTS.finditer(text)):
        if match.start() != position or count > 4 * MAX_NODES:
            raise InputError(what, got=f"something unexpected at character {position}")
        position = match.end()
        raw = match[0]
        if match.lastgroup == "start":
            scopes.append(_scope(raw, scopes[-1]))
            element = Element(raw)
            element.namespace = scopes[-1].get(element.name.rpartition(":")[0], "")
            if open_elements:
                element.parent = open_elements[-1]
                open_elements[-1].children.append(element)
            else:
                root = element
            if raw.endswith("/>"):
                scopes.pop()
            else:
                open_elements.append(element)
        elif match.lastgroup == "end":
            open_elements.pop().end = raw
            scopes.pop()
        elif open_elements:
            open_elements[-1].children.append(Text(raw))
        else:
            (before if root is None else after).append(raw)
    if root is None or position != len(text):
        raise InputError(what, got=f"something unexpected at character {position}")
    return Document("".join(before), root, "".join(after))


def _scope(raw: str, outer: dict[str, str]) -> dict[str, str]:
    """Prefixes that count inside this element; ``outer`` itself when it declares none."""
    if "xmlns" not in raw:
        return outer
    inner = dict(outer)
    for name, value in Element(raw).attributes().items():
        if name == "xmlns":
            inner[""] = value
        elif name.startswith("xmlns:"):
            inner[name[6:]] = value
    return inner
