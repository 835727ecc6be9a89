"""libvirt as a peer: a daemon of our own, TCP off, private sockets and state, ended with the benchmark."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from casemate.image.builtin import BuiltinGuest

DOMAIN = """<domain type='qemu'><name>{name}</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd>
<cmdline>{cmdline}</cmdline></os><features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>
<memballoon model='none'/><serial type='null'/><console type='null'/>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng></devices></domain>
"""

# Two things would make the peer look worse than it is. libvirt waits until the processes that it kills are gone, and
# its emulators are daemons, children of pid 1 unless somebody nearer takes them: where pid 1 does not reap at once,
# every `create` lasts a minute. And where /dev/kvm answers but QEMU cannot use it, libvirt forgets what it knows of
# QEMU and asks 18 times anew at every `create` (9 s): it gets a /dev without kvm, in a mount namespace of its own.
REAPER = """
import ctypes, os, signal, sys
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
daemon = os.posix_spawnp("unshare", ["unshare", "--mount", "sh", "-ec", *sys.argv[1:]], os.environ)
signal.signal(signal.SIGTERM, lambda number, frame: os.kill(daemon, number))
print(daemon, flush=True)
while os.wait()[0] != daemon:
    pass
"""
DEV_WITHOUT_KVM = """
mount -t tmpfs -o mode=755 dev "$1"
for node in null zero full random urandom tty; do cp -a "/dev/$node" "$1"; done
mkdir "$1/pts" "$1/shm"; ln -s pts/ptmx "$1/ptmx"; ln -s /proc/self/fd "$1/fd"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$1/pts"
umount --recursive --lazy /dev
mount --move "$1" /dev
shift; exec "$@"
"""


class Libvirt:
    """``with Libvirt(guest, cmdline) as libvirt:``; ``available``: its rows can run; ``why_not``: why they cannot."""

    def __init__(self, guest: BuiltinGuest, cmdline: str) -> None:
        self.available = False
        self.why_not = ""
        self._guest = guest
        self._cmdline = cmdline
        self._daemon: subprocess.Popen[bytes] | None = None
        self._daemon_pid = 0
        self._logger: subprocess.Popen[bytes] | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="casemate-libvirt-"))
        self._count = 0

    def __enter__(self) -> Libvirt:
        daemon = shutil.which("libvirtd", path="/usr/sbin:/usr/bin")
        if daemon is None or shutil.which("virsh") is None:
            self.why_not = "libvirt-daemon-system and libvirt-clients are not installed"
            return self
        if Path("/run/libvirt/libvirt-sock").exists():
            self.why_not = "a libvirt daemon of the host is already running"
            return self
        configuration = self._directory / "libvirtd.conf"
        configuration.write_text('listen_tcp = 0\nlisten_tls = 0\nauth_unix_rw = "none"\nlog_outputs = "3:stderr"\n')
        for name in ("vmlinuz", "initrd"):  # readable for libvirt's own user
            source = self._guest.kernel if name == "vmlinuz" else self._guest.initrd
            shutil.copy(source, self._directory / name)
            (self._directory / name).chmod(0o644)
        self._directory.chmod(0o755)
        logger = shutil.which("virtlogd", path="/usr/sbin:/usr/bin")
        if logger is not None:
            self._logger = subprocess.Popen([logger], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        dev = self._directory / "dev"
        dev.mkdir()
        self._daemon = subprocess.Popen(
            [sys.executable, "-c", REAPER, DEV_WITHOUT_KVM, "sh", str(dev), daemon, "--config", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._daemon.stdout is not None
        self._daemon_pid = int(self._daemon.stdout.readline())
        try:
            self._first_domain()
        except BaseException:
            self._stop()
            raise
        return self

    def _first_domain(self) -> None:
        """Wait for the daemon, then create one domain: the first one makes libvirt ask QEMU what it can do."""
        end = time.monotonic() + 15
        while self._virsh("list").returncode != 0:
            if time.monotonic() > end:
                self.why_not = "libvirtd did not come up"
                return
            time.sleep(0.1)
        try:
            self.create()
            self.available = True
        except subprocess.CalledProcessError as fault:
            self.why_not = f"virsh create failed: {fault.stderr.strip()[:200]}"
        except subprocess.TimeoutExpired:
            self.why_not = "virsh create took more than a minute"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        for number in range(1, self._count + 1):  # a domain whose creation was cut off outlives the daemon
            self._virsh("destroy", f"casemate-bench-{os.getpid()}-{number}")
        for process in (self._daemon, self._logger):
            if process is not None:
                process.terminate()
                process.wait(10)
        shutil.rmtree(self._directory, ignore_errors=True)

    def create(self) -> float:
        """Seconds for ``virsh create`` of the guest; it is destroyed afterwards."""
        self._count += 1
        name = f"casemate-bench-{os.getpid()}-{self._count}"
        domain = self._directory / "domain.xml"
        kernel, initrd = self._directory / "vmlinuz", self._directory / "initrd"
        domain.write_text(DOMAIN.format(name=name, kernel=kernel, initrd=initrd, cmdline=self._cmdline))
        begin = time.perf_counter()
        done = self._virsh("create", str(domain))
        taken = time.perf_counter() - begin
        done.check_returncode()
        self._virsh("destroy", name).check_returncode()
        return taken

    def daemon_pss_mib(self) -> float:
        """PSS of the daemon while one VM runs."""
        if self._daemon is None:
            raise RuntimeError("libvirt was not started")
        text = Path(f"/proc/{self._daemon_pid}/smaps_rollup").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("Pss:")).split()[1]) / 1024

    def _virsh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["virsh", "-q", "-c", "qemu:///system", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
