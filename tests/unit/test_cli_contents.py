"""The face of an image's content: what an image could not give shows in the exit code, in words and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from casemate import contents
from casemate.cell.extract import Copied
from casemate.cell.model import Entry
from casemate.cli.main import main


def entries(*found: Entry) -> Any:
    def list_files(*_: object, **__: object) -> Iterator[Entry]:
        return iter(found)

    return list_files


@pytest.mark.parametrize("flags", [(), ("--long",), ("--json",), ("--null",)])
@pytest.mark.parametrize(("error", "code"), [(0, 0), (117, 1)])
def test_a_listing_with_holes(
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
    flags: tuple[str, ...],
    error: int,
    code: int,
) -> None:
    monkeypatch.setattr(contents, "list_files", entries(Entry(b"a", 0o100644, 3), Entry(b"d", 0o40755, 0, error=error)))
    assert main(["image", "ls-files", *flags, "x.img"]) == code
    said = capsysbinary.readouterr()
    if "--json" in flags:
        assert ["error" in item for item in json.loads(said.out)["files"]] == [False, bool(error)]
    else:
        assert (b"cannot be read" in said.err) is bool(error)


@pytest.mark.parametrize("flags", [(), ("--json",)])
@pytest.mark.parametrize("unread", [0, 2])
def test_a_copy_with_holes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], unread: int
) -> None:
    monkeypatch.setattr(contents, "copy_out", lambda *_, **__: Copied(files=1, unread=unread))
    assert main(["image", "copy-out", *flags, "x.img", "/", "out"]) == (1 if unread else 0)
    if flags:
        assert json.loads(capsys.readouterr().out)["unread"] == unread
