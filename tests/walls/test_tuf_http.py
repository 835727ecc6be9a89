"""A TUF repository over HTTP, in a network namespace of our own: endless, slow, redirecting, broken servers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.wall

SCRIPT = r"""
import datetime, http.server, os, sys, threading, time
from pathlib import Path
from casemate.errors import ImageError
from casemate.image import tuf_client
from casemate.image.tuf_repo import add_target, create, publish

where = Path(sys.argv[1])
NOW = datetime.datetime.now(tz=datetime.UTC)
WORD = lambda role: b"correct horse"
repo, keys = str(where / "repo"), str(where / "keys")
create(repo, keys, {}, WORD, NOW)
(where / "content").write_bytes(b"disk" * 1000)
fd = os.open(where / "content", os.O_RDONLY)
add_target(repo, keys, "disk.raw", fd, {}, WORD, NOW)
publish(repo, keys, WORD, NOW)
root = (where / "repo/metadata/1.root.json").read_bytes()
how, seen = {"mode": "good", "part": ""}, []

class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def __init__(self, *args):
        super().__init__(*args, directory=repo)
    def log_message(self, *args):
        pass
    def do_GET(self):
        seen.append(self.path)
        if how["part"] not in self.path or how["mode"] == "good":
            return super().do_GET()
        mode = how["mode"]
        if mode == "redirect":
            self.send_response(302); self.send_header("Location", "/elsewhere"); self.send_header("Content-Length", "0")
            return self.end_headers()
        if mode.isdigit():
            return self.send_error(int(mode))
        self.send_response(200)
        if mode == "short":
            self.send_header("Content-Length", "100000"); self.end_headers()
            self.wfile.write(b"{}"); self.wfile.flush(); self.close_connection = True
            return self.connection.shutdown(2)
        self.send_header("Connection", "close"); self.end_headers()
        self.close_connection = True
        try:
            while True:
                self.wfile.write(b"x" * (65536 if mode == "endless" else 1)); self.wfile.flush()
                if mode == "slow":
                    time.sleep(0.05)
        except OSError:
            pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_address[1]}"
number = 0

def sync():
    global number
    number += 1
    with tuf_client.refreshed(url, str(where / f"state{number}"), root) as repository:
        repository.fetch("disk.raw", str(where / f"out{number}"))
    return (where / f"out{number}").read_bytes()

assert sync() == b"disk" * 1000
tuf_client.FIRST_BYTE_S = 1.0
for mode in ("endless", "slow", "redirect", "500", "403", "short"):
    for part in ("timestamp.json", "snapshot.json", "targets.json", "disk.raw"):
        how.update(mode=mode, part=part)
        began = time.monotonic()
        try:
            sync()
        except ImageError as fault:
            took = time.monotonic() - began
            print("REFUSED", mode, part, f"{took:.1f}", str(fault).splitlines()[0], flush=True)
            assert took < 20, took
        else:
            raise AssertionError((mode, part))
assert "/elsewhere" not in seen
how.update(mode="good", part="")
assert sync() == b"disk" * 1000
print("tuf: done", flush=True)
"""


def test_servers_that_attack(tmp_path: Path) -> None:
    probe = ["unshare", "--user", "--map-root-user", "--net", "ip", "link", "set", "lo", "up"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("no network namespace of our own on this host")
    script = tmp_path / "attack.py"
    script.write_text(SCRIPT)
    inside = f"ip link set lo up && exec {sys.executable} {script} {tmp_path}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", inside],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert "tuf: done" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("REFUSED") == 6 * 4
    assert "more bytes than the metadata allows" in done.stdout
    assert "a transfer that is held up" in done.stdout
