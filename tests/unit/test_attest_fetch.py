"""What makers publish, fetched from services of ours over TLS, kept in a cache, and used offline."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import pytest
from cryptography import x509 as pyca
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.evidence_makers import CHIP, Authority, Chip, pem_of, snp_report

from casemate import attests
from casemate.cli.main import main
from casemate.engine import collateral, paths
from casemate.errors import HostError, InputError
from casemate.evidence import snp_true, verify_snp, wanted

NOW = datetime.datetime.now(datetime.UTC)
MILAN = Chip()
HOUR = datetime.timedelta(hours=1)
"""Longer than any run of the tests: NOW is when they were loaded."""
Answers = dict[str, Any]


class Service(http.server.BaseHTTPRequestHandler):
    """Answers by path: a status, (body, headers), or what writes the answer."""

    answers: ClassVar[Answers] = {}

    def do_GET(self) -> None:
        found: Any = self.answers.get(self.path, self.answers.get(self.path.partition("?")[0], 404))
        if callable(found):
            with contextlib.suppress(OSError):
                found(self)
            return
        code = found if isinstance(found, int) else 200
        body, headers = (b"", {}) if isinstance(found, int) else found
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: a test's output is its own."""


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(certificate, key) of 127.0.0.1, its own authority."""
    directory = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = pyca.Name([pyca.NameAttribute(pyca.NameOID.COMMON_NAME, "service")])
    certificate = (
        pyca.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - datetime.timedelta(days=1))
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .add_extension(pyca.SubjectAlternativeName([pyca.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(pyca.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(directory / "cert.pem"), str(directory / "key.pem")


@pytest.fixture
def service(tls: tuple[str, str]) -> Iterator[Callable[[Answers], str]]:
    """Starts a service with these answers; its https URL."""
    running = []

    def start(answers: Answers) -> str:
        handler = type("Handler", (Service,), {"answers": answers})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        running.append((server, thread))
        return f"https://127.0.0.1:{server.server_address[1]}"

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of our own, and our chip believed."""
    own = paths.Paths(*(str(tmp_path / name) for name in ("run", "data", "cache")))
    monkeypatch.setattr(paths, "default_paths", lambda: own)
    for module in (snp_true, verify_snp, wanted):
        monkeypatch.setattr(module, "AMD_ROOTS", {MILAN.root.digest: "Milan"})
    authorities = (MILAN.middle.certificate, MILAN.root.certificate)
    monkeypatch.setattr(collateral, "known_authorities", lambda: authorities)
    monkeypatch.setattr("casemate.engine.authorities.known_authorities", lambda: authorities)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "report.bin").write_bytes(MILAN.sign(snp_report()))
    (tmp_path / "strict.toml").write_text("format = 1\nrequire-revocation-lists = true\n")
    return tmp_path


def amd(*, revoked: tuple[Authority, ...] = (), end: datetime.datetime | None = None) -> Answers:
    begin = NOW - datetime.timedelta(days=400)
    crl = MILAN.root.revokes(*revoked, begin=begin, end=end or NOW + datetime.timedelta(days=30))
    return {f"/vcek/v1/Milan/{CHIP.hex()}": (MILAN.leaf.der, {}), "/vcek/v1/Milan/crl": (crl, {})}


def test_where_amd_has_it() -> None:
    report = MILAN.sign(snp_report())
    vcek, crl = wanted.wanted_for(report)
    assert vcek.urls == {
        "vcek": f"https://kdsintf.amd.com/vcek/v1/Milan/{CHIP.hex()}?blSPL=04&teeSPL=01&snpSPL=22&ucodeSPL=213"
    }
    assert crl.urls == {"list": "https://kdsintf.amd.com/vcek/v1/Milan/crl"}
    turin = {"fmc": 2, "bootloader": 4, "tee": 1, "snp": 22, "microcode": 13}
    (vcek, _) = wanted.wanted_for(snp_report(cpuid=(0x1A, 2, 0), tcb=turin))
    assert vcek.urls["vcek"].endswith(f"/Turin/{CHIP[:8].hex()}?fmcSPL=02&blSPL=04&teeSPL=01&snpSPL=22&ucodeSPL=13")
    assert [item.urls for item in wanted.wanted_for(snp_report(flags=4))] == [
        {"list": "https://kdsintf.amd.com/vlek/v1/Milan/crl"}
    ]
    assert [item.kind for item in wanted.wanted_for(snp_report(chip=bytes(64)))] == ["list"], "no chip, no certificate"
    assert len({item.name for item in wanted.wanted_for(snp_report(version=2))}) == 4, "Milan or Genoa"
    assert wanted.wanted_for(b"\x84\x44\xa1\x01\x38\x22") == ()


def test_fetched_once_and_verified_offline(
    here: Path, service: Callable[[Answers], str], tls: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    report, policy = str(here / "report.bin"), str(here / "strict.toml")
    assert main(["attest", "verify", report]) == 1
    assert "[certificate]" in capsys.readouterr().out
    url = service(amd())
    line = ["attest", "fetch", report, "--kds", url, "--ca-file", tls[0]]
    assert main([*line, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "casemate.attest-fetch/1"
    assert [item["state"] for item in document["items"]] == ["fetched", "fetched"]
    assert all((here / "cache/collateral" / item["name"]).stat().st_mode & 0o777 == 0o600 for item in document["items"])
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert shown.count("cached") == 2
    assert main([*line, "--refresh"]) == 0
    assert capsys.readouterr().out.count("fetched") == 2
    assert main(["attest", "verify", report, "--policy", policy]) == 0
    assert "checked: nothing in the chain" in capsys.readouterr().out
    assert main(["attest", "verify", report, "--no-cache"]) == 1
    capsys.readouterr()
    # As of a year before the list was made nobody had it; the certificate holds then too.
    past = (NOW - datetime.timedelta(days=500)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert main(["attest", "verify", report, "--at", past]) == 0
    assert "not known" in capsys.readouterr().out


def test_what_was_revoked_meanwhile(
    here: Path, service: Callable[[Answers], str], tls: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    report = str(here / "report.bin")
    for answers, code, word in (
        (amd(end=NOW + HOUR), 0, "checked"),
        (amd(revoked=(MILAN.middle,)), 1, "[revoked]"),
        (amd(end=NOW - HOUR), 1, "[revocation.time]"),
    ):
        done = main(["attest", "fetch", report, "--refresh", "--kds", service(answers), "--ca-file", tls[0]])
        assert done == 0
        capsys.readouterr()
        assert main(["attest", "verify", report]) == code
        assert word in capsys.readouterr().out


def _slow(handler: Service) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(600):
        handler.wfile.write(b"x")
        time.sleep(0.1)


def _endless(handler: Service) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        handler.wfile.write(bytes(1 << 16))


def _short(handler: Service) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
    handler.close_connection = True


CRL = "/vcek/v1/Milan/crl"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (404, "HTTP 404"),
        (302, "HTTP 302"),
        ((b"<html>", {}), "not DER"),
        ((Authority("ARK-Milan").revokes(), {}), "no known authority signed"),
        ((MILAN.leaf.der, {}), ""),
        (_endless, "answers too much"),
        (_short, "broke off"),
    ],
    ids=["missing", "redirection", "html", "forged", "another", "endless", "short"],
)
def test_services_that_misbehave(
    here: Path,
    service: Callable[[Answers], str],
    tls: tuple[str, str],
    answer: Any,
    said: str,
) -> None:
    """Each failure is of that item alone, says what it was, and leaves what the cache had."""
    report = str(here / "report.bin")
    attests.fetch_collateral([report], amd=service(amd()), ca_file=tls[0])
    before = {path.name: path.read_bytes() for path in (here / "cache/collateral").iterdir()}
    found = attests.fetch_collateral([report], amd=service({**amd(), CRL: answer}), ca_file=tls[0], refresh=True)
    assert [item["state"] for item in found] == ["fetched", "failed"]
    assert said in found[1]["error"]
    assert {path.name: path.read_bytes() for path in (here / "cache/collateral").iterdir()} == before


def test_a_service_that_trickles_is_cut_off(
    here: Path, service: Callable[[Answers], str], tls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers without an end, an octet at a time: no single wait is long."""
    report = str(here / "report.bin")
    attests.fetch_collateral([report], amd=service({**amd(), CRL: 404}), ca_file=tls[0])
    monkeypatch.setattr(collateral, "DEADLINE_S", 1.0)
    found = attests.fetch_collateral([report], amd=service({CRL: _slow}), ca_file=tls[0])
    assert [item["state"] for item in found] == ["cached", "failed"]
    assert "takes too long" in found[1]["error"]


@pytest.mark.usefixtures("here")
def test_a_handshake_that_ends_too_late_is_the_end(
    service: Callable[[Answers], str], tls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it lasts there is no socket yet that could be cut: what trickles afterwards must not start."""
    asked = threading.Event()

    def trickle(handler: Service) -> None:
        asked.set()
        _slow(handler)

    def late(self: ssl.SSLSocket, *more: Any) -> None:
        handshake(self, *more)
        if not self.server_side:
            time.sleep(max(end + 0.2 - time.monotonic(), 0))

    handshake = ssl.SSLSocket.do_handshake
    monkeypatch.setattr(ssl.SSLSocket, "do_handshake", late)
    url = service({"/list": trickle})
    end = time.monotonic() + 1.0
    with pytest.raises(HostError, match="takes too long"):
        collateral.download(f"{url}/list", ssl.create_default_context(cafile=tls[0]), end)
    assert not asked.is_set()


def test_through_a_proxy_the_server_itself_is_verified(
    here: Path, service: Callable[[Answers], str], tls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[bytes]] = []

    def relay(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def proxy() -> None:
        channel, _ = listener.accept()
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += channel.recv(1)
        asked.append(head.split()[:2])
        port = int(head.split()[1].rpartition(b":")[2])
        with channel, socket.create_connection(("127.0.0.1", port)) as server:
            channel.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=relay, args=(server, channel), daemon=True)
            back.start()
            relay(channel, server)
            back.join()

    url = service({"/list": (b"a list", {})})
    context = ssl.create_default_context(cafile=tls[0])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=proxy, daemon=True)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://localhost:{listener.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        answer = collateral.download(f"{url}/list", context, time.monotonic() + 60)
        thread.join()
    assert answer.body == b"a list"
    assert asked == [[b"CONNECT", url.removeprefix("https://").encode()]]


def test_a_busy_service_says_how_long(here: Path, service: Callable[[Answers], str], tls: tuple[str, str]) -> None:
    def busy(handler: Service) -> None:
        handler.send_response(429)
        handler.send_header("Retry-After", "30")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    url = service({"/": busy})
    with pytest.raises(HostError) as caught:
        collateral.download(f"{url}/", collateral._context(tls[0]), time.monotonic() + 20)
    assert (caught.value.got, caught.value.next_step) == ("HTTP 429", "the service asks to wait 30 s")


def test_servers_are_verified_and_https_is_all_there_is(here: Path, service: Callable[[Answers], str]) -> None:
    (vcek, crl) = attests.fetch_collateral([str(here / "report.bin")], amd=service(amd()))
    assert vcek["state"] == crl["state"] == "failed"
    assert "certificate verify failed" in vcek["error"].lower()
    with pytest.raises(InputError, match="https"):
        collateral.download("http://127.0.0.1/", collateral._context(None), time.monotonic() + 5)


def test_a_report_of_version_2_may_be_of_either_product(
    here: Path, service: Callable[[Answers], str], tls: tuple[str, str]
) -> None:
    (here / "old.bin").write_bytes(MILAN.sign(snp_report(version=2)))
    answers = {**amd(), "/vcek/v1/Genoa/crl": 404}
    found = attests.fetch_collateral([str(here / "old.bin")], amd=service(answers), ca_file=tls[0])
    states = {item["what"]: item["state"] for item in found}
    assert states["Milan VCEK"] == "fetched"
    assert states["Genoa VCEK"] == "not-needed"


def test_what_is_wrong_in_the_cache_is_taken_for_absent(here: Path) -> None:
    (item, *_) = wanted.wanted_for((here / "report.bin").read_bytes())
    directory = here / "cache/collateral"
    directory.mkdir(parents=True, mode=0o700)
    for content in (b"", b"garbage", MILAN.root.revokes(), bytes(wanted.MAX_ANSWER_BYTES + 1)):
        (directory / item.name).write_bytes(content)
        assert collateral.cached(str(here / "cache"), item) is None
    assert main(["attest", "verify", str(here / "report.bin")]) == 1


# ---- Intel -----------------------------------------------------------------------------------------------------------


def intel(*, begin: datetime.datetime, end: datetime.datetime) -> Answers:
    """Answers of a PCS whose root is ours."""
    root = Authority("Intel SGX Root CA")
    platform = Authority("Intel SGX PCK Platform CA", root)
    signer = Authority("Intel SGX TCB Signing", root, is_authority=False)
    times = {"issueDate": _text(begin), "nextUpdate": _text(end), "tcbEvaluationDataNumber": 18}
    info = json.dumps({"tcbInfo": {"id": "TDX", **times}, "signature": "00" * 64}, separators=(", ", " : ")).encode()
    identity = json.dumps({"enclaveIdentity": {"id": "TD_QE", **times}, "signature": "11" * 64}).encode()
    lists = platform.revokes(begin=begin, end=end)
    return {
        "/sgx/certification/v4/rootcacrl": (root.revokes(begin=begin, end=end).hex().encode(), {}),
        "/sgx/certification/v4/pckcrl": (lists, {"SGX-PCK-CRL-Issuer-Chain": quote(pem_of(platform, root))}),
        "/tdx/certification/v4/tcb": (info, {"TCB-Info-Issuer-Chain": quote(pem_of(signer, root))}),
        "/tdx/certification/v4/qe/identity": (
            identity,
            {"SGX-Enclave-Identity-Issuer-Chain": quote(pem_of(signer, root))},
        ),
    }


def _text(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _item(url: str) -> wanted.Wanted:
    base = f"{url}/sgx/certification/v4"
    urls = {
        "root_ca_crl": f"{base}/rootcacrl",
        "pck_crl": f"{base}/pckcrl?ca=platform&encoding=der",
        "tcb_info": f"{url}/tdx/certification/v4/tcb?fmspc=00906ED50000",
        "qe_identity": f"{url}/tdx/certification/v4/qe/identity",
    }
    return wanted.Wanted("collateral", "intel.json", "collateral", urls)


def test_intels_answers_become_one_collateral(
    here: Path, service: Callable[[Answers], str], tls: tuple[str, str]
) -> None:
    answers = intel(begin=NOW - HOUR, end=NOW + datetime.timedelta(days=3))
    item, cache = _item(service(answers)), str(here / "cache")
    (found,) = collateral.fetch(cache, (item,), NOW, ca_file=tls[0])
    assert (found.state, found.until) == ("fetched", (NOW + datetime.timedelta(days=3)).replace(microsecond=0))
    content = json.loads(collateral.cached(cache, item) or b"")
    signed = answers["/tdx/certification/v4/tcb"][0].decode()
    assert content["tcb_info"] in signed, "what is signed stays as it came, spaces included"
    assert content["tcb_info"].startswith('{"id" : "TDX"')
    assert bytes.fromhex(content["root_ca_crl"]) == bytes.fromhex(
        answers["/sgx/certification/v4/rootcacrl"][0].decode()
    )
    assert content["tcb_info_issuer_chain"].startswith("-----BEGIN CERTIFICATE-----")
    (again,) = collateral.fetch(cache, (item,), NOW + datetime.timedelta(days=1), ca_file=tls[0])
    assert again.state == "cached"
    (late,) = collateral.fetch(cache, (item,), NOW + datetime.timedelta(days=4), ca_file=tls[0])
    assert late.state == "fetched", "it had run out"


@pytest.mark.parametrize("path", ["/tdx/certification/v4/tcb", "/sgx/certification/v4/pckcrl"])
def test_half_a_collateral_is_none(
    here: Path, service: Callable[[Answers], str], tls: tuple[str, str], path: str
) -> None:
    answers = intel(begin=NOW, end=NOW + HOUR)
    broken: Any
    for broken in ((answers[path][0], {}), (b"{}", answers[path][1]), 500):
        item = _item(service({**answers, path: broken}))
        (found,) = collateral.fetch(str(here / "cache"), (item,), NOW, ca_file=tls[0])
        assert found.state == "failed"
        assert collateral.cached(str(here / "cache"), item) is None


def test_where_google_has_it() -> None:
    from tests.fuzz import fuzz_evidence

    from casemate.evidence import gotpm

    key = fuzz_evidence.key()
    for url, names in (
        (
            "https://pki.goog/cloud_integrity/tpm_ek_intermediate_9.crl",
            ["tpm_ek_intermediate_9.crl", "tpm_ek_root_1.crl"],
        ),
        ("https://elsewhere.invalid/cloud_integrity/x.crl", []),
        ("https://pki.goog/cloud_integrity/../x.crl", []),
        ("https://pki.goog/cloud_integrity/x.crl.example", []),
    ):
        leaf = Authority("AK", is_authority=False, key=key.key, list_url=url)
        data = fuzz_evidence._gotpm() + fuzz_evidence._field(6, leaf.der)
        assert gotpm.parse_gotpm(data).certificate == leaf.der
        found = wanted.wanted_for(data)
        assert [item.urls["list"] for item in found] == [f"https://pki.goog/cloud_integrity/{name}" for name in names]
    assert wanted.wanted_for(fuzz_evidence._gotpm()) == ()


VECTORS = Path(__file__).parents[3] / "shared/vectors"


@pytest.mark.skipif(not VECTORS.is_dir(), reason="shared/vectors is not beside this checkout")
def test_a_real_quote_with_real_collateral_from_a_service_of_ours(
    here: Path, service: Callable[[Answers], str], tls: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    real = json.loads((VECTORS / "tdx/dcap-qvl-tdx-v4.collateral.json").read_bytes())
    info = '{"tcbInfo":' + real["tcb_info"] + ',"signature":"' + real["tcb_info_signature"] + '"}'
    identity = '{"enclaveIdentity":' + real["qe_identity"] + ',"signature":"' + real["qe_identity_signature"] + '"}'
    chains = {name: quote(real[name]) for name in ("pck_crl_issuer_chain", "tcb_info_issuer_chain")}
    answers: Answers = {
        "/sgx/certification/v4/rootcacrl": (real["root_ca_crl"].encode(), {}),
        "/sgx/certification/v4/pckcrl": (
            bytes.fromhex(real["pck_crl"]),
            {"SGX-PCK-CRL-Issuer-Chain": chains["pck_crl_issuer_chain"]},
        ),
        "/tdx/certification/v4/tcb": (info.encode(), {"TCB-Info-Issuer-Chain": chains["tcb_info_issuer_chain"]}),
        "/tdx/certification/v4/qe/identity": (
            identity.encode(),
            {"SGX-Enclave-Identity-Issuer-Chain": quote(real["qe_identity_issuer_chain"])},
        ),
    }
    evidence = str(VECTORS / "tdx/dcap-qvl-tdx-v4.quote")
    assert main(["attest", "fetch", evidence, "--pcs", service(answers), "--ca-file", tls[0]]) == 0
    capsys.readouterr()
    assert main(["attest", "verify", evidence, "--at", "2025-06-20T00:00:00Z"]) == 0
    assert "UpToDate" in capsys.readouterr().out
    assert main(["attest", "verify", evidence]) == 1
    assert "refused: out of its time" in capsys.readouterr().out
