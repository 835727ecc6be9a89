"""What a framework of published measures is: types only."""

from __future__ import annotations

import enum

import msgspec


class Read(enum.StrEnum):
    """How far its text was read: ``text``: the measure itself; ``title``: its number and title in somebody's list;
    a measure of which nobody read that much is not mapped."""

    TEXT = "text"
    TITLE = "title"


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One published measure: the controls that check it here, or why nothing on one host can (``cannot``). ``partly``:
    what of it the controls leave open."""

    id: str
    title: str
    controls: tuple[str, ...] = ()
    cannot: str = ""
    partly: str = ""
    read: Read | None = None


class Framework(msgspec.Struct, frozen=True, kw_only=True):
    """One publication. ``sources``: what was read, with its date or version. ``about``: what is mapped, and what not.
    ``read``: how far the measures were read that say nothing else of themselves."""

    name: str
    title: str
    about: str
    sources: tuple[str, ...]
    measures: tuple[Measure, ...]
    read: Read = Read.TEXT
