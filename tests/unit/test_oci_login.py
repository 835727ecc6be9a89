"""Files of logins, as podman and docker write them: which entry is for which image, and nothing else ever is."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.engine.registry_login import LoginChoice, find_registry_login
from casemate.errors import HostError, InputError
from casemate.image.oci_login import Helper, Login, find_login, read_answer
from casemate.image.oci_registry import _challenge_of
from casemate.spec.model import Secret


def entry(user: str = "u", password: str = "p") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def found(file: dict[str, Any], host: str = "r.example:5000", name: str = "a/b") -> Login | Helper | None:
    return find_login(json.dumps(file).encode(), host, name, "FILE")


@pytest.mark.parametrize(
    ("keys", "host", "name", "which"),
    [
        (("r.example:5000", "r.example"), "r.example:5000", "a/b", "r.example:5000"),
        (("r.example", "r.example:50000", "xr.example:5000"), "r.example:5000", "a/b", None),
        (("r.example:5000", "r.example:5000/a", "r.example:5000/a/b"), "r.example:5000", "a/b", "r.example:5000/a/b"),
        (("r.example:5000", "r.example:5000/a"), "r.example:5000", "a/b", "r.example:5000/a"),
        (("r.example:5000", "r.example:5000/a"), "r.example:5000", "ab", "r.example:5000"),
        (("r.example:5000/a/b/c", "r.example:5000/b"), "r.example:5000", "a/b", None),
        (("https://r.example:5000/v2/",), "r.example:5000", "a", "https://r.example:5000/v2/"),
        (("https://r.example:5000/v1/",), "R.EXAMPLE:5000", "a", "https://r.example:5000/v1/"),
        (("https://index.docker.io/v1/",), "registry-1.docker.io", "library/a", "https://index.docker.io/v1/"),
        (("docker.io", "https://index.docker.io/v1/"), "docker.io", "library/a", "docker.io"),
        (("ftp://r.example:5000",), "r.example:5000", "a", None),
        ((), "r.example:5000", "a", None),
    ],
)
def test_the_key_that_fits_best(keys: tuple[str, ...], host: str, name: str, which: str | None) -> None:
    login = found(
        {"auths": {key: entry(password=key) for key in keys}, "credHelpers": {}, "HttpHeaders": {}}, host, name
    )
    assert (login.secret if isinstance(login, Login) else None) == which


def test_helpers_come_before_entries_and_the_store_of_everything_after() -> None:
    host = "r.example:5000"
    assert found({"auths": {host: entry()}, "credHelpers": {host: "pass"}}) == Helper("pass", host, optional=False)
    assert isinstance(found({"auths": {host: entry()}, "credsStore": "pass"}), Login)
    assert found({"auths": {f"https://{host}": {}}, "credsStore": "pass"}) == Helper(
        "pass", f"https://{host}", optional=True
    )
    assert found({"credsStore": "pass"}) == Helper("pass", host, optional=True)
    hub = found({"credsStore": "pass"}, "docker.io", "a")
    assert hub == Helper("pass", "https://index.docker.io/v1/", optional=True)
    assert found({}) is None
    assert find_login(b"", "r", "a", "FILE") is None


@pytest.mark.parametrize(
    "file",
    [
        {"auths": {"r.example:5000": {"auth": "not base64"}}},
        {"auths": {"r.example:5000": {"auth": base64.b64encode(b"\xff:\xff").decode()}}},
        {"auths": {"r.example:5000": {"auth": base64.b64encode(b"no colon").decode()}}},
        {"auths": {"r.example:5000": entry("u", "p\r\nX-Evil: 1")}},
        {"auths": {"r.example:5000": entry("", "p")}},
        {"auths": {"r.example:5000": entry("u\n", "p")}},
        {"auths": {"r.example:5000": {"identitytoken": "x" * 20000}}},
        {"credHelpers": {"r.example:5000": "../../bin/sh"}},
        {"credHelpers": {"r.example:5000": "a b"}},
        {"credsStore": "-x"},
        {"auths": []},
        {"auths": {"r.example:5000": "text"}},
    ],
)
def test_what_makes_no_sense_is_refused_and_not_shown(file: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        found(file)
    assert "Evil" not in str(caught.value)


@given(st.binary(max_size=200), st.text(max_size=20), st.text(max_size=20))
def test_any_file(data: bytes, host: str, name: str) -> None:
    """A login, nothing, or a refusal."""
    try:
        find_login(data, host, name, "FILE")
    except InputError:
        return


def test_a_login_does_not_show_itself() -> None:
    login = found({"auths": {"r.example:5000": entry("u", "very secret")}})
    assert isinstance(login, Login)
    assert "very" not in repr(login) + str(login) + f"{login}"
    assert login.basic() == "Basic " + base64.b64encode(b"u:very secret").decode()


def test_answers_of_helpers() -> None:
    helper = Helper("x", "r", optional=False)
    assert read_answer(b'{"ServerURL":"r","Username":"u","Secret":"s"}', helper).secret == "s"
    assert read_answer(b'{"Username":"<token>","Secret":"s"}', helper).is_token
    for answer in (b"", b"[]", b'{"Username":"u"}', b'{"Username":"a:b","Secret":"s"}', b"\xff"):
        with pytest.raises(InputError):
            read_answer(answer, helper)


def test_challenges() -> None:
    assert _challenge_of([]).scheme == "nothing"
    both = ['Basic realm="a"', 'Bearer realm="https://b",service="c"']
    assert _challenge_of(both).said == {"realm": "https://b", "service": "c"}
    assert _challenge_of(['Digest realm="x", BASIC realm="a", Negotiate']).scheme == "BASIC"
    assert _challenge_of(["Negotiate"]).scheme == "Negotiate"


def helper(directory: Path, name: str, text: str) -> None:
    (directory / f"docker-credential-{name}").write_text(f"#!/bin/sh\n{text}\n")
    (directory / f"docker-credential-{name}").chmod(0o700)


def test_helpers_as_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they are given and what they may see; one that hangs or fails says so."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("OUR_OWN", "not for helpers")
    monkeypatch.setenv("AWS_PROFILE", "for helpers")
    file = tmp_path / "f.json"
    helper(
        tmp_path,
        "seen",
        f'env >{tmp_path}/env; echo "$@" >{tmp_path}/argv; cat >{tmp_path}/in; '
        'echo \'{"Username":"u","Secret":"s"}\'',
    )
    helper(tmp_path, "none", "echo credentials not found in native keychain; exit 1")
    helper(tmp_path, "fails", "exit 3")
    helper(tmp_path, "much", "head -c 100000 /dev/zero")

    def ask(**words: Any) -> Login | None:
        file.write_text(json.dumps(words))
        file.chmod(0o600)
        return find_registry_login(LoginChoice(str(file)), "r.example", "a")

    login = ask(credsStore="seen")
    assert login is not None
    assert (login.user, login.secret) == ("u", "s")
    assert ((tmp_path / "argv").read_text(), (tmp_path / "in").read_text()) == ("get\n", "r.example")
    environment = (tmp_path / "env").read_text()
    assert "AWS_PROFILE" in environment
    assert "OUR_OWN" not in environment
    assert ask(credsStore="none") is None
    with pytest.raises(InputError, match="knows no login"):
        ask(credHelpers={"r.example": "none"})
    with pytest.raises(HostError, match="status 3"):
        ask(credsStore="fails")
    with pytest.raises(InputError, match="65536"):
        ask(credsStore="much")
    monkeypatch.setenv("PATH", "bin:.")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HostError, match="is missing"):
        ask(credsStore="seen")


def test_files_that_others_can_change_name_no_programs(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_text(json.dumps({"credsStore": "sh"}))
    file.chmod(0o666)
    with pytest.raises(InputError, match="can be changed by others"):
        find_registry_login(LoginChoice(str(file)), "r.example", "a")
    if os.geteuid() == 0:
        file.chmod(0o600)
        os.chown(file, 4242, 4242)
        with pytest.raises(InputError, match="can be changed by others"):
            find_registry_login(LoginChoice(str(file)), "r.example", "a")


def test_passwords_lose_their_last_newline_only(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b" a b \r\n")
    (tmp_path / "p").chmod(0o600)
    login = find_registry_login(LoginChoice(user="u", password=Secret(file=str(tmp_path / "p"))), "r", "a")
    assert login is not None
    assert login.secret == " a b "
    (tmp_path / "p").chmod(0o644)
    with pytest.raises(InputError, match="open to others"):
        find_registry_login(LoginChoice(user="u", password=Secret(file=str(tmp_path / "p"))), "r", "a")
