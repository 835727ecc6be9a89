"""Layer confinement, second half: the emulator as a process: its binary, memory, descriptors and limits."""

from __future__ import annotations

from casemate.controls.catalogue.common import HOST, NO_JIT, OTHERS, S2, S3, S4, S5, S9, VM, kernel, libvirt, qemu
from casemate.controls.expectations import ContainsAll, Empty, Equals, Matches, NoneMatches
from casemate.controls.model import Check, Control, Cost, Gate, Remedies, Severity
from casemate.facts.fact import Stage

CONTROLS = (
    Control(
        id="proc.exe",
        title="The binary that runs is the one that was audited",
        question="Is the running executable known, and not a deleted or replaced file?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("proc.exe", Matches(r"(?!.*\(deleted\))\S[^\n]*", "an executable that was not deleted")),),
        cuts=(S2,),
        scenarios=(HOST,),
        remedies=Remedies(host="restart the VM after an update of QEMU"),
        sources=(kernel("proc_pid_exe(5)"),),
        limits="That it is the very file of the plan is compared by proc.drift.",
    ),
    Control(
        id="proc.no-rwx",
        title="No memory is writable and executable",
        question="Is no mapping of the emulator both writable and executable?",
        severity=Severity.MEDIUM,
        gate=Gate.LAUNCH,
        checks=(Check("proc.wx-maps", Equals(0)),),
        applies_when=(NO_JIT,),
        cuts=(S2,),
        scenarios=(HOST,),
        remedies=Remedies(spec='[machine] accel = "kvm"'),
        sources=(kernel("proc_pid_maps(5)"),),
    ),
    Control(
        id="proc.fds",
        title="The emulator holds only the descriptors of its plan",
        question="Is no directory, no foreign image, no /dev/mem and no other stray descriptor open?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("proc.fds-unexpected", Empty()),),
        cuts=(S5, S3),
        scenarios=(OTHERS, HOST),
        remedies=Remedies(spec="none needed"),
        sources=(kernel("proc_pid_fd(5)"),),
    ),
    Control(
        id="proc.rlimits",
        title="The emulator leaves no core file",
        question="Is the limit on the size of a core file zero?",
        severity=Severity.MEDIUM,
        gate=Gate.LAUNCH,
        checks=(Check("proc.rlimit-core", Equals(0)),),
        cuts=(S9,),
        scenarios=(VM,),
        cost=Cost(features="no core file to debug a crash of QEMU with"),
        remedies=Remedies(libvirt="max_core = 0 in qemu.conf", spec="none needed"),
        sources=(kernel("setrlimit(2)"), libvirt("qemu.conf: max_core")),
        limits="The other limits are compared with the plan (proc.drift).",
    ),
    Control(
        id="proc.dumpable",
        title="Other processes cannot look into the emulator",
        question="Is the emulator not dumpable, so that ptrace and /proc/PID/mem are closed to its own user?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("proc.dumpable", Equals(False)),),
        cuts=(S9, S5),
        scenarios=(VM, OTHERS),
        remedies=Remedies(
            host="launch as root: it can give the VM an execute-only copy; sysctl kernel.yama.ptrace_scope=2"
        ),
        sources=(kernel("PR_SET_DUMPABLE(2const): reset by exec"),),
    ),
    Control(
        id="proc.cgroup",
        title="Memory and processes of the VM are limited",
        question="Are the memory and pids controllers in force for the emulator, with real limits?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(
            Check("proc.cgroup-controllers", ContainsAll(("memory", "pids"))),
            Check(
                "proc.cgroup",
                NoneMatches(
                    r"(memory\.(max|limit_in_bytes)|pids\.max)=(max|-1|)", "no limit of memory or pids left open"
                ),
            ),
        ),
        cuts=(S4,),
        scenarios=(OTHERS, HOST),
        remedies=Remedies(
            host="run in a delegated user session: systemd-run --user --scope -p Delegate=yes casemate run …",
            libvirt="<memtune><hard_limit>, <resource>",
        ),
        sources=(qemu("docs/system/security: resource limits"), kernel("admin-guide/cgroup-v2")),
        limits="Without delegation an ordinary user has no cgroup: resource limits of the process stay.",
    ),
    Control(
        id="proc.cgroup-cpu",
        title="CPU time and disk traffic of the VM can be limited",
        question="Are the cpu and io controllers there for the emulator?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        checks=(Check("proc.cgroup-controllers", ContainsAll(("cpu", "io"))),),
        cuts=(S4,),
        scenarios=(OTHERS,),
        remedies=Remedies(host="delegate cpu and io to user sessions: Delegate= in a drop-in of user@.service"),
        sources=(kernel("admin-guide/cgroup-v2"),),
    ),
    Control(
        id="proc.session",
        title="The emulator has a session of its own",
        question="Does it share no terminal, process group or session with who started it?",
        severity=Severity.MEDIUM,
        gate=Gate.LAUNCH,
        checks=(Check("proc.session", Equals(True)),),
        cuts=(S4,),
        scenarios=(HOST,),
        remedies=Remedies(spec="none needed"),
        sources=(kernel("setsid(2), TIOCSTI in ioctl_tty(2)"),),
    ),
    Control(
        id="proc.parent-death",
        title="The emulator dies with its supervisor",
        question="Does the kernel kill the emulator when its supervisor dies?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("proc.parent-death-signal", Equals(9)),),
        needs_stage=Stage.DECLARED,
        cuts=(S4,),
        scenarios=(HOST,),
        remedies=Remedies(spec="none needed"),
        sources=(kernel("PR_SET_PDEATHSIG(2const)"),),
        limits="The kernel shows this to the process alone: a test kills the supervisor instead.",
    ),
)
