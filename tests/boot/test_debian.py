"""A real Debian 12 in the wall: kernel given (microvm), and as a partitioned disk with its own boot loader (q35, UEFI).

Each boots to its login prompt through the command line, keeps what was written to its persistent disk, reaches a server
on the host, is reached through a published port, and shuts down when the power button is pressed.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.cli_runner import Cli
from tests.support.debian_image import (
    CMDLINE,
    GREETER_PORT,
    GREETING,
    HOSTNAME,
    ROOT_OFFSET_BYTES,
    DebianImages,
    copy_image,
    debian_images,
)
from tests.support.guest_shell import LOGIN_S, GuestShell
from tests.support.ipv6 import has_ipv6

pytestmark = pytest.mark.boot

STOP_S = 90


@pytest.fixture(scope="module")
def images() -> DebianImages:
    return debian_images()


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    found = Cli(tmp_path)
    yield found
    found.clean()


def host_address() -> str:
    """An address of this host that is not loopback: nothing is sent, the kernel is only asked which it would use."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this host has no route, so no server of it can be reached from outside")
        address: str = asked.getsockname()[0]
    return address


@contextmanager
def server(address: str, answer: bytes) -> Iterator[int]:
    """A server on the host that says ``answer`` to whoever connects; gives its port."""
    with socket.create_server((address, 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def free_port() -> int:
    """Free on 127.0.0.1, and the next one on ::1."""
    for _ in range(64):
        with socket.create_server(("127.0.0.1", 0)) as probe, contextlib.suppress(OSError):
            port: int = probe.getsockname()[1]
            if has_ipv6():
                socket.create_server(("::1", port + 1), family=socket.AF_INET6).close()
            return port
    raise AssertionError("no two ports are free")


def ask(port: int, address: str) -> str:
    """What the guest's greeter says through the published port."""
    with socket.create_connection((address, port), 30) as connection:
        connection.settimeout(30)
        connection.sendall(b"hello\n")
        said = b""
        while chunk := connection.recv(4096):
            said += chunk
    return said.decode().strip()


def specification(directory: Path, boot: str, disk: Path, address: str, port: int) -> Path:
    """A TOML file: 2 CPUs, a persistent disk, one address of the host allowed, the greeter published, both families."""
    publish = [f"{port}:{GREETER_PORT}", *([f"[::1]:{port + 1}:{GREETER_PORT}"] if has_ipv6() else [])]
    file = directory / "debian.toml"
    file.write_text(
        f'name = "debian"\n{boot}\n[[disk]]\npath = "{disk.name}"\nformat = "raw"\nmode = "persistent"\n'
        f'[network]\nmode = "user"\negress = "list"\nallow = ["{address}/32"]\n'
        f"ipv6 = {str(has_ipv6()).lower()}\npublish = {json.dumps(publish)}\n"
    )
    return file


def stop_cleanly(cli: Cli) -> None:
    """The power button; systemd-logind powers the guest off within the grace period."""
    cli.ok("stop", "--time", str(STOP_S), "debian", timeout_s=STOP_S + 30)
    document = cli.json("inspect", "debian", "--json")
    assert document["state"] == "exited"
    assert document["exit"]["code"] == 0
    assert "killed" not in document["exit"]["detail"]
    assert "reboot: Power down" in cli.ok("logs", "debian")


def use_network(shell: GuestShell, address: str, port: int) -> None:
    """Out to a server on the host, in through the published port, and not to the same server's neighbours."""
    shell.run("for i in $(seq 60); do ip -4 route show default | grep -q via && break; sleep 1; done")
    with server(address, b"casemate-host: hello\n") as host_port:
        said = shell.last(f"timeout 30 bash -c 'cat </dev/tcp/{address}/{host_port}'")
        assert said == "casemate-host: hello"
    with server("127.0.0.1", b"never\n") as host_port:
        gateway = shell.last("ip -4 route show default | cut -d' ' -f3")
        for unreachable in (gateway, "169.254.169.254"):
            shell.run(f"timeout 10 bash -c 'cat </dev/tcp/{unreachable}/{host_port}' 2>/dev/null; test $? -ne 0")
    assert ask(port, "127.0.0.1") == GREETING
    if not has_ipv6():
        return
    shell.run("for i in $(seq 60); do ip -6 route show default | grep -q via && break; sleep 1; done")
    assert "inet6 fdca:5e00:0:1:" in shell.last("ip -6 -o address show scope global | head -n 1")
    assert ask(port + 1, "::1") == GREETING


def read_from_image(disk: Path, offset_bytes: int, path: str) -> str:
    """A file of the ext4 at ``offset_bytes`` in an image that no VM uses; the file system must be clean."""
    place = f"{disk}?offset={offset_bytes}"
    check = subprocess.run(["/usr/sbin/e2fsck", "-fn", place], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout
    said = subprocess.run(["/usr/sbin/debugfs", "-R", f"cat {path}", place], capture_output=True, text=True, check=True)
    return said.stdout.strip()


def first_life(cli: Cli, spec: Path, address: str, port: int, root: str) -> None:
    """Boot, look around, use the network, write to the disk, shut down."""
    cli.ok("run", "-d", spec)
    document = cli.json("inspect", "debian", "--json")
    assert document["state"] == "running"
    assert not [entry for entry in document["wall"] if entry["verdict"] == "fail" and entry["gate"] == "launch"]
    with GuestShell(cli, "debian") as shell:
        shell.login()
        assert shell.last("systemctl is-system-running --wait", deadline_s=180) == "running"
        assert shell.last("hostname") == HOSTNAME
        assert shell.last("nproc") == "2"
        assert shell.last("findmnt -no SOURCE /") == root
        use_network(shell, address, port)
        shell.run("echo kept >/root/mark && sync")
    stop_cleanly(cli)


def test_debian_with_its_kernel_given(images: DebianImages, cli: Cli, tmp_path: Path) -> None:
    address, port = host_address(), free_port()
    disk = copy_image(images.root, tmp_path / "root.img")
    boot = (
        "[machine]\nmemory_mib = 512\nvcpus = 2\n"
        f'[boot]\nkernel = "{images.kernel}"\ninitrd = "{images.initrd}"\ncmdline = "root=/dev/vda {CMDLINE}"\n'
    )
    first_life(cli, specification(tmp_path, boot, disk, address, port), address, port, "/dev/vda")
    # That a second boot reads it is test_builtin.py's; a second boot of this Debian, test_image_chain.py's.
    assert read_from_image(disk, 0, "/root/mark") == "kept"
    cli.ok("rm", "debian")


def test_debian_as_a_disk_with_its_own_boot_loader(images: DebianImages, cli: Cli, tmp_path: Path) -> None:
    address, port = host_address(), free_port()
    disk = copy_image(images.disk, tmp_path / "disk.img")
    boot = '[machine]\ntype = "q35"\nmemory_mib = 512\nvcpus = 2\n[boot]\nfirmware = "uefi"\n'
    first_life(cli, specification(tmp_path, boot, disk, address, port), address, port, "/dev/vda2")
    assert read_from_image(disk, ROOT_OFFSET_BYTES, "/root/mark") == "kept"
    # Its own UEFI variables are used a second time; that Linux starts again is enough here.
    cli.ok("start", "debian")
    with GuestShell(cli, "debian") as shell:
        shell.expect(rb"Linux version [0-9]", LOGIN_S)
    cli.ok("kill", "debian")
    cli.ok("rm", "debian")
