"""Fuzzes the reading and judging of captures: each input is a report or an InputError, never anything else.

The first byte chooses what is wrong with an otherwise valid capture of a small host with one VM: the archive's bytes
(with checksums put right), the manifest, or the content of a file. Run for longer with
``python tests/fuzz/fuzz_capture.py tests/fuzz/corpus-capture -max_total_time=60``; tests/fuzz/test_fuzz_capture.py runs
the kept corpus and some thousand inputs.
"""

from __future__ import annotations

import datetime
import io
import json
import sys
import tarfile
from functools import cache

from casemate.audit.capture_model import MANIFEST
from casemate.audit.captures import report_capture
from casemate.audit.judging import Setting
from casemate.controls.profiles import DEFAULT, named
from casemate.errors import InputError

SETTING = Setting(named(DEFAULT), datetime.date(2026, 1, 1))
_STATUS = """Name:\tqemu\nUid:\t64055\t64055\t64055\t64055\nGid:\t104\t104\t104\t104\nGroups:\t104\nNSpid:\t7
CapInh:\t0\nCapPrm:\t0\nCapEff:\t0\nCapBnd:\t0\nCapAmb:\t0\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"""
FILES = {
    "/proc/sys/kernel/osrelease": "6.12.110\n",
    "/proc/sys/kernel/hostname": "web7\n",
    "/proc/cmdline": "ro quiet intel_iommu=on\n",
    "/proc/cpuinfo": "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx\nbugs\t\t: l1tf mds\n",
    "/proc/swaps": "Filename Type Size Used Priority\n/dev/dm-1 partition 1 0 -2\n",
    "/proc/net/tcp": "  sl  local_address rem_address   st\n   0: 0100007F:0016 00000000:0000 0A\n",
    "/proc/self/cgroup": "0::/x.scope\n",
    "/proc/self/mountinfo": "24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n",
    "/proc/7/stat": "7 (qemu-system-x86) S 1 7 7 0 -1 4194560" + " 9" * 40 + "\n",
    "/proc/7/status": _STATUS,
    "/proc/7/task/7/status": _STATUS,
    "/proc/7/cmdline": "qemu-system-x86_64\0-name\0web\0-drive\0file=/i.qcow2,if=virtio\0",
    "/proc/7/limits": "Max core file size        0                    0                    bytes\n",
    "/proc/7/cgroup": "0::/machine.slice/web.scope\n",
    "/proc/7/mountinfo": "24 1 8:1 / / ro - ext4 /dev/sda1 ro\n",
    "/proc/7/maps": "1000-2000 rwxp 00000000 00:00 0 \n2000-3000 r-xp 00000000 08:01 9 /usr/bin/qemu-system-x86_64\n",
    "/proc/7/fdinfo/3": "pos:\t0\nflags:\t02\nmnt_id:\t1\n",
    "/proc/7/environ": "LD_PRELOAD=/x.so\0",
    "/proc/7/personality": "00000000\n",
    "/proc/7/oom_score_adj": "0\n",
    "/proc/7/attr/current": "system_u:system_r:svirt_t:s0:c1,c2\n",
    "/sys/fs/cgroup/machine.slice/web.scope/memory.max": "1073741824\n",
    "/etc/passwd": "root::0:0:::/bin/sh\nweb::1000:1000:::/bin/sh\n",
    "/etc/group": "root::0:\nkvm::104:web\n",
    "/etc/modprobe.d/a.conf": "options kvm_intel nested=0\nblacklist vhost_net\n",
    "/etc/libvirt/qemu.conf": 'security_driver = "selinux"\nnamespaces = [ "mount" ]\n',
    "/etc/libvirt/qemu/web.xml": "<domain type='kvm'><name>web</name><devices><disk type='file'/></devices></domain>",
    "/var/lib/dpkg/status": "Package: linux-image-6.12.110\nStatus: install ok installed\nVersion: 6.12-1\n",
    "/sys/module/kvm/parameters/nx_huge_pages": "Y\n",
}
LINKS = {
    "/proc/7/exe": "/usr/bin/qemu-system-x86_64",
    "/proc/7/fd/3": "/i.qcow2",
    "/proc/7/root": "/",
    "/proc/7/ns/net": "net:[4026531840]",
    "/lib": "usr/lib",
}


@cache
def seed_manifest() -> str:
    """As `casemate capture` would write it for this host."""
    names: dict[str, list[str]] = {"/proc": ["7", "cmdline"], "/sys/module": ["kvm"], "/proc/7/fd": ["3"]}
    names |= {"/proc/7/task": ["7"], "/etc/libvirt": ["qemu", "qemu.conf"], "/etc/libvirt/qemu": ["web.xml"]}
    names |= {"/etc/modprobe.d": ["a.conf"], "/usr/bin": ["qemu-system-x86_64"]}
    document = {
        "casemate_capture": 1,
        "time": "2026-01-02T03:04:05Z",
        "host": "web7",
        "tool": "fuzz",
        "uid": 0,
        "looked_for": ["c /proc/**", "c /sys/**", "c /etc/*", "n /sys/module", "s /dev/*"],
        "names": names,
        "status": [["/", 16877, 0, 0, 0, 1, 2, 0], ["/dev/kvm", 8624, 0, 104, 2792], ["/proc/7/fd/3", 33188, 0, 0]],
        "unread": {"/proc/8/fd": "EACCES"},
    }
    return json.dumps(document)


def archive(manifest: bytes, files: dict[str, bytes]) -> bytes:
    """The capture with this manifest and these files in place of the seed's."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        content = {MANIFEST: manifest, **{f"root{path}": text.encode() for path, text in FILES.items()}}
        content |= {f"root{path}": data for path, data in files.items()}
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for path, target in LINKS.items():
            entry = tarfile.TarInfo(f"root{path}")
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return stream.getvalue()


@cache
def seed() -> bytes:
    """The valid capture."""
    return archive(seed_manifest().encode(), {})


def mutated_archive(choices: bytes) -> bytes:
    """The seed with bytes overwritten, each four of ``choices`` once, and the checksums of headers put right."""
    data = bytearray(seed())
    for at in range(0, len(choices) - 3, 4):
        high, middle, low, value = choices[at : at + 4]
        data[(high << 16 | middle << 8 | low) % len(data)] = value
    for at in range(0, len(data) - 511, 512):
        header = data[at : at + 512]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    return bytes(data)


def mutated_text(text: bytes, choices: bytes) -> bytes:
    """``text`` with pieces replaced: (position, length, replacement)."""
    data = bytearray(text)
    for at in range(0, len(choices) - 2, 3):
        where = choices[at] * 7 % (len(data) + 1)
        data[where : where + choices[at + 1] % 16] = bytes([choices[at + 2]]) * (choices[at + 1] % 3)
    return bytes(data)


def one_input(data: bytes) -> int:
    """Judge one input; returns how many targets it had.

    Raises:
        anything but InputError: a finding.
    """
    kind, choices = data[:1], data[1:]
    if kind in (b"", b"\0"):
        capture = choices
    elif kind[0] % 3 == 0:
        capture = mutated_archive(choices)
    elif kind[0] % 3 == 1:
        capture = archive(mutated_text(seed_manifest().encode(), choices), {})
    else:
        paths = sorted(FILES)
        path = paths[choices[0] % len(paths)] if choices else paths[0]
        capture = archive(seed_manifest().encode(), {path: mutated_text(FILES[path].encode(), choices[1:])})
    try:
        return len(list(report_capture(capture, "fuzz", SETTING)))
    except InputError:
        return 0


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
