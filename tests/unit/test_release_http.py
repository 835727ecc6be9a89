"""Clients that break rules: too large, too slow, too many, ambiguous, cut off, in the clear. The server refuses, says
so in the log, and goes on."""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.certificates import Authority
from tests.support.kbs_client import Client, read_answer
from tests.unit.test_release import Place, serving, write_policy

from casemate.cli.main import main
from casemate.engine.paths import Paths
from casemate.errors import HostError, InputError
from casemate.release import http, listen
from casemate.release.broker import ATTEST_MAX_BYTES, Answer, Asked, body_limit
from casemate.release.http import Connection
from casemate.release.listen import CONNECTIONS_PER_PEER, Server, Tls
from casemate.releases import KeyServer

NOTHING = '[sev-snp]\nmeasurement = ["' + "00" * 48 + '"]'
AUTH = {"version": "0.4.0", "tee": "snp", "extra-params": ""}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    write_policy(tmp_path, NOTHING)
    with serving(tmp_path) as found:
        yield found


def still_serves(place: Place) -> bool:
    """Whether an honest client gets a challenge."""
    client = Client(place.connect)
    found = client.auth("snp").status == 200
    client.close()
    return found


def ask(place: Place, data: bytes) -> tuple[int, bytes]:
    """Send bytes; the answer's status, and what follows until the server hangs up."""
    with place.connect() as channel:
        channel.sendall(data)
        status = read_answer(channel).status
        rest = b""
        while piece := channel.recv(65536):
            rest += piece
        return status, rest


# ---- requests that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /kbs/v0/attest HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n", 413),
        (b"GET /kbs/v0/resource/a/b/c HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", 413),
        (b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2500\r\n" + b"x" * 9472, 413),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000, 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), 400),
        (b"\0" * 64 + b"\r\n\r\n", 400),
    ],
)
def test_what_is_not_http_as_it_is_spoken_here_ends_the_connection(place: Place, data: bytes, status: int) -> None:
    assert ask(place, data) == (status, b"")
    assert place.log()[-1].event == "refused"
    assert still_serves(place)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/kbs/v0/auth"),
        ("POST", "/kbs/v0/resource/default/disk/web"),
        ("DELETE", "/kbs/v0/resource/default/disk/web"),
        ("POST", "/kbs/v0/resource-policy"),
        ("POST", "/kbs/v0/attestation-policy"),
        ("GET", "/kbs/v1/resource/default/disk/web"),
        ("GET", "/kbs/v0/../v0/auth"),
        ("GET", "/metrics"),
        ("OPTIONS", "*"),
        ("CONNECT", "example.org:443"),
    ],
)
def test_there_is_nothing_else(place: Place, method: str, path: str) -> None:
    answered = Client(place.connect).send(method, path, None)
    assert answered.status == 404
    assert answered.json()["type"].endswith("/InvalidRequestPath")


@pytest.mark.parametrize(
    "path",
    ["default/disk/other", "../../etc/passwd", "default/disk/web/..", "%2e%2e/x/y", "a" * 5000, "default/disk/web "],
)
def test_a_name_is_never_a_path(place: Place, path: str) -> None:
    answered = Client(place.connect).send("GET", f"/kbs/v0/resource/{path}", None)
    assert answered.status in (400, 401)


def test_a_request_with_a_query_is_the_request(place: Place) -> None:
    assert Client(place.connect).send("POST", "/kbs/v0/auth?x=1", AUTH).status == 200


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(place: Place) -> None:
    body = json.dumps(AUTH).encode()
    with place.connect() as channel:
        head = f"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
        channel.sendall(head.encode())
        assert channel.recv(1000).startswith(b"HTTP/1.1 100")
        channel.sendall(body)
        assert read_answer(channel).status == 200


# ---- slow, and many --------------------------------------------------------------------------------------------------


def test_a_slow_request_is_cut_off_and_others_do_not_wait(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_DEADLINE_S", 0.5)
    with place.connect() as channel:
        channel.sendall(b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.05):
                try:
                    channel.sendall(b"x")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        assert still_serves(place), "meanwhile"
        assert read_answer(channel).status == 408
        stop.set()
        dripping.join()
    assert place.log()[-1].event == "refused"


def test_a_silent_connection_is_hung_up_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "IDLE_S", 0.2)
    with place.connect() as channel:
        assert channel.recv(1) == b""


def test_one_peer_has_so_many_connections_and_no_more(place: Place) -> None:
    held = [place.connect() for _ in range(CONNECTIONS_PER_PEER)]
    body = json.dumps(AUTH).encode()
    for channel in held:  # each is served, so each was counted
        channel.sendall(b"POST /kbs/v0/auth HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert read_answer(channel).status == 200
    with place.connect() as late:
        assert late.recv(1) == b""
    assert "too many connections" in place.log()[-1].reasons[0].message
    held.pop().close()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if still_serves(place):
                break
        except ConnectionError:
            time.sleep(0.02)  # its thread has not noticed yet
    else:
        pytest.fail("a place was given back, and nobody got it")
    for channel in held:
        channel.close()


def test_many_sessions_are_refused_and_use_little(place: Place) -> None:
    client = Client(place.connect)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    statuses = [client.auth("snp").status for _ in range(500)]
    assert statuses.count(200) == 64
    assert set(statuses) == {200, 429}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10, "KiB"
    assert place.log()[-1].event == "refused"


def test_huge_requests_at_once_use_no_more_than_they_are(place: Place) -> None:
    """As many as one peer may have, each with as much as a request may be, JSON that has to be read to its end."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    body = b'{"tee-evidence":"' + b"x" * (ATTEST_MAX_BYTES - 19) + b'"}'
    head = b"POST /kbs/v0/attest HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    held = [place.connect() for _ in range(CONNECTIONS_PER_PEER)]
    for channel in held:
        channel.sendall(head + body[:-1])
    for channel in held:
        channel.sendall(body[-1:])
    assert [read_answer(channel).status for channel in held] == [401] * CONNECTIONS_PER_PEER
    for channel in held:
        channel.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 96 << 10, "KiB"


def test_a_fault_of_ours_is_said_and_not_taken_for_the_clients(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Asked] = []

    def answer(found: Asked) -> Answer:
        asked.append(found)
        raise OSError(28, "no space left")

    server = Server(answer)
    ours, theirs = socket.socketpair()
    server.serve_port(ours, "web")
    theirs.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    theirs.settimeout(30)
    assert theirs.recv(1) == b""
    server.close()
    assert [found.path for found in asked] == ["/"], "no entry about a handshake that nobody made"
    assert "no space left" in capsys.readouterr().err


# ---- a VM's serial port ----------------------------------------------------------------------------------------------


def test_on_a_port_a_broken_request_is_forgotten_after_a_silence(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SILENCE_S", 0.1)
    monkeypatch.setattr(http, "IDLE_S", 0.05)
    guest, ours = socket.socketpair()
    place.server.serve_port(ours, "web")
    guest.settimeout(30)
    time.sleep(0.2)  # longer than others may be silent: a port may
    guest.sendall(b"GET / HTTP/9.9\r\n\r\nleft over from a guest that was reset")
    assert read_answer(guest).status == 505
    time.sleep(0.5)
    client = Client(lambda: guest)
    assert client.auth("snp").status == 200
    assert client.auth("snp").status == 200
    guest.close()
    assert "vm web" in [item.peer for item in place.log()]


# ---- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


def over_tls(port: int, context: ssl.SSLContext) -> socket.socket:
    channel = socket.create_connection(("127.0.0.1", port), timeout=30)
    return context.wrap_socket(channel, server_hostname="keys.test")


@contextlib.contextmanager
def serving_tls(directory: Path, authority: Authority, *, mutual: bool) -> Iterator[tuple[Place, int]]:
    """A server on the Unix socket and on a TCP port."""
    write_policy(directory, NOTHING)
    server, key = map(str, authority.issue("keys.test"))
    ca = str(authority.certificate) if mutual else ""
    ports: list[int] = []

    def before(found: KeyServer) -> None:
        ports.append(found.listen_tls("127.0.0.1", 0, certificate=server, key=key, client_ca=ca))

    with serving(directory, before) as place:
        yield place, ports[0]


@pytest.mark.parametrize("mutual", [False, True])
def test_tls_names_the_peer(tmp_path: Path, authority: Authority, mutual: bool) -> None:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if mutual:
        context.load_cert_chain(*map(str, authority.issue("guest")))
    with serving_tls(tmp_path, authority, mutual=mutual) as (place, port):
        client = Client(lambda: over_tls(port, context))
        assert client.auth("snp").status == 200
        assert client.attest(lambda _: {"attestation_report": {}}).status == 401
        peer = place.log()[-1].peer
        assert peer.startswith("certificate ") if mutual else peer == "address 127.0.0.1"
        client.auth("snp")
        thief = Client(place.connect)
        thief.cookie, thief.nonce = client.cookie, client.nonce
        thief.attest(lambda _: {})
        assert "somebody else's" in place.log()[-1].reasons[0].message, "the cookie is worth nothing from elsewhere"
        client.close()


def test_clients_without_a_certificate_or_with_old_tls_or_none_are_refused(
    tmp_path: Path, authority: Authority
) -> None:
    strangers = Authority(authority.directory / "strangers")
    ca = str(authority.certificate)
    nobody, old, stranger = (ssl.create_default_context(cafile=ca) for _ in range(3))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(*map(str, authority.issue("guest")))
    stranger.load_cert_chain(*map(str, strangers.issue("guest")))
    with serving_tls(tmp_path, authority, mutual=True) as (place, port):
        for context in (nobody, old, stranger):
            with pytest.raises((OSError, ConnectionError)):
                Client(functools.partial(over_tls, port, context)).auth("snp")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert not plain.recv(1000).startswith(b"HTTP")
        assert still_serves(place)


def test_a_key_that_others_can_read_is_refused(place: Place, authority: Authority) -> None:
    server, key = authority.issue("open.test")
    key.chmod(0o644)
    with pytest.raises(InputError, match="open to others"):
        place.server.listen_tls("127.0.0.1", 0, certificate=str(server), key=str(key))


# ---- the socket, and the command -------------------------------------------------------------------------------------


def test_the_socket_is_its_owners_and_goes_with_the_server(tmp_path: Path) -> None:
    write_policy(tmp_path, NOTHING)
    path = tmp_path / "keys.sock"
    with serving(tmp_path) as place:
        assert path.stat().st_mode & 0o777 == 0o600
        second = Server(lambda _: Answer(200, b""))
        with pytest.raises(HostError, match="cannot listen"):
            second.listen_unix(str(path))
        second.close()
        assert still_serves(place)
    assert not path.exists()
    path.touch()
    with pytest.raises(HostError, match="cannot listen"), serving(tmp_path):
        pass
    assert path.exists(), "what is no dead socket of ours stays"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["serve-keys"], "a policy, and where to listen"),
        (["serve-keys", "x.toml"], "a policy, and where to listen"),
        (["serve-keys", "/nonexistent.toml", "--socket", "x"], "cannot read"),
        (["serve-keys", "x.toml", "--listen", "127.0.0.1:8443"], "--listen goes with --cert and --key"),
        (["serve-keys", "x.toml", "--listen", "8443", "--cert", "c", "--key", "k"], "ADDRESS:PORT"),
        (["serve-keys", "x.toml", "--listen", "[::1]:99999", "--cert", "c", "--key", "k"], "ADDRESS:PORT"),
    ],
)
def test_wrong_use(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert word in capsys.readouterr().err


def test_the_command_checks_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("casemate.engine.paths.default_paths", lambda: Paths("r", str(tmp_path / "data"), "c"))
    write_policy(tmp_path, NOTHING)
    with serving(tmp_path) as place:
        Client(place.connect).auth("sample")
    assert main(["serve-keys", "--check-log"]) == 0
    found = capsys.readouterr()
    assert "refused" in found.out
    assert "the kind of machine" in found.out
    assert "2 entries: each signed by this key, none missing before the last, none moved" in found.err
    assert main(["serve-keys", "--check-log", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["started", "refused"]
    assert {line["schema"] for line in lines} == {"casemate.decision/1"}
    log = tmp_path / "data/key-release/decisions.jsonl"
    log.write_bytes(log.read_bytes().replace(b"started", b"stopped"))
    assert main(["serve-keys", "--check-log"]) == 2


# ---- the connection alone --------------------------------------------------------------------------------------------


def test_an_answer_that_nobody_takes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_DEADLINE_S", 0.3)
    ours, theirs = socket.socketpair()
    big = Answer(200, b"x" * (8 << 20))
    thread = threading.Thread(target=Connection(ours, "x", lambda _: big, body_limit).serve)
    thread.start()
    theirs.sendall(b"GET /kbs/v0/resource/a/b/c HTTP/1.1\r\nHost: x\r\n\r\n")
    thread.join(30)
    assert not thread.is_alive()
    theirs.close()
    ours.close()


def test_a_bug_of_ours_ends_one_connection(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def broken(_: Asked) -> Answer:
        raise ZeroDivisionError

    server = Server(broken)
    server.listen_unix(f"{tmp_path}/s")
    thread = threading.Thread(target=server.run)
    thread.start()
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(30)
            channel.connect(f"{tmp_path}/s")
            channel.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert channel.recv(1) == b""
    server.stop()
    thread.join()
    server.close()
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_defaults_are_what_the_document_says() -> None:
    assert (http.REQUEST_DEADLINE_S, http.HEAD_MAX_BYTES, listen.CONNECTIONS_MAX) == (10.0, 16384, 64)
    assert isinstance(Tls("a", "b"), Tls)
    assert KeyServer.__doc__


def test_a_broker_that_ends_leaves_the_port_to_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor keeps the host's end and lends copies: a shutdown would end the guest's port for good."""
    monkeypatch.setattr(http, "SILENCE_S", 0.1)
    write_policy(tmp_path, NOTHING)
    guest, supervisors = socket.socketpair()
    guest.settimeout(30)
    client = Client(lambda: guest)
    for _ in range(2):
        with serving(tmp_path, lambda server: server.serve_port(supervisors.dup(), "web")) as place:
            assert client.auth("snp").status == 200
        assert "vm web" not in [item.peer for item in place.log() if item.event == "refused"]
    guest.close()
    supervisors.close()


def test_each_run_of_a_vm_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "AGAIN_S", 0.05)
    runs = [socket.socketpair() for _ in range(2)]
    waiting: list[socket.socket | None] = [None, runs[0][1], None, runs[1][1]]
    server = Server(lambda _: Answer(200, b"{}"))
    server.follow_port(lambda: waiting.pop(0) if waiting else None, "web")
    for guest, _ in runs:
        guest.settimeout(30)
        guest.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(guest).status == 200
        guest.close()
    server.close()
    assert not waiting


def test_a_request_for_the_head_alone_gets_the_head_alone(place: Place) -> None:
    with place.connect() as channel:
        channel.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        found = b""
        while piece := channel.recv(65536):
            found += piece
    assert found.startswith(b"HTTP/1.1 404 ")
    assert found.endswith(b"\r\n\r\n")
