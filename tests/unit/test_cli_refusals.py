"""Bad input and hosts that cannot: one clear message, the right exit code, nothing started, nothing left."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.cli_runner import Cli

pytestmark = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU")
IS_ROOT = os.geteuid() == 0
MANY_FAULTS = "[machine]\nmemory_mib = -1\nvcpus = 0\nfrob = 1\n[boot]\nkernel = 'vmlinuz'\n"
KERNEL = b"\x7fELF" + bytes(4092)
BOOT = '[machine]\naccel = "tcg"\n[boot]\nkernel = "vmlinuz"\n'


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    made = Cli(tmp_path)
    yield made
    left = made.json("ps", "-a", "--json")["vms"]
    made.clean()
    assert left == [], "nothing is left"
    assert list((made.runtime / "vms").iterdir()) == []


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "vmlinuz").write_bytes(KERNEL)
    return tmp_path


def write(place: Path, text: str) -> Path:
    path = place / "vm.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (BOOT + "kernal = 1\n", ["boot.kernal", "[key.unknown]"]),
        (BOOT + 'initrd = "a\\nb"\n', ["boot.initrd"]),
        ('[machine]\nvcpus = "two"\n[boot]\nkernel = "vmlinuz"\n', ["machine.vcpus"]),
        (
            '[machine]\nmemory_mib = -1\nvcpus = 0\nfrob = 1\n[boot]\nkernel = "vmlinuz"\n',
            ["3 faults", "memory_mib", "vcpus", "frob"],
        ),
        ("", ["vm.toml"]),
        ("not toml", ["[toml.syntax]"]),
        ("name = 'Not Allowed'\n" + BOOT, ["name"]),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan", "create"])
def test_faults_of_a_specification(cli: Cli, place: Path, command: str, text: str, wanted: list[str]) -> None:
    message = cli.fails(2, command, write(place, text))
    for words in wanted:
        assert words in message


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    if not IS_ROOT:
        pytest.skip("needs root to make a device")
    subprocess.run(["mknod", str(path), "c", "1", "3"], check=True, timeout=60)


def link(path: Path) -> None:
    path.with_name("elsewhere").write_bytes(KERNEL)
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda path: None, "no such file"),
        (Path.mkdir, "a directory"),
        (fifo, "a FIFO"),
        (device, "a character device"),
        (link, "a symbolic link"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
    ],
)
def test_a_kernel_that_is_no_file(cli: Cli, place: Path, make: Callable[[Path], object], wanted: str) -> None:
    (place / "vmlinuz").unlink()
    make(place / "vmlinuz")
    message = cli.fails(2, "run", "-d", write(place, BOOT), timeout_s=30)
    assert wanted in message
    assert str(place / "vmlinuz") in message


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda path: None, "no such file"),
        (Path.mkdir, "not a regular file"),
        (fifo, "not a regular file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(bytes(512)), "cannot tell what"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(509)), "packed with gzip"),
        (lambda path: path.write_bytes(b"KDMV" + bytes(508)), "VMDK"),
        (lambda path: path.write_bytes(b"QFI\xfb\0\0\0\x03" + bytes(100)), ""),
        (lambda path: path.write_bytes(bytes(510) + b"\x55\xaa\1"), "not a whole raw disk"),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_target_that_cannot_run(
    cli: Cli, place: Path, command: str, make: Callable[[Path], object], wanted: str
) -> None:
    make(place / "target")
    assert wanted in cli.fails(2, command, place / "target", timeout_s=30)


def test_an_image_with_a_backing_file(cli: Cli, place: Path) -> None:
    if shutil.which("qemu-img") is None:
        pytest.skip("needs qemu-img")
    base, image = place / "base.qcow2", place / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(base), "1M"], check=True, timeout=60)
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(image)]
    subprocess.run(create, check=True, timeout=60)
    assert "backing" in cli.fails(2, "run", "-d", image)


def test_a_name_of_a_vm_is_no_target_and_the_message_helps(cli: Cli) -> None:
    assert "casemate start web" in cli.fails(2, "run", "web")


def test_nothing_to_run(cli: Cli) -> None:
    assert "casemate run builtin" in cli.fails(2, "run")
    assert "casemate run builtin" in cli.fails(2, "run", "")


def test_flags_are_named_in_faults(cli: Cli, place: Path) -> None:
    message = cli.fails(2, "run", "--vcpus", "0", "--memory-mib", "7X", "--net", "lan", write(place, BOOT))
    for flag in ("--vcpus", "--memory-mib", "--net"):
        assert flag in message


def waiver(expires: datetime.date) -> str:
    return f'[[waiver]]\ncontrol = "os.mac"\nreason = "for this test"\nexpires = {expires.isoformat()}\n'


TODAY = datetime.datetime.now(tz=datetime.UTC).date()
TOMORROW = TODAY + datetime.timedelta(days=1)


@pytest.mark.parametrize("command", ["run", "plan", "create"])
def test_a_waiver_counts_only_if_the_policy_allows_it(cli: Cli, place: Path, command: str) -> None:
    policy = place / "policy.toml"
    policy.write_text("version = 1\n")
    message = cli.fails(4, command, "--policy", policy, write(place, BOOT + waiver(TOMORROW)))
    assert "os.mac" in message
    assert "policy" in message


def test_an_allowed_waiver_is_applied(cli: Cli, place: Path) -> None:
    policy = place / "policy.toml"
    policy.write_text('version = 1\n[waivers]\nallowed = ["os.mac"]\n')
    document = cli.json("plan", "--json", "--policy", policy, write(place, BOOT + waiver(TOMORROW)))
    verdicts = {item["control"]: item["verdict"] for item in document["controls"]}
    assert verdicts["os.mac"] in {"waived", "pass"}


def test_an_expired_waiver_is_a_fault(cli: Cli, place: Path) -> None:
    yesterday = TODAY - datetime.timedelta(days=1)
    assert "expire" in cli.fails(2, "run", write(place, BOOT + waiver(yesterday)))


def test_a_policy_can_make_a_report_control_refuse(cli: Cli, place: Path) -> None:
    """TCG fails dev.kvm; with that gate raised, plan says so with exit 4 and run refuses."""
    policy = place / "policy.toml"
    policy.write_text('version = 1\n[gates]\nlaunch = ["dev.kvm"]\n')
    spec = write(place, BOOT)
    done = cli("plan", "--json", "--policy", policy, spec)
    assert done.returncode == 4
    assert '"refused_by": [\n    "dev.kvm"\n  ]' in done.stdout
    assert "refused by control dev.kvm" in cli.fails(4, "run", "-d", "--policy", policy, spec)
    assert "refused by control dev.kvm" in cli.fails(4, "create", "--policy", policy, spec)


def test_a_policy_that_others_can_write_is_refused(cli: Cli, place: Path) -> None:
    policy = place / "policy.toml"
    policy.write_text("version = 1\n")
    policy.chmod(0o666)
    assert "mode 0666" in cli.fails(2, "run", "-d", "--policy", policy, write(place, BOOT))


def test_a_start_that_fails_defines_nothing(cli: Cli, place: Path) -> None:
    """The kernel is there and is none: QEMU itself refuses it, after everything was built."""
    # Its header promises more setup sectors than there are; without that, QEMU starts whatever it is given.
    (place / "vmlinuz").write_bytes(b"\xff" * 8192)
    done = cli("run", "-d", "--name", "broken", write(place, BOOT))
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "casemate: error: the emulator cannot boot the kernel " in done.stderr


@pytest.mark.skipif(not IS_ROOT, reason="hides files by mounting over them")
class TestHostsThatCannot:
    """The same program where something is missing, in a mount namespace."""

    @staticmethod
    def without(cli: Cli, hidden: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        script = 'mount --bind /dev/null "$1" && shift && exec "$@"'
        words = ["unshare", "--mount", "sh", "-c", script, "sh", os.path.realpath(hidden), *cli.words(*arguments)]
        return subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)

    def test_no_qemu(self, cli: Cli, place: Path) -> None:
        program = shutil.which("qemu-system-x86_64")
        assert program
        done = self.without(cli, program, "run", "-d", write(place, BOOT))
        assert done.returncode == 3, done.stderr
        assert "qemu-system-x86_64" in done.stderr
        assert "apt install qemu-system-x86" in done.stderr

    def test_doctor_without_qemu(self, cli: Cli) -> None:
        program = shutil.which("qemu-system-x86_64")
        assert program
        done = self.without(cli, program, "doctor")
        assert done.returncode == 3
        assert "apt install qemu-system-x86" in done.stdout
        assert "cannot run VMs yet" in done.stdout

    def test_no_passt(self, cli: Cli, place: Path) -> None:
        program = shutil.which("passt")
        if program is None:
            pytest.skip("needs passt to hide it")
        done = self.without(cli, program, "run", "-d", "-p", "2222:22", write(place, BOOT))
        assert done.returncode == 3, done.stderr
        assert "passt" in done.stderr

    def test_state_directory_that_is_not_private(self, cli: Cli, place: Path) -> None:
        cli.data.chmod(0o755)
        message = cli.fails(3, "run", "-d", write(place, BOOT))
        cli.data.chmod(0o700)
        assert "not a private directory" in message
        assert "chmod 700" in message


def test_doctor_reports_this_host(cli: Cli) -> None:
    done = cli("doctor", "--json")
    assert done.returncode in {0, 3}
    document = json.loads(done.stdout)
    assert document["schema"] == "casemate.doctor/1"
    assert set(document) == {"schema", "ok", "groups", "kvm", "emulation", "facts"}
    assert document["ok"] is (done.returncode == 0)
    checks = [check for group in document["groups"] for check in group["checks"]]
    assert {check["status"] for check in checks} <= {"ok", "limited", "missing"}
    by_id = {check["id"]: check for check in checks}
    assert by_id["qemu"]["status"] == "ok"
    for check in checks:
        assert check["found"], check
        assert check["status"] == "ok" or check["why"] or check["next_step"], check
    printed = cli("doctor").stdout
    for group in document["groups"]:
        assert group["name"] in printed
