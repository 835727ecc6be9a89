"""Is this system virtualised, by what, and what lies around and inside it? Collected here, judged by ``judge``: pure.

Steps of `judge`: 1. names by strength · 2. hypervisor and platform · 3. container · 4. verdict · 5. contradictions ·
6. layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from casemate.facts.detect_container import look_at_container, namespaces_are_initial
from casemate.facts.detect_cpu import TRAPS_TICKS, CpuAnswers, ask_cpu
from casemate.facts.detect_data import FORGED_BY_OTHERS, LIMITS, SIGNATURES
from casemate.facts.detect_files import look_at_files, shown
from casemate.facts.detect_model import About, Detection, Indicator, Strength, Trap, Verdict
from casemate.facts.root import Root

_ORDER: Final = (Strength.PROOF, Strength.STRONG, Strength.WEAK)
_WEIGHTS: Final = {Strength.PROOF: 100, Strength.STRONG: 10, Strength.WEAK: 1}
_LESS_TELLING: Final = ("seabios", "ovmf", "bochs")
"""Firmware that several platforms use: a name only when there is no better one."""
_TITLES: Final = {
    "kvm": "KVM",
    "qemu": "QEMU",
    "xen": "Xen",
    "vmware": "VMware",
    "microsoft": "Hyper-V",
    "oracle": "VirtualBox",
    "firecracker": "Firecracker",
    "amazon": "Amazon EC2",
    "google": "Google Compute Engine",
    "pvm": "KVM by PVM",
}


def detect(root: Root) -> Detection:
    """Look at everything that ``root`` shows; on the live system also ask the processor."""
    indicators, unread = look_at_files(root)
    containers, container_unread = look_at_container(root)
    indicators += containers
    unread += container_unread
    trap = None
    looked = not any(item.startswith("/proc/cpuinfo") for item in unread)
    if root.is_live:
        answers = ask_cpu()
        if isinstance(answers, str):
            unread.append(answers)
        else:
            indicators += cpu_indicators(answers)
            trap = answers.trap
    else:
        unread.append("CPUID and its timing: this is a captured tree, no processor to ask")
    return judge(indicators, unread, trap, looked=looked)


def cpu_indicators(answers: CpuAnswers) -> list[Indicator]:
    """What CPUID's leaves and its timing say."""
    found = []

    def add(says: str, strength: Strength, value: str, source: str) -> None:
        found.append(Indicator(about=About.HYPERVISOR, strength=strength, says=says, value=shown(value), source=source))

    if answers.present:
        add("", Strength.PROOF, f"hypervisor bit set on a processor of {answers.vendor}", "CPUID 1: ECX bit 31")
    known = [(base, text) for base, _, text in answers.signatures if text in SIGNATURES]
    real = [SIGNATURES[text] for _, text in known if SIGNATURES[text] not in FORGED_BY_OTHERS]
    for base, text in known:
        name = SIGNATURES[text]
        borrowed = name in FORGED_BY_OTHERS and bool(real)
        value = f"signature {text!r}" + (f", an interface that {real[0]} offers as well" if borrowed else "")
        add(real[0] if borrowed else name, Strength.PROOF, value, f"CPUID {base:#x}")
    if answers.present:  # without the bit, Intel answers such a leaf with another one's data
        for base, _, text in answers.signatures:
            if text not in SIGNATURES:
                add("unknown", Strength.PROOF, f"signature {text!r}, which nobody is known to use", f"CPUID {base:#x}")
    if answers.features is not None:
        add("kvm", Strength.PROOF, f"KVM features {answers.features:#x}", "CPUID 0x40000001: EAX")
    trap = answers.trap
    if trap is not None and traps(trap):
        value = (
            f"CPUID takes {trap.median_ticks} ticks ({trap.low_ticks} to {trap.high_ticks}), nothing takes "
            f"{trap.empty_ticks}"
        )
        add("", Strength.STRONG, value, f"RDTSC around CPUID, {trap.samples} times")
    return found


def traps(trap: Trap) -> bool:
    """Whether CPUID takes as long as an exit to a hypervisor, even in the fastest tenth of the measurements."""
    return trap.low_ticks - trap.empty_ticks >= TRAPS_TICKS


def judge(
    indicators: Iterable[Indicator], unread: Iterable[str] = (), trap: Trap | None = None, *, looked: bool = True
) -> Detection:
    """The verdict over all indicators; see the module's docstring for the steps.

    Args:
        looked: the description of the processor was read, so that finding nothing means something.
    """
    found = sorted(indicators, key=lambda item: (list(About).index(item.about), _ORDER.index(item.strength)))
    machine = [item for item in found if item.about in (About.HYPERVISOR, About.PLATFORM)]
    about = [item for item in found if item.about is About.HYPERVISOR]
    hypervisor = _name(about)  # 1, 2
    platform = _name([item for item in found if item.about is About.PLATFORM])
    certain = [item for item in machine if item.strength is Strength.PROOF]
    strong = [item for item in machine if item.strength is Strength.STRONG]
    if certain or len({item.source for item in strong}) >= 2:  # 4
        verdict = Verdict.VIRTUALISED
    elif machine:
        verdict = Verdict.SUSPECTED
    else:
        verdict = Verdict.NO_TRACE if looked or trap is not None else Verdict.UNKNOWN
    if verdict in (Verdict.NO_TRACE, Verdict.UNKNOWN):
        hypervisor = "none" if verdict is Verdict.NO_TRACE else "unknown"
    elif not hypervisor:
        hypervisor = "qemu" if platform == "qemu" and not _accelerated(about) else "unknown"
    containers = [item for item in found if item.about is About.CONTAINER]
    container = _container(containers)  # 3
    return Detection(
        verdict=verdict,
        hypervisor=hypervisor,
        platform=platform,
        container=container,
        layers=_layers(verdict, hypervisor, platform, container, found),
        indicators=tuple(found),
        contradictions=tuple(_contradictions(found, trap)),
        notes=tuple(_leftovers(containers, container)),
        unread=tuple(unread),
        trap=trap,
        limits=LIMITS,
    )


def matches(found: Detection, expected: str) -> bool:
    """Whether the owner's expectation holds. ``none``: no trace of a hypervisor, not even a suspicion."""
    if expected == "none":
        return found.verdict is Verdict.NO_TRACE
    return found.verdict is Verdict.VIRTUALISED and expected in {found.hypervisor, found.platform}


def _name(items: list[Indicator]) -> str:
    """The name with the most weight behind it; empty when none is named."""
    weights: dict[str, int] = {}
    for item in items:
        if item.says:
            weights[item.says] = weights.get(item.says, 0) + _WEIGHTS[item.strength]
    named = {name: weight for name, weight in weights.items() if name not in _LESS_TELLING} or weights
    named = {name: weight for name, weight in named.items() if name != "unknown"} or named
    return max(named, key=lambda name: (named[name], name), default="")


def _accelerated(about: list[Indicator]) -> bool:
    return any(item.says for item in about)


def _container(containers: list[Indicator]) -> str:
    """The container's name. A marker counts only where namespaces of its own are there, or cannot be seen."""
    initial = namespaces_are_initial(containers)
    proved = [item for item in containers if item.strength is Strength.PROOF and item.says not in ("", "none")]
    if proved:
        return proved[0].says
    if initial is True:
        return ""
    named = [item.says for item in containers if item.says not in ("", "none")]
    if named:
        return max(set(named), key=lambda name: (named.count(name), name))
    return "unknown" if initial is False else ""


def _contradictions(found: list[Indicator], trap: Trap | None) -> list[str]:
    said: list[str] = []
    bit = any(item.source == "CPUID 1: ECX bit 31" or item.value == "flag hypervisor" for item in found)
    machine = [item for item in found if item.about in (About.HYPERVISOR, About.PLATFORM)]
    solid = [item for item in machine if item.strength is not Strength.WEAK]
    if trap is not None and traps(trap) and not bit:
        said.append(
            f"CPUID takes {trap.median_ticks} ticks, as if a hypervisor handled it, but no hypervisor bit is set: "
            "a hypervisor that hides, or firmware that emulates CPUID"
        )
    elif solid and not bit and trap is not None:
        said.append("devices or firmware of a virtual machine, but no hypervisor bit in CPUID: it is hidden, or copied")
    if bit and trap is not None and not traps(trap):
        said.append("a hypervisor bit, but CPUID does not take the time of an exit: the clock may be adjusted")
    names = {item.says for item in found if item.about is About.HYPERVISOR and item.strength is not Strength.WEAK}
    names -= {"", "unknown"}
    if len(names) > 1:
        said.append(f"several hypervisors claim this machine: {', '.join(sorted(names))}")
    return said


def _leftovers(containers: list[Indicator], container: str) -> list[str]:
    """Markers of a container where there is none."""
    sources = sorted({item.source for item in containers if item.says not in ("", "none")})
    if not sources or container:
        return []
    return [
        f"{', '.join(sources)} speaks of a container, but all namespaces are the kernel's first ones: left over from "
        "the image that the root was made of"
    ]


def _layers(
    verdict: Verdict, hypervisor: str, platform: str, container: str, found: list[Indicator]
) -> tuple[str, ...]:
    """Outermost first, in words."""
    layers = []
    dom0 = any(item.source == "/proc/xen/capabilities" and item.value.startswith("dom0") for item in found)
    if verdict is Verdict.VIRTUALISED:
        on = f" ({_TITLES.get(platform, platform)})" if platform and platform != hypervisor else ""
        layers.append(
            f"hypervisor: {_TITLES.get(hypervisor, hypervisor)}{on}" + (", controlled from here" if dom0 else "")
        )
    elif verdict is Verdict.SUSPECTED:
        layers.append(f"perhaps a hypervisor: {hypervisor}")
    layers.append("this system")
    if container:
        layers.append(f"container: {container}")
    inside = sorted(
        {_TITLES.get(i.says, i.says) for i in found if i.about is About.INSIDE and i.strength is Strength.PROOF}
    )
    if inside:
        layers.append(f"offers to guests of its own: {', '.join(inside)}")
    return tuple(layers)
