"""Layer image: disks as a description shows them, and what only a look inside could tell."""

from __future__ import annotations

from casemate.controls.catalogue.common import (
    HAS_DISKS,
    HOST,
    OTHERS,
    S1,
    S2,
    S5,
    S8,
    S9,
    VM,
    cve,
    lecture,
    libvirt,
)
from casemate.controls.expectations import Empty, NoneMatches, Present
from casemate.controls.model import Check, Condition, Control, Cost, Gate, Remedies, Severity, Subject

CONTROLS: tuple[Control, ...] = (
    Control(
        id="img.size",
        title="The virtual size of each image is within a quota",
        question="Can no image grow until the storage is full?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        cuts=(S8,),
        scenarios=(HOST,),
        remedies=Remedies(host="a quota on the pool, or qemu-img info inside a throwaway VM: virtual size"),
        sources=(libvirt("kbase/secureusage: disk image size"),),
        manual="Compare the virtual size in each image header with the quota of the pool; the description of a "
        "machine does not hold it.",
    ),
    Control(
        id="img.perm-label",
        title="Image files belong to one VM",
        question="Are images mode 0600, owned by the uid of the VM, labelled with its categories?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        cuts=(S5,),
        scenarios=(OTHERS,),
        remedies=Remedies(host="chmod 0600; one uid per VM; security_driver of qemu.conf labels them"),
        sources=(libvirt("drvqemu: sVirt, DAC"),),
        manual="Look at owner, mode and label of every file in img.paths on the host where the VM runs.",
    ),
    Control(
        id="img.encrypted",
        title="Writable images outside of this host are encrypted",
        question="Is every image that comes over a network LUKS-encrypted?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("img.remote-clear", Empty()),),
        applies_when=(Condition("img.remote", Present(), "every image is on this host"),),
        cuts=(S9,),
        scenarios=(VM,),
        cost=Cost(performance="AES of each block", features="keys have to be kept"),
        remedies=Remedies(
            libvirt="<source><encryption format='luks'>…</encryption></source>", host="dm-crypt below the pool"
        ),
        sources=(libvirt("formatstorageencryption"), libvirt("kbase/secureusage: storage encryption")),
        limits="Encryption below the image (dm-crypt, the storage itself) does not show in the description.",
    ),
    Control(
        id="img.local-encrypted",
        title="Images at rest are encrypted",
        question="Is every writable image encrypted?",
        severity=Severity.LOW,
        gate=Gate.REPORT,
        checks=(Check("img.unencrypted", Empty()),),
        applies_when=(HAS_DISKS,),
        cuts=(S9,),
        scenarios=(VM,),
        remedies=Remedies(libvirt="<encryption format='luks'>", host="dm-crypt below the pool"),
        sources=(lecture("Images de machines virtuelles: à considérer comme publiques"),),
        limits="Encryption below the image (dm-crypt) does not show in the description.",
    ),
    Control(
        id="img.no-remote",
        title="No image comes over a network in the emulator",
        question="Does QEMU speak no NBD, RBD, iSCSI, HTTP or SSH by itself?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("img.remote", Empty()),),
        applies_when=(HAS_DISKS,),
        cuts=(
            S2,
            S8,
        ),
        scenarios=(HOST,),
        cost=Cost(features="network volumes have to be mapped by the host"),
        remedies=Remedies(libvirt="<disk type='file'> or type='block'; let the host map the volume"),
        sources=(
            cve("CVE-2016-5126"),
            lecture("Durcissement de l'émulateur"),
        ),
    ),
    Control(
        id="img.ram-files",
        title="No file holds the memory of the guest",
        question="Is guest RAM kept out of files (memory_backing_dir, -mem-path)?",
        severity=Severity.MEDIUM,
        gate=Gate.REPORT,
        checks=(Check("mem.files", NoneMatches(r"(?!/dev/hugepages|/dev/shm/).*", "no file, apart from huge pages")),),
        cuts=(S9,),
        scenarios=(VM,),
        remedies=Remedies(
            libvirt="<memoryBacking> without <source type='file'/>", host="memory_backing_dir on a tmpfs, mode 0700"
        ),
        sources=(libvirt("qemu.conf: memory_backing_dir"),),
        limits="Saved states, snapshots and dumps of the host are not looked at.",
    ),
    Control(
        id="sec.keys",
        title="The image carries no keys of somebody else",
        question="Are host keys, private keys, tokens, seeds and machine-id absent from the image?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        subject=Subject.IMAGE,
        cuts=(
            S9,
            S5,
        ),
        scenarios=(
            VM,
            OTHERS,
        ),
        remedies=Remedies(host="virt-sysprep, or build images without them; never mount the image on the host"),
        sources=(lecture("Images de machines virtuelles: secrets"),),
        manual="Look inside the image in a throwaway VM: ssh host keys, private keys, cloud-init seeds, shell "
        "history, machine-id, random-seed.",
    ),
    Control(
        id="sec.passwords",
        title="The image has no default password",
        question="Are default and known password hashes absent and is root locked?",
        severity=Severity.HIGH,
        gate=Gate.REPORT,
        subject=Subject.IMAGE,
        cuts=(S1,),
        scenarios=(VM,),
        remedies=Remedies(host="passwd -l root in the image; keys instead of passwords"),
        sources=(lecture("Images de machines virtuelles: secrets"),),
        manual="Look at /etc/shadow of the image in a throwaway VM.",
    ),
)
