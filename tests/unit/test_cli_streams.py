"""Output that goes nowhere, nowhere good, or to somebody who cannot read our characters: no traceback, a clear end."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.support.cli_runner import Cli

UNREADABLE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, (out or b"").decode(), (err or b"").decode()


@pytest.mark.parametrize("words", [("ps",), ("ps", "--json"), ("spec", "--schema"), ("--help",), ("version",)])
def test_a_full_device_is_said(cli: Cli, words: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        code, _, err = finish(cli.open(*words, stdout=full))
    assert code == 3
    assert err == (
        "casemate: error: standard output, or a file, cannot be written\n"
        "  got: no space left on device\n"
        "  next: see where the output leads; df -h\n"
    )


@pytest.mark.parametrize("words", [("spec", "--schema"), ("ps",), ("--help",)])
def test_a_reader_that_has_gone_is_no_error(cli: Cli, words: tuple[str, ...]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        code, _, err = finish(cli.open(*words, stdout=write_end))
    finally:
        os.close(write_end)
    assert (code, err) == (0, "")


@pytest.mark.parametrize("name", ["é…\N{SNOWMAN}.json", "byte-\udcff.json"])
@pytest.mark.parametrize("environment", [UNREADABLE, {}])
def test_names_that_a_locale_does_not_have_are_shown_somehow(cli: Cli, name: str, environment: dict[str, str]) -> None:
    path = cli.home / name
    path.write_text("no record")
    code, out, err = finish(cli.open("verify-record", path, env=environment))
    assert code == 1
    assert err == ""
    assert f"{cli.home}/" in out
    assert ".json: launch record; got JSON is malformed" in out


def test_an_error_in_a_locale_without_our_characters(cli: Cli) -> None:
    code, _, err = finish(cli.open("run", "-d", "é.toml", env=UNREADABLE))
    assert code == 2
    assert "cannot read '" in err
    assert "Traceback" not in err
