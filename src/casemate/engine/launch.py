"""The launch inside the supervisor-to-be: helpers, wall, emulator, read-back, release.

Steps (design, "Launch, step by step", 5 to 11): 1. cgroup · 2. helpers · 3. wall and exec · 4. greeting ·
5. read-back of process and devices · 6. judge, refuse or go on · 7. end of start-up calls · 8. `cont`.

Runs in a forked, single-threaded child. Whatever fails, nothing is left: the emulator is killed and reaped, the
cgroup removed.
"""

from __future__ import annotations

import os
import re
import socket
import time
from typing import TYPE_CHECKING

import msgspec

from casemate.controls.drift import drift
from casemate.controls.judge import judge, refusal_error, refusals
from casemate.controls.model import AppliedWaiver, Control, Finding
from casemate.engine import cgroups
from casemate.engine.content import ContentChecks, extra_time_s, how_checked
from casemate.engine.copies import CopyDigests
from casemate.engine.devicetree import QUESTIONS, observe_devices
from casemate.engine.opening import Opened
from casemate.engine.readback import observe_process
from casemate.engine.startup import Startup
from casemate.engine.state import remove_cgroups
from casemate.engine.uefi import observe_variables, variables_digest
from casemate.errors import HostError, InputError, VmError
from casemate.facts.fact import Facts, Known, Stage
from casemate.facts.vmm_process_seccomp import evaluate_ahead
from casemate.jail.policy import IdentityMode
from casemate.jail.spawn import Spawned, kill_and_reap, spawn
from casemate.plan.model import LaunchPlan
from casemate.plan.provisioning import is_provisioned

if TYPE_CHECKING:
    from casemate.engine.helpers import Helper
    from casemate.engine.network import Network
    from casemate.engine.restore import Restore
    from casemate.engine.secretfeed import SecretFeed
    from casemate.engine.swtpm import Tpm
    from casemate.engine.tpm_state import Home

STARTUP_DEADLINE_S = 30.0
# hw/i386/x86.c and load_elf, QEMU 7.2 to 10
_WRONG_KEY = "cannot unlock any keyslot"  # crypto/block-luks.c
_NO_KERNEL = ("invalid kernel header", "loading elf kernel", "without PVH ELF Note", "could not load kernel")


_OF_THE_LAUNCH = ("host.", "run.rootless", "vm.id", "img.origin-", "img.launch-only")


class Launched(msgspec.Struct):
    """A released VM and the descriptors that its supervisor goes on with."""

    spawned: Spawned
    qmp: socket.socket
    console: socket.socket
    log_fd: int
    helpers: tuple[Helper, ...]
    findings: tuple[Finding, ...]
    qemu_version: str
    early_log: bytes
    notifications: dict[str, int]
    timings_ms: dict[str, float] = msgspec.field(default_factory=dict)
    clone: socket.socket | None = None
    keys: socket.socket | None = None
    digests: dict[str, str] = msgspec.field(default_factory=dict)
    observed: Facts = msgspec.field(default_factory=dict)
    unheard: bytes = b""


def launch(
    plan: LaunchPlan,
    program: bytes,
    opened: Opened,
    staging: str,
    waivers: tuple[AppliedWaiver, ...],
    controls: tuple[Control, ...],
    restore: Restore | None = None,
    tpm: Home | None = None,
) -> Launched:
    """Start, read back, judge, release.

    Args:
        restore: the saved state that the guest goes on from; it is read before the read-back.
        tpm: where the TPM of a VM that has one lives.

    Raises:
        CasemateError: with the reason; nothing is left running.
    """
    clock = _Clock()
    cgroups.make(plan.cgroup)  # 1
    contents = ContentChecks(opened.promises, opened.by_role)
    held = _Held(plan, restore)
    try:
        sources = held.open_ends(opened)
        held.start_helpers(sources, tpm, clock)  # 2
        opened.verify_unchanged()
        spawned = held.spawned = _spawn(plan, program, sources, staging)  # 3
        copies = held.copies = CopyDigests(spawned, plan.wall)
        contents.begin()
        held.feed = _feed(plan, spawned, opened)
        clock.lap("wall")
        held.hand_over()
        deadline_s = STARTUP_DEADLINE_S + extra_time_s(opened.promises, opened.by_role)
        deadline_s += restore.extra_s if restore is not None else 0.0
        startup = Startup(spawned, held.ours[0], held.log_read, os.uname().machine, deadline_s)
        version = _greeting(startup, plan, copies)  # 4
        _take_state(restore, startup, version)
        clock.lap("greeting")
        digests = copies.result(opened.digests) | contents.result()
        observed = observe(plan, startup, spawned, opened, digests)  # 5
        digests |= variables_digest(opened.by_role)
        observed.update(_observe_beside(plan, startup, held, opened))
        clock.lap("read-back")
        findings = judge_launch(plan, observed, waivers, controls)  # 6
        clock.lap("judge")
        startup.end_notifications()  # 7
        _tell_clone(restore, held.clone)
        startup.release()  # 8
        clock.lap("cont")
    except BaseException:
        held.undo()
        raise
    return held.launched(startup, findings, version, digests, observed, clock)


class _Held:
    """What one launch opens and starts, in the order in which it does; `undo` leaves nothing of it behind.

    ``ours``: our ends of QMP, console, and of the ports that the VM has, for clones and to a key broker; ``theirs``
    the emulator's.
    """

    def __init__(self, plan: LaunchPlan, restore: Restore | None) -> None:
        self._plan, self._restore = plan, restore
        self.ours: list[socket.socket] = []
        self._theirs: list[socket.socket] = []
        self.log_read = self._log_write = -1
        self.clone: socket.socket | None = None
        self.keys: socket.socket | None = None
        self.network: Network | None = None
        self.tpm: Tpm | None = None
        self.spawned: Spawned | None = None
        self.copies: CopyDigests | None = None
        self.feed: SecretFeed | None = None

    def open_ends(self, opened: Opened) -> dict[str, int]:
        """Sockets and the log's pipe; the descriptors that the emulator gets, by role."""
        sources = dict(opened.by_role)
        spec = self._plan.spec
        ports = [name for name, wanted in (("clone", spec.machine.saveable), ("keys", spec.keys.port)) if wanted]
        for role in ("qmp", "console", *ports):
            mine, other = socket.socketpair()
            self.ours.append(mine)
            self._theirs.append(other)
            sources[role] = other.fileno()
            if role in ports:
                setattr(self, role, mine)
        self.log_read, self._log_write = os.pipe2(os.O_CLOEXEC)
        sources["log"] = self._log_write
        return sources

    def start_helpers(self, sources: dict[str, int], tpm: Home | None, clock: _Clock) -> None:
        """The network's helper, when the VM has a network; its TPM, when it has one."""
        plan = self._plan
        names = {helper.name for helper in plan.helpers}
        if "passt" in names:
            from casemate.engine.network import start_network

            self.network = start_network(
                plan, plan.run_as.uid, plan.run_as.gid, plan.cgroup.directories, log_fd=self._log_write
            )
            sources["net"] = self.network.qemu_socket_fd
        if tpm is not None:
            from casemate.engine.swtpm import start_tpm

            self.tpm = start_tpm(plan, tpm, sources, self.log_read)
            sources["tpm"] = self.tpm.qemu_socket_fd
        if names:
            clock.lap("helpers")

    def _helpers(self) -> tuple[Helper, ...]:
        return tuple(helper for helper in (self.network, self.tpm) if helper is not None)

    def hand_over(self) -> None:
        """The emulator has its ends: ours of them are closed, so that its end shows as an end of file."""
        for end in self._theirs:
            end.close()
        for helper in self._helpers():
            helper.unlink()
        os.close(self._log_write)
        self._log_write = -1

    def undo(self) -> None:
        """Kill, reap, close, remove."""
        if self.spawned is not None:
            kill_and_reap(self.spawned)
        _end_threads(self.copies, self.feed, self._restore)
        for helper in self._helpers():
            helper.stop()
        for end in (*self.ours, *self._theirs):
            end.close()
        for descriptor in (self.log_read, self._log_write):
            if descriptor >= 0:
                os.close(descriptor)
        remove_cgroups(self._plan.cgroup.directories)

    def launched(
        self,
        startup: Startup,
        findings: tuple[Finding, ...],
        version: str,
        digests: dict[str, str],
        observed: Facts,
        clock: _Clock,
    ) -> Launched:
        """What the supervisor goes on with."""
        return Launched(
            startup.spawned,
            self.ours[0],
            self.ours[1],
            self.log_read,
            self._helpers(),
            findings,
            version,
            bytes(startup.log),
            startup.notifications,
            clock.laps,
            self.clone,
            self.keys,
            digests,
            observed,
            startup.unheard(),
        )


def _end_threads(copies: CopyDigests | None, feed: SecretFeed | None, restore: Restore | None) -> None:
    """None of them outlives the launch."""
    if feed is not None:
        feed.stop()
    if restore is not None:
        restore.stop()
    if copies is not None:
        copies.wait()


def _take_state(restore: Restore | None, startup: Startup, version: str) -> None:
    if restore is not None:
        restore.check_version(version)
        restore.begin()
        restore.complete(startup)


def _tell_clone(restore: Restore | None, clone: socket.socket | None) -> None:
    """Before its first instruction: a guest that listens starts its random numbers anew before anything else runs."""
    if restore is not None and clone is not None:
        clone.send(b"reseed\n")


def _feed(plan: LaunchPlan, spawned: Spawned, opened: Opened) -> SecretFeed | None:
    if not is_provisioned(plan.spec):
        return None
    from casemate.engine.secretfeed import SecretFeed

    return SecretFeed(spawned, plan.wall, opened.by_role, STARTUP_DEADLINE_S)


def _observe_beside(plan: LaunchPlan, startup: Startup, held: _Held, opened: Opened) -> Facts:
    """Facts about what not every VM has: a network, a TPM, things that it reads once."""
    facts: Facts = observe_variables(plan.spec.boot, opened.by_role, opened.enrolled)
    if held.network is not None:
        from casemate.engine.network_facts import observe_network

        facts.update(observe_network(plan, held.network))
    if held.tpm is not None:
        from casemate.engine.tpm_facts import observe_tpm

        facts.update(observe_tpm(plan, held.tpm, opened.by_role))
    if held.feed is not None:
        from casemate.engine.provisioning import forget_keys, observe_provisioning

        forget_keys(plan, startup)
        facts.update(observe_provisioning(plan, held.feed.result(), opened))
    return facts


def _spawn(plan: LaunchPlan, program: bytes, sources: dict[str, int], staging: str) -> Spawned:
    """`spawn`, and when the kernel gives no namespaces the switch that forbids them."""
    try:
        return spawn(
            plan.wall, program, sources, staging, meanwhile=lambda: evaluate_ahead(program, os.uname().machine)
        )
    except HostError as error:
        refused = error.__cause__
        if not isinstance(refused, OSError) or plan.wall.identity.mode is IdentityMode.ROOT:
            raise
        from casemate.facts.root import Root
        from casemate.facts.userns import explain_refusal

        raise HostError(
            "this host gives the VM no namespaces of its own",
            got=explain_refusal(Root(), 0, refused.errno or 0),
            next_step=error.next_step,
        ) from refused


def _greeting(startup: Startup, plan: LaunchPlan, copies: CopyDigests) -> str:
    """QEMU's version; or, when it did not come so far because of the kernel, that said of the kernel."""
    try:
        return startup.greeting(copies.begin)
    except VmError as error:
        said = error.got.rpartition(": ")[2]
        if _WRONG_KEY in error.got:
            disk = re.search(r"node-name=disk([0-9]+)", error.got)
            path = repr(plan.spec.disks[int(disk[1])].path) if disk and int(disk[1]) < len(plan.spec.disks) else ""
            raise InputError(
                f"the key does not open the disk {path}", got="a key that opens none of its slots"
            ) from error
        if plan.spec.boot.kernel is None or not any(words in error.got for words in _NO_KERNEL):
            raise
        raise InputError(
            f"the emulator cannot boot the kernel {plan.spec.boot.kernel!r}",
            got=said,
            expected="a Linux kernel: a bzImage (/boot/vmlinuz-*), or ELF with a PVH note",
            next_step="file FILE says what it is",
        ) from error


def observe(plan: LaunchPlan, startup: Startup, spawned: Spawned, opened: Opened, digests: dict[str, str]) -> Facts:
    """Everything that the live, paused emulator shows, and the host facts that controls ask for."""
    startup.ask_ahead(QUESTIONS)
    seen = observe_process(plan, spawned, opened.by_role)
    facts = observe_devices(plan, startup) | seen
    if isinstance(facts["proc.seccomp-allowed"], Known) is False:
        facts.update(_proved_by_notifications(plan, startup))

    def know(name: str, value: object, source: str) -> None:
        facts[name] = Known(value, source, Stage.OBSERVED)  # type: ignore[arg-type]

    know("img.digest-checked", tuple(sorted(digests)), how_checked(opened.promises))
    know("img.shared-writable", (), "flock on every image, exclusive for a writer")
    know("console.bounded", True, "the supervisor's log ring")
    know(
        "vm.passthrough",
        tuple(item.address for item in plan.spec.passthrough),
        "the plan; no other descriptor of VFIO was opened",
    )
    know("host.userns", True, "this launch, which made one")
    know("run.uid-unique", True, "lock on the uid, held for the VM's life")
    for name, fact in plan.declared.items():
        # What the launch itself found out about host and caller moments ago; it is not a promise about the VM.
        if name.startswith(_OF_THE_LAUNCH) and isinstance(fact, Known):
            facts[name] = Known(fact.value, fact.source, Stage.OBSERVED)
    return facts


def _proved_by_notifications(plan: LaunchPlan, startup: Startup) -> Facts:
    """Rootless: the start-up calls arrived at our listener, so this very filter is live; its bytes are ours."""
    if not startup.notifications.get("execve"):
        return {}
    source = f"{sum(startup.notifications.values())} notifications from this filter, whose program we loaded ourselves"
    declared = plan.declared["proc.seccomp-allowed"]
    value = declared.value if isinstance(declared, Known) else 0
    return {
        "proc.seccomp-allowed": Known(value, source, Stage.OBSERVED),
        "proc.seccomp-dangerous": Known((), source, Stage.OBSERVED),
        "proc.seccomp-foreign-arch": Known("kill", source, Stage.OBSERVED),
    }


def judge_launch(
    plan: LaunchPlan, observed: Facts, waivers: tuple[AppliedWaiver, ...], controls: tuple[Control, ...]
) -> tuple[Finding, ...]:
    """All findings of this launch.

    Raises:
        RefusedError: a launch control failed, or the VM is not the planned one.
    """
    # The board brings parts of its own (dev.types): those are judged, not promised one by one.
    promised = {name: fact for name, fact in plan.declared.items() if name != "dev.types"}
    findings = (
        *judge(controls, observed, stage=Stage.OBSERVED, waivers=waivers),
        *drift(promised, observed, controls=controls),
    )
    refused = refusals(findings)
    if refused:
        raise refusal_error(refused)
    return findings


class _Clock:
    """Where the time goes, in milliseconds; for ``inspect`` and the benchmarks, never for a decision."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round((now - self._last) * 1000, 2)
        self._last = now
