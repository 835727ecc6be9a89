"""What confidential guests add to the wall, tried without their hardware: a socket in the root, and its rules."""

from __future__ import annotations

import os
import signal
import socket
import stat
from pathlib import Path

import msgspec
import pytest
from tests.support.walls import BUSYBOX, HARMLESS, Pipe, finish, staging, wall

from casemate.facts.process import Descriptor, FileIdentity, read_process
from casemate.facts.vmm_process_reach import Expected, descriptor_facts
from casemate.jail import root
from casemate.jail.compile import compile_profile
from casemate.jail.policy import BindFile
from casemate.jail.rules import Phase, Profile, Rule
from casemate.jail.rulesets.qemu_confidential import QUOTES
from casemate.jail.spawn import spawn

pytestmark = [
    pytest.mark.wall,
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="package busybox-static is not installed"),
]


def program() -> bytes:
    """Busybox with the very rules that reach a quote generation service."""
    rules = [Rule(name, "busybox in a test") for name in (*HARMLESS, "sendto", "readlinkat", "lstat")]
    start = Rule("execve", "the test's program", phase=Phase.STARTUP)
    return compile_profile(Profile("test", (*rules, *QUOTES, start), ("test",)), os.uname().machine)


def service(place: Path, mode: int) -> socket.socket:
    """A socket of the host; busybox's logger looks for one at /dev/log."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(place))
    place.chmod(mode)
    listening.settimeout(5)
    return listening


def log(tmp_path: Path, place: Path) -> tuple[str, int]:
    confined = wall("logger", "a quote, please", root=(BindFile(str(place), "/dev/log"),))
    return finish(spawn(confined, program(), Pipe().sources, staging(tmp_path)))


def test_a_service_of_the_host_is_reached_through_its_socket_in_the_root(tmp_path: Path) -> None:
    """The mount is read-only, Landlock knows nothing of it, and the network namespace is empty: the way stays open."""
    place = tmp_path / "service"
    with service(place, 0o777) as listening:
        assert log(tmp_path, place) == ("exited", 0)
        assert b"a quote, please" in listening.recv(1024)


def test_a_service_that_does_not_let_the_vms_user_in_stays_closed(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the confined program has the caller's own uid here")
    place = tmp_path / "service"
    with service(place, 0o700) as listening:
        log(tmp_path, place)
        listening.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listening.recv(1024)


def test_no_other_family_of_sockets(tmp_path: Path) -> None:
    confined = wall("nc", "127.0.0.1", "1")
    assert finish(spawn(confined, program(), Pipe().sources, staging(tmp_path))) == ("killed", signal.SIGSYS)


def test_the_number_of_the_security_processors_device_is_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its minor is given at run time; what is no misc device is refused."""
    assert root.device_numbers("kvm") == (10, 232)
    real = os.stat

    def told(mode: int, device: int) -> None:
        answer = os.stat_result((mode, 0, 0, 0, 0, 0, 0, 0, 0, 0), {"st_rdev": device})
        monkeypatch.setattr(os, "stat", lambda path, **more: answer if path == "/dev/sev" else real(path, **more))

    told(stat.S_IFCHR | 0o600, os.makedev(10, 124))
    assert root.device_numbers("sev") == (10, 124)
    for mode, device in ((stat.S_IFCHR, os.makedev(1, 1)), (stat.S_IFREG, os.makedev(10, 124))):
        told(mode, device)
        with pytest.raises(OSError, match="security processor"):
            root.device_numbers("sev")


@pytest.mark.parametrize("target", ["anon_inode:[kvm-gmem]", "/[kvm-gmem] (deleted)", "/dev/sev"])
def test_descriptors_of_a_confidential_guest_are_known(target: str) -> None:
    """guest_memfd was an anonymous inode until Linux 6.18 gave it a file system of its own."""
    process = msgspec.structs.replace(read_process(os.getpid(), with_maps=False), descriptors=(item(target),))
    plan = Expected(root=("/dev/sev",), files=(), devices=("/dev/sev",))
    found = descriptor_facts("/proc/1", process, plan=plan, named={}, foreign={})["proc.fds-unexpected"]
    assert getattr(found, "value", None) == ()


def item(target: str) -> Descriptor:
    identity = FileIdentity(kind="file", dev=1, inode=2, mode=0o600, uid=0, gid=0, size_bytes=0, rdev=0)
    return Descriptor(number=9, target=target, flags=os.O_RDWR, identity=identity)
