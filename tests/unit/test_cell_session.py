"""A session with a guest that lies, floods, is silent or falls over: an error with its reason, never a wrong answer."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.cell_peer import HELLO, Answer, end, entry_bytes, frame_bytes, peer

from casemate.cell.model import Entry, Piece
from casemate.cell.session import DamagedImageError, MissingInImageError, Session
from casemate.cell.wire import FRAME_MAX_BYTES, REQUEST_MAX_BYTES, Kind, Operation, encode_request, text
from casemate.errors import ImageError, InputError, VmError


def listing(*entries: bytes, error: int = 0) -> Answer:
    return lambda request, _operation, _body: (
        frame_bytes(Kind.ENTRIES, request, b"".join(entries)) + end(request, error)
    )


def test_an_honest_listing() -> None:
    with peer(listing(entry_bytes(b"a", size=3), entry_bytes(b"l", mode=0o120777, target=b"/x"))) as session:
        session.wait_for_hello()
        assert session.list("/v/0", b"/", 10) == [
            Entry(b"a", 0o100644, 3, 7, 1, 2, 1, 9),
            Entry(b"l", 0o120777, 0, 7, 1, 2, 1, 9, target=b"/x"),
        ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda request, *_: frame_bytes(99, request), "unknown kind 99"),
        (lambda request, *_: frame_bytes(Kind.DATA, request, b"x"), "answers no question"),
        (lambda request, *_: frame_bytes(Kind.ENTRIES, request + 1, entry_bytes(b"a")), "answers no question"),
        (lambda request, *_: frame_bytes(Kind.ENTRIES, request, b""), "without entries"),
        (lambda request, *_: frame_bytes(Kind.ENTRIES, request, entry_bytes(b"abc")[:-1]), "lead out of its frame"),
        (lambda request, *_: frame_bytes(Kind.ENTRIES, request, entry_bytes(b"abc")[:30]), "cut short"),
        (lambda request, *_: frame_bytes(Kind.ENTRIES, request, entry_bytes(b"a\0b")), "NUL"),
        (lambda request, *_: frame_bytes(Kind.ENTRIES, request, entry_bytes(b"a", error=5000)), "no kernel has"),
        (lambda request, *_: frame_bytes(Kind.ENTRIES, request, entry_bytes(b"x" * 20000)), "too long"),
        (lambda request, *_: frame_bytes(Kind.ENTRIES, request, entry_bytes(b"a") * 50) + end(request), "more entries"),
        (lambda request, *_: frame_bytes(Kind.END, request, b"short"), "an end of 5 bytes"),
        (lambda request, *_: end(request, error=70000), "errno 70000"),
        (lambda request, *_: b"\xff" * 64, f"{0xFFFFFFFF} bytes"),
        (lambda request, *_: (FRAME_MAX_BYTES + 1).to_bytes(4, "little") + bytes(8), f"{FRAME_MAX_BYTES} are allowed"),
        (lambda request, *_: HELLO, "answers no question"),
    ],
)
def test_a_lie_ends_the_cell(answer: Answer, said: str) -> None:
    with peer(answer) as session:
        session.wait_for_hello()
        with pytest.raises(VmError, match="broke its protocol") as caught:
            session.list("/v/0", b"/", 10)
        assert said in caught.value.got
        with pytest.raises(VmError, match="broke its protocol"):  # and nothing is asked again
            session.pread("/dev/vda", 0, 512)


@pytest.mark.parametrize(
    "hello", [b"", HELLO[:-1] + b"\x02", end(0), b"\0" * 12, frame_bytes(Kind.HELLO, 1, b"\x01\0\0\0")]
)
def test_a_wrong_greeting(hello: bytes) -> None:
    with peer(lambda *_: b"", hello=hello, silence_max_s=0.2) as session, pytest.raises(VmError):
        session.wait_for_hello()


def test_silence_has_an_end() -> None:
    with peer(lambda *_: b"", silence_max_s=0.2) as session:
        session.wait_for_hello()
        with pytest.raises(VmError, match="silent"):
            session.pread("/dev/vda", 0, 512)


def test_half_a_frame_has_an_end() -> None:
    with peer(lambda request, *_: frame_bytes(Kind.DATA, request, b"x" * 100)[:50], silence_max_s=0.2) as session:
        session.wait_for_hello()
        with pytest.raises(VmError, match="silent"):
            session.pread("/dev/vda", 0, 512)


def test_a_guest_that_ends() -> None:
    def fall(request: int, _operation: int, _body: bytes) -> bytes:
        raise OSError("panic")

    with peer(fall) as session:
        session.wait_for_hello()
        with pytest.raises(VmError, match="ended before it answered"):
            session.list("/v/0", b"/", 10)


def test_more_bytes_than_asked_for() -> None:
    with peer(lambda request, *_: frame_bytes(Kind.DATA, request, b"x" * 600) + end(request)) as session:
        session.wait_for_hello()
        with pytest.raises(VmError, match="more than was asked"):
            session.pread("/dev/vda", 0, 512)
    with peer(lambda request, *_: frame_bytes(Kind.DATA, request, b"x" * 600) + end(request)) as session:
        session.wait_for_hello()
        with pytest.raises(VmError, match="more of a file"):
            list(session.read("/v/0", b"/a", 0, 512))


def test_a_program_that_floods_is_cut() -> None:
    with peer(lambda request, *_: frame_bytes(Kind.DATA, request, b"x" * 200_000) + end(request, value=256)) as session:
        session.wait_for_hello()
        status, said = session.run(("/sbin/lvm",))
        assert (status, len(said)) == (256, 1 << 16)


def walk_answer(*frames: tuple[Kind, bytes]) -> Answer:
    return lambda request, *_: b"".join(frame_bytes(kind, request, body) for kind, body in frames) + end(request)


def test_contents_belong_to_the_file_before_them() -> None:
    answer = walk_answer(
        (Kind.ENTRIES, entry_bytes(b"d", mode=0o40755) + entry_bytes(b"d/a", size=4)),
        (Kind.CONTENT, b"ab"),
        (Kind.CONTENT, b"cd"),
        (Kind.CONTENT_END, bytes(4)),
        (Kind.ENTRIES, entry_bytes(b"e")),
    )
    with peer(answer) as session:
        session.wait_for_hello()
        items = list(session.walk("/v/0", b"/", 10, 100))
        assert [item.path if isinstance(item, Entry) else item.data for item in items] == [
            b"d",
            b"d/a",
            b"ab",
            b"cd",
            b"",
            b"e",
        ]
        assert items[4] == Piece(b"", last=True)


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (((Kind.CONTENT, b"x"),), "belongs to no file"),
        (((Kind.ENTRIES, entry_bytes(b"d", mode=0o40755)), (Kind.CONTENT, b"x")), "belongs to no file"),
        (((Kind.ENTRIES, entry_bytes(b"a")), (Kind.CONTENT, b"x" * 101)), "more of a file"),
        (((Kind.ENTRIES, entry_bytes(b"a")), (Kind.CONTENT_END, bytes(4)), (Kind.CONTENT, b"x")), "belongs to no file"),
        (((Kind.ENTRIES, entry_bytes(b"a")), (Kind.CONTENT_END, b"")), "errno of 0 bytes"),
    ],
)
def test_contents_that_lie(frames: tuple[tuple[Kind, bytes], ...], said: str) -> None:
    with peer(walk_answer(*frames)) as session:
        session.wait_for_hello()
        with pytest.raises(VmError) as caught:
            list(session.walk("/v/0", b"/", 10, 100))
        assert said in caught.value.got


def test_an_answer_given_up_halfway_does_not_disturb_the_next() -> None:
    def answer(request: int, operation: int, _body: bytes) -> bytes:
        if operation == Operation.READ:
            return frame_bytes(Kind.DATA, request, b"x" * 1000) * 50 + end(request)
        return frame_bytes(Kind.DATA, request, b"next") + end(request)

    with peer(answer) as session:
        session.wait_for_hello()
        stream = session.read("/v/0", b"/big", 0, 1 << 20)
        assert next(stream) == b"x" * 1000
        stream.close()  # type: ignore[attr-defined]
        assert session.pread("/dev/vda", 0, 512) == b"next"


def test_a_second_question_during_an_answer_is_our_bug() -> None:
    with peer(lambda request, *_: frame_bytes(Kind.DATA, request, b"x") * 3 + end(request)) as session:
        session.wait_for_hello()
        stream = session.read("/v/0", b"/big", 0, 1 << 20)
        next(stream)
        with pytest.raises(RuntimeError, match="second question"):
            session.pread("/dev/vda", 0, 512)


def test_errors_of_the_image_are_told_apart() -> None:
    with peer(lambda request, *_: end(request, errno.ENOENT)) as session:
        session.wait_for_hello()
        with pytest.raises(MissingInImageError, match="no such file"):
            session.stat("/v/0", b"/missing")
    said = b"<3>[    1.5] EXT4-fs error: bad\x1b[31m block\n"

    def damaged(request: int, operation: int, _body: bytes) -> bytes:
        if operation == Operation.DMESG:
            return frame_bytes(Kind.DATA, request, said) + end(request)
        return end(request, errno.EUCLEAN)

    with peer(damaged) as session:
        session.wait_for_hello()
        with pytest.raises(DamagedImageError) as caught:
            session.stat("/v/0", b"/a\x1b]0;title\x07")
        assert "EXT4-fs error" in caught.value.got
        assert str(caught.value).replace("\n", "").isprintable()


def test_too_many_entries_are_an_error_of_the_image() -> None:
    with peer(listing(entry_bytes(b"a"), error=errno.E2BIG)) as session:
        session.wait_for_hello()
        with pytest.raises(ImageError, match="more files"):
            session.list("/v/0", b"/", 10)


def test_bounds_of_what_is_asked() -> None:
    with pytest.raises(RuntimeError, match="a request of"):
        encode_request(Operation.LOAD, 1, bytes(REQUEST_MAX_BYTES + 1))
    with pytest.raises(RuntimeError, match="text field"):
        text(b"x" * 70_000)
    with pytest.raises(RuntimeError, match="NUL"):
        text("a\0b")
    with peer(lambda *_: b"") as session, pytest.raises(InputError, match="key"):
        session.run(("/sbin/cryptsetup",), bytes(70_000))


def test_a_flooded_console_stops_nothing() -> None:
    import socket
    import threading

    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    flood_ended = threading.Event()

    def flood() -> None:
        with os.fdopen(write_end, "wb") as file:
            file.write(b"\x1b[2J flood\n" * 200_000)
        theirs.sendall(HELLO)
        flood_ended.set()

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    with ours, theirs, os.fdopen(read_end, "rb") as console:
        session = Session(ours, (console.fileno(),), silence_max_s=20)
        session.wait_for_hello()
        thread.join(20)
        assert flood_ended.is_set()
        assert len(session._link._tails[console.fileno()]) <= 4096


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_any_answer_ends_in_an_error_or_a_value(data: bytes) -> None:
    with peer(lambda *_: data, silence_max_s=0.01) as session:
        session.wait_for_hello()
        said = ""
        try:
            assert len(session.list("/v/0", b"/", 5)) <= 11
        except (VmError, InputError, ImageError) as error:
            said = str(error)
        assert said.replace("\n", "").isprintable()
