"""Measures that providers published (Google, AWS), as data: each with the controls that check it,
or why one host cannot have it.

The words are ours; a measure's own text is at the source. ``read`` says how far that text was read when it was mapped.
"""

from __future__ import annotations

from typing import Final

from casemate.controls.frameworks_model import Framework, Measure, Read

_FLEET = "needs a fleet whose control plane trusts a host only after the host has proved how it booted"
_MAKER = "it is the work of whoever makes the hypervisor, and no state of a host"
_HARDWARE = "needs hardware of the provider's own between the host's processor and network, disks and management"

GCP7: Final = Framework(
    name="gcp7",
    title="Google: 7 ways we harden our KVM hypervisor",
    about="All seven. What is said about Google's organisation is not for a host to have.",
    sources=(
        "Andy Honig, Nelly Porter: 7 ways we harden our KVM hypervisor at Google Cloud: security in plaintext,"
        " 2017-01-25, cloud.google.com/blog",
    ),
    measures=(
        Measure(id="1", title="proactive vulnerability search", cannot=_MAKER),
        Measure(
            id="2",
            title="reduced attack surface area",
            controls=(
                *("dev.nodefaults", "dev.no-floppy", "dev.no-legacy-nic", "dev.no-legacy-disk", "dev.no-usb"),
                *("dev.no-display", "dev.platform-off", "kvm.irqchip-split", "kvm.no-pit", "kvm.no-pic"),
                *("kvm.nested-off", "kvm.no-vhost-net", "kvm.no-hyperv-xen", "kvm.force-emulation-prefix"),
                *("kvm.vmware-backdoor", "kvm.unrestricted-guest"),
            ),
            partly="which instructions KVM emulates is not for a host to choose",
        ),
        Measure(
            id="3",
            title="non-QEMU implementation: simple, few devices, one architecture",
            controls=(
                "bin.device-types",
                "bin.no-tcg",
                "bin.modules",
                "dev.machine",
                "dev.insecure-types",
                "dev.surface",
            ),
            partly="the emulator stays QEMU; what of it a guest reaches is judged instead",
        ),
        Measure(id="4", title="boot and jobs communication by keys of each host", cannot=_FLEET),
        Measure(
            id="5",
            title="code provenance from boot loader to guest",
            controls=("bin.provenance", "bin.owner", "proc.exe", "img.hash", "hk.secure-boot", "hk.measured-boot"),
            partly="no attestation by somebody else",
        ),
        Measure(
            id="6",
            title="rapid and graceful vulnerability response",
            controls=(
                *(
                    "bin.cve",
                    "dev.cve",
                    "bin.version",
                    "kvm.cve-level",
                    "os.updates",
                    "os.updates-kernel",
                    "os.kernel-running",
                ),
                "cpu.vulns",
            ),
            partly="how fast, and without stopping guests, is the operator's process",
        ),
        Measure(id="7", title="carefully controlled releases", cannot="staged roll-outs need more hosts than one"),
    ),
)

NITRO: Final = Framework(
    name="nitro",
    title="AWS: the security design of the Nitro System",
    about="The properties that the whitepaper claims. Most rest on Nitro cards; what a KVM host can have of them is"
    " mapped.",
    sources=(
        "The Security Design of the AWS Nitro System, whitepaper of 2024-02-15: introduction, the journey, the EC2"
        " approach to preventing side-channels (docs.aws.amazon.com); read in part",
        "AWS re:Invent 2025, CMP359, slides on the Nitro System: no operator access, encryption",
    ),
    measures=(
        Measure(id="cards", title="devices are emulated on cards, not on the host's processor", cannot=_HARDWARE),
        Measure(
            id="chip",
            title="secure boot of the system from a root of trust in hardware; firmware nobody can change",
            controls=("hk.secure-boot", "hk.secure-boot-setup", "hk.measured-boot", "os.updates-firmware"),
            partly="the board's own firmware is trusted; nothing watches its buses",
        ),
        Measure(
            id="hypervisor",
            title="a minimised hypervisor: nothing that running VMs does not need",
            controls=(
                *("os.minimal", "os.no-desktop", "os.no-containers", "os.no-mail", "bin.device-types", "bin.libraries"),
                *("bin.modules", "dev.surface", "kvm.vhost-net-host", "kvm.no-xen"),
            ),
            partly="there is still a Linux with a shell below the VMs",
        ),
        Measure(
            id="no-dom0",
            title="no privileged guest and no emulator with rights over others",
            controls=(
                "proc.uid",
                "proc.caps",
                "proc.ns",
                "proc.root",
                "proc.fds",
                "proc.seccomp-strength",
                "proc.helpers",
            ),
        ),
        Measure(
            id="side-channels",
            title="no sharing of cores, caches of cores and branch predictors among customers",
            controls=("cpu.core-sched", "cpu.smt", "cpu.ibpb", "cpu.stibp", "cpu.l1tf-flush-always", "cpu.vmscape"),
            partly="memory and last-level cache are shared: no bandwidth or cache partition is judged",
        ),
        Measure(
            id="memory",
            title="no sharing of memory pages among customers",
            controls=("cpu.ksm", "cpu.ksm-host", "cpu.ksm-pages", "mem.no-shared-backend", "mem.template"),
        ),
        Measure(
            id="operators",
            title="no operator can log in or reach a guest's memory",
            controls=("vmm.sock", "vmm.tcp", "vmm.polkit", "vmm.qmp", "guest.agent", "hk.lockdown", "hk.devmem"),
            partly="root of the host reads every guest that no processor encrypts: cc.launch",
        ),
        Measure(
            id="encryption-rest",
            title="disks are encrypted by keys that the host never sees",
            controls=("img.local-encrypted", "img.encrypted"),
            partly="the host holds the keys: nothing keeps them in hardware of its own",
        ),
        Measure(id="encryption-transit", title="traffic among hosts is encrypted by the cards", cannot=_HARDWARE),
        Measure(
            id="encryption-memory",
            title="memory is encrypted",
            controls=("cc.launch", "cc.no-debug", "cc.attest"),
            read=Read.TITLE,
        ),
        Measure(
            id="passive",
            title="the host never opens a connection to the parts that manage it",
            cannot=_HARDWARE,
            read=Read.TITLE,
        ),
        Measure(
            id="live-update",
            title="every part is replaced while guests run",
            cannot="needs parts outside of the host that keep its guests' devices alive meanwhile",
            read=Read.TITLE,
        ),
    ),
)
