"""The host's CPUs and memory as far as they matter to the separation of VMs, from /sys and /proc."""

from __future__ import annotations

from typing import Final

from casemate.facts.cpu_info import CPUINFO, CpuInfo, read_cpuinfo
from casemate.facts.cpu_memory import collect_memory
from casemate.facts.cpu_switches import collect_switches
from casemate.facts.cpu_vulnerabilities import collect_vulnerabilities
from casemate.facts.fact import Fact, Facts, Known, Unknown, Value
from casemate.facts.root import Root
from casemate.facts.sysfiles import line

SMT: Final = "/sys/devices/system/cpu/smt"
_ONE_THREAD: Final = ("off", "forceoff", "notsupported", "inactive")
_GUARDS: Final = ("nx", "smep", "smap")


def collect_cpu(root: Root) -> Facts:
    """Facts ``cpu.*`` of a host; never raises for what the tree holds."""
    cpu = read_cpuinfo(root)
    facts = collect_vulnerabilities(root, cpu) | collect_switches(root) | collect_memory(root)
    facts["cpu.smt"] = _smt(root, cpu)
    facts["cpu.smt-rsb-exposed"] = _smt_rsb(cpu, facts["cpu.smt"])
    facts |= _from_cpuinfo(cpu)
    return facts


def _from_cpuinfo(cpu: CpuInfo | Unknown) -> Facts:
    names = ("cpu.architecture", "cpu.vendor", "cpu.is-guest", "cpu.tsx", "cpu.missing-guards", "cpu.virtualization")
    if isinstance(cpu, Unknown):
        return dict.fromkeys(names, cpu)
    virtualization = tuple(sorted(cpu.flags & {"vmx", "svm"}))
    values: tuple[Value, ...] = (
        cpu.architecture,
        cpu.vendor or cpu.architecture,
        cpu.is_guest,
        "rtm" in cpu.flags,
        tuple(flag for flag in _GUARDS if flag not in cpu.flags),
        virtualization,
    )
    facts: Facts = {name: Known(value, CPUINFO) for name, value in zip(names, values, strict=True)}
    if cpu.architecture != "x86":
        facts["cpu.virtualization"] = Unknown(f"{CPUINFO} shows this on x86 only")
    return facts


def _smt_rsb(cpu: CpuInfo | Unknown, smt: Fact) -> Fact:
    """Whether the CPU has the fault of CVE-2022-27672 and a core runs two threads."""
    if isinstance(cpu, Unknown):
        return cpu
    if "smt_rsb" not in cpu.bugs:
        return Known(False, f"{CPUINFO}: bugs")
    return smt if isinstance(smt, Unknown) else Known(smt.value not in _ONE_THREAD, f"{CPUINFO}: bugs; {smt.source}")


def _smt(root: Root, cpu: CpuInfo | Unknown) -> Fact:
    """``on``, ``off``, ``forceoff``, ``notsupported``, a number of threads, or ``inactive`` (one thread a core).

    A guest sees the threads that its hypervisor shows; what shares a core with it is decided below.
    """
    control, active = line(root, f"{SMT}/control"), line(root, f"{SMT}/active")
    if isinstance(control, Unknown):
        return control
    if control not in _ONE_THREAD and active != "0":
        return Known(control, f"{SMT}/control")
    if isinstance(cpu, Unknown):
        return Unknown(f"{SMT}/control says {control!r}, but whether this host is a guest is not known: {cpu.why}")
    if cpu.is_guest:
        return Unknown(
            f"{SMT}/control says {control!r}, but this host is itself a guest: threads below are not visible"
        )
    if control in _ONE_THREAD:
        return Known(control, f"{SMT}/control")
    return Known("inactive", f"{SMT}/active")
