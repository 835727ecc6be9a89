"""Trace passt: from its exec to the point where it has loaded its own filter and waits, and then with real traffic.

    python tools/trace/trace_passt.py --kernel-root UNPACKED_KERNEL_PACKAGE --work DIR --out tests/data/traces

Two network namespaces, joined by a veth pair, stand for the host and for the internet; the machine's own network is not
touched. A Linux guest under TCG behind passt does DHCP, ARP, ping, TCP and UDP; the "internet" connects to a published
port. passt runs as an unprivileged user without capabilities, as in a launch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import linux_guest
from qemu_session import USER_ID, libraries
from strace_summary import PATH_CALLS, merge, summarise, to_json

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
ENTER = """
import ctypes, os, sys
libc, (root, uid, *words) = ctypes.CDLL(None, use_errno=True), sys.argv[1:]
def must(result):
    if result: raise OSError(ctypes.get_errno(), "enter")
os.unshare(os.CLONE_NEWNS) if hasattr(os, "unshare") else must(libc.unshare(0x20000))
must(libc.mount(b"none", b"/", None, 0x44000, None))
must(libc.mount(root.encode(), root.encode(), None, 0x1000, None))
os.chdir(root)
must(libc.syscall(155, b".", b"."))
must(libc.umount2(b".", 2))
os.chdir("/")
for capability in range(64): libc.prctl(24, capability, 0, 0, 0)
os.setgroups([]); os.setresgid(int(uid), int(uid), int(uid)); os.setresuid(int(uid), int(uid), int(uid))
libc.prctl(38, 1, 0, 0, 0)
os.execve(words[0], words, {})
"""
PASST = (
    "/usr/bin/passt", "--foreground", "--stderr", "--fd", "{fd}", "--address", "10.0.2.15", "--netmask", "24",
    "--gateway", "10.0.2.2", "--address", "fd00:2::15", "--gateway", "fd00:2::2", "--no-map-gw",
    "--interface", "eth0", "--dns", "10.77.0.2", "--search", "none", "--mac-addr", "02:ca:5e:00:00:01",
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
         "-m", "256", "-no-reboot", "-kernel", str(kernel), "-initrd", str(initrd), "-serial", f"file:{console}",
         "-append", "console=ttyS0 quiet panic=-1 steps=passt,off", "-netdev",
         f"stream,id=n,addr.type=fd,addr.str={peer.fileno()},server=off",
         "-device", "virtio-net-pci,netdev=n,romfile="],
        stdin=subprocess.DEVNULL, pass_fds=[peer.fileno()],
    )  # fmt: skip


def build_root(program: Path, package_root: Path, root: Path) -> None:
    """passt's root as a launch makes it: the program, its libraries, resolv.conf, two stand-ins for /proc."""
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("usr/bin", "usr/lib/x86_64-linux-gnu", "etc", "tmp", "proc/self"):
        (root / folder).mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "lib64").symlink_to("usr/lib/x86_64-linux-gnu")
    for library in libraries(program, package_root):
        shutil.copy2(library, root / "usr/lib/x86_64-linux-gnu" / library.name)
    shutil.copy2(program, root / "usr/bin/passt")
    (root / "etc/resolv.conf").write_text("nameserver 10.77.0.2\n")
    (root / "proc/self/exe").symlink_to("/usr/bin/passt.avx2")
    (root / "proc/self/uid_map").write_text("0 0 1\n")


def trace(options: argparse.Namespace, kernel: Path, initrd: Path) -> None:
    """Run everything once and write the summary."""
    work, root = options.work, options.work / "root-passt"
    build_root(options.package_root / "usr/bin/passt", options.package_root, root)
    ours, theirs = socket.socketpair()
    os.set_inheritable(ours.fileno(), True)
    log = work / "passt.log"
    words = [word.format(fd=ours.fileno()) for word in PASST]
    command = within(HOST, "strace", "-f", "-qq", "-ttt", "-X", "raw", "-s", "200", "-e", "signal=none", "-o", str(log),
                     "-e", "raw=!" + ",".join(PATH_CALLS), sys.executable, "-c", ENTER, str(root), str(USER_ID),
                     *words)  # fmt: skip
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
    summary = summarise(log.read_text(errors="replace"), boundary, "passt")
    name = f"{options.prefix}passt-traffic"
    if options.merge:
        merge(summary, options.out / f"{name}.json")
    about: dict[str, object] = {"name": name, "program": "passt", "version": options.version}
    about["about"] = "DHCP, ping, TCP and UDP over IPv4 and IPv6, published ports"
    (options.out / f"{name}.json").write_text(to_json(summary, **about))
    notes = "".join(f"{call}: {note}\n" for call in sorted(summary.notes) for note in sorted(summary.notes[call]))
    (work / "passt.notes").write_text(notes)


def main() -> int:
    """Make the namespaces, trace, remove them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel-root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--version", required=True, help="the package's version, for the record")
    parser.add_argument("--package-root", type=Path, default=Path("/"), help="an unpacked newer passt and libc")
    parser.add_argument("--merge", action="store_true", help="add to the earlier summary instead of replacing it")
    parser.add_argument("--prefix", default="", help="put before the summary's name")
    options = parser.parse_args()
    kernel, initrd = linux_guest.build(options.kernel_root, Path("/bin/busybox"), options.work / "guest-passt")
    try:
        make_namespaces()
        trace(options, kernel, initrd)
    finally:
        for name in (HOST, INTERNET):
            subprocess.run(["ip", "netns", "del", name], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
