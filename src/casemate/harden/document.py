"""An XML document that keeps every byte nobody asked to change: quotes, spaces, comments, order, CDATA, entities.

A tree of nodes, each holding the text it was read from::

    <a b='1'>text<!-- c --><d/></a>
     │        │    │          └ Element: tag text "<d/>", no children, closed in one
     │        │    └ Text: the raw comment
     │        └ Text: raw
     └ Element: start text "<a b='1'>", children, end text "</a>"

`harden/reading.py` makes it. Serialisers of XML libraries write quotes and
spaces of their own: a diff of their output would show every line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_NAME = re.compile(r"<([^\s/>]+)")
_ATTRIBUTE = re.compile(r"(\s+)([^\s=/>]+)(\s*=\s*)(\"[^\"]*\"|'[^']*')")
_ENTITY = re.compile(r"&(#x[0-9a-fA-F]+|#[0-9]+|lt|gt|amp|quot|apos);")
_ENTITIES = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'"}


def unescape(raw: str) -> str:
    """Character data or an attribute's value with XML's own references resolved."""
    return _ENTITY.sub(_resolve, raw) if "&" in raw else raw


def _resolve(match: re.Match[str]) -> str:
    name = match[1]
    if not name.startswith("#"):
        return _ENTITIES[name]
    number = int(name[2:], 16) if name[1] in "xX" else int(name[1:])
    return chr(number)


def escape(text: str) -> str:
    """Text as character data."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _quoted(value: str, quote: str) -> str:
    inner = escape(value).replace(quote, "&quot;" if quote == '"' else "&apos;")
    return f"{quote}{inner}{quote}"


def _last_line(blank: str) -> str:
    """The last line break of white space and the indentation behind it; empty without a line break."""
    at = blank.rfind("\n")
    if at > 0 and blank[at - 1] == "\r":
        at -= 1
    return blank[at:] if at >= 0 else ""


class Text:
    """Character data, a comment, a processing instruction or a CDATA section, as it was written."""

    def __init__(self, raw: str) -> None:
        self.raw = raw

    @property
    def is_blank(self) -> bool:
        """Only white space between elements."""
        return not self.raw.strip()

    @property
    def value(self) -> str:
        """What it says; a comment or an instruction says nothing."""
        if self.raw.startswith("<![CDATA["):
            return self.raw[9:-3]
        return "" if self.raw.startswith("<") else unescape(self.raw)


class Element:
    """One element. ``start`` and ``end`` are the texts of its tags; ``end`` is empty when it is closed in one."""

    def __init__(self, start: str, end: str = "") -> None:
        self.start = start
        self.end = end
        self.children: list[Element | Text] = []
        self.parent: Element | None = None
        self.namespace = ""
        match = _NAME.match(start)
        if match is None:
            raise RuntimeError(f"no start tag: {start[:40]!r}")
        self.name: str = match[1]

    # What it is

    @property
    def local(self) -> str:
        """The name without its prefix."""
        return self.name.rpartition(":")[2]

    def attributes(self) -> dict[str, str]:
        """Name to value, entities resolved."""
        return {match[2]: unescape(match[4][1:-1]) for match in _ATTRIBUTE.finditer(self.start)}

    def get(self, name: str) -> str | None:
        """The value of one attribute."""
        for match in _ATTRIBUTE.finditer(self.start):
            if match[2] == name:
                return unescape(match[4][1:-1])
        return None

    @property
    def text(self) -> str:
        """Its own character data, without that of its children, stripped."""
        return "".join(child.value for child in self.children if isinstance(child, Text)).strip()

    def elements(self, *names: str) -> list[Element]:
        """Its child elements in no namespace, all or those of these names."""
        found = (child for child in self.children if isinstance(child, Element))
        return [child for child in found if (not names or child.name in names) and not child.namespace]

    def first(self, path: str) -> Element | None:
        """The first descendant along ``a/b/c``."""
        node = self
        for name in path.split("/"):
            found = node.elements(name)
            if not found:
                return None
            node = found[0]
        return node

    def value(self, path: str, attribute: str = "") -> str:
        """Text or attribute of the first element along ``path``; empty when there is none."""
        node = self.first(path)
        if node is None:
            return ""
        return (node.get(attribute) or "") if attribute else node.text

    def walk(self) -> Iterator[Element]:
        """Itself and every element below it, in document order."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(child for child in reversed(node.children) if isinstance(child, Element))

    def place(self) -> str:
        """Where it stands below the root: ``devices/disk[2]/driver``."""
        names: list[str] = []
        node = self
        while node.parent is not None:
            same = node.parent.elements(node.name) if not node.namespace else [node]
            number = next((n for n, other in enumerate(same, 1) if other is node), 1)
            names.append(f"{node.name}[{number}]" if len(same) > 1 else node.name)
            node = node.parent
        return "/".join(reversed(names)) or node.name

    # Changing it

    def set(self, name: str, value: str) -> None:
        """Give an attribute a value; a new one goes last. The other attributes keep their spelling."""
        for match in _ATTRIBUTE.finditer(self.start):
            if match[2] == name:
                quote = match[4][0]
                self.start = self.start[: match.start(4)] + _quoted(value, quote) + self.start[match.end(4) :]
                return
        quote = self._quote()
        closed = re.search(r"\s*/?>\Z", self.start)
        if closed is None:
            raise RuntimeError(f"no end of tag: {self.start[-40:]!r}")
        at = closed.start()
        self.start = f"{self.start[:at]} {name}={_quoted(value, quote)}{self.start[at:]}"

    def unset(self, name: str) -> None:
        """Take an attribute away."""
        for match in _ATTRIBUTE.finditer(self.start):
            if match[2] == name:
                self.start = self.start[: match.start()] + self.start[match.end() :]
                return

    def say(self, text: str) -> None:
        """Replace its content by character data."""
        self._open()
        self.children = [Text(escape(text))]

    def remove(self) -> None:
        """Take it out of its parent, with the line break and the indentation in front of it."""
        parent = self.parent
        if parent is None:
            raise RuntimeError("the root cannot be removed")
        at = parent.index(self)
        del parent.children[at]
        self.parent = None
        before = parent.children[at - 1] if at else None
        if isinstance(before, Text) and before.is_blank and not before.raw.startswith("<"):
            del parent.children[at - 1]

    def index(self, child: Element | Text) -> int:
        """Position among the children, by identity."""
        return next(number for number, other in enumerate(self.children) if other is child)

    def add(
        self, start: str, text: str | None = None, *, after: Element | None = None, before: Element | None = None
    ) -> Element:
        """Put a new element last, or beside another child, on a line of its own where the siblings have theirs.

        Args:
            start: name and attributes with double quotes: ``driver name="qemu"``.
            text: its character data.
        """
        quote = self._document_quote()
        body = start if quote == '"' else start.replace('"', quote)
        made = Element(f"<{body}/>")
        if text is not None:
            made.say(text)
        inner = self._inner_indent()
        was_empty = not self.elements_any()
        self._open()
        made.parent = self
        at = len(self.children)
        if after is not None:
            at = self.index(after) + 1
        elif before is not None:
            at = self.index(before)
            at -= bool(inner) and at > 0
        elif self.children and isinstance(self.children[-1], Text) and self.children[-1].is_blank:
            at -= 1
        if inner:
            self.children.insert(at, Text(inner))
            at += 1
        self.children.insert(at, made)
        if was_empty and inner and at == len(self.children) - 1:
            self.children.append(Text(self._outer_indent()))
        return made

    def elements_any(self) -> list[Element]:
        """Its child elements of any namespace."""
        return [child for child in self.children if isinstance(child, Element)]

    def _open(self) -> None:
        """From ``<a/>`` to ``<a></a>``."""
        if not self.end and self.start.endswith("/>"):
            self.start = self.start[:-2].rstrip() + ">"
            self.end = f"</{self.name}>"

    def _quote(self) -> str:
        match = _ATTRIBUTE.search(self.start)
        return match[4][0] if match else self._document_quote()

    def _document_quote(self) -> str:
        """The quotation mark of the nearest element that has attributes."""
        node: Element | None = self
        while node is not None:
            for other in (node, *node.elements_any()):
                match = _ATTRIBUTE.search(other.start)
                if match:
                    return str(match[4][0])
            node = node.parent
        return "'"

    def _inner_indent(self) -> str:
        """Line break and indentation in front of a child; empty when the document has no lines."""
        for number, child in enumerate(self.children):
            if isinstance(child, Element) and number:
                before = self.children[number - 1]
                return _last_line(before.raw) if isinstance(before, Text) and before.is_blank else ""
        outer = self._outer_indent()
        if not outer:
            return ""
        grand = self.parent._outer_indent() if self.parent is not None else ""
        step = outer[len(grand) :] if grand and outer.startswith(grand) else "  "
        return outer + (step if step.strip("\r\n") else "  ")

    def _outer_indent(self) -> str:
        """Line break and indentation in front of this element."""
        if self.parent is None:
            return "\n"
        at = self.parent.index(self)
        before = self.parent.children[at - 1] if at else None
        return _last_line(before.raw) if isinstance(before, Text) and before.is_blank else ""


class Document:
    """A whole document: what stands before its root, the root, what comes after."""

    def __init__(self, before: str, root: Element, after: str) -> None:
        self.before = before
        self.root = root
        self.after = after

    def text(self) -> str:
        """The document, byte for byte what was read wherever nothing was changed."""
        parts = [self.before]
        stack: list[Element | Text | str] = [self.root]
        while stack:
            node = stack.pop()
            if isinstance(node, str):
                parts.append(node)
            elif isinstance(node, Text):
                parts.append(node.raw)
            else:
                parts.append(node.start)
                stack.append(node.end)
                stack.extend(reversed(node.children))
        parts.append(self.after)
        return "".join(parts)
