"""Fuzz target (atheris): everything that comes out of a hostile cell: frames, entries, superblocks, os-release, names.

The first byte says how the rest is cut into pieces. Either a value comes out that holds its bounds, or a `WireError`
whose text has nothing of the guest's in it.

python tests/fuzz/fuzz_cell.py [libFuzzer options] [corpus directory]
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.cell.wire import Frame

LIMIT_S = 1.0


def one_input(data: bytes) -> None:
    """One run; an exception is a finding."""
    from casemate.cell.extract import leads_out, safe_parts
    from casemate.cell.sniff import sniff
    from casemate.cell.volumes import parse_os_release
    from casemate.cell.wire import FRAME_MAX_BYTES

    if not data:
        return
    step, stream = data[0] + 1, data[1:]
    whole, pieces = _frames(stream, len(stream) + 1), _frames(stream, step)
    if not whole[1] and not pieces[1] and whole[0] != pieces[0]:
        raise RuntimeError(f"cut every {step} bytes: {pieces} instead of {whole}")
    for frame in whole[0]:
        if len(frame.body) > FRAME_MAX_BYTES:
            raise RuntimeError("a frame beyond the limit")
        _judge_body(frame.body)
    _judge_body(stream)
    for found in (sniff(stream), sniff(b"", stream), sniff(stream, stream)):
        for text in (found.content, found.label, found.uuid, *found.notes):
            if not text.isprintable():
                raise RuntimeError(f"a text that a terminal obeys: {text!r}")
    release = parse_os_release(stream.decode("utf-8", "replace"))
    if not all(text.isprintable() for text in (release.id, release.name, release.version, release.pretty_name)):
        raise RuntimeError(f"{release}")
    parts = safe_parts(stream)
    if parts is not None:
        if b"/".join(parts) != stream or b".." in parts or b"" in parts:
            raise RuntimeError(f"{parts}")
        leads_out(parts, stream)


def _frames(stream: bytes, step: int) -> tuple[list[Frame], str]:
    from casemate.cell.wire import FrameReader, WireError

    reader = FrameReader()
    found: list[Frame] = []
    try:
        for at in range(0, len(stream), step):
            found += reader.feed(stream[at : at + step])
    except WireError as error:
        return found, _harmless(error)
    return found, ""


def _judge_body(body: bytes) -> None:
    from casemate.cell.model import PATH_MAX_BYTES
    from casemate.cell.wire import WireError, decode_end, decode_entries, decode_error

    try:
        for entry in decode_entries(body):
            if len(entry.path) > PATH_MAX_BYTES or b"\0" in entry.path or entry.size_bytes < 0:
                raise RuntimeError(f"{entry}")
    except WireError as error:
        _harmless(error)
    for decode in (decode_end, decode_error):
        try:
            decode(body)
        except WireError as error:
            _harmless(error)


def _harmless(error: Exception) -> str:
    text = str(error)
    if len(text) > 200 or not text.isprintable() or not text.isascii():
        raise RuntimeError(f"message {text!r}")
    return text


def main() -> None:
    """Run under atheris, with coverage of the code that is fuzzed."""
    import atheris

    with atheris.instrument_imports(include=["casemate.cell"]):
        import casemate.cell.extract
        import casemate.cell.sniff
        import casemate.cell.volumes
        import casemate.cell.wire  # noqa: F401
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
