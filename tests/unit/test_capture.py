"""casemate capture: its table, its filters in Python and sh, secrets, archives, round trips."""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import subprocess
import tarfile
import threading
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from tests.support import host_tree
from tests.support.recording_root import RecordingRoot

from casemate.audit import capture_collect
from casemate.audit.capture_collect import Taken, collect_capture, is_denied
from casemate.audit.capture_filters import FILTERS
from casemate.audit.capture_paths import CGROUP_FILES, CGROUP_TOP, EMULATOR_NAMES, MERGED, TABLE, VM_PROCESS, Kind
from casemate.audit.capture_read import Capture, read_capture
from casemate.audit.capture_script import script
from casemate.audit.capture_write import write_capture
from casemate.audit.host import collect_host_facts
from casemate.audit.live import look_at_host
from casemate.errors import InputError
from casemate.facts.fact import Facts, Known, Unknown
from casemate.facts.memory_root import _coverage
from casemate.facts.process_find import _EMULATORS, _HELPERS
from casemate.facts.root import Root

SHELLS = (("dash", ("dash",)), ("busybox", ("busybox", "sh")))
LIVE_ONLY = {
    "host.subuid": "subordinate ids of whoever audits: in a capture nobody does",
    "host.subgid": "as host.subuid",
    "img.store-images": "the image store belongs to whoever asks, not to the tree",
    "img.store-unverified": "the image store belongs to whoever asks, not to the tree",
    "host.arch": "asked of the kernel",
    "host.cgroup-writable": "access of this process",
    "host.core-sched": "asked of the kernel",
    "host.dev-kvm-usable": "access of this process",
    "host.landlock-abi": "asked of the kernel",
    "host.seccomp-user-notif": "asked of the kernel",
    "host.userns": "tried in a child",
    "kvm.device-acl": "an extended attribute",
}
"""Facts that no capture can hold, and why."""
MOVING = {"host.mem-available-kib", "host.listeners", "host.admin-listeners", "host.taps", "host.interfaces"}
"""Facts that change from one moment to the next on a machine where tests run."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Root]:
    """One host on which everything is right, as every layer describes it."""
    base = tmp_path_factory.mktemp("host")
    files = host_tree.merged((host_tree.BASE, *(layer.passing for layer in host_tree.layers())))
    host_tree.write_tree(base, files)
    return base, host_tree.tree_root(base, files)


def taken_from(root: Root) -> Taken:
    return collect_capture(root, "web7", "casemate test")


def captured(taken: Taken, path: Path) -> Capture:
    write_capture(taken, str(path))
    return read_capture(path.read_bytes(), path.name)


def asked_of(root: Root) -> set[tuple[str, str]]:
    recorder = RecordingRoot(root)
    collect_host_facts(recorder)
    if (root.base / "proc").is_dir():
        look_at_host(recorder)
    return recorder.asked


def table_gaps(asked: set[tuple[str, str]], release: str) -> list[str]:
    """What the audit looks at and no line of the table takes. Whether something is there is also told by the names in
    its directory, and by its being above something that is looked for."""
    table = [(take.kind, take.pattern.replace("RELEASE", release)) for take in TABLE]
    table += [(take.kind, take.pattern.replace("PID", "[0-9]*")) for take in VM_PROCESS]
    table += [(Kind.CONTENT, f"{CGROUP_TOP}**/{name}") for name in CGROUP_FILES]
    table += [(Kind.NAMES, "/proc/[0-9]*/fd"), *((Kind.LINK, path) for path in MERGED)]
    wanted = {"content": {Kind.CONTENT}, "names": {Kind.NAMES}, "stat": {Kind.STATUS}, "link": {Kind.LINK}}
    exact = {name: re.compile("|".join(_exact(p) for k, p in table if k in ks)) for name, ks in wanted.items()}
    anything, _ = _coverage(tuple(pattern for _, pattern in table))
    gaps = []
    for operation, path in sorted(asked):
        if operation in ("exists", "lstat"):
            parent = path.rpartition("/")[0]
            if not (anything.fullmatch(path) or exact["names"].fullmatch(parent)):
                gaps.append(f"{operation} {path}")
        elif not exact[operation].fullmatch(path):
            gaps.append(f"{operation} {path}")
    return gaps


def _exact(pattern: str) -> str:
    parts = re.split(r"(\*\*|\*|\[0-9\])", pattern)
    return "".join({"**": ".*", "*": "[^/]*", "[0-9]": "[0-9]"}.get(part) or re.escape(part) for part in parts)


def test_the_table_has_every_path_that_the_audit_reads(tree: tuple[Path, Root]) -> None:
    assert table_gaps(asked_of(tree[1]), host_tree.KERNEL_RELEASE) == []


def test_the_table_has_every_path_that_the_audit_reads_on_this_host() -> None:
    gaps = table_gaps(asked_of(Root()), os.uname().release)
    assert [gap for gap in gaps if not gap.startswith(("link /proc/", "names /proc/"))] == []


def test_the_recorder_would_notice_a_path_that_is_missing() -> None:
    asked = {("content", "/etc/unheard"), ("stat", "/proc/cmdline"), ("names", "/etc"), ("exists", "/opt/x")}
    assert table_gaps(asked, "6.1") == ["content /etc/unheard", "exists /opt/x", "names /etc", "stat /proc/cmdline"]


def test_the_shell_knows_every_name_by_which_emulators_are_found() -> None:
    samples = (
        *("qemu-system-x86_64", "qemu-kvm", "kvm", "firecracker", "firecracker-v1.7", "cloud-hypervisor"),
        *("cloud-hyperviso", "crosvm", "lkvm", "lkvm-static", "kvmtool", "stratovirt", "swtpm", "virtiofsd"),
        *("virtiofsd-1.2", "passt", "passt.avx2", "vhost-user-gpu", "vhost-device-scsi", "qemu-pr-helper"),
        *("qemu-storage-daemon", "qemu-storage-d"),
    )
    for _, pattern in (*_EMULATORS, *_HELPERS):
        fitting = [name for name in samples if pattern.fullmatch(name)]
        assert fitting, pattern.pattern
        assert all(any(fnmatchcase(name, glob) for glob in EMULATOR_NAMES) for name in fitting)


# What comes out is judged like the host itself


def facts_of(root: Root) -> Facts:
    facts, notes = collect_host_facts(root)
    assert notes == ()
    return facts


def test_a_capture_of_the_described_host_has_its_facts(tree: tuple[Path, Root], tmp_path: Path) -> None:
    capture = captured(taken_from(tree[1]), tmp_path / "c.tar")
    before, after = facts_of(tree[1]), facts_of(capture.root)
    lost = {name: (fact, after[name]) for name, fact in before.items() if not same(fact, after[name])}
    # Ages are counted to the time of the capture, which is now for both; everything else is equal.
    assert lost == {}


def still(first: Facts, last: Facts) -> Facts:
    """Facts that were the same at both times."""
    return {name: fact for name, fact in first.items() if same(fact, last[name])}


def same(fact: object, other: object) -> bool:
    if isinstance(fact, Known) and isinstance(other, Known):
        return fact.value == other.value and fact.stage == other.stage
    return isinstance(fact, Unknown) and isinstance(other, Unknown)


def test_a_capture_of_this_host_has_its_facts(tmp_path: Path) -> None:
    first = facts_of(Root())
    taken = facts_of(captured(collect_capture(Root(), "here", "test"), tmp_path / "c.tar").root)
    # Other tests start and stop things meanwhile: only what stayed as it was can be compared.
    stable = still(first, facts_of(Root()))
    lost = {n for n, fact in stable.items() if isinstance(fact, Known) and not same(fact, taken[n])}
    assert lost - set(LIVE_ONLY) - MOVING == set()
    wrong = {n for n, fact in stable.items() if isinstance(fact, Unknown) and isinstance(taken[n], Known)}
    assert wrong - MOVING == set(), "a capture cannot know more than the host"


@pytest.mark.parametrize(("name", "shell"), SHELLS, ids=[name for name, _ in SHELLS])
def test_the_script_makes_the_same_capture(name: str, shell: tuple[str, ...], tmp_path: Path) -> None:
    if not shutil.which(shell[0]):
        pytest.skip(f"{name} is not installed")
    file, out = tmp_path / "take.sh", tmp_path / "s.tar.gz"
    file.write_text(script("casemate test"))
    first = facts_of(captured(collect_capture(Root(), "here", "test"), tmp_path / "f.tar").root)
    done = run(*shell, str(file), "--yes", str(out))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    theirs = read_capture(out.read_bytes(), "s")
    ours = captured(collect_capture(Root(), "here", "test"), tmp_path / "p.tar")
    assert set(theirs.manifest.looked_for) == set(ours.manifest.looked_for)
    a, b = still(first, facts_of(ours.root)), facts_of(theirs.root)
    assert {n: (fact, b[n]) for n, fact in a.items() if n not in MOVING and not same(fact, b[n])} == {}
    moving = re.compile(
        r"/proc/(\d+|self|net|meminfo)(/.*)?|/sys/fs/cgroup/.*|/sys/class/.*|/sys/dev/.*|/etc/libvirt/.*"
    )
    mine = {path for path in ours.root._tree.files if not moving.fullmatch(path)}
    assert mine == {path for path in theirs.root._tree.files if not moving.fullmatch(path)}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def test_the_script_writes_nothing_without_a_yes(tmp_path: Path) -> None:
    file = tmp_path / "take.sh"
    file.write_text(script("casemate test"))
    for words, code in (([str(tmp_path / "o.tar")], 2), ([], 2), (["--unknown"], 2)):
        assert run("dash", str(file), *words).returncode == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["take.sh"]


# Secrets

PLANTED = "hunter2-PLANTED"


@pytest.mark.parametrize(
    ("through", "text"),
    [
        ("no-secrets", f'vnc_password = "{PLANTED}"\n'),
        ("no-secrets", f"<graphics type='vnc' passwd='{PLANTED} with a space'/>\n"),
        ("no-secrets", f"<qemu:arg value='-spice,password={PLANTED}'/>\n"),
        ("no-secrets", f"quiet luks.secret={PLANTED} ro\n"),
        ("no-secrets", f"rd.iscsi.password={PLANTED}\n"),
        ("no-secrets", f"https://admin:{PLANTED}@example.org/x\n"),
        ("no-secrets", f"token: {PLANTED}\n"),
        ("no-secrets", f"Authorization: Bearer {PLANTED}\n"),
        ("no-secrets", f"io.systemd.credential:root={PLANTED} and more {PLANTED}\n"),
        ("settings", f"# vnc_password = {PLANTED}\nuser = root\n"),
        ("settings", f'spice_password = "{PLANTED}"\n'),
        ("arguments", f"-spice\0port=1,password={PLANTED} x,,y,disable-ticketing=off\0"),
        ("arguments", f"-object\0secret,id=s0,data={PLANTED}\0"),
        ("arguments", f'-object\0{{"qom-type":"secret","id":"s","data":"{PLANTED}"}}\0'),
        ("arguments", f"-drive\0file=rbd:pool/x:id=admin:key={PLANTED}:conf=/x\0"),
        ("arguments", f"-smbios\0type=11,value=io.systemd.credential:passwd={PLANTED},x\0"),
        ("arguments", f"-fw_cfg\0name=opt/com.coreos/config,string={PLANTED}\0"),
        ("arguments", f"-drive\0file=https://u:{PLANTED}@host/x.img\0"),
        ("arguments", f"-append\0console=ttyS0 password={PLANTED} x={PLANTED}\0"),
        ("arguments", f"-x\0a\nsecret={PLANTED}\nb\0"),
        ("loader-variables", f"AWS_SECRET={PLANTED}\0LD_PRELOAD=/x.so\0TOKEN={PLANTED}\0"),
        ("accounts", f"web:{PLANTED}:1000:1000:{PLANTED}:/home/{PLANTED}:/bin/sh\n"),
        ("groups", f"kvm:{PLANTED}:104:web\n"),
    ],
)
def test_a_planted_secret_is_left_out(through: str, text: str) -> None:
    kept = FILTERS[through].apply(text.encode(), "x").decode()
    assert PLANTED not in kept
    assert in_shell("dash", through, text.encode()).decode() == kept
    if shutil.which("busybox"):
        assert in_shell("busybox", through, text.encode()).decode() == kept


def in_shell(shell: str, through: str, data: bytes, name: str = "x") -> bytes:
    words = dict(SHELLS)[shell]
    tools = script("test").split("# What is taken")[0]
    start = tools.index("through_whole")
    functions = tools[start : tools.index("vm_process()")].split("folder() {")[0]
    code = f"set -u; LC_ALL=C; export LC_ALL\n{functions}\nthrough_{through.replace('-', '_')} {name}"
    return subprocess.run([*words, "-c", code], input=data, capture_output=True, timeout=20, check=True).stdout


@pytest.mark.parametrize(
    ("through", "text"),
    [
        ("no-secrets", "BOOT_IMAGE=/vmlinuz root=UUID=12 ro mitigations=auto intel_iommu=on\n"),
        ("no-secrets", "password-secret=sec0 file=/etc/passwd passwd=on\n"),
        ("no-secrets", "<graphics type='spice' passwdValidTo='2027-01-01'/>\n"),
        ("arguments", "-vnc\0:1,password=on\0-spice\0password-secret=sec0,disable-ticketing=on\0"),
        ("arguments", "-object\0secret,id=s0,file=/run/key\0-object\0tls-creds-x509,id=t,dir=/x\0"),
        ("arguments", "-drive\0file=/images/token.qcow2,file.password-secret=s\0-uuid\0abc\0"),
        ("arguments", "qemu-system-x86_64\0-name\0guest=a,,b\nc\0-m\0512\0"),
    ],
)
def test_what_is_no_secret_stays(through: str, text: str) -> None:
    assert FILTERS[through].apply(text.encode(), "x").decode() == text
    assert in_shell("dash", through, text.encode()).decode() == text


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/shadow", "/etc/shadow-", "/etc/ssh/ssh_host_ed25519_key", "/etc/libvirt/secrets/a.base64"),
        *("/etc/pki/libvirt/private/serverkey.pem", "/x/.ssh/id_ed25519", "/dev/sda", "/x/tls.key", "/proc/12/mem"),
    ],
)
def test_never_opened(path: str) -> None:
    assert is_denied(path)


def test_no_line_of_the_table_takes_content_that_is_never_opened() -> None:
    assert [take.pattern for take in TABLE if take.kind is Kind.CONTENT and is_denied(take.pattern)] == []


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A host whose links and files try to bring secrets along."""
    base = tmp_path / "h"
    for folder in ("proc/self", "etc/modprobe.d", "etc/audit/rules.d", "etc/libvirt/qemu", "root"):
        (base / folder).mkdir(parents=True)
    (base / "proc/cmdline").write_text(f"ro luks.passphrase={PLANTED}\n")
    (base / "etc/shadow").write_text(f"root:{PLANTED}:1::::::\n")
    (base / "root/secret").write_text(f"{PLANTED}\n")
    (base / "etc/modprobe.d/a.conf").symlink_to("/etc/shadow")
    (base / "etc/modprobe.d/b.conf").symlink_to("../../root/secret")
    (base / "etc/audit/rules.d/k.rules").write_text(f"-----BEGIN RSA PRIVATE KEY-----\n{PLANTED}\n")
    (base / "etc/libvirt/qemu/web.xml").write_text(f"<domain><graphics passwd='{PLANTED}'/></domain>")
    (base / "etc/libvirt/qemu.conf").write_text(f'spice_password = "{PLANTED}"\n')
    os.mkfifo(base / "etc/modprobe.d/fifo.conf")
    (base / "etc/modprobe.d/bad\nname.conf").write_text("options kvm nested=1\n")
    return base


def test_links_and_keys_bring_no_secret_along(planted: Path, tmp_path: Path) -> None:
    taken = taken_from(Root(planted))
    out = tmp_path / "c.tar"
    write_capture(taken, str(out))
    assert PLANTED.encode() not in out.read_bytes()
    unread = taken.manifest.unread
    assert unread["/etc/modprobe.d/a.conf"] == "EPERM"
    assert unread["/etc/modprobe.d/b.conf"] == "EPERM"
    assert unread["/etc/audit/rules.d/k.rules"] == "EPERM"
    assert unread["/etc/modprobe.d/fifo.conf"] == "EINVAL"
    assert "EILSEQ" in unread.values()
    root = read_capture(out.read_bytes(), "c").root
    with pytest.raises(PermissionError):
        root.read_bytes("/etc/modprobe.d/a.conf")
    assert "passwd='redacted'" in root.read_text("/etc/libvirt/qemu/web.xml")


# Processes


PROCESS = {
    "stat": "77 (qemu-system-x86) S 1 77 77 0 -1 4194560" + " 9" * 40 + "\n",
    "cmdline": "qemu-system-x86_64\0-name\0web\0",
    "cgroup": "0::/machine.slice/web.scope\n",
}


def with_process(base: Path) -> Path:
    for name, text in PROCESS.items():
        (base / "proc/77").mkdir(parents=True, exist_ok=True)
        (base / f"proc/77/{name}").write_text(text)
    (base / "sys/fs/cgroup/machine.slice/web.scope").mkdir(parents=True)
    (base / "sys/fs/cgroup/machine.slice/memory.max").write_text("7\n")
    return base


def test_the_groups_of_an_emulator_are_taken_up_to_the_top(tmp_path: Path) -> None:
    taken = taken_from(Root(with_process(tmp_path)))
    assert taken.files["/sys/fs/cgroup/machine.slice/memory.max"] == b"7\n"
    assert "/sys/fs/cgroup/machine.slice/web.scope" in taken.folders
    assert taken.files["/proc/77/cmdline"] == PROCESS["cmdline"].encode()


def test_a_process_that_does_not_answer_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(capture_collect, "_PROCESS_DEADLINE_S", 0.1)
    monkeypatch.setattr(capture_collect, "_one_process", lambda root, pid, start_time: never.wait())
    taken = taken_from(Root(with_process(tmp_path)))
    never.set()
    assert taken.manifest.unread["/proc/77/cmdline"] == "ETIMEDOUT"
    assert "/proc/77/cmdline" not in taken.files


def test_a_process_that_ends_meanwhile_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_collect, "parse_start_time", lambda text: 1)
    taken = taken_from(Root(with_process(tmp_path)))
    assert [path for path in taken.files if path.startswith("/proc/77/")] == ["/proc/77/stat"]


# The archive


def test_the_archive_says_nothing_about_who_made_it(tree: tuple[Path, Root], tmp_path: Path) -> None:
    out = tmp_path / "c.tar"
    write_capture(taken_from(tree[1]), str(out))
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    with tarfile.open(out) as archive:
        members = archive.getmembers()
    assert members[0].name == "casemate-capture.json"
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", 0)}
    names = {m.name for m in members}
    assert all(m.name.rpartition("/")[0] in names for m in members if "/" in m.name), "directories have entries"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.tar"], "no temporary file is left"


def test_a_packed_archive_reads_the_same(tree: tuple[Path, Root], tmp_path: Path) -> None:
    taken = taken_from(tree[1])
    plain, packed = captured(taken, tmp_path / "c.tar"), captured(taken, tmp_path / "c.tar.gz")
    assert (tmp_path / "c.tar.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert packed.root._tree.files == plain.root._tree.files


def test_what_is_no_regular_file_is_not_replaced(tree: tuple[Path, Root], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("elsewhere")
    for name in ("link", "."):
        with pytest.raises(InputError, match="no regular file"):
            write_capture(taken_from(tree[1]), str(tmp_path / name))
    with pytest.raises(InputError, match="cannot write"):
        write_capture(taken_from(tree[1]), str(tmp_path / "no/such/c.tar"))


def test_the_archive_is_one_that_tar_reads(tree: tuple[Path, Root], tmp_path: Path) -> None:
    out = tmp_path / "c.tar"
    taken = taken_from(tree[1])
    write_capture(taken, str(out))
    with tarfile.open(fileobj=io.BytesIO(out.read_bytes())) as archive:
        for path, data in taken.files.items():
            member = archive.extractfile(f"root{path}")
            assert member is not None
            assert member.read() == data
