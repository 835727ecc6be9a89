"""Layer emulator: what a reader of a command line or a libvirt domain sees, and a launch of ours never does."""

from __future__ import annotations

from casemate.controls.catalogue.common import (
    BLUE_PILL,
    HOST,
    OTHERS,
    S1,
    S2,
    S5,
    S7,
    S9,
    S10,
    VM,
    cve,
    kernel,
    lecture,
    libvirt,
    qemu,
)
from casemate.controls.expectations import AtMost, Empty, Equals, NotEquals, OneOf
from casemate.controls.model import Check, Condition, Control, Cost, Gate, Remedies, Severity, Source

BUDGET = 60
"""Weight of a q35 with virtio devices only; a careless machine weighs several times as much."""

CONTROLS: tuple[Control, ...] = (
    Control(
        id="dev.no-secret-args",
        title="No secret stands in the arguments",
        question="Are passwords, tokens and keys absent from arguments, kernel command line, fw_cfg, SMBIOS and "
        "XML attributes?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("vm.secrets", Empty()),),
        cuts=(
            S9,
            S7,
        ),
        scenarios=(VM,),
        remedies=Remedies(
            host="give -object secret,file=…; never data=",
            libvirt="<secret> objects instead of passwd=",
            spec="[[secret]] of the provisioning, never cmdline",
        ),
        sources=(
            qemu("docs/system/secrets"),
            kernel("proc_pid_cmdline(5): world-readable"),
        ),
        limits="Finds what is named like a secret; one under an innocent name stays unseen.",
    ),
    Control(
        id="dev.uefi",
        title="The guest boots with UEFI Secure Boot",
        question="Does the firmware verify what it boots?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("vm.firmware", OneOf(("uefi-secure",))),),
        applies_when=(
            Condition(
                "vm.firmware", NotEquals("kernel"), "the kernel is given from outside; no firmware looks for one"
            ),
        ),
        cuts=(
            S1,
            S10,
        ),
        scenarios=(
            VM,
            BLUE_PILL,
        ),
        cost=Cost(features="unsigned kernels and boot loaders; SMM has to be on"),
        remedies=Remedies(
            libvirt="<os firmware='efi'><firmware><feature enabled='yes' name='secure-boot'/></firmware></os>",
            spec='[boot] firmware = "uefi-secure"',
        ),
        sources=(
            libvirt("formatdomain: firmware, loader, nvram"),
            lecture("Confidential Computing: TPM virtuels, Secure Boot"),
        ),
        limits="Judged by the names of the firmware files; what the variables say is looked at in VMs of Casemate only"
        " (dev.secure-boot).",
    ),
    Control(
        id="dev.tpm",
        title="The guest has a TPM",
        question="Can the guest measure its boot and seal secrets?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        checks=(Check("vm.tpm", Equals(True)),),
        applies_when=(
            Condition(
                "vm.firmware",
                NotEquals("kernel"),
                "the kernel is given from outside: no firmware is there that would measure it (img.hash does)",
            ),
        ),
        cuts=(
            S9,
            S10,
        ),
        scenarios=(
            VM,
            BLUE_PILL,
        ),
        cost=Cost(features="one more device and a swtpm process"),
        remedies=Remedies(libvirt="<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"),
        sources=(
            libvirt("formatdomain: tpm"),
            lecture("Confidential Computing: TPM virtuels, Secure Boot"),
        ),
        limits="The state of an emulated TPM is a file of the host.",
    ),
    Control(
        id="dev.surface",
        title="The weight of the device model is within its budget",
        question="Is the sum of what the devices history weighs small?",
        severity=Severity.INFO,
        gate=Gate.REPORT,
        checks=(Check("dev.surface", AtMost(BUDGET)),),
        cuts=(S2,),
        scenarios=(HOST,),
        remedies=Remedies(
            host="remove devices, heaviest first: casemate surface shows them",
            libvirt="machine q35 or microvm, virtio only, no USB, no display",
        ),
        sources=(
            lecture("Durcissement de l'émulateur: le moins possible d'émulateurs de matériel"),
            Source("Casemate", "CVE table, weights by device type"),
        ),
        limits="History is a guess about the future; a device without CVEs is not a safe one.",
    ),
    Control(
        id="dev.hotplug-ports",
        title="No PCI Express port takes devices while the guest runs",
        question="Is hot-plug off on every root port?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        checks=(Check("dev.hotplug-ports", AtMost(0)),),
        cuts=(S2,),
        scenarios=(HOST,),
        cost=Cost(features="adding devices to a running guest"),
        remedies=Remedies(libvirt="<controller type='pci' model='pcie-root-port'><target hotplug='off'/></controller>"),
        sources=(
            cve("CVE-2014-5388", "CVE-2017-5525", "CVE-2017-5526"),
            libvirt("formatdomain: controllers, hotplug"),
        ),
    ),
    Control(
        id="mem.no-shared-backend",
        title="The guest's memory is not shared with another process",
        question="Is no memory back-end mapped as shared?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("mem.shared", Empty()),),
        cuts=(
            S5,
            S9,
        ),
        scenarios=(
            VM,
            OTHERS,
        ),
        cost=Cost(features="vhost-user devices and virtiofs need shared memory"),
        remedies=Remedies(libvirt="<memoryBacking> without <access mode='shared'/>"),
        sources=(
            qemu("-object memory-backend-*,share="),
            libvirt("formatdomain: memoryBacking"),
        ),
    ),
    Control(
        id="vmm.no-raw-args",
        title="No argument goes to QEMU past libvirt",
        question="Are qemu:commandline, qemu:override and qemu:capabilities absent?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        checks=(Check("vmm.raw-args", Empty()),),
        applies_when=(Condition("vm.form", Equals("libvirt"), "only a libvirt domain has such a door"),),
        cuts=(S7,),
        scenarios=(
            HOST,
            VM,
        ),
        remedies=Remedies(
            libvirt="remove <qemu:commandline>, <qemu:override> and <qemu:capabilities>; use elements of the domain"
        ),
        sources=(libvirt("drvqemu: pass-through of arbitrary QEMU commands"),),
    ),
    Control(
        id="vmm.console-listen",
        title="The graphical console listens on the loopback only",
        question="Is every VNC and SPICE address a loopback address or a socket?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        checks=(Check("vmm.console-wide", Empty()),),
        cuts=(S7,),
        scenarios=(VM,),
        cost=Cost(features="remote consoles need a tunnel"),
        remedies=Remedies(
            libvirt="<graphics><listen type='socket'/> or address='127.0.0.1'",
            host="vnc_listen and spice_listen in qemu.conf",
        ),
        sources=(
            libvirt("qemu.conf: vnc_listen, spice_listen"),
            lecture("Gestionnaire de machines virtuelles"),
        ),
    ),
    Control(
        id="vmm.console-auth",
        title="Nobody gets the graphical console without a password",
        question="Does every VNC and SPICE server ask who is there?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        checks=(Check("vmm.console-open", Empty()),),
        cuts=(S7,),
        scenarios=(VM,),
        remedies=Remedies(
            libvirt="<graphics passwd=…> by a secret, or <listen type='socket'/>", host="vnc_sasl in qemu.conf"
        ),
        sources=(libvirt("qemu.conf: vnc_sasl, vnc_password"),),
        limits="A VNC password is weak: eight characters count, and the traffic is in clear without TLS.",
    ),
    Control(
        id="vmm.console-tls",
        title="A graphical console on the network is encrypted",
        question="Has every VNC and SPICE server with an address TLS?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("vmm.console-clear", Empty()),),
        cuts=(
            S7,
            S9,
        ),
        scenarios=(VM,),
        remedies=Remedies(
            host="vnc_tls = 1 and spice_tls = 1 in qemu.conf",
            libvirt="<graphics type='spice' tlsPort=…/>, or <listen type='socket'/>",
        ),
        sources=(libvirt("qemu.conf: vnc_tls, spice_tls"),),
        limits="TLS that qemu.conf turns on for every domain does not show in one domain.",
    ),
    Control(
        id="vmm.serial-network",
        title="No serial console is open to the network",
        question="Is every character device a file, a socket of the host or a descriptor?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        checks=(Check("vmm.serial-network", Empty()),),
        cuts=(S7,),
        scenarios=(VM,),
        remedies=Remedies(libvirt="<serial type='unix'> or type='pty' instead of tcp and udp"),
        sources=(
            qemu("-chardev socket,host="),
            libvirt("formatdomain: TCP client/server"),
        ),
    ),
)
