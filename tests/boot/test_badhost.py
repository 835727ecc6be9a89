"""Hosts that cannot run a VM, or only so many: each is made for real, around the real program.

What is missing is taken away in a mount namespace (root), or by being a user who has none of it: one made for the test,
without subordinate ids and without the group of /dev/kvm.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli_runner import COMMAND
from tests.support.refusals import Refusals
from tests.unit import fake_qemu

from casemate.engine.paths import default_paths
from casemate.image.builtin import build_builtin

IS_ROOT = os.geteuid() == 0
QEMU = "/usr/bin/qemu-system-x86_64"

pytestmark = [
    pytest.mark.boot,
    pytest.mark.skipif(not Path(QEMU).exists(), reason=f"needs {QEMU}, to take it away"),
]
needs_root = pytest.mark.skipif(not IS_ROOT, reason="takes things away by mounting over them, as root")
RUN = ("run", "-d", "--name", "bad", "--accel", "tcg", "--kernel")

_NAMESPACE = """
set -e
mount --bind "$1/run" /run/casemate
mount --bind "$1/data" /var/lib/casemate
mount --bind "$1/cache" /var/cache/casemate
cd "$1"
{prelude}
shift; exec "$@"
"""


class Altered(Refusals):
    """Root's commands in a mount namespace where a shell script has changed something first."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        (directory / "cache").mkdir(mode=0o700)  # of its own: what is said of a fake emulator must not be remembered
        for path in default_paths().runtime, default_paths().data, default_paths().cache:
            Path(path).mkdir(mode=0o700, exist_ok=True)
        self.prelude = ""

    def words(self, *arguments: str | Path) -> list[str]:
        script = _NAMESPACE.format(prelude=self.prelude)
        return ["unshare", "--mount", "sh", "-c", script, "sh", str(self.home), *COMMAND, *map(str, arguments)]


def no_kernel(directory: Path) -> Path:
    """A file that passes every check before the start."""
    path = directory / "vmlinuz"
    path.write_bytes(b"\x7fELF" + bytes(4092))
    path.chmod(0o644)
    return path


@pytest.fixture
def altered(tmp_path: Path) -> Altered:
    return Altered(tmp_path)


# ---- the emulator -------------------------------------------------------------------------------------------------


@needs_root
def test_no_emulator(altered: Altered) -> None:
    if any(Path(path).exists() for path in ("/usr/libexec/qemu-kvm", "/usr/local/bin/qemu-system-x86_64")):
        pytest.skip("this host has a second QEMU")
    altered.prelude = """
    mount -t tmpfs none cache; mkdir cache/up cache/work
    mount -t overlay overlay -o lowerdir=/usr/bin,upperdir=cache/up,workdir=cache/work /usr/bin
    rm /usr/bin/qemu-system-x86_64; chmod 700 cache
    """
    says = [
        "casemate: error: no QEMU found\n",
        f"  expected: one of {QEMU}, ",
        "  next: apt install qemu-system-x86 (Debian, Ubuntu)",
    ]
    altered.refused(3, says, *RUN, no_kernel(altered.home))
    for command in ("plan", "create"):
        altered.refused(3, says, command, "--accel", "tcg", "--kernel", no_kernel(altered.home))


def fake_emulator(altered: Altered, *, mode: str = "ok", version: str = "9.9.1", machine_type: str = "microvm") -> None:
    """Put a program in QEMU's place that says of itself that it is some QEMU."""
    path = fake_qemu.write(altered.home / "fake", mode)
    major, minor, micro = version.split(".")
    said, now = '"major": 9, "minor": 9, "micro": 1', f'"major": {major}, "minor": {minor}, "micro": {micro}'
    text = path.read_text()
    assert said in text
    path.write_text(text.replace(said, now).replace('{"name": "microvm"}', f'{{"name": "{machine_type}"}}'))
    altered.prelude = f"mount --bind {path} {QEMU}"


@needs_root
def test_an_emulator_that_is_too_old(altered: Altered) -> None:
    fake_emulator(altered, version="6.2.0")
    says = [
        f"{QEMU} is too old",
        "  got: QEMU 6.2.0",
        "  expected: 7.2.0 or newer",
        "  next: install that of Debian 12",
    ]
    altered.refused(3, says, *RUN, no_kernel(altered.home))


@needs_root
def test_an_emulator_without_the_machine_type(altered: Altered) -> None:
    fake_emulator(altered, machine_type="isapc")
    says = [
        f"{QEMU} has no machine type microvm",
        "  got: isapc, pc-q35-9.9, q35",
        "  next: apt install qemu-system-x86",
    ]
    altered.refused(3, says, *RUN, no_kernel(altered.home))


@needs_root
@pytest.mark.parametrize("mode", ["flood", "garbage", "error"])
def test_an_emulator_that_is_none(altered: Altered, mode: str) -> None:
    fake_emulator(altered, mode=mode)
    altered.refused(3, [f"emulator {QEMU} does not answer", "  got: ", "  next: "], *RUN, no_kernel(altered.home))


@needs_root
def test_an_emulator_that_anybody_can_change(altered: Altered) -> None:
    shutil.copy(QEMU, altered.home / "emulator")
    (altered.home / "emulator").chmod(0o777)
    altered.prelude = f"mount --bind emulator {QEMU}"
    says = [f"emulator {QEMU}", "  got: owner 0, mode 0777", "  expected: owned by root or by you, not writable by all"]
    altered.refused(3, says, *RUN, no_kernel(altered.home))


# ---- directories --------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize(
    ("directory", "says"),
    [
        (
            "/var/lib/casemate",
            ["/var/lib/casemate/names.lock cannot be used", "got: read-only file system", "next: make"],
        ),
        (
            "/run/casemate",
            ["directory /run/casemate/vms/", "cannot be made", "got: Read-only file system", "next: make"],
        ),
        ("/var/cache/casemate", ["/var/cache/casemate", "cannot be used", "got: read-only file system", "next: make"]),
    ],
)
def test_a_read_only_directory(altered: Altered, directory: str, says: list[str]) -> None:
    altered.ok("ps")
    altered.prelude = f"mount -o remount,bind,ro {directory}"
    altered.refused(3, says, *RUN, no_kernel(altered.home))


@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CACHE_HOME"])
def test_a_users_directory_that_cannot_be_written(user: AsUser, variable: str) -> None:
    directory = Path(user.environment[variable])
    directory.chmod(0o500)
    says = [
        f"directory {directory}/casemate cannot be made",
        "  got: Permission denied",
        "  next: make its parent writable",
    ]
    user.refused(3, says, *RUN, no_kernel(user.home))


def test_a_users_directory_that_others_can_read(user: AsUser) -> None:
    directory = Path(user.environment["XDG_DATA_HOME"]) / "casemate"
    user.ok("ps")
    directory.chmod(0o755)
    says = [f"{directory} is not a private directory of ours", "got: drwxr-xr-x", "expected: drwx------", "chmod 700"]
    user.refused(3, says, *RUN, no_kernel(user.home))


def test_a_users_directory_that_is_a_link(user: AsUser) -> None:
    directory = Path(user.environment["XDG_DATA_HOME"]) / "casemate"
    (user.home / "elsewhere").mkdir()
    directory.symlink_to(user.home / "elsewhere")
    says = [
        f"{directory} is not a private directory of ours",
        "  got: lrwxrwxrwx uid ",
        "  next: remove it or chmod 700",
    ]
    user.refused(3, says, *RUN, no_kernel(user.home))


@pytest.mark.parametrize("kind", ["everybody's", "a link"])
@needs_root
def test_a_shared_place_that_somebody_else_took_first(user: AsUser, kind: str) -> None:
    """Without XDG_RUNTIME_DIR it is below /tmp, where anybody can make the name, and own our sockets' directory."""
    usual = user.environment.pop("XDG_RUNTIME_DIR")
    place = Path(f"/tmp/casemate-run-{user.uid}")
    if kind == "a link":
        place.symlink_to(user.home)
    else:
        place.mkdir()
        place.chmod(0o777)
    try:
        says = [f"{place} is not a private directory of ours", "  expected: drwx------ uid ", f"chmod 700 {place}"]
        user.refused(3, says, *RUN, no_kernel(user.home))
        assert user("ps").returncode == 3
    finally:
        place.unlink() if kind == "a link" else shutil.rmtree(place)
    user.ok("ps")
    assert (place.stat().st_mode & 0o777, place.stat().st_uid) == (0o700, user.uid)
    shutil.rmtree(place)
    user.environment["XDG_RUNTIME_DIR"] = usual


def test_no_home(user: AsUser) -> None:
    user.environment["HOME"] = "relative"
    says = ["no home directory", "  got: HOME='relative'", "  next: set HOME to an absolute path"]
    user.refused(3, says, *RUN, no_kernel(user.home))


# ---- what a user does not have ------------------------------------------------------------------------------------


class AsUser(Refusals):
    """Commands of an ordinary user: one made for the test when we are root, otherwise ourselves."""

    def __init__(self, directory: Path, uid: int) -> None:
        self.home, self.uid = directory, uid
        self.runtime, self.data = directory / "run/casemate", directory / "share/casemate"
        self.environment = self._environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LC_ALL": "C.UTF-8",
            "COLUMNS": "100",
            "HOME": str(directory / "home"),
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "XDG_DATA_HOME": str(directory / "share"),
            "XDG_CACHE_HOME": str(directory / "cache"),
        }
        for name in ("run", "share", "cache", "home"):
            (directory / name).mkdir(mode=0o700)
            os.chown(directory / name, uid, uid if IS_ROOT else -1)
        become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
        self._prefix = become if IS_ROOT else []

    def add_builtin(self) -> None:
        """The built-in guest in the user's cache, so that it need not be built again."""
        guest = build_builtin(Path(default_paths().cache), print)
        place = self.home / "cache/casemate"
        shutil.copytree(guest.kernel.parent.parent, place / "guest")
        for path in (place, *place.rglob("*")):
            os.chown(path, self.uid, -1)
            path.chmod(0o700 if path.is_dir() else 0o600)


@pytest.fixture(scope="module")
def account() -> Iterator[int]:
    """A uid without groups and subordinate ids, of a user that exists for these tests only."""
    if not IS_ROOT:
        yield os.geteuid()
        return
    name = f"casemate-t{secrets.token_hex(4)}"
    done = subprocess.run(
        ["useradd", "--system", "--no-create-home", "--user-group", name], check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no user can be added: {done.stderr.strip()}")
    try:
        entry = pwd.getpwnam(name)
        yield entry.pw_uid
    finally:
        subprocess.run(["userdel", name], check=True, timeout=60)


@pytest.fixture
def user(account: int) -> Iterator[AsUser]:
    """Below /tmp, which another user can reach."""
    home = Path(tempfile.mkdtemp(prefix="cm-user-"))
    home.chmod(0o755)
    made = AsUser(home, account)
    try:
        if made("version").returncode != 0:
            pytest.skip("another user cannot read this installation")
        yield made
        made.clean()
    finally:
        shutil.rmtree(home)


def has_subordinate_ids() -> bool:
    """Whether the user of these tests has some: not the one that root makes."""
    if IS_ROOT:
        return False
    name = pwd.getpwuid(os.geteuid()).pw_name
    return any(
        line.startswith((f"{name}:", f"{os.geteuid()}:")) for line in Path("/etc/subuid").read_text().splitlines()
    )


@pytest.mark.skipif(has_subordinate_ids(), reason="this user has subordinate ids; root tests it with one that has none")
def test_without_subordinate_ids_there_is_one_vm_at_a_time(user: AsUser) -> None:
    user.add_builtin()
    small = ("run", "-d", "--accel", "tcg", "--memory-mib", "96", "--name")
    user.ok(*small, "one", "builtin")
    assert user.json("inspect", "one", "--json")["uid"] == user.uid
    says = [
        "another VM already runs under this user's own uid",
        "  got: no subordinate ids: a range in /etc/subuid and /etc/subgid is missing",
        "usermod --add-subuids",
    ]
    user.refused(3, says, *small, "two", "builtin")
    assert user.json("inspect", "one", "--json")["state"] == "running"
    user.ok("rm", "-f", "one")
    user.ok(*small, "three", "builtin")


@pytest.mark.skipif(not IS_ROOT and os.access("/dev/kvm", os.R_OK | os.W_OK), reason="this user may use /dev/kvm")
@pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="there is no /dev/kvm to be denied")
def test_no_rights_on_kvm(user: AsUser) -> None:
    says = [
        "KVM was asked for and this host does not have it",
        "  got: denied: open failed: EACCES",
        "  next: casemate doctor",
    ]
    user.refused(3, says, "run", "-d", "--accel", "kvm", "--kernel", no_kernel(user.home))
    plan = user.json("plan", "--json", "--kernel", no_kernel(user.home))
    assert (plan["accel"], plan["accel_why"][:14]) == ("tcg", "KVM is denied:")


def test_a_file_that_the_user_may_not_read(user: AsUser) -> None:
    says = [
        "cannot open the kernel '/etc/shadow'",
        "  got: permission denied",
        f"  next: uid {user.uid} must be able to read",
    ]
    user.refused(2, says, *RUN, "/etc/shadow")


def test_a_disk_that_the_user_may_not_write(user: AsUser) -> None:
    disk = user.home / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    disk.chmod(0o444)
    says = [
        f"cannot open the image '{disk}'",
        "  got: permission denied",
        "must be able to read and write it; or use mode overlay or read-only, which do not write to it",
    ]
    user.refused(2, says, *RUN, no_kernel(user.home), "--disk", f"{disk}:raw,persistent")


_WITHOUT_NAMESPACES = """
import ctypes, os, sys
uid = int(sys.argv[1])
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    if ctypes.CDLL(None).unshare(0x10000000):
        os._exit(99)
    os.write(ready[1], b".")
    os.read(go[0], 1)
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.execvp(sys.argv[2], sys.argv[2:])
os.read(ready[0], 1)
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{child}/{name}", "w") as file:
        file.write("0 0 4294967295")
os.write(go[1], b".")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@needs_root
def test_no_user_namespaces(user: AsUser) -> None:
    """In a user namespace of its own, where root and the user are who they are, and no further one can be made."""
    user._prefix = [sys.executable, "-c", _WITHOUT_NAMESPACES, str(user.uid)]
    says = [
        "this host gives the VM no namespaces of its own",
        "  got: user.max_user_namespaces is used up or 0; sysctl -w user.max_user_namespaces=15000",
        "  next: casemate doctor",
    ]
    user.refused(3, says, *RUN, no_kernel(user.home))
    doctor = user("doctor")
    assert doctor.returncode == 3
    assert "missing: user namespaces: no: user.max_user_namespaces is used up or 0" in doctor.stdout
