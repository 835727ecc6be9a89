"""Trace passt: from its exec to the point where it has loaded its own filter and waits, and then with real traffic.

    python tools/trace/trace_passt.py --kernel-root UNPACKED_KERNEL_PACKAGE --work DIR --out tests/data/traces

Two network namespaces, joined by a veth pair, stand for the host and for the internet; the machine's own network is not
touched. A Linux guest under TCG behind passt does DHCP, ARP, ping, TCP and UDP; the "internet" connects to a published
port. passt runs as an unprivileged user without capabilities, as in a launch.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import linux_guest
from qemu_session import USER_ID
from strace_summary import PATH_CALLS, summarise, to_json

HOST, INTERNET = "casemate-trace-host", "casemate-trace-net"
SERVER = """
import http.server, socket, threading
def echo(family, address):
    s = socket.socket(family, socket.SOCK_DGRAM); s.bind((address, 53))
    while True:
        data, who = s.recvfrom(2048); s.sendto(data, who)
def sink():
    with socket.create_server(("10.77.0.2", 9090)) as s:
        while True:
            peer, _ = s.accept()
            while peer.recv(65536): pass
            peer.sendall(b"done"); peer.close()
class Six(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
handler = http.server.SimpleHTTPRequestHandler
for work in (lambda: echo(socket.AF_INET, "10.77.0.2"), lambda: echo(socket.AF_INET6, "fd00:77::2"), sink,
             Six(("fd00:77::2", 8080), handler).serve_forever):
    threading.Thread(target=work, daemon=True).start()
http.server.ThreadingHTTPServer(("10.77.0.2", 8080), handler).serve_forever()
"""
CLIENT = """
import socket, time
end = time.monotonic() + 30
while time.monotonic() < end:
    try:
        with socket.create_connection(("10.77.0.1", 2222), 2) as s:
            s.settimeout(3); s.sendall(b"hello\\n"); print(s.recv(100)); break
    except OSError as error:
        print(error); time.sleep(0.5)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    for _ in range(5):
        s.sendto(b"datagram", ("10.77.0.1", 2223)); time.sleep(0.1)
"""
PASST = (
    "passt", "--foreground", "--stderr", "--fd", "{fd}", "--address", "10.0.2.15", "--netmask", "24",
    "--gateway", "10.0.2.2", "--address", "fd00:2::15", "--gateway", "fd00:2::2", "--no-map-gw", "--interface", "eth0", "--dns", "10.77.0.2", "--search", "none",
    "--tcp-ports", "10.77.0.1/2222:22", "--udp-ports", "10.77.0.1/2223:23",
)  # fmt: skip


def ip(*words: str) -> None:
    """Run ip(8)."""
    subprocess.run(["ip", *words], check=True)


def make_namespaces() -> None:
    """Both namespaces, addresses, a default route out of the host's."""
    for name in (HOST, INTERNET):
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    ip("link", "add", "eth0", "netns", HOST, "type", "veth", "peer", "name", "eth0", "netns", INTERNET)
    for name, address in ((HOST, "10.77.0.1/24"), (INTERNET, "10.77.0.2/24")):
        ip("-n", name, "addr", "add", address, "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
    for name, address in ((HOST, "fd00:77::1/64"), (INTERNET, "fd00:77::2/64")):
        ip("-n", name, "addr", "add", address, "dev", "eth0", "nodad")
    ip("-n", HOST, "route", "add", "default", "via", "10.77.0.2")
    ip("-n", HOST, "-6", "route", "add", "default", "via", "fd00:77::2")
    setting = f"{USER_ID} {USER_ID}"
    subprocess.run(within(HOST, "sysctl", "-qw", f"net.ipv4.ping_group_range={setting}"), check=True)


def within(namespace: str, *words: str) -> list[str]:
    """A command inside a network namespace."""
    return ["ip", "netns", "exec", namespace, *words]


def start_guest(peer: socket.socket, kernel: Path, initrd: Path, console: Path) -> subprocess.Popen[bytes]:
    """An unconfined Linux guest whose network is ``peer``; its console is a file."""
    os.set_inheritable(peer.fileno(), True)
    return subprocess.Popen(
        ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg", "-cpu", "qemu64",
         "-m", "256", "-no-reboot", "-kernel", str(kernel), "-initrd", str(initrd), "-serial", f"file:{console}", "-append",
         "console=ttyS0 quiet panic=-1 steps=passt,off", "-netdev",
         f"stream,id=n,addr.type=fd,addr.str={peer.fileno()},server=off",
         "-device", "virtio-net-pci,netdev=n,romfile="],
        stdin=subprocess.DEVNULL, pass_fds=[peer.fileno()],
    )  # fmt: skip


def trace(work: Path, out: Path, kernel: Path, initrd: Path, inject: list[str]) -> None:
    """Run everything once and write the summary."""
    ours, theirs = socket.socketpair()
    os.set_inheritable(ours.fileno(), True)
    log = work / "passt.log"
    words = [word.format(fd=ours.fileno()) for word in PASST]
    command = within(HOST, "strace", "-f", "-qq", "-ttt", "-X", "raw", "-s", "200", "-e", "signal=none",
                     "-e", "raw=!" + ",".join(PATH_CALLS), *inject, "-o", str(log), "setpriv", f"--reuid={USER_ID}",
                     f"--regid={USER_ID}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", *words)  # fmt: skip
    passt = subprocess.Popen(command, env={"PATH": os.environ["PATH"]}, pass_fds=[ours.fileno()])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "index.html").write_text("x" * 3_000_000)
        server = subprocess.Popen(within(INTERNET, sys.executable, "-c", SERVER), cwd=folder, stderr=subprocess.DEVNULL)
        try:
            time.sleep(2)
            boundary = time.time()
            guest = start_guest(theirs, kernel, initrd, work / "passt.console")
            theirs.close()
            time.sleep(25)
            client = subprocess.run(within(INTERNET, sys.executable, "-c", CLIENT), capture_output=True, check=False)
            print(client.stdout[-500:])
            try:
                guest.wait(120)
            finally:
                guest.kill()
                guest.wait()
            ours.close()
            passt.wait(20)
        finally:
            server.kill()
            server.wait()
    version = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", "passt"], capture_output=True, text=True, check=True
    )
    summary = summarise(log.read_text(errors="replace"), boundary, "passt")
    about = {"name": "passt-traffic", "program": "passt", "version": version.stdout}
    about["about"] = "DHCP, ping, TCP and UDP over IPv4 and IPv6, published ports"
    (out / "passt-traffic.json").write_text(to_json(summary, **about))
    notes = "".join(f"{call}: {note}\n" for call in sorted(summary.notes) for note in sorted(summary.notes[call]))
    (work / "passt.notes").write_text(notes)


def main() -> int:
    """Make the namespaces, trace, remove them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel-root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    kernel, initrd = linux_guest.build(options.kernel_root, Path("/bin/busybox"), options.work / "guest-passt")
    try:
        make_namespaces()
        trace(options.work, options.out, kernel, initrd, [])
    finally:
        for name in (HOST, INTERNET):
            subprocess.run(["ip", "netns", "del", name], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
