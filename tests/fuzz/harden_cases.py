"""What the fuzzer of `harden` shares with its smoke run: a command line or an xl.cfg in, a specification or an error.

Whatever the bytes: the specification parses again to itself, holds no relative path, claims nothing that its
own machine fails, and no device of what was read is lost in silence.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from casemate.audit.documents import split_command
from casemate.controls.catalogue.all import controls_about
from casemate.controls.judge import judge
from casemate.controls.model import Subject, Verdict
from casemate.errors import CasemateError, InputError
from casemate.facts.fact import Stage
from casemate.facts.machine import Machine
from casemate.facts.machine_boards import ORIGIN
from casemate.facts.machine_facts import machine_facts
from casemate.facts.qemu_argv import read_argv
from casemate.facts.xen_config import read_xl
from casemate.harden.machine import harden_machine
from casemate.harden.machine_data import DEVICE_RULES, OURS
from casemate.plan.accel import Board
from casemate.plan.argv import Numbering, build_argv
from casemate.spec.parse import parse_spec

TODAY = datetime.date(2026, 1, 1)
BOARD = Board("kvm", "", "host,-vmx,-svm", "split", pit=False, pic=False, rtc=True, timers_why="")
OF_DESCRIPTORS = {"ent.virtio-rng"}
"""What a command line with descriptors does not show."""

XL_SEEDS = (
    b"name='a'\ntype='hvm'\nmemory=512\ndisk=['/d.img,raw,hda,rw','file:/i.iso,hdc:cdrom,r']\nvif=['bridge=b']\nusb=1\n",
    b"name='b'\nkernel='/k'\nextra='console=hvc0'\nroot='/dev/xvda1'\ndisk=['format=qcow2, vdev=xvdb, target=/q, r']\n",
    b"name='c'\nbuilder='hvm'\nbios='ovmf'\npci=['01:00.0']\nserial=['tcp:h:1']\ndisk=[ 'phy:vg/x,xvda,w' ]\ncap=50\n",
)

CONFIDENTIAL_SEEDS = (
    b"qemu-system-x86_64 -m 1G -accel kvm -cpu EPYC-v4 -machine q35,confidential-guest-support=c -bios /f.fd "
    b"-kernel /k -object sev-snp-guest,id=c,policy=0xb0000,kernel-hashes=on,author-key-enabled=on,"
    b"host-data=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    b"qemu-system-x86_64 -m 1G -machine q35,confidential-guest-support=c -bios /f.fd -drive file=/d,format=raw "
    b"-object tdx-guest,id=c,attributes=0x10000000,mrowner=AAAA,quote-generation-socket.type=unix,"
    b"quote-generation-socket.path=/q",
)


def xl_input(data: bytes) -> None:
    """Read as xl.cfg."""
    try:
        machine = read_xl(data, "fuzz")
    except InputError:
        return
    harden_input(machine)


def command_input(data: bytes) -> None:
    """Read as a command line."""
    try:
        machine = read_argv(split_command(data, "fuzz"), "fuzz")
    except InputError:
        return
    harden_input(machine)


def harden_input(machine: Machine) -> None:
    """Harden, and look at the result."""
    try:
        done = harden_machine(machine)
    except CasemateError:
        return
    if parse_spec(done.hardened.after, "again", Path("/"), today=TODAY) != done.spec:
        raise AssertionError("the text is another specification")
    if any(not disk.path.startswith("/") for disk in done.spec.disks):
        raise AssertionError("a relative path")
    after = read_argv(build_argv(done.spec, BOARD, "0" * 16, Numbering()), "after")
    facts = machine_facts(after, Stage.DECLARED)
    verdicts = {f.control_id: f.verdict for f in judge(controls_about(Subject.VM), facts, stage=Stage.DECLARED)}
    broken = [c for c in done.hardened.claims if verdicts.get(c) is Verdict.FAIL and c not in OF_DESCRIPTORS]
    if broken:
        raise AssertionError(f"claimed and not so: {broken}")
    spoken = " ".join([c.what for c in done.hardened.changes] + [left.what for left in done.hardened.left])
    for device in machine.devices:
        quiet = any(rule.rule is OURS and rule.pattern.fullmatch(device.type) for rule in DEVICE_RULES)
        if device.origin != ORIGIN and not quiet and device.type not in spoken:
            raise AssertionError(f"{device.type!r} is lost")
