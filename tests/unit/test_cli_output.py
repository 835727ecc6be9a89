"""What is printed: nothing that a terminal obeys, tables that line up, errors with all their parts."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tty

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.cli import output
from casemate.errors import Fault, InputError, RefusedError, SpecError, VmError


def test_error_shows_all_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error(InputError("cannot open x", got="a FIFO", expected="a file", next_step="ls -l x"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "casemate: error: cannot open x\n  got: a FIFO\n  expected: a file\n  next: ls -l x\n"


def test_error_of_a_specification_keeps_a_line_per_fault(capsys: pytest.CaptureFixture[str]) -> None:
    faults = (Fault("a.b", "value.range", "too big"), Fault("", "key.unknown", "what\x1b[2J"))
    output.print_error(SpecError("vm.toml", faults))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "casemate: error: vm.toml: 2 faults"
    assert lines[1] == "  a.b: too big [value.range]"
    assert "\x1b" not in lines[2]


def test_refusal_names_its_control(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error(RefusedError("proc.uid", "the emulator would be root"))
    assert "refused by control proc.uid" in capsys.readouterr().err


@given(st.text())
def test_plain_text_has_nothing_a_terminal_obeys(text: str) -> None:
    shown = output.plain(text)
    assert all(char.isprintable() for char in shown)
    assert len(shown) == len(text)
    assert output.plain("ok µ 😐") == "ok µ 😐"


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_a_guests_text_on_a_terminal_is_harmless(text: str) -> None:
    shown = output.harmless(text)
    assert all(char.isprintable() or char in "\t\n\r" for char in shown)
    assert shown.count("\n") == text.count("\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;x\x07", "^[]0;x^G"),
        ("\x1b[2J\x7f", "^[[2J^?"),
        ("\x9b2J", "\ufffd2J"),  # the same sequence, opened by one 8-bit control
        ("\u202eexe", "\ufffdexe"),
        ("a\tb\r\n µ 😐", "a\tb\r\n µ 😐"),
    ],
)
def test_what_a_guests_text_becomes(text: str, shown: str) -> None:
    assert output.harmless(text) == shown


@given(st.lists(st.binary(max_size=9)))
def test_logs_on_a_terminal_are_harmless_however_they_are_cut(pieces: list[bytes]) -> None:
    """A terminal's descriptor is asked, so a real one is written to; it is raw and changes nothing."""
    leader, terminal = pty.openpty()
    tty.setraw(terminal)
    with open(terminal, "w", encoding="utf-8", newline="") as stdout, open(leader, "rb", buffering=0) as screen:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            output.write_bytes(iter([*pieces, b"."]))
        wanted = output.harmless(b"".join([*pieces, b"."]).decode("utf-8", "replace")).encode()
        shown = b""
        while len(shown) < len(wanted):
            shown += screen.read(4096)
    assert shown == wanted


def test_an_error_of_several_lines_is_indented(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error(VmError("it died", got="first\ncasemate: error: forged\x1b[2J"))
    assert capsys.readouterr().err == ("casemate: error: it died\n  got: first\n    casemate: error: forged\ufffd[2J\n")


def test_nobody_to_tell_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr", full)
        output.note("x")
        output.warn("x")
        output.print_error(VmError("x"))
        monkeypatch.undo()
        os.dup2(os.open("/dev/null", os.O_WRONLY), full.fileno())  # what is left in the buffer has to go somewhere


def test_aligned_table(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_aligned(("ID", "NAME", "X"), [["1", "longer", ""], ["22", "b\x1b", "y"]])
    assert capsys.readouterr().out == "ID  NAME    X\n1   longer\n22  b\N{REPLACEMENT CHARACTER}      y\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 seconds ago"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "1 minute ago"),
        (7199, "1 hour ago"),
        (172_800, "2 days ago"),
    ],
)
def test_ago(seconds: int, text: str) -> None:
    assert output.ago(1000, 1000 + seconds) == text


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    """Guests' words in a document cannot reach the terminal as control characters."""
    output.print_json({"name": "\x1b\x9b µ"})
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert "\x1b" not in printed
    assert json.loads(printed) == {"name": "\x1b\x9b µ"}


def on_a_terminal(code: str) -> str:
    """What a program prints on a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    assert process.wait(timeout=30) == 0, shown
    return shown.decode()


def test_table_on_a_terminal_is_drawn_and_keeps_every_cell() -> None:
    code = (
        "from casemate.cli.output import print_table; "
        "print_table('A title', ('VERDICT', 'WHAT'), [['pass', 'one'], ['fail', 'x\\x1b[2J[bold]y']])"
    )
    shown = on_a_terminal(code)
    assert "A title" in shown
    assert "VERDICT" in shown
    assert "[bold]y" in shown  # no markup of rich's is read from data
    assert "\x1b[2J" not in shown
    assert "\x1b[1;31m" in shown  # a fail is red


def test_working_line_is_gone_at_the_end() -> None:
    shown = on_a_terminal(
        "from casemate.cli.output import working\nwith working('doing') as report: report('step one'); report('two')"
    )
    assert "casemate: doing: step one" in shown
    last = shown.rsplit("\r", 2)
    assert last[-2].strip() == ""


def test_working_without_a_terminal_prints_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with output.working("doing") as report:
        report("")
        report("step one")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "casemate: doing: step one\n")
