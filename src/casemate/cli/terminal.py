"""A guest's output on the way to the user's terminal: what makes a terminal act on the host is taken out.

Taken out: control strings (OSC sets titles, colours and the clipboard; DCS, SOS, PM, APC), in 7-bit and 8-bit (UTF-8
encoded) form; of the control sequences the window operations (CSI ``t``), some of which make the terminal type an
answer of the guest's choosing, and media copy (CSI ``i``: the printer); a change of the character encoding (ESC ``%``),
after which bytes would mean other things than they do here. Colours, cursor movement and the position query that line
editors need pass.

An ESC is shown only as the begin of a sequence that is whole and well-formed. Terminals are more generous: they carry
out a control character in the middle of a sequence and go on, and some take 0xDD for ``]``. So a malformed sequence
loses its ESC, which appears as ``^[``, and never reaches a terminal's parser.

Grammar: ECMA-48, sections 5.4 and 5.6; ISO 2022 for ESC with intermediate bytes; CSI t: XTerm Control Sequences.
"""

from __future__ import annotations

import re

_INTEREST = re.compile(rb"[\x1b\xc2]")
_STRING_END = re.compile(rb"\x1b\\|\xc2\x9c|[\x07\x18\x1a]")
_CSI = re.compile(rb"(?:\x1b\[|\xc2\x9b)[\x30-\x3f]*[\x20-\x2f]*([\x40-\x7e])")
_CSI_OPEN = re.compile(rb"(?:\x1b\[|\xc2\x9b)[\x30-\x3f]*[\x20-\x2f]*\Z")
_ESCAPE = re.compile(rb"\x1b([\x20-\x2f]*)[\x30-\x7e]")
_ESCAPE_OPEN = re.compile(rb"\x1b[\x20-\x2f]*\Z")
_STRING_AFTER_ESC, _STRING_AFTER_C2 = b"]PX^_", b"\x90\x98\x9d\x9e\x9f"
_DROPPED_CSI = (b"t", b"i")
_SHOWN_ESC = b"^["
_REPLACEMENT = b"\xef\xbf\xbd"
_NO_C1 = bytes(0x3F if 0x80 <= byte <= 0x9F else byte for byte in range(256))
STRING_MAX_BYTES = 65536
SEQUENCE_MAX_BYTES = 256


class TerminalFilter:
    """Fed with pieces of a stream; where the pieces are cut does not change the result.

    Args:
        utf8: the terminal takes UTF-8. Another takes single bytes 0x80 to 0x9F for controls: they become ``?``.
    """

    def __init__(self, *, utf8: bool = True) -> None:
        self._utf8 = utf8
        self._held = b""
        self._in_string = 0

    def feed(self, data: bytes) -> bytes:
        """What of ``data``, and of what was held back before, may be shown now."""
        data = self._held + (data if self._utf8 else data.translate(_NO_C1))
        self._held = b""
        shown = bytearray()
        position = 0
        while position < len(data):
            if self._in_string:
                position = self._skip_string(data, position)
                continue
            match = _INTEREST.search(data, position)
            if match is None:
                shown += data[position:]
                break
            shown += data[position : match.start()]
            take = self._take_escape if data[match.start()] == 0x1B else self._take_c2
            position = take(data, match.start(), shown)
            if position < 0:
                self._held = data[match.start() :]
                break
        return bytes(shown)

    def _skip_string(self, data: bytes, position: int) -> int:
        """The position behind the control string that we are in. An endless one must not swallow everything."""
        match = _STRING_END.search(data, position)
        limit = position + STRING_MAX_BYTES - self._in_string
        if match is not None and match.end() <= limit:
            self._in_string = 0
            return match.end()
        if match is None and len(data) < limit:
            held = 1 if data[-1] in b"\x1b\xc2" else 0
            self._held = data[len(data) - held :]
            self._in_string += len(data) - held - position
            return len(data)
        self._in_string = 0
        return min(limit, len(data))

    # Each takes what begins at ``start``, shows or drops it, and gives the position behind it; -1: no end of it yet.

    def _take_escape(self, data: bytes, start: int, shown: bytearray) -> int:
        following = data[start + 1 : start + 2]
        if following == b"[":
            return self._take_csi(data, start, shown)
        if following and following in _STRING_AFTER_ESC:
            self._in_string = 1
            return start + 2
        match = _ESCAPE.match(data, start)
        if match is not None and match.end() - start <= SEQUENCE_MAX_BYTES:
            if not match[1].startswith(b"%"):
                shown += match[0]
            return match.end()
        if _ESCAPE_OPEN.match(data, start) and len(data) - start < SEQUENCE_MAX_BYTES:
            return -1
        shown += _SHOWN_ESC
        return start + 1

    def _take_c2(self, data: bytes, start: int, shown: bytearray) -> int:
        """The first byte of U+0080 to U+00BF: controls up to U+009F, characters from there on."""
        if not self._utf8:
            shown.append(data[start])
            return start + 1
        following = data[start + 1 : start + 2]
        if not following:
            return -1
        if following == b"\x9b":
            return self._take_csi(data, start, shown)
        if following in _STRING_AFTER_C2:
            self._in_string = 1
        elif b"\xa0" <= following <= b"\xbf":
            shown += data[start : start + 2]
        elif not b"\x80" <= following <= b"\x9f":
            shown += _REPLACEMENT  # alone it could become one half of a control when what follows is dropped
            return start + 1
        return start + 2

    def _take_csi(self, data: bytes, start: int, shown: bytearray) -> int:
        match = _CSI.match(data, start)
        if match is not None and match.end() - start <= SEQUENCE_MAX_BYTES:
            if match[1] not in _DROPPED_CSI:
                shown += match[0]
            return match.end()
        if _CSI_OPEN.match(data, start) and len(data) - start < SEQUENCE_MAX_BYTES:
            return -1
        shown += _SHOWN_ESC
        return start + 2
