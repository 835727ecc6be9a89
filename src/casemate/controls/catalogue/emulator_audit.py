"""Layer emulator: the binary. What compiler, packager and administrator did to make a device's bug harder to use."""

from __future__ import annotations

from casemate.controls.catalogue.common import HOST, S2, S4, cve, lecture, qemu
from casemate.controls.expectations import AtLeast, AtMost, ContainsAny, Empty, Equals, Expectation, SubsetOf
from casemate.controls.model import AttackStep, Check, Control, Cost, Gate, Remedies, Severity, Source, Subject

_BUILD = "use the distribution's package, or build QEMU with --enable-pie, --enable-cfi and -D_FORTIFY_SOURCE=2"
_MINIMISING = Source("OpenStack security guide", "Hardening the virtualization layers: minimizing the QEMU code base")
_HARDENING = Source("OpenStack security guide", "Hardening the virtualization layers: compiler hardening")
_GCP = Source("Google, 7 ways we harden our KVM hypervisor", "non-QEMU implementation, proactive removal of code")


def _control(
    name: str,
    title: str,
    question: str,
    severity: Severity,
    checks: tuple[tuple[str, Expectation], ...],
    *,
    remedy: str = _BUILD,
    cuts: tuple[AttackStep, ...] = (S2,),
    sources: tuple[Source, ...] = (_HARDENING,),
    cost: str = "none",
    limits: str = "",
) -> Control:
    return Control(
        id=f"bin.{name}",
        title=title,
        question=question,
        severity=severity,
        gate=Gate.REPORT,
        subject=Subject.EMULATOR,
        checks=tuple(Check(f"bin.{fact}", expect) for fact, expect in checks),
        cuts=cuts,
        scenarios=(HOST,),
        cost=Cost(features=cost),
        remedies=Remedies(host=remedy),
        sources=sources,
        limits=limits,
    )


CONTROLS = (
    _control(
        "pie",
        "The emulator is loaded at a random address",
        "Is the emulator a position-independent executable?",
        Severity.HIGH,
        (("pie", Equals(True)),),
    ),
    _control(
        "relro",
        "The emulator's linkage tables are read-only",
        "Are all symbols bound at start and the tables of addresses read-only afterwards?",
        Severity.HIGH,
        (("relro", Equals("full")),),
        limits="Partial means PT_GNU_RELRO without BIND_NOW: the table of late-bound functions stays writable.",
    ),
    _control(
        "nx",
        "The emulator's stack and data are not executable",
        "Does the file ask for a stack without execution, and has no segment that is writable and executable?",
        Severity.HIGH,
        (("stack", Equals("no-execute")), ("writable-code", AtMost(0))),
        limits="Memory that the running process makes executable is proc.no-rwx.",
    ),
    _control(
        "canary",
        "The emulator checks its stack",
        "Was the emulator compiled with stack canaries?",
        Severity.MEDIUM,
        (("canary", Equals(True)),),
        limits="Says that some function has a canary, not that all have.",
    ),
    _control(
        "fortify",
        "Copies in the emulator are bounds-checked",
        "Is at least a quarter of the functions that can be fortified imported in the checking form?",
        Severity.MEDIUM,
        (("fortify", AtLeast(25)),),
        limits="Counts names, in percent: a plain form can be right where the compiler proved the size.",
    ),
    _control(
        "cfi",
        "Indirect calls and returns of the emulator are guarded",
        "Does the emulator have IBT or SHSTK marked, or was it built with Clang's CFI?",
        Severity.LOW,
        (("cfi", ContainsAny(("ibt", "shstk", "clang-cfi"))),),
        sources=(qemu("docs/devel/control-flow-integrity"),),
        limits="Clang's CFI shows only in a file with symbols; CET also needs processor and kernel.",
    ),
    _control(
        "owner",
        "Only root can change the emulator",
        "Are the file and all directories above it root's and writable by nobody else?",
        Severity.HIGH,
        (("writable", Empty()),),
        remedy="chown root:root and chmod go-w the places named",
        cuts=(S2, S4),
    ),
    _control(
        "setuid",
        "The emulator has no privilege of its own",
        "Is the file without setuid, setgid and file capabilities?",
        Severity.HIGH,
        (("privileges", Empty()),),
        remedy="chmod ug-s FILE; setcap -r FILE",
        cuts=(S4,),
    ),
    _control(
        "rpath",
        "The emulator loads libraries from the system's directories only",
        "Does the file carry no search path of its own (DT_RPATH, DT_RUNPATH)?",
        Severity.HIGH,
        (("rpath", Empty()),),
        remedy="patchelf --remove-rpath FILE, or the distribution's package",
        cuts=(S4,),
    ),
    _control(
        "libraries",
        "The emulator links no library with a bad history that a VM does not need",
        "Does the emulator link none of slirp, virgl, RDMA, FUSE, USB redirection and VNC?",
        Severity.LOW,
        (("libraries-risky", Empty()),),
        remedy="build QEMU with --without-default-features",
        sources=(_MINIMISING, cve("CVE-2019-6778", "CVE-2021-3682")),
        cost="user-mode networking, USB redirection, RDMA migration",
    ),
    _control(
        "modules",
        "No loadable part of the emulator is installed that a VM does not need",
        "Is nothing but accelerators in QEMU's directory of modules?",
        Severity.LOW,
        (("modules", Empty()),),
        remedy="apt remove qemu-system-gui qemu-block-extra, or a build with only the devices that a VM needs",
        sources=(_MINIMISING,),
        cost="graphical displays, sound, SPICE",
    ),
    _control(
        "device-types",
        "The emulator has few devices built in",
        "Are at most 120 device types built in, and none that weighs heavily in the table of vulnerabilities?",
        Severity.MEDIUM,
        (
            ("device-count", AtMost(120)),
            ("high-risk-types", SubsetOf(("virtio-net-device", "virtio-net-pci", "virtio-serial-device"))),
        ),
        remedy="build QEMU with --without-default-devices and a list of devices",
        sources=(lecture("Durcissement de l'émulateur"), _MINIMISING, _GCP),
        cost="every device that is not built in",
        limits="A device that is built in and absent from a machine cannot be reached by its guest.",
    ),
    _control(
        "no-tcg",
        "The emulator cannot run guests without KVM",
        "Is KVM the only accelerator built in?",
        Severity.MEDIUM,
        (("accelerators", SubsetOf(("kvm",))),),
        remedy="build QEMU with --disable-tcg",
        sources=(qemu("docs/system/security: TCG gives no isolation guarantee"), cve("CVE-2020-24165")),
        cost="guests of other architectures, and hosts without KVM",
    ),
    _control(
        "cve",
        "No known vulnerability of the emulator reaches the guest",
        "Is each vulnerability of the table fixed by version or package, or out of reach?",
        Severity.HIGH,
        (("cves-open", Empty()), ("cves-unclear", Empty())),
        remedy="apply the distribution's updates; remove the devices concerned",
        sources=(Source("CVE", "src/casemate/data/cves.toml"),),
        limits="Without a machine every built-in device counts. What no table lists is not seen; an unclear entry "
        "means that neither table nor changelog names the release with the fix.",
    ),
    _control(
        "version",
        "The emulator is a release that we support",
        "Is it QEMU 7.2 or newer?",
        Severity.MEDIUM,
        (("version-number", AtLeast(70_200)),),
        remedy="install the QEMU of Debian 12, Ubuntu 24.04, Fedora 38 or newer",
        sources=(qemu("stable branches"),),
        limits="Whether the distribution still supports the release is a control of the host.",
    ),
)
