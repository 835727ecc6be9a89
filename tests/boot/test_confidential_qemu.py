"""Arguments of confidential guests, given to real QEMUs: what stops them must be the missing processor, not a word.

Two ways. As planned: QEMU reads every object and the board, asks KVM for a VM of that kind, and ends there. Without the
link between board and object, under TCG: it builds the whole machine and answers the questions of the read-back.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.hosts import CONFIDENTIAL_EMULATORS, CONFIDENTIAL_HOSTS, plan_of
from tests.support.machines import Machines
from tests.support.newer_qemu import NewerQemu, newer_qemu
from tests.unit.test_plan import PLANS, SIZES, load

from casemate.engine import hostview
from casemate.engine.paths import Paths
from casemate.engine.readback_confidential import observe_confidential
from casemate.errors import VmError
from casemate.facts.closure import needed_closure
from casemate.facts.confidential import ConfidentialHost
from casemate.facts.fact import Known
from casemate.facts.root import Root
from casemate.jail import root
from casemate.plan.confidential import missing
from casemate.plan.model import Emulator, Host, LaunchPlan
from casemate.spec.model import Spec
from casemate.spec.parse import parse_spec

pytestmark = pytest.mark.boot

SPECS = {"sev-snp": "q35-sev-snp", "tdx": "q35-tdx", "se": "s390-se"}
FIRMWARE = "/usr/share/ovmf/OVMF.fd"
NO_KVM = ("Could not access KVM kernel module", "failed to initialize kvm")


@pytest.fixture(scope="module")
def newer() -> NewerQemu:
    return newer_qemu()


def planned(kind: str) -> LaunchPlan:
    return plan_of(load(SPECS[kind]), CONFIDENTIAL_HOSTS[kind], SIZES, emulator=CONFIDENTIAL_EMULATORS[kind])


class Run:
    """One QEMU with the descriptors of a plan; ``ours`` is the other end of its QMP."""

    def __init__(self, program: list[str], plan: LaunchPlan, words: list[str], tmp_path: Path, **more: Any) -> None:
        self._open: list[Any] = []
        held = {}
        self.ours, theirs = socket.socketpair()
        for item in plan.descriptors:
            held[item.number] = self._source(item.role, theirs, tmp_path)
        paths = {"/boot/kernel": tmp_path / "kernel", "/boot/initrd": tmp_path / "kernel", "/boot/firmware": FIRMWARE}
        words = [str(paths.get(word, word)) for word in words]

        def place() -> None:
            moved = {number: os.dup2(source, 500 + number) for number, source in held.items()}
            for number, source in moved.items():
                if number > 2:
                    os.dup2(source, number)

        self.process = subprocess.Popen(
            [*program, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            close_fds=False,
            preexec_fn=place,  # noqa: PLW1509 - one thread, and only dup2
            **more,
        )
        theirs.close()
        self.lines = self.ours.makefile("rw")

    def _source(self, role: str, qmp: socket.socket, tmp_path: Path) -> int:
        if role == "qmp":
            return qmp.fileno()
        if role in {"console", "net"}:
            pair = socket.socketpair()
            self._open += pair
            return pair[0].fileno()
        name = {"entropy": Path("/dev/urandom"), "null": Path("/dev/null"), "log": Path("/dev/null")}.get(role)
        if name is None:
            name = tmp_path / role
            if role.startswith("overlay"):
                subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(name), "16M"], check=True)
            else:
                name.write_bytes(bytes(16 << 20))
        file = name.open("r+b" if role.startswith("overlay") else "rb")
        self._open.append(file)
        return file.fileno()

    def ask(self, command: str, **arguments: Any) -> Any:
        """One QMP command."""
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.lines.flush()
        with contextlib.suppress(ConnectionError):
            while line := self.lines.readline():
                message = json.loads(line)
                if "error" in message:
                    raise AssertionError(f"{command} {arguments}: {message['error']['desc']}")
                if "return" in message:
                    return message["return"]
        raise AssertionError(f"{command}: QEMU ended: {self.process.communicate(timeout=30)[1]}")

    def end(self) -> str:
        """Its last words."""
        try:
            return str(self.process.communicate(timeout=60)[1])
        finally:
            self.close()

    def close(self) -> None:
        """Nothing of it stays."""
        self.process.kill()
        self.process.wait()
        for item in (self.lines, self.ours, *self._open, self.process.stderr):
            item.close()


@contextlib.contextmanager
def running(*arguments: Any, **more: Any) -> Iterator[Run]:
    run = Run(*arguments, **more)
    try:
        yield run
    finally:
        run.close()


@pytest.fixture
def boot_files(tmp_path: Path) -> Path:
    """A kernel that QEMU's loader takes; none of it runs."""
    header = bytearray(64 << 10)
    header[0x1F1] = 4  # setup sectors
    header[0x1FE:0x200] = b"\x55\xaa"
    header[0x202:0x206] = b"HdrS"
    header[0x206:0x208] = (0x20F).to_bytes(2, "little")
    header[0x211] = 1  # loaded high
    header[0x22C:0x230] = (0x7FFFFFFF).to_bytes(4, "little")
    header[0x238:0x23C] = (2047).to_bytes(4, "little")
    (tmp_path / "kernel").write_bytes(header)
    return tmp_path


def words_of(plan: LaunchPlan) -> list[str]:
    return list(plan.wall.argv[1:])


def refusal(newer: NewerQemu, plan: LaunchPlan, words: list[str], tmp_path: Path, program: str) -> str:
    return Run(newer.command(program), plan, words, tmp_path, env=newer.environment).end()


@pytest.mark.parametrize(("kind", "name"), [("sev-snp", "SEV-SNP"), ("tdx", "TDX")])
def test_only_the_processor_is_missing(newer: NewerQemu, boot_files: Path, kind: str, name: str) -> None:
    plan = planned(kind)
    if Path("/dev/sev").exists():
        pytest.skip("this host has a security processor: QEMU gets further here")
    said = refusal(newer, plan, words_of(plan), boot_files, "qemu-system-x86_64")
    lacks = f"vm-type {name} not supported by KVM" if os.access("/dev/kvm", os.R_OK | os.W_OK) else NO_KVM[0]
    assert lacks in said, said
    # And it would have said so: one letter less, and it does.
    wrong = [
        word.replace('"kernel-hashes"', '"kernel-hash"').replace('"mrconfigid"', '"mrconfig"')
        for word in words_of(plan)
    ]
    assert "Parameter 'kernel-hash' is unexpected" in (
        text := refusal(newer, plan, wrong, boot_files, "qemu-system-x86_64")
    ) or ("Parameter 'mrconfig' is unexpected" in text), text


def test_the_whole_command_line_of_s390x(newer: NewerQemu, boot_files: Path) -> None:
    """A QEMU of s390x on this host has no KVM, so no such object; everything else of the plan is built."""
    plan = planned("se")
    said = refusal(newer, plan, words_of(plan), boot_files, "qemu-system-s390x")
    assert "invalid object type: s390-pv-guest" in said or NO_KVM[1] in said, said
    with running(
        newer.command("qemu-system-s390x"), plan, unlinked(plan, drop=True), boot_files, env=newer.environment
    ) as run:
        assert run.lines.readline().startswith('{"QMP"')
        run.ask("qmp_capabilities")
        types = {item["type"] for item in run.ask("qom-list", path="/machine/peripheral")}
        assert any("virtio-blk-ccw" in name for name in types), types


def unlinked(plan: LaunchPlan, *, drop: bool = False) -> list[str]:
    """The arguments for TCG: no machine is linked with the object, which stays unless ``drop``."""
    words = words_of(plan)
    machine, accel, cpu = (words.index(flag) + 1 for flag in ("-machine", "-accel", "-cpu"))
    parts = words[machine].split(",")
    words[machine] = ",".join(p for p in parts if not p.startswith(("confidential-guest-support", "kernel-irqchip")))
    words[accel] = "tcg"
    words[cpu] = words[cpu].replace("host", "max")
    if drop:
        del words[words.index("-object") : words.index("-object") + 2]
    return words


def test_the_whole_command_line_of_tdx(newer: NewerQemu, boot_files: Path) -> None:
    """Without the object: QEMU 11.1 aborts under TCG when it resets one, even one that nothing is linked with."""
    plan = planned("tdx")
    with running(newer.command(), plan, unlinked(plan, drop=True), boot_files, env=newer.environment) as run:
        assert run.lines.readline().startswith('{"QMP"')
        run.ask("qmp_capabilities")
        types = {item["type"] for item in run.ask("qom-list", path="/machine/peripheral")}
        assert any("virtio-blk-pci" in name for name in types), types


@pytest.mark.parametrize("kind", ["sev-snp", "tdx"])
def test_the_read_back_of_a_real_object(newer: NewerQemu, boot_files: Path, kind: str) -> None:
    """What the plan declares is what QEMU says of the object, but for the link, which is not there."""
    plan = planned(kind)
    words = unlinked(plan) if kind == "sev-snp" else [*unlinked(plan), "-preconfig"]  # no machine yet, no reset
    with running(newer.command(), plan, words, boot_files, env=newer.environment) as run:
        assert run.lines.readline().startswith('{"QMP"')
        run.ask("qmp_capabilities")
        seen = observe_confidential(plan, run.ask)
        declared = {name: fact for name, fact in plan.declared.items() if name.startswith("cc.")}
        assert set(seen) == set(declared)
        for name, fact in declared.items():
            found, promised = seen[name], fact
            assert isinstance(found, Known)
            assert isinstance(promised, Known)
            assert found.value == ("none" if name == "cc.type" else promised.value), name
        linked = observe_confidential(plan, with_link(run.ask))
        assert linked["cc.type"] == msgspec.structs.replace(seen["cc.type"], value=kind)


def with_link(ask: Callable[..., Any]) -> Callable[..., Any]:
    """QMP as a machine answers that is linked with its object: the path of the link's target."""

    def answer(command: str, **arguments: Any) -> Any:
        if arguments.get("property") == "confidential-guest-support":
            return "/objects/confidential"
        return ask(command, **arguments)

    return answer


def test_the_object_of_an_open_policy_is_seen_as_open(newer: NewerQemu, boot_files: Path) -> None:
    plan = planned("sev-snp")
    words = [word.replace('"policy":196919', '"policy":983351').replace(":true", ":false") for word in unlinked(plan)]
    with running(newer.command(), plan, words, boot_files, env=newer.environment) as run:
        run.lines.readline()
        run.ask("qmp_capabilities")
        seen = {
            name: fact.value for name, fact in observe_confidential(plan, run.ask).items() if isinstance(fact, Known)
        }
    assert (seen["cc.debug"], seen["cc.migration-agent"], seen["cc.kernel"]) == (True, True, "unmeasured")


def test_the_hosts_own_qemu(boot_files: Path) -> None:
    """QEMU 7.2 knows the board's link and SEV's first object, and not SEV-SNP's: `missing` says which one has it."""
    program = shutil.which("qemu-system-x86_64")
    assert program is not None
    version = subprocess.run([program, "-version"], capture_output=True, text=True, check=True).stdout.split()[3]
    if int(version.split(".")[0]) >= 9:
        pytest.skip(f"the host's QEMU is {version}: it has sev-snp-guest")
    plan = planned("sev-snp")
    said = Run([program], plan, words_of(plan), boot_files).end()
    assert "does not accept value 'sev-snp-guest'" in said, said
    emulator = msgspec.structs.replace(CONFIDENTIAL_EMULATORS["sev-snp"], version=(7, 2, 0))
    assert "has no sev-snp-guest" in "".join(missing(plan.spec, CONFIDENTIAL_HOSTS["sev-snp"], emulator))
    first = '{"qom-type":"sev-guest","id":"confidential","cbitpos":51,"reduced-phys-bits":1,"kernel-hashes":true}'
    at = words_of(plan).index("-object") + 1
    words = [*words_of(plan)[:at], first, *words_of(plan)[at + 1 :]]
    said = Run([program], plan, words, boot_files).end()
    assert any(text in said for text in ("cbitpos check failed", "/dev/sev", NO_KVM[0])), said


# ---- in the wall ----------------------------------------------------------------------------------------------------


@pytest.fixture
def vms(tmp_path: Path) -> Iterator[Machines]:
    machines = Machines(str(tmp_path / "vms"))
    try:
        yield machines
    finally:
        machines.end_all()


def emulator_of(newer: NewerQemu) -> Emulator:
    """The unpacked QEMU as the plan wants it: its files at the places where they would lie in a root of its own."""
    program = "/usr/bin/qemu-system-x86_64"
    files = {file.target: f"{newer.root}{file.source}" for file in needed_closure(program, Root(newer.root))}
    data = {name: f"/usr/share/qemu/{name}" for name in ("kvmvapic.bin", "linuxboot_dma.bin")}
    return Emulator(
        path=str(newer.root) + program,
        version=newer.version(),
        machine_types=("q35",),
        files={program: f"{newer.root}{program}", **files},
        modules={},
        firmware={name: (target, f"{newer.root}{target}") for name, target in data.items()},
    )


@pytest.mark.parametrize(("kind", "name"), [("sev-snp", "SEV-SNP"), ("tdx", "TDX")])
def test_a_launch_in_the_wall_gets_as_far_as_the_processor(
    newer: NewerQemu, vms: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    """With a host that claims to have everything: root, descriptors, identity and filter let QEMU 11 get to its
    question to KVM, and its answer reaches the caller. Nothing of the VM is left.
    """
    if Path("/dev/sev").exists() or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("this host has a security processor, or no KVM to ask")
    text = (PLANS / f"{SPECS[kind]}.toml").read_text().replace('mode = "user"', 'mode = "none"')
    for file in ("vmlinuz", "initrd.img", "root.raw"):
        (tmp_path / file).write_bytes(bytes(1 << 20))
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(tmp_path / "qgs.socket"))
        text = text.replace("/var/run/tdx-qgs/qgs.socket", str(tmp_path / "qgs.socket"))
        text = text.replace("memory_mib = 2048", "memory_mib = 128").replace("vcpus = 2", "vcpus = 1")
        spec = parse_spec(text, "vm.toml", tmp_path, today=datetime.date(2026, 1, 1))
        real = hostview.collect

        def claimed(spec: Spec, paths: Paths) -> tuple[Host, Emulator]:
            host = real(spec, paths)[0]
            there = msgspec.structs.replace(
                CONFIDENTIAL_HOSTS[kind].confidential or ConfidentialHost(), firmware=FIRMWARE
            )
            return msgspec.structs.replace(host, kvm_verdict="usable", confidential=there), emulator_of(newer)

        monkeypatch.setattr(hostview, "collect", claimed)
        monkeypatch.setitem(root.DEVICE_NUMBERS, "sev", (1, 3))
        monkeypatch.setattr(root, "device_numbers", root.DEVICE_NUMBERS.__getitem__)
        definition = vms.define(spec)
        with pytest.raises(VmError) as caught:
            vms.start(definition)
    assert f"vm-type {name} not supported by KVM" in str(caught.value), str(caught.value)
    assert not Path(vms.paths.vm_runtime(definition.id)).exists()
