"""A libvirt document as a small tree, from bytes that may be hostile.

Document types and entities are refused before anything is expanded; size, depth, number of elements and length of
attributes are bounded, and nothing outside of the bytes is ever opened.
"""

from __future__ import annotations

from typing import Final, NoReturn

from casemate.errors import InputError

MAX_BYTES: Final = 4 << 20
MAX_DEPTH: Final = 64
MAX_ELEMENTS: Final = 20_000
MAX_ATTRIBUTE_CHARS: Final = 1 << 16

QEMU_NAMESPACE: Final = "http://libvirt.org/schemas/domain/qemu/1.0"


class Element:
    """One element. ``tag``: its name, with the namespace and a space in front where it has one."""

    __slots__ = ("attributes", "children", "tag", "text")

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children: list[Element] = []
        self.text = ""

    def get(self, name: str, default: str = "") -> str:
        """An attribute."""
        return self.attributes.get(name, default)

    def child(self, tag: str) -> Element:
        """The first child of this name, or an empty element that answers like an absent one."""
        for child in self.children:
            if child.tag == tag:
                return child
        return NOTHING

    def has(self, tag: str) -> bool:
        """Whether there is a child of this name."""
        return any(child.tag == tag for child in self.children)

    def all(self, tag: str) -> list[Element]:
        """The children of this name."""
        return [child for child in self.children if child.tag == tag]

    def words(self, tag: str) -> str:
        """The text of the first child of this name, without the space around it."""
        return self.child(tag).text.strip()


NOTHING: Final = Element("", {})


class _Builder:
    def __init__(self, source: str) -> None:
        self.source = source
        self.root: Element | None = None
        self.stack: list[Element] = []
        self.count = 0

    def refuse(self, what: str, got: str, expected: str) -> NoReturn:
        raise InputError(f"{self.source}: {what}", got=got[:120], expected=expected)

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, attributes)
        self.count += 1
        if self.count > MAX_ELEMENTS:
            self.refuse("too many elements", f"more than {MAX_ELEMENTS}", f"at most {MAX_ELEMENTS}")
        for name, value in attributes.items():
            if len(value) > MAX_ATTRIBUTE_CHARS:
                self.refuse(f"attribute {name[:40]} is too long", f"{len(value)} characters", f"{MAX_ATTRIBUTE_CHARS}")
        if self.stack:
            if len(self.stack) >= MAX_DEPTH:
                self.refuse("nested too deep", f"more than {MAX_DEPTH} levels", f"at most {MAX_DEPTH}")
            self.stack[-1].children.append(element)
        else:
            self.root = element
        self.stack.append(element)

    def end(self, tag: str) -> None:
        del tag
        self.stack.pop()

    def data(self, text: str) -> None:
        if self.stack:
            self.stack[-1].text += text

    def doctype(self, name: str, *rest: object) -> None:
        del rest
        self.refuse("a document type is not accepted", f"<!DOCTYPE {name}", "plain XML without DOCTYPE and entities")

    def entity(self, *rest: object) -> None:
        self.refuse("an entity is not accepted", str(rest[0]), "plain XML without DOCTYPE and entities")

    def external(self, *rest: object) -> int:
        self.entity(*rest)
        return 0  # expat: stop


def parse_xml(data: bytes, source: str) -> Element:
    """The root of a document.

    Raises:
        InputError: not well-formed, a document type or an entity, or beyond one of the bounds.
    """
    from xml.parsers import expat

    if len(data) > MAX_BYTES:
        raise InputError(f"{source}: too large", got=f"{len(data)} bytes", expected=f"at most {MAX_BYTES} bytes")
    builder = _Builder(source)
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = builder.doctype
    parser.EntityDeclHandler = builder.entity
    parser.UnparsedEntityDeclHandler = builder.entity
    parser.ExternalEntityRefHandler = builder.external
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise InputError(f"{source}: not well-formed XML ({error})") from None
    except (ValueError, LookupError) as error:  # an encoding that does not exist
        raise InputError(f"{source}: not readable as XML ({error})") from None
    if builder.root is None:
        raise InputError(f"{source}: no element at all", expected="a <domain>")
    return builder.root
