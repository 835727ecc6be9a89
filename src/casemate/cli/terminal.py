"""A guest's output on the way to the user's terminal: what makes a terminal act on the host is taken out.

Taken out: control strings (OSC sets titles, colours and the clipboard; DCS, SOS, PM, APC), in 7-bit and 8-bit (UTF-8
encoded) form, and the window operations of CSI ``t``, some of which make the terminal type an answer of the guest's
choosing. Everything else, colours and cursor movement and the position query that line editors need, passes.

Grammar: ECMA-48, sections 5.4 and 5.6; CSI t: XTerm Control Sequences.
"""

from __future__ import annotations

import re

_ESC, _CAN = 0x1B, 0x18
# ESC and its Fe byte, or the C1 control in UTF-8, that begins a control string or a control sequence.
_START = re.compile(rb"\x1b[]PX^_[]|\xc2[\x90\x98\x9b\x9d\x9e\x9f]")
_STRING_END = re.compile(rb"\x1b\\|\xc2\x9c|[\x07\x18\x1a]")
_CSI_START = re.compile(rb"\x1b\[|\xc2\x9b")
_CSI = re.compile(rb"(?:\x1b\[|\xc2\x9b)[\x30-\x3f]*[\x20-\x2f]*([\x40-\x7e])")
_CSI_OPEN = re.compile(rb"(?:\x1b\[|\xc2\x9b)[\x30-\x3f]*[\x20-\x2f]*\Z")
STRING_MAX_BYTES = 65536
CSI_MAX_BYTES = 256


class TerminalFilter:
    """Fed with pieces of a stream; where the pieces are cut does not change the result."""

    def __init__(self) -> None:
        self._held = b""
        self._in_string = 0
        self._last = 0

    def feed(self, data: bytes) -> bytes:
        """What of ``data``, and of what was held back before, may be shown now."""
        data = self._held + data
        self._held = b""
        shown = bytearray()
        position = 0
        while position < len(data):
            if self._in_string:
                position = self._skip_string(data, position)
                continue
            match = _START.search(data, position)
            if match is None:
                end = len(data) - (1 if data[-1] in (_ESC, 0xC2) else 0)
                shown += data[position:end]
                self._held = data[end:]
                break
            shown += data[position : match.start()]
            if _CSI_START.match(data, match.start()):
                position = self._take_csi(data, match.start(), shown)
                if position < 0:
                    break
            else:
                self._separate(shown)
                self._in_string = 1
                position = match.end()
        if shown:
            self._last = shown[-1]
        return bytes(shown)

    def _separate(self, shown: bytearray) -> None:
        """What is left out must not bring an ESC before it together with what follows: CAN ends the sequence."""
        if (shown[-1] if shown else self._last) in (_ESC, 0xC2):
            shown.append(_CAN)

    def _skip_string(self, data: bytes, position: int) -> int:
        """The position behind the control string that we are in. An endless one must not swallow everything."""
        match = _STRING_END.search(data, position)
        limit = position + STRING_MAX_BYTES - self._in_string
        if match is not None and match.end() <= limit:
            self._in_string = 0
            return match.end()
        if match is None and len(data) < limit:
            held = 1 if data[-1] in (_ESC, 0xC2) else 0
            self._held = data[len(data) - held :]
            self._in_string += len(data) - held - position
            return len(data)
        self._in_string = 0
        return min(limit, len(data))

    def _take_csi(self, data: bytes, start: int, shown: bytearray) -> int:
        """Show or drop one control sequence; the position behind it, -1 when its end has not come yet."""
        match = _CSI.match(data, start)
        if match is not None:
            if match[1] == b"t":
                self._separate(shown)
            else:
                shown += match[0]
            return match.end()
        if _CSI_OPEN.match(data, start) and len(data) - start <= CSI_MAX_BYTES:
            self._held = data[start:]
            return -1
        shown += b"^["  # no sequence at all: show that there was one
        return start + 2
