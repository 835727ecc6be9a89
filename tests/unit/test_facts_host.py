"""The host on fake trees: cgroup layouts, subordinate ids, missing parts, reasons why user namespaces are refused."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest
from tests.unit.elf_builder import put

from casemate.errors import HostError
from casemate.facts.cgroup import CgroupPlace, build_layout, cgroup_layout, cgroup_rights, parse_cgroup
from casemate.facts.fact import Known, Unknown
from casemate.facts.host import collect_host, launch_facts
from casemate.facts.mountinfo import parse_mountinfo
from casemate.facts.root import Root
from casemate.facts.subid import SubidRange, nth_id, parse_subid, ranges_of, read_subids, total_ids
from casemate.facts.userns import explain_refusal

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
)
UNIFIED = "35 31 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


class TestCgroup:
    def test_v2_of_a_user_session(self, tmp_path: Path) -> None:
        own = "/user.slice/user-1000.slice/user@1000.service/app.slice"
        put(tmp_path, "/proc/self/cgroup", f"0::{own}\n")
        put(tmp_path, "/proc/self/mountinfo", V2)
        put(tmp_path, f"/sys/fs/cgroup{own}/cgroup.controllers", "cpu memory pids\n")
        layout = cgroup_layout(Root(tmp_path))
        place = CgroupPlace(2, "/sys/fs/cgroup", own, f"/sys/fs/cgroup{own}")
        assert layout.mode == "v2"
        assert layout.unified == place
        assert layout.controllers == {"cpu": place, "memory": place, "pids": place}

    def test_v1(self) -> None:
        own = parse_cgroup("3:cpu,cpuacct:/a\n2:memory:/b\n1:name=systemd:/c\n")
        layout = build_layout(own, parse_mountinfo(V1), lambda _directory: ())
        assert (layout.mode, layout.unified) == ("v1", None)
        assert layout.controllers["cpuacct"].directory == "/sys/fs/cgroup/cpu,cpuacct/a"
        assert layout.controllers["memory"].directory == "/sys/fs/cgroup/memory/b"
        assert sorted(layout.controllers) == ["cpu", "cpuacct", "memory"]

    def test_hybrid_prefers_where_the_controller_is(self) -> None:
        own = parse_cgroup("3:cpu,cpuacct:/a\n2:memory:/b\n0::/u\n")
        layout = build_layout(own, parse_mountinfo(V1 + UNIFIED), lambda _directory: ("hugetlb", "memory"))
        assert layout.mode == "hybrid"
        assert layout.controllers["memory"].version == 1
        assert layout.controllers["hugetlb"].directory == "/sys/fs/cgroup/unified/u"

    def test_none(self) -> None:
        assert build_layout({}, (), lambda _directory: ()).mode == "none"

    @pytest.mark.parametrize(
        ("mounted", "own", "directory"),
        [
            ("/docker/x", "/docker/x/y", "/sys/fs/cgroup/y"),
            ("/docker/x", "/docker/x", "/sys/fs/cgroup"),
            ("/docker/x", "/docker/xy", None),
            ("/docker/x", "/other", None),
            ("/", "/../other", None),
            ("/../..", "/", None),
        ],
    )
    def test_part_of_a_hierarchy(self, mounted: str, own: str, directory: str | None) -> None:
        mounts = parse_mountinfo(V2.replace(" / ", f" {mounted} ", 1))
        layout = build_layout({"": own}, mounts, lambda _directory: ())
        assert layout.unified is not None
        assert layout.unified.directory == directory

    @pytest.mark.parametrize("line", ["x:cpu:/a", "1:cpu", "1:cpu:relative", "-1:cpu:/a", "²:cpu:/a"])
    def test_odd_lines_are_refused(self, line: str) -> None:
        with pytest.raises(ValueError, match="cgroup line"):
            parse_cgroup(line)

    def test_rights_are_asked_from_the_kernel(self, tmp_path: Path) -> None:
        put(tmp_path, "/g/cgroup.procs", "")
        place = CgroupPlace(2, "/g", "/", "/g")
        root = Root(tmp_path)
        rights = cgroup_rights(root, place)
        assert (rights.create, rights.move, rights.delegate) == (True, True, False)
        put(tmp_path, "/g/cgroup.subtree_control", "")
        assert cgroup_rights(root, place).delegate
        gone = cgroup_rights(root, CgroupPlace(1, "/g", "/x", "/g/x"))
        assert (gone.create, gone.move) == (False, False)
        assert not cgroup_rights(root, CgroupPlace(2, "/g", "/x", None)).create


class TestSubid:
    def test_lines(self) -> None:
        text = "alice:100000:65536\n1000:300000:10\n# no\nbob:x:1\nbob:1\nzero:0:5\nempty:5:0\n"
        text += "big:4294967290:10\nalice:5:1 "
        assert parse_subid(text) == (
            SubidRange("alice", 100000, 65536),
            SubidRange("1000", 300000, 10),
            SubidRange("alice", 5, 1),
        )

    def test_by_name_or_uid(self) -> None:
        ranges = parse_subid("alice:10:1\n1000:20:1\nbob:30:1\n")
        assert [item.first for item in ranges_of(ranges, 1000, "alice")] == [10, 20]
        assert [item.first for item in ranges_of(ranges, 1000, None)] == [20]

    def test_each_number_gets_its_own_id_across_ranges_and_overlaps(self) -> None:
        ranges = parse_subid("a:100:3\na:101:4\na:50:1\n")
        assert total_ids(ranges) == 6
        assert [nth_id(ranges, index) for index in range(6)] == [50, 100, 101, 102, 103, 104]
        with pytest.raises(HostError) as caught:
            nth_id(ranges, 6)
        assert caught.value.got == "6 ids"
        assert "usermod" in caught.value.next_step

    def test_no_file_is_no_ranges_but_unreadable_is_an_error(self, tmp_path: Path) -> None:
        assert read_subids(Root(tmp_path), "/etc/subuid", 1, None) == ()
        put(tmp_path, "/etc/subuid", b"x" * (2 << 20))
        with pytest.raises(OSError) as caught:
            read_subids(Root(tmp_path), "/etc/subuid", 1, None)
        assert caught.value.errno == errno.EFBIG


class TestUserNamespaceReasons:
    @pytest.mark.parametrize(
        ("path", "content", "step", "number", "text"),
        [
            ("/proc/sys/user/max_user_namespaces", "0\n", 0, errno.ENOSPC, "max_user_namespaces"),
            ("/proc/sys/kernel/unprivileged_userns_clone", "0\n", 0, errno.EPERM, "unprivileged_userns_clone"),
            ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n", 1, errno.EPERM, "AppArmor"),
            ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0\n", 0, errno.EPERM, "container"),
            ("/proc/sys/user/max_user_namespaces", "100\n", 0, errno.ENOSPC, "used up"),
            ("/x", "", 0, errno.EINVAL, "CONFIG_USER_NS"),
            ("/x", "", 0, errno.ENOSYS, "seccomp"),
            ("/x", "", 2, errno.EPERM, "unshare mount and network was refused (EPERM)"),
        ],
    )
    def test_each_switch_is_named(
        self, tmp_path: Path, path: str, content: str, step: int, number: int, text: str
    ) -> None:
        put(tmp_path, path, content)
        assert text in explain_refusal(Root(tmp_path), step, number)


class TestHost:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        put(tmp_path, "/proc/sys/kernel/osrelease", "6.1.0\n")
        put(tmp_path, "/proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    1234 kB\n")
        put(tmp_path, "/sys/kernel/security/lsm", "lockdown,capability,selinux\n")
        put(tmp_path, "/sys/fs/selinux/enforce", "1")
        put(tmp_path, "/proc/self/cgroup", "0::/\n")
        put(tmp_path, "/proc/self/mountinfo", V2)
        put(tmp_path, "/sys/fs/cgroup/cgroup.controllers", "memory\n")
        put(tmp_path, "/etc/subuid", "1000:100000:65536\n")
        return tmp_path

    def test_values_with_sources(self, tree: Path) -> None:
        found = launch_facts(Root(tree), 1000, ("/var/lib/casemate",))
        facts = found.facts
        assert facts["host.kernel"] == Known("6.1.0", "/proc/sys/kernel/osrelease")
        assert facts["host.mem-available-kib"] == Known(1234, "/proc/meminfo: MemAvailable")
        assert facts["host.lsm"] == Known(("lockdown", "capability", "selinux"), "/sys/kernel/security/lsm")
        assert facts["host.selinux-enforce"] == Known(1, "/sys/fs/selinux/enforce")
        assert facts["host.cgroup-mode"] == Known("v2", "/proc/self/mountinfo")
        assert facts["host.subuid"] == Known(("100000+65536",), "/etc/subuid")
        free = facts["host.free-bytes./var/lib/casemate"]
        assert isinstance(free, Known)
        assert free.source == "statvfs /"

    def test_a_captured_tree_is_never_asked_for_what_only_a_kernel_knows(self, tree: Path) -> None:
        facts = collect_host(Root(tree), 1000).facts
        for name in ("arch", "landlock-abi", "seccomp-user-notif", "core-sched", "cgroup-writable", "userns"):
            assert isinstance(facts[f"host.{name}"], Unknown), name
        assert isinstance(facts["host.passt-version"], Unknown)

    def test_missing_parts_name_their_packages(self, tree: Path) -> None:
        missing = {item.name: item for item in collect_host(Root(tree), 1000).missing}
        assert sorted(missing) == ["newgidmap", "newuidmap", "ovmf", "passt", "qemu", "swtpm"]
        assert missing["newuidmap"].command == (
            "apt install uidmap (Debian, Ubuntu) or dnf install shadow-utils (Fedora)"
        )

    def test_root_needs_no_id_helpers(self, tree: Path) -> None:
        assert "newuidmap" not in [item.name for item in collect_host(Root(tree), 0).missing]

    def test_unparsable_cgroup_is_unknown(self, tree: Path) -> None:
        put(tree, "/proc/self/mountinfo", "nonsense\n")
        found = launch_facts(Root(tree), 1000)
        assert found.cgroup is None
        assert isinstance(found.facts["host.cgroup-mode"], Unknown)

    def test_helper_without_rights_is_not_usable(self, tree: Path) -> None:
        helper = put(tree, "/usr/bin/newuidmap", "x")
        helper.chmod(0o755)
        assert isinstance(launch_facts(Root(tree), 1000).facts["host.newuidmap"], Unknown)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a setuid root file")
    def test_setuid_helper_is_usable(self, tree: Path) -> None:
        helper = put(tree, "/usr/bin/newuidmap", "x")
        helper.chmod(0o4755)
        assert launch_facts(Root(tree), 1000).facts["host.newuidmap"] == Known("/usr/bin/newuidmap", "file")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can set file capabilities")
    @pytest.mark.parametrize(("capability", "usable"), [(7, True), (6, False)])
    def test_file_capability_counts_when_it_is_the_right_one(self, tree: Path, capability: int, usable: bool) -> None:
        helper = put(tree, "/usr/bin/newuidmap", "x")
        helper.chmod(0o755)
        value = struct.pack("<IIIII", 0x0200_0001, 1 << capability, 0, 0, 0)
        try:
            os.setxattr(helper, "security.capability", value)
        except OSError as error:
            pytest.skip(f"this file system keeps no capabilities: {error.strerror}")
        assert isinstance(launch_facts(Root(tree), 1000).facts["host.newuidmap"], Known) == usable
