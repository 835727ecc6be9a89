"""Fact readers against the real thing: ldd, this machine's QEMU in a root of our making, live processes and filters."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casemate.facts.closure import cached_closure, needed_closure
from casemate.facts.fact import Known
from casemate.facts.firmware import choose_uefi, firmware_files
from casemate.facts.host import collect_host, launch_facts
from casemate.facts.process import own_namespaces, read_process
from casemate.facts.qemu import Emulator, describe_emulator, find_qemu, modules_for
from casemate.facts.root import Root
from casemate.sys.libc import libc
from casemate.sys.ptrace import live_filters

pytestmark = pytest.mark.wall
ROOT = Root()
LDD_LINE = re.compile(r"\s*(?:\S+ => )?(/\S+) \(0x")


def ldd(path: str) -> dict[str, str]:
    """{name as ld.so opened it: real file} according to ldd."""
    answer = subprocess.run(["ldd", path], capture_output=True, text=True, check=True, timeout=60)
    names = [match[1] for line in answer.stdout.splitlines() if (match := LDD_LINE.match(line))]
    return {name: os.path.realpath(name) for name in names}


@pytest.mark.parametrize(
    "name", ["qemu-system-x86_64", "passt", "swtpm", "ls", "python3", "newuidmap", "openssl", "tar"]
)
def test_closure_is_what_ldd_says(name: str) -> None:
    found = shutil.which(name, path="/usr/bin:/bin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    path = os.path.realpath(found)
    closure = {item.target: item.source for item in needed_closure(path, ROOT)}
    assert closure == ldd(path)
    assert closure


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return describe_emulator(find_qemu(ROOT), tmp_path_factory.mktemp("cache"))


def test_emulator_agrees_with_its_own_help(emulator: Emulator) -> None:
    answer = subprocess.run([emulator.path, "-machine", "help"], capture_output=True, text=True, check=True, timeout=60)
    names = {line.split()[0] for line in answer.stdout.splitlines()[1:] if line.strip()}
    # "none" is listed by help and by QMP alike; aliases are listed by both.
    assert names <= set(emulator.machine_types)
    version = subprocess.run([emulator.path, "-version"], capture_output=True, text=True, check=True, timeout=60).stdout
    assert f"version {'.'.join(map(str, emulator.version))}" in version
    assert "virtio-blk-pci" in emulator.device_types


# --- the emulator in a root that holds only what the facts name -------------------------------------------------

KERNEL = b"\0" * 0x1F1 + b"\x01" + b"\0" * 12 + b"\x55\xaa" + b"\xeb\x00HdrS" + struct.pack("<H", 0x20C)
DEVICES = {
    "microvm": ["virtio-blk-device,drive=d", "virtio-rng-device", "virtio-serial-device", "virtio-net-device,netdev=n"],
    "q35": ["virtio-blk-pci,drive=d", "virtio-rng-pci", "virtio-serial-pci", "virtio-net-pci,netdev=n,romfile="],
}
BOARD = {
    "microvm": "microvm",
    "q35": "q35,hpet=off,i8042=off,vmport=off,smbus=off,sata=off,smm=off",
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One copy of each host file, so that every root can have it as a hard link."""
    return tmp_path_factory.mktemp("pool")


def place(base: Path, target: str, source: str, pool: Path) -> None:
    where, copy = base / target.lstrip("/"), pool / source.replace("/", "_")
    where.parent.mkdir(parents=True, exist_ok=True)
    if not copy.exists():
        shutil.copy(source, copy)
    os.link(copy, where)


def build_root(base: Path, pool: Path, emulator: Emulator, machine: str, boot: str, accel: str) -> None:
    modules = modules_for(emulator, accel, tuple(device.split(",")[0] for device in DEVICES[machine]))
    place(base, emulator.path, emulator.path, pool)
    for item in needed_closure(emulator.path, ROOT, modules):
        place(base, item.target, item.source, pool)
    for item in firmware_files(emulator.data_dirs, machine, boot, ROOT):
        place(base, item.target, item.source, pool)
    (base / "kernel").write_bytes(KERNEL.ljust(8192, b"\0"))
    (base / "disk").write_bytes(bytes(1 << 20))
    (base / "dev").mkdir()
    (base / "dev/urandom").write_bytes(bytes(4096))
    (base / "dev/null").touch()
    if boot == "uefi":
        firmware = choose_uefi(ROOT)
        shutil.copy(firmware.code, base / "code")
        shutil.copy(firmware.variables, base / "vars")
    if accel == "kvm":
        (base / "dev/kvm").touch()


def arguments(machine: str, boot: str, accel: str) -> list[str]:
    board = f"{BOARD[machine]},accel={accel}"
    found = ["-nodefaults", "-no-user-config", "-display", "none", "-S", "-qmp", "stdio", "-m", "64"]
    if boot == "kernel":
        found += ["-kernel", "/kernel"]
    if boot == "uefi":
        board += ",pflash0=code,pflash1=vars"
        for name in ("code", "vars"):
            found += ["-blockdev", f"driver=file,node-name={name}-file,filename=/{name},read-only=on"]
            found += ["-blockdev", f"driver=raw,node-name={name},file={name}-file,read-only=on"]
    found += ["-blockdev", "driver=file,node-name=f,filename=/disk", "-blockdev", "driver=raw,node-name=d,file=f"]
    found += ["-netdev", "stream,id=n,addr.type=unix,addr.path=/net,server=on", "-machine", board]
    for device in DEVICES[machine]:
        found += ["-device", device]
    return found


def run_in_root(base: Path, emulator: Emulator, options: list[str], accel: str) -> tuple[str, str, int]:
    """(standard output, errors, status) of QEMU started, asked for its state and told to quit."""
    bind = f"mount --bind /dev/kvm {base}/dev/kvm && " if accel == "kvm" else ""
    argv = ["unshare", "--user", "--map-root-user", "--mount", "--net", "sh", "-c", f'{bind}exec chroot "$@"', "sh"]
    commands = [{"execute": name} for name in ("qmp_capabilities", "query-status", "cont", "quit")]
    answer = subprocess.run(
        [*argv, str(base), emulator.path, *options],
        input="".join(json.dumps(command) + "\n" for command in commands),
        capture_output=True,
        text=True,
        env={},
        timeout=120,
        check=False,
    )
    return answer.stdout, answer.stderr, answer.returncode


@pytest.mark.parametrize("accel", ["tcg", "kvm"])
@pytest.mark.parametrize(
    ("machine", "boot"), [("microvm", "kernel"), ("q35", "kernel"), ("q35", "bios"), ("q35", "uefi")]
)
def test_named_files_are_enough(
    tmp_path: Path, pool: Path, emulator: Emulator, machine: str, boot: str, accel: str
) -> None:
    if accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/kvm")
    build_root(tmp_path, pool, emulator, machine, boot, accel)
    options = arguments(machine, boot, accel)
    if accel == "kvm":
        options += ["-cpu", "qemu64"]
    output, errors, status = run_in_root(tmp_path, emulator, options, accel)
    assert '"status": "prelaunch"' in output, errors
    assert status == 0
    assert "No such file" not in errors


@pytest.mark.parametrize("gone", ["accel-tcg-x86_64.so", "bios-microvm.bin", "linuxboot_dma.bin", "libpixman-1.so.0"])
def test_each_named_file_is_needed(tmp_path: Path, pool: Path, emulator: Emulator, gone: str) -> None:
    build_root(tmp_path, pool, emulator, "microvm", "kernel", "tcg")
    victims = list(tmp_path.rglob(gone))
    if not victims:
        pytest.skip(f"this QEMU has no {gone}")
    for victim in victims:
        victim.unlink()
    output, errors, status = run_in_root(tmp_path, emulator, arguments("microvm", "kernel", "tcg"), "tcg")
    assert gone.split("-")[0] in errors, output
    assert status != 0 or "No such file" in errors


def test_cached_closure_of_the_emulator(tmp_path: Path, emulator: Emulator) -> None:
    modules = modules_for(emulator, "tcg")
    first = cached_closure(emulator.path, modules, tmp_path / "closure.json")
    assert cached_closure(emulator.path, modules, tmp_path / "closure.json") == first
    assert first == needed_closure(emulator.path, ROOT, modules)


# --- live processes ---------------------------------------------------------------------------------------------

CHILD = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
libc.prctl(15, b"a\\nUid:\t0", 0, 0, 0)
libc.prctl(38, 1, 0, 0, 0)
os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for _ in range(3):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
print("ready", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def started(argv: list[str], **more: object) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says "ready" and is killed in the end."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, **more)  # type: ignore[call-overload]
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_hostile_process_is_read_as_it_is(tmp_path: Path) -> None:
    odd = tmp_path / "a\nflags:\t0"
    odd.touch()
    argv = [sys.executable, "-IS", "-c", CHILD, str(odd)]
    with started(argv, env={"LD_BIND_NOW": "1", "SECRET": "x"}) as process:
        found = read_process(process.pid)
    assert len(found.threads) == 4
    assert found.threads_complete
    assert all(thread.no_new_privs and thread.seccomp == 0 for thread in found.threads)
    assert {thread.uids for thread in found.threads} == {(os.getuid(), os.geteuid()) * 2}
    assert found.threads[0].name == "a\\nUid:\t0"
    assert found.command == tuple(argv)
    assert found.namespaces == found.own_namespaces == own_namespaces()
    assert found.loader_environment == {"LD_BIND_NOW": "1"}
    # The kernel escapes the newline of a name, so it cannot forge a field.
    assert found.executable_identity is not None
    assert found.executable_identity.inode == os.stat(sys.executable).st_ino
    assert found.descriptors is not None
    (opened,) = [item for item in found.descriptors if item.identity and item.identity.inode == odd.stat().st_ino]
    assert (opened.access, bool(opened.flags & os.O_APPEND)) == ("write", True)
    assert found.writable_code == ()
    assert found.mounts
    assert found.cgroups is not None
    assert found.limits is not None
    assert found.limits["nofile"][1] is not None


def test_start_time_tells_two_processes_apart_from_one_pid() -> None:
    with started([sys.executable, "-IS", "-c", CHILD, "/dev/null"]) as process:
        first, second = read_process(process.pid), read_process(process.pid)
    assert first.start_time == second.start_time > read_process(os.getppid()).start_time


def test_a_pidfd_of_another_process_is_refused() -> None:
    with started([sys.executable, "-IS", "-c", CHILD, "/dev/null"]) as process:
        mine, other = os.pidfd_open(process.pid), os.pidfd_open(os.getpid())
        try:
            assert read_process(process.pid, pidfd=mine).pid == process.pid
            with pytest.raises(ProcessLookupError):
                read_process(process.pid, pidfd=other)
        finally:
            os.close(mine)
            os.close(other)


def test_dead_zombie_and_absent_are_errors() -> None:
    process = subprocess.Popen(["sleep", "600"])
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessLookupError):
        read_process(process.pid)
    process.wait()
    with pytest.raises(ProcessLookupError):
        read_process(process.pid)


def test_a_process_that_dies_while_it_is_read_is_an_error_or_whole() -> None:
    outcomes = set()
    for delay_us in range(0, 4000, 200):
        process = subprocess.Popen(["sleep", "600"])
        killer = os.fork()
        if killer == 0:
            time.sleep(delay_us / 1e6)
            os.kill(process.pid, signal.SIGKILL)
            os._exit(0)
        try:
            with contextlib.suppress(ProcessLookupError):
                while True:
                    found = read_process(process.pid)
                    outcomes.add(len(found.threads))
                    assert found.command == ("sleep", "600")
        finally:
            os.waitpid(killer, 0)
            process.wait()
    assert outcomes <= {1}


def test_root_and_namespaces_of_a_jailed_process(tmp_path: Path) -> None:
    jail = tmp_path / "jail"
    (jail / "bin").mkdir(parents=True)
    (jail / "deep/er").mkdir(parents=True)
    (jail / "deep/er/file").write_text("12345")
    (jail / "outside").symlink_to("/etc")
    shell = shutil.which("busybox")
    if shell is None:
        pytest.skip("busybox is not installed")
    shutil.copy(shell, jail / "bin/busybox")
    argv = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--uts", "/usr/sbin/chroot", str(jail)]
    with started(
        [*argv, "/bin/busybox", "sh", "-c", "echo ready; while :; do read x; done"], stdin=subprocess.PIPE
    ) as p:
        found = read_process(p.pid)
    assert found.root is not None
    kinds = {entry.path: entry.identity.kind for entry in found.root.entries}
    assert kinds == {
        "/bin": "directory",
        "/bin/busybox": "file",
        "/deep": "directory",
        "/deep/er": "directory",
        "/deep/er/file": "file",
        "/outside": "symlink",
    }
    assert found.root.complete
    differ = {name for name in found.namespaces if found.namespaces[name] != found.own_namespaces[name]}
    assert differ == {"user", "mnt", "net", "uts"}


def test_a_root_that_is_the_whole_host_is_not_walked_for_ever() -> None:
    found = read_process(os.getpid())
    assert found.root is not None
    assert not found.root.complete
    assert len(found.root.entries) <= 4096


def test_descriptors_are_all_closed_again() -> None:
    gc.collect()  # what other tests left for it would be closed in between
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        read_process(os.getpid())
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- live seccomp filters ---------------------------------------------------------------------------------------

ALLOW = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF_0000)
LOAD_ARCH = struct.pack("=HBBI", 0x20, 0, 0, 4)


def load_filter(length: int) -> None:
    """Load an allow-all program of ``length`` instructions into the calling thread."""
    program = LOAD_ARCH * (length - 1) + ALLOW
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", length, ctypes.addressof(buffer)), 16)
    # SAFETY: both buffers live until the call returns; the kernel copies the program.
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, header, 0, 0) == 0


@pytest.fixture
def filtered() -> Iterator[int]:
    """A child whose first thread has filters of 3, 7 and 2 instructions and whose other threads have the first only."""
    import threading

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            load_filter(3)
            for _ in range(2):
                threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
            load_filter(7)
            load_filter(2)
            os.write(writer, b"x")
            while True:
                os.write(writer, b".")
                time.sleep(0.005)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"x"
        os.set_blocking(reader, False)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)


def filters_or_skip(tid: int) -> tuple[bytes, ...]:
    try:
        return live_filters(tid)
    except PermissionError as error:
        pytest.skip(f"reading filters needs CAP_SYS_ADMIN: {error.strerror}")


def test_filters_of_every_thread_in_order(filtered: int) -> None:
    expected = {filtered: (3, 7, 2)}
    for name in os.listdir(f"/proc/{filtered}/task"):
        programs = filters_or_skip(int(name))
        assert tuple(len(program) // 8 for program in programs) == expected.get(int(name), (3,))
        assert all(program == LOAD_ARCH * (len(program) // 8 - 1) + ALLOW for program in programs)
    threads = {thread.tid: thread for thread in read_process(filtered).threads}
    assert threads[filtered].seccomp_filters == 3
    assert sorted(thread.seccomp_filters or 0 for thread in threads.values()) == [1, 1, 3]


def test_the_thread_runs_on_untraced(filtered: int) -> None:
    for _ in range(20):
        filters_or_skip(filtered)
    status = Path(f"/proc/{filtered}/status").read_text()
    assert "TracerPid:\t0" in status
    before = Path(f"/proc/{filtered}/stat").read_text().rpartition(")")[2].split()
    assert before[0] in "RS"
    switches = int(re.findall(r"\nvoluntary_ctxt_switches:\t(\d+)", status)[0])
    for _attempt in range(1000):
        now = Path(f"/proc/{filtered}/status").read_text()
        if int(re.findall(r"\nvoluntary_ctxt_switches:\t(\d+)", now)[0]) > switches + 3:
            return
        time.sleep(0.01)
    pytest.fail("the thread does not run any more")


def test_a_stopped_thread_stays_stopped(filtered: int) -> None:
    os.kill(filtered, signal.SIGSTOP)
    os.waitid(os.P_PID, filtered, os.WSTOPPED)
    assert len(filters_or_skip(filtered)) == 3
    # It stops anew when it is let go of, as soon as it has a processor.
    end = time.monotonic() + 20
    while (state := _state_of(filtered)) == "R" and time.monotonic() < end:
        time.sleep(0.01)
    assert state == "T"
    os.kill(filtered, signal.SIGCONT)


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_signals_are_not_lost(filtered: int) -> None:
    for _ in range(50):
        os.kill(filtered, signal.SIGWINCH)
        filters_or_skip(filtered)
    os.kill(filtered, signal.SIGTERM)
    with contextlib.suppress(OSError):
        live_filters(filtered)
    found = os.waitid(os.P_PID, filtered, os.WEXITED | os.WNOWAIT)
    assert found is not None
    assert (found.si_code, found.si_status) == (os.CLD_KILLED, signal.SIGTERM)


def test_no_filter_is_an_empty_answer() -> None:
    with started([sys.executable, "-IS", "-c", CHILD, "/dev/null"]) as process:
        assert filters_or_skip(process.pid) == ()


def test_no_such_thread_is_esrch_and_its_exit_status_is_left_alone() -> None:
    process = subprocess.Popen(["sleep", "600"])
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(OSError):
        live_filters(process.pid)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        live_filters(process.pid)


# --- the host ---------------------------------------------------------------------------------------------------


def test_launch_facts_start_no_process() -> None:
    before = os.times()
    found = launch_facts(ROOT, os.geteuid(), ("/var/lib/casemate",))
    after = os.times()
    assert (after.children_user, after.children_system) == (before.children_user, before.children_system)
    release = found.facts["host.kernel"]
    assert isinstance(release, Known)
    assert release.value == os.uname().release


def test_user_namespaces_are_really_tried() -> None:
    verdict = collect_host(ROOT, os.geteuid()).facts["host.userns"]
    tried = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "--net", "true"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert isinstance(verdict, Known)
    assert (verdict.value == "yes") == (tried.returncode == 0)
