"""Start QEMU in a chroot like Casemate's (libraries, modules, firmware; no /proc, no /sys) and drive it.

Two ways to start: under strace, to see which calls are made (``trace``), or under the compiled filter itself, start-up
calls answered through the listener until the boundary (``confirm``). Either way QEMU runs as an unprivileged user
without capabilities, and everything comes by descriptor. The driver notes the time just before ``cont``: the boundary
of the phases.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from strace_summary import PATH_CALLS

from casemate.sys.process import pidfd_getfd
from casemate.sys.seccomp import SECCOMP_FILTER_FLAG_NEW_LISTENER, seccomp_set_mode_filter

USER_ID = 61111
FIRMWARE = ("bios-microvm.bin", "bios-256k.bin", "linuxboot_dma.bin", "pvh.bin", "kvmvapic.bin")
PROGRAM = "/usr/bin/qemu-system-x86_64"
_LISTENER = 900


def environment(package_root: Path) -> dict[str, str]:
    """What an unpacked binary needs to find its own libraries when it runs outside its root."""
    return {} if package_root == Path("/") else {"LD_LIBRARY_PATH": f"{package_root}/usr/lib/x86_64-linux-gnu"}


def libraries(binary: Path, package_root: Path) -> list[Path]:
    """The library closure of ``binary``, loader included, as the loader resolves it."""
    loader = Path("/lib64/ld-linux-x86-64.so.2")
    unpacked = package_root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    if package_root != Path("/") and unpacked.exists():
        loader = unpacked
    command = [str(loader), "--list", str(binary)]
    out = subprocess.run(command, env=environment(package_root), capture_output=True, text=True, check=True).stdout
    found = [Path(word) for line in out.splitlines() for word in line.split() if word.startswith("/")]
    return [path for path in found if path.name != loader.name] + [loader]


@dataclass
class Emulator:
    """Which QEMU: ``/`` or the root of an unpacked package."""

    host_root: Path = Path("/")
    modules: str = "/usr/lib/x86_64-linux-gnu/qemu"
    data: str = "/usr/share/qemu"

    @property
    def binary(self) -> Path:
        """QEMU itself."""
        return self.host_root / PROGRAM.lstrip("/")

    def libraries(self) -> list[Path]:
        """The library closure, as the loader resolves it."""
        return libraries(self.binary, self.host_root)

    def version(self) -> str:
        """The number in ``--version``."""
        loader = next(path for path in self.libraries() if path.name.startswith("ld-linux"))
        command = [str(loader), str(self.binary), "--version"]
        out = subprocess.run(
            command, env=environment(self.host_root), capture_output=True, text=True, check=True
        ).stdout
        return out.split("version ")[1].split()[0]


def build_root(emulator: Emulator, root: Path, files: Mapping[str, Path]) -> None:
    """Fill ``root`` with what a launch would show the emulator, and ``files`` (path inside -> source)."""
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("dev", "usr/bin", "usr/lib/x86_64-linux-gnu", "usr/share/qemu", "boot"):
        (root / folder).mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "lib64").symlink_to("usr/lib/x86_64-linux-gnu")
    for library in emulator.libraries():
        shutil.copy2(library, root / "usr/lib/x86_64-linux-gnu" / library.name)
    shutil.copy2(emulator.binary, root / PROGRAM.lstrip("/"))
    modules = root / emulator.modules.lstrip("/")
    modules.mkdir(parents=True, exist_ok=True)
    tcg = emulator.host_root / emulator.modules.lstrip("/") / "accel-tcg-x86_64.so"
    if tcg.exists():
        shutil.copy2(tcg, modules / tcg.name)
    for name in FIRMWARE:
        for folder in (
            emulator.host_root / emulator.data.lstrip("/"),
            Path("/usr/share/seabios"),
            Path("/usr/share/qemu"),
        ):
            if (folder / name).exists():
                shutil.copy2(folder / name, root / "usr/share/qemu" / name)
                break
    for inside, source in files.items():
        shutil.copy2(source, root / inside.lstrip("/"))
    for name in ("kvm", "urandom", "null"):
        if os.path.exists(f"/dev/{name}"):
            os.mknod(root / "dev" / name, 0o020666, os.stat(f"/dev/{name}").st_rdev)
            os.chmod(root / "dev" / name, 0o666)


@dataclass
class Session:
    """One running QEMU. ``console_text`` collects what the guest wrote; ``boundary`` (epoch s) is set by `cont`."""

    emulator_pid: Callable[[], int]
    wait: Callable[[float], int | None]
    qmp: socket.socket
    console: socket.socket
    network: socket.socket | None
    before_cont: Callable[[], None]
    boundary: float = float("inf")
    console_text: bytes = b""
    events: list[str] = field(default_factory=list)
    _buffer: bytes = b""

    def command(self, execute: str, timeout_s: float = 60.0, /, **arguments: object) -> object:
        """Run one QMP command; returns ``return``, or the whole reply when it is an error."""
        message: dict[str, object] = {"execute": execute}
        if arguments:
            message["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.qmp.sendall(json.dumps(message).encode() + b"\n")
        deadline = time.monotonic() + timeout_s
        while True:
            reply = self.read_message(deadline)
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                return reply

    def read_message(self, deadline: float) -> dict[str, object]:
        """The next QMP message (greeting, event, reply), pumping console and network meanwhile."""
        while b"\n" not in self._buffer:
            if self.qmp.fileno() < 0:
                raise EOFError("QMP closed")
            if time.monotonic() > deadline:
                raise TimeoutError("QMP")
            self.pump(0.05)
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: dict[str, object] = json.loads(line)
        if "event" in message:
            self.events.append(str(message["event"]))
        return message

    def pump(self, wait_s: float) -> None:
        """Move bytes once: QMP into the buffer, console into its text, network frames answered."""
        sockets = [peer for peer in (self.qmp, self.console, self.network) if peer is not None and peer.fileno() >= 0]
        ready, _, _ = select.select(sockets, [], [], wait_s)
        for peer in ready:
            try:
                data = peer.recv(262144)
            except ConnectionError:
                data = b""
            if not data:
                peer.close()
            elif peer is self.qmp:
                self._buffer += data
            elif peer is self.console:
                self.console_text += data
            else:
                answer_frame(peer, data)

    def wait_console(self, needle: bytes, timeout_s: float = 120.0) -> None:
        """Wait until the guest has written ``needle``."""
        deadline = time.monotonic() + timeout_s
        while needle not in self.console_text:
            if time.monotonic() > deadline or self.wait(0) is not None:
                raise TimeoutError(f"{needle!r} not on the console")
            self.pump(0.1)

    def wait_exit(self, timeout_s: float = 120.0) -> int:
        """Wait for QEMU to end; returns its exit status (negative: the signal)."""
        deadline = time.monotonic() + timeout_s
        while (status := self.wait(0)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError("QEMU does not end")
            self.pump(0.1)
        return status

    def cont(self) -> None:
        """Let everything settle, note the boundary, release the guest."""
        settle = time.monotonic() + 0.5
        while time.monotonic() < settle:
            self.pump(0.1)
        self.before_cont()
        self.boundary = time.time()
        self.command("cont")


def answer_frame(peer: socket.socket, data: bytes) -> None:
    """Answer one Ethernet frame (4-byte length first): ARP and ping get a reply, everything else comes back."""
    if len(data) < 46:
        return
    frame, mac = data[4:], b"\x52\x54\x00\x99\x99\x99"
    if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\x00\x01":
        frame = frame[6:12] + mac + frame[12:20] + b"\x00\x02" + mac + frame[38:42] + frame[22:32] + bytes(18)
    elif frame[12:14] == b"\x08\x00" and frame[23:24] == b"\x01":
        frame = frame[6:12] + frame[0:6] + frame[12:26] + frame[30:34] + frame[26:30] + b"\x00" + frame[35:]
    with contextlib.suppress(OSError):
        peer.sendall(len(frame).to_bytes(4, "big") + frame)


def _place(targets: Mapping[int, int]) -> None:
    """In the child: put each source descriptor at its target number, inheritable; everything from 3 up was cloexec."""
    high = {number: os.dup2(source, 800 + number) for number, source in targets.items()}
    for number, source in high.items():
        os.dup2(source, number)


def start_traced(
    root: Path, argv: Sequence[str], targets: Mapping[int, int], log: Path, inject: Sequence[str]
) -> tuple[Callable[[], int], Callable[[float], int | None], Callable[[], None]]:
    """Start ``argv`` under strace in ``root``; returns how to find its pid, wait for it, and what to do before cont."""
    command = [
        "strace", "-f", "-qq", "-ttt", "-X", "raw", "-s", "200", "-e", "signal=none",
        "-e", "raw=!" + ",".join(PATH_CALLS), *(f"-einject={item}" for item in inject), "-o", str(log),
        "/usr/sbin/chroot", f"--userspec={USER_ID}:{USER_ID}", "--groups=", str(root), *argv,
    ]  # fmt: skip
    process = subprocess.Popen(command, env={}, close_fds=False, preexec_fn=lambda: _place(targets))  # noqa: PLW1509

    def emulator_pid() -> int:
        return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])

    def wait(_timeout_s: float) -> int | None:
        return process.poll()

    return emulator_pid, wait, lambda: None


def start_filtered(
    root: Path, argv: Sequence[str], targets: Mapping[int, int], program: bytes
) -> tuple[Callable[[], int], Callable[[float], int | None], Callable[[], None]]:
    """Start ``argv`` in ``root`` under the compiled filter; its start-up calls are answered until the boundary."""
    pid = os.fork()
    if pid == 0:
        try:
            _place(targets)
            os.chroot(root)
            os.chdir("/")
            os.setgroups([])
            os.setresgid(USER_ID, USER_ID, USER_ID)
            os.setresuid(USER_ID, USER_ID, USER_ID)
            ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
            seccomp_set_mode_filter(program, SECCOMP_FILTER_FLAG_NEW_LISTENER)
            os.execve(argv[0], list(argv), {})
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr)
        os._exit(127)
    pidfd = os.pidfd_open(pid)
    listener = _take_listener(pid, pidfd)
    ended: list[int] = []
    stop = threading.Event()
    thread = threading.Thread(target=_answer, args=(listener, stop), daemon=True)
    thread.start()

    def wait(_timeout_s: float) -> int | None:
        if not ended:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ended.append(os.waitstatus_to_exitcode(status))
        return ended[0] if ended else None

    def close_listener() -> None:
        stop.set()
        thread.join()
        os.close(listener)

    return lambda: pid, wait, close_listener


def _take_listener(pid: int, pidfd: int) -> int:
    """The child's listener: the descriptor that /proc calls a seccomp notify one."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if "seccomp notify" in os.readlink(entry):
                    return pidfd_getfd(pidfd, int(entry.name))
        time.sleep(0.005)
    raise TimeoutError("no listener")


def _answer(listener: int, stop: threading.Event) -> None:
    """Let every notified call continue until told to stop."""
    import fcntl
    import struct

    poller = select.poll()
    poller.register(listener, select.POLLIN)
    while not stop.is_set():
        if not poller.poll(50):
            continue
        buffer = bytearray(512)
        with contextlib.suppress(OSError):
            fcntl.ioctl(listener, 0xC0502100, buffer)
            fcntl.ioctl(listener, 0xC0182101, struct.pack("=QqiI", int.from_bytes(buffer[:8], "little"), 0, 0, 1))


def end(session: Session) -> None:
    """Kill what still runs."""
    with contextlib.suppress(OSError, IndexError):
        if session.wait(0) is None:
            os.kill(session.emulator_pid(), signal.SIGKILL)
            session.wait_exit(5)
