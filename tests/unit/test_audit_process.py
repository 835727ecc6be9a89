"""Facts of emulators' processes as pure functions, and readers that never wait for ever."""

from __future__ import annotations

import re
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.audit.documents import kind_of, split_command
from casemate.audit.live import guest_name
from casemate.audit.patience import STUCK_MAX, Stuck, each, once
from casemate.audit.relations import Crowd, categories, relation_facts
from casemate.errors import InputError
from casemate.facts import vmm_process
from casemate.facts.capability_names_data import NAMES as CAPABILITIES
from casemate.facts.fact import Known, Unknown
from casemate.facts.process import Descriptor, FileIdentity, ProcessFacts
from casemate.facts.procfs import ThreadFacts
from casemate.facts.root import Root
from casemate.facts.vmm_process import HostView, VmmProcess, host_view, vmm_facts
from casemate.facts.vmm_process_limits import within_rounding
from casemate.facts.vmm_process_reach import Expected
from casemate.facts.vmm_process_seccomp import NAMES, NEED_RIGHTS, LiveFilters, seccomp_facts, summarise

THREAD = ThreadFacts(
    tid=7, name="qemu", uids=(9, 9, 9, 9), gids=(9, 9, 9, 9), groups=(), cap_inheritable=0, cap_permitted=0,
    cap_effective=0, cap_bounding=0, cap_ambient=0, no_new_privs=True, seccomp=2, seccomp_filters=1,
    pid_in_namespaces=(7, 1), core_cookie=5,
)  # fmt: skip
KINDS = dict.fromkeys(("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"), 1)
PROCESS = ProcessFacts(
    pid=7, start_time=100, threads=(THREAD,), threads_complete=True, command=("qemu",),
    namespaces=dict.fromkeys(KINDS, 2), own_namespaces=KINDS, executable="/usr/bin/qemu", executable_identity=None,
    root=None, mounts=(), descriptors=(), limits={"core": (0, 0)}, cgroups={"": "/vm"}, writable_code=(),
    loader_environment={}, personality=0, oom_score_adj=0, label="system_u:system_r:svirt_t:s0:c1,c2", unknown={},
)  # fmt: skip
VM = VmmProcess(PROCESS, LiveFilters(((b"\x06\0\0\0\0\0\0\0",),)), True, None, "", frozenset(), 0, True)
HOST = HostView(KINDS, "process 1's", (1, 2), 36, (), "x86_64", {})


def file(path: str, inode: int, *, flags: int = 2, kind: str = "file") -> Descriptor:
    return Descriptor(inode, path, flags, FileIdentity(kind, 1, inode, 0o600, 0, 0, 1, 0))


def changed(**changes: object) -> VmmProcess:
    return msgspec.structs.replace(VM, process=msgspec.structs.replace(PROCESS, **changes))


def value(vm: VmmProcess, name: str, plan: Expected | None = None) -> object:
    fact = vmm_facts(vm, HOST, Root("/nonexistent"), plan=plan)[name]
    return fact.value if isinstance(fact, Known) else fact


def test_capabilities_are_called_by_their_names() -> None:
    held = msgspec.structs.replace(THREAD, cap_effective=1 << 12, cap_bounding=1 << 12 | 1 << 63)
    assert value(changed(threads=(held,)), "proc.caps") == ("cap_net_admin", "bounding:cap_63")
    source = Path("/usr/include/linux/capability.h")
    if not source.exists():
        pytest.skip("linux/capability.h is not installed")
    numbers = {
        name.lower(): int(bit) for name, bit in re.findall(r"#define (CAP_\w+)\s+(\d+)$", source.read_text(), re.M)
    }
    assert all(CAPABILITIES[bit] == name for name, bit in numbers.items() if bit < len(CAPABILITIES))


def test_the_worst_thread_counts() -> None:
    other = msgspec.structs.replace(THREAD, tid=8, cap_bounding=1 << 21, no_new_privs=False, seccomp=0)
    vm = changed(threads=(THREAD, other))
    assert value(vm, "proc.caps") == ("bounding:cap_sys_admin",)
    assert value(vm, "proc.no-new-privs") is False
    assert value(vm, "proc.seccomp-mode") == 0


def test_threads_that_differ_are_unknown() -> None:
    vm = changed(threads=(THREAD, msgspec.structs.replace(THREAD, uids=(0, 0, 0, 0))))
    assert isinstance(value(vm, "proc.uid"), Unknown)
    assert isinstance(value(changed(threads_complete=False), "proc.uid"), Unknown)


def test_an_empty_mount_table_is_no_pass() -> None:
    assert isinstance(value(VM, "proc.mounts-writable"), Unknown)


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (file("/srv/other.img", 9), "not on its command line"),
        (file("/etc", 9, flags=0, kind="directory"), "a directory"),
        (file("/dev/mem", 9, kind="char"), "a char device"),
        (file("/dev/sda", 9, kind="block"), "a block device"),
        (file("/dev/pts/3", 2, kind="char"), "a terminal"),
    ],
)
def test_strange_descriptors_are_named(item: Descriptor, why: str) -> None:
    assert value(changed(descriptors=(item,)), "proc.fds-unexpected") == (f"{item.number}: {item.target} ({why})",)


def test_a_plan_decides_alone() -> None:
    plan = Expected(root=("/lib/x.so",), files=((1, 9),))
    vm = changed(descriptors=(file("/srv/a.img", 9), file("/srv/b.img", 10), file("socket:[4]", 11)))
    assert value(vm, "proc.fds-unexpected", plan) == ("10: /srv/b.img (not in the plan)",)


def test_descriptors_that_cannot_be_read_are_unknown() -> None:
    vm = changed(descriptors=None, unknown={"descriptors": "Permission denied"})
    assert value(vm, "proc.fds-unexpected") == Unknown("permission denied")
    assert value(vm, "vhost.descriptors") == Unknown("permission denied")


def test_filters() -> None:
    kill = summarise((b"\x06\0\0\0\0\0\0\x80",), "x86_64")
    assert (kill.allowed, kill.dangerous, kill.default, kill.x32, kill.foreign_arch) == (0, (), *("kill",) * 3)
    none = summarise((), "x86_64")
    assert none.allowed > 300
    assert "ptrace" in none.dangerous
    assert none.default == "allow"
    for live in (LiveFilters(why=NEED_RIGHTS), LiveFilters(), LiveFilters(((b"a",), (b"b",))), LiveFilters(((b"x",),))):
        facts = seccomp_facts("/proc/7", live, "x86_64")
        assert set(facts) == set(NAMES)
        assert all(isinstance(fact, Unknown) for fact in facts.values())


@given(st.binary(max_size=200))
def test_no_program_is_too_hostile(program: bytes) -> None:
    seccomp_facts("/proc/7", LiveFilters(((program,),)), "x86_64")


def test_what_vms_share() -> None:
    image = file("/srv/a.img", 9)
    crowd = Crowd({7: changed(descriptors=(image,)), 8: changed(pid=8, descriptors=(image,))}, {7: "a", 8: "b"})
    facts = relation_facts(7, crowd)
    found = {name: fact.value for name, fact in facts.items() if isinstance(fact, Known)}
    assert found == {"run.uid-unique": False, "proc.mcs-unique": False, "img.shared-writable": ("/srv/a.img",)}


def test_alone_is_only_said_by_those_who_see_everybody() -> None:
    seen = relation_facts(7, Crowd({7: VM}, {7: "a"}))
    assert all(isinstance(fact, Known) for fact in seen.values())
    blind = relation_facts(7, Crowd({7: VM}, {7: "a"}, "3 processes are closed to uid 1000"))
    assert all(isinstance(fact, Unknown) for fact in blind.values())


def test_categories() -> None:
    assert categories("u:r:svirt_t:s0:c1,c2") == {"c1", "c2"}
    assert categories("u:r:svirt_t:s0-s0:c1,c2") == {"c1", "c2"}
    assert categories("u:r:unconfined_t:s0-s0:c0.c1023") == frozenset()
    assert categories("libvirt-1234 (enforce)") == frozenset()


def test_limits_within_a_page() -> None:
    assert within_rounding(("memory.max=8191", "pids.max=5"), ("pids.max=5", "memory.max=4096"))
    assert not within_rounding(("memory.max=8192",), ("memory.max=4096",))
    assert not within_rounding(("pids.max=5",), ("pids.max=max",))
    assert not within_rounding((), ("pids.max=5",))


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("q", "-name", "web"), "web"),
        (("q", "-name", "guest=we,,b,debug-threads=on"), "we,b"),
        (("q", "-name", "debug-threads=on"), ""),
        (("q", "-name"), ""),
    ],
)
def test_guest_name(command: tuple[str, ...], name: str) -> None:
    assert guest_name("qemu", command) == name


def test_patience_leaves_what_is_stuck_behind() -> None:
    def work(item: float) -> float:
        time.sleep(item)
        if item < 0:
            raise ValueError
        return item

    answers = [answer for _, answer in each((0.0, 0.4, 0.0), work, 0.05)]
    assert answers[0] == answers[2] == 0.0
    assert isinstance(answers[1], Stuck)
    with pytest.raises(Stuck):
        once(lambda: time.sleep(0.4), 0.02)
    with pytest.raises(ZeroDivisionError):
        once(lambda: 1 // 0, 1)
    many = [answer for _, answer in each([0.3] * (STUCK_MAX + 3), work, 0.001)]
    assert all(isinstance(answer, Stuck) for answer in many)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x7fELF\2", "emulator"),
        (b"\xef\xbb\xbf <domain", "domain"),
        (b'{"boot-source": {}}', "vmm-config"),
        (b"qemu-system-x86_64 -M q35", "command-line"),
        (b"/usr/bin/qemu-system-x86_64\0-M\0q35\0-m\x0064\0", "command-line"),
        (b"QFI\xfb\0\0\0\3", "image"),
        (b"\x1f\x8b\x08", "capture"),
        (bytes(257) + b"ustar", "capture"),
    ],
)
def test_kinds_are_told_by_content(head: bytes, kind: str) -> None:
    assert kind_of(head) == kind


@given(st.binary(max_size=600))
def test_every_head_has_a_kind(head: bytes) -> None:
    kind_of(head)


def test_command_lines() -> None:
    assert split_command(b"qemu -m '1 2' # x", "f") == ("qemu", "-m", "1 2")
    assert split_command(b"qemu\0-m\x001 2\0", "f") == ("qemu", "-m", "1 2")
    for bad in (b"", b"qemu 'open"):
        with pytest.raises(InputError):
            split_command(bad, "f")


@pytest.mark.parametrize(
    ("stat", "others", "expected"),
    [
        ("5 (qemu) S 1 5 5 0 -1", (), True),
        ("5 (qemu) S 1 5 5 0 -1", ("6 (child) S 5 5 5 0 -1",), True),  # it leads: what is there, it started
        ("5 (qemu) S 1 5 4 0 -1", (), True),  # a daemon: who led is gone, nobody else is there
        ("5 (qemu) S 1 5 4 34816 -1", (), False),  # a terminal is left
        ("5 (qemu) S 1 5 4 0 -1", ("6 (pytest) S 1 6 4 0 -1",), False),  # who led is gone, another one is there
        ("5 (qemu) S 1 5 4 0 -1", ("4 (bash) S 1 4 4 0 -1",), False),
        ("5 (qemu) S 1 5 0 0 -1", (), False),  # its leader is outside of this pid namespace
        ("5 (qemu) S 1", (), None),
    ],
)
def test_alone_in_its_session(tmp_path: Path, stat: str, others: tuple[str, ...], *, expected: bool | None) -> None:
    for line in (stat, *others):
        folder = tmp_path / "proc" / line.split()[0]
        folder.mkdir(parents=True)
        (folder / "stat").write_text(line)
    root = Root(str(tmp_path))
    assert vmm_process._session(5, root, host_view(root)) is expected
