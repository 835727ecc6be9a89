"""Command lines and Xen domains become specifications: valid, judged by the same controls, nothing lost in silence."""

# ruff: noqa: E501  one command line a line

from __future__ import annotations

import datetime
import re
import shlex
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.cli.main import main
from casemate.controls.catalogue.all import all_controls, controls_about
from casemate.controls.judge import judge
from casemate.controls.model import Subject, Verdict
from casemate.errors import CasemateError, InputError
from casemate.facts.fact import Stage
from casemate.facts.machine import Machine
from casemate.facts.machine_boards import ORIGIN
from casemate.facts.machine_facts import machine_facts
from casemate.facts.qemu_argv import read_argv
from casemate.facts.xen_config import read_xl
from casemate.facts.xen_text import looks_like_xl, parse_xl
from casemate.harden.machine import KEEPABLE, SPEC_CONTROLS, HardenedSpec, harden_machine
from casemate.harden.machine_data import DEVICE_RULES, OURS
from casemate.harden.model import Reason
from casemate.plan.accel import Board
from casemate.plan.argv import Numbering, build_argv
from casemate.spec.parse import parse_spec

TODAY = datetime.date(2026, 1, 1)
Q = "qemu-system-x86_64"
LINES = {
    "by hand": f"{Q} -enable-kvm -m 2G -smp 2 -hda disk.qcow2 -cdrom /iso/debian.iso -boot d -nic user,hostfwd=tcp::2222-:22",
    "bare": f"{Q} /srv/disk.img",
    "proxmox": f"{Q} -id 100 -name web,debug-threads=on -chardev socket,id=qmp,path=/run/100.qmp,server=on,wait=off "
    "-mon chardev=qmp,mode=control -daemonize -smbios type=1,uuid=9e1c -smp 4,sockets=1,cores=4,maxcpus=4 -nodefaults "
    "-vnc unix:/run/100.vnc,password=on -cpu kvm64,enforce,+kvm_pv_eoi,+lahf_lm,+sep -m 4096 "
    "-device pci-bridge,id=pci.1,chassis_nr=1,bus=pci.0,addr=0x1e -device piix3-usb-uhci,id=uhci,bus=pci.0,addr=0x1.0x2 "
    "-device usb-tablet,id=tablet,bus=uhci.0,port=1 -device VGA,id=vga,bus=pci.0,addr=0x2 "
    "-device virtio-balloon-pci,id=balloon0,bus=pci.0,addr=0x3 -device virtio-scsi-pci,id=scsihw0,bus=pci.0,addr=0x5 "
    "-drive file=/srv/vm-100-disk-0.raw,if=none,id=drive-scsi0,format=raw,cache=none,aio=native "
    "-device scsi-hd,bus=scsihw0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0,bootindex=100 "
    "-netdev type=tap,id=net0,ifname=tap100i0,script=/usr/bin/up,downscript=/usr/bin/down,vhost=on "
    "-device virtio-net-pci,mac=BC:24:11:00:00:01,netdev=net0,bus=pci.0,addr=0x12,id=net0 -machine type=pc+pve0",
    "uefi": f"{Q} -machine q35,accel=kvm -m 1G -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd "
    "-drive if=pflash,format=raw,file=vars.fd -drive file=/d.qcow2,format=qcow2,if=virtio -nographic",
    "secure": f"{Q} -machine q35,accel=kvm,smm=on -global driver=cfi.pflash01,property=secure,value=on -m 1G "
    "-drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.ms.fd -drive if=pflash,format=raw,file=vars.fd "
    "-drive file=/d.qcow2,format=qcow2,if=virtio -nographic",
    "kernel": f"{Q} -M pc -kernel /boot/k -initrd /boot/i -append 'root=/dev/sda1 console=ttyS0' -m 512 -hda /r.img",
    "microvm": f"{Q} -M microvm -nodefaults -no-user-config -accel kvm -m 256 -kernel /k -append console=ttyS0 "
    "-drive id=d,file=/r.img,format=raw,if=none -device virtio-blk-device,drive=d",
    "passthrough": f"{Q} -machine q35 -m 8G -hda /d.img -device vfio-pci,host=01:00.0 -device usb-host,vendorid=1,productid=2",
    "desktop": f"{Q} -m 4G -machine q35 -hda /d.img -device qxl-vga -spice port=5900,addr=0.0.0.0,disable-ticketing=on "
    "-device ich9-intel-hda -device hda-duplex -device qemu-xhci -device usb-redir,chardev=c -chardev spicevmc,id=c,name=usbredir",
    "shares": f"{Q} -m 1G -hda /d.img -virtfs local,path=/home,mount_tag=h,security_model=none,id=h "
    "-object memory-backend-file,id=m,size=1G,mem-path=/dev/shm,share=on -device vhost-vsock-pci,guest-cid=3",
    "throttled": f"{Q} -m 1G -drive file=/d.img,format=raw,if=virtio,throttling.bps-read=10485760,bps_wr=5242880",
    "debugged": f"{Q} -m 1G -hda /d.img -s -S -monitor tcp:0.0.0.0:4444,server,nowait -serial telnet:0.0.0.0:5555,server",
    "remote": f"{Q} -m 1G -hda /d.img -drive file=nbd://host/export,if=virtio,format=raw",
    "wide": f"{Q} -m 1G -hda /d.img -netdev user,id=n,hostfwd=tcp:127.0.0.1:8080-:80,hostfwd=udp::53-:53 -device e1000,netdev=n",
    "isolated": f"{Q} -m 1G -hda /d.img -nic user,restrict=on",
}
EXTRA = [
    "-device e1000",
    "-nic tap,vhost=on",
    "-nic none",
    "-vga qxl",
    "-usb",
    "-device nvme,drive=n -drive id=n,if=none,file=/n.img,format=raw",
    "-drive file=/x.vmdk,format=vmdk",
    "-snapshot",
    "-device never-heard-of",
    "-frobnicate",
    "-device tpm-tis,tpmdev=t -tpmdev emulator,id=t,chardev=c -chardev socket,id=c,path=/s",
    "-cpu host,+vmx,hv-relaxed=on",
    "-object sev-guest,id=s",
    "-machine confidential-guest-support=s -object sev-snp-guest,id=s,policy=0xffffffffffffffff -kernel /k",
    "-machine confidential-guest-support=s -object tdx-guest,id=s,attributes=0xffffffffffffffff,mrowner=x -bios x",
    "-name 'Ünï \\\" code'",
    "-m 1",
    "-smp 300",
    "-device ivshmem-plain,memdev=m -object memory-backend-file,id=m,mem-path=/dev/shm/x,share=on,size=1M",
    "-fda /f.img",
    "-incoming tcp:0:4444",
    "-qmp stdio",
    "-drive file=/srv/two.qcow2,if=virtio -drive file=/srv/two.qcow2,if=virtio",
]
XEN_HVM = b"""\
# a Windows guest
name = "Win 10"; builder = 'hvm'
memory = 4096
vcpus = 2
disk = [ '/dev/vg0/win,raw,hda,rw',
         'file:/srv/iso/win.iso,hdc:cdrom,r' ,   # two
         'format=qcow2, vdev=xvdb, access=rw, target=/srv/data, with comma.qcow2' ]
vif = [ 'mac=00:16:3e:00:00:01,bridge=xenbr0' ]
vnc = 1
vnclisten = "0.0.0.0"
vncpasswd = "hunter2"
usb = 1
usbdevice = "tablet"
boot = "dc"
pci = [ '01:00.0' ]
serial = "pty"
nestedhvm = 1
viridian = 1
cap = 150
"""
XEN_PV = b"""\
name = 'db'
type = "pv"
kernel = "/boot/vmlinuz"
ramdisk = '/boot/initrd.img'
extra = "console=hvc0 quiet"
root = "/dev/xvda1"
memory = 512
disk = ['tap:aio:/srv/db.img,xvda1,w']
vif = ['']
on_crash = 'restart'
"""


def hardened(line: str) -> HardenedSpec:
    return harden_machine(read_argv(shlex.split(line), "t"))


def judged(done: HardenedSpec) -> dict[str, Verdict]:
    """What the catalogue says of the machine that the specification would be under KVM."""
    board = Board("kvm", "", "host,-vmx,-svm", "split", pit=False, pic=False, rtc=True, timers_why="")
    argv = build_argv(done.spec, board, "0" * 16, Numbering())
    # The descriptor behind rng-random is /dev/urandom, which a command line does not show (engine/opening.py).
    argv = tuple(re.sub(r"(rng-random,.*filename=)/dev/fdset/\d+", r"\1/dev/urandom", word) for word in argv)
    after = read_argv(argv, "after")
    assert after.unreadable == ()
    facts = machine_facts(after, Stage.DECLARED)
    return {f.control_id: f.verdict for f in judge(controls_about(Subject.VM), facts, stage=Stage.DECLARED)}


def check(machine: Machine, done: HardenedSpec) -> None:
    text = done.hardened.after
    assert parse_spec(text, "again", Path("/"), today=TODAY) == done.spec
    verdicts = judged(done)
    assert [c for c in done.hardened.claims if verdicts.get(c) is Verdict.FAIL] == []
    spoken = " ".join([c.what for c in done.hardened.changes] + [left.what for left in done.hardened.left])
    ours = [rule.pattern for rule in DEVICE_RULES if rule.rule is OURS]
    for device in machine.devices:
        if device.origin != ORIGIN and not any(pattern.fullmatch(device.type) for pattern in ours):
            assert device.type in spoken
    for disk in machine.disks:
        known = any(item.path.endswith(disk.path) for item in done.spec.disks)
        assert (
            known
            or disk.path[:60] in spoken
            or disk.device.startswith("floppy")
            or not disk.path
            or disk.protocol in spoken
        )


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_a_command_line_becomes_a_sound_specification(line: str) -> None:
    machine = read_argv(shlex.split(line), "t")
    done = harden_machine(machine)
    check(machine, done)
    assert done.hardened.changes


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(LINES)), st.lists(st.sampled_from(EXTRA), max_size=6, unique=True))
def test_whatever_is_added_it_is_sound_or_refused(name: str, extra: list[str]) -> None:
    machine = read_argv([*shlex.split(LINES[name]), *shlex.split(" ".join(extra))], "t")
    try:
        done = harden_machine(machine)
    except InputError:
        return
    check(machine, done)


@pytest.mark.parametrize("data", [XEN_HVM, XEN_PV], ids=["hvm", "pv"])
def test_a_xen_domain_becomes_a_sound_specification(data: bytes) -> None:
    machine = read_xl(data, "x.cfg")
    check(machine, harden_machine(machine))


def test_every_control_that_is_named_exists() -> None:
    known = {control.id for control in all_controls()}
    assert set(SPEC_CONTROLS) <= known
    assert set(KEEPABLE) <= set(SPEC_CONTROLS)
    assert {rule.control for rule in DEVICE_RULES if rule.rule is not OURS} <= known
    for line in LINES.values():
        done = hardened(line).hardened
        assert {c.control for c in done.changes} | {left.control for left in done.left} <= known


def test_network_and_ports() -> None:
    network = hardened(LINES["wide"]).spec.network
    assert [(p.address, p.host_port, p.guest_port, p.protocol) for p in network.publish] == [
        ("127.0.0.1", 8080, 80, "tcp"),
        ("127.0.0.1", 53, 53, "udp"),
    ]
    assert hardened(LINES["isolated"]).spec.network.egress == "none"
    assert hardened(LINES["microvm"]).spec.network.mode == "none"
    assert hardened(LINES["bare"]).spec.network.mode == "user"  # QEMU's own default: a card on slirp
    kept = harden_machine(read_argv(shlex.split(LINES["wide"]), "t"), keep=["net.publish-wide"])
    assert {p.address for p in kept.spec.network.publish} == {"127.0.0.1", "0.0.0.0"}
    assert "net.publish-wide" not in kept.hardened.claims
    assert [left.reason for left in kept.hardened.left if left.control == "net.publish-wide"] == [Reason.KEPT]


def test_disks_boot_order_and_modes() -> None:
    spec = hardened(LINES["by hand"]).spec
    assert [(d.path, d.format, d.mode) for d in spec.disks] == [
        ("/iso/debian.iso", "raw", "read-only"),
        ("/disk.qcow2", "qcow2", "persistent"),
    ]
    assert {d.mode for d in hardened(LINES["by hand"] + " -snapshot").spec.disks} == {"read-only", "overlay"}
    assert hardened(LINES["uefi"]).spec.boot.firmware == "uefi"
    secure = hardened(LINES["secure"])
    assert secure.spec.boot.firmware == "uefi-secure"
    assert ("dev.uefi", Reason.DECIDE) in {(left.control, left.reason) for left in secure.hardened.left}
    kernel = hardened(LINES["kernel"])
    assert kernel.spec.boot.cmdline == "root=/dev/vda1 console=ttyS0"
    assert any("root=/dev/sda1 becomes root=/dev/vda1" in change.what for change in kernel.hardened.changes)


def test_limits_are_taken_over() -> None:
    limits = hardened(LINES["throttled"]).spec.limits
    assert (limits.read_mib_s, limits.write_mib_s) == (10, 5)
    assert harden_machine(read_xl(XEN_HVM, "x")).spec.limits.cpu_percent == 150
    asked = harden_machine(read_argv(shlex.split(LINES["bare"]), "t"), io_limit_mib_s=50).spec.limits
    assert (asked.read_mib_s, asked.write_mib_s) == (50, 50)
    stays = harden_machine(read_argv(shlex.split(LINES["throttled"]), "t"), io_limit_mib_s=50).spec.limits
    assert (stays.read_mib_s, stays.write_mib_s) == (10, 5)


def test_what_only_the_owner_decides_is_said() -> None:
    left = {(item.control, item.reason) for item in hardened(LINES["passthrough"]).hardened.left}
    assert ("iommu.no-hostdev", Reason.DECIDE) in left
    left = {(item.control, item.reason) for item in hardened(LINES["remote"]).hardened.left}
    assert ("img.no-remote", Reason.DECIDE) in left
    done = hardened(f"{LINES['kernel']} -frobnicate 7").hardened
    assert any("frobnicate" in item.what and item.reason is Reason.DECIDE for item in done.left)


def test_options_without_a_word_for_them_are_listed_without_their_values() -> None:
    line = (
        f"{Q} -m 1G -hda /d.img -smbios type=1,serial=hunter2 -uuid 9e1c -rtc base=localtime -fw_cfg name=opt/x,string=hunter2 "
        "-boot order=n -option-rom /x.rom -kvm-shadow-memory 4 -no-user-config -msg timestamp=on"
    )
    left = {item.where for item in hardened(line).hardened.left if item.control == "dev.surface"}
    assert left == {"-smbios", "-uuid", "-rtc", "-fw_cfg", "-boot", "-option-rom", "-kvm-shadow-memory"}
    assert b"hunter2" not in msgspec.json.encode(hardened(line).hardened)
    quiet = f"{Q} -m 1G -hda /d.img -rtc base=utc -boot c -no-user-config -nodefaults"
    assert not [item for item in hardened(quiet).hardened.left if item.control == "dev.surface"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{Q} -m 64", "nothing to boot is left"),
        ("qemu-system-aarch64 -M virt -kernel /k", "x86_64"),
        (f"{Q} -drive file=/x.vmdk,format=vmdk", "nothing to boot"),
    ],
)
def test_what_no_specification_can_be_is_refused(line: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        hardened(line)
    assert words in str(caught.value)


def test_only_what_a_specification_can_say_is_kept() -> None:
    with pytest.raises(InputError, match="cannot keep"):
        harden_machine(read_argv([Q, "/d.img"], "t"), keep=["dev.no-usb"])
    kept = harden_machine(read_argv([Q, "/d.img"], "t"), keep=["dev.kvm"])
    assert kept.spec.machine.accel == "tcg"


def test_secrets_do_not_travel() -> None:
    text = msgspec.json.encode(harden_machine(read_xl(XEN_HVM, "x")).hardened)
    assert b"hunter2" not in text
    line = f"{Q} -m 1G -hda /d.img -object secret,id=s,data=hunter2 -spice password=hunter2,port=5900"
    assert b"hunter2" not in msgspec.json.encode(hardened(line).hardened)


def test_strange_names_make_no_strange_toml() -> None:
    for path in ('/a"b\\c.img', "/tab\there.img", "/é\u2028x.img", "/nl\nx.img"):
        try:
            done = harden_machine(read_argv([Q, "-drive", f"file={path},format=raw,if=virtio"], "t\n[evil]"))
        except CasemateError:
            continue
        assert done.spec.disks[0].path == path
        assert "[evil]\n" not in done.hardened.after


# ---- Xen's syntax ---------------------------------------------------------------------------------------------------


def test_xl_hvm_is_read() -> None:
    machine = read_xl(XEN_HVM, "x")
    assert (machine.name, machine.memory_mib, machine.vcpus, machine.accel) == ("Win 10", 4096, 2, "xen")
    assert [(d.path, d.format, d.read_only, d.device) for d in machine.disks] == [
        ("/dev/vg0/win", "raw", False, "ide-hd"),
        ("/srv/iso/win.iso", "raw", True, "ide-cd"),
        ("/srv/data, with comma.qcow2", "qcow2", False, "xen-disk"),
    ]
    assert {"rtl8139", "cirrus-vga", "usb-tablet", "vfio-pci"} <= {d.type for d in machine.devices}
    assert machine.secrets == ("vncpasswd",)
    assert machine.unreadable == ()
    assert any(b.type == "vnc" and b.properties["listen"] == "0.0.0.0" for b in machine.backends)


def test_xl_pv_is_read_and_its_console_becomes_serial() -> None:
    machine = read_xl(XEN_PV, "x")
    assert machine.disks[0].path == "/srv/db.img"
    assert machine.cmdline == "root=/dev/xvda1 console=hvc0 quiet"
    done = harden_machine(machine)
    assert done.spec.boot.cmdline == "root=/dev/vda1 console=ttyS0 quiet"
    assert not any(device.type == "rtl8139" for device in machine.devices)


@pytest.mark.parametrize(
    "same",
    [
        ["/dev/vg/guest-volume,,hda", "/dev/vg/guest-volume,raw,hda,rw", "raw:/dev/vg/guest-volume,hda,w", "vg/guest-volume,,hda",
         "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume"],
        ["/root/image.iso,,hdc,cdrom", "/root/image.iso,,hdc,,cdrom", "/root/image.iso,raw,hdc,devtype=cdrom",
         "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso", "raw:/root/image.iso,hdc:cdrom,ro"],
    ],
)  # fmt: skip
def test_the_manuals_equivalent_disks_are_the_same(same: list[str]) -> None:
    found = {read_xl(f'name="x"\nbuilder="hvm"\ndisk=["{text}"]\n'.encode(), "x").disks for text in same}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = open('/etc/passwd').read()", "line 1"),
        ("memory = 512 * 2", "line 1"),
        ("\n\nname", "line 3"),
        ("disk = [ 'a' 'b' ]", "comma or ]"),
        ("disk = [ 'a'", "end of the file"),
        ("import os", "NAME = VALUE"),
        ("name = 'x' 'y'", "end of the line"),
        ("x = @", "nothing is evaluated"),
    ],
)
def test_what_is_no_xl_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_xl(text.encode(), "x")
    assert words in str(caught.value)


def test_xl_syntax() -> None:
    text = "a = 1 # one\nb='it\\'s'; c = \"\"\"long\n\"\"\"\nd = [ 'x',\n 'y', ]\nd += 'z'\ne = 0x10\na = 2\n"
    assert parse_xl(text.encode(), "x") == {"a": "2", "b": "it's", "c": "long\n", "d": ("x", "y", "z"), "e": "0x10"}
    for data in (b"\xff", b"x" * (2 << 20)):
        with pytest.raises(InputError):
            parse_xl(data, "x")


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="namedisk =[]'\",\n#;+0123\\xé", max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_xl(text.encode(), "x")
    except InputError:
        return


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.text(alphabet="abc=,:/ro wxvdatrg!", max_size=30), max_size=4),
    st.sampled_from(["hvm", "pv", "pvh", "odd"]),
)
def test_any_disk_text_is_read(texts: list[str], kind: str) -> None:
    items = ", ".join(f'"{text}"' for text in texts)
    read_xl(f'name="x"\ntype="{kind}"\ndisk=[{items}]\nvif=[{items}]\n'.encode(), "x")


def test_long_input_takes_no_long_time() -> None:
    """Nothing here may need time quadratic in the input: each of these would then take hours."""
    assert not looks_like_xl("\n" * (1 << 20))
    assert not looks_like_xl(" " * (1 << 20))
    with pytest.raises(InputError):
        parse_xl(b"x = '" + b"\\a" * (1 << 18), "x")
    line = [
        Q,
        "-drive",
        f"file=/d.img,format=raw,serial={'a' * 60_000}",
        "-netdev",
        f"user,id=n,hostfwd={'-' * 60_000}",
    ]
    harden_machine(read_argv(line, "t"))


def test_xl_is_told_from_toml_and_command_lines() -> None:
    assert looks_like_xl(XEN_HVM.decode())
    assert looks_like_xl(XEN_PV.decode())
    assert not looks_like_xl('name = "web"\n[machine]\nmemory_mib = 5\n[[disk]]\npath = "x"\n')
    assert not looks_like_xl(LINES["by hand"])


# ---- The command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_specification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, config = tmp_path / "vm.toml", tmp_path / "vm.cfg"
    config.write_bytes(XEN_PV)
    assert main(["harden", str(config), "-o", str(out)]) == 0
    assert 'kernel = "/boot/vmlinuz"' in out.read_text()
    assert main(["harden", "--", *shlex.split(LINES["isolated"])]) == 0
    said = capsys.readouterr()
    assert 'egress = "none"' in said.out
    assert "dev.no-slirp" in said.err
    line = tmp_path / "cmd"
    line.write_text(LINES["passthrough"])
    assert main(["harden", str(line), "--json"]) == 1
    assert '"kind": "spec"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--diff", "--", Q, "/d.img"], "--diff compares two forms"),
        (["--in-place", "--", Q, "/d.img"], "needs a libvirt domain"),
        (["/bin/sh"], "cannot be hardened"),
        (["/etc/passwd"], "cannot be hardened"),
        (["--", "firecracker", "--config-file", "/x"], "the program 'firecracker'"),
        (["--keep", "dev.no-usb", "--", Q, "/d.img"], "cannot keep this"),
        (["--io-limit", "0", "--", Q, "/d.img"], "no number of MiB per second"),
    ],
)
def test_what_does_not_fit_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["harden", *words])
    except SystemExit as ended:  # argparse
        code = int(str(ended.code))
    assert code == 2
    assert said in capsys.readouterr().err


def test_an_emulated_tpm_becomes_one_of_the_vms_own_and_the_hosts_does_not() -> None:
    command = f"{Q} -m 1G -hda /d.img -device tpm-tis,tpmdev=t -tpmdev "
    emulated = hardened(f"{command}emulator,id=t,chardev=c -chardev socket,id=c,path=/s")
    assert emulated.spec.tpm.enabled
    assert "tpm.state-encrypted" in {change.control for change in emulated.hardened.changes}
    hosts = hardened(f"{command}passthrough,id=t,path=/dev/tpm0")
    assert not hosts.spec.tpm.enabled
    assert "dev.tpm" in {left.control for left in hosts.hardened.left}
