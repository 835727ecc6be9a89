"""The filter between guest and terminal, held against a terminal's own, generous parser."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from casemate.cli.terminal import SEQUENCE_MAX_BYTES, STRING_MAX_BYTES, TerminalFilter


def through(data: bytes, *cuts: int, utf8: bool = True) -> bytes:
    """Feed ``data`` cut at ``cuts``."""
    sieve = TerminalFilter(utf8=utf8)
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return b"".join(sieve.feed(data[start:end]) for start, end in pairwise(places))


class Terminal:
    """What a terminal would do beyond showing text: after Williams' parser for DEC terminals, and xterm.

    A control character within a sequence is carried out and the sequence goes on; CAN and SUB end it; ESC begins anew;
    characters from U+00A0 to U+00FF count as those without their eighth bit while a sequence is open.
    """

    def __init__(self) -> None:
        self.acts: list[str] = []
        self.state, self.intermediates = "ground", ""

    def take(self, char: str) -> None:
        """One character."""
        if char in "\x18\x1a":
            self.state = "ground"
        elif char == "\x1b":
            self.state, self.intermediates = "escape", ""
        elif "\x80" <= char <= "\x9f":
            self.control(char)
        elif self.state not in {"ground", "string"} and char >= " " and char != "\x7f":
            self.go_on(chr(ord(char) - 0x80) if "\xa0" <= char <= "\xff" else char)

    def control(self, char: str) -> None:
        """A control of the 8-bit set."""
        self.state, self.intermediates = "csi" if char == "\x9b" else "ground", ""
        if char in "\x90\x98\x9d\x9e\x9f":
            self.state = "string"
            self.acts.append(f"string {ord(char):#x}")

    def go_on(self, char: str) -> None:
        """The next character of an open sequence."""
        if " " <= char <= "/":
            self.intermediates += char
        elif self.state == "escape" and not self.intermediates and char in "[]PX^_":
            self.state = "csi" if char == "[" else "string"
            self.acts += [] if char == "[" else [f"string {char}"]
        elif self.state == "escape":
            self.acts += ["encoding"] if self.intermediates.startswith("%") else []
            self.state = "ground"
        elif not "0" <= char <= "?":
            self.acts += [f"CSI {char}"] if char in "ti" else []
            self.state = "ground"


def acts(data: bytes, *, utf8: bool = True) -> list[str]:
    """What a terminal does when it is sent ``data``."""
    terminal = Terminal()
    for char in data.decode("utf-8" if utf8 else "latin-1", "replace"):
        terminal.take(char)
    return terminal.acts


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x1b]0;x\x07", ["string ]"]),
        (b"\x1b\n]0;x\x07", ["string ]"]),
        ("\x1b\u00dd0;x\x07".encode(), ["string ]"]),
        ("\u009d0;x\x07".encode(), ["string 0x9d"]),
        (b"\x1b[2\n1t", ["CSI t"]),
        ("\u009b5i".encode(), ["CSI i"]),
        (b"\x1b%@", ["encoding"]),
        (b"\x1b[31mred\x1b[0m\x1b(0\x1bM", []),
    ],
)
def test_the_model_terminal_acts(data: bytes, what: list[str]) -> None:
    assert acts(data) == what


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"plain \x1b[1;31mred\x1b[0m\r\n", b"plain \x1b[1;31mred\x1b[0m\r\n"),
        (b"\x1b[2J\x1b[6n\x1b[?25l", b"\x1b[2J\x1b[6n\x1b[?25l"),
        (b"a\x1b]0;title\x07b", b"ab"),
        (b"a\x1b]52;c;ZXZpbA==\x1b\\b", b"ab"),
        (b"a\x1bPq#0\x1b\\b", b"ab"),
        (b"a\x1b_apc\x1b\\b\x1b^pm\x1b\\c\x1bXsos\x1b\\d", b"abcd"),
        ("a\u009d0;title\u009cb".encode(), b"ab"),
        ("a\u0090dcs\u009cb".encode(), b"ab"),
        (b"a\x1b[21tb\x1b[8;1;1tc", b"abc"),
        (b"a\x1b[5ib\x1b[?5ic", b"abc"),
        ("a\u009b21tb".encode(), b"ab"),
        ("a\u0085b\u008dc".encode(), b"abc"),
        ("µ°\u00a0€😐".encode(), "µ°\u00a0€😐".encode()),
        (b"a\x1b\x1b]0;x\x07]0;y\x07b", b"a^[]0;y\x07b"),
        (b"a\xc2\x1b[21t\x9d0;y\x07b", b"a\xef\xbf\xbd\x9d0;y\x07b"),
        (b"a\x1b\n]0;x\x07b", b"a^[\n]0;x\x07b"),
        (b"a\x1b[2\n1tb", b"a^[2\n1tb"),
        ("a\x1b\u00dd0;x\x07b".encode(), "a^[\u00dd0;x\x07b".encode()),
        (b"a\x1b%@b\x1b%Gc\x1b%/Gd", b"abcd"),
        (b"\x1bM\x1b7\x1b(B\x1b#8", b"\x1bM\x1b7\x1b(B\x1b#8"),
    ],
)  # fmt: skip
def test_what_acts_on_the_host_is_dropped_and_the_rest_kept(data: bytes, shown: bytes) -> None:
    assert through(data) == shown


def test_a_terminal_without_utf8() -> None:
    assert through(b"a\x9d0;x\x07\x9b21t\xe9\xc2\xa0", utf8=False) == b"a?0;x\x07?21t\xe9\xc2\xa0"


PIECES = st.sampled_from(
    [
        *(b"\x1b", b"\x1b[", b"\x1b]", b"\x1bP", b"\x1b\\", b"]", b"[", b"%", b"(", b" ", b"0;x", b"\x07"),
        *(b"\xc2", b"\xc3", b"\x90", b"\x9b", b"\x9c", b"\x9d", b"\xdd", b"\xb4", b"1;2", b"t", b"i", b"m"),
        *(b"@", b"\n", b"\x18", b"\x7f", b"a"),
    ]
)  # fmt: skip
STREAMS = st.lists(PIECES | st.binary(max_size=3), max_size=40).map(b"".join)
CUTS = st.lists(st.integers(0, 200), max_size=6)


@given(STREAMS, CUTS, st.booleans())
def test_where_the_stream_is_cut_does_not_matter(data: bytes, cuts: list[int], utf8: bool) -> None:
    assert through(data, *cuts, utf8=utf8) == through(data, utf8=utf8)


@given(STREAMS, st.booleans())
@example(b"\x1b" + b" " * 300 + b"%@", True)
@example(b"\x1b[" + b"1" * 300 + b"t", True)
def test_a_terminal_does_nothing_beyond_text(data: bytes, utf8: bool) -> None:
    assert acts(through(data, utf8=utf8), utf8=utf8) == []


@given(st.text(st.characters(min_codepoint=0xA0, exclude_categories=["Cs"]), max_size=50))
def test_text_is_kept(text: str) -> None:
    assert through(text.encode()).decode() == text


@pytest.mark.parametrize("start", [b"\x1b]0;", b"\x1b[", b"\x1b(", "\u009b".encode(), "\u009d".encode()])
def test_what_never_ends_does_not_swallow_everything(start: bytes) -> None:
    filler = b" " if start == b"\x1b(" else b"1"
    shown = through(start + filler * (STRING_MAX_BYTES + SEQUENCE_MAX_BYTES) + b"\nlater")
    assert shown.endswith(b"later")
    assert b"\x1b" not in shown
