"""What the kernel says about the vulnerabilities of the CPU: /sys/devices/system/cpu/vulnerabilities.

One file per class, one line each (Documentation/admin-guide/hw-vuln, arch/x86/kernel/cpu/bugs.c): ``Not affected``,
``Mitigation: …``, ``Vulnerable…``, ``Unknown: …``; itlb_multihit speaks of KVM: ``KVM: Mitigation: …``. Clauses of a
line are parted by ``;``. A class that this kernel does not know has no file: nothing is known then.
"""

from __future__ import annotations

from typing import Final

from casemate.facts.cpu_info import CpuInfo
from casemate.facts.fact import Fact, Facts, Known, Unknown
from casemate.facts.root import Root
from casemate.facts.sysfiles import line, names

FOLDER: Final = "/sys/devices/system/cpu/vulnerabilities"

CLASSES: Final = (
    "gather_data_sampling",
    "indirect_target_selection",
    "itlb_multihit",
    "l1tf",
    "mds",
    "meltdown",
    "mmio_stale_data",
    "old_microcode",
    "reg_file_data_sampling",
    "retbleed",
    "spec_rstack_overflow",
    "spec_store_bypass",
    "spectre_v1",
    "spectre_v2",
    "srbds",
    "tsa",
    "tsx_async_abort",
    "vmscape",
)
"""Classes with a fact and a control of their own; any other is in ``cpu.vulnerable-others``."""

NOT_AFFECTED: Final = "Not affected"


def fact_name(kind: str) -> str:
    """The fact of one class: ``cpu.vuln-l1tf``."""
    return f"cpu.vuln-{kind.replace('_', '-')}"


def collect_vulnerabilities(root: Root, cpu: CpuInfo | Unknown) -> Facts:
    """``cpu.vuln-CLASS`` for each class, the clauses of some of them, and all others together."""
    texts = {kind: line(root, f"{FOLDER}/{kind}") for kind in CLASSES}
    facts: Facts = {fact_name(kind): _state(text, f"{FOLDER}/{kind}") for kind, text in texts.items()}
    facts["cpu.vuln-old-microcode"] = _microcode(facts["cpu.vuln-old-microcode"], cpu)
    facts["cpu.vuln-vmscape"] = _vmscape(facts["cpu.vuln-vmscape"], cpu)
    facts["cpu.l1tf-vmx"] = _l1tf_vmx(facts["cpu.vuln-l1tf"])
    facts |= _spectre_v2(facts["cpu.vuln-spectre-v2"])
    facts["cpu.vulnerable-others"] = _others(root)
    facts["cpu.smt-vulnerable"] = _smt(texts)
    return facts


def _state(text: str | Unknown, source: str) -> Fact:
    """The line as a fact; what the kernel itself calls unknown is Unknown."""
    if isinstance(text, Unknown):
        return text
    if not text or text.startswith("Unknown"):
        return Unknown(f"{source}: the kernel says {text or 'nothing'!r}")
    return Known(text, source)


def _microcode(said: Fact, cpu: CpuInfo | Unknown) -> Fact:
    """The kernel compares with a list of Intel's revisions; for others, and inside a guest, it always says Not affected
    (cpu_has_old_microcode in arch/x86/kernel/cpu/common.c)."""
    if isinstance(said, Unknown) or said.value != NOT_AFFECTED:
        return said
    if isinstance(cpu, Unknown):
        return Unknown(f"{said.source} says {NOT_AFFECTED!r}, which means something on Intel only; {cpu.why}")
    if cpu.vendor != "GenuineIntel":
        return Unknown(f"the kernel's list of current microcode has Intel CPUs only; this one is {cpu.vendor}")
    if cpu.is_guest:
        return Unknown("this host is itself a guest: its hypervisor says what microcode revision it likes")
    return said


def _vmscape(said: Fact, cpu: CpuInfo | Unknown) -> Fact:
    """The kernel marks this class on bare metal only: inside a guest ``Not affected`` says nothing about the CPU."""
    if isinstance(said, Known) and said.value == NOT_AFFECTED and not isinstance(cpu, Unknown) and cpu.is_guest:
        return Unknown("this host is itself a guest, where the kernel always says 'Not affected' of this class")
    return said


def _l1tf_vmx(said: Fact) -> Fact:
    """The clause ``VMX: …`` of l1tf, without what follows about SMT."""
    if isinstance(said, Unknown):
        return said
    text = str(said.value)
    if text == NOT_AFFECTED:
        return Known("not affected", said.source)
    _, found, rest = text.partition("VMX:")
    if not found:
        return Unknown(f"{said.source} has no clause about VMX: kvm_intel has not set up its flush")
    return Known(rest.partition(",")[0].partition(";")[0].strip(), said.source)


def _spectre_v2(said: Fact) -> Facts:
    """The barriers named in spectre_v2. A clause that is not there is ``absent``; the kernel leaves IBPB out when the
    CPU cannot do it, and STIBP when nothing needs it."""
    clauses = ("IBPB", "STIBP", "BHI", "PBRSB-eIBRS")
    if isinstance(said, Unknown):
        return {f"cpu.spectre-v2-{clause.partition('-')[0].lower()}": said for clause in clauses}
    text = str(said.value)
    facts: Facts = {}
    for clause in clauses:
        value = "absent"
        if text == NOT_AFFECTED:
            value = "not affected"
        else:
            # Up to 6.8 the parts are separated by commas, later by semicolons.
            for part in text.replace(",", ";").split(";"):
                said_of, _, rest = part.strip().partition(":")
                if said_of == clause:
                    value = rest.strip()
        name, source = f"cpu.spectre-v2-{clause.partition('-')[0].lower()}", f"{said.source}: {clause}"
        newer = value == "absent" and clause in ("BHI", "PBRSB-eIBRS")
        facts[name] = Unknown(f"{source}: this kernel does not know of it") if newer else Known(value, source)
    return facts


def _others(root: Root) -> Fact:
    """Classes without a control of their own that read ``Vulnerable``."""
    there = names(root, FOLDER)
    if isinstance(there, Unknown):
        return there
    if not there:
        return Unknown(f"{FOLDER}: empty")
    vulnerable: list[str] = []
    for kind in there:
        if kind in CLASSES:
            continue
        said = _state(line(root, f"{FOLDER}/{kind}"), f"{FOLDER}/{kind}")
        if isinstance(said, Unknown):
            return said
        if "vulnerable" in str(said.value).lower():
            vulnerable.append(f"{kind}: {said.value}")
    return Known(tuple(vulnerable), FOLDER)


def _smt(texts: dict[str, str | Unknown]) -> Fact:
    """Classes whose line says that the sibling thread can still read along."""
    known = {kind: text for kind, text in texts.items() if isinstance(text, str)}
    if not known:
        return Unknown(f"{FOLDER}: no class can be read")
    vulnerable = tuple(kind for kind, text in known.items() if "smt vulnerable" in text.lower())
    unclear = [kind for kind, text in known.items() if "SMT Host state unknown" in text]
    if unclear and not vulnerable:
        return Unknown(f"{', '.join(unclear)}: the kernel says 'SMT Host state unknown' (it runs in a guest)")
    return Known(vulnerable, FOLDER)
