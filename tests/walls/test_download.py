"""Downloads against a loopback server in a network namespace of the test's own: resumed, bounded, https all the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import HostError, InputError
from casemate.image import store_download, store_files
from casemate.image.store import Store
from casemate.image.store_download import downloaded, is_url

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every case of `tests/support/download_case.py`, run once."""
    spaces = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    done = subprocess.run(
        [*spaces, sys.executable, "-m", "tests.support.download_case", str(tmp_path_factory.mktemp("download"))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.wall
@pytest.mark.parametrize(
    ("name", "came"),
    [
        ("plain", "whole"),
        ("moved", "whole"),
        ("breaks", "whole"),
        ("killed", "whole"),
        ("changed", "other"),
        ("lying-range", "whole"),
        ("ignores-range", "whole"),
        ("weak", "whole"),
        ("shorter", "ten"),
        ("unknown-length", "whole"),
    ],
)
def test_what_was_asked_for_comes_whole(cases: dict[str, Any], name: str, came: str) -> None:
    assert cases[name]["came"] == came
    assert not cases[name]["kept"]


@pytest.mark.wall
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("endless", "ImageError: https://127.0.0.1"),
        ("huge", "is too large"),
        ("to-http", "https:// all the way"),
        ("to-file", "HTTP 302"),
        ("to-password", "https:// all the way"),
        ("loop", "HTTP 302"),
        ("missing", "HTTP 404"),
        ("busy", "HTTP 503"),
        ("slow", "less than 1024 bytes a second"),
        ("long-header", "HostError"),
        ("nonsense", "HostError"),
        ("unknown-authority", "cannot prove who it is"),
        ("other-host", "cannot prove who it is"),
        ("nobody-listens", "HostError"),
    ],
)
def test_what_is_refused_says_why(cases: dict[str, Any], name: str, words: str) -> None:
    assert words in cases[name]["came"]


@pytest.mark.wall
def test_a_download_goes_into_the_store_without_its_secrets(cases: dict[str, Any]) -> None:
    assert cases["imported"]["came"] == "disk disk?... gzip+raw 1048576 0"


@pytest.mark.wall
def test_only_what_is_surely_the_same_file_is_continued(cases: dict[str, Any]) -> None:
    assert cases["breaks"]["ranges"] == ["", "bytes=500000-"]
    first, second = cases["killed"]["ranges"]
    assert first == ""
    assert second.startswith("bytes=")
    assert second != "bytes=0-"
    assert cases["weak"]["ranges"] == ["", ""]
    assert cases["lying-range"]["ranges"] == ["", "bytes=500000-", ""]
    assert cases["shorter"]["ranges"] == ["", "bytes=500000-", ""]


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/x",
        "ftp://example.org/x",
        "file:///etc/passwd",
        "https:///x",
        "https://user:secret@example.org/x",
        "https://example.org/a b",
        "https://example.org:port/x",
        "https://exämple.org/x",
        "https://example.org/" + "x" * 3000,
        "https://[::1/x",
    ],
)
def test_urls_that_are_not_asked(url: str, tmp_path: Path) -> None:
    assert is_url(url)
    store = Store(str(tmp_path / "images"))
    with pytest.raises(InputError) as error, downloaded(store, url, max_bytes=1):
        pass
    assert "secret" not in str(error.value)
    assert not (tmp_path / "images").exists()


def test_what_follows_the_question_mark_is_not_shown() -> None:
    assert store_download.shown("https://example.org/a.raw?token=secret#x") == "https://example.org/a.raw?..."
    assert store_download.shown("https://example.org/a.raw") == "https://example.org/a.raw"
    assert len(store_download.shown("https://example.org/" + "x" * 900)) < 140


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.org/a/debian%2012.raw.xz?token=x", "debian 12.raw.xz"),
        ("https://example.org", "download"),
        ("https://example.org/a/", "download"),
        ("https://example.org/..", "download"),
        ("https://example.org/%2e%2e%2fetc%2fpasswd", "download"),
        ("https://example.org/%1b[2J", "download"),
    ],
)
def test_the_name_of_a_download(url: str, name: str) -> None:
    assert store_download.file_name(url) == name


def test_paths_are_no_urls() -> None:
    for word in ("disk.raw", "/a/b", "a:b", "-", "c:\\x", "image:web"):
        assert not is_url(word)


def test_one_command_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path / "images"))
    url = "https://127.0.0.1:1/x"
    monkeypatch.setattr(store_download, "ATTEMPTS", 1)
    with pytest.raises(HostError, match="did not come"), downloaded(store, url, max_bytes=1):
        pass
    (place,) = (tmp_path / "images" / "downloads").iterdir()
    held = store_files.try_lock(f"{place}/lock")
    assert held is not None
    with pytest.raises(HostError, match="another command downloads"), downloaded(store, url, max_bytes=1):
        pass
    os.close(held)
