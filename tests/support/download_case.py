"""Downloads against servers that misbehave, on the loopback of a network namespace of its own.

Run as a program inside the namespace; prints one JSON document: name of the case -> what came of it.
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import http.server
import ipaddress
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from casemate.cell.intake import Wanted, take_in
from casemate.cell.sources import opened_source
from casemate.engine.paths import Paths
from casemate.errors import CasemateError
from casemate.image import store_download
from casemate.image.store import Store
from casemate.image.store_download import downloaded
from casemate.image.store_import import digest_of

CONTENT = b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(40_000))
OTHER = CONTENT[::-1]
SEEN: dict[str, list[dict[str, str]]] = {}


def certificate(directory: Path, address: str, *more: str) -> tuple[Path, Path]:
    """A self-signed certificate for addresses, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name)) for name in (address, *more)]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, secret = directory / f"{address}.pem", directory / f"{address}.key"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, secret


class Handler(http.server.BaseHTTPRequestHandler):
    """Each path misbehaves in its own way."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.split("?")[0].strip("/")
        seen = SEEN.setdefault(name, [])
        seen.append({key.lower(): value for key, value in self.headers.items()})
        self.close_connection = True
        getattr(self, "get_" + name.replace("-", "_"))(len(seen))

    def begin(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()

    def whole(self, data: bytes = CONTENT, etag: str = '"one"', sent: int | None = None) -> None:
        headers = {"ETag": etag} if etag else {}
        self.begin(200, Content_Length=str(len(data)), **headers)
        self.wfile.write(data[:sent])

    def rest(self, data: bytes = CONTENT, etag: str = '"one"', shift: int = 0) -> None:
        asked = self.headers.get("Range", "")
        if not asked or self.headers.get("If-Range") != etag:
            self.whole(data, etag)
            return
        at = int(asked.removeprefix("bytes=").rstrip("-"))
        span = f"bytes {at + shift}-{len(data) - 1}/{len(data)}"
        self.begin(206, Content_Length=str(len(data) - at), Content_Range=span, ETag=etag)
        self.wfile.write(data[at:])

    def get_plain(self, _count: int) -> None:
        self.whole()

    def get_disk(self, _count: int) -> None:
        self.whole(gzip.compress(bytes(510) + b"\x55\xaa" + bytes((1 << 20) - 512)))

    def get_breaks(self, count: int) -> None:
        self.whole(sent=500_000) if count == 1 else self.rest()

    def get_killed(self, count: int) -> None:
        if count == 1:
            self.whole(sent=600_000)
            self.wfile.flush()
            time.sleep(5)
        else:
            self.rest()

    def get_changed(self, count: int) -> None:
        self.whole(sent=500_000) if count == 1 else self.rest(OTHER, '"two"')

    def get_lying_range(self, count: int) -> None:
        self.whole(sent=500_000) if count == 1 else self.rest(shift=5)

    def get_ignores_range(self, count: int) -> None:
        self.whole(sent=500_000 if count == 1 else None)

    def get_weak(self, count: int) -> None:
        self.whole(etag='W/"one"', sent=500_000 if count == 1 else None)

    def get_shorter(self, count: int) -> None:
        if count == 1:
            self.whole(sent=500_000)
        elif self.headers.get("Range"):
            self.begin(416, Content_Range="bytes */10", Content_Length="0")
        else:
            self.whole(b"0123456789", '"two"')

    def get_endless(self, _count: int) -> None:
        self.begin(200, ETag='"one"')
        try:
            while True:
                self.wfile.write(bytes(65536))
        except OSError:
            pass

    def get_huge(self, _count: int) -> None:
        self.begin(200, Content_Length=str(1 << 50))

    def get_unknown_length(self, _count: int) -> None:
        self.begin(200)
        self.wfile.write(CONTENT)

    def get_to_http(self, _count: int) -> None:
        self.begin(302, Location="http://127.0.0.1:1/plain", Content_Length="0")

    def get_to_file(self, _count: int) -> None:
        self.begin(302, Location="file:///etc/passwd", Content_Length="0")

    def get_to_password(self, _count: int) -> None:
        self.begin(302, Location="https://a:b@127.0.0.1/plain", Content_Length="0")

    def get_moved(self, _count: int) -> None:
        self.begin(302, Location="/plain", Content_Length="0")

    def get_loop(self, _count: int) -> None:
        self.begin(302, Location="/loop", Content_Length="0")

    def get_missing(self, _count: int) -> None:
        self.begin(404, Content_Length="0")

    def get_busy(self, _count: int) -> None:
        self.begin(503, Content_Length="0")

    def get_slow(self, _count: int) -> None:
        self.begin(200, Content_Length="100000", ETag='"one"')
        try:
            while True:
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    def get_long_header(self, _count: int) -> None:
        self.begin(200, X_Bomb="x" * 1_000_000, Content_Length="1")

    def get_nonsense(self, _count: int) -> None:
        self.wfile.write(os.urandom(2000))


def serve(address: str, chain: Path, secret: Path) -> int:
    """A server; its port."""
    server = http.server.ThreadingHTTPServer((address, 0), Handler)
    server.daemon_threads = True
    setattr(server, "handle_error", lambda *_: None)  # noqa: B010  broken pipes are the point
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, secret)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def loopback_up() -> None:
    """``ip link set lo up``, without ip(8)."""
    import fcntl
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40).ljust(40, b"\0"))


def imported(store: Store, url: str, chain: Path, directory: Path) -> str:
    """Name, source and what it was, of an image that was downloaded into the store."""
    paths = Paths(f"{directory}/run", f"{directory}/data", f"{directory}/cache")
    with opened_source(store, url, max_bytes=4 << 20, ca_file=str(chain)) as source:
        wanted = Wanted(name=source.name, expected_digest=digest_of(source.fd))
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
    left = len(os.listdir(f"{store.directory}/incoming"))
    shown = image.origin["source"].rpartition("/")[2]
    return f"{image.label} {shown} {image.origin['source_format']} {image.virtual_size_bytes} {left}"


def main() -> None:
    """Every case, one after the other."""
    directory = Path(sys.argv[1])
    loopback_up()
    chain, secret = certificate(directory, "127.0.0.1")
    port, other_port = (serve(address, chain, secret) for address in ("127.0.0.1", "127.0.0.2"))
    store = Store(str(directory / "images"))
    store_download.ATTEMPTS = 2  # type: ignore[misc]
    store_download.WINDOW_S = 0.4  # type: ignore[misc]
    results: dict[str, Any] = {}

    def get(url: str, ca_file: Path | None = chain) -> str:
        try:
            with downloaded(store, url, max_bytes=4 << 20, ca_file=str(ca_file) if ca_file else None) as fd:
                data = os.pread(fd, 1 << 24, 0)
        except CasemateError as error:
            return f"{type(error).__name__}: {error}"
        known = {CONTENT: "whole", OTHER: "other", b"0123456789": "ten"}
        return known.get(data, f"{len(data)} bytes of something else")

    def url_of(name: str) -> str:
        return f"https://127.0.0.1:{port}/{name}"

    def case(name: str, action: Callable[[], str]) -> None:
        came = action()
        results[name] = {
            "came": came,
            "ranges": [request.get("range", "") for request in SEEN.get(name, [])],
            "kept": os.path.exists(f"{store.directory}/downloads/{hashlib.sha256(url_of(name).encode()).hexdigest()}"),
        }

    for name in sorted(word.removeprefix("get_").replace("_", "-") for word in dir(Handler) if word.startswith("get_")):
        if name != "killed":
            case(name, lambda name=name: get(url_of(name)))  # type: ignore[misc]
    case("imported", lambda: imported(store, url_of("disk") + "?token=secret", chain, directory))
    case("unknown-authority", lambda: get(f"https://127.0.0.1:{port}/plain", None))
    case("other-host", lambda: get(f"https://127.0.0.2:{other_port}/plain"))
    case("nobody-listens", lambda: get("https://127.0.0.1:1/plain"))
    child = os.fork()
    if child == 0:
        get(url_of("killed"))
        os._exit(0)
    time.sleep(1.0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    case("killed", lambda: get(url_of("killed")))
    print(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
