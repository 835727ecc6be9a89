"""Layer emulator: the device model. Each device a guest can reach is code that a guest can attack."""

from __future__ import annotations

from casemate.controls.catalogue.common import (
    HOST,
    OTHERS,
    S2,
    S3,
    S7,
    S9,
    VM,
    cve,
    lecture,
    libvirt,
    no_device,
    qemu,
)
from casemate.controls.expectations import Empty, Equals, Matches, OneOf
from casemate.controls.model import Check, Control, Cost, Gate, Remedies, Severity

# QEMU's own versions, Proxmox's beside them, RHEL's, and Ubuntu's by the name of a release (of any to come: a launch is
# refused by this control). The name comes from a document or from the emulator, and may look like that only.
_Q35 = (
    r"pc-q35-([0-9]{1,2}(\.[0-9]{1,2}){1,2}(\+pve[0-9]{1,2})?|rhel[0-9]{1,2}(\.[0-9]{1,2}){2}"
    r"|[a-z]{4,10}(-hpb|-v2|-maxcpus){0,2})"
)

CONTROLS = (
    Control(
        id="dev.nodefaults",
        title="QEMU adds no device and reads no configuration by itself",
        question="Was QEMU started with -nodefaults and -no-user-config?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("dev.nodefaults", Equals(True)),),
        cuts=(S2,),
        scenarios=(HOST,),
        remedies=Remedies(libvirt="always so with libvirt; remove <qemu:commandline>"),
        sources=(lecture("Durcissement de l'émulateur: as few devices as possible"), qemu("-nodefaults")),
    ),
    Control(
        id="dev.machine",
        title="The board is microvm or q35",
        question="Is the machine type one of the two whose device model was reviewed?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(
            Check(
                "dev.machine",
                Matches(rf"(microvm|q35|{_Q35})(-machine)?", "microvm, or q35 of some version"),
            ),
        ),
        cuts=(S2,),
        scenarios=(HOST,),
        cost=Cost(features="guests from before PCI Express and ACPI"),
        remedies=Remedies(libvirt="<type machine='q35'>hvm</type>", spec='[machine] type = "microvm" or "q35"'),
        sources=(qemu("docs/system/security: machine types of the virtualisation use case"),),
    ),
    Control(
        id="dev.insecure-types",
        title="No device outside QEMU's virtualisation use case",
        question="Is no device present that QEMU's own security policy does not cover?",
        severity=Severity.MEDIUM,
        gate=Gate.LAUNCH,
        checks=(Check("dev.insecure-types", Empty()),),
        cuts=(S2,),
        scenarios=(HOST,),
        remedies=Remedies(libvirt="remove the named device; from QEMU 11.2 on: -compat insecure-types=reject"),
        sources=(qemu("qapi/compat.json: insecure-types, since 11.2"),),
    ),
    Control(
        id="dev.no-floppy",
        title="No floppy controller",
        question="Is there no floppy controller, not even an empty one?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(no_device(r"isa-fdc|sysbus-fdc.*|floppy.*|SUNW,fdtwo", "floppy controller"),),
        cuts=(S2,),
        scenarios=(HOST,),
        remedies=Remedies(libvirt="machine='q35', and remove <controller type='fdc'>", spec="none needed"),
        sources=(cve("CVE-2015-3456", "CVE-2021-3507"),),
    ),
    Control(
        id="dev.no-legacy-nic",
        title="No emulated network card of real hardware",
        question="Is every network card a virtio card?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(
            no_device(
                r"e1000.*|igb.*|rtl8139|pcnet.*|lance|ne2k_.*|vmxnet3|tulip|i8255\d.*|i82562|i82801|rocker|sungem|sunhme",
                "emulated network card",
            ),
        ),
        cuts=(S2,),
        scenarios=(HOST,),
        cost=Cost(features="guests without a virtio-net driver"),
        remedies=Remedies(libvirt="<model type='virtio'/>", spec="none needed: networks are virtio"),
        sources=(cve("CVE-2015-3209", "CVE-2015-7504", "CVE-2015-5165", "CVE-2023-3019"),),
    ),
    Control(
        id="dev.no-legacy-disk",
        title="No emulated disk controller of real hardware",
        question="Is every disk a virtio-blk disk?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(
            no_device(
                r"ide-.*|.*-ide|.*ahci.*|lsi53c.*|mptsas.*|megasas.*|am53c974|dc390|esp.*|pvscsi|sdhci.*|sd-card.*|emmc"
                r"|nvme.*|ufs.*|scsi-.*|virtio-scsi-.*",
                "emulated disk controller",
            ),
        ),
        cuts=(S2,),
        scenarios=(HOST,),
        cost=Cost(features="guests without a virtio-blk driver; CD-ROM drives"),
        remedies=Remedies(
            libvirt="<target bus='virtio'/>, and remove IDE, SATA and SCSI controllers", spec="none needed"
        ),
        sources=(cve("CVE-2015-5154", "CVE-2016-4439", "CVE-2017-5667", "CVE-2021-3929", "CVE-2024-6519"),),
    ),
    Control(
        id="dev.no-usb",
        title="No USB",
        question="Is there no USB controller and nothing behind one?",
        severity=Severity.MEDIUM,
        gate=Gate.LAUNCH,
        checks=(
            Check("dev.usb", Empty()),
            no_device(
                r"(?!usb-host$|usb-redir$)usb-.*|.*-usb-.*|.*-xhci(-.*)?|.*-ohci(-.*)?|ccid-card-emulated", "USB device"
            ),
        ),
        cuts=(S2,),
        scenarios=(HOST,),
        cost=Cost(features="USB tablets and sticks"),
        remedies=Remedies(libvirt="<controller type='usb' model='none'/>", spec="none needed"),
        sources=(cve("CVE-2020-14364", "CVE-2021-3750", "CVE-2018-16867"),),
    ),
    Control(
        id="dev.no-display",
        title="No graphics and no sound",
        question="Is there no display, graphics card or sound card?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(
            Check("dev.display", Equals("none")),
            no_device(
                r"(?!vhost-user-).*vga.*|VGA|qxl.*|cirrus.*|bochs-display|ramfb.*|virtio-gpu.*|sga|AC97|adlib|cs4231a"
                r"|ES1370|gus|hda-.*|.*intel-hda|sb16|virtio-sound.*|virtio-snd.*",
                "graphics or sound card",
            ),
        ),
        cuts=(S2, S7),
        scenarios=(HOST, VM),
        cost=Cost(features="graphical guests: use a serial or virtio console, or a remote desktop inside the guest"),
        remedies=Remedies(
            libvirt="<video><model type='none'/></video>, remove <graphics> and <sound>", spec="none needed"
        ),
        sources=(cve("CVE-2017-2615", "CVE-2017-2620", "CVE-2021-4206", "CVE-2024-3446"),),
    ),
    Control(
        id="dev.no-share",
        title="No directory or memory shared with the host or another process",
        question="Are 9p, virtiofs, ivshmem, RDMA, shared persistent memory and vhost-user devices absent?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(
            no_device(
                r"virtio-9p.*|vhost-user-.*|ivshmem.*|pvrdma|virtio-pmem.*|nvdimm|virtio-fs.*",
                "device that shares files or memory",
            ),
        ),
        cuts=(S2,),
        scenarios=(HOST, OTHERS),
        cost=Cost(features="shared folders: use a disk image or the network"),
        remedies=Remedies(libvirt="remove <filesystem>, <shmem> and vhostuser interfaces", spec="none needed"),
        sources=(cve("CVE-2016-9602", "CVE-2022-0358", "CVE-2023-2861", "CVE-2026-93834"),),
    ),
    Control(
        id="dev.platform-off",
        title="Unneeded parts of the board are off",
        question="Are HPET, keyboard controller, VMware port, SMBus, parallel port and memory balloon absent?",
        severity=Severity.MEDIUM,
        gate=Gate.LAUNCH,
        checks=(
            no_device(
                r"hpet|i8042|vmport|vmmouse|ICH9[ _-]SMB|smbus-.*|isa-parallel|isa-debug.*|isa-applesmc"
                r"|virtio-balloon.*",
                "unneeded platform device",
            ),
        ),
        cuts=(S2, S3),
        scenarios=(HOST,),
        cost=Cost(features="giving memory back with a balloon; PS/2 keyboards"),
        remedies=Remedies(
            libvirt="<memballoon model='none'/>, <timer name='hpet' present='no'/>, <vmport state='off'/>",
            spec="none needed",
        ),
        sources=(lecture("Durcissement de l'émulateur: le moins possible d'émulateurs de matériel"),),
        limits="The PIT and the PIC have controls of their own.",
    ),
    Control(
        id="dev.no-hotplug",
        title="No slot for hot-plugged devices",
        question="Are there no PCI Express root ports, bridges or memory slots?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        checks=(
            no_device(
                r"pcie-root-port|pcie-pci-bridge|pci-bridge.*|i82801b11-bridge|ioh3420|.*-(up|down)stream|pxb.*|cxl-.*"
                r"|pc-dimm|virtio-mem.*",
                "slot or bridge",
            ),
        ),
        cuts=(S2,),
        scenarios=(HOST,),
        cost=Cost(features="adding devices or memory while the guest runs"),
        remedies=Remedies(libvirt="<target hotplug='off'/> on root ports, or remove them"),
        sources=(cve("CVE-2014-5388", "CVE-2017-5525", "CVE-2017-5526"),),
        limits="ACPI PCI hot-plug of the root bus is a property of the chipset and not visible as a device.",
    ),
    Control(
        id="iommu.no-hostdev",
        title="No device of the host is given to the guest",
        question="Is there no PCI passthrough?",
        severity=Severity.HIGH,
        gate=Gate.LAUNCH,
        checks=(Check("vm.passthrough", Empty()), no_device(r"vfio-.*|x-pci-proxy-dev", "passed-through device")),
        cuts=(S3,),
        scenarios=(HOST,),
        cost=Cost(performance="devices that need it, as GPUs and fast network cards"),
        remedies=Remedies(
            host='allow it in the policy file: [waivers] allowed = ["iommu.no-hostdev"]',
            libvirt="remove <hostdev>",
            spec="remove [[passthrough]], or give it a [[waiver]] that the host's policy allows",
        ),
        sources=(
            lecture("IOMMU et PCI passthrough: à éviter"),
            qemu("docs/system/security: passthrough is not trusted"),
        ),
    ),
    Control(
        id="iommu.no-usb-host",
        title="No USB device of the host or of a remote client is given to the guest",
        question="Are usb-host, usb-redir and passed-through smart cards and keys absent?",
        severity=Severity.MEDIUM,
        gate=Gate.LAUNCH,
        checks=(no_device(r"usb-host|usb-redir|u2f-passthru|ccid-card-passthru", "passed-through USB device"),),
        cuts=(S2,),
        scenarios=(HOST,),
        remedies=Remedies(libvirt="remove <hostdev type='usb'> and <redirdev>", spec="none needed"),
        sources=(cve("CVE-2021-3682"),),
    ),
    Control(
        id="vmm.qmp",
        title="Nobody but the VM's manager speaks to the emulator's monitor",
        question="Is the monitor an inherited descriptor, or a socket that only root and the VM itself can open?",
        severity=Severity.CRITICAL,
        gate=Gate.LAUNCH,
        checks=(Check("qmp.transport", OneOf(("inherited-descriptor", "root-only-socket"))),),
        cuts=(S7,),
        scenarios=(VM, HOST),
        remedies=Remedies(
            libvirt="remove -qmp, -mon and -monitor from <qemu:commandline>; keep VMs apart by sVirt (security_driver),"
            " or by a uid each: <seclabel type='static' model='dac' relabel='yes'><label>+1001:+1001</label>",
            host="monitors and API sockets below a directory that only the manager's user may enter",
            spec="none needed",
        ),
        sources=(
            lecture("Gestionnaire de machines virtuelles: accès au VMM = root"),
            qemu("docs/system/security: monitor"),
        ),
        limits="A socket is judged by rights of path and file and by labels, on the live host; a document does not show"
        " them. VMs of one uid can open each other's sockets unless a label keeps them apart.",
    ),
    Control(
        id="vmm.no-debug",
        title="No debugging interface and no incoming migration",
        question="Is QEMU without gdb server, incoming migration, tracing and logging arguments?",
        severity=Severity.CRITICAL,
        gate=Gate.REPORT,
        checks=(Check("emu.debug", Empty()),),
        cuts=(S7,),
        scenarios=(VM,),
        cost=Cost(features="debugging a guest's kernel from outside"),
        remedies=Remedies(
            libvirt="remove -s, -gdb, -incoming, -d and -trace from <qemu:commandline>", spec="none needed"
        ),
        sources=(qemu("-gdb, -incoming, -d, -trace"),),
        limits="In a VM of ours the arguments are also compared with the plan (proc.drift).",
    ),
    Control(
        id="vmm.console-bounded",
        title="A guest that writes for ever fills no disk",
        question="Does the log of the guest's console have a limit?",
        severity=Severity.MEDIUM,
        gate=Gate.LAUNCH,
        checks=(Check("console.bounded", Equals(True)),),
        cuts=(S7,),
        scenarios=(HOST,),
        remedies=Remedies(libvirt='stdio_handler = "logd" in qemu.conf', spec="[console] log_max_kib"),
        sources=(libvirt("qemu.conf: stdio_handler"),),
    ),
    Control(
        id="mem.no-dump",
        title="The guest's memory is left out of core dumps",
        question="Would a core dump of the emulator not carry the guest's RAM?",
        severity=Severity.MEDIUM,
        gate=Gate.LAUNCH,
        checks=(Check("mem.dump", Equals(False)),),
        cuts=(S9,),
        scenarios=(VM,),
        remedies=Remedies(
            libvirt="<memory dumpCore='off'>", host="dump_guest_core = 0 in qemu.conf", spec="none needed"
        ),
        sources=(libvirt("qemu.conf: dump_guest_core"), qemu("-machine dump-guest-core=off")),
    ),
)
