"""The data paths as data: emulated NIC, virtio-net in QEMU, vhost-net, IDE and virtio-blk, under KVM and under TCG.

Read in the sources of QEMU 7.2 and Linux 6.1; each path names the functions. Under TCG there is no KVM: the vCPU
thread runs translated code and calls the device itself.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from casemate.surface.paths_model import Kind, Lane, Path, Step

_TX, _RX = "transmit", "receive"
_READ, _WRITE = "read", "write"

D, V, K, L, H, B = Lane.DRIVER, Lane.VCPU, Lane.KVM, Lane.LOOP, Lane.VHOST, Lane.BACK
EXIT, NOTE, ACCESS, COPY, IRQ = Kind.EXIT, Kind.NOTIFICATION, Kind.ACCESS, Kind.COPY, Kind.INTERRUPT


def _registers(kvm: bool, text: str, figure: str = "accesses") -> tuple[Step, ...]:
    """The guest touches a register that code in the emulator stands behind."""
    if not kvm:
        return (Step(D, V, EXIT, f"{text}; translated code calls the device", figure),)
    return (
        Step(D, K, EXIT, text, figure),
        Step(K, V, NOTE, "KVM_RUN returns to the emulator, which decodes the access"),
    )


def _kick(kvm: bool, queue: str, to: Lane = L) -> tuple[Step, ...]:
    """The guest rings a doorbell of virtio."""
    text = f"one write to the notify register of the {queue} queue"
    if not kvm:
        return (
            Step(D, V, EXIT, text, "accesses"),
            Step(V, to, NOTE, "event descriptor; the queue is handled", "notifications"),
        )
    return (
        Step(D, K, EXIT, text, "accesses"),
        Step(K, to, NOTE, "ioeventfd: the kernel wakes the handler, the vCPU goes on", "notifications"),
    )


def _interrupt(kvm: bool, source: Lane, how: str) -> tuple[Step, ...]:
    if not kvm:
        if source is V:
            return (Step(V, D, IRQ, how, "interrupts"),)
        return (
            Step(source, V, NOTE, how),
            Step(V, D, IRQ, "taken between two blocks of translated code", "interrupts"),
        )
    return (Step(source, K, NOTE, how), Step(K, D, IRQ, "injected at the next entry of the guest", "interrupts"))


def _e1000(kvm: bool) -> tuple[Path, ...]:
    ack = _registers(kvm, "reads the cause register, which lowers the line", "")
    line = "interrupt line raised: one more call into the kernel" if kvm else "interrupt line raised"
    return (
        Path(
            device="e1000",
            direction=_TX,
            unit="packet",
            steps=(
                *_registers(kvm, "writes the tail register; reads and writes of the interrupt registers"),
                Step(V, D, ACCESS, "descriptors parsed in the guest's memory, at addresses that the guest chose"),
                Step(D, V, COPY, "frame copied out of the guest into the device's buffer"),
                Step(V, B, COPY, "frame handed to the back end: send(2)"),
                *_interrupt(kvm, V, line),
                *ack,
            ),
            source="QEMU hw/net/e1000.c: set_tctl, start_xmit, process_tx_desc",
        ),
        Path(
            device="e1000",
            direction=_RX,
            unit="packet",
            steps=(
                Step(B, L, NOTE, "descriptor readable: the main loop wakes up"),
                Step(B, L, COPY, "frame read from the back end: recv(2)"),
                Step(L, D, COPY, "frame copied into the guest, descriptor written back"),
                *_interrupt(kvm, L, line),
                *_registers(kvm, "reads cause, masks, writes the tail register"),
            ),
            source="QEMU hw/net/e1000.c: e1000_receive_iov, set_ics",
        ),
    )


def _virtio_net(kvm: bool) -> tuple[Path, ...]:
    # Without vhost nobody gives this card an irqfd (virtio_net has no start_ioeventfd of its own).
    irq = "MSI-X: one more call into the kernel" if kvm else "MSI-X message"
    return (
        Path(
            device="virtio-net",
            direction=_TX,
            unit="packet",
            steps=(
                *_kick(kvm, "transmit"),
                Step(L, D, ACCESS, "ring read; the frame stays where it lies"),
                Step(L, B, COPY, "sendmsg(2): the kernel copies the frame out of the guest's memory"),
                *_interrupt(kvm, L, irq),
            ),
            source="QEMU hw/net/virtio-net.c: virtio_net_flush_tx; accel/kvm/kvm-all.c: kvm_irqchip_send_msi",
        ),
        Path(
            device="virtio-net",
            direction=_RX,
            unit="packet",
            steps=(
                Step(B, L, NOTE, "descriptor readable: the main loop wakes up"),
                Step(B, L, COPY, "frame read from the back end: recv(2)"),
                Step(L, D, COPY, "frame copied into a buffer of the receive ring"),
                *_interrupt(kvm, L, irq),
                *_kick(kvm, "receive")[:1],
            ),
            source="QEMU hw/net/virtio-net.c: virtio_net_receive_rcu; accel/kvm/kvm-all.c: kvm_irqchip_send_msi",
        ),
    )


_NO_VHOST: Final = "not measured: drawn from the kernel's sources"


def _vhost_net(kvm: bool) -> tuple[Path, ...]:
    if not kvm:
        return ()
    return (
        Path(
            device="vhost-net",
            direction=_TX,
            unit="packet",
            steps=(
                *_kick(True, "transmit", H),
                Step(H, D, ACCESS, "the host's kernel parses the ring, in memory that the guest can change"),
                Step(H, B, COPY, "sendmsg of the TAP socket; the emulator sees nothing of it"),
                *_interrupt(True, H, "irqfd"),
            ),
            source="Linux drivers/vhost/net.c: handle_tx; drivers/vhost/vhost.c: vhost_get_vq_desc",
            not_measured=_NO_VHOST,
        ),
        Path(
            device="vhost-net",
            direction=_RX,
            unit="packet",
            steps=(
                Step(B, H, NOTE, "a frame lies in the TAP socket: the worker wakes up"),
                Step(B, H, COPY, "recvmsg of the TAP socket"),
                Step(H, D, COPY, "straight into a buffer of the receive ring"),
                *_interrupt(True, H, "irqfd"),
                *_kick(True, "receive", H)[:1],
            ),
            source="Linux drivers/vhost/net.c: handle_rx",
            not_measured=_NO_VHOST,
        ),
    )


def _disk_end(direction: str) -> tuple[Step, ...]:
    if direction == _READ:
        return (
            Step(L, B, NOTE, "preadv(2), by a worker thread"),
            Step(B, D, COPY, "the kernel copies the block into the guest's memory"),
        )
    return (
        Step(L, B, NOTE, "pwritev(2), by a worker thread"),
        Step(D, B, COPY, "the kernel copies the block out of the guest's memory"),
    )


def _ide(kvm: bool) -> tuple[Path, ...]:
    line = "interrupt line raised" + (": one more call into the kernel" if kvm else "")
    return tuple(
        Path(
            device="ide",
            direction=direction,
            unit="block",
            steps=(
                *_registers(kvm, "command, address and bus-master registers, one by one"),
                Step(V, D, ACCESS, "DMA table parsed in the guest's memory"),
                Step(V, L, NOTE, "request queued"),
                *_disk_end(direction),
                *_interrupt(kvm, L, line),
                *_registers(kvm, "status and bus-master registers again", ""),
            ),
            source="QEMU hw/ide/core.c: ide_ioport_write, ide_dma_cb; hw/ide/pci.c: bmdma_cmd_writeb",
        )
        for direction in (_READ, _WRITE)
    )


def _virtio_blk(kvm: bool) -> tuple[Path, ...]:
    return tuple(
        Path(
            device="virtio-blk",
            direction=direction,
            unit="block",
            steps=(
                *_kick(kvm, "request"),
                Step(L, D, ACCESS, "ring and request header read"),
                *_disk_end(direction),
                *_interrupt(kvm, L, "MSI-X: irqfd" if kvm else "MSI-X message"),
            ),
            source="QEMU hw/block/virtio-blk.c: virtio_blk_handle_vq; hw/block/dataplane/virtio-blk.c: notify_guest_bh",
        )
        for direction in (_READ, _WRITE)
    )


_OF: Final = {
    "e1000": _e1000,
    "virtio-net": _virtio_net,
    "vhost-net": _vhost_net,
    "ide": _ide,
    "virtio-blk": _virtio_blk,
}
DEVICES: Final = tuple(_OF)
"""Devices whose paths are known."""


def paths_of(device: str, *, kvm: bool) -> tuple[Path, ...]:
    """Both directions of one device of `DEVICES`; none for vhost-net without KVM, which it needs."""
    return _OF[device](kvm)


_EMULATED_NICS: Final = ("e1000", "rtl8139", "pcnet", "ne2k", "vmxnet3", "tulip", "i825", "i82801", "igb")
_EMULATED_DISKS: Final = ("ide-hd", "ide-cd", "ide-drive")
_AHCI: Final = {"ich9-ahci", "ahci"}
"""Its registers lie in memory and it queues commands: another path, which is not drawn."""


def devices_in(types: Collection[str], marks: Collection[str]) -> tuple[str, ...]:
    """Which of `DEVICES` a machine has; another emulated NIC works as the e1000 does.

    Args:
        types: QOM type names. marks: as `facts.cve_table.marks_of` gives them.
    """
    found = set()
    if any(name.startswith(_EMULATED_NICS) for name in types):
        found.add("e1000")
    if any(name.startswith("virtio-net") for name in types):
        found.add("vhost-net" if "vhost:net" in marks else "virtio-net")
    if any(name.startswith(_EMULATED_DISKS) for name in types) and not _AHCI & set(types):
        found.add("ide")
    if any(name.startswith("virtio-blk") for name in types):
        found.add("virtio-blk")
    return tuple(device for device in DEVICES if device in found)
