"""A real libvirt takes what harden writes: three domains side by side, and the hardened one boots to its console."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.libvirt_peer import DEV_WITHOUT_KVM, REAPER

from casemate import assess, risk_reports, risks
from casemate.controls.audit_model import TargetReport
from casemate.controls.model import Verdict
from casemate.engine.paths import default_paths
from casemate.harden.domain import harden_domain
from casemate.image.builtin import READY_MARKER, build_builtin
from casemate.scenarios.model import Status
from casemate.scenarios.risk_model import RiskReport

pytestmark = pytest.mark.boot

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120
CONFIGURATION = 'listen_tcp = 0\nlisten_tls = 0\nauth_unix_rw = "none"\nlog_outputs = "3:stderr"\n'

DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>256</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{directory}/vmlinuz</kernel>
    <initrd>{directory}/initrd</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='{directory}/{name}.img'/>
      <target dev='sda' bus='sata'/>
    </disk>
    <serial type='file'><source path='{directory}/{name}.console'/></serial>
    <input type='tablet' bus='usb'/>
    <graphics type='vnc' port='-1'><listen type='socket'/></graphics>
    <video><model type='vga'/></video>
    {more}
  </devices>
</domain>
"""
CARELESS = """<disk type='file' device='floppy'>
      <driver name='qemu' type='raw'/><source file='{directory}/floppy.img'/><target dev='fda'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{directory}/stick.img'/><target dev='sdb' bus='usb'/>
    </disk>"""


class Libvirt:
    """A daemon of our own with a connection; everything below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names: list[str] = []
        self.defined: list[str] = []

    def virsh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["virsh", "-q", "-c", "qemu:///system", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    def create(self, name: str, document: str) -> None:
        """Start a transient domain."""
        path = self.directory / f"{name}.xml"
        path.write_text(document)
        self.names.append(name)
        done = self.virsh("create", str(path))
        assert done.returncode == 0, done.stderr

    def define(self, name: str, document: str) -> None:
        """Write a domain down and start it."""
        path = self.directory / f"{name}.xml"
        path.write_text(document)
        self.names.append(name)
        self.defined.append(name)
        for arguments in (("define", str(path)), ("start", name)):
            done = self.virsh(*arguments)
            assert done.returncode == 0, done.stderr

    def audited(self, *names: str) -> dict[str, TargetReport]:
        """Reports of running domains, read from their processes."""
        pids = [int(Path(f"/run/libvirt/qemu/{name}.pid").read_text()) for name in names]
        return {report.target.name: report for report in assess.audit(pid=pids).targets}

    def types(self, name: str) -> str:
        """The device tree of the running emulator."""
        done = self.virsh("qemu-monitor-command", "--hmp", name, "info qtree")
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def libvirt() -> Iterator[Libvirt]:
    daemon = shutil.which("libvirtd", path="/usr/sbin:/usr/bin")
    if os.geteuid() != 0:
        pytest.skip("a system libvirtd needs root")
    if daemon is None or shutil.which("virsh") is None:
        pytest.skip("libvirt-daemon-system and libvirt-clients are not installed")
    if Path("/run/libvirt/libvirt-sock").exists() and _answers():
        pytest.skip("a libvirt daemon of the host is already running")
    guest = build_builtin(Path(default_paths().cache), print)
    directory = Path(tempfile.mkdtemp(prefix="casemate-harden-"))
    directory.chmod(0o755)
    (directory / "dev").mkdir()
    for name, source in (("vmlinuz", guest.kernel), ("initrd", guest.initrd)):
        shutil.copy(source, directory / name)
        (directory / name).chmod(0o644)
    (directory / "cmdline").write_text(guest.cmdline)
    for name, size in (("install", 8 << 20), ("careless", 8 << 20), ("floppy", 1440 << 10), ("stick", 1 << 20)):
        (directory / f"{name}.img").write_bytes(bytes(size))
    (directory / "libvirtd.conf").write_text(CONFIGURATION)
    logger = shutil.which("virtlogd", path="/usr/sbin:/usr/bin")
    started = [subprocess.Popen([logger], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)] if logger else []
    reaper = [sys.executable, "-c", REAPER, DEV_WITHOUT_KVM, "sh", str(directory / "dev"), daemon]
    started.append(
        subprocess.Popen(
            [*reaper, "--config", str(directory / "libvirtd.conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    )
    found = Libvirt(directory)
    try:
        end = time.monotonic() + DEADLINE_S
        while found.virsh("list").returncode != 0:
            assert time.monotonic() < end, "libvirtd did not come up"
            assert started[-1].poll() is None, "libvirtd ended"
            time.sleep(0.1)
        yield found
    finally:
        for name in found.names:
            found.virsh("destroy", name)
        for name in found.defined:
            found.virsh("undefine", name)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            process.wait(20)
        shutil.rmtree(directory, ignore_errors=True)


def _answers() -> bool:
    done = subprocess.run(["virsh", "-q", "-c", "qemu:///system", "list"], capture_output=True, check=False, timeout=60)
    return done.returncode == 0


def document(libvirt: Libvirt, name: str, machine: str, more: str = "") -> str:
    """One of the three domains before hardening."""
    cmdline = (libvirt.directory / "cmdline").read_text()
    return DOMAIN.format(name=name, machine=machine, directory=libvirt.directory, cmdline=cmdline, more=more)


def test_three_domains_and_the_hardened_one_boots(libvirt: Libvirt) -> None:
    plain = document(libvirt, "install", "q35")
    libvirt.create("careless", document(libvirt, "careless", "pc", CARELESS.format(directory=libvirt.directory)))
    libvirt.create("install", plain)
    tree = libvirt.types("install")
    assert all(word in tree for word in ("pcie-root-port", "usb-tablet", "VGA", "ide-hd", "virtio-balloon"))
    careless = libvirt.types("careless")
    assert all(word in careless for word in ("floppy", "usb-storage", "PIIX"))
    for name in ("install", "careless"):
        assert libvirt.virsh("destroy", name).returncode == 0

    # No KVM in this /dev, and limits are not to be had everywhere.
    keep = ["dev.kvm"] if libvirt_has_limits() else ["dev.kvm", "proc.cgroup"]
    hardened = harden_domain(plain.encode(), "install.xml", keep=keep)
    libvirt.create("install", hardened.after)
    tree = libvirt.types("install")
    gone = ("pcie-root-port", "usb", "VGA", "ide-hd", "balloon", "vmmouse", "vmport", "hpet", "floppy", "xhci")
    assert [word for word in gone if f"dev: {word}" in tree] == []
    assert "dev: virtio-blk-pci" in tree
    assert "dev: virtio-rng-pci" in tree
    console = libvirt.directory / "install.console"
    end = time.monotonic() + DEADLINE_S
    while READY_MARKER not in console.read_text(errors="replace"):
        assert time.monotonic() < end, console.read_text(errors="replace")[-2000:]
        time.sleep(0.2)


def test_three_running_domains_are_audited_live(libvirt: Libvirt) -> None:
    for name in libvirt.names:
        libvirt.virsh("destroy", name)
    plain = document(libvirt, "install", "q35")
    libvirt.define("install", plain)
    libvirt.create("careless", document(libvirt, "careless", "pc", CARELESS.format(directory=libvirt.directory)))
    (libvirt.directory / "hardened.img").write_bytes(bytes(8 << 20))
    hardened = harden_domain(document(libvirt, "hardened", "q35").encode(), "hardened.xml", keep=["dev.kvm"])
    limits = re.sub(r"<(memtune|cputune|blkiotune)>.*?</\1>", "", hardened.after, flags=re.DOTALL)
    libvirt.create("hardened", limits)

    found = libvirt.audited("install", "careless", "hardened")
    failed = {name: verdicts(report, Verdict.FAIL) for name, report in found.items()}
    devices = {"dev.no-usb", "dev.no-display", "dev.platform-off", "dev.surface", "ent.virtio-rng"}
    assert devices - failed["install"] == set()
    assert "dev.no-floppy" not in failed["install"]
    assert (devices | {"dev.no-floppy", "dev.machine"}) - failed["careless"] == set()
    # The board keeps its AHCI controller and parts of the chipset: what harden can take away is gone.
    gone = {"dev.no-usb", "dev.no-display", "dev.no-floppy", "dev.machine", "dev.surface", "ent.virtio-rng", "cpu.ksm"}
    assert failed["hardened"] & gone == set()
    # One uid for all of them and no labels: each emulator could open the others' monitors.
    assert all("vmm.qmp" in names for names in failed.values())
    evidence = next(f.evidence for f in found["install"].findings if f.control_id == "vmm.qmp")
    assert "monitor.sock" in evidence
    assert "careless" in evidence
    assert all("vmm.domain-drift" in verdicts(report, Verdict.PASS) for report in found.values())

    stick = f"""<disk type='file' device='disk'><driver name='qemu' type='raw'/>
      <source file='{libvirt.directory}/stick.img'/><target dev='sdz' bus='usb'/></disk>"""
    (libvirt.directory / "stick.xml").write_text(stick)
    assert libvirt.virsh("destroy", "careless").returncode == 0
    plugged = libvirt.virsh("attach-device", "install", str(libvirt.directory / "stick.xml"), "--live")
    assert plugged.returncode == 0, plugged.stderr
    drift = next(f for f in libvirt.audited("install")["install"].findings if f.control_id == "vmm.domain-drift")
    assert drift.verdict is Verdict.FAIL
    assert f"disk not written down: {libvirt.directory}/stick.img (raw)" in drift.why


def verdicts(report: TargetReport, verdict: Verdict) -> set[str]:
    return {finding.control_id for finding in report.findings if finding.verdict is verdict}


def libvirt_has_limits() -> bool:
    """Whether libvirt can limit a domain here: control groups that may be written, and the lockable memory that libvirt
    raises to a domain's hard limit (CAP_SYS_RESOURCE, which containers lack)."""
    raised = subprocess.run(["prlimit", "--memlock=4294967296", "true"], capture_output=True, check=False)
    if raised.returncode != 0:
        return False
    unified = Path("/sys/fs/cgroup/cgroup.controllers")
    if unified.exists():
        return {"memory", "cpu"} <= set(unified.read_text().split()) and os.access("/sys/fs/cgroup", os.W_OK)
    return all(os.access(f"/sys/fs/cgroup/{name}", os.W_OK) for name in ("memory", "cpu"))


def risk_of(name: str) -> RiskReport:
    """The risk of one running domain with this host, as the command would see it."""
    pid = int(Path(f"/run/libvirt/qemu/{name}.pid").read_text())
    return risks.analyse(pids=[pid], with_evidence=True)


def test_hardening_closes_the_paths_that_its_changes_should_close(libvirt: Libvirt) -> None:
    for name in libvirt.names:
        libvirt.virsh("destroy", name)
    source = document(libvirt, "careless", "pc", CARELESS.format(directory=libvirt.directory))
    libvirt.create("careless", source)
    before = risk_of("careless")
    assert libvirt.virsh("destroy", "careless").returncode == 0
    hardened = harden_domain(source.encode(), "careless.xml", keep=["dev.kvm"])
    libvirt.create("careless", re.sub(r"<(memtune|cputune|blkiotune)>.*?</\1>", "", hardened.after, flags=re.DOTALL))
    after = risk_of("careless")
    found = risks.difference_of(before, after)
    (change,) = found.vms
    # The floppy and its controller, the USB stick and tablet, the VGA card with VNC are gone; entropy and a generation
    # id came. What is left of the board (AHCI), and an emulator without KVM, no domain can change.
    closed = {item.id for item in change.techniques if item.now is Status.CLOSED}
    assert closed == {"emu.floppy", "emu.usb", "emu.display", "guest.predicted-random"}
    assert {item.now for item in change.techniques} == {Status.CLOSED}, "hardening opens nothing"
    assert change.open_paths[1] < change.open_paths[0]
    write_example("libvirt-careless", before)
    write_example("libvirt-hardened", after)


def write_example(name: str, report: RiskReport) -> None:
    """With CASEMATE_WRITE_EXAMPLES=1 the pages of docs/examples are made anew."""
    if os.environ.get("CASEMATE_WRITE_EXAMPLES"):
        page = ROOT / "docs/examples" / f"{name}.html"
        page.parent.mkdir(exist_ok=True)
        page.write_text(risk_reports.render(report, "html"))


FIXTURES = sorted((ROOT / "tests/data/domains").glob("*.xml"))


def for_this_host(text: str) -> str:
    """A domain for another host, on this one: its board, emulator and accelerator."""
    text = re.sub(r"machine=(['\"])pc-q35[^'\"]*\1", r"machine=\1q35\1", text)
    text = re.sub(r"machine=(['\"])pc-i440fx[^'\"]*\1", r"machine=\1pc\1", text)
    text = re.sub(r"<emulator>[^<]*", "<emulator>/usr/bin/qemu-system-x86_64", text)
    text = re.sub(r"type=(['\"])kvm\1", r"type=\1qemu\1", text, count=1)
    text = re.sub(r"mode=(['\"])host-(passthrough|model)\1[^>]*?(/?)>", r"mode=\1maximum\1\3>", text)
    return re.sub(r"(<domain [^>]*?) id=['\"]\d+['\"]", r"\1", text)


def test_libvirt_itself_takes_every_hardened_domain(libvirt: Libvirt) -> None:
    taken: list[str] = []
    for path in FIXTURES:
        if path.stem == "arm":
            continue
        before = for_this_host(path.read_text())
        hardened = harden_domain(before.encode(), path.name, keep=["dev.kvm"])
        place = libvirt.directory / "fixture.xml"
        place.write_text(before)
        if libvirt.virsh("define", str(place)).returncode != 0:
            continue  # not even as it was: this host lacks something that it needs
        name = re.search(r"<name>([^<]+)", before)
        assert name is not None
        libvirt.defined.append(name[1])  # the fixture takes it away whatever happens here
        libvirt.virsh("undefine", name[1], "--nvram")
        place.write_text(hardened.after)
        done = libvirt.virsh("define", str(place))
        assert done.returncode == 0, f"{path.stem}: {done.stderr}"
        expanded = libvirt.virsh("dumpxml", "--inactive", name[1]).stdout
        libvirt.virsh("undefine", name[1], "--nvram")
        taken.append(path.stem)
        if "dev.no-hotplug" in hardened.claims:
            assert "pcie-root-port" not in expanded, path.stem
            assert "pcie-to-pci-bridge" not in expanded, path.stem
        for control, pattern in (
            ("dev.no-usb", r"<controller type='usb'(?![^>]*model='none')"),
            ("dev.platform-off", r"<memballoon model='virtio'"),
            ("dev.no-floppy", r"device='floppy'"),
            ("dev.no-display", r"<graphics|<sound|<model type='(vga|qxl|cirrus)'"),
        ):
            if control in hardened.claims:
                assert not re.search(pattern, expanded), f"{path.stem}: {control}"
    assert len(taken) >= 12, taken
