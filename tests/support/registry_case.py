"""Images out of registries, on the loopback of a network namespace of its own: Debian's registry, and one that lies.

Run as a program inside the namespace; prints one JSON document: name of the case -> what came of it.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import http.server
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

from tests.support.download_case import certificate, loopback_up

from casemate.cell.intake import Wanted, take_in
from casemate.cell.sources import opened_source
from casemate.engine.paths import Paths
from casemate.engine.registry_login import LoginChoice
from casemate.errors import CasemateError
from casemate.image import oci_registry, store_download
from casemate.image.store import Store
from casemate.spec.model import Secret

DISK = bytes(510) + b"\x55\xaa" + b"a disk of a registry".ljust(512, b"\0") + bytes((1 << 20) - 1024)
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
PORT, ELSEWHERE_PORT, REAL_PORT = 5000, 5001, 5443
MANY = ("arm64", "amd64", "unknown")
TOKEN = "anonymous-token-of-a-test"
USER, PASSWORD = "tester", "a password of a test"
HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuu1TcdHNfnKQePfxmienu/XhHmAMG18.S\n"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
REFRESH = "identity-token-of-a-test"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


def manifest(*layers: dict[str, Any]) -> bytes:
    empty = descriptor(b"{}", "application/vnd.oci.empty.v1+json")
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": empty, "layers": list(layers)}).encode()


LAYER = descriptor(DISK, "application/vnd.example.disk.raw", annotations={"org.opencontainers.image.title": "web.raw"})
GOOD = manifest(LAYER)


def index(*architectures: str) -> bytes:
    entries = [descriptor(GOOD, MANIFEST, platform={"architecture": name, "os": "linux"}) for name in architectures]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()


class Liar(http.server.BaseHTTPRequestHandler):
    """``/v2/KIND/...``: each kind lies in its own way; ``good`` does not: a token, and another host for blobs.

    ``basic``, ``bearer``, ``identity`` want a login, and are honest too; ``realm-moves`` sends who asks for a token to
    another host.
    """

    protocol_version = "HTTP/1.1"
    leaked: list[str] = []  # noqa: RUF012 - one list for all requests
    tokens = 0

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        path = self.path.split("?")[0]
        if path.startswith("/moved"):
            Liar.leaked += ["moved"] if self.headers.get("Authorization") else []
            self.answer(200, json.dumps({"token": TOKEN}).encode())
            return
        if path.startswith("/token"):
            self.give_token(path.removeprefix("/token/"))
            return
        _, _, kind, what, reference = path.split("/", 4)
        (self.give_manifest if what == "manifests" else self.give_blob)(kind, reference)

    def do_POST(self) -> None:
        """A token for an identity token (distribution, oauth.md)."""
        self.close_connection = True
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        right = form.get("refresh_token") == [REFRESH] and form.get("grant_type") == ["refresh_token"]
        right = right and form.get("scope") == ["repository:identity:pull"] and "Authorization" not in self.headers
        self.answer(200 if right else 401, json.dumps({"access_token": TOKEN}).encode())

    def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content_Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def forever(self, data: bytes, pause_s: float = 0.0) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(data)
                self.wfile.flush()
                time.sleep(pause_s)
        except OSError:
            pass

    def give_token(self, kind: str) -> None:
        Liar.tokens += 1
        if kind == "again":
            self.challenge("again")
        elif kind == "moves":
            self.answer(302, Location=f"https://127.0.0.2:{ELSEWHERE_PORT}/moved")
        elif kind == "login" and self.headers.get("Authorization") != BASIC:
            self.answer(401)
        elif kind == "bomb":
            self.forever(bytes(65536))
        else:
            said = {"injects": "a\r\nX-Evil: 1", "none": ""}.get(kind, TOKEN)
            self.answer(200, json.dumps({"token": said}).encode())

    def challenge(self, kind: str, scheme: str = "https") -> None:
        place = f"127.0.0.1:{PORT}/token/{kind}" if kind != "elsewhere" else f"127.0.0.2:{ELSEWHERE_PORT}/moved"
        realm = f'Bearer realm="{scheme}://{place}",service="liar",scope="registry:catalog:*"'
        self.answer(401, WWW_Authenticate=realm)

    def give_manifest(self, kind: str, reference: str) -> None:
        challenges = {"token-again": "again", "token-bomb": "bomb", "token-injects": "injects", "token-none": "none"}
        challenges["asks"] = "elsewhere"
        kinds = {"good": "good", "bearer": "login", "identity": "login", "realm-moves": "moves"}
        if kind in kinds and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.challenge(kinds[kind])
        elif kind == "basic" and self.headers.get("Authorization") != BASIC:
            self.answer(401, WWW_Authenticate='Digest realm="x", BASIC realm="liar"')
        elif kind in challenges:
            self.challenge(challenges[kind])
        elif kind == "realm-http":
            self.challenge("good", "http")
        elif kind == "login":
            self.answer(401, WWW_Authenticate='Basic realm="liar"')
        elif kind == "wants-more":
            self.challenge("good")
        elif kind == "manifest-bomb":
            self.forever(bytes(65536))
        elif kind == "trickle":
            self.forever(b" ", 0.05)
        elif kind in {"missing", "busy"}:
            self.answer({"missing": 404, "busy": 503}[kind])
        elif kind in {"to-http", "moved-asks"}:
            there = f"https://127.0.0.2:{ELSEWHERE_PORT}/v2/asks/manifests/1.0"
            self.answer(302, Location="http://127.0.0.1:1/" if kind == "to-http" else there)
        elif kind in {"for-many", "for-others"} and not reference.startswith("sha256:"):
            data = index(*MANY) if kind == "for-many" else index("arm64", "riscv64")
            self.answer(200, data, Content_Type=INDEX)
        else:
            self.answer(200, self.manifest_of(kind), Content_Type=MANIFEST)

    def manifest_of(self, kind: str) -> bytes:
        found = {
            "two-layers": manifest(LAYER, LAYER),
            "not-json": b"\xff\xfe nothing",
            "other-type": json.dumps({"mediaType": "application/x-other", "layers": [LAYER]}).encode(),
            "negative": manifest({**LAYER, "size": -1}),
            "odd-digest": manifest({**LAYER, "digest": "sha256:../../../../etc/passwd"}),
            "too-large": manifest({**LAYER, "size": 1 << 60}),
        }
        return found.get(kind, GOOD)

    def give_blob(self, kind: str, reference: str) -> None:
        if kind in {"good", "basic"}:
            if self.headers.get("Authorization") != (BASIC if kind == "basic" else f"Bearer {TOKEN}"):
                self.challenge("good")
            else:
                self.answer(307, Location=f"https://127.0.0.2:{ELSEWHERE_PORT}/v2/elsewhere/blobs/{reference}")
        elif kind == "other-blob":
            self.answer(200, DISK[::-1])
        elif kind == "longer-blob":
            self.answer(200, DISK + b"x")
        else:
            if self.headers.get("Authorization") and kind not in {"bearer", "identity", "realm-moves"}:
                Liar.leaked.append(kind)
            self.answer(200, DISK)


def serve(address: str, port: int, chain: Path, secret: Path) -> None:
    server = http.server.ThreadingHTTPServer((address, port), Liar)
    server.daemon_threads = True
    setattr(server, "handle_error", lambda *_: None)  # noqa: B010  broken pipes are the point
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, secret)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()


class RealRegistry:
    """Debian's docker-registry, with a disk pushed into it as its own protocol wants it."""

    def __init__(self, directory: Path, chain: Path, secret: Path) -> None:
        config = directory / "registry.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {directory}/blobs}}}}\n"
            f"http: {{addr: '127.0.0.1:{REAL_PORT}', secret: x, tls: {{certificate: {chain}, key: {secret}}}}}\n"
            f"auth: {{htpasswd: {{realm: tests, path: {directory}/htpasswd}}}}\n"
        )
        (directory / "htpasswd").write_text(HTPASSWD)
        self.process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.context = ssl.create_default_context(cafile=str(chain))
        end = time.monotonic() + 30
        while self.ask("GET", "/v2/")[0] != 200:
            assert time.monotonic() < end, "the registry does not start"
            time.sleep(0.05)

    def ask(self, method: str, path: str, data: bytes = b"", kind: str = "application/octet-stream") -> tuple[int, str]:
        connection = http.client.HTTPSConnection("127.0.0.1", REAL_PORT, context=self.context, timeout=20)
        try:
            connection.request(method, path, data, {"Content-Type": kind, "Authorization": BASIC})
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers.get("Location", "")
        except ConnectionError:
            return 0, ""
        finally:
            connection.close()

    def push(self, name: str) -> None:
        for blob in (DISK, b"{}"):
            status, place = self.ask("POST", f"/v2/{name}/blobs/uploads/")
            assert status == 202
            path = "/" + place.split("/", 3)[3] if "://" in place else place
            status, _ = self.ask("PUT", f"{path}&digest={digest(blob)}", blob)
            assert status == 201
        status, _ = self.ask("PUT", f"/v2/{name}/manifests/1.0", GOOD, MANIFEST)
        assert status == 201


def added(reference: str, chain: Path, directory: Path, login: LoginChoice | None = None) -> str:
    """What came into a new store, or the error; and what is left of the download."""
    store = Store(f"{directory}/stores/{len(os.listdir(directory / 'stores'))}")
    paths = Paths(f"{directory}/run", f"{directory}/data", f"{directory}/cache")
    try:
        with opened_source(store, reference, max_bytes=4 << 20, ca_file=str(chain), login=login) as source:
            wanted = Wanted(name=source.name, expected_digest=source.sha256, image_format="raw")
            image = take_in(
                store,
                source.fd,
                source.name,
                wanted,
                origin=source.origin,
                paths=paths,
                reserved=range(0),
                private=source.private,
            )
    except CasemateError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        left = os.listdir(f"{store.directory}/downloads") if os.path.isdir(store.directory) else []
        assert left == [], reference
    assert image.origin["oci_manifest"] == digest(index(*MANY) if "for-many" in reference else GOOD)
    return f"{image.label} {image.origin['source']}"


def private(path: Path, text: str, mode: int = 0o600) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def logins(directory: Path, chain: Path) -> dict[str, str]:
    """Registries that want a login, and what comes of each way to have one."""
    liar = f"127.0.0.1:{PORT}"
    auth = {"auth": BASIC.split()[1]}
    wrong = {"auth": base64.b64encode(f"{USER}:wrong".encode()).decode()}
    here = directory / "logins"
    known = private(here / "auth.json", json.dumps({"auths": {liar: auth, f"127.0.0.1:{REAL_PORT}": auth}}))
    helpers = here / "bin"
    private(
        helpers / "docker-credential-test",
        '#!/bin/sh\nread -r server; [ "$1 $server" = "get 127.0.0.1:5000" ] || { echo credentials not found in native '
        f'keychain; exit 1; }}\nprintf \'{{"ServerURL":"x","Username":"{USER}","Secret":"{PASSWORD}"}}\'\n',
        0o700,
    )
    os.environ["PATH"] += f":{helpers}"
    identity = private(here / "identity.json", json.dumps({"auths": {liar: {"identitytoken": REFRESH}}}))
    helped = private(here / "helped.json", json.dumps({"credHelpers": {liar: "test"}}), 0o644)
    store = private(here / "store.json", json.dumps({"auths": {liar: {}}, "credsStore": "test"}))
    missing = private(here / "missing.json", json.dumps({"credHelpers": {liar: "not-there"}}))
    stale = private(here / "stale.json", json.dumps({"auths": {liar: wrong}}))
    other = private(here / "other.json", json.dumps({"auths": {"127.0.0.1": auth, "127.0.0.1:50000": auth}}))
    open_to_all = private(here / "open.json", json.dumps({"auths": {liar: auth}}), 0o644)
    password = Secret(file=private(here / "password", f"{PASSWORD}\n"))
    ways: dict[str, tuple[str, LoginChoice | None]] = {
        "basic": ("basic", LoginChoice(known)),
        "bearer": ("bearer", LoginChoice(known)),
        "bearer-password": ("bearer", LoginChoice(user=USER, password=password)),
        "identity": ("identity", LoginChoice(identity)),
        "helper": ("basic", LoginChoice(helped)),
        "store": ("bearer", LoginChoice(store)),
        "realm-moves": ("realm-moves", LoginChoice(known)),
        "good-with-login": ("good", LoginChoice(known)),
        "moved-asks": ("moved-asks", LoginChoice(known)),
        "helper-missing": ("basic", LoginChoice(missing)),
        "helper-unasked": ("plain", LoginChoice(missing)),
        "stale": ("bearer", LoginChoice(stale)),
        "stale-basic": ("basic", LoginChoice(stale)),
        "for-another-port": ("basic", LoginChoice(other)),
        "identity-for-basic": ("basic", LoginChoice(identity)),
        "open-to-all": ("basic", LoginChoice(open_to_all)),
        "no-file": ("basic", LoginChoice(str(here / "none"))),
        "nobody": ("bearer", None),
    }
    found = {
        f"login {name}": added(f"oci://{liar}/{kind}", chain, directory, choice)
        for name, (kind, choice) in ways.items()
    }
    private(directory / "home/.docker/config.json", json.dumps({"auths": {f"https://{liar}/v2/": auth}}))
    found["login docker"] = added(f"oci://{liar}/basic", chain, directory)
    private(directory / "home/.config/containers/auth.json", json.dumps({"auths": {f"{liar}/basic": wrong}}))
    found["login podman-first"] = added(f"oci://{liar}/basic", chain, directory)
    shutil.rmtree(directory / "home")
    if shutil.which("docker-registry"):
        found["login real-none"] = added(f"oci://127.0.0.1:{REAL_PORT}/disks/web:1.0", chain, directory)
    kept = [path for path in (directory / "stores").rglob("*") if path.is_file()]
    secrets = (PASSWORD.encode(), BASIC.split()[1].encode(), REFRESH.encode(), TOKEN.encode())
    found["login kept"] = ", ".join(str(path) for path in kept if any(one in path.read_bytes() for one in secrets))
    found["login said"] = ", ".join(name for name, text in found.items() if PASSWORD in text or REFRESH in text)
    return found


def main() -> None:
    directory = Path(sys.argv[1])
    os.environ["HOME"] = str(directory / "home")
    for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE"):
        os.environ.pop(name, None)
    loopback_up()
    chain, secret = certificate(directory, "127.0.0.1", "127.0.0.2")
    stranger, _ = certificate(directory, "127.0.0.3")
    serve("127.0.0.1", PORT, chain, secret)
    serve("127.0.0.2", ELSEWHERE_PORT, chain, secret)
    (directory / "stores").mkdir()
    store_download.ATTEMPTS = 2  # type: ignore[misc]
    oci_registry.DEADLINE_S = 0.5  # type: ignore[misc]
    results: dict[str, Any] = {}
    kinds = (
        *("good", "login", "realm-http", "wants-more", "token-again", "token-bomb", "token-injects", "token-none"),
        *("manifest-bomb", "trickle", "missing", "busy", "to-http", "for-many", "for-others", "two-layers", "not-json"),
        *("other-type", "negative", "odd-digest", "too-large", "other-blob", "longer-blob"),
    )
    for kind in kinds:
        results[kind] = added(f"oci://127.0.0.1:{PORT}/{kind}", chain, directory)
    pinned = f"docker://127.0.0.1:{PORT}/pinned"
    results["pinned"] = added(f"{pinned}@{digest(GOOD)}", chain, directory)
    results["pinned-other"] = added(f"{pinned}@{digest(b'')}", chain, directory)
    results["unknown-authority"] = added(f"oci://127.0.0.1:{PORT}/plain", stranger, directory)
    results["nobody-listens"] = added("oci://127.0.0.1:1/plain", chain, directory)
    real = RealRegistry(directory, chain, secret) if shutil.which("docker-registry") else None
    try:
        if real is not None:
            real.push("disks/web")
            login = LoginChoice(user=USER, password=Secret(file=private(directory / "real", PASSWORD)))
            results["real"] = added(f"oci://127.0.0.1:{REAL_PORT}/disks/web:1.0", chain, directory, login)
            results["real-missing"] = added(f"oci://127.0.0.1:{REAL_PORT}/disks/none", chain, directory, login)
        results |= logins(directory, chain)
        results["leaked"] = Liar.leaked
    finally:
        if real is not None:
            real.process.terminate()
            real.process.wait()
    print(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
