"""Images of registries: Debian's own, and one that lies in every answer, in a network namespace of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import InputError
from casemate.image.oci_registry import is_reference, parse_reference

ROOT = Path(__file__).parents[2]
HEX = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every case of `tests/support/registry_case.py`, run once; none leaves a download behind."""
    spaces = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    done = subprocess.run(
        [*spaces, sys.executable, "-m", "tests.support.registry_case", str(tmp_path_factory.mktemp("registry"))],
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
@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="Debian's registry is not installed")
def test_a_real_registry(cases: dict[str, Any]) -> None:
    assert cases["real"] == "web.raw oci://127.0.0.1:5443/disks/web:1.0"
    assert "there is no oci://127.0.0.1:5443/disks/none:latest" in cases["real-missing"]
    assert "needs a login" in cases["login real-none"]


@pytest.mark.wall
@pytest.mark.parametrize(
    "name", ["basic", "bearer", "bearer-password", "identity", "helper", "store", "realm-moves", "docker"]
)
def test_registries_that_want_a_login(cases: dict[str, Any], name: str) -> None:
    assert cases[f"login {name}"].startswith("web.raw oci://127.0.0.1:5000/")


@pytest.mark.wall
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("helper-missing", "docker-credential-not-there is missing"),
        ("stale", "refuses the login for oci://127.0.0.1:5000/bearer:latest"),
        ("stale-basic", "stale.json (127.0.0.1:5000)"),
        ("podman-first", "containers/auth.json (127.0.0.1:5000/basic)"),
        ("for-another-port", "needs a login, or is not there"),
        ("identity-for-basic", "refuses the login"),
        ("open-to-all", "has a password in it and is open to others"),
        ("no-file", "cannot open the file of logins"),
        ("moved-asks", "the registry does not give oci://127.0.0.1:5000/moved-asks:latest; got HTTP 401"),
        ("nobody", "needs a login, or is not there"),
    ],
)
def test_a_login_that_is_none_says_why(cases: dict[str, Any], name: str, words: str) -> None:
    assert words in cases[f"login {name}"]


@pytest.mark.wall
def test_nobody_is_asked_for_a_login_that_is_not_wanted(cases: dict[str, Any]) -> None:
    assert cases["login helper-unasked"].startswith("web.raw")


@pytest.mark.wall
def test_a_login_is_neither_kept_nor_said(cases: dict[str, Any]) -> None:
    assert cases["login kept"] == ""
    assert cases["login said"] == ""


@pytest.mark.wall
@pytest.mark.parametrize("name", ["good", "for-many", "pinned"])
def test_what_is_sound_comes_into_the_store(cases: dict[str, Any], name: str) -> None:
    assert cases[name].startswith(f"web.raw oci://127.0.0.1:5000/{name}")


@pytest.mark.wall
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("login", "needs a login, or is not there; got it asks for 'Basic'"),
        ("realm-http", "expected https://HOST/PATH"),
        ("wants-more", "the anonymous token does not suffice"),
        ("token-again", "it gives no anonymous token"),
        ("token-bomb", "answers with more than 65536 bytes"),
        ("token-injects", "gives no token that could be sent"),
        ("token-none", "gives no token that could be sent"),
        ("manifest-bomb", "answers with more than 4194304 bytes"),
        ("trickle", "for one answer"),
        ("missing", "there is no oci://127.0.0.1:5000/missing:latest"),
        ("busy", "is busy; got HTTP 503"),
        ("to-http", "the server sends us elsewhere"),
        ("for-others", "0 manifests"),
        ("two-layers", "2 layers"),
        ("not-json", "is malformed"),
        ("other-type", "a manifest of type 'application/x-other'"),
        ("negative", "is no OCI image with one disk"),
        ("odd-digest", "the digest 'sha256:../"),
        ("too-large", "got 1 EiB"),
        ("other-blob", "is not what was promised"),
        ("longer-blob", "is not what was promised"),
        ("pinned-other", "is not what its digest says"),
        ("unknown-authority", "cannot prove who it is"),
        ("nobody-listens", "cannot be reached"),
    ],
)
def test_a_registry_that_lies_is_refused_and_says_why(cases: dict[str, Any], name: str, words: str) -> None:
    assert words in cases[name]


@pytest.mark.wall
def test_the_token_goes_to_the_registry_alone(cases: dict[str, Any]) -> None:
    assert cases["leaked"] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("oci://r.example/a", "oci://r.example/a:latest"),
        ("docker://r.example:5000/a/b-c/d__e:1.0", "oci://r.example:5000/a/b-c/d__e:1.0"),
        (f"oci://[::1]:5000/a:x@sha256:{HEX}", f"oci://[::1]:5000/a@sha256:{HEX}"),
    ],
)
def test_references(text: str, shown: str) -> None:
    assert is_reference(text)
    assert str(parse_reference(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        *("oci://", "oci://a", "oci:///a", "oci://r/", "oci://r/A", "oci://r/a:", "oci://r/a:b:c", "oci://r/a@md5:00"),
        *("oci://u:p@r/a", "oci://r/a?x", "oci://r/../a", "oci://r/a b", "oci://r/a\n", "docker://r/a/", "oci://r//a"),
        *(
            f"oci://r/a@sha256:{HEX}0",
            f"oci://r/{'a' * 300}",
            f"oci://r/a:{'b' * 200}",
            "oci://r:123456/a",
            "oci://r/ä",
        ),
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(InputError, match="is no image of a registry"):
        parse_reference(text)
